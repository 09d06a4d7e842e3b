//! Folders of versions before: everything was in one sealed file, `state`, with likes and dislikes
//! only.

use std::fs;
use std::path::Path;

use lethe_proto::codec;
use lethe_proto::ids::{Digest, SubjectId};
use lethe_receipt::order::SeenHead;
use lethe_transport::identity::Identity;
use serde::Deserialize;

use crate::events::Events;
use crate::history::{Cutoffs, Joined, TrainingEvent};
use crate::person::{KeptList, Person};
use crate::vault::{IDENTITY, LIST, Vault, io, sync_folder};
use crate::{Catalogue, ClientError};

/// The file.
pub(crate) const STATE: &str = "state";
const V3: &[u8] = b"lethe-client-state/3";
const V2: &[u8] = b"lethe-client-state/2";
/// Largest state file, in bytes.
const MAX_STATE: usize = 64 << 20;

#[derive(Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
struct StateV2 {
    identity: Option<Identity>,
    authority: Vec<u8>,
    salt: [u8; 32],
    events: Vec<TrainingEvent>,
    cutoffs: Option<Cutoffs>,
    joined: Option<Joined>,
    offered: Option<Joined>,
    consent_until: Option<i64>,
    cached: Vec<(String, f32)>,
    cached_until: i64,
    lineage: u64,
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
struct StateV3 {
    before: StateV2,
    subject: Option<SubjectId>,
    invited: Option<Digest>,
    log_key: Option<String>,
    head: Option<SeenHead>,
    removed: Vec<(u64, u32)>,
    ordered_away: u64,
    cached_release: u64,
}

/// What was in the file.
pub(crate) struct Old {
    pub(crate) person: Person,
    events: Vec<TrainingEvent>,
    list: KeptList,
}

impl From<StateV2> for Old {
    fn from(old: StateV2) -> Self {
        Self {
            person: Person {
                identity: old.identity,
                authority: old.authority,
                salt: old.salt,
                cutoffs: old.cutoffs,
                joined: old.joined,
                offered: old.offered,
                consent_until: old.consent_until,
                lineage: old.lineage,
                ..Person::default()
            },
            events: old.events,
            list: KeptList {
                items: old.cached,
                until: old.cached_until,
                release: 0,
            },
        }
    }
}

impl From<StateV3> for Old {
    fn from(old: StateV3) -> Self {
        let before = Self::from(old.before);
        Self {
            person: Person {
                subject: old.subject,
                invited: old.invited,
                log_key: old.log_key,
                head: old.head,
                removed: old.removed,
                ordered_away: old.ordered_away,
                ..before.person
            },
            list: KeptList {
                release: old.cached_release,
                ..before.list
            },
            events: before.events,
        }
    }
}

/// Reads the file of a version before, if there is one.
pub(crate) fn read(folder: &Path, key: &[u8; 32]) -> Result<Option<Old>, ClientError> {
    let path = folder.join(STATE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(&path)(e)),
    };
    let old = match lethe_seal::unseal(key, V3, &bytes) {
        Some(plain) => codec::from_bytes::<StateV3>(&plain, MAX_STATE)
            .ok()
            .map(Old::from),
        None => lethe_seal::unseal(key, V2, &bytes)
            .and_then(|plain| codec::from_bytes::<StateV2>(&plain, MAX_STATE).ok())
            .map(Old::from),
    };
    old.map(Some).ok_or(ClientError::Sealed { path })
}

/// Takes a folder of a version before over. The file of the identity is written last: until it is
/// there, everything is done again.
pub(crate) fn take_over(vault: &Vault, catalogue: &Catalogue) -> Result<(), ClientError> {
    let path = vault.folder().join(STATE);
    if !path.exists() {
        return Ok(());
    }
    if vault.read::<Person>(IDENTITY)?.is_none() {
        let key = vault.key();
        let Some(old) = read(vault.folder(), &key)? else {
            return Ok(());
        };
        let events = old.events.iter();
        let events = events.map(|e| catalogue.thumb(&e.item, e.liked, e.time));
        Events::create(&vault.history(), key, events.collect())?;
        if !old.list.items.is_empty() {
            vault.write(LIST, &old.list)?;
        }
        vault.write(IDENTITY, &old.person)?;
    }
    fs::remove_file(&path).map_err(io(&path))?;
    sync_folder(vault.folder())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lethe_parts::event::{EventTable, Kind};
    use lethe_recsys::data::Item;

    const KEY: [u8; 32] = [3; 32];

    fn thumb(item: &str, liked: bool, time: i64) -> TrainingEvent {
        TrainingEvent {
            item: item.into(),
            liked,
            time,
        }
    }

    fn old() -> StateV2 {
        StateV2 {
            identity: None,
            authority: vec![1, 2],
            salt: [7; 32],
            events: vec![thumb("i1", true, 5), thumb("gone", false, 6)],
            cutoffs: Some(Cutoffs {
                train: 1,
                validate: 2,
            }),
            joined: Some(Joined {
                events: vec![thumb("i1", true, 5)],
                cutoffs: Cutoffs::of(1),
            }),
            offered: None,
            consent_until: Some(9),
            cached: vec![("i2".into(), 0.5)],
            cached_until: 8,
            lineage: 4,
        }
    }

    fn catalogue() -> std::sync::Arc<Catalogue> {
        let item = |id: &str| Item {
            id: id.into(),
            title: id.into(),
            year: None,
            tags: vec![],
        };
        let items = vec![item("i1"), item("i2")];
        Catalogue::new(items, &EventTable::default(), None).expect("a catalogue")
    }

    fn taken_over(label: &[u8], plain: &[u8]) -> (Person, Vec<crate::LocalEvent>, KeptList) {
        let dir = tempfile::tempdir().expect("tempdir");
        let sealed = lethe_seal::seal(&KEY, label, plain).expect("seals");
        fs::write(dir.path().join(STATE), sealed).expect("writes");
        // A crash before the end: what was written is written again.
        fs::write(dir.path().join("history"), b"half of it").expect("writes");
        assert_eq!(
            Vault::peek(dir.path(), Some(KEY))
                .and_then(|v| v.peek_person())
                .expect("reads")
                .salt,
            [7; 32]
        );
        let vault = Vault::open(dir.path(), Some(KEY)).expect("opens");
        take_over(&vault, &catalogue()).expect("takes over");
        assert!(!dir.path().join(STATE).exists());
        let events = Events::open(&vault.history(), KEY).expect("opens");
        (
            vault.person().expect("opens"),
            events.iter().cloned().collect(),
            vault.read(LIST).expect("opens").expect("is there"),
        )
    }

    #[test]
    fn folders_of_both_versions_before_keep_everything() {
        let plain = codec::to_bytes(&old()).expect("encodes");
        let (person, events, list) = taken_over(V2, &plain);
        assert_eq!(person.joined, old().joined);
        assert_eq!((person.consent_until, person.lineage), (Some(9), 4));
        assert_eq!((list.items.len(), list.until, list.release), (1, 8, 0));
        let kinds: Vec<Kind> = events.iter().map(|e| e.kind).collect();
        assert_eq!(kinds, [Kind::Like, Kind::Dislike]);
        assert_eq!(
            catalogue().training(events.iter()),
            old().events,
            "the commitment is about the same bytes"
        );
        let newer = StateV3 {
            before: old(),
            subject: SubjectId::new("anna").ok(),
            invited: Some(Digest([2; 32])),
            log_key: Some("key".into()),
            head: None,
            removed: vec![(3, 4)],
            ordered_away: 5,
            cached_release: 6,
        };
        let plain = codec::to_bytes(&newer).expect("encodes");
        let (person, events, list) = taken_over(V3, &plain);
        assert_eq!(events.len(), 2);
        assert_eq!(person.subject, newer.subject);
        assert_eq!((person.removed, person.ordered_away), (vec![(3, 4)], 5));
        assert_eq!((person.invited, list.release), (newer.invited, 6));
    }
}
