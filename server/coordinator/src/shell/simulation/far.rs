//! A tally of its own: its process, on a machine of its own, and the line to it, which loses
//! requests and answers. The tally lies at times, within its protocol.

use std::collections::VecDeque;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lethe_learn::seed::{Seed, Stream};
use lethe_ledger::Now;
use lethe_proto::ids::Digest;
use lethe_proto::tally::{
    SnapshotHead, TallyRefusal, TallyReply, TallyRequest, TallyState, TallyTables,
};
use lethe_receipt::note::Signer;
use lethe_recsys::versions::entries;
use lethe_store::keys::Keys;
use lethe_tally::Tally;
use lethe_tally::settings::ListsConfig;
use lethe_tallyd::{Opening, Service, TallydError};

use super::begin::items;
use super::disk::{Backup, Disk, folder};
use super::record::Count;
use crate::CoordinatorError;
use crate::lists::{Broken, Line, Remembered};
use crate::rounds::internal;

/// What the coordinator keeps of its tally, in its data folder.
const FILE: &str = "simulated-line.json";
/// Tables that a tally which lies may show again.
const OLD: usize = 6;

/// How often what goes wrong, as parts of all requests.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Troubles {
    /// A request is lost, or its answer.
    pub(super) loss: f32,
    /// The process dies when it has answered.
    pub(super) death: f32,
    /// What it says is not so.
    pub(super) lies: f32,
    /// Contributions come when their answer is not waited for any more.
    pub(super) late: f32,
}

/// The tally's process, and the machine that it runs on.
pub(super) struct Machine {
    folder: tempfile::TempDir,
    pub(super) disk: Disk,
    lists: ListsConfig,
    clock: Arc<Mutex<Now>>,
    dice: Stream,
    service: Option<Arc<Service>>,
    /// Connections that were ever made. The newest is the one that is open, if one is.
    connection: u64,
    /// It was greeted on it.
    greeted: bool,
    /// Nothing gets through.
    pub(super) cut: bool,
    /// Nothing goes wrong.
    pub(super) calm: bool,
    pub(super) troubles: Troubles,
    /// What it has served, the newest last.
    old: VecDeque<(u64, TallyTables)>,
    /// The statement about handles that it signed last.
    vouched: Option<String>,
    /// Contributions that are still on their way.
    pub(super) late: Vec<TallyRequest>,
    /// Contributions came whose answers may be lost.
    pub(super) in_doubt: bool,
    pub(super) backup: Option<Backup>,
    pub(super) count: Count,
}

/// It, from both sides.
#[derive(Clone)]
pub(super) struct Far(Arc<Mutex<Machine>>);

impl Far {
    /// Its process runs, and nothing goes wrong yet.
    pub(super) fn new(seed: u64, lists: ListsConfig, clock: Arc<Mutex<Now>>) -> Self {
        let mut machine = Machine {
            folder: folder(),
            disk: Disk::default(),
            lists,
            clock,
            dice: Seed::from_u64(seed).derive("far", &[]).rng(),
            service: None,
            connection: 0,
            greeted: false,
            cut: false,
            calm: true,
            troubles: Troubles::default(),
            old: VecDeque::new(),
            vouched: None,
            late: vec![],
            in_doubt: false,
            backup: None,
            count: Count::default(),
        };
        machine.start().expect("a new folder opens");
        Self(Arc::new(Mutex::new(machine)))
    }

    pub(super) fn machine(&self) -> MutexGuard<'_, Machine> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A way to it for a coordinator with this data folder.
    pub(super) fn line(&self, data: &Path) -> Result<Box<dyn Line>, CoordinatorError> {
        let file = data.join(FILE);
        let remembered = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| internal(&e))?,
            Err(_) => Remembered::default(),
        };
        Ok(Box::new(Wire {
            far: self.clone(),
            file,
            connection: AtomicU64::new(0),
            remembered: Mutex::new(remembered),
        }))
    }
}

impl Machine {
    pub(super) fn data(&self) -> PathBuf {
        self.folder.path().join("tally")
    }

    fn second(&self) -> u64 {
        self.clock.lock().unwrap().unix_ms / 1000
    }

    pub(super) fn start(&mut self) -> Result<(), TallydError> {
        let on = self.disk.clone();
        let engine = move |path: &Path| on.open(path);
        let service = Service::open(Opening {
            engine: &engine,
            folder: &self.data(),
            keys: Keys::in_folder(&self.folder.path().join("keys")),
            evidence: &self.folder.path().join("evidence"),
            items: entries(&items()),
            vectors: None,
            lists: self.lists.clone(),
            audits: false,
            reserve: 0,
            now: self.second(),
        })?;
        self.service = Some(Arc::new(service));
        Ok(())
    }

    /// The process dies, and with it its connections and tickets.
    pub(super) fn die(&mut self) {
        self.service = None;
        self.late.clear();
        self.hang_up();
    }

    fn hang_up(&mut self) {
        self.connection += 1;
        self.greeted = false;
    }

    pub(super) fn is_up(&self) -> bool {
        self.service.is_some()
    }

    /// The coordinator can reach it, and has greeted it.
    pub(super) fn is_reached(&self) -> bool {
        self.is_up() && !self.cut && self.greeted
    }

    /// What it would say of itself.
    pub(super) fn state(&self) -> Option<TallyState> {
        self.service.as_ref().map(|s| s.state())
    }

    pub(super) fn key(&self) -> Option<String> {
        self.service.as_ref().map(|s| s.key())
    }

    /// What was on its way arrives.
    pub(super) fn arrive_late(&mut self) {
        let now = self.second();
        let all = std::mem::take(&mut self.late);
        let Some(service) = self.service.clone() else {
            return;
        };
        for request in all {
            self.count.one("late envelopes");
            service.answer(request, now);
        }
    }

    fn happens(&mut self, of: f32) -> bool {
        !self.calm && self.dice.unit() < of
    }

    fn lost<T>(&mut self, what: &'static str) -> Result<T, Broken> {
        self.count.one(what);
        if self.dice.below(2) == 0 {
            self.hang_up();
        }
        Err(Broken("simulated".into()))
    }

    fn connect(&mut self) -> Result<u64, Broken> {
        let loss = self.troubles.loss;
        if self.cut || !self.is_up() || self.happens(loss) {
            return Err(Broken("it cannot be reached".into()));
        }
        self.hang_up();
        Ok(self.connection)
    }

    fn call(&mut self, connection: u64, request: TallyRequest) -> Result<TallyReply, Broken> {
        if self.cut || connection != self.connection {
            return Err(Broken("this connection is lost".into()));
        }
        let Some(service) = self.service.clone() else {
            return Err(Broken("it is down".into()));
        };
        let opens = matches!(request, TallyRequest::Open { .. });
        // As in a party over QUIC: a tally that is behind is sent versions first.
        let first = opens || matches!(request, TallyRequest::Catalogue { .. });
        if !first && !self.greeted {
            return Ok(TallyReply::Refused {
                code: TallyRefusal::NotOpen,
                message: "simulated".into(),
            });
        }
        let brings = matches!(request, TallyRequest::Bring { .. });
        let masks = matches!(request, TallyRequest::Masks(_));
        self.count.add("masks", u64::from(masks));
        let wants = match &request {
            TallyRequest::Tables { number } => Some(*number),
            _ => None,
        };
        let Troubles {
            loss,
            death,
            lies,
            late,
        } = self.troubles;
        if brings && self.happens(late) {
            self.in_doubt = true;
            self.late.push(request);
            return Err(Broken("no answer in time".into()));
        }
        if self.happens(loss) {
            return self.lost("lost requests");
        }
        self.in_doubt |= brings;
        let reply = service.answer(request, self.second());
        drop(service);
        self.greeted |= opens && matches!(reply, TallyReply::Opened(_));
        let before = self.vouched.clone();
        self.keep(&reply);
        if self.happens(loss) {
            return self.lost("lost answers");
        }
        if self.happens(death) {
            self.count.one("tally crashes");
            self.die();
            if self.dice.below(2) == 0 {
                return Err(Broken("it died".into()));
            }
        }
        let old = self.old.iter().find(|o| Some(o.0) == wants).cloned();
        if let (TallyReply::Tables(None), Some((_, tables))) = (&reply, old)
            && self.happens(lies * 10.0)
        {
            // It goes on with a lie.
            self.count.one("lies");
            return Ok(TallyReply::Tables(Some(tables)));
        }
        match self.happens(lies) {
            true => {
                self.count.one("lies");
                Ok(self.lie(reply, before))
            }
            false => Ok(reply),
        }
    }

    /// What a lie may be made of.
    fn keep(&mut self, reply: &TallyReply) {
        match reply {
            TallyReply::Tables(Some(tables)) => {
                let number = self.state().and_then(|s| s.served).map_or(0, |s| s.number);
                if self.old.back().is_none_or(|o| o.0 != number) {
                    self.old.push_back((number, tables.clone()));
                }
                if self.old.len() > OLD {
                    self.old.pop_front();
                }
            }
            TallyReply::Vouched(note) => self.vouched = Some(note.clone()),
            _ => {}
        }
    }

    /// Another answer than the one that is true.
    fn lie(&mut self, truth: TallyReply, vouched: Option<String>) -> TallyReply {
        match truth {
            TallyReply::Tables(Some(tables)) => self.other_tables(tables),
            TallyReply::State(state) => TallyReply::State(self.other_state(state)),
            TallyReply::Done(state) => TallyReply::Done(self.other_state(state)),
            TallyReply::Vouched(note) => {
                self.count.one("old vouches");
                TallyReply::Vouched(vouched.unwrap_or(note))
            }
            TallyReply::Opened(mut terms) => {
                let signer = Signer::from_seed("another/tally", &[9; 32]).unwrap();
                terms.key = signer.verifier().text();
                TallyReply::Opened(terms)
            }
            TallyReply::Tickets(mut all) => {
                all.pop();
                TallyReply::Tickets(all)
            }
            TallyReply::Masks(mut summed) => {
                self.count.one("wrong masks");
                match self.dice.below(3) {
                    0 => drop(summed.counted.pop()),
                    1 => summed.counted.push(0),
                    _ => drop(summed.sum.pop()),
                }
                // One that is right all the same says that nobody is counted.
                if summed.counted.is_empty() {
                    summed.sum = vec![0];
                }
                TallyReply::Masks(summed)
            }
            TallyReply::Answers(mut all) => {
                all.pop();
                TallyReply::Answers(all)
            }
            _ => TallyReply::Searched {
                records: 0,
                hits: vec![],
            },
        }
    }

    fn old_tables(&mut self) -> Option<(u64, TallyTables)> {
        match self.old.len() {
            0 => None,
            n => Some(self.old[self.dice.below(n)].clone()),
        }
    }

    fn other_tables(&mut self, mut tables: TallyTables) -> TallyReply {
        self.count.one("wrong tables");
        let old = self.old_tables().map(|o| o.1);
        match (self.dice.below(4), old) {
            (0, Some(old)) => TallyReply::Tables(Some(old)),
            (1, Some(old)) => {
                tables.note = old.note;
                TallyReply::Tables(Some(tables))
            }
            (2, Some(old)) => {
                tables.bytes = old.bytes;
                TallyReply::Tables(Some(tables))
            }
            _ => {
                let at = self.dice.below(tables.bytes.len().max(1));
                if let Some(byte) = tables.bytes.get_mut(at) {
                    *byte ^= 1;
                }
                TallyReply::Tables(Some(tables))
            }
        }
    }

    fn other_state(&mut self, mut state: TallyState) -> TallyState {
        self.count.one("wrong states");
        match self.dice.below(5) {
            0 => state.recalled = 0,
            1 => state.recalled += 1 + self.dice.below(3) as u64,
            2 => state.recalled = u64::MAX - self.dice.below(2) as u64,
            _ => {
                // One that was served once, recalled or not: it has its tables still.
                let Some((number, tables)) = self.old_tables() else {
                    return state;
                };
                state.served = Some(SnapshotHead {
                    number,
                    digest: Digest::default(),
                    bytes: tables.bytes.len() as u64,
                    people: 0,
                });
                if self.dice.below(2) == 0 {
                    state.recalled = 0;
                }
            }
        }
        state
    }
}

/// A line that does not leave this process.
struct Wire {
    far: Far,
    file: PathBuf,
    connection: AtomicU64,
    remembered: Mutex<Remembered>,
}

/// The tally, as long as somebody looks at it.
struct Up(Arc<Service>);

impl Deref for Up {
    type Target = Tally;

    fn deref(&self) -> &Tally {
        self.0.tally()
    }
}

impl Line for Wire {
    fn connect(&self) -> Result<(), Broken> {
        let connection = self.far.machine().connect()?;
        self.connection.store(connection, Ordering::Relaxed);
        Ok(())
    }

    fn call(&self, request: TallyRequest, _: Duration) -> Result<TallyReply, Broken> {
        let connection = self.connection.load(Ordering::Relaxed);
        self.far.machine().call(connection, request)
    }

    fn place(&self) -> String {
        "simulated".into()
    }

    fn remembered(&self) -> Remembered {
        self.remembered.lock().unwrap().clone()
    }

    fn remember(&self, what: &Remembered) -> Result<(), CoordinatorError> {
        {
            let mut machine = self.far.machine();
            let loss = machine.troubles.loss;
            if machine.happens(loss / 4.0) {
                machine.count.one("nothing remembered");
                return Err(internal(&"simulated"));
            }
        }
        let bytes = serde_json::to_vec(what).map_err(|e| internal(&e))?;
        std::fs::write(&self.file, bytes).map_err(|e| internal(&e))?;
        *self.remembered.lock().unwrap() = what.clone();
        Ok(())
    }

    fn tally(&self) -> Option<Box<dyn Deref<Target = Tally>>> {
        let service = self.far.machine().service.clone()?;
        Some(Box::new(Up(service)))
    }
}
