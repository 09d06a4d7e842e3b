//! Rounds: what is open, who is expected, what counts.

use lethe_proto::ids::{RoundKey, SubjectId};
use lethe_proto::message::Refusal;
use lethe_proto::round::NotTaken;

use super::{Epoch, Open, Run, RunRef, State};
use crate::ids::{Contributor, Now, Refused, RunKey, ShardKey, StageKey, ValueRef};
use crate::terms::{Aggregation, Mode};

/// A run and what it belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunView<'a> {
    pub(crate) at: ShardKey,
    pub(crate) live: bool,
    pub(crate) epoch: &'a Epoch,
    pub(crate) run: &'a Run,
}

impl State {
    pub(crate) fn run_view(&self, generation: u32) -> Option<RunView<'_>> {
        let RunRef { shard: at, live } = *self.index.runs.get(&generation)?;
        let epoch = self.epochs.get(&at.epoch)?;
        let shard = epoch.shard(at.shard)?;
        let run = if live {
            &shard.run
        } else {
            &shard.replay.as_ref()?.run
        };
        Some(RunView {
            at,
            live,
            epoch,
            run,
        })
    }

    /// The round that devices mean; its run is there, at whatever round it is now.
    pub fn run_of_wire(&self, key: RoundKey) -> Option<RunKey> {
        let view = self.run_view(key.generation)?;
        let same = view.at.shard == key.shard && view.at.epoch == key.epoch;
        same.then_some(RunKey {
            epoch: key.epoch,
            shard: key.shard,
            generation: key.generation,
            stage: key.stage,
            round: key.round,
        })
    }

    /// A run that is served, not a replay.
    pub fn is_live(&self, run: &RunKey) -> bool {
        self.index.runs.get(&run.generation).is_some_and(|r| r.live)
    }

    /// The open round of a run.
    pub fn open_round(&self, generation: u32) -> Option<&Open> {
        self.volatile.open.get(&generation)
    }

    fn round_check(
        &self,
        key: RoundKey,
        subject: &SubjectId,
        now: u64,
    ) -> Option<Result<(), NotTaken>> {
        let view = self.run_view(key.generation)?;
        if view.at.shard != key.shard || view.run.stage != key.stage {
            return None;
        }
        let open = self.volatile.open.get(&key.generation);
        let own = open.filter(|o| o.run.round == key.round && o.run.stage == key.stage);
        let past = || self.volatile.past.get(&key.generation)?.get(&key.round);
        let round = own.map(|o| &o.round).or_else(past)?;
        Some(round.check(subject, now))
    }

    /// Whether this round takes updates and holds that of `subject` already.
    pub fn holds(&self, key: RoundKey, subject: &SubjectId) -> bool {
        self.round_check(key, subject, 0) == Some(Err(NotTaken::Duplicate))
    }

    /// Whether this round takes updates and waits for `subject`.
    pub fn expects(&self, key: RoundKey, subject: &SubjectId, now: Now) -> Result<(), Refused> {
        let closed = |message: &str| Err(Refused::new(Refusal::RoundClosed, message));
        let over = "the round is over, or did not choose this client: ask for work again";
        match self.round_check(key, subject, now.uptime_ms) {
            Some(Ok(())) if self.still_counts(key) => Ok(()),
            Some(Err(NotTaken::Duplicate)) => closed("the update of this round is stored already"),
            Some(Err(NotTaken::Late)) => {
                closed("the round's deadline has passed: ask for work again")
            }
            Some(Ok(()) | Err(NotTaken::NotChosen)) | None => closed(over),
        }
    }

    /// An update of this round, stored now, finds a round that counts it. While a round is being
    /// added up, that is the next one.
    fn still_counts(&self, key: RoundKey) -> bool {
        let Some(open) = self.volatile.open.get(&key.generation) else {
            // Between two rounds: what was closed may still be late for the next.
            return self.late_in(
                key,
                self.run_view(key.generation).map_or(0, |v| v.run.round),
            );
        };
        match &open.sealed {
            None => true,
            Some(_) => self.late_in(key, open.run.round + 1),
        }
    }

    fn late_in(&self, key: RoundKey, round: u16) -> bool {
        let Some(view) = self.run_view(key.generation).filter(|v| v.live) else {
            return false;
        };
        let late = round.checked_sub(key.round);
        let may = late.zip(view.epoch.terms.staleness);
        round < view.epoch.terms.rounds && may.is_some_and(|(late, most)| late <= most)
    }

    /// What a round counts when it closes now: everything that is stored; in a replay, what was
    /// recorded.
    pub(crate) fn counted_now(&self, run: &RunKey) -> Vec<Contributor> {
        if let Some(recorded) = self.recorded(run) {
            return recorded;
        }
        let stage = self.stages.get(&run.stage_key());
        stage.map_or(vec![], |s| s.stored.keys().cloned().collect())
    }

    /// The recorded contributors of a replay's round; none for a live run.
    pub(crate) fn recorded(&self, run: &RunKey) -> Option<Vec<Contributor>> {
        let view = self.run_view(run.generation).filter(|v| !v.live)?;
        let rounds = self.schedule(view.at, run.stage);
        let mut own = rounds.into_iter().filter(|(round, _)| *round == run.round);
        Some(own.next().map_or(vec![], |(_, c)| c))
    }

    /// Who began in a replay's round: also those whose updates counted in a later one.
    pub(crate) fn replay_cohort(&self, at: ShardKey, stage: u16, round: u16) -> Vec<SubjectId> {
        let rounds = self.schedule(at, stage);
        let later = rounds.into_iter().filter(|(r, _)| *r >= round);
        let all = later.flat_map(|(_, c)| c);
        all.filter(|(_, begun)| *begun == round)
            .map(|(s, _)| s)
            .collect()
    }

    /// The recorded rounds of a stage.
    fn schedule(&self, at: ShardKey, stage: u16) -> Vec<(u16, Vec<Contributor>)> {
        if let Mode::Audit(audit) = &self.rules.mode {
            let own = audit.rounds.range((stage, 0)..=(stage, u16::MAX));
            return own.map(|((_, round), c)| (*round, c.clone())).collect();
        }
        self.recorded_of(at, stage)
    }

    /// Who contributed to each closed round of a stage of what is live.
    pub(crate) fn recorded_of(&self, at: ShardKey, stage: u16) -> Vec<(u16, Vec<Contributor>)> {
        let key = self.shard(at).and_then(|s| s.run.stage_key(at, stage));
        let stage = key.and_then(|k| self.stages.get(&k));
        stage.map_or(vec![], |s| {
            s.rounds.iter().map(|(r, c)| (*r, c.clone())).collect()
        })
    }

    /// Who contributed to every round that a shard's state stands on.
    pub fn recorded_rounds(&self, at: ShardKey) -> Vec<((u16, u16), Vec<Contributor>)> {
        let Some(shard) = self.shard(at) else {
            return vec![];
        };
        let of = |key: StageKey| {
            let rounds = self.stages.get(&key).map(|s| &s.rounds);
            let named = rounds.into_iter().flatten();
            named.map(move |(round, c)| ((key.stage, *round), c.clone()))
        };
        shard.run.stage_keys(at, 1).flat_map(of).collect()
    }

    /// A client's own parameters as of the newest stage that it took part in: where they are. None
    /// in other modes, and for the initial ones.
    pub fn personal_of(&self, run: &RunKey, subject: &SubjectId) -> Option<&ValueRef> {
        let view = self.run_view(run.generation)?;
        if view.epoch.terms.aggregation != Aggregation::Personalized {
            return None;
        }
        let keys: Vec<StageKey> = view.run.stage_keys(view.at, 1).collect();
        let upto = keys.into_iter().rev().filter(|k| k.stage <= run.stage);
        let mut found = upto.filter_map(|k| self.stages.get(&k)?.personal.get(subject));
        found.next()
    }

    /// The adapter that replaces the shard's for this subject: its own, while the shard's is
    /// served as trained.
    pub fn own_adapter(&self, subject: &SubjectId) -> Option<(ShardKey, &ValueRef)> {
        let (_, release) = self.current_release()?;
        let shard = self.profile(subject)?.places.get(&release.epoch)?.shard?;
        let key = ShardKey {
            epoch: release.epoch,
            shard,
        };
        let epoch = self.epochs.get(&key.epoch)?;
        let run = &epoch.shard(shard)?.run;
        if !run.done(&epoch.terms) || self.served_of(key) != Some(run.hash) {
            return None;
        }
        Some((key, self.personal_of(&run.key(key), subject)?))
    }

    /// Median lengths of the updates of the rounds that a run stands on, oldest first.
    pub fn norms_of(&self, run: &RunKey) -> Vec<f32> {
        let view = self.run_view(run.generation);
        let sums = view.map_or(&[][..], |v| &v.run.rounds[..]);
        sums.iter().filter_map(|s| s.norm).collect()
    }

    /// A state's value, and its hash: what a round starts from. None stands for the initial one.
    pub fn start_of(&self, run: &RunKey) -> Option<(Option<&ValueRef>, lethe_proto::ids::Digest)> {
        let view = self.run_view(run.generation)?;
        Some((view.run.state.as_ref(), view.run.hash))
    }
}
