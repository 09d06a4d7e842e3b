//! The key that a passphrase gives (Argon2id, RFC 9106), and how it was made.

use std::io::Read;
use std::path::Path;

use argon2::{Algorithm, Argon2, Params, Version};
use lethe_receipt::hex::{hex, unhex};
use lethe_seal::{seal, unseal};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::KeysConfig;
use super::folder::Folder;
use crate::{StoreError, private};

const FILE: &str = "passphrase.json";
/// The same once more: without its salt nothing is opened.
const COPY: &str = "passphrase.json.copy";
/// Longest such file, in bytes.
const LONGEST_FILE: usize = 4096;
/// What is sealed to tell a wrong passphrase from damage.
const CHECK: &[u8] = b"lethe-keys";
const SHORTEST: usize = 12;
const LONGEST: usize = 4096;

/// The second recommended choice of RFC 9106, 4: 64 MiB.
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
const LANES: u32 = 4;
/// The most that a file may ask for: 1 GiB.
const MOST_KIB: u32 = 1 << 20;
const MOST_PASSES: u32 = 64;
const MOST_LANES: u32 = 64;

/// How the key is made; beside the secrets.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Made {
    version: u32,
    kdf: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    /// 16 bytes, hex.
    salt: String,
    /// Hex of what the key has sealed.
    check: String,
}

fn wrong(place: &str, why: impl Into<String>) -> StoreError {
    StoreError::Keys {
        place: place.into(),
        why: why.into(),
    }
}

/// The passphrase that a configuration names; none: it names none.
pub(super) fn of(config: &KeysConfig) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
    let (place, mut phrase) = match (&config.passphrase_file, &config.passphrase_env) {
        (Some(path), _) => {
            let file = std::fs::File::open(path).map_err(StoreError::io(path))?;
            let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST + 2));
            let most = LONGEST as u64 + 2;
            let read = file.take(most).read_to_end(&mut bytes);
            read.map_err(StoreError::io(path))?;
            (path.display().to_string(), bytes)
        }
        (None, Some(name)) => {
            let given = std::env::var(name).map(|text| Zeroizing::new(text.into_bytes()));
            let given = given.map_err(|_| {
                let why = "keys.passphrase_env names it, and it is not set (or is no UTF-8)";
                wrong(&format!("the environment variable {name}"), why)
            })?;
            (format!("the environment variable {name}"), given)
        }
        (None, None) => return Ok(None),
    };
    if phrase.ends_with(b"\n") {
        phrase.pop();
        if phrase.ends_with(b"\r") {
            phrase.pop();
        }
    }
    if !(SHORTEST..=LONGEST).contains(&phrase.len()) {
        let got = phrase.len();
        let why = format!("a passphrase of {got} bytes, expected {SHORTEST} to {LONGEST}");
        return Err(wrong(&place, why));
    }
    Ok(Some(phrase))
}

/// The key that this passphrase gives in this folder. The first time decides which passphrase it
/// is.
pub(super) fn unlock(folder: &Path, phrase: &[u8]) -> Result<Zeroizing<[u8; 32]>, StoreError> {
    let path = folder.join(FILE);
    let place = path.display().to_string();
    let copy = folder.join(COPY);
    let mut found: Option<Vec<u8>> = None;
    for path in [&path, &copy] {
        let Some(bytes) = private::read(path, LONGEST_FILE)? else {
            continue;
        };
        let is_whole = serde_json::from_slice::<Made>(&bytes).is_ok();
        // A damaged one counts where there is no other: its error says so.
        if is_whole || found.is_none() {
            found = Some(bytes);
        }
        if is_whole {
            break;
        }
    }
    let Some(bytes) = found else {
        if Folder::plain(folder).has_sealed()? {
            let why = "it is lost, and its copy, and sealed secrets are here: without its salt \
                       nothing opens them; put the newest copy of it back";
            return Err(wrong(&place, why));
        }
        return first([&path, &copy], phrase);
    };
    let made: Made = serde_json::from_slice(&bytes).map_err(|e| wrong(&place, e.to_string()))?;
    // One of them may be lost or damaged: whichever is whole is there twice.
    for path in [&path, &copy] {
        if private::read(path, LONGEST_FILE)?.is_none_or(|there| there != bytes) {
            private::write(path, &bytes)?;
        }
    }
    let fits = made.version == 1
        && made.kdf == "argon2id"
        && (8..=MOST_KIB).contains(&made.memory_kib)
        && (1..=MOST_PASSES).contains(&made.passes)
        && (1..=MOST_LANES).contains(&made.lanes);
    if !fits {
        let why = format!(
            "expected version 1 and argon2id with at most {MOST_KIB} KiB, {MOST_PASSES} passes \
             and {MOST_LANES} lanes, got version {}, {:?}, {} KiB, {} passes, {} lanes",
            made.version,
            made.kdf.chars().take(20).collect::<String>(),
            made.memory_kib,
            made.passes,
            made.lanes
        );
        return Err(wrong(&place, why));
    }
    let damaged = || wrong(&place, "its salt or check is damaged");
    let salt = unhex(&made.salt).ok_or_else(damaged)?;
    let check = unhex(&made.check).ok_or_else(damaged)?;
    if salt.len() != 16 {
        return Err(damaged());
    }
    let key = derive(&made, &salt, phrase, &place)?;
    match unseal(&key, CHECK, &check) {
        Some(plain) if plain == CHECK => Ok(key),
        _ => Err(wrong(
            &place,
            "the passphrase is another one than the keys were sealed under",
        )),
    }
}

fn first(paths: [&Path; 2], phrase: &[u8]) -> Result<Zeroizing<[u8; 32]>, StoreError> {
    let salt: [u8; 16] = lethe_seal::random()?;
    let mut made = Made {
        version: 1,
        kdf: "argon2id".into(),
        memory_kib: MEMORY_KIB,
        passes: PASSES,
        lanes: LANES,
        salt: hex(&salt),
        check: String::new(),
    };
    let place = paths[0].display().to_string();
    let key = derive(&made, &salt, phrase, &place)?;
    made.check = hex(&seal(&key, CHECK, CHECK)?);
    let bytes = serde_json::to_vec_pretty(&made).map_err(|e| wrong(&place, e.to_string()))?;
    for path in paths {
        private::write(path, &bytes)?;
    }
    Ok(key)
}

fn derive(
    made: &Made,
    salt: &[u8],
    phrase: &[u8],
    place: &str,
) -> Result<Zeroizing<[u8; 32]>, StoreError> {
    let failed = |e: argon2::Error| wrong(place, format!("Argon2id: {e}"));
    let params = Params::new(made.memory_kib, made.passes, made.lanes, Some(32));
    let params = params.map_err(failed)?;
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(phrase, salt, &mut *key)
        .map_err(failed)?;
    Ok(key)
}
