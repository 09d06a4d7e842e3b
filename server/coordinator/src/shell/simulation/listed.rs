//! What is expected of lists, and what must hold of them.

use std::collections::{BTreeMap, BTreeSet};

use lethe_learn::seed::{Seed, Stream};
use lethe_ledger::{CatalogueVersion, ListsRecord, SnapshotRef, State};
use lethe_proto::admin::DeletionPhase;
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::{Digest, SubjectId};

use lethe_tally::TallyError;

use super::super::Shell;
use super::lists::Queued;
use super::world::{BEGIN, Simulation};
use crate::lists::Lists;

/// Which lists a simulation has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Without,
    /// Everybody counts alone.
    Alone,
    /// Cells of two. Who comes together is drawn with a secret that is not the seed's: a seed has
    /// several stories then.
    Cells,
    /// A tally of its own, where everybody counts alone.
    Apart,
    /// A tally of its own, with cells.
    ApartCells,
}

impl Kind {
    /// Of seeds with a tally of its own.
    pub(super) fn apart(seed: u64) -> Self {
        match seed % 3 {
            2 => Self::ApartCells,
            _ => Self::Apart,
        }
    }

    pub(super) fn is_apart(self) -> bool {
        matches!(self, Self::Apart | Self::ApartCells)
    }

    pub(super) fn has_cells(self) -> bool {
        matches!(self, Self::Cells | Self::ApartCells)
    }

    pub(super) fn of(seed: u64) -> Self {
        match seed % 7 {
            1 => Self::Alone,
            4 => Self::Cells,
            _ => Self::Without,
        }
    }
}

/// Whether the tally has something of somebody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stands {
    #[default]
    Gone,
    /// A write failed, or a deletion is on its way.
    Perhaps,
    There,
}

/// What a deletion's record has to say.
#[derive(Clone, Copy, Debug, Default)]
struct Owed {
    held: bool,
    shown: bool,
}

/// What comes back with an older folder.
#[derive(Clone, Default)]
struct Model {
    stands: BTreeMap<SubjectId, Stands>,
    /// Whose membership began in the second in which a deletion was accepted: it may end with the
    /// next start.
    same_second: BTreeSet<SubjectId>,
    owed: BTreeMap<u64, Owed>,
    executed: BTreeSet<u64>,
    taken_down: BTreeSet<String>,
    /// The snapshot that was served when this was looked at last.
    newest: Option<u64>,
    /// As [`Listed::moves`], when the folder was copied.
    moves: BTreeMap<SubjectId, u64>,
}

struct Shown {
    digest: Digest,
    /// None: the tally serves another one, or its folder has forgotten it.
    members: Option<BTreeSet<SubjectId>>,
}

impl Shown {
    /// Whether somebody is in it for certain.
    fn has(&self, subject: &SubjectId) -> bool {
        self.members.as_ref().is_some_and(|m| m.contains(subject))
    }
}

/// What the tally's folder held of somebody when it was copied.
#[derive(Clone, Default)]
struct TallySaved {
    moves: BTreeMap<SubjectId, u64>,
    /// The highest number of a snapshot.
    highest: u64,
}

pub(super) struct Listed {
    pub(super) kind: Kind,
    pub(super) dice: Stream,
    pub(super) queue: Vec<Queued>,
    /// People whom only the tally knows: with them there are enough for cells.
    pub(super) crowd: Vec<SubjectId>,
    model: Model,
    saved: Option<Model>,
    /// Every snapshot that was ever served.
    shown: BTreeMap<u64, Shown>,
    /// Those that must not be served any more.
    never: BTreeSet<u64>,
    recalled: u64,
    /// How often somebody's standing has changed.
    moves: BTreeMap<SubjectId, u64>,
    /// In which second somebody was last deleted.
    deleted_in: BTreeMap<SubjectId, u64>,
    /// Who left by a deletion, and not only by a withdrawal.
    deleted: BTreeSet<SubjectId>,
    tally_saved: Option<TallySaved>,
    /// An older folder came back, with the contributions in it.
    is_older: bool,
}

impl Listed {
    pub(super) fn new(seed: u64, kind: Kind) -> Self {
        let crowd = if kind.has_cells() { 7 } else { 0 };
        let name = |n: usize| SubjectId::new(format!("c{n}")).unwrap();
        Self {
            kind,
            dice: Seed::from_u64(seed).derive("lists", &[]).rng(),
            queue: vec![],
            crowd: (0..crowd).map(name).collect(),
            model: Model::default(),
            saved: None,
            shown: BTreeMap::new(),
            never: BTreeSet::new(),
            recalled: 0,
            moves: BTreeMap::new(),
            deleted_in: BTreeMap::new(),
            deleted: BTreeSet::new(),
            tally_saved: None,
            is_older: false,
        }
    }

    /// Contributions are in the coordinator's own folder.
    pub(super) fn is_embedded(&self) -> bool {
        self.is_on() && !self.kind.is_apart()
    }

    pub(super) fn is_on(&self) -> bool {
        self.kind != Kind::Without
    }

    pub(super) fn back_up(&mut self) {
        let moves = self.moves.clone();
        self.saved = Some(Model {
            moves,
            ..self.model.clone()
        });
    }

    /// An older folder came back. Numbers, and what must not be served, are what they were; and so
    /// is what a tally of its own has. Keys are those of now: who left since is not there any more,
    /// and neither is what was recalled.
    pub(super) fn restore(&mut self) {
        let before = std::mem::take(&mut self.model);
        self.model = self.saved.take().unwrap_or_default();
        if self.kind.is_apart() {
            self.model.stands = before.stands;
            self.model.same_second = before.same_second;
            self.model.taken_down.extend(before.taken_down);
            return;
        }
        self.is_older = true;
        self.model.newest = None;
        // What was executed since is executed again, and finds nothing.
        let waiting = self.model.owed.iter_mut();
        for (_, owed) in waiting.filter(|o| before.executed.contains(o.0)) {
            *owed = Owed::default();
        }
        for (subject, stands) in &mut self.model.stands {
            if self.model.moves.get(subject) != self.moves.get(subject) {
                *stands = Stands::Perhaps;
            }
        }
    }

    pub(super) fn tally_backed_up(&mut self) {
        self.tally_saved = Some(TallySaved {
            moves: self.moves.clone(),
            highest: self.shown.keys().next_back().copied().unwrap_or(0),
        });
    }

    /// An older folder of the tally came back. Everybody who was deleted is told to it before
    /// anything of it is believed; a withdrawal is not.
    pub(super) fn tally_restored(&mut self) {
        let saved = self.tally_saved.take().unwrap_or_default();
        for (subject, moves) in &self.moves {
            if saved.moves.get(subject) == Some(moves) {
                continue;
            }
            let stands = self.model.stands.entry(subject.clone()).or_default();
            if *stands != Stands::Gone || !self.deleted.contains(subject) {
                *stands = Stands::Perhaps;
            }
        }
        // Nor does it know any more what requests that wait are about.
        let executed = self.model.executed.clone();
        let waiting = self.model.owed.iter_mut();
        for (_, owed) in waiting.filter(|o| !executed.contains(o.0)) {
            *owed = Owed::default();
        }
        // Of these it does not know that they were there.
        for (_, shown) in self.shown.iter_mut().filter(|s| *s.0 > saved.highest) {
            shown.members = None;
        }
    }

    /// Somebody contributed, at this second; `sure`: that was acknowledged.
    pub(super) fn came(&mut self, state: &State, subject: &SubjectId, second: u64, sure: bool) {
        let model = &mut self.model;
        let stands = model.stands.entry(subject.clone()).or_default();
        if *stands == Stands::There {
            return;
        }
        *self.moves.entry(subject.clone()).or_default() += 1;
        self.deleted.remove(subject);
        let mut all = state.deletions().values();
        let same =
            all.any(|d| d.request.subject() == Some(subject) && d.accepted_at / 1000 >= second);
        let lately = self.deleted_in.get(subject).is_some_and(|s| *s >= second);
        if same || lately {
            model.same_second.insert(subject.clone());
        }
        *stands = match sure && !model.same_second.contains(subject) {
            true => Stands::There,
            false => Stands::Perhaps,
        };
    }

    /// Somebody asked to leave; `sure`: that was acknowledged.
    pub(super) fn left(&mut self, subject: &SubjectId, sure: bool) {
        if sure {
            self.gone(subject);
            return;
        }
        let stands = self.model.stands.entry(subject.clone()).or_default();
        if *stands == Stands::There {
            *stands = Stands::Perhaps;
            *self.moves.entry(subject.clone()).or_default() += 1;
        }
    }

    fn gone(&mut self, subject: &SubjectId) {
        self.model.stands.insert(subject.clone(), Stands::Gone);
        self.model.same_second.remove(subject);
        *self.moves.entry(subject.clone()).or_default() += 1;
        let with = self.shown.iter().filter(|(_, s)| s.has(subject));
        self.never.extend(with.map(|(n, _)| *n));
    }

    fn is_gone(&self, subject: &SubjectId) -> bool {
        let stands = self.model.stands.get(subject);
        stands.is_none_or(|s| *s == Stands::Gone)
    }

    /// What the record of a request that is executed now would have to say.
    fn owes(&self, request: &DeletionRequest) -> Owed {
        let newest = self.model.newest.and_then(|n| self.shown.get(&n));
        let Some(subject) = request.subject() else {
            let items = request.items().iter();
            let held = items
                .filter(|i| !self.model.taken_down.contains(*i))
                .count()
                > 0;
            return Owed {
                held,
                shown: held && newest.is_some(),
            };
        };
        let stands = self.model.stands.get(subject).copied().unwrap_or_default();
        Owed {
            held: stands == Stands::There,
            shown: newest.is_some_and(|s| s.has(subject)),
        }
    }

    fn executed(&mut self, request: &DeletionRequest, second: u64) {
        match request.subject() {
            Some(subject) => {
                self.gone(subject);
                self.deleted.insert(subject.clone());
                self.deleted_in.insert(subject.clone(), second);
            }
            None => {
                let items = request.items().iter().cloned();
                let before = self.model.taken_down.len();
                self.model.taken_down.extend(items);
                if self.model.taken_down.len() > before {
                    self.never.extend(self.shown.keys());
                }
            }
        }
    }
}

impl Simulation {
    fn everybody(&self) -> BTreeSet<SubjectId> {
        let devices = self.devices.iter().map(|d| d.subject.clone());
        devices.chain(self.listed.crowd.iter().cloned()).collect()
    }

    pub(super) fn second(&self) -> u64 {
        (BEGIN + self.now + self.leapt) / 1000
    }

    /// Nobody who was deleted is known, and what is served is what may be.
    pub(super) fn look_at_lists(&mut self, shell: &Shell) {
        let Some(lists) = &shell.lists else {
            return;
        };
        self.published(lists);
        self.deleted(&shell.state());
        self.listed.model.newest = lists.newest().map(|s| s.number);
        self.wait_for_execution(&shell.state());
        let state = lists.state(shell);
        assert!(
            state.recalled >= self.listed.recalled,
            "{}: {} was recalled, and {} is now",
            self.story(),
            self.listed.recalled,
            state.recalled
        );
        if state.recalled > self.listed.recalled {
            self.count.one("lists recalled");
        }
        self.listed.recalled = state.recalled;
        if let Some(number) = state.served {
            assert!(
                number > state.recalled && !self.listed.never.contains(&number),
                "{}: lists {number} were recalled, and are served",
                self.story()
            );
        }
        self.look_at_tables(shell, lists);
        if self.events.is_multiple_of(16) {
            self.held(lists);
        }
    }

    /// Every snapshot is noted, with who counts in it.
    fn published(&mut self, lists: &Lists) {
        let Some(SnapshotRef {
            number,
            digest,
            people,
            ..
        }) = lists.newest()
        else {
            return;
        };
        if let Some(before) = self.listed.shown.get(&number) {
            assert_eq!(before.digest, digest, "{}: lists {number}", self.story());
            return;
        }
        let highest = self.listed.shown.keys().next_back().copied().unwrap_or(0);
        assert!(
            number > highest,
            "{}: lists {number} come after {highest}",
            self.story()
        );
        self.count.one("lists published");
        let members = self.members_of(lists, number);
        let Ok(members) = members else { return };
        if let Some(members) = &members {
            let members_of = format!("people of lists {number}: {members:?}");
            let n = members.len() as u64;
            assert_eq!(people, n, "{}: {members_of}", self.story());
        }
        self.note(format!("{} lists {number}: {people} people", self.now));
        self.listed.shown.insert(number, Shown { digest, members });
    }

    /// Who is in a snapshot; none: that is not known, and will not be.
    fn members_of(
        &self,
        lists: &Lists,
        number: u64,
    ) -> Result<Option<BTreeSet<SubjectId>>, TallyError> {
        // A process of its own may be down, or further.
        let Some(tally) = lists.tally().filter(|_| self.tally_serves(number)) else {
            return Ok(None);
        };
        let second = self.second();
        let mut members = BTreeSet::new();
        for subject in self.everybody() {
            // While the disk is dead nobody knows.
            match tally.held(&lists.handle(&subject), second) {
                Ok(held) if held.shown => drop(members.insert(subject)),
                Ok(_) => {}
                Err(_) if self.apart.is_some() => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        Ok(Some(members))
    }

    /// Deletions that are new, or were executed.
    fn deleted(&mut self, state: &State) {
        for (id, d) in state.deletions() {
            if !self.listed.model.owed.contains_key(id) {
                let owed = match self.is_going(state, &d.request) {
                    true => Owed::default(),
                    false => self.listed.owes(&d.request),
                };
                self.listed.model.owed.insert(*id, owed);
                if let Some(subject) = d.request.subject() {
                    self.listed.left(subject, false);
                }
            }
        }
        for (id, d) in state.deletions() {
            if d.exact_after_ms.is_some() && self.listed.model.executed.insert(*id) {
                let second = self.second();
                match d.request.subject() {
                    // An older folder of the coordinator does it again. The tally has its own, and
                    // may not hear of it: the journal has the first time.
                    Some(subject) if self.is_again(*id) => self.listed.left(subject, false),
                    Some(subject) => {
                        self.listed.executed(&d.request, second);
                        self.noted_left(subject);
                    }
                    None => self.listed.executed(&d.request, second),
                }
                self.count
                    .add("exact while away", u64::from(self.is_away()));
                let owed = self.listed.model.owed[id];
                let record = state.lists_of(*id);
                let record =
                    record.unwrap_or_else(|| panic!("{}: {id} has no lists", self.story()));
                let left = &record.left;
                assert!(
                    (left.held || !owed.held) && (left.recalled.is_some() || !owed.shown),
                    "{}: deletion {id} is owed {owed:?}, and says {left:?}",
                    self.story()
                );
                let known = left.recalled.is_none_or(|r| self.was_served(&r));
                assert!(known, "{}: deletion {id}: {left:?}", self.story());
            }
            if d.phase == DeletionPhase::Done {
                let record = state.lists_of(*id).unwrap();
                let whole = self.is_whole(record);
                assert!(whole, "{}: {id} is done: {record:?}", self.story());
            }
        }
    }

    /// What a request is about goes already, with another one.
    fn is_going(&self, state: &State, request: &DeletionRequest) -> bool {
        let model = &self.listed.model;
        let mut going = model.owed.keys().filter(|id| !model.executed.contains(id));
        going.any(|id| {
            let other = state.deletions().get(id).map(|d| &d.request);
            other.is_some_and(|other| match request.subject() {
                Some(subject) => other.subject() == Some(subject),
                None => other.subject().is_none(),
            })
        })
    }

    /// Where deletions gather, snapshots come and go meanwhile.
    fn wait_for_execution(&mut self, state: &State) {
        if state.core().executing.is_some() {
            return;
        }
        for (id, d) in state.to_execute() {
            let shown = self.listed.owes(&d.request).shown;
            // Who withdraws meanwhile has nothing left to be deleted.
            let withdrew = d.request.subject().is_some_and(|s| self.listed.is_gone(s));
            if let Some(owed) = self.listed.model.owed.get_mut(&id) {
                owed.shown = shown;
                owed.held &= !withdrew;
            }
        }
    }

    /// One that was recalled before anybody saw it has no bytes any more.
    fn was_served(&self, snapshot: &SnapshotRef) -> bool {
        match self.listed.shown.get(&snapshot.number) {
            // Of an older folder the number is known, and no more.
            Some(_) if snapshot.bytes == 0 && snapshot.digest == Digest::default() => {
                self.apart.is_some() || self.listed.is_older
            }
            Some(shown) => shown.digest == snapshot.digest,
            None => snapshot.bytes == 0,
        }
    }

    fn is_whole(&self, record: &ListsRecord) -> bool {
        let Some(recalled) = &record.left.recalled else {
            return record.is_whole();
        };
        record.whole.is_some_and(|(snapshot, _)| {
            snapshot.number > recalled.number && self.was_served(&snapshot)
        })
    }

    fn held(&mut self, lists: &Lists) {
        if !self.tally_is_told(lists) {
            return;
        }
        let Some(tally) = lists.tally() else { return };
        let second = self.second();
        for subject in self.everybody() {
            let Ok(held) = tally.held(&lists.handle(&subject), second) else {
                return;
            };
            let stands = self.listed.model.stands.get(&subject);
            let stands = stands.copied().unwrap_or_default();
            let right = match stands {
                Stands::There => held.held,
                Stands::Gone => !held.held,
                Stands::Perhaps => true,
            };
            assert!(right, "{}: {subject} is {stands:?}: {held:?}", self.story());
        }
        for item in &self.listed.model.taken_down {
            let place = item.parse().unwrap();
            let Ok(held) = tally.held_items(&[place], second) else {
                return;
            };
            assert!(!held.held, "{}: item {item} is back", self.story());
        }
    }

    /// The sums are those of who counts, and everybody who counts is in what is served.
    pub(super) fn lists_at_the_end(&mut self, shell: &Shell) {
        let Some(lists) = &shell.lists else {
            return;
        };
        if self.apart.is_some() {
            // The line may have to be opened first.
            let _ = lists.do_what_is_due(shell);
        }
        let mut looks = 0;
        while lists.do_what_is_due(shell).unwrap() {
            looks += 1;
            assert!(looks < 3, "{}: lists are due forever", self.story());
        }
        let told = self.tally_is_told(lists);
        assert!(told, "{}: the tally is away", self.story());
        self.look_at_lists(shell);
        self.held(lists);
        let status = lists.status(shell).unwrap();
        assert_eq!(
            status.counting,
            status.snapshot_people,
            "{}: {status:?}",
            self.story()
        );
        let tally = lists.tally().unwrap();
        let folded = tally.refold(self.second()).unwrap().unwrap();
        let all = [folded.stated, folded.memory, folded.folder];
        assert!(!all.contains(&Some(false)), "{}: {folded:?}", self.story());
        let served = lists.newest().is_some();
        // A longer catalogue has other sums than the snapshot, until the next one is made.
        let grew = shell.catalogue.newest() > CatalogueVersion(1);
        let said = folded.stated.is_some() == served || (grew && folded.stated.is_none());
        assert!(said, "{}: {folded:?}", self.story());
        self.count.add("lists compared", u64::from(served));
    }

    /// Nothing has changed. One snapshot is made all the same: settings may be others.
    pub(super) fn lists_again(&mut self, shell: &Shell, before: Option<u64>) {
        let Some(lists) = &shell.lists else {
            return;
        };
        let now = lists.newest().map(|s| s.number);
        if self.apart.is_some() {
            // It is fetched again, and nothing else happens.
            assert_eq!(now, None, "{}: lists after a start", self.story());
            let fetched = lists.do_what_is_due(shell).unwrap();
            let now = lists.newest().map(|s| s.number);
            assert_eq!(fetched, before.is_some(), "{}: {now:?}", self.story());
            assert_eq!(now, before, "{}: lists after a start", self.story());
            let again = lists.do_what_is_due(shell).unwrap();
            assert!(!again, "{}: lists are published for nothing", self.story());
            return;
        }
        assert_eq!(now, before, "{}: lists after a start", self.story());
        let again = lists.do_what_is_due(shell).unwrap();
        // With noise each one costs: a start makes none.
        let another = before.is_some() && self.config.lists.noise.is_none();
        assert_eq!(again, another, "{}: lists again", self.story());
        let again = lists.do_what_is_due(shell).unwrap();
        assert!(!again, "{}: lists are published for nothing", self.story());
    }
}
