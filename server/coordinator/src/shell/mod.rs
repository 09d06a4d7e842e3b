//! The shell of the ledger: decide, write, apply, effects.
//!
//! Two locks. Whoever decides holds the writer's until what was decided is on disk and applied, so
//! that decisions follow each other. The state has a lock of its own: readers share it, and only
//! `apply` needs it alone, for moments. Nobody who reads waits for the disk.
//!
//! Lock order: writer, evidence, state. Whoever holds the state's lock takes no other but
//! `evidence`, and nobody who holds `evidence` waits for the state alone.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock, RwLockReadGuard};

use lethe_ledger::{
    Accepted, Command, Effect, Effects, Event, Fresh, Owner, Rules, ShardKey, State, apply, decide,
    effects, withdrawn,
};
use lethe_proto::ids::{Digest, EpochNo};
use lethe_proto::message::Refusal;
use lethe_store::reserve::Reserve;

use crate::CoordinatorError;
use crate::durable::{Durable, NewValue, Values};
use crate::evidence::Evidence;
use crate::fatal;

mod caches;
mod clock;
mod duties;
mod jobs;
mod kit;
mod meter;

pub(crate) use caches::{Caches, Served};
pub(crate) use clock::Clock;
pub(crate) use jobs::Jobs;
pub(crate) use kit::{Kit, Kits, terms};
pub(crate) use meter::Meter;

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
    values: Values,
    reserve: Reserve,
    rules: Rules,
    pub(crate) clock: Clock,
    pub(crate) kits: Kits,
    pub(crate) caches: Caches,
    pub(crate) jobs: Jobs,
    pub(crate) meter: Meter,
    duties: Mutex<duties::Said>,
    outlet: OnceLock<Outlet>,
}

/// What a shell is made of.
pub(crate) struct Parts {
    pub(crate) durable: Durable,
    pub(crate) state: State,
    pub(crate) evidence: Evidence,
    pub(crate) reserve: Reserve,
    pub(crate) rules: Rules,
    pub(crate) kits: Kits,
    /// What lies outside the data folder.
    pub(crate) floor: u64,
    pub(crate) journal: Vec<Accepted>,
    /// Shards whose databases were damaged.
    pub(crate) lost: Vec<ShardKey>,
}

/// Drawn for one command.
pub(crate) fn fresh() -> Result<Fresh, CoordinatorError> {
    Ok(Fresh(lethe_seal::random()?))
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
            evidence: Mutex::new(parts.evidence),
            reserve: parts.reserve,
            rules: parts.rules,
            clock: Clock::default(),
            kits: parts.kits,
            caches: Caches::default(),
            jobs: Jobs::default(),
            meter: Meter::default(),
            duties: Mutex::default(),
            outlet: OnceLock::new(),
        });
        let started = Command::Started {
            floor: parts.floor,
            journal: parts.journal,
            lost: parts.lost,
            fresh: fresh()?,
        };
        shell.execute(started, vec![])?;
        let state = shell.state();
        shell.evidence().lacking(&state)?;
        drop(state);
        Ok(shell)
    }

    /// Who is told of changes, from now on.
    pub(crate) fn tell(&self, outlet: impl Fn(Told) + Send + Sync + 'static) {
        let _ = self.outlet.set(Box::new(outlet));
    }

    /// The state, to be read.
    pub(crate) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state
            .read()
            .unwrap_or_else(|_| fatal::broken("a panic left the ledger's state half changed"))
    }

    /// The evidence folder.
    pub(crate) fn evidence(&self) -> MutexGuard<'_, Evidence> {
        fatal::lock(&self.evidence)
    }

    /// What does not change of an epoch.
    pub(crate) fn kit(&self, epoch: EpochNo) -> Result<Arc<Kit>, CoordinatorError> {
        let known = self.kits.get(&epoch).cloned();
        let message = format!("nothing is known of {epoch}");
        known.ok_or_else(|| CoordinatorError::refuse(Refusal::Internal, message))
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

    /// Decides, writes the events with these values, applies them, and does what follows. Returns
    /// what happened; nothing, when the command came too late.
    pub(crate) fn execute(
        &self,
        command: Command,
        values: Vec<NewValue>,
    ) -> Result<Vec<Event>, CoordinatorError> {
        let needed = is_of_deletion(&command);
        let again = needed.then(|| (command.clone(), values.clone()));
        let first = self.execute_once(command, values);
        match (first, again) {
            (Err(e), Some((command, values))) if !e.is_request() && self.reserve.release() => {
                tracing::warn!(
                    "{e}; the space that was set aside for deletions is used now: make room"
                );
                self.execute_once(command, values)
            }
            (first, _) => first,
        }
    }

    fn execute_once(
        &self,
        command: Command,
        values: Vec<NewValue>,
    ) -> Result<Vec<Event>, CoordinatorError> {
        let mut writer = fatal::lock(&self.writer);
        if writer.doubt {
            self.rebuild(&mut writer)?;
        }
        let now = self.clock.now();
        let events = decide(&self.state(), command, now)?;
        if events.is_empty() {
            return Ok(events);
        }
        if events.iter().any(|e| !e.is_volatile()) {
            // What has to be outside the folder is there first.
            self.evidence().before(&events)?;
            if let Err(e) = writer.durable.write(&events, values) {
                writer.doubt = true;
                return Err(e);
            }
        }
        let told = self.apply(&mut writer, &events);
        drop(writer);
        self.carry_out(told);
        Ok(events)
    }

    /// Makes events so, and cleans up after them.
    fn apply(&self, writer: &mut Writer, events: &[Event]) -> Effects {
        let mut out = Effects::default();
        let dropped = {
            let mut state = self
                .state
                .write()
                .unwrap_or_else(|_| fatal::broken("a panic left the ledger's state half changed"));
            for event in events {
                out.disconnect.extend(withdrawn(&state, event));
                apply(&mut state, event);
                effects(&state, event, &mut out);
            }
            std::mem::take(&mut state.dropped)
        };
        self.caches.note(events);
        if !dropped.is_empty()
            && let Err(e) = writer.durable.delete_values(&dropped)
        {
            tracing::warn!("values that nothing needs stay until the next start: {e}");
        }
        if writer.durable.wants_snapshot() {
            let mut state = self
                .state
                .write()
                .unwrap_or_else(|_| fatal::broken("a panic left the ledger's state half changed"));
            if let Err(e) = writer.durable.snapshot(&mut state) {
                // The events are there: the next snapshot holds what this one should have.
                tracing::warn!("no snapshot: {e}");
            }
        }
        out
    }

    /// Reads again what is durable, after a write that failed.
    fn rebuild(&self, writer: &mut Writer) -> Result<(), CoordinatorError> {
        let mut state = writer.durable.rebuild()?;
        state.set_rules(self.rules.clone());
        let started = Command::Started {
            floor: 0,
            journal: self.evidence().journal(),
            lost: vec![],
            fresh: fresh()?,
        };
        let events = decide(&state, started, self.clock.now())?;
        if events.iter().any(|e| !e.is_volatile()) {
            self.evidence().before(&events)?;
            writer.durable.write(&events, vec![])?;
        }
        for event in &events {
            apply(&mut state, event);
        }
        *self
            .state
            .write()
            .unwrap_or_else(|_| fatal::broken("a panic left the ledger's state half changed")) =
            state;
        writer.doubt = false;
        self.caches.clear();
        Ok(())
    }

    fn carry_out(&self, effects: Effects) {
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

    /// Destroys keys; what they sealed can be read by nobody from then on.
    pub(super) fn destroy(&self, keys: &[Owner]) -> Result<(), CoordinatorError> {
        let mut writer = fatal::lock(&self.writer);
        writer.durable.destroy(keys)
    }
}

/// Commands that may use the space that was set aside for deletions.
fn is_of_deletion(command: &Command) -> bool {
    matches!(
        command,
        Command::Forget { .. }
            | Command::Propose { .. }
            | Command::Approve { .. }
            | Command::BeginExecution
            | Command::KeysDestroyed
            | Command::SpentDestroyed { .. }
            | Command::Logged { .. }
            | Command::Finish { .. }
            | Command::ReceiptIssued { .. }
    )
}
