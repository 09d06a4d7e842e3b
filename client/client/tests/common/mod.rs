//! A coordinator that serves lists and nothing else, over real connections; with a tally of its own
//! in the same process, where a test wants one.
#![allow(missing_docs, clippy::unwrap_used, dead_code)]

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use lethe_client::{Catalogue, Client, EventTable, Item, LocalEvent, Options};
use lethe_parts::content::{Content, Description};
use lethe_parts::contribution::{Bounds, Contribution};
use lethe_parts::history::Interaction;
use lethe_parts::snapshot::{self, Packing};
use lethe_parts::solve::{Settings, solve};
use lethe_parts::sums::Sums;
use lethe_proto::catalogue::CatalogueReply;
use lethe_proto::epochs::{EpochInfo, JoinedEpoch, TrainsFrom};
use lethe_proto::ids::{Digest, EpochNo, SubjectId};
use lethe_proto::lists::{
    Contributed, ListState, ListTerms, ServedTables, SnapshotReply, Watched, items_digest,
};
use lethe_proto::message::{Refusal, Reply, Request, ServedPart, Task};
use lethe_proto::people::Standing;
use lethe_proto::tally::{
    ANSWER, CONTRIBUTION, Confided, SealedContribution, SealingTerms, bound_to, unpadded,
};
use lethe_receipt::merkle::Tree;
use lethe_receipt::note::Signer;
use lethe_receipt::sealing::SealingStatement;
use lethe_receipt::served::{Proven, SERVED_VERSION, SnapshotNamed, public_entry};
use lethe_receipt::snapshot::SnapshotStatement;
use lethe_receipt::statement::Kind;
use lethe_seal::envelope::SecretKey;
use lethe_transport::identity::{Authority, Invitation};
use lethe_transport::server::{Handler, ReplyFuture, Server};

pub(crate) const TAGS: [&str; 4] = ["Drama", "Comedy", "War", "Noir"];

/// Day of the snapshots, since 1970.
pub(crate) const DAY: i32 = 19_700;

pub(crate) fn time(n: i64) -> i64 {
    i64::from(DAY) * 86_400 + n
}

pub(crate) fn ids(items: std::ops::Range<usize>) -> Vec<String> {
    items.map(|i| format!("item-{i}")).collect()
}

/// A catalogue of `item-N`, tagged by turns.
pub(crate) fn catalogue(items: std::ops::Range<usize>) -> Arc<Catalogue> {
    let item = |i: usize| Item {
        id: format!("item-{i}"),
        title: format!("Title {i}"),
        year: Some(1990),
        tags: vec![TAGS[i % TAGS.len()].into()],
    };
    Catalogue::new(items.map(item).collect(), &EventTable::default(), None).unwrap()
}

/// A snapshot over these items: people like one tag, and `shift` changes who met what.
pub(crate) fn snapshot_of(ids: &[String], shift: usize) -> Vec<u8> {
    let number = |id: &String| id.trim_start_matches("item-").parse::<usize>().unwrap();
    let described: Vec<Description> = ids
        .iter()
        .map(|id| Description {
            title: id.clone(),
            year: None,
            tags: vec![TAGS[number(id) % TAGS.len()].into()],
        })
        .collect();
    let bounds = Bounds {
        items: ids.len(),
        clip: 50,
        first_day: 0,
        last_day: DAY,
    };
    let mut sums = Sums::new(ids.len());
    for person in 0..80 {
        let mine = |at: &usize| number(&ids[*at]) % TAGS.len() == person % TAGS.len();
        let met: Vec<usize> = (0..ids.len()).filter(mine).collect();
        let interaction = |n: usize| Interaction {
            item: met[(person * 3 + n * (1 + shift)) % met.len()] as u32,
            day: DAY - 20 + n as i32,
            seen: true,
            half_stars: Some(if n.is_multiple_of(3) { 4 } else { 9 }),
            liked: !n.is_multiple_of(3),
            hidden: false,
        };
        let read: Vec<Interaction> = (0..6).map(interaction).collect();
        sums.fold(&Contribution::new(&read, &bounds).unwrap())
            .unwrap();
    }
    let settings = Settings {
        rank: 8,
        ..Settings::default()
    };
    let solved = solve(&sums, &Content::new(&described), &settings, DAY).unwrap();
    snapshot::encode(&solved.tables, &Packing::default()).unwrap()
}

/// What the coordinator serves and was told.
pub(crate) struct State {
    pub(crate) signer: Signer,
    pub(crate) terms: Option<ListTerms>,
    pub(crate) lists: ListState,
    pub(crate) ids: Vec<String>,
    /// By number.
    pub(crate) snapshots: Vec<(u64, Vec<u8>)>,
    /// What is sent in place of the right note.
    pub(crate) forged_note: Option<String>,
    pub(crate) contributed: Vec<Contributed>,
    pub(crate) withdrawn: usize,
    /// Answers to the next contributions, before they are taken.
    pub(crate) refusals: Vec<(Refusal, String)>,
    pub(crate) deltas: usize,
    pub(crate) hellos: Vec<Digest>,
    pub(crate) joined: Vec<u32>,
    pub(crate) admits: bool,
    /// Minor version that it speaks.
    pub(crate) minor: u16,
    /// It has a tally of its own.
    pub(crate) tally: Option<Tally>,
    pub(crate) terms_asked: usize,
    pub(crate) sealed: Vec<SealedContribution>,
    /// The log.
    pub(crate) tree: Tree,
    /// What the log holds of snapshots, by number: the statement, and where it is.
    pub(crate) logged: Vec<(u64, String, u64)>,
    /// It shows another head than the log's: of this log, under its own key.
    pub(crate) other_log: Option<Tree>,
    /// Proofs that it was asked for.
    pub(crate) proofs_asked: usize,
}

/// A tally of its own: what it shows, what it was brought, and what it says.
pub(crate) struct Tally {
    pub(crate) key: SecretKey,
    /// Signs the statement; none: what signs snapshots.
    pub(crate) signer: Option<Signer>,
    /// Times of the statement, in seconds from now.
    pub(crate) times: [i64; 2],
    pub(crate) handle: [u8; 16],
    pub(crate) tickets: Vec<[u8; 32]>,
    /// What came out of the envelopes.
    pub(crate) opened: Vec<Contributed>,
    /// What it says to the next contributions, instead of taking them.
    pub(crate) says: Vec<Confided>,
    /// Its answer is of another envelope.
    pub(crate) wrong_answer: bool,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            key: SecretKey::from_seed(&[7; 32]),
            signer: None,
            times: [-60, 86_400],
            handle: [5; 16],
            tickets: vec![],
            opened: vec![],
            says: vec![],
            wrong_answer: false,
        }
    }

    fn terms(&mut self, of_snapshots: &Signer) -> SealingTerms {
        let signer = self.signer.as_ref().unwrap_or(of_snapshots);
        let now = std::time::SystemTime::now();
        let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let statement = SealingStatement {
            key: self.key.public().0,
            from: now.saturating_add_signed(self.times[0]),
            until: now.saturating_add_signed(self.times[1]),
        };
        let ticket = [self.tickets.len() as u8 + 1; 32];
        self.tickets.push(ticket);
        SealingTerms {
            key: signer.verifier().text(),
            note: statement.sign(signer).unwrap(),
            handle: self.handle,
            ticket,
        }
    }

    /// What the device is told, sealed.
    fn take(&mut self, sealed: &SealedContribution) -> Vec<u8> {
        assert_eq!(self.tickets.last(), Some(&sealed.ticket));
        let bound = bound_to(&self.handle, &sealed.ticket);
        let opened = self
            .key
            .open(CONTRIBUTION, &bound, &sealed.envelope, ANSWER);
        let opened = opened.unwrap();
        self.opened.push(unpadded(&opened.plain).unwrap());
        let answer = match self.says.is_empty() {
            true => Confided::Taken,
            false => self.says.remove(0),
        };
        let answer = answer.to_bytes().unwrap();
        if self.wrong_answer {
            let public = self.key.public();
            let other = lethe_seal::envelope::seal_to(&public, b"", b"", b"", ANSWER).unwrap();
            return other.answer.seal(&answer).unwrap();
        }
        opened.answer.seal(&answer).unwrap()
    }
}

pub(crate) struct Coordinator {
    pub(crate) state: Mutex<State>,
    authority: Authority,
    log: Signer,
}

pub(crate) struct Running {
    pub(crate) coordinator: Arc<Coordinator>,
    pub(crate) addr: SocketAddr,
    server: Server,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.server.close();
    }
}

impl Running {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.coordinator.state.lock().unwrap()
    }

    /// Serves another snapshot, which its log holds.
    pub(crate) fn publish(&self, number: u64, shift: usize) {
        let mut state = self.state();
        let bytes = snapshot_of(&state.ids, shift);
        state.log(number, &bytes);
        state.snapshots.push((number, bytes));
        state.lists.served = Some(number);
    }

    pub(crate) fn invitation(&self) -> String {
        Invitation::new(format!("for {}", self.addr), &self.coordinator.authority)
            .with_log_key(self.coordinator.log.verifier().text())
            .text()
    }

    pub(crate) fn options(&self, catalogue: &Arc<Catalogue>) -> Options {
        Options::new(catalogue.clone())
            .server(self.addr)
            .invitation(self.invitation())
    }

    pub(crate) fn client(&self, folder: &Path, catalogue: &Arc<Catalogue>) -> Client {
        Client::open(folder, self.options(catalogue)).unwrap()
    }

    /// Connections are ended, and none is accepted.
    pub(crate) fn stop(&self) {
        self.server.close();
    }
}

/// Starts one with a tally of its own.
pub(crate) async fn start_sealed(ids: Vec<String>) -> Running {
    let running = start(ids).await;
    {
        let mut state = running.state();
        state.minor = 3;
        state.tally = Some(Tally::new());
    }
    running
}

/// Starts one for these items; nothing is served yet.
pub(crate) async fn start(ids: Vec<String>) -> Running {
    let state = State {
        signer: Signer::from_seed("tally", &[3; 32]).unwrap(),
        terms: Some(ListTerms {
            clip: 5,
            refresh_s: 0,
            valid_s: 3_600,
        }),
        lists: ListState::default(),
        ids,
        snapshots: vec![],
        forged_note: None,
        contributed: vec![],
        withdrawn: 0,
        refusals: vec![],
        deltas: 0,
        hellos: vec![],
        joined: vec![],
        admits: true,
        minor: 2,
        tally: None,
        terms_asked: 0,
        sealed: vec![],
        tree: Tree::default(),
        logged: vec![],
        other_log: None,
        proofs_asked: 0,
    };
    let coordinator = Arc::new(Coordinator {
        state: Mutex::new(state),
        authority: Authority::create().unwrap(),
        log: Signer::from_seed("log", &[9; 32]).unwrap(),
    });
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), &coordinator.authority).unwrap();
    let addr = server.local_addr().unwrap();
    let listener = server.clone();
    let handler = coordinator.clone();
    tokio::spawn(async move { listener.run(handler).await });
    Running {
        coordinator,
        addr,
        server,
    }
}

pub(crate) fn note(signer: &Signer, number: u64, bytes: &[u8]) -> String {
    let statement = SnapshotStatement {
        number,
        day: DAY,
        snapshot: snapshot::digest(bytes),
        sums: [0; 32],
        fold: [0; 32],
        people: 80,
        cell: 16,
        changed: 8,
        k: 3,
        noise: None,
    };
    statement.sign(signer).unwrap()
}

impl State {
    /// Enters a snapshot into the log.
    pub(crate) fn log(&mut self, number: u64, bytes: &[u8]) {
        let named = SnapshotNamed {
            version: SERVED_VERSION,
            number,
            sha256: Digest(snapshot::digest(bytes)).hex(),
            key: self.signer.verifier().text(),
        };
        let index = self
            .tree
            .push(&public_entry(Kind::Snapshot, &named.bytes()));
        let statement = String::from_utf8(named.bytes()).unwrap();
        self.logged.retain(|l| l.0 != number);
        self.logged.push((number, statement, index));
    }

    fn proven(&mut self, number: u64, seen: u64, log: &Signer) -> Reply {
        self.proofs_asked += 1;
        let logged = self.logged.iter().find(|l| l.0 == number);
        let Some((_, statement, index)) = logged else {
            return Reply::Refused {
                code: Refusal::StaleRelease,
                message: "not in the log".into(),
            };
        };
        let tree = self.other_log.as_ref().unwrap_or(&self.tree);
        Reply::Logged(Proven {
            statement: statement.clone(),
            index: *index,
            proof: tree.inclusion(*index).unwrap_or_default(),
            checkpoint: log.checkpoint(tree.len(), &tree.root()),
            consistency: tree.consistency(seen).unwrap_or_default(),
        })
    }
}

impl Coordinator {
    fn snapshot(&self, have: u64, items: Digest) -> Reply {
        let mut state = self.state.lock().unwrap();
        let tables = match state.lists.served {
            None => ServedTables::None,
            Some(number) if number == have => ServedTables::Same,
            Some(number) => {
                let of = |n: u64| state.snapshots.iter().find(|s| s.0 == n).map(|s| &s.1);
                let bytes = of(number).unwrap().clone();
                let own = note(&state.signer, number, &bytes);
                let note = state.forged_note.clone().unwrap_or(own);
                match of(have).map(|old| snapshot::delta(old, &bytes).unwrap()) {
                    Some(bytes) => {
                        state.deltas += 1;
                        ServedTables::Delta { note, bytes }
                    }
                    None => ServedTables::Whole { note, bytes },
                }
            }
        };
        let known = items_digest(state.ids.iter().map(String::as_str)) == items;
        Reply::Snapshot(SnapshotReply {
            terms: state.terms,
            state: state.lists,
            key: state.signer.verifier().text(),
            items: if known { vec![] } else { state.ids.clone() },
            tables,
        })
    }

    fn answer(&self, request: Request) -> Reply {
        match request {
            Request::Enrol { csr, .. } => Reply::Enrolled {
                certificate: self.authority.sign(&csr, Duration::from_secs(600)).unwrap(),
                subject: SubjectId::new("anna").ok(),
            },
            Request::Hello { model, .. } => {
                let mut state = self.state.lock().unwrap();
                state.hellos.push(model);
                Reply::Welcome {
                    recipe: lethe_recipe::Recipe::default().to_json(),
                    anchors: vec![],
                    engine: "none".into(),
                    minor: state.minor,
                    log_key: self.log.verifier().text(),
                    recalled: 0,
                }
            }
            Request::Join {
                samples,
                commitment,
                ..
            } => {
                self.state.lock().unwrap().joined.push(samples);
                Reply::Joined {
                    shard: None,
                    commitment,
                }
            }
            Request::Watch { .. } => Reply::Watched(Watched {
                task: Task::Wait,
                recalled: 0,
                lists: self.state.lock().unwrap().lists,
            }),
            Request::Snapshot { have, items } => self.snapshot(have, items),
            Request::Logged {
                of: ServedPart::Snapshot(number),
                seen,
            } => self.state.lock().unwrap().proven(number, seen, &self.log),
            Request::Epochs => Reply::Epochs(vec![EpochInfo {
                no: EpochNo::FIRST,
                recipe: lethe_recipe::Recipe::default().to_json(),
                anchors: vec![],
                model: Digest::default(),
                begun: false,
                serving: true,
            }]),
            Request::JoinEpoch { commitment, .. } => Reply::JoinedEpoch(JoinedEpoch {
                shard: None,
                commitment,
                trains: TrainsFrom::NoSamples,
            }),
            Request::Standing => Reply::Standing(Standing::default()),
            Request::Catalogue { at, .. } => Reply::Catalogue(CatalogueReply {
                version: 1,
                note: String::new(),
                whole: false,
                at,
                changes: vec![],
                more: false,
                epochs: vec![],
            }),
            Request::Contribute(one) => {
                let mut state = self.state.lock().unwrap();
                if !state.refusals.is_empty() {
                    let (code, message) = state.refusals.remove(0);
                    return Reply::Refused { code, message };
                }
                lethe_proto::lists::check(&one.events).unwrap();
                state.contributed.push(one);
                Reply::Ack
            }
            Request::Terms => {
                let mut state = self.state.lock().unwrap();
                assert!(state.minor >= 3, "asked of one that does not know it");
                state.terms_asked += 1;
                let State { tally, signer, .. } = &mut *state;
                Reply::Terms(tally.as_mut().map(|t| t.terms(signer)))
            }
            Request::ContributeSealed(one) => {
                let mut state = self.state.lock().unwrap();
                state.sealed.push(one.clone());
                if !state.refusals.is_empty() {
                    let (code, message) = state.refusals.remove(0);
                    return Reply::Refused { code, message };
                }
                Reply::Confided(state.tally.as_mut().unwrap().take(&one))
            }
            Request::Uncontribute => {
                self.state.lock().unwrap().withdrawn += 1;
                Reply::Ack
            }
            _ => Reply::Refused {
                code: Refusal::Invalid,
                message: "not here".into(),
            },
        }
    }
}

impl Handler for Coordinator {
    fn admits(&self, _: &Digest) -> bool {
        self.state.lock().unwrap().admits
    }
    fn longest(&self, kind: u16) -> usize {
        lethe_proto::codec::limit(kind).unwrap_or(0)
    }
    fn handle(&self, _: Option<Digest>, request: Request, _: usize) -> ReplyFuture {
        let reply = self.answer(request);
        Box::pin(async move { reply })
    }
    fn disconnected(&self, _: &Digest) {}
}

/// Events with items of one tag.
pub(crate) fn likes(tag: usize, n: usize) -> Vec<LocalEvent> {
    (0..n)
        .map(|i| LocalEvent::liked(format!("item-{}", tag + i * TAGS.len()), time(i as i64)))
        .collect()
}

struct Parked(Thread);

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future on this thread, without a runtime.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Parked(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(done) => return done,
            Poll::Pending => std::thread::park(),
        }
    }
}
