//! Lists, `sums = "embedded"`: the tally runs inside the coordinator, which holds and computes with
//! what people contribute.
//!
//! The tally knows people by handles. Here is the only place that can tell whose a handle is.
//!
//! One lock orders what must not overlap, `Lists::gate`. Whoever contributes or publishes shares
//! it, and asks the ledger under it whether that is allowed. Whoever begins to execute deletions
//! has it alone. So nothing is contributed for somebody, or published with somebody, who is being
//! deleted.

mod audit;
mod catalogue;
mod contribute;
mod execute;
mod publish;
mod serve;
mod settings;
pub(crate) mod status;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, RwLock};

use lethe_learn::seed::Seed;
use lethe_parts::content::Content;
use lethe_proto::ids::SubjectId;
use lethe_store::head::Floor;
use lethe_store::sealed::Engine;
use lethe_tally::{Handle, Served, Tally};

use crate::CoordinatorError;
use crate::durable::ListsFoundation;
use crate::fatal;
use crate::shell::Shell;

pub(crate) use catalogue::Catalogue;
pub(crate) use contribute::{Arriving, Contributions};
pub use lethe_tally::{NoiseConfig, Per};
pub use settings::{CellsConfig, ListsConfig, Sums};

/// Folder of the tally, in the data folder.
pub(crate) const FOLDER: &str = "tally";

/// File of the highest number of a snapshot, in the evidence folder.
const NUMBERS: &str = "snapshots";

/// The tally, and what the coordinator knows beside it.
pub(crate) struct Lists {
    tally: Tally,
    /// Handles are drawn from it.
    handles: Seed,
    catalogue: Catalogue,
    config: ListsConfig,
    /// Contributions are taken and snapshots served; if not, only deletions reach the tally.
    serves: bool,
    /// Seconds for which a device may use a snapshot without asking again.
    valid_s: u64,
    gate: RwLock<()>,
    /// Highest number of a snapshot that was ever published, in the evidence folder; one more as
    /// long as that one is recalled and no other is there.
    floor: Mutex<Floor>,
    publishing: Mutex<publish::Publishing>,
    changed: Condvar,
    /// Who withdrew within the last `refresh_s`, and when. In memory only: nothing is kept of
    /// people who have left. At most as many as are enrolled.
    withdrawn: Mutex<BTreeMap<Handle, u64>>,
}

/// What lists are opened with.
pub(crate) struct Opening<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) data_dir: &'a Path,
    pub(crate) evidence: &'a Path,
    pub(crate) config: ListsConfig,
    pub(crate) serves: bool,
    pub(crate) release_hours: u64,
    pub(crate) foundation: ListsFoundation,
    pub(crate) catalogue: Catalogue,
    pub(crate) content: Arc<Content>,
    /// Seconds since 1970.
    pub(crate) now: u64,
}

impl Lists {
    /// Opens the tally's folder, or founds it.
    pub(crate) fn open(opening: Opening<'_>) -> Result<Self, CoordinatorError> {
        let tally = Tally::open(
            opening.engine,
            &opening.data_dir.join(FOLDER),
            opening.content,
            opening.config.options(),
            opening.now,
        )?;
        let counting = tally.status(opening.now)?.counting;
        let (floor, highest) = Floor::open(&opening.evidence.join(NUMBERS))?;
        // An older data folder came back: devices have seen these numbers.
        tally.skip_to(highest.unwrap_or(0), opening.now)?;
        if opening.serves {
            tracing::info!(
                "sums = \"embedded\": this coordinator holds what people contribute, and computes \
                 with it"
            );
        }
        // Each snapshot costs: a start alone is no reason for one.
        let published = match tally.served() {
            Served::Snapshot(s) => opening.config.noise.map(|_| s.statement.day),
            _ => None,
        };
        if let Some(gives_away) = opening.config.options().cells.gives_away() {
            tracing::warn!("{gives_away}");
        }
        Ok(Self {
            tally,
            handles: Seed(opening.foundation.handles),
            catalogue: opening.catalogue,
            config: opening.config,
            serves: opening.serves,
            valid_s: opening.release_hours * 3600,
            gate: RwLock::new(()),
            floor: Mutex::new(floor),
            publishing: Mutex::new(publish::Publishing::after_start(counting, published)),
            changed: Condvar::new(),
            withdrawn: Mutex::default(),
        })
    }

    /// What the tally knows a person by. Nobody who has not the secret can tell whose it is.
    pub(crate) fn handle(&self, subject: &SubjectId) -> Handle {
        let drawn = self
            .handles
            .derive("handle", &[subject.as_str().as_bytes()]);
        let mut handle = [0; 16];
        handle.copy_from_slice(&drawn.0[..16]);
        Handle(handle)
    }

    /// Takes what has arrived together. Who withdraws recalls what is served.
    pub(crate) fn take_in(&self, shell: &Shell, all: Vec<Arriving>) {
        self.take(shell, all);
        if let Err(e) = self.keep_recalled() {
            shell.complain("keep what was recalled", &e);
        }
    }

    /// An older data folder may hold a snapshot that was recalled since as one that is served: the
    /// evidence folder then asks for a higher number. Call it after whatever recalls.
    pub(crate) fn keep_recalled(&self) -> Result<(), CoordinatorError> {
        // Whoever publishes takes it before the number is seen: it never goes back.
        let mut floor = fatal::lock(&self.floor);
        let lists = self.tally.lists();
        if lists.recalled > 0 && !matches!(lists.served, Served::Snapshot(_)) {
            floor.set(lists.recalled + 1)?;
        }
        Ok(())
    }

    /// For tests of what the tally has.
    #[cfg(test)]
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Key that verifies snapshots (verifier key text).
    pub(crate) fn key(&self) -> String {
        self.tally.verifier().text()
    }
}
