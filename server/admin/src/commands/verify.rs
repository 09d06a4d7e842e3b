//! `lethe-admin verify`: needs the receipt and the log's public key, nothing else.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use lethe_receipt::note::VerifierKey;
use lethe_receipt::receipt::{Effect, Receipt, VerifyError};
use lethe_receipt::report;
use lethe_receipt::succession::Succession;
use serde_json::json;

use crate::output::{Output, error, write_private};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The receipt file.
    receipt: PathBuf,
    /// The log's public key, as `lethe-admin status` prints it, obtained in advance from the
    /// operator.
    #[arg(long)]
    log_key: String,
    /// How the log's key was exchanged: the file `log-keys` that `lethe-admin log` writes. Receipts
    /// of the log's other keys verify with it.
    #[arg(long, value_name = "FILE")]
    key_changes: Option<PathBuf>,
    /// Also write a page to print.
    #[arg(long)]
    html: Option<PathBuf>,
}

/// Verifies with the key, and with others of the same log.
fn verified(
    bytes: &[u8],
    key: &VerifierKey,
    changes: Option<&Path>,
) -> anyhow::Result<Result<Receipt, VerifyError>> {
    let succession = match changes {
        Some(path) => {
            let text = std::fs::read_to_string(path);
            let text = text.with_context(|| path.display().to_string())?;
            Succession::parse(&text).with_context(|| path.display().to_string())?
        }
        None => Succession::default(),
    };
    Ok(succession.verify(bytes, key))
}

pub(crate) fn run(args: &Args, out: &Output) -> anyhow::Result<ExitCode> {
    let key = VerifierKey::parse(&args.log_key)?;
    let bytes = std::fs::read(&args.receipt).with_context(|| args.receipt.display().to_string())?;
    match verified(&bytes, &key, args.key_changes.as_deref())? {
        Ok(receipt) => {
            if let Some(path) = &args.html {
                // It names the person.
                write_private(path, report::html(&receipt).as_bytes())?;
            }
            out.show(&report::text(&receipt), &receipt.verdict())?;
            Ok(match receipt.effect() {
                Effect::Done => ExitCode::SUCCESS,
                Effect::NothingRemoved => ExitCode::from(5),
            })
        }
        Err(e) => {
            if out.json {
                out.show("", &json!({ "verified": false, "why": e.to_string() }))?;
            }
            error(&format!("NOT VERIFIED: {e}"));
            Ok(ExitCode::from(3))
        }
    }
}
