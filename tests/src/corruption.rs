//! Damage to the store: every way in which a file can go bad, at random places. No loss may be
//! silent, no panic may get out.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use lethe_coordinator::config::ServerConfig;
use lethe_learn::seed::Seed;
use lethe_store::head::Floor;
use lethe_store::keys::{Folders, Keys};
use lethe_store::sealed::SealedStore;
use lethe_store::sled_backend::SledStorage;
use lethe_store::{StoreError, keyfile, logfile::LogFile};

use crate::world::copy_folder;

/// What damage did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Damages tried.
    pub tried: u32,
    /// Opened with everything in place: the damage hit nothing that counts, or a copy had it.
    pub harmless: u32,
    /// Opened with everything in place but one shard, which is empty and learns again.
    pub quarantined: u32,
    /// Refused with an error.
    pub refused: u32,
    /// Opened, but something was lost or different.
    pub silent: u32,
    /// Panicked.
    pub panics: u32,
}

/// Ways to damage a file.
#[derive(Clone, Copy, Debug)]
pub enum Damage {
    /// One bit flips.
    Bit,
    /// A page of 4 KiB reads as zeros.
    Page,
    /// The file ends early.
    Truncate,
}

fn files(folder: &Path, out: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("reads")
        .flatten()
        .map(|e| e.path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files(&path, out);
        } else if std::fs::metadata(&path).is_ok_and(|m| m.len() > 0) {
            out.push(path);
        }
    }
}

/// Shards of the tiny federation.
const SHARDS: [&str; 2] = ["0", "1"];

/// Everything that a data folder and an evidence folder hold.
#[derive(Debug, PartialEq, Eq)]
struct Content {
    main: [u8; 32],
    shards: Vec<[u8; 32]>,
    logs: [Vec<Vec<u8>>; 2],
    key: [u8; 32],
    floor: Option<u64>,
}

/// What the folders hold, and which shards were set aside.
fn content(folder: &Path) -> Result<(Content, Vec<String>), StoreError> {
    let names = SHARDS.map(str::to_owned);
    let folders = Folders {
        records: folder.join("data"),
        keys: Keys::in_folder(&folder.join("keys")),
    };
    let evidence = folder.join("evidence");
    let store = SealedStore::open(&SledStorage::engine, folders, &names)?;
    let log =
        |name: &str| Ok::<_, StoreError>(LogFile::open(&evidence.join(name))?.entries().to_vec());
    let content = Content {
        main: store.main_content()?,
        shards: SHARDS
            .iter()
            .map(|s| store.database_content(s))
            .collect::<Result<_, _>>()?,
        logs: [log("log")?, log("journal")?],
        key: keyfile::open(&evidence.join("journal-key"), false)?,
        floor: Floor::open(&evidence.join("releases"))?.1,
    };
    Ok((
        content,
        store
            .quarantined()
            .into_iter()
            .map(|q| q.database)
            .collect(),
    ))
}

fn damage(path: &Path, at: u64, how: Damage) {
    let mut bytes = std::fs::read(path).expect("reads");
    let at = at as usize;
    match how {
        Damage::Bit => bytes[at] ^= 1 << (at % 8),
        Damage::Page => {
            let from = at & !4095;
            let to = (from + 4096).min(bytes.len());
            bytes[from..to].fill(0);
        }
        Damage::Truncate => bytes.truncate(at),
    }
    std::fs::write(path, bytes).expect("writes");
}

/// Damages copies of a stopped coordinator's folders `tries` times in one way. Places are uniform
/// over the bytes of the store (database, count and keys) and of the log.
pub fn run(config: &ServerConfig, how: Damage, tries: u32, seed: u64) -> Outcome {
    let dir = tempfile::tempdir().expect("tempdir");
    let (pristine, trial) = (dir.path().join("pristine"), dir.path().join("trial"));
    copy_folder(&config.data_dir, &pristine.join("data"));
    copy_folder(&config.evidence(), &pristine.join("evidence"));
    copy_folder(&config.keys_dir(), &pristine.join("keys"));
    // The tally's keyring is not looked at here.
    let _ = std::fs::remove_dir_all(pristine.join("keys/tally"));
    let want = content(&pristine).expect("undamaged");
    let mut all = vec![];
    let evidence_files = ["log", "journal"]
        .map(|n| ["", ".count", ".copy", ".copy.count"].map(|e| format!("evidence/{n}{e}")));
    let small = [
        "evidence/journal-key",
        "evidence/journal-key.copy",
        "evidence/releases",
        "evidence/releases.copy",
    ];
    let folders = [
        "data/db",
        "data/db-copy",
        "data/shards",
        "keys",
        "data/head",
    ];
    for part in folders
        .iter()
        .chain(&small)
        .copied()
        .chain(evidence_files.iter().flatten().map(String::as_str))
    {
        let path = pristine.join(part);
        if path.is_dir() {
            files(&path, &mut all)
        } else {
            all.push(path)
        }
    }
    let sizes: Vec<u64> = all
        .iter()
        .map(|p| std::fs::metadata(p).expect("exists").len())
        .collect();
    let total: u64 = sizes.iter().sum();
    let mut rng = Seed::from_u64(seed).derive("damage", &[&[how as u8]]).rng();
    let mut out = Outcome::default();
    for _ in 0..tries {
        let mut at = (f64::from(rng.unit()) * total as f64) as u64;
        // Every fourth goes to a small file, which a uniform choice would hardly ever hit.
        let mut which = if out.tried % 4 == 3 {
            (rng.unit() * all.len() as f32) as usize % all.len()
        } else {
            0
        };
        if out.tried % 4 == 3 {
            at %= sizes[which];
        } else {
            while which + 1 < all.len() && at >= sizes[which] {
                at -= sizes[which];
                which += 1;
            }
            at = at.min(sizes[which] - 1);
        }
        let _ = std::fs::remove_dir_all(&trial);
        copy_folder(&pristine, &trial);
        damage(
            &trial.join(all[which].strip_prefix(&pristine).expect("below")),
            at,
            how,
        );
        out.tried += 1;
        match catch_unwind(AssertUnwindSafe(|| content(&trial))) {
            Err(_) => out.panics += 1,
            Ok(Err(e)) => {
                let _ = writeln!(
                    std::io::stderr(),
                    "{} at {at}, {how:?}: {e}",
                    all[which].display()
                );
                out.refused += 1;
            }
            Ok(Ok((found, aside))) if aside.is_empty() && found == want.0 => out.harmless += 1,
            Ok(Ok((mut found, aside))) => {
                let one = aside.len() == 1;
                let place = |name: &String| SHARDS.iter().position(|s| s == name);
                for s in aside.iter().filter_map(place) {
                    found.shards[s] = want.0.shards[s];
                }
                if one && found == want.0 {
                    out.quarantined += 1
                } else {
                    out.silent += 1
                }
            }
        }
    }
    out
}
