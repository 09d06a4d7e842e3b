//! Lists. With `sums = "embedded"` the tally runs inside the coordinator, which holds and computes
//! with what people contribute. With `sums = "tally"` it is a process of its own (`party`), and
//! the coordinator relays what it cannot read.
//!
//! The tally knows people by handles. Here is the only place that can tell whose a handle is.
//!
//! One lock orders what must not overlap, `Lists::gate`. Whoever contributes or publishes shares
//! it, and asks the ledger under it whether that is allowed. Whoever begins to execute deletions
//! has it alone. So nothing is contributed for somebody, or published with somebody, who is being
//! deleted.

mod audit;
mod contribute;
mod execute;
mod keeper;
mod link;
mod masks;
mod party;
mod publish;
mod questions;
mod sealed;
mod serve;
mod settings;
pub(crate) mod status;
mod teach;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, RwLock};

use lethe_learn::seed::Seed;
use lethe_parts::content::Content;
use lethe_proto::catalogue::Versions;
use lethe_proto::ids::SubjectId;
use lethe_store::head::Floor;
use lethe_store::keys::{Folders, Keys};
use lethe_store::sealed::Engine;
pub(crate) use lethe_tally::Catalogue;
use lethe_tally::{Handle, Served, Tally};

use crate::CoordinatorError;
use crate::durable::ListsFoundation;
use crate::fatal;
use crate::shell::Shell;

#[cfg(test)]
pub(crate) use contribute::ByHand;
pub(crate) use contribute::{Arriving, Contributions};
use keeper::{Keeper, Showing};
pub use lethe_tally::{NoiseConfig, Per};
pub use link::TallyConfig;
#[cfg(test)]
pub(crate) use link::{Broken, Remembered};
pub(crate) use link::{Line, Link};
pub(crate) use masks::Masks;
use party::Party;
pub use settings::{CellsConfig, ListsConfig, Sums};

/// Folder of the tally, in the data folder.
pub(crate) const FOLDER: &str = "tally";

/// File of the highest number of a snapshot, in the evidence folder.
const NUMBERS: &str = "snapshots";

/// The tally, and what the coordinator knows beside it.
pub(crate) struct Lists {
    keeper: Keeper,
    /// Handles are drawn from it.
    handles: Seed,
    /// Of the newest version.
    catalogue: RwLock<Arc<Catalogue>>,
    /// A later version, which a tally of its own has not been sent yet.
    untaught: Mutex<Option<Arc<Versions>>>,
    /// Items of the tables of the snapshot of this number.
    in_tables: Mutex<Option<(u64, usize)>>,
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
    pub(crate) keys: &'a Keys,
    pub(crate) evidence: &'a Path,
    pub(crate) config: ListsConfig,
    pub(crate) serves: bool,
    pub(crate) release_hours: u64,
    /// The way to a tally of its own; none: it is in this process.
    pub(crate) line: Option<Box<dyn Line>>,
    /// Updates have masks, which a tally of its own sums.
    pub(crate) masks: bool,
    pub(crate) foundation: ListsFoundation,
    pub(crate) versions: Arc<Versions>,
    pub(crate) content: Arc<Content>,
    /// Seconds since 1970.
    pub(crate) now: u64,
    /// Cells of the tally of this process follow from it; none: they are drawn.
    pub(crate) seed: Option<Seed>,
}

impl Lists {
    /// Opens the tally's folder, or founds it. A tally of its own is not asked yet, unless nothing
    /// is known of it.
    pub(crate) fn open(mut opening: Opening<'_>) -> Result<Self, CoordinatorError> {
        let (floor, highest) = Floor::open(&opening.evidence.join(NUMBERS))?;
        let highest = highest.unwrap_or(0);
        let keeper = match opening.line.take() {
            Some(line) => Keeper::Party(Arc::new(contacted(line, &opening, highest)?)),
            None => Keeper::Embedded(Arc::new(embedded(&opening, highest)?)),
        };
        let counting = keeper.status_known(opening.now)?.counting;
        // A tally of its own sees to that itself.
        let costly = match &keeper {
            Keeper::Embedded(tally) => tally.costly_day(),
            Keeper::Party(_) => None,
        };
        Ok(Self {
            keeper,
            handles: Seed(opening.foundation.handles),
            catalogue: RwLock::new(Arc::new(Catalogue::of_entries(opening.versions.entries()))),
            untaught: Mutex::default(),
            in_tables: Mutex::default(),
            config: opening.config,
            serves: opening.serves,
            valid_s: opening.release_hours * 3600,
            gate: RwLock::new(()),
            floor: Mutex::new(floor),
            publishing: Mutex::new(publish::Publishing::after_start(counting > 0, costly)),
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

    /// The items of the newest version.
    pub(super) fn catalogue(&self) -> Arc<Catalogue> {
        fatal::read(&self.catalogue).clone()
    }

    /// Whether the tally could go on with this content.
    pub(crate) fn may_follow(&self, content: &Arc<Content>) -> Result<(), CoordinatorError> {
        match &self.keeper {
            Keeper::Embedded(tally) => Ok(tally.may_follow(content)?),
            // It checks what it is sent itself.
            Keeper::Party(_) => Ok(()),
        }
    }

    /// Goes on with a later version of the catalogue. The tally is first: it has room for whatever
    /// is contributed from then on.
    pub(crate) fn follow(
        &self,
        versions: Arc<Versions>,
        content: Arc<Content>,
    ) -> Result<(), CoordinatorError> {
        match &self.keeper {
            Keeper::Embedded(tally) => {
                tally.follow(content)?;
                // Titles and tags may have changed. Not with noise, where each snapshot costs.
                if tally.costly_day().is_none() {
                    let shows = matches!(tally.lists().served, Served::Snapshot(_));
                    fatal::lock(&self.publishing).changed |= shows;
                }
            }
            Keeper::Party(_) => {
                // The thread that talks to it sends it: nobody waits for another process here.
                *fatal::lock(&self.untaught) = Some(versions);
                self.look();
                return Ok(());
            }
        }
        self.name_items_by(&versions);
        self.look();
        Ok(())
    }

    /// Places have the names of this version from now on.
    pub(super) fn name_items_by(&self, versions: &Versions) {
        let catalogue = Catalogue::of_entries(versions.entries());
        *fatal::write(&self.catalogue) = Arc::new(catalogue);
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
        let now = self.keeper.now();
        if now.recalled > 0 && !matches!(now.showing, Showing::Snapshot(_)) {
            floor.set(now.recalled + 1)?;
        }
        Ok(())
    }

    /// For tests of what the tally has. None: it is a process of its own, and is down.
    #[cfg(test)]
    pub(crate) fn tally(&self) -> Option<Box<dyn std::ops::Deref<Target = Tally>>> {
        match &self.keeper {
            Keeper::Embedded(tally) => Some(Box::new(tally.clone())),
            Keeper::Party(party) => party.tally(),
        }
    }

    /// For tests: whether a tally of its own has been told of everybody who left.
    #[cfg(test)]
    pub(crate) fn has_told(&self) -> bool {
        match &self.keeper {
            Keeper::Embedded(_) => true,
            Keeper::Party(party) => party.away().is_none(),
        }
    }

    /// Exchanges the master key of a tally in this process. One of its own has its own command.
    pub(crate) fn rotate_master(&self) -> Result<(), CoordinatorError> {
        match &self.keeper {
            Keeper::Embedded(tally) => Ok(tally.rotate_master()?),
            Keeper::Party(_) => Ok(()),
        }
    }

    /// Key that verifies snapshots (verifier key text).
    pub(crate) fn key(&self) -> String {
        self.keeper.key()
    }

    /// Whether this process holds no contribution, and no sum.
    pub(crate) fn is_sealed(&self) -> bool {
        matches!(self.keeper, Keeper::Party(_))
    }
}

/// Refuses a folder whose contributions were made in another mode: nobody would look after them any
/// more.
///
/// # Errors
/// [`CoordinatorError::OtherSums`].
pub(crate) fn check_mode(data_dir: &Path, sums: Sums, apart: bool) -> Result<(), CoordinatorError> {
    // Without lists, deletions still reach a tally in this process, and no other.
    let fits = match sums {
        Sums::Off | Sums::Embedded => !apart,
        Sums::Tally => apart,
    };
    if fits {
        return Ok(());
    }
    Err(CoordinatorError::OtherSums {
        folder: data_dir.to_owned(),
        had: match apart {
            true => "tally",
            false => "embedded",
        },
        wants: match sums {
            Sums::Tally => "tally",
            Sums::Embedded => "embedded",
            Sums::Off => "off",
        },
    })
}

fn embedded(opening: &Opening<'_>, highest: u64) -> Result<Tally, CoordinatorError> {
    let options = opening.config.options();
    let gives_away = options.cells.gives_away();
    let folder = Folders {
        records: opening.data_dir.join(FOLDER),
        keys: opening.keys.within(FOLDER),
    };
    let content = opening.content.clone();
    let tally = match opening.seed {
        None => Tally::open(opening.engine, folder, content, options, opening.now)?,
        Some(seed) => {
            Tally::open_seeded(opening.engine, folder, content, options, seed, opening.now)?
        }
    };
    // An older data folder came back: devices have seen these numbers.
    tally.skip_to(highest, opening.now)?;
    if opening.serves {
        tracing::info!(
            "sums = \"embedded\": this coordinator holds what people contribute, and computes \
             with it"
        );
    }
    if let Some(gives_away) = gives_away {
        tracing::warn!("{gives_away}");
    }
    Ok(tally)
}

/// A tally of its own. Receipts name its key: it has to answer once before anything else happens.
fn contacted(
    line: Box<dyn Line>,
    opening: &Opening<'_>,
    highest: u64,
) -> Result<Party, CoordinatorError> {
    let lineage = Seed(opening.foundation.handles).derive("lineage", &[]);
    let lineage = lineage.0.first_chunk().copied();
    let lineage = lineage.filter(|_| opening.masks);
    let party = Party::new(line, opening.versions.clone(), lineage, highest);
    tracing::info!(
        tally = party.place(),
        "sums = \"tally\": a process of its own holds what people contribute; this coordinator \
         cannot read it"
    );
    if party.key().is_empty() {
        party.open()?;
    }
    Ok(party)
}
