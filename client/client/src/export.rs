//! What a person gives to an auditor, if they agree: the events that were trained on, with what
//! opens the commitment to them.

use std::path::Path;

use lethe_proto::ids::Digest;
use serde::{Deserialize, Serialize};

use crate::ClientError;
use crate::history::{TrainingEvent, commitment};
use crate::vault::Vault;

/// The data of one person that counts in this epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingData {
    /// Salt of the commitment, hexadecimal.
    pub salt: String,
    /// Training events, oldest first.
    pub events: Vec<TrainingEvent>,
}

impl TrainingData {
    /// Reads it from a client's folder; works offline, and while the folder is in use. `key` is the
    /// app's, as given to [`crate::Options::key`].
    pub fn of_folder(folder: &Path, key: Option<[u8; 32]>) -> Result<Self, ClientError> {
        let person = Vault::peek(folder, key)?;
        let joined = person.joined.ok_or(ClientError::OtherData)?;
        Ok(Self {
            salt: Digest(person.salt).hex(),
            events: joined.train().to_vec(),
        })
    }

    /// The salted commitment that the coordinator was given; `None` when the salt is not 32 bytes,
    /// hexadecimal.
    pub fn commitment(&self) -> Option<Digest> {
        Some(commitment(&Digest::parse(&self.salt)?.0, &self.events))
    }
}
