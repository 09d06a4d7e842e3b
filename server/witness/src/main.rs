//! `lethe-witness`: wiring only.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use lethe_receipt::hex::unhex;
use lethe_receipt::note::VerifierKey;
use lethe_receipt::witness::Witness;
use lethe_run::ending::Endings;
use lethe_witness::{Service, State, bind, serve};

/// A witness of transparency logs: it signs heads that extend what it signed before (C2SP
/// tlog-witness). Run it on another machine than the log's, by somebody else.
///
/// Exit codes: 0 it was ended; 1 it failed; 2 the command line is wrong.
#[derive(Parser)]
#[command(name = "lethe-witness", version)]
struct Cli {
    /// TCP address, without encryption: put a proxy with TLS in front. Port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8471")]
    listen: SocketAddr,
    /// Name of the witness, as it appears in signatures.
    #[arg(long)]
    name: String,
    /// The key, from `lethe-verify witness-key`.
    #[arg(long)]
    key: PathBuf,
    /// Folder of what was signed. Without it the witness must not go on: use another name then.
    #[arg(long)]
    state: PathBuf,
    /// Verifier key of a log that is witnessed; once for each.
    #[arg(long, required = true)]
    log: Vec<String>,
    /// Sign with ML-DSA-44, too.
    #[arg(long)]
    ml_dsa: bool,
}

type Failure = Box<dyn std::error::Error>;

fn seed(path: &Path) -> Result<[u8; 32], Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let seed = unhex(text.trim()).and_then(|b| b.try_into().ok());
    let wrong = || format!("{}: expected 64 hexadecimal digits", path.display());
    Ok(seed.ok_or_else(wrong)?)
}

fn witness(cli: &Cli) -> Result<Witness, Failure> {
    let seed = seed(&cli.key)?;
    let witness = Witness::from_seed(&cli.name, &seed)?;
    match cli.ml_dsa {
        true => Ok(witness.with_ml_dsa(&seed)?),
        false => Ok(witness),
    }
}

async fn run(cli: &Cli) -> Result<(), Failure> {
    let witness = witness(cli)?;
    let logs: Result<Vec<VerifierKey>, _> = cli.log.iter().map(|k| VerifierKey::parse(k)).collect();
    let logs = logs?;
    let state = State::open(&cli.state, &logs)?;
    // Before anybody is told where it is: who knows may end it.
    let endings = Endings::listen()?;
    let listener = bind(cli.listen)
        .await
        .map_err(|e| format!("{}: {e}", cli.listen))?;
    let mut text = format!("listening on http://{}\n", listener.local_addr()?);
    for (n, key) in witness.verifiers().iter().enumerate() {
        text += &format!("witness W{n} {}\n", key.text());
    }
    std::io::stdout().lock().write_all(text.as_bytes())?;
    let service = Arc::new(Service::new(witness, logs, state));
    tokio::select! {
        () = serve(listener, service) => {}
        why = endings.first(false) => tracing::info!("the witness ends: {why}"),
    }
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    lethe_run::log::begin("info", true);
    match run(&cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr().lock(), "error: {e}");
            ExitCode::FAILURE
        }
    }
}
