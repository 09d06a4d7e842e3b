//! The tally: cells, vault and sums together.
//!
//! Whoever changes something holds one lock: decide, write, destroy keys, change the sums. Solving
//! needs no lock ([`Job`]); nor does reading what is served.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use lethe_learn::seed::Seed;
use lethe_parts::content::Content;
use lethe_parts::contribution::Contribution;
use lethe_parts::noise::Mechanism;
use lethe_parts::sums::Sums;
use lethe_receipt::note::{Signer, VerifierKey};
use lethe_store::keys::Folders;
use lethe_store::sealed::Engine;

use crate::Statement;
use crate::cells::{Command, Duty, Event, Leaver, State, decide, due};
use crate::error::TallyError;
use crate::ids::Handle;
use crate::vault::{Kept, Last, Vault};

mod audited;
mod bring;
mod change;
mod devices;
mod folding;
mod growing;
mod held;
mod job;
mod options;
mod releasing;
mod seeded;
mod served;
#[cfg(test)]
mod tests;
mod told;
mod vouched;

pub use audited::Audited;
pub use bring::{Allowed, Offer};
use change::Change;
pub use folding::Refolded;
pub use held::Held;
pub use job::{Done, Finished, Job, fold_root};
pub use options::{NoiseConfig, Options, Per};
use releasing::Noise;
pub use releasing::NoiseStatus;
pub use served::{Lists, Published, Served, Status};

/// Holds what people contribute, and publishes snapshots. To be shared by threads.
pub struct Tally {
    vault: Vault,
    /// Of the newest version of the catalogue.
    basis: RwLock<Basis>,
    options: Options,
    /// It was said that the noise's budget is spent.
    said_spent: AtomicBool,
    signer: Arc<Signer>,
    draw: Seed,
    /// What would be random follows from it, for measurements.
    seed: Option<Seed>,
    inner: Mutex<Inner>,
    /// Sums are written by one at a time; deletions do not wait for that.
    keeping: Mutex<()>,
    lists: RwLock<Lists>,
}

/// What follows from the catalogue, and changes with it.
struct Basis {
    content: Arc<Content>,
    noise: Option<Noise>,
}

impl Basis {
    /// # Errors
    /// [`TallyError`]: the noise is not made for so many items.
    fn new(content: Arc<Content>, options: &Options) -> Result<Self, TallyError> {
        let items = content.items();
        let of = |settings| -> Result<Noise, TallyError> {
            let mechanism = Mechanism::new(&settings, options.clip, options.repeats, items)?;
            Ok(Noise {
                settings,
                mechanism,
            })
        };
        let noise = options.noise.map(of).transpose()?;
        Ok(Self { content, noise })
    }
}

/// What the lock protects.
struct Inner {
    state: State,
    /// Sums of everybody who counts; none: to be read or folded when they are needed.
    sums: Option<Arc<Sums>>,
    /// Contributions that are in these sums and count no more: they are subtracted before anybody
    /// reads the sums. Nobody who leaves waits for that.
    owed: Vec<Contribution>,
    /// A write failed: the folder may have it or not, and is read again.
    doubt: bool,
    /// Keys that are to be destroyed before anything else happens.
    doomed: Doomed,
    /// Snapshots that are kept, the newest last.
    kept: Vec<Kept>,
    /// What was published last, also if it was recalled.
    last: Option<Last>,
    /// Cells that count are not those of [`Self::last`].
    behind: bool,
    /// Number of the snapshot that this process published last, and the digest of the content that
    /// it was solved with.
    solved: Option<(u64, [u8; 32])>,
}

#[derive(Default)]
struct Doomed {
    handles: Vec<Handle>,
    generation: Option<u64>,
}

impl std::fmt::Debug for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tally({})", self.options.name)
    }
}

impl Tally {
    /// Opens or founds the folder of a tally. `content` describes the catalogue's items; `now` is
    /// in seconds since 1970.
    ///
    /// # Errors
    /// [`TallyError`]: the folder is damaged or of another format, or the options do not fit.
    pub fn open(
        engine: &Engine,
        folders: impl Into<Folders>,
        content: Arc<Content>,
        options: Options,
        now: u64,
    ) -> Result<Self, TallyError> {
        Self::open_with(engine, folders.into(), content, options, None, now)
    }

    fn open_with(
        engine: &Engine,
        folders: Folders,
        content: Arc<Content>,
        options: Options,
        seed: Option<Seed>,
        now: u64,
    ) -> Result<Self, TallyError> {
        options.check()?;
        let basis = Basis::new(content, &options)?;
        let vault = Vault::open(engine, folders, seed.as_ref())?;
        let secrets = vault.secrets()?;
        let tally = Self {
            signer: Arc::new(Signer::from_seed(&options.name, &secrets.signer)?),
            draw: secrets.draw,
            seed,
            inner: Mutex::new(Inner {
                state: State::new(options.cells),
                sums: None,
                owed: vec![],
                doubt: true,
                doomed: Doomed::default(),
                kept: vec![],
                last: None,
                behind: false,
                solved: None,
            }),
            keeping: Mutex::new(()),
            lists: RwLock::new(Lists {
                served: Served::Nothing,
                recalled: 0,
            }),
            vault,
            basis: RwLock::new(basis),
            options,
            said_spent: AtomicBool::new(false),
        };
        tally.settle(&mut tally.lock(), now)?;
        Ok(tally)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| {
            // A panic left the state half-changed: the folder has the truth.
            let mut inner = PoisonError::into_inner(poisoned);
            inner.doubt = true;
            inner
        })
    }

    /// The key that verifies snapshots ([`crate::Statement::open`]).
    pub fn verifier(&self) -> &VerifierKey {
        self.signer.verifier()
    }

    /// Signs what is said beside snapshots: whoever runs the tally has the key anyway.
    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    /// Writes all keys under a fresh master key, and destroys the one before.
    ///
    /// # Errors
    /// [`TallyError::Store`]: repeat it.
    pub fn rotate_master(&self) -> Result<(), TallyError> {
        self.vault.rotate_master()
    }

    /// Items of the catalogue.
    pub fn items(&self) -> usize {
        self.content().items()
    }

    /// These handles leave: what they contributed is destroyed and their cells are dissolved. When
    /// this returns, nothing that is served, or can be read in the folder, has them in it. What is
    /// not known has left.
    ///
    /// # Errors
    /// [`TallyError::Store`]: repeat it until it succeeds. Nothing stale is served meanwhile.
    pub fn leave(&self, handles: &[Handle], now: u64) -> Result<(), TallyError> {
        self.execute(&Command::Leave(handles.to_vec()), now)
    }

    /// These handles leave as with [`Self::leave`], if their membership began at or before the time
    /// that is given with them: who came again later stays. Whoever keeps a record of those who
    /// left says it all at every start, so that a restored backup brings nobody back. It may be
    /// repeated.
    ///
    /// A membership that began within the second of the leaving is over, too: its devices
    /// contribute again.
    ///
    /// # Errors
    /// As [`Self::leave`].
    pub fn leave_older(&self, leavers: &[Leaver], now: u64) -> Result<(), TallyError> {
        self.execute(&Command::LeaveOlder(leavers.to_vec()), now)
    }

    /// A later state of this folder has published snapshots up to this number: none of them is
    /// served, and the next one has a higher number. Nothing happens where that is known. With
    /// noise each of them is charged: nobody knows here what it was.
    ///
    /// # Errors
    /// [`TallyError::Store`]; it may be repeated.
    pub fn skip_to(&self, number: u64, now: u64) -> Result<(), TallyError> {
        let charge = self.charge();
        self.execute(&Command::Skip { to: number, charge }, now)
    }

    /// Clears items for good: they count for nobody. Cells stay.
    ///
    /// # Errors
    /// [`TallyError::Bounds`] for an item that the catalogue does not have.
    pub fn take_down(&self, items: &[u32], now: u64) -> Result<(), TallyError> {
        let mut places = items.iter().enumerate();
        if let Some((event, item)) = places.find(|i| *i.1 as usize >= self.items()) {
            return Err(TallyError::Bounds(lethe_parts::Refused::UnknownItem {
                event,
                item: *item,
                items: self.items(),
            }));
        }
        self.execute(&Command::TakeDown(items.to_vec()), now)
    }

    /// Opens cells while enough people wait, and lets count what has grown. Returns how many cells
    /// were opened or renewed.
    ///
    /// # Errors
    /// [`TallyError::Store`]; it may be repeated.
    pub fn open_cells(&self, now: u64) -> Result<usize, TallyError> {
        let inner = &mut *self.lock();
        self.settle(inner, now)?;
        let mut count = 0;
        loop {
            let mut change = Change::default();
            for duty in due(&inner.state) {
                let command = match duty {
                    Duty::OpenCell => Command::OpenCell { secret: self.draw },
                    Duty::Renew(cell) => Command::Renew(cell),
                    Duty::Publish => continue,
                };
                let events = change.step(&mut inner.state, &command, now);
                // What was decided before it is not written then.
                inner.doubt |= events.is_err();
                count += events?.len();
            }
            if change.is_empty() {
                return Ok(count);
            }
            self.commit(inner, change)?;
            inner.behind = true;
        }
    }

    /// Whether cells were opened or renewed since the last snapshot, in this process or an earlier
    /// one: the next snapshot says more than that one.
    pub fn is_behind(&self) -> bool {
        self.lock().behind
    }

    fn execute(&self, command: &Command, now: u64) -> Result<(), TallyError> {
        let inner = &mut *self.lock();
        self.settle(inner, now)?;
        let mut change = Change::default();
        change.step(&mut inner.state, command, now)?;
        self.commit(inner, change)
    }

    /// Puts right what an error has left: reads the folder again after a write in doubt, and
    /// destroys keys that are still to be destroyed.
    fn settle(&self, inner: &mut Inner, now: u64) -> Result<(), TallyError> {
        if inner.doubt {
            let read = self.reload(inner, now);
            // What failed on the way is done again.
            inner.doubt = read.is_err();
            read?;
        }
        self.destroy_doomed(inner)
    }

    fn reload(&self, inner: &mut Inner, now: u64) -> Result<(), TallyError> {
        inner.drop_sums();
        inner.state = self.vault.read(self.options.cells)?;
        inner.last = self.vault.last(inner.state.core().snapshot)?;
        // Reading destroyed what was still to be destroyed.
        inner.doomed = Doomed::default();
        let mut change = Change::default();
        change.step(&mut inner.state, &Command::LeaveStrays, now)?;
        if !self.has_served(&inner.state)? {
            change.step(&mut inner.state, &Command::Lost, now)?;
        }
        self.commit(inner, change)?;
        inner.behind = match &inner.last {
            Some(last) => last.fold.cells != inner.state.fold().cells,
            None => !inner.state.cells().is_empty(),
        };
        self.load_served(inner)
    }

    /// Whether the snapshot that is to be served is there, signed by this tally.
    fn has_served(&self, state: &State) -> Result<bool, TallyError> {
        let Some(number) = state.core().served else {
            return Ok(true);
        };
        let kept = self.vault.snapshots(number)?;
        let newest = kept.last().filter(|k| k.number == number);
        Ok(newest.is_some_and(|k| Statement::open(&k.note, self.verifier()).is_ok()))
    }

    fn destroy_doomed(&self, inner: &mut Inner) -> Result<(), TallyError> {
        let doomed = &inner.doomed;
        self.vault.destroy(&doomed.handles, doomed.generation)?;
        inner.doomed = Doomed::default();
        Ok(())
    }

    /// Writes a change whose events are in the state already; then destroys keys, and changes the
    /// sums, or notes what they owe. After an error the folder is read again before anything else
    /// happens.
    fn commit(&self, inner: &mut Inner, change: Change) -> Result<(), TallyError> {
        if change.is_empty() {
            return Ok(());
        }
        inner.doubt = true;
        self.stop_serving(&inner.state);
        let effect = change.effect(&inner.state);
        let outgoing = match &inner.sums {
            Some(_) => self.contributions(&effect.outgoing)?,
            None => vec![],
        };
        let changed = inner.state.take_changed();
        self.vault.write(
            &inner.state,
            &changed,
            &change.brought,
            &change.sources,
            &effect.dropped,
        )?;
        inner.doubt = false;
        self.say_recalled(&inner.state);
        inner.doomed.handles.extend(&effect.forgotten);
        if let Some(generation) = effect.recalled {
            inner.doomed.generation = Some(generation);
            inner.kept.clear();
        }
        let destroyed = self.destroy_doomed(inner);
        inner.owed.extend(outgoing);
        self.fold_in(inner, &effect.incoming, &change.cleared().collect());
        destroyed
    }
}

impl Change {
    /// Decides, and makes it part of the state; what it was before is noted. Returns the events.
    fn step(
        &mut self,
        state: &mut State,
        command: &Command,
        now: u64,
    ) -> Result<Vec<Event>, TallyError> {
        let events = decide(state, command, now)?;
        self.take(state, &events);
        Ok(events)
    }
}
