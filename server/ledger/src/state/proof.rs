//! What a replay has found so far, stage by stage. Public: people are numbers here.

use std::collections::{BTreeMap, BTreeSet};

use lethe_proto::ids::Digest;
use serde::{Deserialize, Serialize};

use crate::ids::PersonNo;

/// What the newest replay of a shard has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Stages that need somebody who is missing are left out; otherwise such a replay ends.
    pub without_missing: bool,
    /// By stage, 1-based.
    pub stages: BTreeMap<u16, StageFound>,
}

/// What a replay has found of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StageFound {
    /// It was trained again.
    Trained {
        /// Hash of the adapter at its end.
        replayed: Digest,
        /// What was recorded when it was first trained.
        recorded: Digest,
    },
    /// It was not: these people contributed to it, and are missing.
    Unproven {
        /// Whom it needs. Empty: it could not be added up.
        missing: Vec<PersonNo>,
    },
}

impl Proof {
    /// A stage could not be trained again.
    pub fn is_partial(&self) -> bool {
        let mut all = self.stages.values();
        all.any(|s| matches!(s, StageFound::Unproven { .. }))
    }

    /// A stage that was trained again does not give what was recorded.
    pub fn differs(&self) -> bool {
        let differs = |s: &StageFound| match s {
            StageFound::Trained { replayed, recorded } => replayed != recorded,
            StageFound::Unproven { .. } => false,
        };
        self.stages.values().any(differs)
    }

    /// Everybody whom a stage needs that was left out.
    pub fn missing(&self) -> BTreeSet<PersonNo> {
        let of = |s: &StageFound| match s {
            StageFound::Unproven { missing } => missing.clone(),
            StageFound::Trained { .. } => vec![],
        };
        self.stages.values().flat_map(of).collect()
    }
}
