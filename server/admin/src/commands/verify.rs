//! `lethe-admin verify`: needs the receipt and the log's public key, nothing else.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use lethe_receipt::note::VerifierKey;
use lethe_receipt::receipt::{Effect, verify};
use lethe_receipt::report;
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
    /// Also write a page to print.
    #[arg(long)]
    html: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, out: &Output) -> anyhow::Result<ExitCode> {
    let key = VerifierKey::parse(&args.log_key)?;
    let bytes = std::fs::read(&args.receipt).with_context(|| args.receipt.display().to_string())?;
    match verify(&bytes, &key) {
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
