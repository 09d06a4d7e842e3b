//! The shell of the ledger: decide, write, apply, effects.
//!
//! Two locks. Whoever decides holds the writer's until what was decided is on disk and applied, so
//! that decisions follow each other. The state has a lock of its own: readers share it, and only
//! `apply` needs it alone, for moments. Nobody who reads waits for the disk.
//!
//! Lock order: duties, the gate of the lists, writer, evidence, state. Whoever holds the state's
//! lock takes none of the others, so that nobody who reads it waits for the disk.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};

use lethe_ledger::{
    Accepted, Before, Command, Effect, Effects, Event, Fresh, Owner, Rules, RunKey, ShardKey,
    State, ValueRef, Wake, apply, decide, effects, withdrawn,
};
use lethe_proto::deletion::Proposal;
use lethe_proto::ids::{Digest, EpochNo};
use lethe_proto::message::Refusal;
use lethe_store::keys::Keys;
use lethe_store::reserve::Reserve;

use crate::CoordinatorError;
use crate::catalogue::Catalogues;
use crate::durable::{Durable, NewValue, Values};
use crate::evidence::{Evidence, Opened as Outside};
use crate::fatal;
use crate::lists::Lists;

mod arrive;
mod audit;
mod caches;
mod clock;
mod duties;
mod jobs;
mod keys;
mod kit;
mod logged;
mod masked;
mod meter;
mod notable;
mod open;
mod roll;
mod serve;
#[cfg(test)]
mod simulation;
mod versions;
#[cfg(any(test, feature = "simulation"))]
pub mod year;

pub(crate) use caches::{Caches, Served};
pub(crate) use clock::Clock;
use jobs::Jobs;
pub(crate) use kit::{BaseModel, Kit, Kits};
pub(crate) use meter::Meter;
pub(crate) use open::{Opening, over_quic};
pub(crate) use roll::{Materials, Wanted};
pub(crate) use versions::NewVersion;

/// What the listener is told after something has changed.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Whose polls have something to find.
    pub(crate) wake: lethe_ledger::Wake,
    /// Certificates whose connections are to be closed, unless they are known.
    pub(crate) disconnect: Vec<Digest>,
    /// Training sessions may be stale.
    pub(crate) sweep: bool,
}

/// Who is told.
type Outlet = Box<dyn Fn(Told) + Send + Sync>;

/// What only who decides needs.
struct Writer {
    durable: Durable,
    /// A write failed: what is durable is read again before the next decision.
    doubt: bool,
}

/// The ledger's state, and all that is around it.
pub(crate) struct Shell {
    writer: Mutex<Writer>,
    state: RwLock<State>,
    evidence: Mutex<Evidence>,
    /// Public key of the log (verifier key text): read without waiting for the log.
    log_key: RwLock<String>,
    /// Where the keys lie.
    keys: Keys,
    values: Values,
    reserve: Reserve,
    /// An audit changes them once, before anything else happens.
    rules: Mutex<Rules>,
    pub(crate) clock: Clock,
    /// Of the epochs that are alive.
    kits: RwLock<Kits>,
    pub(crate) materials: Materials,
    /// Whoever founds an epoch.
    founding: Mutex<()>,
    /// The catalogue, in versions.
    pub(crate) catalogue: Catalogues,
    pub(crate) caches: Caches,
    pub(crate) jobs: Jobs,
    pub(crate) meter: Meter,
    /// Sums and snapshots; none: this coordinator has no lists.
    pub(crate) lists: Option<Lists>,
    /// Whoever does what is due.
    duties: Mutex<()>,
    said: Mutex<duties::Said>,
    /// When space and deadlines were looked after.
    minute: AtomicU64,
    /// Failures since the start.
    failures: AtomicU64,
    /// The journal may have a deletion that the state does not know yet: nothing is served.
    unsettled: AtomicBool,
    /// Nobody else opens these folders meanwhile.
    _locks: Vec<File>,
    /// The last number that [`Self::sequence`] gave.
    sequence: AtomicU64,
    outlet: OnceLock<Outlet>,
}

/// What follows from events that were applied.
#[derive(Default)]
struct Applied {
    effects: Effects,
    /// Values that nothing names any more.
    dropped: Vec<ValueRef>,
}

/// What a shell is made of.
pub(crate) struct Parts {
    pub(crate) lists: Option<Lists>,
    pub(crate) durable: Durable,
    pub(crate) state: State,
    pub(crate) evidence: Evidence,
    pub(crate) keys: Keys,
    pub(crate) reserve: Reserve,
    pub(crate) rules: Rules,
    pub(crate) kits: Kits,
    pub(crate) materials: Materials,
    pub(crate) catalogue: Catalogues,
    /// What lies outside the data folder.
    pub(crate) outside: Outside,
    /// Shards whose databases were damaged.
    pub(crate) lost: Vec<ShardKey>,
    pub(crate) clock: Clock,
    /// Of the folders.
    pub(crate) locks: Vec<File>,
}

/// Drawn for one command.
pub(crate) fn fresh() -> Result<Fresh, CoordinatorError> {
    Ok(Fresh(lethe_seal::random()?))
}

/// A panic under the state's lock left it half changed: the process ends.
fn half_changed() -> ! {
    fatal::broken("a panic left the ledger's state half changed")
}

impl Shell {
    /// Catches up with what lies outside the data folder.
    pub(crate) fn start(parts: Parts) -> Result<Arc<Self>, CoordinatorError> {
        let mut state = parts.state;
        state.set_rules(parts.rules.clone());
        let shell = Arc::new(Self {
            values: parts.durable.values(),
            writer: Mutex::new(Writer {
                durable: parts.durable,
                doubt: false,
            }),
            state: RwLock::new(state),
            log_key: RwLock::new(parts.evidence.log_key()),
            keys: parts.keys,
            evidence: Mutex::new(parts.evidence),
            reserve: parts.reserve,
            rules: Mutex::new(parts.rules),
            clock: parts.clock,
            kits: RwLock::new(parts.kits),
            materials: parts.materials,
            founding: Mutex::default(),
            catalogue: parts.catalogue,
            caches: Caches::default(),
            jobs: Jobs::default(),
            meter: Meter::default(),
            lists: parts.lists,
            duties: Mutex::default(),
            said: Mutex::default(),
            minute: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            unsettled: AtomicBool::new(false),
            _locks: parts.locks,
            sequence: AtomicU64::new(0),
            outlet: OnceLock::new(),
        });
        let journal = parts.outside.journal.clone();
        let started = Command::Started {
            floor: parts.outside.floor.unwrap_or(0),
            journal: parts.outside.journal,
            lost: parts.lost,
            stayed: fatal::lock(&shell.writer).durable.stayed()?,
            fresh: fresh()?,
        };
        shell.execute(started, vec![])?;
        if let Some(lists) = &shell.lists {
            let state = shell.state();
            // Those that are still to be executed find what the tally holds when they begin.
            let begun = |a: &&Accepted| !state.waits_for_execution(a.id);
            let begun: Vec<Accepted> = journal.iter().filter(begun).cloned().collect();
            drop(state);
            lists.catch_up(&begun, shell.clock.now().unix_ms / 1000)?;
            lists.keep_recalled()?;
        }
        fatal::lock(&shell.writer).durable.lost_noted()?;
        let mut evidence = shell.evidence();
        evidence.lacking(&shell.state())?;
        if let Err(e) = evidence.publish() {
            tracing::error!(
                "the log's files for auditors are behind: {e}; the next entry or start writes \
                 them again"
            );
        }
        drop(evidence);
        Ok(shell)
    }

    /// Who is told of changes, from now on.
    pub(crate) fn tell(&self, outlet: impl Fn(Told) + Send + Sync + 'static) {
        let _ = self.outlet.set(Box::new(outlet));
    }

    /// The state, to be read.
    pub(crate) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(|_| half_changed())
    }

    fn state_alone(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(|_| half_changed())
    }

    /// The evidence folder. Take it before the state: who writes to it waits for the disk.
    pub(crate) fn evidence(&self) -> MutexGuard<'_, Evidence> {
        fatal::lock(&self.evidence)
    }

    /// What does not change of an epoch.
    pub(crate) fn kit(&self, epoch: EpochNo) -> Result<Arc<Kit>, CoordinatorError> {
        let known = self.kits().get(&epoch).cloned();
        known.ok_or_else(|| {
            let message = format!("{epoch} has ended: ask for the epochs that are alive");
            CoordinatorError::refuse(Refusal::RoundClosed, message)
        })
    }

    /// What does not change of the epochs that are alive.
    pub(crate) fn all_kits(&self) -> Kits {
        self.kits().clone()
    }

    // They are as good after a panic: an epoch has its kit, or has not.
    fn kits(&self) -> RwLockReadGuard<'_, Kits> {
        self.kits.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn kits_alone(&self) -> RwLockWriteGuard<'_, Kits> {
        self.kits.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Values, to be read.
    pub(crate) fn values(&self) -> &Values {
        &self.values
    }

    /// What is stored, for a search through all of it.
    pub(crate) fn store(&self) -> Arc<lethe_store::sealed::SealedStore> {
        fatal::lock(&self.writer).durable.store().clone()
    }

    /// Whether space for deletions is set aside.
    pub(crate) fn space_held(&self) -> bool {
        self.reserve.held()
    }

    /// Sets space aside, now or when there is some again.
    pub(crate) fn set_aside_space(&self) {
        if let Err(e) = self.reserve.take() {
            tracing::warn!("no space could be set aside for deletions: {e}");
        }
    }

    /// A number that grows, from start to start too.
    pub(crate) fn sequence(&self) -> u64 {
        let now = self.clock.now().unix_ms;
        let next = |last: u64| Some(now.max(last + 1));
        let last = self
            .sequence
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        last.map_or(now, |last| now.max(last + 1))
    }

    fn snapshot(&self, writer: &mut Writer) -> Result<(), CoordinatorError> {
        let slices = writer.durable.snapshot_of(&self.state())?;
        // Nobody changes a slice meanwhile: that takes the writer.
        writer.durable.write_snapshot(slices)?;
        self.state_alone().changed.clear();
        Ok(())
    }

    /// Decides, writes the events with these values, applies them, and does what follows. Returns
    /// what happened; nothing, when the command came too late.
    pub(crate) fn execute(
        &self,
        command: Command,
        values: Vec<NewValue>,
    ) -> Result<Vec<Event>, CoordinatorError> {
        let mut decided = vec![];
        if !is_of_deletion(&command) {
            return self.attempt(command, values, &mut decided);
        }
        let first = self.attempt(command.clone(), values.clone(), &mut decided);
        match first {
            Err(e) if !e.is_request() => {
                self.use_space(&e);
                match self.happened(&decided) {
                    Ok(true) => return Ok(decided),
                    Ok(false) => {}
                    Err(e) => return Err(self.in_the_journal(&decided, e)),
                }
                let second = self.attempt(command, values, &mut decided);
                second.map_err(|e| match e.is_request() {
                    true => e,
                    false => self.in_the_journal(&decided, e),
                })
            }
            result => result,
        }
    }

    /// Says of a deletion that could not be stored that the journal has it, if it does.
    fn in_the_journal(&self, decided: &[Event], why: CoordinatorError) -> CoordinatorError {
        let accepted = |e: &Event| match e {
            Event::DeletionAccepted { id, .. } => Some(*id),
            _ => None,
        };
        let ids: Vec<u64> = decided.iter().filter_map(accepted).collect();
        let Ok(outside) = self.evidence().held() else {
            return why;
        };
        let holds = |id: &u64| outside.journal.iter().any(|a| a.id == *id);
        if ids.is_empty() || !ids.iter().all(holds) {
            return why;
        }
        let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
        let message = format!(
            "accepted as deletion {}, which the journal has, and not executed yet: {why}; it is \
             tried again by itself, and nothing is served until then",
            ids.join(", ")
        );
        CoordinatorError::refuse(Refusal::Internal, message)
    }

    /// Reads the folder again, if a write is in doubt.
    fn settle_doubt(&self) -> Result<(), CoordinatorError> {
        self.settle(&mut fatal::lock(&self.writer))
    }

    /// Refuses to serve while what is served is not exact, or may not be.
    pub(crate) fn may_serve(&self) -> Result<(), CoordinatorError> {
        if self.unsettled.load(Ordering::Acquire) {
            return Err(CoordinatorError::refuse(
                Refusal::Busy,
                "a deletion is accepted and not stored yet: try again in a moment",
            ));
        }
        Ok(self.state().may_serve()?)
    }

    /// Whether this release is the one that may be served now.
    pub(crate) fn current(&self, release: u64) -> Result<(), CoordinatorError> {
        self.may_serve()?;
        Ok(self.state().current(release)?)
    }

    /// A task was offered. Nothing of that is written, and no decision depends on it, so that who
    /// asks for work never waits for the disk.
    pub(crate) fn offer(&self, device: Digest, run: RunKey) -> Result<(), CoordinatorError> {
        let now = self.clock.now();
        let mut state = self.state_alone();
        let events = decide(&state, Command::Offer { device, run }, now)?;
        for event in events.iter().filter(|e| e.is_volatile()) {
            apply(&mut state, event);
        }
        Ok(())
    }

    /// `decided` is what was decided, also where it could not be written.
    fn attempt(
        &self,
        command: Command,
        values: Vec<NewValue>,
        decided: &mut Vec<Event>,
    ) -> Result<Vec<Event>, CoordinatorError> {
        let mut writer = fatal::lock(&self.writer);
        self.settle(&mut writer)?;
        let now = self.clock.now();
        let events = decide(&self.state(), command, now)?;
        if events.is_empty() {
            return Ok(events);
        }
        if events.iter().any(|e| !e.is_volatile())
            && let Err(e) = self.write(&mut writer, &events, values)
        {
            writer.doubt = true;
            let journal = |e: &Event| matches!(e.before(), Some(Before::Journal(_)));
            if events.iter().any(journal) {
                self.unsettled.store(true, Ordering::Release);
            }
            *decided = events;
            return Err(e);
        }
        let applied = self.apply(&mut writer, &events);
        drop(writer);
        notable::log(&events);
        self.carry_out(applied.effects);
        // A round's updates are many: nobody waits for their end.
        if let Err(e) = self.values.delete(&applied.dropped) {
            tracing::warn!("values that nothing needs stay until the next start: {e}");
        }
        Ok(events)
    }

    /// What has to be outside the folder is there first.
    fn write(
        &self,
        writer: &mut Writer,
        events: &[Event],
        values: Vec<NewValue>,
    ) -> Result<(), CoordinatorError> {
        self.evidence().before(events)?;
        // A restored folder does not let withdrawn certificates in.
        let withdrawn = events.iter().filter_map(|event| match event {
            Event::Withdrawn { subject } => Some(subject),
            _ => None,
        });
        writer.durable.drop_notes(withdrawn)?;
        writer.durable.write(events, values)
    }

    /// Reads the folder again if a write failed: was this written after all, or is it in the
    /// journal, from which it was taken over?
    fn happened(&self, events: &[Event]) -> Result<bool, CoordinatorError> {
        self.settle(&mut fatal::lock(&self.writer))?;
        let state = self.state();
        let told = |event: &Event| match event {
            Event::DeletionAccepted { id, deletion } => {
                let known = state.deletions().get(id);
                Some(known.is_some_and(|d| d.salt == deletion.salt))
            }
            Event::Proposed { id, proposal } => {
                Some(state.proposals().get(id).is_some_and(|p| p == proposal))
            }
            Event::Approved { id, approved } => {
                let known = state.proposals().get(id);
                Some(known.is_some_and(|p| p.approved == *approved))
            }
            _ => None,
        };
        let told: Vec<bool> = events.iter().filter_map(told).collect();
        Ok(!told.is_empty() && told.iter().all(|happened| *happened))
    }

    /// Makes events so.
    fn apply(&self, writer: &mut Writer, events: &[Event]) -> Applied {
        let mut out = Applied::default();
        {
            let mut state = self.state_alone();
            for event in events {
                out.effects.disconnect.extend(withdrawn(&state, event));
                apply(&mut state, event);
                effects(&state, event, &mut out.effects);
            }
            out.dropped = std::mem::take(&mut state.dropped);
        }
        self.caches.note(events);
        if writer.durable.wants_snapshot()
            && let Err(e) = self.snapshot(writer)
        {
            // The events are there: the next snapshot holds what this one should have.
            tracing::warn!("no snapshot: {e}");
        }
        out
    }

    /// What a write that failed has left in doubt is read again.
    fn settle(&self, writer: &mut Writer) -> Result<(), CoordinatorError> {
        if !writer.doubt {
            return Ok(());
        }
        let rules = fatal::lock(&self.rules).clone();
        let mut state = writer.durable.rebuild()?;
        state.set_rules(rules);
        let outside = self.evidence().held()?;
        let started = Command::Started {
            floor: outside.floor.unwrap_or(0),
            journal: outside.journal,
            lost: vec![],
            stayed: writer.durable.stayed()?,
            fresh: fresh()?,
        };
        let mut events = decide(&state, started, self.clock.now())?;
        // Databases that were lost at the start are still what monitoring is to hear of.
        events.retain(|e| !matches!(e, Event::ShardsLost { .. }));
        if events.iter().any(|e| !e.is_volatile()) {
            self.write(writer, &events, vec![])?;
        }
        for event in &events {
            apply(&mut state, event);
        }
        *self.state_alone() = state;
        writer.doubt = false;
        self.unsettled.store(false, Ordering::Release);
        self.caches.clear();
        self.carry_out(Effects {
            wake: Wake {
                everybody: true,
                ..Wake::default()
            },
            all: vec![Effect::SweepSessions, Effect::LookForDuties],
            ..Effects::default()
        });
        Ok(())
    }

    pub(crate) fn carry_out(&self, effects: Effects) {
        let mut told = Told {
            wake: effects.wake,
            disconnect: effects.disconnect,
            sweep: false,
        };
        for effect in effects.all {
            match effect {
                Effect::SweepSessions => told.sweep = true,
                Effect::ForgetCaches { shards, people } => self.caches.forget(&shards, &people),
                Effect::DestroyKeys { shards, .. } => self.jobs.cancel(&shards),
                // Both are duties, too: they are begun when duties are looked for.
                Effect::Aggregate { .. } | Effect::LookForDuties => self.jobs.look(),
            }
        }
        if let Some(outlet) = self.outlet.get() {
            outlet(told);
        }
    }

    /// Destroys keys, if all of them are still to go: what they sealed can be read by nobody from
    /// then on. False: none was destroyed.
    fn destroy(&self, keys: &[Owner]) -> Result<bool, CoordinatorError> {
        self.with_space(|| {
            let mut writer = fatal::lock(&self.writer);
            // A write that failed may be there: then a key of this name may be the fresh one of
            // somebody who stays.
            self.settle(&mut writer)?;
            let state = self.state();
            let going = state.keys_to_destroy();
            let spent = &state.core().spent;
            let go = keys.iter().all(|k| going.contains(k) || spent.contains(k));
            let stay = state.who_stays();
            drop(state);
            if go {
                writer.durable.destroy(keys, &stay)?;
            }
            Ok(go)
        })
    }

    /// Tries a step of a deletion again with the space that was set aside, if that is there.
    fn with_space<T>(
        &self,
        step: impl Fn() -> Result<T, CoordinatorError>,
    ) -> Result<T, CoordinatorError> {
        match step() {
            Err(e) if !e.is_request() && self.use_space(&e) => step(),
            result => result,
        }
    }

    /// Gives back the space that was set aside, if it was.
    fn use_space(&self, why: &CoordinatorError) -> bool {
        let had = self.reserve.release();
        if had {
            tracing::warn!(
                "{why}; the space that was set aside for deletions is used now: make room"
            );
        }
        had
    }
}

/// Commands that may use the space that was set aside for deletions. Of what operators propose
/// only deletions: invitations would use it up.
fn is_of_deletion(command: &Command) -> bool {
    matches!(
        command,
        Command::Forget { .. }
            | Command::Propose {
                what: Proposal::Forget { .. },
                ..
            }
            | Command::Approve { .. }
            | Command::BeginExecution { .. }
            | Command::KeysDestroyed
            | Command::SpentDestroyed { .. }
            | Command::Logged { .. }
            | Command::ReleaseLogged { .. }
            | Command::SnapshotLogged { .. }
            | Command::Finish { .. }
            | Command::ReceiptIssued { .. }
    )
}
