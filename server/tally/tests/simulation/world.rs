//! A shell that fails around the real decisions.

use std::collections::{BTreeMap, BTreeSet};

use lethe_learn::seed::{Seed, Stream};
use lethe_proto::codec;
use lethe_proto::ids::Digest;
use lethe_tally::cells::*;
use lethe_tally::{Fresh, Handle, Number};

/// What happened, to see that all of it does.
#[derive(Default)]
pub(crate) struct Count {
    pub(crate) folds: u64,
    pub(crate) opened: u64,
    pub(crate) dissolved: u64,
    pub(crate) renewed: u64,
    pub(crate) returned: u64,
    pub(crate) faults: u64,
    pub(crate) late: u64,
    pub(crate) strays: u64,
    pub(crate) merged: u64,
    pub(crate) nothing_new: u64,
}

/// What each device of a handle has brought last, and when.
type Devices = BTreeMap<u8, (u64, u64)>;

/// What counts of it. What two devices hold counts once.
fn merged(devices: &Devices) -> BTreeSet<u64> {
    devices.values().map(|d| d.0).collect()
}

impl Count {
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.folds += other.folds;
        self.opened += other.opened;
        self.dissolved += other.dissolved;
        self.renewed += other.renewed;
        self.returned += other.returned;
        self.faults += other.faults;
        self.late += other.late;
        self.strays += other.strays;
        self.merged += other.merged;
        self.nothing_new += other.nothing_new;
        self
    }
}

/// A job that solves; its result comes later, or never.
struct Job {
    fold: Fold,
    forgets: u64,
}

pub(crate) struct World {
    seed: u64,
    rng: Stream,
    settings: CellSettings,
    pub(crate) state: State,
    rows: BTreeMap<RowId, Vec<u8>>,
    handles: Vec<Handle>,
    devices: BTreeMap<Handle, Devices>,
    jobs: Vec<Job>,
    now: u64,
    next: u64,
    pub(crate) published: Vec<Fold>,
    pub(crate) left: Left,
    pub(crate) count: Count,
    log: Vec<Command>,
}

impl World {
    pub(crate) fn new(seed: u64, settings: CellSettings) -> Self {
        settings.check().unwrap();
        Self {
            seed,
            rng: Seed::from_u64(seed).derive("tally simulation", &[]).rng(),
            settings,
            state: State::new(settings),
            rows: BTreeMap::new(),
            handles: vec![],
            devices: BTreeMap::new(),
            jobs: vec![],
            now: 1_000,
            next: 0,
            published: vec![],
            left: Left::new(),
            count: Count::default(),
            log: vec![],
        }
    }

    pub(crate) fn tell(&self) -> String {
        let from = self.log.len().saturating_sub(12);
        format!("seed {}: {:#?}", self.seed, &self.log[from..])
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.rng.below(n) == 0
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn step(&mut self) {
        self.now += self.rng.below(100) as u64;
        match self.rng.below(100) {
            0..35 => {
                for _ in 0..self.rng.below(10) {
                    let handle = Handle(u128::from(self.fresh()).to_le_bytes());
                    self.handles.push(handle);
                    self.contribute(handle);
                }
            }
            35..55 => {
                for _ in 0..self.rng.below(20) {
                    if let Some(handle) = self.somebody() {
                        self.contribute(handle);
                    }
                }
            }
            55..65 => {
                let most = if self.one_in(4) { 6 } else { 1 };
                let leavers: Vec<Handle> = (0..most).filter_map(|_| self.somebody()).collect();
                self.leave(&leavers);
                // Some come back at once, as newcomers.
                for handle in leavers {
                    if self.one_in(2) {
                        self.contribute(handle);
                    } else {
                        self.handles.retain(|h| *h != handle);
                    }
                }
            }
            65..85 => self.duties(),
            85..92 => self.begin_job(),
            92..98 => self.end_job(),
            98 => drop(self.execute(Command::TakeDown(vec![self.next as u32 % 50]))),
            _ => self.lose_a_key(),
        }
    }

    fn somebody(&mut self) -> Option<Handle> {
        if self.handles.is_empty() {
            return None;
        }
        let at = self.rng.below(self.handles.len());
        Some(self.handles[at])
    }

    /// One of three devices brings something new, what it has brought before, or what another one
    /// has.
    fn contribute(&mut self, handle: Handle) {
        if !self.state.people().contains_key(&handle) {
            // Who left has nothing of what their devices brought.
            self.devices.remove(&handle);
        }
        let before = self.devices.get(&handle).cloned().unwrap_or_default();
        let source = self.rng.below(3) as u8;
        let last = before.get(&source).map(|d| d.1);
        let known: Vec<u64> = merged(&before).into_iter().collect();
        let brings = match self.one_in(3) && !known.is_empty() {
            true => known[self.rng.below(known.len())],
            false => self.fresh(),
        };
        let mut after = before.clone();
        after.insert(source, (brings, self.now));
        let all: Vec<u8> = merged(&after)
            .iter()
            .flat_map(|c| c.to_le_bytes())
            .collect();
        let fresh = Fresh(Digest::of(&[b"fresh", &self.fresh().to_le_bytes()]).0);
        let stands = self.state.newest(&handle);
        let taken = self.execute(Command::Contribute {
            handle,
            offered: Offered {
                content: Digest::of(&[&handle.0, &all]),
                source: [source; 16],
                events: merged(&after).len() as u32,
                last,
            },
            fresh,
            refresh_s: 20,
        });
        if merged(&after) == merged(&before) {
            assert_eq!(self.state.newest(&handle), stands, "{}", self.tell());
            self.count.nothing_new += 1;
        }
        if taken {
            self.count.merged += u64::from(merged(&after).len() > 1);
            self.devices.insert(handle, after);
        }
    }

    fn leave(&mut self, leavers: &[Handle]) {
        if self.one_in(3) {
            let before = self.now;
            let leaver = |h: &Handle| Leaver { handle: *h, before };
            self.execute(Command::LeaveOlder(leavers.iter().map(leaver).collect()));
        } else {
            self.execute(Command::Leave(leavers.to_vec()));
        }
        let there = |h: &&Handle| self.state.people().contains_key(*h);
        assert_eq!(leavers.iter().find(there), None, "{}", self.tell());
    }

    /// Opens and renews what may be, until nothing more happens.
    fn duties(&mut self) {
        loop {
            let before = self.state.core().changes;
            for duty in due(&self.state) {
                match duty {
                    Duty::OpenCell => {
                        let secret = Seed::from_u64(self.seed);
                        self.execute(Command::OpenCell { secret });
                    }
                    Duty::Renew(cell) => drop(self.execute(Command::Renew(cell))),
                    Duty::Publish => {}
                }
            }
            if self.state.core().changes == before {
                break;
            }
        }
    }

    fn begin_job(&mut self) {
        self.jobs.push(Job {
            fold: self.state.fold(),
            forgets: self.state.core().forgets,
        });
    }

    fn end_job(&mut self) {
        if self.jobs.is_empty() {
            self.begin_job();
        }
        let at = self.rng.below(self.jobs.len());
        let job = self.jobs.remove(at);
        let before = self.published.len();
        self.execute(Command::Publish {
            number: job.fold.number,
            forgets: job.forgets,
            cells: job.fold.cells.keys().copied().collect(),
            charge: 0,
        });
        // A write that failed may have published all the same.
        if self.state.core().snapshot > before as u64 {
            assert_eq!(job.fold.number, before as u64 + 1, "{}", self.tell());
            self.published.push(job.fold);
            self.count.folds += 1;
        } else {
            self.count.late += 1;
        }
    }

    /// A crash came between a destroyed key and what would have followed.
    fn lose_a_key(&mut self) {
        if let Some(handle) = self.somebody() {
            if self.rows.remove(&RowId::Person(handle)).is_some() {
                self.count.strays += 1;
            }
            self.handles.retain(|h| *h != handle);
            self.reload();
        }
    }

    /// Decide, apply, write; again if the answer was lost. Whether it was not refused.
    fn execute(&mut self, command: Command) -> bool {
        for _ in 0..3 {
            self.log.push(command.clone());
            let Ok(events) = decide(&self.state, &command, self.now) else {
                return false;
            };
            self.notice(&events);
            events.iter().for_each(|e| apply(&mut self.state, e));
            let fails = self.one_in(25);
            let written = !fails || self.one_in(2);
            let changed = self.state.take_changed();
            if written {
                self.write(changed);
                self.note_left(&events);
            }
            if fails {
                self.count.faults += 1;
                self.reload();
            }
            // Repeated, also when nothing failed.
            if !fails && !self.one_in(10) {
                return true;
            }
        }
        // In the end it succeeds.
        let decided = decide(&self.state, &command, self.now);
        if let Ok(events) = &decided {
            events.iter().for_each(|e| apply(&mut self.state, e));
            let changed = self.state.take_changed();
            self.write(changed);
            self.note_left(events);
        }
        decided.is_ok()
    }

    fn note_left(&mut self, events: &[Event]) {
        for event in events {
            if let Event::Left { number } = event {
                self.left.insert(*number, self.state.core().snapshot);
            }
        }
    }

    fn notice(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::Opened { members, .. } => {
                    self.count.opened += 1;
                    let back = |n: &&Number| !self.state.members()[n].past.is_empty();
                    self.count.returned += members.iter().filter(back).count() as u64;
                }
                Event::Dissolved { .. } => self.count.dissolved += 1,
                Event::Renewed { .. } => self.count.renewed += 1,
                _ => {}
            }
        }
    }

    fn write(&mut self, changed: BTreeSet<RowId>) {
        for id in changed {
            match self.state.row(&id) {
                Some(row) => drop(self.rows.insert(id, bytes(&row))),
                None => drop(self.rows.remove(&id)),
            }
        }
    }

    /// The process was killed: the state is that of the rows, and strays leave.
    fn reload(&mut self) {
        let rows = self.rows.iter().map(|(id, bytes)| row(id, bytes));
        self.state = State::of_rows(self.settings, rows);
        self.jobs.clear();
        let events = decide(&self.state, &Command::LeaveStrays, self.now).unwrap();
        self.note_left(&events);
        events.iter().for_each(|e| apply(&mut self.state, e));
        let changed = self.state.take_changed();
        self.write(changed);
    }

    /// Nobody comes or goes any more: the rows give the state, and a last fold is published.
    pub(crate) fn settle(&mut self) {
        self.duties();
        self.begin_job();
        let job = self.jobs.pop().unwrap();
        self.jobs = vec![job];
        self.end_job();
        let rows = self.rows.iter().map(|(id, bytes)| row(id, bytes));
        let again = State::of_rows(self.settings, rows);
        assert_eq!(again.fold(), self.state.fold(), "{}", self.tell());
        assert_eq!(again.members(), self.state.members(), "{}", self.tell());
        assert_eq!(again.core(), self.state.core(), "{}", self.tell());
    }
}

fn bytes(row: &Row) -> Vec<u8> {
    match row {
        Row::Core(core) => codec::to_bytes(core),
        Row::Cleared(items) => codec::to_bytes(items),
        Row::Person(_, person) => codec::to_bytes(person),
        Row::Member(_, member) => codec::to_bytes(member),
        Row::Cell(_, cell) => codec::to_bytes(cell),
    }
    .unwrap()
}

fn row(id: &RowId, bytes: &[u8]) -> Row {
    fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> T {
        codec::from_bytes(bytes, 1 << 20).unwrap()
    }
    match id {
        RowId::Core => Row::Core(read(bytes)),
        RowId::Cleared => Row::Cleared(read(bytes)),
        RowId::Person(h) => Row::Person(*h, read(bytes)),
        RowId::Member(n) => Row::Member(*n, read(bytes)),
        RowId::Cell(c) => Row::Cell(*c, read(bytes)),
    }
}
