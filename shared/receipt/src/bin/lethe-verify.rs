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
use lethe_receipt::note::VerifierKey;
use lethe_receipt::policy::{Accepted, Policy};
use lethe_receipt::proof::{TlogProof, entry_of};
use lethe_receipt::receipt::{Effect, Receipt};
use lethe_receipt::report;
use lethe_receipt::succession::Succession;
use lethe_receipt::tiles::audit;
use lethe_receipt::witness::{Seen, Witness, WitnessError, verify_cosignature};

const USAGE: &str = "\
Check deletion receipts and transparency logs of Lethe. Works offline; needs no account and no \
server.

  lethe-verify receipt FILE --log-key KEY [--policy FILE] [--log FOLDER] [--witness-key KEY] \
      [--tally-key KEY] [--html FILE] [--json]
      Verify a receipt and say what it proves. With --policy (C2SP tlog-policy) enough witnesses \
      must have signed its head;
      the policy's log keys do in place of --log-key. With --log the published log in FOLDER must \
      hold all that the receipt names.
      With --witness-key the head must carry that witness's signature; with --tally-key a tally of \
      its own must have signed that it
      has nothing of the person; with --html a page to print is written.
  lethe-verify proof RECEIPT --log-key KEY --out FILE.tlog-proof
      Verify a receipt, and write the proof of its entry as other tools read it (C2SP tlog-proof). \
      The file names nobody.
  lethe-verify tlog-proof FILE --policy FILE [--receipt RECEIPT]
      Verify such a file under a policy; with --receipt, that it is about this receipt's entry.
  lethe-verify log FOLDER --log-key KEY [--since CHECKPOINT]
      Check a published log (tlog-tiles): every entry, tile and the signed head; with --since, \
      that it extends an older
      checkpoint kept in a file.
  lethe-verify witness-key --name NAME --key FILE
      Make a key for a witness in FILE and print its public key; with --ml-dsa, the one of \
      ML-DSA-44, too.
  lethe-verify witness FOLDER --log-key KEY --name NAME --key FILE --state FILE [--out FILE]
      Check a published log, check that it extends what this witness saw before, and cosign its \
      head.

KEY is a verifier key (NAME+ID+BASE64), obtained from the operator before there was anything to \
verify.
With --key-changes FILE (of `lethe-admin log`, or the published log's file log-keys) receipts and \
heads of the log's earlier and later keys verify, too, as far as KEY is one of them.
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

/// A policy file.
fn policy(args: &Args) -> Result<Policy, Failure> {
    let path = args.option("--policy")?;
    Policy::parse(&read(Path::new(path))?).map_err(|e| failure(format!("{path}: {e}")))
}

/// How the log's key was exchanged: as `--key-changes` says, or the published log of `--log`.
fn succession(args: &Args, log: Option<&Path>) -> Result<Succession, Failure> {
    let path = match (args.options.get("--key-changes"), log) {
        (Some(path), _) => Path::new(path).to_owned(),
        (None, Some(folder)) if folder.join("log-keys").exists() => folder.join("log-keys"),
        (None, _) => return Ok(Succession::default()),
    };
    let text = String::from_utf8(read(&path)?);
    let text = text.map_err(|_| refused(format!("{}: a note is UTF-8", path.display())))?;
    Succession::parse(&text).map_err(|e| refused(format!("{}: {e}", path.display())))
}

/// The receipt, verified with the key that is named, or another one of the same log, or, without
/// one, with a log key of the policy.
fn verified(bytes: &[u8], args: &Args, policy: Option<&Policy>) -> Result<Receipt, Failure> {
    let log = args.options.get("--log").map(Path::new);
    let succession = succession(args, log)?;
    let named = match args.options.contains_key("--log-key") {
        true => vec![args.key("--log-key")?],
        false => policy
            .iter()
            .flat_map(|p| p.logs.iter().map(|l| l.key.clone()))
            .collect(),
    };
    let mut refusal = usage("--log-key, or --policy with a log, is needed");
    for key in &named {
        match succession.verify(bytes, key) {
            Ok(receipt) => return Ok(receipt),
            Err(e) => refusal = refused(e),
        }
    }
    Err(refusal)
}

/// What else is said of a receipt's head.
#[derive(Default)]
struct Witnessed {
    /// When the witness of `--witness-key` signed it.
    at: Option<u64>,
    /// Who of the policy has.
    policy: Option<Accepted>,
    /// Entries of the published log that holds all of it.
    log: Option<u64>,
}

fn receipt(args: &[String]) -> Result<(), Failure> {
    let known = [
        "--log-key",
        "--witness-key",
        "--tally-key",
        "--html",
        "--policy",
        "--log",
        "--key-changes",
    ];
    let args = Args::parse(args, &known, &["--json"])?;
    let path = args.path("receipt file")?;
    let mut policy = match args.options.contains_key("--policy") {
        true => Some(policy(&args)?),
        false => None,
    };
    if let Some(policy) = &mut policy {
        let log = args.options.get("--log").map(Path::new);
        policy.follow(&succession(&args, log)?);
    }
    let receipt = verified(&read(path)?, &args, policy.as_ref())?;
    let mut witnessed = Witnessed::default();
    if args.options.contains_key("--witness-key") {
        let key = args.key("--witness-key")?;
        let time = verify_cosignature(&receipt.checkpoint, &key).map_err(refused)?;
        witnessed.at = Some(time);
    }
    if let Some(policy) = &policy {
        witnessed.policy = Some(policy.check(&receipt.checkpoint).map_err(refused)?);
    }
    if let Some(folder) = args.options.get("--log") {
        let key = log_key(&args, policy.as_ref(), &receipt)?;
        let folder = Path::new(folder);
        let succession = succession(&args, Some(folder))?;
        witnessed.log = Some(in_the_log(&receipt, folder, &key, &succession)?);
    }
    if args.options.contains_key("--tally-key") {
        signed_by_tally(&receipt, &args.key("--tally-key")?)?;
    }
    if let Some(out) = args.options.get("--html") {
        write(out, report::html(&receipt).as_bytes())?;
    }
    if args.options.contains_key("--json") {
        let mut value = receipt.verdict();
        value["witnessed_at"] = serde_json::json!(witnessed.at);
        if let Some(accepted) = &witnessed.policy {
            let names: Vec<&String> = accepted.witnessed.iter().map(|(name, _)| name).collect();
            value["witnesses"] = serde_json::json!({ "signed": names, "of": accepted.of });
        }
        value["log_entries"] = serde_json::json!(witnessed.log);
        say(&serde_json::to_string_pretty(&value).map_err(failure)?)?;
    } else {
        say(&report::text(&receipt))?;
        say_witnessed(&witnessed)?;
    }
    match receipt.effect() {
        Effect::Done => Ok(()),
        Effect::NothingRemoved => Err((NOTHING_REMOVED, "the request removed nothing".into())),
    }
}

fn say_witnessed(witnessed: &Witnessed) -> Result<(), Failure> {
    if let Some(t) = witnessed.at {
        say(&format!(
            "the head was cosigned by the witness at {t} (seconds since 1970)"
        ))?;
    }
    if let Some(accepted) = &witnessed.policy {
        say(&signed_by(accepted))?;
    }
    if let Some(entries) = witnessed.log {
        say(&format!(
            "the published log of {entries} entries holds all that the receipt names"
        ))?;
    }
    Ok(())
}

/// Who of the policy has signed.
fn signed_by(accepted: &Accepted) -> String {
    let names = accepted.witnessed.iter();
    let names: Vec<String> = names.map(|(name, at)| format!("{name} at {at}")).collect();
    format!(
        "{} of the policy's {} witnesses have signed the head{}{}: the quorum is reached",
        accepted.witnessed.len(),
        accepted.of,
        if names.is_empty() { "" } else { ": " },
        names.join(", ")
    )
}

/// The key that a published log is checked with: the one that was named, or the policy's of the
/// receipt's origin.
fn log_key(
    args: &Args,
    policy: Option<&Policy>,
    receipt: &Receipt,
) -> Result<VerifierKey, Failure> {
    if args.options.contains_key("--log-key") {
        return args.key("--log-key");
    }
    let accepted = policy.map(|p| p.check(&receipt.checkpoint));
    let accepted = accepted.ok_or_else(|| usage("--log-key is needed"))?;
    accepted.map(|a| a.log).map_err(refused)
}

/// Checks that a published log extends the receipt's head, and holds its entries where the receipt
/// says. Returns the log's entries.
fn in_the_log(
    receipt: &Receipt,
    folder: &Path,
    key: &VerifierKey,
    succession: &Succession,
) -> Result<u64, Failure> {
    let log = audit(folder, &succession.newest(key)).map_err(refused)?;
    let (size, root) = succession
        .open_checkpoint(&receipt.checkpoint, key)
        .map_err(refused)?;
    let size_of_log = log.tree.len();
    if size > size_of_log {
        return Err(refused(format!(
            "the published log has {size_of_log} entries, the receipt's head {size}: fetch the log \
             again; if it stays so, the log was put back"
        )));
    }
    if log.tree.root_of(size) != Some(root) {
        return Err((
            4,
            format!(
                "SPLIT VIEW: the published log is not the one of the receipt's head of size \
                 {size}; keep both"
            ),
        ));
    }
    let entry = entry_of(receipt).map_err(refused)?;
    let at = usize::try_from(receipt.index).unwrap_or(usize::MAX);
    match log.entries.get(at) == Some(&entry) {
        true => Ok(size_of_log),
        false => Err(refused("the published log has another entry in its place")),
    }
}

fn proof(args: &[String]) -> Result<(), Failure> {
    let args = Args::parse(args, &["--log-key", "--key-changes", "--out"], &[])?;
    let bytes = read(args.path("receipt file")?)?;
    args.key("--log-key")?;
    let receipt = verified(&bytes, &args, None)?;
    let proof = TlogProof::of_receipt(&receipt).map_err(refused)?;
    write(args.option("--out")?, proof.text().as_bytes())
}

fn tlog_proof(args: &[String]) -> Result<(), Failure> {
    let args = Args::parse(args, &["--policy", "--receipt"], &[])?;
    let file = read(args.path("tlog-proof file")?)?;
    let policy = policy(&args)?;
    let proof = TlogProof::parse(&file).map_err(refused)?;
    let entry = match args.options.get("--receipt") {
        Some(path) => {
            let receipt = verified(&read(Path::new(path))?, &args, Some(&policy))?;
            let entry = entry_of(&receipt).map_err(refused)?;
            if proof.extra.as_ref().is_some_and(|extra| *extra != entry) {
                return Err(refused("the proof is about another entry than the receipt"));
            }
            entry
        }
        None => proof.extra.clone().ok_or_else(|| {
            usage("the file does not have the entry: name its receipt with --receipt")
        })?,
    };
    let accepted = proof.verify(&entry, &policy).map_err(refused)?;
    say(&format!(
        "VERIFIED: entry {} of the log {}, which has {} entries: {}",
        proof.index,
        accepted.log.name(),
        accepted.size,
        String::from_utf8_lossy(&entry).trim_end()
    ))?;
    say(&signed_by(&accepted))
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
    let args = Args::parse(args, &["--log-key", "--since", "--key-changes"], &[])?;
    let folder = args.path("log folder")?;
    let key = args.key("--log-key")?;
    let succession = succession(&args, Some(folder))?;
    let newest = succession.newest(&key);
    let log = audit(folder, &newest).map_err(refused)?;
    if let Some(since) = args.options.get("--since") {
        let text = String::from_utf8(read(Path::new(since))?)
            .map_err(|_| refused(format!("{since}: a checkpoint is UTF-8")))?;
        let (size, root) = succession.open_checkpoint(&text, &key).map_err(refused)?;
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
    ))?;
    match newest == key {
        true => Ok(()),
        false => say(&format!(
            "the log's key was exchanged: it is {} now",
            newest.text()
        )),
    }
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
    let args = Args::parse(args, &["--name", "--key"], &["--ml-dsa"])?;
    let (name, path) = (args.option("--name")?, args.option("--key")?);
    let mut seed = [0; 32];
    let random = ring::rand::SystemRandom::new();
    ring::rand::SecureRandom::fill(&random, &mut seed)
        .map_err(|_| failure("the system gave no random bytes"))?;
    let mut witness = Witness::from_seed(name, &seed).map_err(failure)?;
    if args.options.contains_key("--ml-dsa") {
        witness = witness.with_ml_dsa(&seed).map_err(failure)?;
    }
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options
        .open(path)
        .and_then(|mut f| f.write_all(format!("{}\n", hex(&seed)).as_bytes()));
    file.map_err(|e| failure(format!("{path}: {e}")))?;
    for key in witness.verifiers() {
        say(&key.text())?;
    }
    Ok(())
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
        Some("proof") => proof(rest),
        Some("tlog-proof") => tlog_proof(rest),
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
