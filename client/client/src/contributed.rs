//! The newest contributions that the coordinator accepted, as they were sent: if the person agrees,
//! an auditor folds the sums of the lists again from them.

use lethe_proto::lists::{Contributed, SharedEvent};
use lethe_receipt::hex::hex;
use serde::{Deserialize, Serialize};

use crate::ClientError;
use crate::vault::{CONTRIBUTED, Vault};

/// Contributions that are kept. What counts may be older than the newest one: others of its cell
/// have to have newer ones, too.
const KEPT: usize = 4;

/// A contribution that was accepted, as the sealed file has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// When, in seconds since 1970.
    at: i64,
    body: Contributed,
}

/// A contribution that the coordinator accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SentContribution {
    /// When, in seconds since 1970.
    pub at: i64,
    /// Random name of the device's history, hexadecimal.
    pub source: String,
    /// Nothing older was left out.
    pub whole: bool,
    /// Oldest first.
    pub events: Vec<SharedEvent>,
}

/// Oldest first. A file that is damaged costs the person's part in an audit, and nothing else.
fn read(vault: &Vault) -> Result<Vec<Kept>, ClientError> {
    match vault.read(CONTRIBUTED) {
        Err(ClientError::Sealed { path }) => {
            tracing::warn!(
                "{} is damaged: contributions of before are not in exports",
                path.display()
            );
            Ok(vec![])
        }
        other => Ok(other?.unwrap_or_default()),
    }
}

/// Keeps what was accepted. An answer that was lost is no second contribution.
pub(crate) fn keep(vault: &Vault, body: &Contributed, at: i64) -> Result<(), ClientError> {
    let mut all = read(vault)?;
    all.retain(|kept| kept.body != *body);
    let body = body.clone();
    all.push(Kept { at, body });
    let from = all.len().saturating_sub(KEPT);
    vault.write(CONTRIBUTED, &all[from..].to_vec())
}

/// Nothing of it counts any more, or the person does not want it to.
pub(crate) fn drop_all(vault: &Vault) -> Result<(), ClientError> {
    vault.remove(CONTRIBUTED)
}

/// What is kept, oldest first.
pub(crate) fn sent(vault: &Vault) -> Result<Vec<SentContribution>, ClientError> {
    let shown = |kept: Kept| SentContribution {
        at: kept.at,
        source: hex(&kept.body.source),
        whole: kept.body.whole,
        events: kept.body.events,
    };
    Ok(read(vault)?.into_iter().map(shown).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(n: u8) -> Contributed {
        Contributed {
            source: [1; 16],
            whole: n == 0,
            events: vec![SharedEvent {
                item: format!("item-{n}"),
                day: 7,
                half_stars: n,
                flags: 3,
            }],
        }
    }

    #[test]
    fn the_newest_four_are_kept_each_once() {
        let dir = tempfile::tempdir().expect("tempdir");
        let vault = Vault::open(dir.path(), Some([5; 32])).expect("opens");
        assert!(sent(&vault).expect("a folder of before").is_empty());
        for n in 0..7 {
            keep(&vault, &body(n), i64::from(n)).expect("keeps");
        }
        // An answer was lost, and it was sent again.
        keep(&vault, &body(6), 9).expect("keeps");
        let all = sent(&vault).expect("reads");
        let times: Vec<i64> = all.iter().map(|s| s.at).collect();
        assert_eq!(times, [3, 4, 5, 9]);
        assert_eq!(all[3].events, body(6).events);
        assert_eq!(all[3].source, "01".repeat(16));
        // Nothing of it is in clear.
        let path = dir.path().join("contributed");
        let mut bytes = std::fs::read(&path).expect("reads");
        assert!(!bytes.windows(5).any(|w| w == b"item-"));
        bytes[40] ^= 1;
        std::fs::write(&path, &bytes).expect("writes");
        assert!(sent(&vault).expect("is damaged").is_empty());
        keep(&vault, &body(1), 10).expect("keeps");
        assert_eq!(sent(&vault).expect("reads").len(), 1);
        drop_all(&vault).expect("drops");
        assert!(!path.exists());
    }
}
