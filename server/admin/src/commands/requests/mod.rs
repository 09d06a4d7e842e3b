//! Requests in the formats of privacy platforms: what is common to them.
//!
//! What came with a request is kept with its deletions at the coordinator, sealed ([`Reference`]);
//! the operator's [`book`] knows the request again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use lethe_dsr::SigningKey;
use lethe_dsr::opendsr::Status;
use lethe_proto::admin::DeletionPhase;
use lethe_proto::deletion::{DeletionRequest, Proposal};
use lethe_proto::limits::MAX_REFERENCE;
use lethe_proto::message::Refusal;
use lethe_transport::TransportError;
use serde::{Deserialize, Serialize};

use super::forget::{Ask, Outcome, ask};
use crate::desk::Desk;
use crate::output::write_private;
use book::{Book, Requests};

pub(crate) mod book;
mod book_key;
pub(crate) mod callbacks;
pub(crate) mod ddrf;
pub(crate) mod opendsr;

/// What came with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reference {
    /// `opendsr` or `iab-ddrf`.
    pub(crate) format: String,
    /// The request's own id; each controller has its own.
    pub(crate) id: String,
    /// Who asked: as this installation calls them, or the first party's domain.
    pub(crate) controller: String,
    /// Unix seconds.
    pub(crate) received: i64,
    /// When it has to be done, in Unix seconds.
    pub(crate) due: i64,
    /// Where status changes are reported.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) callbacks: Vec<String>,
    /// The token, for an acknowledgement of completion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
}

impl Reference {
    /// Under which it is known.
    pub(crate) fn key(&self) -> String {
        format!("{} {} {}", self.format, self.controller, self.id)
    }
}

/// A request that cannot be done as it was asked, with the HTTP status of its answer.
#[derive(Debug)]
pub(crate) struct NotAsAsked {
    pub(crate) code: u16,
    /// Which case it is: one word.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl std::fmt::Display for NotAsAsked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for NotAsAsked {}

/// An id that was used for somebody else.
pub(crate) fn used_before(id: &str) -> anyhow::Error {
    NotAsAsked {
        code: 400,
        reason: "RequestIdReused",
        message: format!("{id} was used for another person before: ids are never used twice"),
    }
    .into()
}

/// How answers are signed.
#[derive(clap::Args)]
pub(crate) struct Signing {
    /// Domain of this installation, as its partners know it.
    #[arg(long)]
    pub(crate) domain: String,
    /// Private key, PEM: RSA (what OpenDSR and most partners expect), P-256 or Ed25519.
    #[arg(long)]
    pub(crate) key: PathBuf,
}

impl Signing {
    pub(crate) fn key(&self) -> anyhow::Result<SigningKey> {
        let text =
            std::fs::read_to_string(&self.key).with_context(|| self.key.display().to_string())?;
        SigningKey::from_pem(&text).with_context(|| self.key.display().to_string())
    }
}

/// A request, as book and coordinator know it.
#[derive(Clone)]
pub(crate) struct Found {
    pub(crate) reference: Reference,
    /// `None`: it was taken, and the coordinator does not know it any more (a proposal that a
    /// restored backup lacks).
    pub(crate) status: Option<Status>,
    /// Whom it is about, where the coordinator knows.
    subject: Option<String>,
    /// The proposal that waits for other operators.
    pub(crate) proposal: Option<u64>,
    /// The deletion.
    pub(crate) deletion: Option<u64>,
}

impl Found {
    /// The status, or what to do without one.
    pub(crate) fn known(&self) -> anyhow::Result<Status> {
        let id = &self.reference.id;
        self.status.with_context(|| {
            format!(
                "request {id} was taken, and the coordinator does not know it any more: hand \
                     it in again"
            )
        })
    }
}

/// All requests that came in one of these formats, by key.
pub(crate) async fn all(desk: &Desk, book: &Requests) -> anyhow::Result<BTreeMap<String, Found>> {
    let mut out = BTreeMap::new();
    let parse = |text: &str| serde_json::from_str::<Reference>(text).ok();
    for (key, b) in book {
        let status = match (b.unknown, b.cancelled) {
            (true, _) => Some(Status::Completed),
            (_, true) => Some(Status::Cancelled),
            _ => None,
        };
        let reference = b.reference.clone();
        out.insert(
            key.clone(),
            Found {
                reference,
                status,
                subject: None,
                proposal: None,
                deletion: None,
            },
        );
    }
    let about = |r: &DeletionRequest| r.subject().map(|s| s.as_str().to_owned());
    for p in desk.proposals().await? {
        if let Proposal::Forget {
            reference,
            requests,
            ..
        } = &p.what
            && let Some(reference) = parse(reference)
        {
            let (status, subject) = (Some(Status::Pending), requests.first().and_then(about));
            let found = Found {
                reference,
                status,
                subject,
                proposal: Some(p.id),
                deletion: None,
            };
            out.insert(found.reference.key(), found);
        }
    }
    for d in desk.deletions().await? {
        if let Some(reference) = parse(&d.reference) {
            let status = if d.phase == DeletionPhase::Done {
                Status::Completed
            } else {
                Status::InProgress
            };
            let (status, subject) = (Some(status), about(&d.request));
            let found = Found {
                reference,
                status,
                subject,
                proposal: None,
                deletion: Some(d.id),
            };
            out.insert(found.reference.key(), found);
        }
    }
    Ok(out)
}

/// The one with this id in a format; `controller` tells apart those of several that use the same.
pub(crate) async fn find(
    desk: &Desk,
    book: &Book,
    format: &str,
    id: &str,
    controller: Option<&str>,
) -> anyhow::Result<Found> {
    let all = all(desk, &book.read()?).await?;
    let fits = |f: &&Found| {
        let r = &f.reference;
        r.format == format && r.id == id && controller.is_none_or(|c| c == r.controller)
    };
    let mut found = all.values().filter(fits);
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one.clone()),
        (None, _) => Err(NotAsAsked {
            code: 404,
            reason: "UnknownRequest",
            message: format!("no request {id} was received"),
        }
        .into()),
        _ => bail!("several controllers have a request {id}: name one with --controller"),
    }
}

/// Hands a request to the coordinator, once: a request that comes again is found as it is. An id
/// that was used for somebody else is refused.
pub(crate) async fn submit(
    desk: &Desk,
    book: &Book,
    deletion: DeletionRequest,
    asked: i64,
    reference: Reference,
) -> anyhow::Result<Found> {
    let _lock = book.lock()?;
    let (known, key) = (book.read()?, reference.key());
    let subject = deletion.subject().map_or("", |s| s.as_str()).to_owned();
    if let Some(booked) = known.get(&key) {
        book.check(booked, &subject)?;
    }
    if let Some(found) = all(desk, &known)
        .await?
        .remove(&key)
        .filter(|f| f.status.is_some())
    {
        if found.subject.as_ref().is_some_and(|s| *s != subject) {
            return Err(used_before(&reference.id));
        }
        if !known.contains_key(&key) {
            // A crash came between the coordinator's answer and the book, or another operator took
            // it.
            book.enter(&found.reference, &subject, false)?;
        }
        return Ok(found);
    }
    let text = serde_json::to_string(&reference)?;
    let got = text.len();
    anyhow::ensure!(
        got <= MAX_REFERENCE,
        "the request's own part has {got} bytes, at most {MAX_REFERENCE}"
    );
    let what = Ask::new(vec![deletion]).on_behalf(asked.max(0) as u64, text);
    let unknown = match ask(desk, what).await {
        Ok(Outcome::Planned(_) | Outcome::Proposed(_)) => false,
        Err(e) if is_unknown(&e) => true,
        Err(e) => return Err(e),
    };
    book.enter(&reference, &subject, unknown)?;
    let found = all(desk, &book.read()?).await?.remove(&key);
    found.context("the coordinator does not show the request that it accepted")
}

/// Nobody of that name: for those who asked, that is a request with nothing left to do.
fn is_unknown(e: &anyhow::Error) -> bool {
    let cause = e.chain().find_map(|c| c.downcast_ref::<TransportError>());
    matches!(
        cause,
        Some(TransportError::Refused {
            code: Refusal::NotFound,
            ..
        })
    )
}

/// Notes in the book that a proposal was withdrawn, if it came as such a request.
pub(crate) async fn cancelled(desk: &Desk, home: &Path, proposal: u64) -> anyhow::Result<()> {
    let waiting = desk.proposals().await?;
    let Some(p) = waiting.iter().find(|p| p.id == proposal) else {
        return Ok(());
    };
    let Proposal::Forget { reference, .. } = &p.what else {
        return Ok(());
    };
    let Ok(reference) = serde_json::from_str::<Reference>(reference) else {
        return Ok(());
    };
    let book = Book::of(home)?;
    let _lock = book.lock()?;
    book.change(|all| {
        if let Some(b) = all.get_mut(&reference.key()) {
            b.cancelled = true;
        }
        Ok(())
    })
}

/// Writes an answer to a file or prints it.
pub(crate) fn deliver(text: &str, out: Option<&PathBuf>) -> anyhow::Result<()> {
    match out {
        Some(path) => write_private(path, text.as_bytes()),
        None => {
            use std::io::Write;
            Ok(writeln!(std::io::stdout(), "{text}")?)
        }
    }
}
