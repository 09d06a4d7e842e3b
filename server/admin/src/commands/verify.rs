//! `lethe-admin verify`: needs the receipt and the log's public key, nothing else.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use lethe_receipt::note::VerifierKey;
use lethe_receipt::receipt::{Receipt, verify};
use serde_json::json;

use crate::output::{Output, error};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The receipt file.
    receipt: PathBuf,
    /// The log's public key, as `lethe-admin status` prints it, obtained in advance from the operator.
    #[arg(long)]
    log_key: String,
}

pub(crate) fn run(args: &Args, out: &Output) -> anyhow::Result<ExitCode> {
    let key = VerifierKey::parse(&args.log_key)?;
    let bytes = std::fs::read(&args.receipt).with_context(|| args.receipt.display().to_string())?;
    match verify(&bytes, &key) {
        Ok(receipt) => {
            out.show(&describe(&receipt), &json!({ "verified": true, "receipt": receipt }))?;
            Ok(ExitCode::SUCCESS)
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

fn describe(r: &Receipt) -> String {
    let s = &r.statement;
    let what = if r.items.is_empty() { "all data".to_owned() } else { format!("items {}", r.items.join(", ")) };
    let mut out = format!("VERIFIED: {what} of subject {}, deletion {}", r.subject, s.deletion);
    let _ = write!(
        out,
        "\n  served model free of the data after {} ms, retrained after {} ms",
        s.exact_after_ms, s.retrained_after_ms
    );
    let _ = write!(out, "\n  {} encryption keys destroyed", s.keys_destroyed);
    for a in &s.affected {
        let _ = write!(
            out,
            "\n  shard {}: {:.8} -> {:.8} at once -> {:.8} after {} rounds",
            a.shard, a.before, a.rolled_back_to, a.after, a.rounds
        );
    }
    for (shard, hash) in &s.untouched {
        let _ = write!(out, "\n  shard {shard}: {hash:.8} untouched");
    }
    out + "\nproven: the log's operator stated this, and it is entry of the signed log.\
           \nchecked separately by replay: that the retrained adapter is what training without the data gives.\
           \nnot provable by any receipt: that no copy exists outside the coordinator's store."
}
