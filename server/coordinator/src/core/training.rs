//! Rounds: opening, handing out work, taking updates, closing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lethe_model::lora::Adapter;
use lethe_proto::ids::{RoundKey, ShardId, SubjectId};
use lethe_proto::message::{Refusal, RoundStart, Task};
use lethe_proto::packed::Packed;
use lethe_proto::round::{NotTaken, Round};
use lethe_store::sealed::{Batch, SealedStore};
use tokio::sync::oneshot;

use super::Core;
use super::replay::Recorded;
use super::serving::{Parts, round_parts};
use super::updates::{drop_updates, load_update};
use crate::CoordinatorError;
use crate::aggregate::Contribution;
use crate::arrivals::Arrived;
use crate::records::{BegunRecord, Contributor, NormRecord, RoundRecord};
use crate::run::{OpenRound, Run, round_seed};

/// After so many deadlines in a row a starved round is tried again once an hour only: most of its
/// clients are gone, and somebody has to look.
const MAX_STARVED: u32 = 1000;

/// An hour, in milliseconds.
const HOUR: u64 = 3_600_000;

/// A duty that fails says so at most so often, in milliseconds.
const SAY_AGAIN: u64 = 5000;

/// Updates that wait for the round that counts them.
pub(super) type Buffer = BTreeMap<Contributor, Arc<Contribution>>;

/// What a client is told of its update.
pub(crate) type Answer = (
    oneshot::Sender<Result<(), CoordinatorError>>,
    Result<(), CoordinatorError>,
);

/// Updates of which some are to be stored.
pub(crate) struct Admitted {
    /// Those that are not.
    pub(crate) answers: Vec<Answer>,
    pub(crate) taken: Vec<Arrived>,
    pub(crate) store: Arc<SealedStore>,
}

/// Something that is looked after again and again.
struct Duty {
    /// As it appears in the server's log.
    name: &'static str,
    work: fn(&mut Core, u64) -> Result<(), CoordinatorError>,
}

/// In this order: what repairs comes first.
const DUTIES: &[Duty] = &[
    Duty {
        name: "read again what a failed write left in doubt",
        work: |core, _| core.reload_stale(),
    },
    Duty {
        name: "execute accepted deletions",
        work: |core, _| core.execute_pending(),
    },
    Duty {
        name: "finish rollbacks",
        work: |core, _| core.finish_rollback(),
    },
    Duty {
        name: "measure",
        work: |core, now| {
            core.measure(now);
            core.every_minute(now);
            Ok(())
        },
    },
    Duty {
        name: "close rounds",
        work: Core::close_rounds,
    },
    Duty {
        name: "open rounds",
        work: Core::open_next_rounds,
    },
    Duty {
        name: "replays",
        work: Core::tick_replays,
    },
    Duty {
        name: "publish",
        work: |core, _| core.publish(),
    },
    Duty {
        name: "stop waiting for devices",
        work: |core, _| core.give_up_waiting(),
    },
    Duty {
        name: "finish deletions",
        work: |core, _| core.finish_deletions(),
    },
];

/// Work for a client; a training task brings the middle adapter for its session.
pub(crate) enum Work {
    /// A task without a session.
    Task(Task),
    /// A round: the task, and the middle part of the adapter.
    Train(RoundStart, Arc<Adapter>),
}

fn refuse(code: Refusal, message: impl Into<String>) -> CoordinatorError {
    CoordinatorError::refuse(code, message)
}

impl Core {
    /// The next thing that `subject` should do, if there is any.
    pub(crate) fn next_work(
        &mut self,
        subject: &SubjectId,
        now: u64,
    ) -> Result<Option<Work>, CoordinatorError> {
        let Some(record) = self.subjects.get(subject) else {
            return Ok(None);
        };
        // Offered until the device has joined again: a device that stopped between its two answers
        // goes on from here.
        if let Some(e) = &record.erase {
            // Told once for a connection; then the app or the person has to say something.
            let waits = self.unconsented.contains(subject);
            let task = Task::Erase { task: e.task };
            return Ok((!waits).then_some(Work::Task(task)));
        }
        self.open_rounds(now)?;
        let offered = self.all_runs().find_map(|run| {
            if run.closing {
                return None;
            }
            let open = run.open.as_mut()?;
            let deadline = open.round.deadline();
            if !open.round.offer(subject, now) {
                return None;
            }
            open.began(subject, now);
            Some((deadline, run.key(), run.live, run.counted_of(subject)))
        });
        if let Some((deadline, round, live, counted)) = offered {
            let parts = match self.personal_theta(round, live, subject)? {
                Some(own) => Arc::new(round_parts(&self.recipe, &self.whole, own)?),
                None => self.parts_of(round)?,
            };
            let seed = round_seed(&self.recipe, round).0;
            let adapter = Packed::clone(&parts.device);
            // Where updates may be late, a device may take longer than its round.
            let late = self.recipe.staleness.unwrap_or(0) as u64 * self.recipe.deadline_s * 1000;
            let start = RoundStart {
                round,
                adapter,
                counted,
                seed,
                deadline_ms: deadline.saturating_sub(now) + late,
            };
            return Ok(Some(Work::Train(start, parts.middle.clone())));
        }
        Ok(self.validation_due(subject).map(|shards| {
            Work::Task(Task::Validate {
                release: self.counters.release,
                shards,
            })
        }))
    }

    /// What everybody in a round starts from: made once, with the round before where there was one.
    fn parts_of(&mut self, round: RoundKey) -> Result<Arc<Parts>, CoordinatorError> {
        let closed = || refuse(Refusal::RoundClosed, "the round is over");
        let run = self.run_of(round).ok_or_else(closed)?;
        if let Some(parts) = run.start.clone() {
            return Ok(parts);
        }
        let theta = run.state.theta.clone();
        let parts = Arc::new(round_parts(&self.recipe, &self.whole, theta)?);
        if let Some(run) = self.run_of(round) {
            run.start = Some(parts.clone());
        }
        Ok(parts)
    }

    fn all_runs(&mut self) -> impl Iterator<Item = &mut Run> {
        self.runs
            .iter_mut()
            .chain(self.replays.values_mut().map(|r| &mut r.run))
    }

    fn run_of(&mut self, key: RoundKey) -> Option<&mut Run> {
        self.all_runs().find(|r| r.key() == key)
    }

    /// The run whose stage this round belongs to.
    fn stage_of(&mut self, key: RoundKey) -> Option<&mut Run> {
        self.all_runs().find(|r| {
            RoundKey {
                round: key.round,
                ..r.key()
            } == key
        })
    }

    /// Whether this round takes updates and holds that of `subject` already.
    pub(crate) fn holds(&mut self, key: RoundKey, subject: &SubjectId) -> bool {
        let round = self.stage_of(key).and_then(|r| r.round_mut(key.round));
        round.is_some_and(|r| r.check(subject, 0) == Err(NotTaken::Duplicate))
    }

    /// Whether this round takes updates and waits for `subject`.
    pub(crate) fn expects(
        &mut self,
        key: RoundKey,
        subject: &SubjectId,
        now: u64,
    ) -> Result<(), CoordinatorError> {
        let recipe = self.recipe.clone();
        let run = self.stage_of(key);
        let run = run.filter(|r| !r.is_sealed(&recipe, key.round));
        let round = run.and_then(|r| r.round_mut(key.round));
        match round.map(|r| r.check(subject, now)) {
            Some(Ok(())) => Ok(()),
            Some(Err(NotTaken::Duplicate)) => Err(refuse(
                Refusal::RoundClosed,
                "the update of this round is stored already",
            )),
            Some(Err(NotTaken::Late)) => Err(refuse(
                Refusal::RoundClosed,
                "the round's deadline has passed: ask for work again",
            )),
            Some(Err(NotTaken::NotChosen)) | None => Err(refuse(
                Refusal::RoundClosed,
                "the round is over, or did not choose this client: ask for work again",
            )),
        }
    }

    /// Opens a round for every live run that has none and may go on.
    fn open_rounds(&mut self, now: u64) -> Result<(), CoordinatorError> {
        // While an accepted deletion could not be executed (the store fails), nothing is trained on
        // what it concerns.
        let deadline = now + self.recipe.deadline_s * 1000;
        if self.audited.is_some() {
            return self.open_replays(deadline);
        }
        if self.epoch.is_none() || self.deletion_unexecuted() || !self.rolling.is_empty() {
            return Ok(());
        }
        for i in 0..self.runs.len() {
            let run = &self.runs[i];
            if run.open.is_some() || run.stale || run.done(&self.recipe) || self.held(run.shard) {
                continue;
            }
            self.log_training(self.runs[i].shard)?;
            let run = &self.runs[i];
            let members = self.members(run.shard).map(|(s, r)| (s, r.slice));
            let cohort = run.cohort(&self.recipe, members);
            let goal = self.recipe.goal;
            let late = self.stored_late(run)?;
            let (mut open, stored) = self.reopen(run.key(), cohort, deadline)?;
            if let Some(goal) = goal {
                open.round = open.round.with_goal(goal);
            }
            self.wake.subjects.extend(open.round.members().cloned());
            let run = &mut self.runs[i];
            (run.open, run.resumed) = (Some(open), false);
            run.buffer.extend(late.into_iter().chain(stored));
            run.count_late();
        }
        self.open_replays(deadline)
    }

    /// A round, and the updates of it that were stored before a restart.
    pub(super) fn reopen(
        &self,
        key: RoundKey,
        cohort: Vec<SubjectId>,
        deadline: u64,
    ) -> Result<(OpenRound, Buffer), CoordinatorError> {
        let mut round = Round::open(key, cohort.iter().cloned(), deadline, self.recipe.quorum);
        let mut stored = Buffer::new();
        for subject in cohort {
            if let Some(u) = load_update(&self.store, key, &subject)? {
                round.stored(&subject);
                let contribution = u.contribution(&self.recipe, &self.whole)?;
                stored.insert((subject, key.round), Arc::new(contribution));
            }
        }
        Ok((
            OpenRound {
                round,
                began: BTreeMap::new(),
                starved: 0,
            },
            stored,
        ))
    }

    /// Late updates that were stored before a restart, of those who are still there. A round's own
    /// record says what has counted: the write that closed it may have been cut off before it
    /// removed them.
    fn stored_late(&self, run: &Run) -> Result<Buffer, CoordinatorError> {
        let mut out = Buffer::new();
        let Some(most) = self.recipe.staleness.filter(|_| run.resumed) else {
            return Ok(out);
        };
        let members: BTreeSet<&SubjectId> = self.members(run.shard).map(|(s, _)| s).collect();
        let recorded = self.recorded_rounds(run.shard)?;
        let counted: BTreeSet<&Contributor> = recorded
            .range((run.stage, 0)..=(run.stage, run.round))
            .flat_map(|(_, c)| c)
            .collect();
        for (subject, begun) in self.updates_of(run.key()) {
            let late = run
                .round
                .checked_sub(begun)
                .map(usize::from)
                .filter(|l| *l > 0);
            let counts = members.contains(&subject) && !counted.contains(&(subject.clone(), begun));
            if late.is_some_and(|l| l <= most) && counts {
                let key = RoundKey {
                    round: begun,
                    ..run.key()
                };
                if let Some(u) = load_update(&self.store, key, &subject)? {
                    let c = u.contribution(&self.recipe, &self.whole)?;
                    out.insert((subject, begun), Arc::new(c));
                }
            }
        }
        Ok(out)
    }

    /// A shard with a member that has yet to erase items waits.
    fn held(&self, shard: ShardId) -> bool {
        self.members(shard).any(|(_, r)| r.erase.is_some())
    }

    /// Of updates that arrived together, those that are to be stored, without the lock; the others
    /// are answered.
    pub(crate) fn admit_updates(&mut self, arrived: Vec<Arrived>, now: u64) -> Admitted {
        let mut answers = vec![];
        let mut taken = vec![];
        let mut known = BTreeSet::new();
        for a in arrived {
            match self.expects(a.round, &a.subject, now) {
                Ok(()) if known.insert((a.round, a.subject.clone())) => taken.push(a),
                // A client may have sent it twice, and both came together.
                Ok(()) => answers.push((
                    a.answer,
                    Err(refuse(Refusal::Busy, "this update is being stored already")),
                )),
                Err(e) => answers.push((a.answer, Err(e))),
            }
        }
        Admitted {
            answers,
            taken,
            store: self.store.clone(),
        }
    }

    /// Updates are durable, or not: from here on they count, and are acknowledged. `now` is when
    /// they were admitted.
    pub(crate) fn updates_stored(
        &mut self,
        taken: Vec<Arrived>,
        stored: Result<(), CoordinatorError>,
        now: u64,
    ) -> Vec<Answer> {
        let mut answers = vec![];
        if let Err(e) = stored {
            let why = e.to_string();
            let failed = |a: Arrived| (a.answer, Err(refuse(Refusal::Internal, why.clone())));
            return taken.into_iter().map(failed).collect();
        }
        let mut strays = Batch::new();
        for a in taken {
            // While it was being stored its round may have closed, or its shard gone back.
            if let Err(e) = self.expects(a.round, &a.subject, now) {
                strays = drop_updates(strays, a.round, &[(a.subject, a.round.round)]);
                answers.push((a.answer, Err(e)));
                continue;
            }
            if let Some(run) = self.stage_of(a.round) {
                let of = (a.subject.clone(), a.round.round);
                run.stored(of, Arc::new(a.contribution));
                let open = run.open.as_mut().filter(|_| run.round == a.round.round);
                let began = open.and_then(|o| o.began.remove(&a.subject));
                self.answered(began, now);
            }
            answers.push((a.answer, Ok(())));
        }
        if !strays.is_empty()
            && let Err(e) = self.store.write(strays)
        {
            tracing::warn!("an update that came too late stays stored until the next start: {e}");
        }
        self.tick(now);
        answers
    }

    /// A client says that it does not take part in a round; the round may close with that.
    pub(crate) fn declined(&mut self, key: RoundKey, subject: &SubjectId, now: u64) {
        if let Some(open) = self.run_of(key).and_then(|r| r.open.as_mut()) {
            open.round.decline(subject);
            open.began.remove(subject);
        }
        self.tick(now);
    }

    /// Does what is due: call it from a timer, and when something has changed. Each duty is tried
    /// even when others fail; what failed is tried again the next time.
    pub(crate) fn tick(&mut self, now: u64) {
        for duty in DUTIES {
            if let Err(e) = (duty.work)(self, now) {
                self.failures += 1;
                let said = self.said.get(duty.name);
                if said.is_none_or(|at| now >= at + SAY_AGAIN) {
                    self.said.insert(duty.name, now);
                    tracing::error!("{}: {e}", duty.name);
                }
            }
        }
    }

    /// Looks after space and deadlines, once a minute.
    fn every_minute(&mut self, now: u64) {
        if now > self.space_checked + 60_000 {
            self.space_checked = now;
            self.set_aside_space();
            self.warn_overdue();
        }
    }

    /// Who took part in a round that closed is online: the next round need not wait for somebody to
    /// ask.
    fn open_next_rounds(&mut self, now: u64) -> Result<(), CoordinatorError> {
        if self.closed {
            self.open_rounds(now)?;
        }
        Ok(())
    }

    pub(super) fn starved(&mut self, i: usize, got: usize, needed: usize, now: u64) {
        let run = &mut self.runs[i];
        let key = run.key();
        let Some(open) = run.open.as_mut() else {
            return;
        };
        let usual = self.recipe.deadline_s * 1000;
        let wait = match open.starved < MAX_STARVED {
            true => usual,
            false => usual.max(HOUR),
        };
        open.starved = open.starved.saturating_add(1);
        open.round.extend(now + wait);
        self.wake.subjects.extend(open.round.members().cloned());
        tracing::warn!(
            ?key,
            got,
            needed,
            "round starved: too few clients answered in time; trying again"
        );
    }

    /// Reads again what a failed write left in doubt.
    pub(super) fn reload_stale(&mut self) -> Result<(), CoordinatorError> {
        for i in 0..self.runs.len() {
            if self.runs[i].stale {
                self.store.recover()?;
                self.runs[i] = self.load_run(self.runs[i].shard)?;
            }
        }
        Ok(())
    }

    /// Median lengths of the updates of every round that a shard's state stands on, oldest first.
    pub(super) fn recorded_norms(&self, shard: ShardId) -> Result<Vec<f32>, CoordinatorError> {
        let prefix = format!("{:05}/", shard.0);
        let mut rows: Vec<(String, NormRecord)> = self.store.all()?;
        rows.retain(|(id, _)| id.starts_with(&prefix));
        // Names are of fixed width: their order is that of stages and rounds.
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(rows.into_iter().map(|(_, n)| n.0).collect())
    }

    /// Who contributed to every round that a shard's state stands on.
    pub(super) fn recorded_rounds(&self, shard: ShardId) -> Result<Recorded, CoordinatorError> {
        let mut out = BTreeMap::new();
        let mut all_begun: BTreeMap<String, BegunRecord> = self.store.all()?.into_iter().collect();
        for (id, r) in self.store.all::<RoundRecord>()? {
            let parts: Vec<u16> = id.split('/').filter_map(|p| p.parse().ok()).collect();
            if let [s, stage, round] = parts[..]
                && s == shard.0
            {
                let begun = all_begun
                    .remove(&id)
                    .map_or_else(|| vec![round; r.contributors.len()], |b| b.0);
                out.insert(
                    (stage, round),
                    r.contributors.into_iter().zip(begun).collect(),
                );
            }
        }
        Ok(out)
    }
}
