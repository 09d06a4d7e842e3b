//! Requests in the formats of privacy platforms: what is common to them.
//!
//! What came with a request is kept with its deletions at the coordinator, sealed (`Reference`). The operator's home keeps a
//! book of requests, `requests.json`: their ids and what was last answered. It names nobody.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use lethe_dsr::SigningKey;
use lethe_dsr::opendsr::Status;
use lethe_proto::admin::DeletionPhase;
use lethe_proto::deletion::{DeletionRequest, Proposal};
use lethe_proto::limits::MAX_REFERENCE;
use lethe_proto::message::Refusal;
use lethe_transport::TransportError;
use serde::{Deserialize, Serialize};

use super::forget::{Outcome, ask_with};
use crate::desk::Desk;

pub(crate) mod callbacks;
pub(crate) mod ddrf;
pub(crate) mod opendsr;

/// What came with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reference {
    /// `opendsr` or `iab-ddrf`.
    pub(crate) format: String,
    /// The request's own id.
    pub(crate) id: String,
    /// Who asked, as this installation calls them.
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

/// A request in the book.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Booked {
    /// What came with it, without the token (which names the person).
    pub(crate) reference: Reference,
    /// Nobody of that name is known: nothing had to be done.
    pub(crate) unknown: bool,
    /// Status that each callback address was told last.
    #[serde(default)]
    pub(crate) told: BTreeMap<String, Status>,
}

/// The operator's book of requests.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Book {
    #[serde(skip)]
    path: PathBuf,
    #[serde(flatten)]
    pub(crate) requests: BTreeMap<String, Booked>,
}

impl Book {
    pub(crate) fn open(home: &Path) -> anyhow::Result<Self> {
        let path = home.join("requests.json");
        let mut book: Self = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| path.display().to_string())?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Self::default(),
            Err(e) => return Err(e).with_context(|| path.display().to_string()),
        };
        book.path = path;
        Ok(book)
    }

    pub(crate) fn save(&self) -> anyhow::Result<()> {
        let next = self.path.with_extension("next");
        std::fs::write(&next, serde_json::to_vec_pretty(self)?).with_context(|| next.display().to_string())?;
        std::fs::rename(&next, &self.path).with_context(|| self.path.display().to_string())
    }
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
        let text = std::fs::read_to_string(&self.key).with_context(|| self.key.display().to_string())?;
        SigningKey::from_pem(&text).with_context(|| self.key.display().to_string())
    }
}

/// A request, as the coordinator knows it.
pub(crate) struct Found {
    pub(crate) reference: Reference,
    pub(crate) status: Status,
    /// The proposal that waits for other operators.
    pub(crate) proposal: Option<u64>,
    /// The deletion.
    pub(crate) deletion: Option<u64>,
}

/// All requests that came in one of these formats.
pub(crate) async fn all(desk: &Desk, book: &Book) -> anyhow::Result<BTreeMap<String, Found>> {
    let mut out = BTreeMap::new();
    let parse = |text: &str| serde_json::from_str::<Reference>(text).ok();
    // What is known to nobody else was answered at once, or withdrawn.
    for (id, b) in &book.requests {
        let status = if b.unknown { Status::Completed } else { Status::Cancelled };
        let reference = b.reference.clone();
        out.insert(id.clone(), Found { reference, status, proposal: None, deletion: None });
    }
    for p in desk.proposals().await? {
        if let Proposal::Forget { reference, .. } = &p.what
            && let Some(reference) = parse(reference)
        {
            let found = Found { reference, status: Status::Pending, proposal: Some(p.id), deletion: None };
            out.insert(found.reference.id.clone(), found);
        }
    }
    for d in desk.deletions().await? {
        if let Some(reference) = parse(&d.reference) {
            let status = if d.phase == DeletionPhase::Done { Status::Completed } else { Status::InProgress };
            let found = Found { reference, status, proposal: None, deletion: Some(d.id) };
            out.insert(found.reference.id.clone(), found);
        }
    }
    Ok(out)
}

/// One of them.
pub(crate) async fn find(desk: &Desk, book: &Book, id: &str) -> anyhow::Result<Option<Found>> {
    Ok(all(desk, book).await?.remove(id))
}

/// Hands a request to the coordinator, once: a request that comes again is found as it is.
pub(crate) async fn submit(
    desk: &Desk,
    book: &mut Book,
    deletion: DeletionRequest,
    reference: Reference,
) -> anyhow::Result<Found> {
    if let Some(found) = find(desk, book, &reference.id).await? {
        return Ok(found);
    }
    let text = serde_json::to_string(&reference)?;
    anyhow::ensure!(
        text.len() <= MAX_REFERENCE,
        "the request's own part has {} bytes, at most {MAX_REFERENCE}",
        text.len()
    );
    let unknown = match ask_with(desk, vec![deletion], false, text).await {
        Ok(Outcome::Planned(_) | Outcome::Proposed(_)) => false,
        Err(e) if is_unknown(&e) => true,
        Err(e) => return Err(e),
    };
    let mut kept = reference.clone();
    kept.token = None;
    book.requests.insert(reference.id.clone(), Booked { reference: kept, unknown, told: BTreeMap::new() });
    book.save()?;
    find(desk, book, &reference.id).await?.context("the coordinator does not show the request that it accepted")
}

/// Nobody of that name: for those who asked, that is a request with nothing left to do.
fn is_unknown(e: &anyhow::Error) -> bool {
    let cause = e.chain().find_map(|c| c.downcast_ref::<TransportError>());
    matches!(cause, Some(TransportError::Refused { code: Refusal::NotFound, .. }))
}

/// Writes an answer to a file or prints it.
pub(crate) fn deliver(text: &str, out: Option<&PathBuf>) -> anyhow::Result<()> {
    match out {
        Some(path) => std::fs::write(path, text).with_context(|| path.display().to_string()),
        None => {
            use std::io::Write;
            Ok(writeln!(std::io::stdout(), "{text}")?)
        }
    }
}
