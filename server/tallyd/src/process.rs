//! A tally as a process: a configuration in, an address as a file in the data folder, and commands
//! for whoever runs it.
//!
//! A command that finds the folder in use asks the process that has it, by a file in the data
//! folder: whoever can write there holds all its keys, so a file proves as much as anything could.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lethe_proto::tally::{TallyReply, TallyRequest};
use lethe_recsys::data::{DataSpec, read_items, text_vectors};
use lethe_recsys::versions::entries;
use lethe_run::ending::Endings;
use lethe_seal::disk::{self, Disk, Verdict};
use lethe_store::asking::{Asking, LOOK};
use lethe_store::keys::{self, Keys};
use lethe_store::private;
use lethe_store::sled_backend::SledStorage;
use lethe_tally::TextVectors;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::party::Party;
use crate::{Opening, Service, TallydError};

/// How long a command waits for the process that has the folder.
const PATIENCE: Duration = Duration::from_secs(30);

/// What whoever runs a tally asks of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// How it is.
    Status,
    /// A new sealing key.
    Rotate,
    /// A new invitation.
    Invite,
    /// Fresh master keys.
    Master,
}

/// Seconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs())
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> TallydError {
    let path = path.to_owned();
    move |source| TallydError::Io { path, source }
}

fn bad_text(what: &Path, why: impl std::fmt::Display) -> TallydError {
    TallydError::Text {
        what: what.display().to_string(),
        why: why.to_string(),
    }
}

/// Reads a configuration.
///
/// # Errors
/// [`TallydError`]: the file cannot be read, or has keys or values that are not known.
pub fn read_config(path: &Path) -> Result<Config, TallydError> {
    let text = std::fs::read_to_string(path).map_err(io(path))?;
    Config::parse(&text).map_err(|e| bad_text(path, e))
}

/// A keyring without records is a folder, too: they are lost, and nothing takes their place.
fn is_founded(config: &Config) -> Result<bool, TallydError> {
    let data = &config.data_dir;
    let kept = data.join("db").exists() || data.join("keys").is_dir();
    let keys = Keys::in_folder(&config.keys_dir());
    Ok(kept || keys.has_keyring()?)
}

/// Where the keys lie, which deletions destroy.
fn key_disks(config: &Config) -> Result<Vec<Disk>, TallydError> {
    let data = &config.data_dir;
    std::fs::create_dir_all(data).map_err(io(data))?;
    keys::make_private(&config.keys_dir())?;
    let folders = [data.clone(), config.keys_dir()];
    Ok(disk::check(&folders, config.accept_recoverable_keys)?)
}

/// Says in the log where keys lie: once the folder is ours.
fn log_disks(config: &Config) -> Result<(), TallydError> {
    for disk in key_disks(config)? {
        match disk.verdict {
            Verdict::InPlace => tracing::info!("{disk}"),
            _ => tracing::warn!("{}", in_words(&disk)),
        }
    }
    Ok(())
}

fn in_words(disk: &Disk) -> String {
    match disk.verdict {
        Verdict::InPlace => disk.to_string(),
        Verdict::Unknown => format!("whether a destroyed key is gone is not known: {disk}"),
        Verdict::Kept => {
            format!("destroyed keys can be recovered, as the configuration accepts: {disk}")
        }
    }
}

fn open(config: &Config) -> Result<Service, TallydError> {
    key_disks(config)?;
    let keys = Keys::open(&config.keys, &config.data_dir)?;
    let spec = DataSpec::of_folder(&config.catalogue)?;
    let read = read_items(&config.catalogue, &spec, config.strict_catalogue)?;
    if !read.reading.is_clean() {
        tracing::warn!("the catalogue: {}", read.reading);
    }
    let items = read.items;
    let vectors = text_vectors(&config.catalogue, items.len())?;
    let ids = items.iter().map(|i| i.id.as_str());
    Service::open(Opening {
        engine: &SledStorage::engine,
        folder: &config.data_dir,
        keys,
        evidence: &config.evidence(),
        vectors: vectors.map(|v| TextVectors::new(ids, &v)),
        items: entries(&items),
        lists: config.lists.clone(),
        audits: config.audits,
        reserve: config.reserve_mib << 20,
        now: now(),
    })
}

fn open_founded(config: &Config) -> Result<Service, TallydError> {
    match is_founded(config)? {
        true => open(config),
        false => Err(TallydError::NotFounded {
            folder: config.data_dir.clone(),
        }),
    }
}

/// Makes the folder. Returns the invitation for the coordinator.
///
/// # Errors
/// [`TallydError::Founded`] for a folder that holds a tally.
pub fn init(config: &Config) -> Result<String, TallydError> {
    if is_founded(config)? {
        let folder = config.data_dir.clone();
        return Err(TallydError::Founded { folder });
    }
    Ok(open(config)?.invite(now())?.text())
}

/// Does what is asked: in the folder, or through the process that has it.
///
/// # Errors
/// [`TallydError::Asking`]: that process does not answer.
pub fn command(config: &Config, verb: Verb) -> Result<String, TallydError> {
    // Where keys lie was accepted when the folder was made, or is served.
    let known = Config {
        accept_recoverable_keys: true,
        ..config.clone()
    };
    match open_founded(&known) {
        Ok(service) => obey(&service, &known, verb),
        Err(TallydError::InUse { .. }) => Ok(asking(config).ask(verb, PATIENCE)?),
        Err(e) => Err(e),
    }
}

fn obey(service: &Service, config: &Config, verb: Verb) -> Result<String, TallydError> {
    let now = now();
    match verb {
        Verb::Invite => Ok(service.invite(now)?.text()),
        Verb::Rotate => {
            service.rotate(now)?;
            Ok("a new sealing key; the one before opens envelopes for one day more".into())
        }
        Verb::Master => {
            service.rotate_master()?;
            Ok("all keys are under fresh master keys; the ones before are destroyed".into())
        }
        Verb::Status => {
            let mut text = report(service, now);
            for disk in key_disks(config)? {
                let _ = writeln!(text, "{}", in_words(&disk));
            }
            Ok(text)
        }
    }
}

/// How a tally is, in lines.
fn report(service: &Service, now: u64) -> String {
    let status = match service.answer(TallyRequest::Status, now) {
        TallyReply::Status(status) => status,
        TallyReply::Refused { message, .. } => return message,
        _ => return "the tally answers something else: versions differ".into(),
    };
    let served = match status.state.served {
        Some(s) => format!(
            "snapshot {} ({} people, {} bytes)",
            s.number, s.people, s.bytes
        ),
        None => "nothing".into(),
    };
    let mut out = format!(
        "people: {} contribute, {} count, {} wait\ncells: {} of {} people or more (the next: {}); \
         {} change together\nserved: {served}; recalled up to: {}\nout: {} cells\nitems taken \
         down: {}\nlog: {} entries\nkey: {}\n",
        status.people,
        status.counting,
        status.waiting,
        status.cells,
        status.smallest.unwrap_or(0),
        status.n,
        status.m,
        status.state.recalled,
        status.cells_out,
        status.taken_down,
        service.log_entries(),
        service.key(),
    );
    let rounds = service.summed_rounds();
    if rounds > 0 {
        let _ = writeln!(out, "masks: summed for {rounds} rounds of training");
    }
    if !status.noise.is_empty() {
        let _ = writeln!(out, "{}", status.noise);
    }
    if !status.gives_away.is_empty() {
        let _ = writeln!(out, "gives away: {}", status.gives_away);
    }
    out
}

/// How a command asks the process that has the folder.
fn asking(config: &Config) -> Asking {
    Asking::new(&config.data_dir, "")
}

/// Answers what is asked by a file, if something is.
fn answer_file(service: &Service, config: &Config) -> Result<(), TallydError> {
    let obeys = |verb| obey(service, config, verb).map_err(|e| e.to_string());
    Ok(asking(config).answer(obeys)?)
}

async fn answer_files(service: Arc<Service>, config: Config) {
    asking(&config).forget();
    loop {
        let answering = {
            let service = service.clone();
            let config = config.clone();
            tokio::task::spawn_blocking(move || answer_file(&service, &config))
        };
        if let Ok(Err(e)) = answering.await {
            tracing::error!("a command is not answered: {e}");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Serves until interrupted or terminated or, `with_parent`, until standard input closes. Writes
/// `address` into the data folder when it listens.
///
/// # Errors
/// [`TallydError`]: the folder cannot be opened, or the address not be had.
pub fn serve(config: &Config, with_parent: bool) -> Result<(), TallydError> {
    let service = Arc::new(open_founded(config)?);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        data_dir = %config.data_dir.display(),
        "lethe-tally starts"
    );
    log_disks(config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(io(&config.data_dir))?;
    let result = runtime.block_on(async {
        let address = config.data_dir.join("address");
        let _ = std::fs::remove_file(&address);
        let party = Party::new(service.clone(), config.certificate_life(), now)?;
        let addr = party.listen(config.listen)?;
        let endings = Endings::listen().map_err(io(&config.data_dir))?;
        private::write(&address, addr.to_string().as_bytes())?;
        tokio::spawn(answer_files(service.clone(), config.clone()));
        tracing::info!(%addr, "listening");
        let why = endings.first(with_parent).await;
        tracing::info!(%why, "lethe-tally stops");
        party.shutdown();
        Ok(())
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}
