//! The state: rows that are stored, and indexes that follow from them.

use std::collections::{BTreeMap, BTreeSet};

use lethe_proto::ids::Digest;
use serde::{Deserialize, Serialize};

use super::command::Owner;
use super::lint::Fold;
use super::settings::CellSettings;
use crate::ids::{CellNo, Fresh, Handle, Number, Version};

/// What a handle's key seals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Person {
    /// Its number.
    pub number: Number,
    /// Salts its digests.
    pub salt: Fresh,
    /// When its membership began, in seconds since 1970.
    pub since: u64,
    /// When it contributed last, in seconds since 1970.
    pub at: u64,
    /// Which device brought its newest version.
    pub source: [u8; 16],
    /// Events of its newest version.
    pub events: u32,
}

/// A contributor, as a number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The number, salted.
    pub name: Digest,
    /// The newest version.
    pub newest: Version,
    /// Its digest, salted.
    pub digest: Digest,
    /// The version that counts, with its digest.
    pub counts: Option<(Version, Digest)>,
    /// None: waiting.
    pub cell: Option<CellNo>,
    /// Cells that it was in when they were published, and that are dissolved. Ascending.
    pub past: Vec<CellNo>,
    /// The snapshot that showed it last, if its cell was dissolved since: somebody else left.
    pub was_shown: Option<WasShown>,
}

/// A snapshot that showed a member, and is recalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WasShown {
    /// Its number.
    pub number: u64,
    /// When it was recalled, in seconds since 1970.
    pub at: u64,
}

/// People who come and go together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// Ascending.
    pub members: Vec<Number>,
    /// A snapshot with this cell was published.
    pub shown: bool,
}

/// What was published is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Out {
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Published cells that were dissolved since.
    pub cells: u32,
}

/// Counters, and what is served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Core {
    /// Number of the newest cell.
    pub cell: u64,
    /// Number of the newest snapshot.
    pub snapshot: u64,
    /// How often the fold has changed.
    pub changes: u64,
    /// How often something left the fold: what was solved before is not published.
    pub forgets: u64,
    /// Names the key of what is derived from people. Each recall begins the next.
    pub generation: u64,
    /// The snapshot that is served.
    pub served: Option<u64>,
    /// Why none is, after a recall.
    pub out: Option<Out>,
    /// The highest number of a snapshot that was ever recalled; 0: none was. Devices drop what has
    /// this number or a lower one.
    pub recalled: u64,
    /// What noise has cost so far.
    pub spent: Spent,
}

/// What snapshots with noise have cost together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// How many they are.
    pub releases: u64,
    /// Their charges (`lethe_parts::noise::accountant`).
    pub charge: u64,
}

impl Spent {
    /// After so many more of one charge. What costs nothing is no release.
    #[must_use]
    pub fn with(self, releases: u64, charge: u64) -> Self {
        if charge == 0 {
            return self;
        }
        Self {
            releases: self.releases.saturating_add(releases),
            charge: self.charge.saturating_add(charge.saturating_mul(releases)),
        }
    }
}

/// Names a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowId {
    /// Counters.
    Core,
    /// Items that were taken down.
    Cleared,
    /// A handle's own row.
    Person(Handle),
    /// A number's.
    Member(Number),
    /// A cell's.
    Cell(CellNo),
}

impl RowId {
    /// Whose key seals the row.
    pub fn owner(&self) -> Owner {
        match self {
            Self::Person(handle) => Owner::Handle(*handle),
            _ => Owner::Public,
        }
    }
}

/// A row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// Counters.
    Core(Core),
    /// Items that were taken down.
    Cleared(BTreeSet<u32>),
    /// A handle's own row.
    Person(Handle, Person),
    /// A number's.
    Member(Number, Member),
    /// A cell's.
    Cell(CellNo, Cell),
}

/// Everything that decides.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(super) settings: CellSettings,
    pub(super) core: Core,
    pub(super) cleared: BTreeSet<u32>,
    pub(super) people: BTreeMap<Handle, Person>,
    pub(super) members: BTreeMap<Number, Member>,
    pub(super) cells: BTreeMap<CellNo, Cell>,
    pub(super) index: Index,
    pub(super) changed: BTreeSet<RowId>,
}

/// What follows from the rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) handles: BTreeMap<Number, Handle>,
    pub(super) waiting: BTreeSet<Number>,
    /// Members of each cell whose newest version does not count yet.
    pub(super) grown: BTreeMap<CellNo, BTreeSet<Number>>,
}

impl State {
    /// Nobody.
    pub fn new(settings: CellSettings) -> Self {
        Self {
            settings,
            ..Self::default()
        }
    }

    /// The state that rows give; their order does not matter.
    pub fn of_rows(settings: CellSettings, rows: impl IntoIterator<Item = Row>) -> Self {
        let mut state = Self::new(settings);
        for row in rows {
            match row {
                Row::Core(core) => state.core = core,
                Row::Cleared(items) => state.cleared = items,
                Row::Person(handle, person) => drop(state.people.insert(handle, person)),
                Row::Member(number, member) => drop(state.members.insert(number, member)),
                Row::Cell(no, cell) => drop(state.cells.insert(no, cell)),
            }
        }
        state.index = state.indexed();
        state
    }

    fn indexed(&self) -> Index {
        let mut index = Index::default();
        for (handle, person) in &self.people {
            index.handles.insert(person.number, *handle);
        }
        for (number, member) in &self.members {
            match member.cell {
                None => drop(index.waiting.insert(*number)),
                Some(cell) if member.has_grown() => {
                    index.grown.entry(cell).or_default().insert(*number);
                }
                Some(_) => {}
            }
        }
        index
    }

    /// A row; none: it is not there, or not any more.
    pub fn row(&self, id: &RowId) -> Option<Row> {
        match id {
            RowId::Core => Some(Row::Core(self.core.clone())),
            RowId::Cleared => Some(Row::Cleared(self.cleared.clone())),
            RowId::Person(h) => Some(Row::Person(*h, self.people.get(h)?.clone())),
            RowId::Member(n) => Some(Row::Member(*n, self.members.get(n)?.clone())),
            RowId::Cell(c) => Some(Row::Cell(*c, self.cells.get(c)?.clone())),
        }
    }

    /// Rows that were changed since this was asked last.
    pub fn take_changed(&mut self) -> BTreeSet<RowId> {
        std::mem::take(&mut self.changed)
    }

    /// Counters, and what is served.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// The settings.
    pub fn settings(&self) -> &CellSettings {
        &self.settings
    }

    /// Items that were taken down.
    pub fn cleared(&self) -> &BTreeSet<u32> {
        &self.cleared
    }

    /// Everybody, by handle.
    pub fn people(&self) -> &BTreeMap<Handle, Person> {
        &self.people
    }

    /// Everybody, by number.
    pub fn members(&self) -> &BTreeMap<Number, Member> {
        &self.members
    }

    /// The cells that are open.
    pub fn cells(&self) -> &BTreeMap<CellNo, Cell> {
        &self.cells
    }

    /// Whose a number is.
    pub fn handle(&self, number: Number) -> Option<Handle> {
        self.index.handles.get(&number).copied()
    }

    /// The newest version of a handle.
    pub fn newest(&self, handle: &Handle) -> Option<Version> {
        let person = self.people.get(handle)?;
        Some(self.members.get(&person.number)?.newest)
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.index.waiting.len()
    }

    /// How many count.
    pub fn counting(&self) -> usize {
        self.members.len() - self.waiting()
    }

    /// Members of the next cell, n.
    pub fn size(&self) -> usize {
        self.settings.size(self.members.len())
    }

    /// Who would be published now.
    pub fn fold(&self) -> Fold {
        let version = |number: &Number| {
            let member = self.members.get(number)?;
            Some((*number, member.counts.as_ref()?.0))
        };
        let of = |cell: &Cell| cell.members.iter().filter_map(version).collect();
        let cells = self.cells.iter().map(|(no, cell)| (*no, of(cell)));
        Fold {
            number: self.core.snapshot + 1,
            cells: cells.collect(),
        }
    }

    /// Whether the indexes are those that the rows give; for tests.
    pub fn is_consistent(&self) -> bool {
        self.index == self.indexed()
    }
}

impl Member {
    /// Whether the newest version is not the one that counts.
    pub(super) fn has_grown(&self) -> bool {
        self.counts.as_ref().is_some_and(|c| c.0 != self.newest)
    }
}
