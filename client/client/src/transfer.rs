//! Histories as JSON: for the person, for backups, and for another device.

use std::collections::HashSet;

use lethe_proto::ids::Digest;
use lethe_receipt::hex::hex;
use serde::{Deserialize, Serialize};

use crate::contributed::SentContribution;
use crate::events::Events;
use crate::{ClientError, LocalEvent};

const VERSION: u32 = 1;

/// What an export holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Export {
    version: u32,
    /// Name of the history that it came from, hexadecimal.
    source: String,
    /// Oldest first.
    pub(crate) events: Vec<LocalEvent>,
    /// What this device has contributed to the sums of the lists, oldest first. Another device that
    /// imports the history has not: it leaves this out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    contributed: Vec<SentContribution>,
}

impl Export {
    pub(crate) fn of(events: &Events, contributed: Vec<SentContribution>) -> Self {
        Self {
            version: VERSION,
            source: hex(&events.source),
            events: events.iter().cloned().collect(),
            contributed,
        }
    }

    pub(crate) fn to_json(&self) -> Result<Vec<u8>, ClientError> {
        serde_json::to_vec_pretty(self).map_err(|e| ClientError::Internal(e.to_string()))
    }

    pub(crate) fn parse(json: &[u8]) -> Result<Self, ClientError> {
        let export: Self =
            serde_json::from_slice(json).map_err(|e| ClientError::Export(e.to_string()))?;
        if export.version != VERSION {
            return Err(ClientError::Export(format!(
                "version {}, this build reads {VERSION}",
                export.version
            )));
        }
        Ok(export)
    }
}

/// What makes two events the same.
fn name(e: &LocalEvent) -> Digest {
    Digest::of(&[
        e.item.as_bytes(),
        &e.time.to_le_bytes(),
        e.kind.name().as_bytes(),
        &e.value.to_bits().to_le_bytes(),
    ])
}

/// The events that are not here yet, each once.
pub(crate) fn new_events(here: &Events, imported: Vec<LocalEvent>) -> Vec<LocalEvent> {
    let mut known: HashSet<Digest> = here.iter().map(name).collect();
    let fresh = imported.into_iter().filter(|e| known.insert(name(e)));
    fresh.collect()
}
