//! `lethe-verify`: checks receipts and published logs offline, and cosigns heads of logs as a
//! witness.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use lethe_receipt::hex::{hex, unhex};
use lethe_receipt::merkle::verify_consistency;
use lethe_receipt::note::{VerifierKey, open_checkpoint};
use lethe_receipt::receipt::{Effect, Receipt, verify};
use lethe_receipt::report;
use lethe_receipt::tiles::audit;
use lethe_receipt::witness::{Seen, Witness, WitnessError, verify_cosignature};

const USAGE: &str = "\
Check deletion receipts and transparency logs of Lethe. Works offline; needs no account and no \
server.

  lethe-verify receipt FILE --log-key KEY [--witness-key KEY] [--tally-key KEY] [--html FILE] \
      [--json]
      Verify a receipt and say what it proves. With --witness-key the head must carry that \
      witness's signature; with --tally-key a
      tally of its own must have signed that it has nothing of the person; with --html a page to \
      print is written.
  lethe-verify log FOLDER --log-key KEY [--since CHECKPOINT]
      Check a published log (tlog-tiles): every entry, tile and the signed head; with --since, \
      that it extends an older
      checkpoint kept in a file.
  lethe-verify witness-key --name NAME --key FILE
      Make a key for a witness in FILE and print its public key.
  lethe-verify witness FOLDER --log-key KEY --name NAME --key FILE --state FILE [--out FILE]
      Check a published log, check that it extends what this witness saw before, and cosign its \
      head.

KEY is a verifier key (NAME+ID+BASE64), obtained from the operator before there was anything to \
verify.
Exit codes: 0 verified, 1 failure, 2 usage, 3 not verified, 4 split view, 5 a genuine receipt of a
request that removed nothing.
";

type Failure = (u8, String);

/// Exit code of a genuine receipt of a request that removed nothing.
const NOTHING_REMOVED: u8 = 5;

fn failure(e: impl std::fmt::Display) -> Failure {
    (1, e.to_string())
}

fn refused(e: impl std::fmt::Display) -> Failure {
    (3, format!("NOT VERIFIED: {e}"))
}

fn usage(why: &str) -> Failure {
    (2, format!("{why}\n\n{USAGE}"))
}

/// The arguments of one command: at most one positional, options with a value, flags.
struct Args {
    positional: Option<String>,
    options: BTreeMap<String, String>,
}

impl Args {
    fn parse(args: &[String], known: &[&str], flags: &[&str]) -> Result<Self, Failure> {
        let (mut positional, mut options) = (None, BTreeMap::new());
        let mut rest = args.iter();
        while let Some(a) = rest.next() {
            if flags.contains(&a.as_str()) {
                options.insert(a.clone(), String::new());
            } else if known.contains(&a.as_str()) {
                let value = rest
                    .next()
                    .ok_or_else(|| usage(&format!("{a} needs a value")))?;
                options.insert(a.clone(), value.clone());
            } else if a.starts_with("--") || positional.is_some() {
                return Err(usage(&format!("unexpected argument {a}")));
            } else {
                positional = Some(a.clone());
            }
        }
        Ok(Self {
            positional,
            options,
        })
    }

    fn path(&self, what: &str) -> Result<&Path, Failure> {
        self.positional
            .as_deref()
            .map(Path::new)
            .ok_or_else(|| usage(&format!("name the {what}")))
    }

    fn option(&self, name: &str) -> Result<&str, Failure> {
        self.options
            .get(name)
            .map(String::as_str)
            .ok_or_else(|| usage(&format!("{name} is needed")))
    }

    fn key(&self, name: &str) -> Result<VerifierKey, Failure> {
        VerifierKey::parse(self.option(name)?).map_err(failure)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|e| failure(format!("{}: {e}", path.display())))
}

fn write(path: &str, bytes: &[u8]) -> Result<(), Failure> {
    fs::write(path, bytes).map_err(|e| failure(format!("{path}: {e}")))
}

fn say(text: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout().lock(), "{text}").map_err(failure)
}

fn receipt(args: &[String]) -> Result<(), Failure> {
    let known = ["--log-key", "--witness-key", "--tally-key", "--html"];
    let args = Args::parse(args, &known, &["--json"])?;
    let (path, key) = (args.path("receipt file")?, args.key("--log-key")?);
    let receipt = verify(&read(path)?, &key).map_err(refused)?;
    let mut witnessed = None;
    if args.options.contains_key("--witness-key") {
        let time = verify_cosignature(&receipt.checkpoint, &args.key("--witness-key")?)
            .map_err(refused)?;
        witnessed = Some(time);
    }
    if args.options.contains_key("--tally-key") {
        signed_by_tally(&receipt, &args.key("--tally-key")?)?;
    }
    if let Some(out) = args.options.get("--html") {
        write(out, report::html(&receipt).as_bytes())?;
    }
    if args.options.contains_key("--json") {
        let mut value = receipt.verdict();
        value["witnessed_at"] = serde_json::json!(witnessed);
        say(&serde_json::to_string_pretty(&value).map_err(failure)?)?;
    } else {
        say(&report::text(&receipt))?;
        if let Some(t) = witnessed {
            say(&format!(
                "the head was cosigned by the witness at {t} (seconds since 1970)"
            ))?;
        }
    }
    match receipt.effect() {
        Effect::Done => Ok(()),
        Effect::NothingRemoved => Err((NOTHING_REMOVED, "the request removed nothing".into())),
    }
}

/// Both parties must have signed.
fn signed_by_tally(receipt: &Receipt, key: &VerifierKey) -> Result<(), Failure> {
    if receipt.vouched().map_err(refused)?.is_none() {
        return Err(refused(
            "no tally of its own has signed this receipt: the coordinator held the sums itself, or \
             there were none",
        ));
    }
    let named = receipt.statement.lists.as_ref().map(|l| l.key.as_str());
    match named == Some(key.text().as_str()) {
        true => Ok(()),
        false => Err(refused(
            "another tally has signed it than that of --tally-key",
        )),
    }
}

fn log(args: &[String]) -> Result<(), Failure> {
    let args = Args::parse(args, &["--log-key", "--since"], &[])?;
    let (folder, key) = (args.path("log folder")?, args.key("--log-key")?);
    let log = audit(folder, &key).map_err(refused)?;
    if let Some(since) = args.options.get("--since") {
        let text = String::from_utf8_lossy(&read(Path::new(since))?).into_owned();
        let (size, root) = open_checkpoint(&text, &key).map_err(refused)?;
        let proof = log.tree.consistency(size).unwrap_or_default();
        if !verify_consistency((size, &root), (log.tree.len(), &log.tree.root()), &proof) {
            return Err((
                4,
                format!("SPLIT VIEW: the log does not extend its head of size {size}; keep both"),
            ));
        }
    }
    say(&format!(
        "VERIFIED: {} entries, root {}",
        log.tree.len(),
        hex(&log.tree.root())
    ))
}

fn seed(path: &str) -> Result<[u8; 32], Failure> {
    let text = String::from_utf8_lossy(&read(Path::new(path))?)
        .trim()
        .to_owned();
    let seed = unhex(&text).and_then(|b| b.try_into().ok());
    seed.ok_or_else(|| {
        failure(format!(
            "{path}: not a witness key: expected 64 hexadecimal digits"
        ))
    })
}

fn witness_key(args: &[String]) -> Result<(), Failure> {
    let args = Args::parse(args, &["--name", "--key"], &[])?;
    let (name, path) = (args.option("--name")?, args.option("--key")?);
    let mut seed = [0; 32];
    let random = ring::rand::SystemRandom::new();
    ring::rand::SecureRandom::fill(&random, &mut seed)
        .map_err(|_| failure("the system gave no random bytes"))?;
    let witness = Witness::from_seed(name, &seed).map_err(failure)?;
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options
        .open(path)
        .and_then(|mut f| f.write_all(format!("{}\n", hex(&seed)).as_bytes()));
    file.map_err(|e| failure(format!("{path}: {e}")))?;
    say(&witness.verifier().text())
}

fn witness(args: &[String]) -> Result<(), Failure> {
    let args = Args::parse(
        args,
        &["--log-key", "--name", "--key", "--state", "--out"],
        &[],
    )?;
    let (folder, key) = (args.path("log folder")?, args.key("--log-key")?);
    let (name, state) = (args.option("--name")?, args.option("--state")?);
    let witness = Witness::from_seed(name, &seed(args.option("--key")?)?).map_err(failure)?;
    let seen: Seen = match fs::read(state) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map_err(|e| failure(format!("{state}: {e}")))?
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Seen::default(),
        Err(e) => return Err(failure(format!("{state}: {e}"))),
    };
    let log = audit(folder, &key).map_err(refused)?;
    let proof = log.tree.consistency(seen.size).unwrap_or_default();
    let time = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_err(failure)?
        .as_secs();
    let (cosigned, seen) = witness
        .cosign(&log.checkpoint, &key, &seen, &proof, time)
        .map_err(|e| match e {
            WitnessError::SplitView { .. } => (4, e.to_string()),
            WitnessError::Note(_) => refused(e),
        })?;
    // Stored before the signature is given out, by a rename: a crash leaves the old state, never
    // half a one.
    let next = format!("{state}.next");
    write(&next, &serde_json::to_vec(&seen).map_err(failure)?)?;
    fs::File::open(&next)
        .and_then(|f| f.sync_all())
        .map_err(failure)?;
    fs::rename(&next, state).map_err(failure)?;
    match args.options.get("--out") {
        Some(out) => write(out, cosigned.as_bytes()),
        None => say(cosigned.trim_end()),
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let rest = args.get(1..).unwrap_or_default();
    let result = match args.first().map(String::as_str) {
        Some("receipt") => receipt(rest),
        Some("log") => log(rest),
        Some("witness-key") => witness_key(rest),
        Some("witness") => witness(rest),
        Some("--help" | "-h" | "help") => say(USAGE.trim_end()),
        Some("--version" | "-V") => say(concat!("lethe-verify ", env!("CARGO_PKG_VERSION"))),
        other => Err(usage(&other.map_or("name a command".to_owned(), |o| {
            format!("there is no command {o}")
        }))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, why)) => {
            let _ = writeln!(std::io::stderr().lock(), "lethe-verify: {why}");
            ExitCode::from(code)
        }
    }
}
