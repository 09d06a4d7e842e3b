//! The authority that signs certificates, in the key source, and how it is exchanged.
//!
//! `authority-N` is a private key with its certificate; the highest N signs. An exchange keeps
//! `authority-past-N` (public: the certificate of N, and one of N + 1 that N has signed), then
//! `authority-(N + 1)`, and destroys `authority-N`. Each step is durable before the next. Cut off
//! after the first one, N goes on and the file is written anew by the next exchange; after the
//! second one, N + 1 signs and N is destroyed by the next start, or by asking again.

use lethe_proto::codec;
use lethe_store::StoreError;
use lethe_store::keys::{Keys, LONGEST};
use lethe_transport::identity::{Authority, AuthorityRecord, MAX_PAST, Past};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::tables::AUTHORITY;
use crate::CoordinatorError;

/// What is kept of authorities of before.
const PAST: &str = "authority-past";

fn encoded<T: Serialize>(value: &T) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    let bytes = codec::to_bytes(value).map_err(|e| StoreError::Encode {
        table: "authority",
        why: e.to_string(),
    })?;
    Ok(Zeroizing::new(bytes))
}

fn read<T: DeserializeOwned>(keys: &Keys, name: &str) -> Result<Option<T>, StoreError> {
    let Some(bytes) = keys.secret(name)? else {
        return Ok(None);
    };
    let read = codec::from_bytes(&bytes, LONGEST);
    read.map(Some).map_err(|e| StoreError::Keys {
        place: keys.place().into(),
        why: format!("{name}: {e}"),
    })
}

/// The number of the present authority.
fn newest(keys: &Keys) -> Result<u64, StoreError> {
    let numbers = keys.numbers(AUTHORITY)?;
    numbers.last().copied().ok_or_else(|| StoreError::Keys {
        place: keys.place().into(),
        why: "it has no authority-NUMBER: put the newest copy of the keys there".into(),
    })
}

/// The present authority, with what is kept of those before.
///
/// # Errors
/// [`StoreError::Keys`]: there is none, or one is damaged.
pub(crate) fn present(keys: &Keys) -> Result<Authority, CoordinatorError> {
    let number = newest(keys)?;
    let name = format!("{AUTHORITY}-{number}");
    let record: Option<AuthorityRecord> = read(keys, &name)?;
    let record = record.ok_or_else(|| StoreError::Keys {
        place: keys.place().into(),
        why: format!("it lists {name} and does not have it"),
    })?;
    let mut past = vec![];
    for before in (1..number).rev().take(MAX_PAST) {
        let kept: Option<Past> = read(keys, &format!("{PAST}-{before}"))?;
        let Some(kept) = kept else {
            tracing::warn!(
                "{} has no {PAST}-{before}: who trusts that authority or an older one needs an \
                 invitation",
                keys.place()
            );
            break;
        };
        past.push(kept);
    }
    Ok(Authority::restore(record)?.with_past(past))
}

/// Whether an exchange was cut off: private keys of before are there still.
///
/// # Errors
/// The source cannot be asked.
pub(crate) fn is_cut_off(keys: &Keys) -> Result<bool, CoordinatorError> {
    Ok(keys.numbers(AUTHORITY)?.len() > 1)
}

/// Refuses an exchange that would lock holders of certificates out: the oldest authority that
/// certificates are accepted of is dropped with it, and the last that it has signed are valid
/// still. `life_s`: how long certificates live, `now`: both in seconds.
///
/// # Errors
/// A refusal that says when it may be asked again; the source cannot be asked.
pub(crate) fn may_drop(keys: &Keys, life_s: u64, now: u64) -> Result<(), CoordinatorError> {
    let present = present(keys)?;
    let Some(oldest) = present.past().get(MAX_PAST - 1) else {
        return Ok(());
    };
    // Until then it has signed certificates.
    let until = oldest.exchanged_at()?.saturating_add(life_s);
    if now >= until {
        return Ok(());
    }
    let message = format!(
        "certificates of {MAX_PAST} authorities of before are accepted, and the oldest of these \
         has signed some that are valid for {} more hours: exchanged now, their holders would be \
         locked out. Ask again then",
        (until - now).div_ceil(3600)
    );
    let code = lethe_proto::message::Refusal::Busy;
    Err(CoordinatorError::refuse(code, message))
}

/// Makes the next authority, durable, with what leads to it. The private keys of before stay until
/// [`destroy_earlier`].
///
/// # Errors
/// The source cannot be asked or written: the present authority may be the one before or the next.
/// Ask [`present`].
pub(crate) fn succeed(keys: &Keys) -> Result<(), CoordinatorError> {
    let number = newest(keys)?;
    let next = present(keys)?.succeed()?;
    if let Some(past) = next.past().first() {
        keys.keep(&format!("{PAST}-{number}"), &encoded(past)?)?;
    }
    let name = format!("{AUTHORITY}-{}", number.saturating_add(1));
    Ok(keys.keep(&name, &encoded(&next.record())?)?)
}

/// Destroys the private keys of all authorities but the present one, and drops what nobody is led
/// by any more.
///
/// # Errors
/// Some may be there still: repeat it.
pub(crate) fn destroy_earlier(keys: &Keys) -> Result<(), CoordinatorError> {
    let number = newest(keys)?;
    for before in keys.numbers(AUTHORITY)? {
        if before < number {
            keys.destroy(&format!("{AUTHORITY}-{before}"))?;
        }
    }
    for before in keys.numbers(PAST)? {
        if before.saturating_add(MAX_PAST as u64) < number {
            keys.destroy(&format!("{PAST}-{before}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use lethe_store::keys::KeysConfig;
    use lethe_transport::identity::Invitation;

    use super::*;

    /// A vault of files that fails at its call number `at`, and at all that follow; `late`: after
    /// it has done what it was asked.
    fn vault(dir: &Path, at: usize, late: bool) -> Keys {
        let program = dir.join("vault.sh");
        let files = dir.join("vault");
        std::fs::create_dir_all(&files).unwrap();
        std::fs::write(dir.join("count"), "0").unwrap();
        let count = "n=$(($(cat ../count) + 1)); echo $n > ../count";
        let fails = format!("[ $n -lt {at} ] || exit 9");
        let (before, after) = match late {
            true => ("", &fails[..]),
            false => (&fails[..], ""),
        };
        let script = format!(
            "#!/bin/sh\nset -e\ncd {}\n{count}\n{before}\ncase \"$1\" in\nget) [ -e \"$2\" ] || \
             exit 3; cat \"$2\";;\nput) cat > ../next; mv ../next \"$2\";;\ndestroy) rm -f \
             \"$2\";;\nlist) ls;;\n*) exit 2;;\nesac\n{after}\n",
            files.display()
        );
        std::fs::write(&program, script).unwrap();
        let config = KeysConfig {
            folder: Some(dir.join("keys")),
            command: vec!["/bin/sh".into(), program.display().to_string()],
            ..KeysConfig::default()
        };
        Keys::open(&config, &dir.join("data")).unwrap()
    }

    fn exchange(keys: &Keys) -> Result<(), CoordinatorError> {
        if !is_cut_off(keys)? {
            succeed(keys)?;
        }
        destroy_earlier(keys)
    }

    fn begin(keys: &Keys) -> Authority {
        let first = Authority::create().unwrap();
        let name = format!("{AUTHORITY}-1");
        keys.keep(&name, &encoded(&first.record()).unwrap())
            .unwrap();
        first
    }

    #[test]
    fn h1_an_exchange_that_is_cut_off_anywhere_loses_no_authority_and_can_be_repeated() {
        const NEVER: usize = usize::MAX >> 1;
        for late in [false, true] {
            let mut at = 1;
            loop {
                let dir = tempfile::tempdir().unwrap();
                let first = begin(&vault(dir.path(), NEVER, false));
                let cut = exchange(&vault(dir.path(), at, late));
                // Another start.
                let keys = vault(dir.path(), NEVER, false);
                let now = present(&keys).unwrap();
                let known = now.fingerprint() == first.fingerprint();
                let leads = now
                    .past()
                    .iter()
                    .any(|p| p.certificate == first.certificate());
                assert!(known != leads, "call {at}");
                destroy_earlier(&keys).unwrap();
                assert_eq!(present(&keys).unwrap().fingerprint(), now.fingerprint());
                exchange(&keys).unwrap();
                let then = present(&keys).unwrap();
                assert_ne!(then.fingerprint(), now.fingerprint());
                let past: Vec<&[u8]> = then.past().iter().map(|p| &p.certificate[..]).collect();
                assert_eq!(past.first(), Some(&now.certificate()));
                assert_eq!(past.last(), Some(&first.certificate()));
                assert_eq!(keys.numbers(AUTHORITY).unwrap().len(), 1);
                if cut.is_ok() {
                    break;
                }
                at += 1;
            }
            assert!(at > 8, "{at} calls, late: {late}");
        }
    }

    #[test]
    fn h1_an_exchange_that_failed_late_is_completed_by_asking_again() {
        let dir = tempfile::tempdir().unwrap();
        let keys = vault(dir.path(), usize::MAX >> 1, false);
        let first = begin(&keys);
        succeed(&keys).unwrap();
        let second = present(&keys).unwrap();
        assert!(is_cut_off(&keys).unwrap());
        exchange(&keys).unwrap();
        assert_eq!(present(&keys).unwrap().fingerprint(), second.fingerprint());
        assert_ne!(first.fingerprint(), second.fingerprint());
        assert!(!is_cut_off(&keys).unwrap());
    }

    #[test]
    fn h1_no_exchange_locks_holders_of_valid_certificates_out() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::in_folder(&dir.path().join("keys"));
        begin(&keys);
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let life = 90 * 86_400;
        for _ in 0..MAX_PAST {
            may_drop(&keys, life, now).unwrap();
            exchange(&keys).unwrap();
        }
        let refused = may_drop(&keys, life, now).unwrap_err().to_string();
        assert!(refused.contains("2160 more hours"), "{refused}");
        may_drop(&keys, life, now + life + 60).unwrap();
    }

    #[test]
    fn h1_a_bounded_number_of_authorities_is_kept_and_no_private_key_of_before() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::in_folder(&dir.path().join("keys"));
        let mut all = vec![begin(&keys)];
        for n in 1..=MAX_PAST + 2 {
            exchange(&keys).unwrap();
            all.push(present(&keys).unwrap());
            assert_eq!(all[n].past().len(), n.min(MAX_PAST));
            assert_eq!(keys.numbers(PAST).unwrap().len(), n.min(MAX_PAST));
        }
        let last = all.pop().unwrap();
        for gone in &all {
            let record = serde_json::to_value(gone.record()).unwrap();
            let key: Vec<u8> = serde_json::from_value(record["key"].clone()).unwrap();
            for file in std::fs::read_dir(keys.folder()).unwrap() {
                let content = std::fs::read(file.unwrap().path()).unwrap();
                assert!(!content.windows(key.len()).any(|w| w == key));
            }
        }
        // Who is invited trusts the present one; what is damaged is named.
        let invited = Invitation::new("secret".into(), &last).authority().unwrap();
        assert_eq!(invited, last.certificate());
        let name = format!("{PAST}-{}", MAX_PAST + 2);
        keys.keep(&name, b"damaged").unwrap();
        let e = present(&keys).unwrap_err().to_string();
        assert!(e.contains(&name), "{e}");
        keys.destroy(&name).unwrap();
        assert!(present(&keys).unwrap().past().is_empty());
    }
}
