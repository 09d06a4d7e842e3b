//! The scheduler: one queue of events in virtual time, everything drawn from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use lethe_learn::seed::Stream;
use lethe_ledger::{Command, LogHead, Now, Numbers, RunKey, ShardKey, State};
use lethe_proto::admin::DeletionPhase;
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::{Digest, RoundKey, SubjectId};
use lethe_proto::message::{Erased, Refusal, Reply, Request, Role, ServedAdapter};
use lethe_recipe::Recipe;
use tokio::sync::oneshot::Receiver;

use super::super::Shell;
use super::apart::{Apart, Trouble};
use super::device::{Act, Common, Device};
use super::disk::{Backup, Disk, Fault};
use super::exchange::{Answer, answer, brief, given, kind};
use super::jobs::Running;
use super::listed::Listed;
use super::record::{Count, Trace};
use crate::CoordinatorError;
use crate::arrivals::{Arrived, Fetch};
use crate::config::ServerConfig;

/// When virtual time begins, in milliseconds since 1970.
pub(super) const BEGIN: u64 = 1_800_000_000_000;
/// When faults end: from then on everything has to come to its end.
pub(super) const QUIET: u64 = 60_000;
/// When it has to.
pub(super) const END: u64 = 900_000;

#[derive(Debug)]
pub(super) enum Event {
    Tick,
    /// A request of a device arrives.
    Asked(usize, u64, Request),
    /// An answer arrives.
    Answered(usize, u64, Reply),
    /// A device's clock rings, unless something else happened to it since.
    Rings(usize, u64),
    /// What arrived together is written.
    Written,
    DeviceRestarts(usize),
    /// The coordinator's process dies; after so many milliseconds it is started again.
    Crash(u64),
    Start,
    /// A database fails.
    Fails(Fault),
    /// A file of the evidence folder fails: the one after so many, and it is there or not.
    EvidenceFails(u32, bool),
    /// The disk is full, or not any more.
    Full(bool),
    /// Keys cannot be destroyed: before the new keyring, or before the old one is wiped.
    KeysStay(bool),
    KeysGo,
    /// A device can be reached, or not.
    Partition(usize, bool),
    Forget(Vec<DeletionRequest>),
    Approve,
    Replay,
    /// An operator starts the next epoch, or gives it up.
    Roll,
    CancelRoll,
    /// An operator lifts a restriction.
    Lift,
    /// A device gets another certificate.
    Renew(usize),
    /// An operator withdraws somebody's certificates; or has something entered into the log.
    Revoke(usize),
    Note,
    /// Somebody who is unknown, or was turned away, is invited again.
    Return(usize),
    /// The result of a job is there.
    JobEnds(u64),
    /// A result is offered once more.
    Again(u64),
    Snapshot,
    Backup,
    Restore,
    /// Devices contribute to lists; what has come is taken; a person takes part no longer; the
    /// thread that makes snapshots looks.
    Contribute,
    Stored,
    Uncontribute(usize),
    Lists,
    /// A database is found damaged at the next start, or is gone.
    Damage(&'static str, bool),
    /// Something happens to a tally of its own.
    Apart(Trouble),
    /// So many milliseconds pass in which nothing happens.
    Leap(u64),
}

/// What waits to be written together with others.
pub(super) struct Waiting {
    device: usize,
    call: u64,
    what: What,
    written: Receiver<Result<(), CoordinatorError>>,
}

enum What {
    Update(Box<Arrived>),
    Fetch(Fetch, Vec<ServedAdapter>),
}

/// What happens to messages.
pub(super) struct Network {
    pub(super) loss: f32,
    pub(super) duplicates: f32,
    pub(super) delay: u64,
}

/// What was seen, and must not be otherwise later.
#[derive(Default)]
pub(super) struct Seen {
    /// Updates that were acknowledged.
    pub(super) acknowledged: BTreeSet<(RunKey, SubjectId)>,
    pub(super) runs: BTreeMap<ShardKey, (u32, u16, u16)>,
    pub(super) numbers: Numbers,
    pub(super) release: u64,
    pub(super) recalled: u64,
    pub(super) restricted: BTreeSet<SubjectId>,
    /// Deletions that were accepted.
    pub(super) accepted: BTreeMap<u64, DeletionRequest>,
    /// Requests of every command, by the reference that came with it.
    pub(super) asked: BTreeMap<String, usize>,
    pub(super) head: LogHead,
    /// Whose certificates were withdrawn.
    pub(super) revoked: BTreeSet<SubjectId>,
    /// Who came back after everything about them was erased.
    pub(super) returned: BTreeSet<SubjectId>,
    /// Updates that counted in a later round.
    pub(super) late: BTreeSet<(RunKey, SubjectId)>,
}

/// A coordinator, its devices, and everything that goes wrong.
pub(super) struct Simulation {
    pub(super) seed: u64,
    pub(super) now: u64,
    /// Time that passed at once, in milliseconds; `now` is without it.
    pub(super) leapt: u64,
    pub(super) dice: Stream,
    pub(super) queue: BTreeMap<(u64, u64), Event>,
    pub(super) events: u64,
    pub(super) network: Network,
    pub(super) config: ServerConfig,
    pub(super) recipe: Recipe,
    pub(super) disk: Disk,
    pub(super) shell: Option<Arc<Shell>>,
    pub(super) clock: Arc<Mutex<Now>>,
    /// Virtual time at which the coordinator was started, with all that was leapt.
    pub(super) started: u64,
    pub(super) devices: Vec<Device>,
    pub(super) cut: BTreeSet<usize>,
    pub(super) common: Common,
    pub(super) waiting: Vec<Waiting>,
    pub(super) jobs: Arc<Mutex<Running>>,
    /// Longest time that adding up takes, in milliseconds; 0: it has ended at once.
    pub(super) adding: u64,
    /// How long a result is waited for.
    pub(super) patience: u64,
    pub(super) approvals: u8,
    pub(super) backup: Option<Backup>,
    /// What the process knew when it died, unless a write was in doubt.
    pub(super) before: Option<State>,
    /// The next start may find what the process before it did not know: a shard was lost, a backup
    /// came back, or a file has what its write said it had not.
    pub(super) surprised: bool,
    pub(super) seen: Seen,
    pub(super) trace: Trace,
    pub(super) count: Count,
    pub(super) listed: Listed,
    /// A tally of its own, if there is one.
    pub(super) apart: Option<Apart>,
    pub(super) folder: tempfile::TempDir,
}

impl Simulation {
    pub(super) fn at(&mut self, when: u64, event: Event) {
        self.events += 1;
        self.queue.insert((when, self.events), event);
    }

    /// Whether nothing fails any more.
    pub(super) fn is_quiet(&self) -> bool {
        self.now >= QUIET || self.common.steady
    }

    /// One in so many, while things go wrong.
    pub(super) fn chance(&mut self, of: usize) -> bool {
        !self.is_quiet() && self.dice.below(of) == 0
    }

    pub(super) fn set_clock(&self) {
        *self.clock.lock().unwrap() = Now {
            unix_ms: BEGIN + self.now + self.leapt,
            uptime_ms: self.now + self.leapt - self.started,
        };
    }

    /// Sends a message over the network: lost, late, twice, overtaken.
    fn travel(&mut self, device: usize, event: impl Fn() -> Event) {
        let lost = !self.is_quiet() && self.dice.unit() < self.network.loss;
        if self.cut.contains(&device) || lost {
            return;
        }
        let twice = !self.is_quiet() && self.dice.unit() < self.network.duplicates;
        for _ in 0..1 + u8::from(twice) {
            let delay = 1 + self.dice.below(self.network.delay as usize) as u64;
            self.at(self.now + delay, event());
        }
    }

    pub(super) fn act(&mut self, n: usize, act: Act) {
        self.devices[n].call += 1;
        let call = self.devices[n].call;
        match act {
            Act::Stop => {}
            Act::Wait(ms) => self.at(self.now + ms, Event::Rings(n, call)),
            Act::Send(request, patience) => {
                self.travel(n, || Event::Asked(n, call, request.clone()));
                self.at(self.now + patience, Event::Rings(n, call));
            }
        }
    }

    /// One event. False when everything is done.
    pub(super) fn step(&mut self) -> bool {
        let Some(((when, _), event)) = self.queue.pop_first() else {
            return false;
        };
        self.now = when;
        self.set_clock();
        let stale = match &event {
            Event::Answered(n, call, _) | Event::Rings(n, call) => self.devices[*n].call != *call,
            Event::Tick | Event::Written | Event::Lists | Event::Stored => true,
            _ => false,
        };
        if !stale {
            self.note(format!("{when} {}", short(&event)));
        }
        self.happen(event);
        self.begin_jobs();
        self.after_event_apart();
        self.look();
        self.now < END && !self.settled()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick => {
                self.duties();
                self.at(self.now + 200, Event::Tick);
            }
            Event::Asked(n, call, request) => self.serve(n, call, request),
            Event::Answered(n, call, reply) if self.devices[n].call == call => {
                let dice = &mut self.dice;
                let act = self.devices[n].answered(&mut self.common, reply, self.now, dice);
                self.act(n, act);
            }
            Event::Rings(n, call) if self.devices[n].call == call => {
                let act = self.devices[n].awake(&self.common, self.now, &mut self.dice);
                self.act(n, act);
            }
            Event::Answered(..) | Event::Rings(..) => {}
            Event::Written => self.write_together(),
            Event::DeviceRestarts(n) => {
                self.devices[n].restart();
                let down = self.dice.below(5000) as u64;
                self.act(n, Act::Wait(down));
            }
            Event::Crash(down) => {
                self.crash();
                self.at(self.now + down, Event::Start);
            }
            Event::Start => self.start(),
            Event::Partition(n, true) => drop(self.cut.insert(n)),
            Event::Partition(n, false) => drop(self.cut.remove(&n)),
            Event::Forget(requests) => self.forget(requests),
            Event::Approve => self.approve(),
            Event::Replay => self.replay(),
            Event::Roll => self.roll(),
            Event::CancelRoll => self.cancel_roll(),
            Event::Lift => self.lift(),
            Event::Renew(n) => self.renew(n),
            Event::Revoke(n) => self.revoke(n),
            Event::Note => self.take_note(),
            Event::Return(n) => self.come_back(n),
            Event::JobEnds(id) => self.job_ends(id),
            Event::Again(id) => self.offer_again(id),
            Event::Contribute | Event::Stored | Event::Uncontribute(_) | Event::Lists => {
                self.happen_to_lists(event);
            }
            Event::Apart(trouble) => self.trouble(trouble),
            Event::Leap(ms) => self.leapt += ms,
            other => self.fault(other),
        }
    }

    /// What the listener does with a request; nothing comes back from a coordinator that is down.
    fn serve(&mut self, n: usize, call: u64, request: Request) {
        let Some(shell) = self.shell.clone() else {
            return;
        };
        let device = self.devices[n].certificate;
        if shell.state().replaces(&device) {
            // As when it connects.
            let used = Command::CertificateUsed {
                certificate: device,
            };
            let used = shell.execute(used, vec![]);
            self.count.add("renewals", u64::from(used.is_ok()));
        }
        let who = shell.state().who(&device);
        let refused = match who {
            Ok(Some(Role::Subject(_))) => None,
            Ok(_) => Some((Refusal::Forbidden, "unknown".into())),
            Err(e) => Some((e.code, e.message)),
        };
        if let Some((code, message)) = refused {
            return self.reply(n, call, Reply::Refused { code, message });
        }
        let update = match &request {
            Request::Update { round, .. } => {
                Some((of_wire(*round), self.devices[n].subject.clone()))
            }
            _ => None,
        };
        if let Request::Erased {
            outcome: Erased::WaitsForConsent,
            ..
        } = &request
        {
            self.count.one("withheld");
        }
        let waiting = match answer(&shell, device, request) {
            Answer::Now(reply) => {
                if let (Some(of), Reply::Ack) = (update, &reply) {
                    self.count.one("repeated updates");
                    self.seen.acknowledged.insert(of);
                }
                return self.reply(n, call, reply);
            }
            Answer::Stores(arrived, written) => Waiting {
                device: n,
                call,
                what: What::Update(arrived),
                written,
            },
            Answer::Fetches(fetch, adapters, written) => Waiting {
                device: n,
                call,
                what: What::Fetch(fetch, adapters),
                written,
            },
        };
        if self.waiting.is_empty() {
            let together = self.dice.below(40) as u64;
            self.at(self.now + together, Event::Written);
        }
        self.waiting.push(waiting);
    }

    fn reply(&mut self, n: usize, call: u64, reply: Reply) {
        if let Reply::Refused {
            code: Refusal::Forbidden,
            message,
        } = &reply
        {
            // Its device gives up.
            let subject = &self.devices[n].subject;
            let all = self.seen.accepted.values();
            let erased = |r: &&DeletionRequest| r.erases_subject() && r.subject() == Some(subject);
            let gone = message.contains("restricted")
                || self.seen.revoked.contains(subject)
                || all.filter(erased).count() > 0;
            assert!(
                gone,
                "{}: {subject} is turned away: {message}",
                self.story()
            );
        }
        self.note(format!("{} answer to {n}: {}", self.now, brief(&reply)));
        self.travel(n, || Event::Answered(n, call, reply.clone()));
    }

    /// Writes what many have brought, and answers each.
    fn write_together(&mut self) {
        let Some(shell) = self.shell.clone() else {
            return;
        };
        let mut updates = vec![];
        let mut fetches = vec![];
        let mut answers = vec![];
        for w in std::mem::take(&mut self.waiting) {
            let about = match w.what {
                What::Update(arrived) => {
                    let of = (arrived.run, arrived.subject.clone());
                    updates.push(*arrived);
                    About::Update(of)
                }
                What::Fetch(fetch, adapters) => {
                    let release = fetch.release;
                    fetches.push(fetch);
                    About::Release(release, adapters)
                }
            };
            answers.push((w.device, w.call, about, w.written));
        }
        self.count.add("together", u64::from(updates.len() > 1));
        shell.take_updates(updates);
        shell.take_fetches(fetches);
        for (n, call, about, mut written) in answers {
            let written = written.try_recv().expect("everybody is answered");
            let device = self.devices[n].certificate;
            let reply = match (written, about) {
                (Err(e), _) => e.reply(),
                (Ok(()), About::Update(of)) => {
                    self.count.one("updates");
                    self.seen.acknowledged.insert(of);
                    Reply::Ack
                }
                (Ok(()), About::Release(no, adapters)) => {
                    self.count.one("fetches");
                    let given = given(&shell, device, no, adapters);
                    given.unwrap_or_else(CoordinatorError::reply)
                }
            };
            self.reply(n, call, reply);
        }
    }

    /// Into the trace, which must not depend on where the data folder is, or on a tally's key.
    pub(super) fn note(&mut self, line: String) {
        let folder = self.folder.path().display().to_string();
        let mut line = line.replace(&folder, "FOLDER");
        if let Some(key) = self.apart.as_ref().map(Apart::key) {
            line = line.replace(&key, "KEY");
        }
        self.trace.line(line);
    }

    /// Faults are over, training is, and every deletion has its receipt.
    fn settled(&self) -> bool {
        let over = self.common.steady || self.now > QUIET;
        let Some(shell) = self.shell.as_ref().filter(|_| over) else {
            return false;
        };
        let state = shell.state();
        let pending = |e: &Event| {
            matches!(
                e,
                Event::Forget(_)
                    | Event::Approve
                    | Event::Return(_)
                    | Event::Roll
                    | Event::Crash(_)
                    | Event::Start
            )
        };
        let mut living = state.living().rev();
        let begun = living.find(|(_, e)| e.partition.is_some());
        let serving = state.core().serving;
        let trained = begun.is_some_and(|(no, e)| e.trained() && serving == Some(no));
        let followed = serving.is_some_and(|no| state.living().any(|(other, _)| other < no));
        let nobody = state.people().values().all(|p| p.devices.is_empty());
        let replays = state
            .shards()
            .all(|(_, _, s)| s.replay.as_ref().is_none_or(|r| !r.runs()));
        let done = |d: &lethe_ledger::Deletion| d.phase == DeletionPhase::Done;
        !self.queue.values().any(pending)
            && self.is_settled_apart()
            && (nobody || begun.is_none() && !self.common.steady || trained && state.validated())
            && replays
            && !followed
            && state.rolling().is_none()
            && state.core().lost.is_empty()
            && state.core().executing.is_none()
            && state.people().values().all(|p| p.moving.is_none())
            && !state.deletions().values().any(|d| !done(d))
    }

    /// The digest of everything that happened.
    pub(super) fn trace(&self) -> Digest {
        self.trace.digest()
    }

    /// For people.
    pub(super) fn story(&self) -> String {
        format!("{}seed {}", self.trace.text(), self.seed)
    }

    /// What has not come to its end.
    pub(super) fn stuck(&self) -> String {
        let Some(shell) = self.shell.as_ref() else {
            return "the coordinator is down".into();
        };
        let now = shell.clock.now();
        let state = shell.state();
        let deletions = state.deletions().values();
        let deletions: Vec<_> = deletions
            .map(|d| (&d.request, d.phase, state.waits_for(d, now)))
            .collect();
        format!(
            "{:?}\n{:?}\n{deletions:?}\n{:?}\n{:?}",
            state.view(now),
            state.volatile(),
            lethe_ledger::due(&state, now),
            self.devices
        )
    }
}

fn of_wire(round: RoundKey) -> RunKey {
    RunKey {
        epoch: round.epoch,
        shard: round.shard,
        generation: round.generation,
        stage: round.stage,
        round: round.round,
    }
}

/// What an answer is about.
enum About {
    Update((RunKey, SubjectId)),
    Release(u64, Vec<ServedAdapter>),
}

fn short(event: &Event) -> String {
    match event {
        Event::Asked(n, call, r) => format!("{n} asks ({call}): {}", kind(r)),
        Event::Answered(n, call, r) => format!("{n} hears ({call}): {}", brief(r)),
        other => format!("{other:?}"),
    }
}
