//! `lethe-admin opendsr`: takes OpenDSR 2.0 requests from files and writes the signed answers.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use lethe_dsr::DsrError;
use lethe_dsr::opendsr::{Cancelled, Discovery, ErrorBody, Request, Signed, Status, StatusBody};
use lethe_proto::admin::{AdminReply, AdminRequest};

use super::book::Book;
use super::{NotAsAsked, Reference, Signing, callbacks, cancelled, deliver, find, submit};
use crate::desk::Desk;
use crate::output::Output;
use crate::when::now;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Take a request; writes the answer for status 201, with its headers, as JSON. For a request
    /// that is at fault it is the error object of the specification, whose `code` is the status.
    Receive(Receive),
    /// The signed status of a request.
    Status(Which),
    /// Withdraw a request that is still pending (waits for other operators); writes the answer for
    /// status 202.
    Cancel(Which),
    /// Tell the callback addresses of all requests what has changed since they were told last.
    Callbacks(callbacks::Args),
    /// What `/discovery` answers.
    Discovery(About),
}

#[derive(clap::Args)]
struct Receive {
    /// The request's body, exactly as it was received.
    body: PathBuf,
    /// Who asks, as this installation calls them.
    #[arg(long)]
    controller: String,
    /// Identity type whose values are the subjects' identifiers here.
    #[arg(long, default_value = "controller_customer_id")]
    identity_type: String,
    /// Days until it has to be done, from `submitted_time` on.
    #[arg(long, default_value_t = 30)]
    days: u32,
    /// Take requests that are to be called back inside of a network: at private, loopback and
    /// link-local addresses.
    #[arg(long)]
    allow_private_callbacks: bool,
    #[command(flatten)]
    signing: Signing,
    /// Write the answer here.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(clap::Args)]
struct Which {
    /// `subject_request_id`.
    id: String,
    /// Whose, if several use the same.
    #[arg(long)]
    controller: Option<String>,
    #[command(flatten)]
    signing: Signing,
    /// Write the answer here.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(clap::Args)]
struct About {
    /// Identity type whose values are the subjects' identifiers here.
    #[arg(long, default_value = "controller_customer_id")]
    identity_type: String,
    /// Where partners find the certificate of the signing key.
    #[arg(long)]
    certificate: String,
}

pub(crate) async fn run(
    args: &Args,
    home: &Path,
    desk: &Desk,
    out: &Output,
) -> anyhow::Result<ExitCode> {
    let book = Book::of(home)?;
    let json = out.json;
    match &args.what {
        What::Receive(r) => answered(receive(r, desk, &book).await, r.out.as_ref(), json),
        What::Status(w) => answered(status(w, desk, &book).await, w.out.as_ref(), json),
        What::Cancel(w) => answered(cancel(w, home, desk, &book).await, w.out.as_ref(), json),
        What::Callbacks(c) => callbacks::run(c, home, desk, &book).await,
        What::Discovery(a) => {
            let body = Discovery::new(&a.identity_type, &a.certificate);
            deliver(&serde_json::to_string_pretty(&body)?, None)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What is said of a request that is at fault, instead of an answer.
fn fault(e: &anyhow::Error) -> Option<ErrorBody> {
    let of_request = |c: &(dyn std::error::Error + 'static)| {
        c.downcast_ref::<DsrError>().and_then(ErrorBody::of)
    };
    e.chain().find_map(of_request).or_else(|| {
        let found = e.chain().find_map(|c| c.downcast_ref::<NotAsAsked>());
        found.map(|n| ErrorBody::new(n.code, n.reason, &n.message))
    })
}

/// Writes the error object of a request that is at fault: into the file that was asked for, and on
/// standard output with `--json`, or where there is no file. Other errors are this installation's
/// own, and nobody is answered.
fn answered(
    done: anyhow::Result<ExitCode>,
    out: Option<&PathBuf>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let Err(e) = done else {
        return done;
    };
    if let Some(body) = fault(&e) {
        let text = serde_json::to_string_pretty(&body)?;
        if out.is_some() {
            deliver(&text, out)?;
        }
        if json || out.is_none() {
            deliver(&text, None)?;
        }
    }
    Err(e)
}

fn write(signed: &Signed, out: Option<&PathBuf>) -> anyhow::Result<ExitCode> {
    deliver(&serde_json::to_string_pretty(signed)?, out)?;
    Ok(ExitCode::SUCCESS)
}

async fn receive(r: &Receive, desk: &Desk, book: &Book) -> anyhow::Result<ExitCode> {
    let key = r.signing.key()?;
    let body = std::fs::read(&r.body).with_context(|| r.body.display().to_string())?;
    let received = now() as i64;
    let request = Request::parse(&body, received).with_context(|| r.body.display().to_string())?;
    if !r.allow_private_callbacks {
        request.check_callbacks()?;
    }
    let deletion = request.deletion(&r.identity_type)?;
    let reference = Reference {
        format: "opendsr".into(),
        id: request.subject_request_id.clone(),
        controller: r.controller.clone(),
        received,
        due: request.submitted()? + i64::from(r.days) * 86_400,
        callbacks: request.status_callback_urls.clone(),
        token: None,
    };
    let asked = request.submitted()?;
    let known = submit(desk, book, deletion, asked, reference)
        .await?
        .reference;
    let answer = request.response(&body, &known.controller, known.received, known.due)?;
    write(
        &Signed::new(&answer, &r.signing.domain, &key)?,
        r.out.as_ref(),
    )
}

async fn status(w: &Which, desk: &Desk, book: &Book) -> anyhow::Result<ExitCode> {
    let found = find(desk, book, "opendsr", &w.id, w.controller.as_deref()).await?;
    let r = &found.reference;
    let body = StatusBody::new(&r.id, &r.controller, found.known()?, r.due, None)?;
    write(
        &Signed::new(&body, &w.signing.domain, &w.signing.key()?)?,
        w.out.as_ref(),
    )
}

async fn cancel(w: &Which, home: &Path, desk: &Desk, book: &Book) -> anyhow::Result<ExitCode> {
    let key = w.signing.key()?;
    let found = find(desk, book, "opendsr", &w.id, w.controller.as_deref()).await?;
    match (found.known()?, found.proposal) {
        (Status::Pending, Some(proposal)) => {
            cancelled(desk, home, proposal).await?;
            if let AdminReply::Proposed(p) = desk.ask(AdminRequest::Cancel { proposal }).await? {
                bail!(
                    "another operator made the request: its withdrawal waits for approval as \
                     proposal {}. Cancel it again when that is done",
                    p.id
                );
            }
        }
        (Status::Cancelled, _) => {}
        (status, _) => {
            return Err(NotAsAsked {
                code: 409,
                reason: "NotPending",
                message: format!(
                    "the request is {status:?}: only a pending one can be cancelled; a deletion \
                     that was accepted is executed at once"
                ),
            }
            .into());
        }
    }
    let body = Cancelled::new(&w.id, &found.reference.controller, now() as i64)?;
    write(
        &Signed::new(&body, &w.signing.domain, &key)?,
        w.out.as_ref(),
    )
}
