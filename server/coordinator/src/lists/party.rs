//! A tally of its own, seen from the coordinator: what it serves, and whether it can be reached.
//!
//! While it is away, people leave all the same: what is served is recalled here, and everybody who
//! left is told to the tally before anything of it is served again.

use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use lethe_ledger::SnapshotRef;
use lethe_parts::snapshot;
use lethe_proto::catalogue::Versions;
use lethe_proto::ids::Digest;
use lethe_proto::lists::{ServedTables, items_digest};
use lethe_proto::message::Refusal;
use lethe_proto::tally::{
    HeldOf, HeldShown, SnapshotHead, TOGETHER, TallyRefusal, TallyReply, TallyRequest, TallyState,
    TallyStatus, TallyTables, TallyTerms,
};
use lethe_receipt::note::VerifierKey;
use lethe_receipt::snapshot::SnapshotStatement;

use super::keeper::{Now, Showing};
use super::link::{Broken, Line, Remembered};
use super::questions;
use crate::CoordinatorError;
use crate::fatal;

/// Longest wait for an answer that others wait behind.
pub(super) const QUICK: Duration = Duration::from_secs(5);

/// Longest wait for an answer that needs work: to fold, to solve, or to send tables.
pub(super) const SLOW: Duration = Duration::from_secs(600);

/// How far a number that the tally names may be above what is known here. It publishes when it is
/// asked to, so none that it has made is. Numbers that only grow must not be used up by one answer.
const AHEAD: u64 = 1 << 16;

/// A tally of its own.
pub(crate) struct Party {
    line: Box<dyn Line>,
    /// The coordinator's catalogue.
    pub(super) versions: RwLock<Arc<Versions>>,
    /// Names this data folder, where the tally sums masks of updates, too.
    masks: Option<[u8; 8]>,
    known: Mutex<Known>,
}

/// What is known of the tally.
#[derive(Default)]
struct Known {
    /// As it said when it was opened; none: it is away.
    terms: Option<TallyTerms>,
    /// Counts openings: what was asked in an earlier one says nothing any more.
    opening: u64,
    key: Option<String>,
    served: Option<Arc<Tables>>,
    /// The snapshot that was served last, also if it is recalled.
    last: Option<SnapshotRef>,
    recalled: u64,
    /// Number of the newest snapshot that devices have seen, or one more if that one is recalled.
    floor: u64,
    /// Everybody who left by a deletion, and when: told at each opening.
    leavers: Vec<Left>,
    /// Items that were taken down.
    taken_down: Vec<u32>,
    /// Why it is away.
    why: String,
    status: Option<TallyStatus>,
}

/// Somebody who left by a deletion.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub(super) handle: [u8; 16],
    /// In seconds since 1970.
    pub(super) at: u64,
    /// Number of the deletion.
    pub(super) by: u64,
}

/// Tables that are served, checked.
struct Tables {
    snapshot: SnapshotRef,
    tables: TallyTables,
}

/// How far what has to be told was told.
#[derive(Clone, Copy, Default)]
struct Told {
    leavers: usize,
    items: usize,
}

impl Known {
    /// Nothing up to this number is served any more.
    fn recall(&mut self, number: u64) {
        if number > self.recalled {
            self.recalled = number;
            self.floor = self.floor.max(number + 1);
        }
        let recalled = self.recalled;
        self.served = self.served.take().filter(|s| s.snapshot.number > recalled);
    }

    /// Whether the numbers that the tally names may be so; if not, why.
    fn believe(&self, state: &TallyState) -> Result<(), String> {
        let served = state.served.map_or(0, |s| s.number);
        let named = state.recalled.max(served);
        let most = self.floor.saturating_add(AHEAD);
        match named <= most {
            true => Ok(()),
            false => Err(format!(
                "it names snapshot {named}, expected {most} at most: its operator has to look why"
            )),
        }
    }

    /// What devices were given last is recalled here, and the tally went on without hearing of it:
    /// from which number on it may publish.
    fn unheard(&self, state: &TallyState) -> Option<u64> {
        let last = self.last?;
        // Of one that an older folder does not know, nobody knows which of them was recalled.
        let recalled = match last.bytes {
            0 => self.recalled,
            _ => last.number,
        };
        let served = state.served.map_or(0, |s| s.number);
        let unheard = recalled <= self.recalled && state.recalled < recalled;
        unheard.then(|| self.floor.max(served + 1))
    }

    /// What the tally says that it serves, if it is not recalled here.
    ///
    /// # Errors
    /// Why it cannot be so.
    fn learn(&mut self, state: &TallyState) -> Result<Option<SnapshotHead>, String> {
        self.believe(state)?;
        self.recall(state.recalled);
        let head = state.served.filter(|s| s.number > self.recalled);
        if head.is_none() {
            // It has nothing newer, and what it had is out.
            self.served = None;
        }
        Ok(head)
    }

    /// Whether a snapshot of this number and digest may follow what devices were given.
    fn may_follow(&self, number: u64, digest: Digest) -> bool {
        self.last.is_none_or(|last| {
            // Of one that an older folder does not know, the number is all that there is.
            let same = last.bytes == 0 || last.digest == digest;
            number > last.number || number == last.number && same
        })
    }

    fn told_all(&self, told: &Told) -> bool {
        told.leavers == self.leavers.len() && told.items == self.taken_down.len()
    }
}

impl Party {
    /// Nothing is asked yet. `floor` is the highest number of a snapshot that devices have seen.
    pub(crate) fn new(
        line: Box<dyn Line>,
        versions: Arc<Versions>,
        masks: Option<[u8; 8]>,
        floor: u64,
    ) -> Self {
        let Remembered { key, last } = line.remembered();
        let known = Known {
            key,
            // Of a data folder that was restored: devices hold a newer one, which nobody here knows
            // but for its number.
            last: match last {
                Some(last) if last.number + 1 >= floor => Some(last),
                _ => (floor > 0).then(|| SnapshotRef {
                    number: floor,
                    ..SnapshotRef::default()
                }),
            },
            // Older ones are not served again, whatever the tally's folder holds.
            recalled: floor.saturating_sub(1),
            floor,
            why: "not asked yet".into(),
            ..Known::default()
        };
        Self {
            line,
            versions: RwLock::new(versions),
            masks,
            known: Mutex::new(known),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        fatal::lock(&self.known)
    }

    /// For tests: the tally behind a line that does not leave this process.
    #[cfg(test)]
    pub(super) fn tally(&self) -> Option<Box<dyn std::ops::Deref<Target = lethe_tally::Tally>>> {
        self.line.tally()
    }

    /// Where it is.
    pub(super) fn place(&self) -> String {
        self.line.place()
    }

    /// Why it is away; none: it is not.
    pub(super) fn away(&self) -> Option<String> {
        let known = self.known();
        known.terms.is_none().then(|| known.why.clone())
    }

    /// What it said when it was opened.
    pub(super) fn terms(&self) -> Option<TallyTerms> {
        self.known().terms.clone()
    }

    /// It can be asked.
    ///
    /// # Errors
    /// [`CoordinatorError::TallyAway`].
    pub(super) fn is_there(&self) -> Result<(), CoordinatorError> {
        match self.away() {
            Some(why) => Err(self.away_error(why)),
            None => Ok(()),
        }
    }

    /// Key that verifies its snapshots; empty before the first contact.
    pub(super) fn key(&self) -> String {
        self.known().key.clone().unwrap_or_default()
    }

    /// What is served and recalled.
    pub(super) fn now(&self) -> Now {
        let known = self.known();
        let showing = match &known.served {
            Some(tables) => Showing::Snapshot(tables.snapshot),
            None if known.recalled > 0 => Showing::Out,
            None => Showing::Nothing,
        };
        Now {
            showing,
            recalled: known.recalled,
        }
    }

    /// The signed note of what is served.
    pub(super) fn note(&self) -> Option<String> {
        let known = self.known();
        known.served.as_ref().map(|s| s.tables.note.clone())
    }

    /// The snapshot that was served last.
    pub(super) fn last(&self) -> Option<SnapshotRef> {
        self.known().last
    }

    /// The tables of a snapshot, for a device that has an earlier one.
    pub(super) fn tables(&self, number: u64, have: u64) -> ServedTables {
        let served = self.known().served.clone();
        let Some(served) = served.filter(|s| s.snapshot.number == number) else {
            return ServedTables::None;
        };
        if have == number {
            return ServedTables::Same;
        }
        let tables = &served.tables;
        let note = tables.note.clone();
        let delta = tables.deltas.iter().find(|d| d.from == have);
        match delta.filter(|d| d.bytes.len() < tables.bytes.len()) {
            Some(delta) => ServedTables::Delta {
                note,
                bytes: delta.bytes.clone(),
            },
            None => ServedTables::Whole {
                note,
                bytes: tables.bytes.clone(),
            },
        }
    }

    pub(super) fn away_error(&self, why: impl Into<String>) -> CoordinatorError {
        CoordinatorError::TallyAway {
            place: self.place(),
            why: why.into(),
        }
    }

    /// Without asking whether the line is open.
    pub(super) fn raw(
        &self,
        request: TallyRequest,
        within: Duration,
    ) -> Result<TallyReply, CoordinatorError> {
        match self.line.call(request, within) {
            Ok(TallyReply::Refused { code, message }) => {
                if code == TallyRefusal::NotOpen {
                    self.close("the tally has forgotten this connection");
                }
                Err(refused(code, message))
            }
            Ok(reply) => Ok(reply),
            Err(Broken(why)) => {
                self.close(&why);
                Err(self.away_error(why))
            }
        }
    }

    /// Asks for something.
    ///
    /// # Errors
    /// [`CoordinatorError::TallyAway`], and what the tally refuses.
    pub(super) fn ask(
        &self,
        request: TallyRequest,
        within: Duration,
    ) -> Result<TallyReply, CoordinatorError> {
        self.is_there()?;
        self.raw(request, within)
    }

    /// It is away from now on.
    fn close(&self, why: &str) {
        let mut known = self.known();
        if known.terms.take().is_some() {
            tracing::warn!(tally = self.place(), "the tally is away: {why}");
        }
        known.opening += 1;
        known.why = why.to_owned();
    }

    /// An answer of another kind than was asked for.
    pub(super) fn unexpected<T>(&self) -> Result<T, CoordinatorError> {
        self.close("it answered something else than was asked: versions differ");
        Err(self.away_error("it answered something else than was asked: versions differ"))
    }

    /// What it says cannot be so: it is away until it says something else.
    fn disbelieve<T>(&self, why: &str) -> Result<T, CoordinatorError> {
        self.close(why);
        Err(self.away_error(why))
    }

    fn done(&self, request: TallyRequest, within: Duration) -> Result<(), CoordinatorError> {
        let before = self.known().opening;
        match self.raw(request, within)? {
            TallyReply::Done(state) => {
                let learnt = {
                    let mut known = self.known();
                    match known.opening == before {
                        true => known.learn(&state).map(drop),
                        false => Ok(()),
                    }
                };
                learnt.or_else(|why| self.disbelieve(&why))
            }
            _ => self.unexpected(),
        }
    }

    /// Opens the line, if it is not open. Everybody who left is told first.
    ///
    /// # Errors
    /// [`CoordinatorError::TallyAway`]: try again later. [`CoordinatorError::OtherTallyKey`].
    pub(super) fn open(&self) -> Result<(), CoordinatorError> {
        if self.away().is_none() {
            return Ok(());
        }
        self.line.connect().map_err(|Broken(why)| {
            self.close(&why);
            self.away_error(why)
        })?;
        self.teach()?;
        let mut terms = self.greet()?;
        let unheard = {
            let known = self.known();
            let believed = known.believe(&terms.state);
            believed.map(|()| known.unheard(&terms.state))
        };
        if let Some(floor) = unheard.or_else(|why| self.disbelieve(&why))? {
            // Receipts say that it is recalled: the tally has to say so, too.
            self.known().floor = floor;
            terms = self.greet()?;
        }
        let mut told = Told::default();
        loop {
            {
                let mut known = self.known();
                if known.told_all(&told) {
                    known.opening += 1;
                    known.terms = Some(terms);
                    known.why.clear();
                    break;
                }
            }
            self.tell(&mut told)?;
        }
        tracing::info!(tally = self.place(), "the tally is there");
        Ok(())
    }

    /// The tables of the snapshot of this number, if it is served.
    pub(super) fn items_in_tables(&self, number: u64) -> Option<usize> {
        let served = self.known().served.clone();
        let served = served.filter(|s| s.snapshot.number == number)?;
        Some(snapshot::decode(&served.tables.bytes).ok()?.items())
    }

    /// Says from which number on the tally may publish, and hears what it asks for.
    fn greet(&self) -> Result<TallyTerms, CoordinatorError> {
        let request = TallyRequest::Open {
            items: items_digest(self.versions().entries().iter().map(|e| e.id.as_str())),
            floor: self.known().floor,
        };
        let TallyReply::Opened(terms) = self.raw(request, QUICK)? else {
            return self.unexpected();
        };
        self.check_key(&terms.key)?;
        Ok(terms)
    }

    /// Tells the next of those that the tally has not heard of in this opening.
    fn tell(&self, told: &mut Told) -> Result<(), CoordinatorError> {
        let left: Vec<Left> = {
            let known = self.known();
            let rest = known.leavers.iter().skip(told.leavers);
            rest.take(TOGETHER).copied().collect()
        };
        if !left.is_empty() {
            // First: what was asked for before, and is on its way still, comes too late then.
            self.leave_sums(left.iter().map(|l| (l.handle, l.by)).collect())?;
            let leavers = left.iter().map(|l| (l.handle, l.at)).collect();
            self.done(TallyRequest::LeaveOlder { leavers }, SLOW)?;
            told.leavers += left.len();
            return Ok(());
        }
        let items: Vec<u32> = {
            let known = self.known();
            let rest = known.taken_down.iter().skip(told.items);
            rest.take(TOGETHER).copied().collect()
        };
        if !items.is_empty() {
            let count = items.len();
            self.done(TallyRequest::TakeDown { items }, SLOW)?;
            told.items += count;
        }
        Ok(())
    }

    fn check_key(&self, key: &str) -> Result<(), CoordinatorError> {
        let known = self.known().key.clone();
        match known {
            Some(known) if known == key => Ok(()),
            Some(known) => {
                self.close("it signs with another key than before");
                Err(CoordinatorError::OtherTallyKey {
                    known,
                    got: key.to_owned(),
                })
            }
            None => {
                VerifierKey::parse(key)?;
                self.line.remember(&Remembered {
                    key: Some(key.to_owned()),
                    last: None,
                })?;
                self.known().key = Some(key.to_owned());
                Ok(())
            }
        }
    }

    /// What the journal says of before this start.
    pub(super) fn catch_up(&self, leavers: Vec<Left>, items: Vec<u32>) {
        let mut known = self.known();
        known.leavers.extend(leavers);
        known.taken_down.extend(items);
    }

    /// These leave, and these items go. When this returns, nothing that has them in it is served
    /// here. A tally that is away hears of it before anything of it is served again.
    pub(super) fn forget(&self, left: &[Left], items: &[u32]) {
        let open = {
            let mut known = self.known();
            known.leavers.extend_from_slice(left);
            known.taken_down.extend_from_slice(items);
            known.terms.is_some()
        };
        if !open {
            self.recall_served();
            return;
        }
        let told = self.tell_now(left, items);
        if let Err(e) = told {
            tracing::warn!("{e}; it hears of who has left when it is back");
            // It may have been refused, and not lost: the next opening tells it again.
            self.close("it did not take a deletion");
            self.recall_served();
        }
    }

    fn tell_now(&self, left: &[Left], items: &[u32]) -> Result<(), CoordinatorError> {
        for chunk in left.chunks(TOGETHER) {
            // Whatever they were in.
            self.leave_sums(chunk.iter().map(|l| (l.handle, u64::MAX)).collect())?;
            let handles = chunk.iter().map(|l| l.handle).collect();
            self.done(TallyRequest::Leave { handles }, QUICK)?;
        }
        for chunk in items.chunks(TOGETHER) {
            let items = chunk.to_vec();
            self.done(TallyRequest::TakeDown { items }, QUICK)?;
        }
        Ok(())
    }

    /// These leave the sums of masks; a tally that makes none may be of an older version.
    fn leave_sums(&self, leavers: Vec<([u8; 16], u64)>) -> Result<(), CoordinatorError> {
        let Some(lineage) = self.masks else {
            return Ok(());
        };
        let request = TallyRequest::LeaveSums {
            lineage,
            leavers,
            left: self.have_left(),
        };
        self.done(request, QUICK)
    }

    /// The highest number of a deletion by which somebody has left.
    pub(super) fn have_left(&self) -> u64 {
        let known = self.known();
        known.leavers.iter().map(|l| l.by).max().unwrap_or(0)
    }

    /// Names this data folder, where the tally sums masks.
    pub(super) fn lineage(&self) -> Option<[u8; 8]> {
        self.masks
    }

    /// Nothing up to this number is served any more, whether the tally has heard of it or not.
    pub(super) fn recall(&self, number: u64) {
        self.known().recall(number);
    }

    /// Somebody has left who was in the newest snapshot, if `shown`.
    pub(super) fn recall_shown(&self, shown: bool) {
        if shown {
            self.recall_served();
        }
    }

    fn recall_served(&self) {
        let mut known = self.known();
        if let Some(last) = known.last {
            known.recall(last.number);
        }
    }

    /// Somebody takes part no longer; no deletion.
    ///
    /// # Errors
    /// As [`Self::ask`]: it has not happened then, or is said once more.
    pub(super) fn leave(&self, handle: [u8; 16]) -> Result<(), CoordinatorError> {
        self.is_there()?;
        let handles = vec![handle];
        self.done(TallyRequest::Leave { handles }, QUICK)
    }

    /// What it has of these. A tally that is away may have all of them, in all that was served.
    pub(super) fn held(&self, of: &[HeldOf]) -> Vec<HeldShown> {
        let mut out = vec![HeldShown::default(); of.len()];
        for request in questions::requests(of) {
            let asks = request.iter().map(|part| part.asks.clone()).collect();
            let held = match self.ask(TallyRequest::Held { of: asks }, QUICK) {
                Ok(TallyReply::Held(held)) if held.len() == request.len() => held,
                _ => {
                    if self.away().is_none() {
                        // What is not known is recalled: the tally hears of it when it is back.
                        self.close("it does not say what it has of people");
                    }
                    let unknown = HeldShown {
                        held: true,
                        shown: self.last().is_some(),
                        ..HeldShown::default()
                    };
                    vec![unknown; request.len()]
                }
            };
            for (part, held) in request.iter().zip(&held) {
                out[part.of] = questions::either(&out[part.of], held);
            }
        }
        out
    }

    /// Lets the tally do what is due, and fetches what it serves if that is new. Returns it; to be
    /// served once [`Self::install`] says so.
    ///
    /// # Errors
    /// As [`Self::ask`]; [`CoordinatorError::WrongTables`] for tables that the tally did not sign.
    pub(super) fn work(&self) -> Result<Option<Fetched>, CoordinatorError> {
        let opening = self.known().opening;
        let TallyReply::State(state) = self.ask(TallyRequest::Work, SLOW)? else {
            return self.unexpected();
        };
        let learnt = {
            let mut known = self.known();
            if known.opening != opening {
                return Ok(None);
            }
            let has = known.served.as_ref().map(|s| s.snapshot.number);
            let head = known.learn(&state);
            head.map(|head| head.filter(|h| Some(h.number) != has))
        };
        let head = match learnt {
            Ok(Some(head)) => head,
            Ok(None)
                if state
                    .served
                    .is_some_and(|s| s.number <= self.now().recalled) =>
            {
                // The next opening tells it which number is the lowest.
                return self.disbelieve("it serves a snapshot that is recalled here");
            }
            Ok(None) => return Ok(None),
            Err(why) => return self.disbelieve(&why),
        };
        let request = TallyRequest::Tables {
            number: head.number,
        };
        let TallyReply::Tables(tables) = self.ask(request, SLOW)? else {
            return self.unexpected();
        };
        // Another one is served meanwhile.
        let Some(tables) = tables else {
            return Ok(None);
        };
        let tables = self.checked(head.number, tables)?;
        Ok(Some(Fetched { opening, tables }))
    }

    fn checked(&self, number: u64, tables: TallyTables) -> Result<Tables, CoordinatorError> {
        let wrong = |why: String| CoordinatorError::WrongTables { number, why };
        let key = VerifierKey::parse(&self.key())?;
        let statement =
            SnapshotStatement::open(&tables.note, &key).map_err(|e| wrong(e.to_string()))?;
        if statement.number != number {
            return Err(wrong(format!("the note is about {}", statement.number)));
        }
        if !self.known().may_follow(number, Digest(statement.snapshot)) {
            return Err(wrong(
                "devices were given a newer one, or another of this number".into(),
            ));
        }
        if snapshot::digest(&tables.bytes) != statement.snapshot {
            return Err(wrong("the bytes are not those of the note".into()));
        }
        Ok(Tables {
            snapshot: SnapshotRef {
                number,
                digest: Digest(statement.snapshot),
                bytes: tables.bytes.len() as u64,
                people: statement.people,
            },
            tables,
        })
    }

    /// Serves what was fetched, unless somebody has left since it was asked for.
    ///
    /// # Errors
    /// What it is cannot be kept: nothing newer is served.
    pub(super) fn install(
        &self,
        fetched: Fetched,
    ) -> Result<Option<SnapshotRef>, CoordinatorError> {
        let snapshot = fetched.tables.snapshot;
        // Before any device has it: a deletion that comes when the tally is away has to name it.
        self.line.remember(&Remembered {
            key: self.known().key.clone(),
            last: Some(snapshot),
        })?;
        let mut known = self.known();
        if known.opening != fetched.opening || snapshot.number <= known.recalled {
            return Ok(None);
        }
        known.floor = known.floor.max(snapshot.number);
        known.last = Some(snapshot);
        known.served = Some(Arc::new(fetched.tables));
        Ok(Some(snapshot))
    }

    /// How it is; what it said last if it is away.
    pub(super) fn status(&self) -> TallyStatus {
        if let Ok(TallyReply::Status(status)) = self.ask(TallyRequest::Status, QUICK) {
            self.known().status = Some(status.clone());
            return status;
        }
        self.status_known()
    }

    /// What it said last, without asking.
    pub(super) fn status_known(&self) -> TallyStatus {
        self.known().status.clone().unwrap_or_default()
    }
}

/// Tables that are not served yet.
pub(super) struct Fetched {
    opening: u64,
    tables: Tables,
}

impl Fetched {
    pub(super) fn number(&self) -> u64 {
        self.tables.snapshot.number
    }
}

fn refused(code: TallyRefusal, message: String) -> CoordinatorError {
    let code = match code {
        TallyRefusal::Invalid => Refusal::Invalid,
        TallyRefusal::Forbidden => Refusal::Forbidden,
        TallyRefusal::NotOpen | TallyRefusal::Busy | TallyRefusal::OtherCatalogue => Refusal::Busy,
        TallyRefusal::Internal => Refusal::Internal,
    };
    CoordinatorError::refuse(code, format!("the tally: {message}"))
}
