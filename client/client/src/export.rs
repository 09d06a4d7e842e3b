//! What a person gives to an auditor, if they agree: the events that were trained on, with what
//! opens the commitment to them; and what was contributed to the sums of the lists.

use std::path::Path;

use lethe_proto::ids::{Digest, EpochNo};
use serde::{Deserialize, Serialize};

use crate::ClientError;
use crate::contributed::{self, SentContribution};
use crate::epochs::{Old, Places};
use crate::history::{TrainingEvent, commitment};
use crate::vault::Vault;

/// The data of one person that counts in an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingData {
    /// Salt of the commitment, hexadecimal.
    pub salt: String,
    /// Training events, oldest first.
    pub events: Vec<TrainingEvent>,
    /// The newest contributions to the sums of the lists that the coordinator accepted, oldest
    /// first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contributed: Vec<SentContribution>,
}

impl TrainingData {
    /// Reads what the newest epoch was joined with from a client's folder; works offline, and while
    /// the folder is in use. `key` is the app's, as given to [`crate::Options::key`].
    ///
    /// # Errors
    /// [`ClientError::NotJoined`] before the device has joined; [`ClientError::Sealed`] if the
    /// folder does not open with the key; [`ClientError::Io`].
    pub fn of_folder(folder: &Path, key: Option<[u8; 32]>) -> Result<Self, ClientError> {
        Self::read(folder, key, None)
    }

    /// The same of an epoch by its number: while one follows another, the older one is audited.
    ///
    /// # Errors
    /// As [`Self::of_folder`]; [`ClientError::NotJoined`] where the device has no place in it, or
    /// it has ended.
    pub fn of_epoch(folder: &Path, key: Option<[u8; 32]>, epoch: u32) -> Result<Self, ClientError> {
        Self::read(folder, key, Some(EpochNo(epoch)))
    }

    fn read(
        folder: &Path,
        key: Option<[u8; 32]>,
        epoch: Option<EpochNo>,
    ) -> Result<Self, ClientError> {
        let vault = Vault::peek(folder, key)?;
        let mut person = vault.peek_person()?;
        let old = Old {
            joined: person.joined.take(),
            offered: None,
        };
        let places = Places::of(&vault, old)?;
        let joined = match epoch {
            Some(no) => places.joined.get(&no),
            None => places.newest().map(|(_, joined)| joined),
        };
        let joined = joined.ok_or(ClientError::NotJoined)?;
        Ok(Self {
            salt: Digest(person.salt).hex(),
            events: joined.train().to_vec(),
            contributed: contributed::sent(&vault)?,
        })
    }

    /// Reads what [`Self::bytes`] wrote: nothing else, down to the last byte.
    ///
    /// # Errors
    /// [`ClientError::AuditExport`] says what was expected.
    pub fn parse(bytes: &[u8]) -> Result<Self, ClientError> {
        let read: Self =
            serde_json::from_slice(bytes).map_err(|e| ClientError::AuditExport(e.to_string()))?;
        match read.bytes() == bytes {
            true => Ok(read),
            false => Err(ClientError::AuditExport(
                "its bytes differ from what a device writes".into(),
            )),
        }
    }

    /// The file: JSON without blanks, fields in the order of declaration.
    pub fn bytes(&self) -> Vec<u8> {
        // Structs of strings, integers and lists do not fail to serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The salted commitment that the coordinator was given; `None` when the salt is not 32 bytes,
    /// hexadecimal.
    pub fn commitment(&self) -> Option<Digest> {
        Some(commitment(&Digest::parse(&self.salt)?.0, &self.events))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_before_are_read() {
        let old = r#"{"salt":"00","events":[{"item":"i1","liked":true,"time":5}]}"#;
        let read = TrainingData::parse(old.as_bytes()).expect("reads");
        assert!(read.contributed.is_empty() && read.events.len() == 1);
        let written = serde_json::to_string(&read).expect("writes");
        assert_eq!(
            written, old,
            "and builds of before read those without contributions"
        );
    }

    /// Audit M5: what differs in a byte is refused, or is other data, which opens no commitment.
    #[test]
    fn no_byte_of_an_export_may_change_unnoticed() {
        let good = TrainingData {
            salt: Digest([7; 32]).hex(),
            events: vec![TrainingEvent {
                item: "i1".into(),
                liked: true,
                time: 5,
            }],
            contributed: vec![],
        };
        let file = good.bytes();
        for at in 0..file.len() {
            for flip in [1, 2, 0x20, 0x80] {
                let mut edited = file.clone();
                edited[at] ^= flip;
                if let Ok(read) = TrainingData::parse(&edited) {
                    assert_ne!(read.commitment(), good.commitment(), "byte {at} ^ {flip}");
                }
            }
        }
        for end in ["\n", " ", "{}", "\r\n"] {
            let longer = [&file[..], end.as_bytes()].concat();
            assert!(TrainingData::parse(&longer).is_err(), "{end:?}");
        }
    }
}
