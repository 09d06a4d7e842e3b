//! A device as the coordinator meets it: the client library's rules for what is sent when, without
//! a model.

use std::collections::BTreeMap;
use std::sync::Arc;

use lethe_learn::seed::{Seed, Stream};
use lethe_model::lora::AdapterShape;
use lethe_proto::ids::{Digest, EpochNo, RoundKey, ShardId, SubjectId};
use lethe_proto::lists::ListState;
use lethe_proto::message::{
    Declined, Erased, ErrorReport, Orders, Refusal, ReleaseInfo, Reply, Request, RoundStart, Task,
};
use lethe_proto::packed::{Packed, PackedFormat};
use lethe_receipt::note::VerifierKey;
use lethe_receipt::order::{SeenHead, check};
use lethe_recipe::Recipe;

/// Longest wait for an answer, in milliseconds.
const PATIENCE: u64 = 3000;

/// What every device knows.
pub(super) struct Common {
    pub(super) recipe: Recipe,
    pub(super) edge: Arc<AdapterShape>,
    pub(super) hidden: usize,
    pub(super) anchors: usize,
    /// The base model.
    pub(super) model: Digest,
    /// Key of the coordinator's log.
    pub(super) log_key: VerifierKey,
    /// Devices take part in every round that asks them, in time.
    pub(super) steady: bool,
    /// What is left after an erasure may lie nearer to another shard.
    pub(super) wanders: bool,
    /// The newest task that each person's data was erased for: what they train on changes with it.
    pub(super) erased: BTreeMap<SubjectId, u64>,
}

/// What a device does next.
#[derive(Debug)]
pub(super) enum Act {
    /// Sends this, and looks at the clock again after so many milliseconds.
    Send(Request, u64),
    /// Waits so many milliseconds.
    Wait(u64),
    /// Has nothing to do any more.
    Stop,
}

#[derive(Debug)]
enum Phase {
    Greeting,
    Joining,
    Idle,
    Polling,
    Fetching,
    Training(RoundStart, u64),
    Updating(RoundKey, u64),
    Declining(RoundKey),
    Validating(u64, Vec<ShardId>),
    Asking(u64),
    Erasing(u64, Erased),
    Stopped,
}

/// One device.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) subject: SubjectId,
    pub(super) certificate: Digest,
    /// The newest head of the log that it has seen.
    seen: Option<SeenHead>,
    /// The release that it holds.
    pub(super) holds: u64,
    /// Its person has been asked for consent.
    consents: bool,
    /// The newest epoch that it has heard of.
    newest: EpochNo,
    /// The epoch that it joined last.
    joined: Option<EpochNo>,
    /// The call whose answer it waits for.
    pub(super) call: u64,
    phase: Phase,
}

/// What a person's device computes in a round: the same in every generation, other after items were
/// erased.
pub(super) fn update(common: &Common, subject: &SubjectId, round: RoundKey) -> (Packed, f32, u32) {
    let erased = common.erased.get(subject).copied().unwrap_or(0);
    let parts = [
        &round.shard.0.to_le_bytes()[..],
        &round.stage.to_le_bytes(),
        &round.round.to_le_bytes(),
        subject.as_str().as_bytes(),
        &erased.to_le_bytes(),
    ];
    let mut rng = Seed::from_u64(5).derive("simulated update", &parts).rng();
    let values: Vec<f32> = (0..common.edge.len())
        .map(|_| 1e-3 * rng.normal())
        .collect();
    let loss = rng.uniform(0.3, 0.9);
    let samples = 1 + rng.below(8) as u32;
    // Masked on its way, where updates are.
    let format = match common.recipe.grid() {
        Some(_) => PackedFormat::F32,
        None => common.recipe.updates,
    };
    let packed = Packed::encode(&values, format);
    (packed.unwrap(), loss, samples)
}

impl Device {
    pub(super) fn new(subject: SubjectId, certificate: Digest) -> Self {
        Self {
            subject,
            certificate,
            seen: None,
            holds: 0,
            consents: false,
            newest: EpochNo::FIRST,
            joined: None,
            call: 0,
            phase: Phase::Joining,
        }
    }

    /// Loses what it was doing, as when the system stops the app.
    pub(super) fn restart(&mut self) {
        if !matches!(
            self.phase,
            Phase::Stopped | Phase::Joining | Phase::Asking(_) | Phase::Erasing(..)
        ) {
            self.phase = Phase::Greeting;
        }
    }

    /// It was enrolled again.
    pub(super) fn enrolled(&mut self, certificate: Digest) {
        self.certificate = certificate;
        self.phase = Phase::Joining;
    }

    /// It was turned away, and has given up.
    pub(super) fn is_stopped(&self) -> bool {
        matches!(self.phase, Phase::Stopped)
    }

    /// Its coordinator may not know any more that it joined.
    pub(super) fn join_again(&mut self) {
        if !matches!(self.phase, Phase::Stopped) {
            self.phase = Phase::Joining;
            self.holds = 0;
            // An epoch of the same number may be another one now.
            self.newest = EpochNo::FIRST;
            self.joined = None;
        }
    }

    /// The clock rings: it begins, an answer has not come, or the training is done.
    pub(super) fn awake(&mut self, common: &Common, now: u64, dice: &mut Stream) -> Act {
        let request = match &self.phase {
            Phase::Stopped => return Act::Stop,
            Phase::Greeting => Request::Hello {
                build: String::new(),
                model: common.model,
                minor: 0,
            },
            Phase::Joining => self.join(common),
            Phase::Idle | Phase::Polling => {
                self.phase = Phase::Polling;
                Request::Await {
                    lists: ListState::default(),
                    newest: self.newest,
                }
            }
            Phase::Fetching => Request::Release {
                have: Some(self.holds).filter(|n| *n > 0),
                adapters: vec![],
            },
            Phase::Training(start, until) if common.steady || dice.unit() > 0.05 => {
                self.phase = Phase::Updating(start.round, *until);
                return self.awake(common, now, dice);
            }
            Phase::Training(start, _) => {
                self.phase = Phase::Declining(start.round);
                return self.awake(common, now, dice);
            }
            Phase::Declining(round) => Request::Decline {
                round: *round,
                why: Declined::Conditions,
            },
            Phase::Updating(_, until) if now >= *until => {
                self.phase = Phase::Idle;
                return Act::Wait(100);
            }
            Phase::Updating(round, _) => {
                let (delta, loss, samples) = update(common, &self.subject, *round);
                Request::Update {
                    round: *round,
                    delta,
                    loss,
                    samples,
                }
            }
            Phase::Validating(release, shards) => {
                let error = |s: &ShardId| {
                    let parts = [&s.0.to_le_bytes()[..], &release.to_le_bytes()];
                    let seed = Seed::from_u64(9).derive(self.subject.as_str(), &parts);
                    (*s, seed.rng().unit())
                };
                let row = ErrorReport {
                    sample: 0,
                    embedding: vec![0.5; common.hidden],
                    errors: shards.iter().map(error).collect(),
                };
                Request::Errors {
                    release: *release,
                    rows: vec![row],
                }
            }
            Phase::Asking(task) => Request::Orders {
                task: *task,
                seen: self.seen.map_or(0, |s| s.size),
            },
            Phase::Erasing(task, outcome) => Request::Erased {
                task: *task,
                outcome: outcome.clone(),
            },
        };
        Act::Send(request, PATIENCE)
    }

    fn join(&self, common: &Common) -> Request {
        let erased = common.erased.get(&self.subject).copied().unwrap_or(0);
        // Some people's histories name no direction.
        let mut who = self.subject.as_str().as_bytes().to_vec();
        if common.wanders {
            who.extend(erased.to_le_bytes());
        }
        let rank = Seed::from_u64(1).rank("anchor", &who);
        let directed = !rank.is_multiple_of(3);
        let anchor = directed.then_some((rank / 3 % common.anchors as u64) as u16);
        Request::JoinEpoch {
            epoch: self.newest,
            anchor,
            samples: 8,
            commitment: Digest::of(&[self.subject.as_str().as_bytes(), &erased.to_le_bytes()]),
        }
    }

    /// An answer came. How long until the clock rings.
    pub(super) fn answered(
        &mut self,
        common: &mut Common,
        reply: Reply,
        now: u64,
        dice: &mut Stream,
    ) -> Act {
        if let Reply::Refused {
            code: Refusal::Forbidden,
            ..
        } = reply
            // Of a restricted person nothing that was measured is taken; the device goes on.
            && !matches!(self.phase, Phase::Validating(..))
        {
            self.phase = Phase::Stopped;
            return Act::Stop;
        }
        match (&self.phase, reply) {
            (Phase::Polling, Reply::Awaited(awaited)) => {
                self.newest = awaited.newest;
                let act = self.told(common, awaited.watched.task, now, dice);
                if matches!(self.phase, Phase::Idle) && self.joined < Some(self.newest) {
                    self.phase = Phase::Joining;
                }
                act
            }
            (Phase::Joining, Reply::JoinedEpoch(_)) => {
                self.joined = Some(self.newest);
                self.soon(dice)
            }
            (Phase::Asking(task), Reply::Orders(orders)) => {
                let task = *task;
                let outcome = self.obey(common, &orders, dice);
                if matches!(outcome, Erased::Done { .. }) {
                    // On the device first, and once for each task that it hears of.
                    let erased = common.erased.entry(self.subject.clone()).or_default();
                    *erased = task.max(*erased);
                }
                self.phase = Phase::Erasing(task, outcome);
                Act::Wait(20)
            }
            (Phase::Erasing(_, Erased::Done { .. }), Reply::Ack) => {
                self.phase = Phase::Joining;
                Act::Wait(20)
            }
            (Phase::Fetching, Reply::Release(info)) => {
                self.fetched(common, &info);
                self.soon(dice)
            }
            // Tried again as it is: the coordinator's disk, or too many at once.
            (
                _,
                Reply::Refused {
                    code: Refusal::Internal | Refusal::Busy,
                    ..
                },
            ) if !matches!(self.phase, Phase::Fetching) => Act::Wait(200),
            _ => self.soon(dice),
        }
    }

    fn soon(&mut self, dice: &mut Stream) -> Act {
        self.phase = match dice.below(8) {
            0 => Phase::Fetching,
            _ => Phase::Idle,
        };
        Act::Wait(50 + dice.below(400) as u64)
    }

    fn fetched(&mut self, common: &Common, info: &ReleaseInfo) {
        let whole = info.adapters.len() == common.recipe.shards;
        let known = info.release == self.holds && info.adapters.is_empty();
        assert!(whole || known, "a release without its parts");
        assert!(info.release >= self.holds, "an older release is served");
        self.holds = info.release;
    }

    fn told(&mut self, common: &Common, task: Task, now: u64, dice: &mut Stream) -> Act {
        match task {
            Task::Train(start) => {
                let until = now + start.deadline_ms;
                self.phase = Phase::Training(start, until);
                // Some are slower than the round waits.
                let share = if common.recipe.staleness.is_some() {
                    0.3
                } else {
                    0.1
                };
                let late = !common.steady && dice.unit() < share;
                let slow = if late { 8000 } else { 900 };
                Act::Wait(50 + dice.below(slow) as u64)
            }
            Task::Validate { release, shards } => {
                self.phase = Phase::Validating(release, shards);
                Act::Wait(20)
            }
            Task::Erase { task } => {
                self.phase = Phase::Asking(task);
                Act::Wait(20)
            }
            Task::Wait => self.soon(dice),
        }
    }

    /// Checks the orders as the client library does. An order that does not hold is a fault of the
    /// coordinator: whatever its disk did, the log only grows.
    fn obey(&mut self, common: &Common, orders: &Orders, dice: &mut Stream) -> Erased {
        assert!(!orders.orders.is_empty(), "a task without an order");
        let head = check(
            &orders.orders,
            self.subject.as_str(),
            &orders.checkpoint,
            &common.log_key,
            self.seen,
            &orders.consistency,
        );
        self.seen = Some(head.expect("an order that the log holds"));
        if !self.consents && !common.steady && dice.unit() < 0.15 {
            // When the app is started again, the person has been asked.
            self.consents = true;
            return Erased::WaitsForConsent;
        }
        let removed = orders.orders.iter().map(|o| (o.deletion, 1)).collect();
        Erased::Done { removed }
    }
}
