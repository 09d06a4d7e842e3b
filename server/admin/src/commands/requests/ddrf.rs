//! `lethe-admin iab-ddrf`: takes request tokens of the IAB's Data Deletion Request Framework 1.0
//! and writes acknowledgements.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use lethe_dsr::ddrf::{Party, Recipient, receive as verify, result_code};
use lethe_dsr::jws::MAX_TOKEN;
use lethe_dsr::opendsr::Status;
use serde_json::json;

use super::book::Book;
use super::{Reference, Signing, deliver, find, submit};
use crate::desk::Desk;
use crate::when::now;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Take a request token (rqJWT); writes the acknowledgement (acJWT). Exit code 1 and a result
    /// code other than 0 when the request is refused (answer it with HTTP status 400, else 202).
    Receive(Receive),
    /// Acknowledge that a request is complete; exit code 3 while it is not.
    Complete(Complete),
    /// What to publish as `dsrdelete.json`.
    Publish(Publish),
}

#[derive(clap::Args)]
struct Us {
    #[command(flatten)]
    signing: Signing,
    /// Name of the key in this installation's `dsrdelete.json`.
    #[arg(long, default_value = "lethe")]
    kid: String,
    /// Write the token here.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(clap::Args)]
struct Receive {
    /// File with the token.
    token: PathBuf,
    /// Public keys of partners, JSON: `[{"domain": "shop.example", "publicKey": [JWK, ...],
    /// "firstParty": true}, ...]`, from their `dsrdelete.json`.
    #[arg(long)]
    partners: PathBuf,
    /// Identifier type whose values are the subjects' identifiers here.
    #[arg(long, default_value = "customer")]
    identifier_type: String,
    #[command(flatten)]
    us: Us,
}

#[derive(clap::Args)]
struct Complete {
    /// `jti` of the identity token.
    id: String,
    /// Domain of the first party, if several use the same.
    #[arg(long)]
    first_party: Option<String>,
    #[command(flatten)]
    us: Us,
}

#[derive(clap::Args)]
struct Publish {
    /// Where partners send request tokens.
    #[arg(long)]
    endpoint: String,
    /// Identifier type whose values are the subjects' identifiers here.
    #[arg(long, default_value = "customer")]
    identifier_type: String,
    #[command(flatten)]
    us: Us,
}

pub(crate) async fn run(args: &Args, home: &Path, desk: &Desk) -> anyhow::Result<ExitCode> {
    let book = Book::of(home)?;
    match &args.what {
        What::Receive(r) => receive(r, desk, &book).await,
        What::Complete(c) => complete(c, desk, &book).await,
        What::Publish(p) => publish(p),
    }
}

/// An id for an acknowledgement: the request's, what it says, and when.
fn acknowledge(
    us: &Us,
    token: &str,
    jti: &str,
    code: u8,
    text: Option<&str>,
) -> anyhow::Result<()> {
    let key = us.signing.key()?;
    let recipient = Recipient {
        domain: &us.signing.domain,
        key: &key,
        kid: &us.kid,
    };
    let ack = recipient.acknowledge(token, jti, now() as i64, code, text)?;
    deliver(&ack, us.out.as_ref())
}

async fn receive(r: &Receive, desk: &Desk, book: &Book) -> anyhow::Result<ExitCode> {
    let text = std::fs::read_to_string(&r.token).with_context(|| r.token.display().to_string())?;
    let token = text.trim();
    anyhow::ensure!(
        token.len() <= MAX_TOKEN,
        "a token of {} bytes, at most {MAX_TOKEN}",
        token.len()
    );
    let partners = std::fs::read(&r.partners).with_context(|| r.partners.display().to_string())?;
    let partners: Vec<Party> =
        serde_json::from_slice(&partners).with_context(|| r.partners.display().to_string())?;
    let at = now() as i64;
    let verified = match verify(token, &partners, &r.identifier_type, at) {
        Ok(v) => v,
        Err(e) => {
            let jti = format!("refused-{at}");
            acknowledge(&r.us, token, &jti, result_code(&e), Some(&e.to_string()))?;
            bail!(e);
        }
    };
    // The first party's request: whoever passes it on, and how often, it is done once.
    let id = verified.origin.jti.clone();
    let reference = Reference {
        format: "iab-ddrf".into(),
        id: id.clone(),
        controller: verified.origin.iss.clone(),
        received: at,
        due: verified.origin.iat + 30 * 86_400,
        callbacks: vec![],
        token: Some(token.to_owned()),
    };
    submit(
        desk,
        book,
        verified.deletion,
        verified.origin.iat,
        reference,
    )
    .await?;
    acknowledge(&r.us, token, &format!("{id}-received"), 0, None)?;
    Ok(ExitCode::SUCCESS)
}

async fn complete(c: &Complete, desk: &Desk, book: &Book) -> anyhow::Result<ExitCode> {
    let found = find(desk, book, "iab-ddrf", &c.id, c.first_party.as_deref()).await?;
    let status = found.known()?;
    if status != Status::Completed {
        crate::output::error(&format!("request {} is {status:?}", c.id));
        return Ok(ExitCode::from(3));
    }
    let (Some(token), Some(deletion)) = (found.reference.token, found.deletion) else {
        bail!(
            "request {} named nobody who is known here: the acknowledgement of receipt was the \
             whole answer",
            c.id
        );
    };
    let text = format!("completed: deletion {deletion}, with a receipt");
    acknowledge(
        &c.us,
        &token,
        &format!("{}-completed", c.id),
        0,
        Some(&text),
    )?;
    Ok(ExitCode::SUCCESS)
}

fn publish(p: &Publish) -> anyhow::Result<ExitCode> {
    let key = p.us.signing.key()?.jwk(&p.us.kid);
    let resource = json!({
        "endpoint": p.endpoint,
        "identifiers": [{ "id": 1, "type": p.identifier_type, "format": "plaintext" }],
        "publicKey": [key],
        "vendorScriptRequirement": false,
    });
    deliver(&serde_json::to_string_pretty(&resource)?, p.us.out.as_ref())?;
    Ok(ExitCode::SUCCESS)
}
