//! Replays that have to do without somebody.
//!
//! Updates of a closed round are not kept, and neither are digests of them: what a round came to
//! cannot be computed without everybody who counted in it. What is kept is the state at the end of
//! each stage. So a replay that goes on without who is missing leaves out the stages that need
//! them, begins the next one with what was recorded, and says for each stage which of the two it
//! did. It never says that a shard is equal of which it has left out a stage.

use std::collections::BTreeSet;

use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::people::{
    MissingPerson, ReplayProgress, ReplayVerdict, SHOWN, StageOutcome, StageProof,
};

use super::{Decided, after, policy, replays};
use crate::event::Event;
use crate::ids::{Contributor, Fresh, Now, PersonNo, Refused, RunKey, ShardKey};
use crate::state::{Proof, Replay, StageFound, State};
use crate::terms::{Aggregation, Mode};

/// As [`replays::start`]; stages that need somebody who is missing are left out.
pub(super) fn start(state: &State, key: ShardKey, by: Digest, fresh: Fresh, now: Now) -> Decided {
    state.may_replay(key)?;
    if matches!(state.rules.mode, Mode::Audit(_)) {
        let message =
            "an audit needs everybody: only the coordinator has the states between stages";
        return Err(Refused::invalid(message));
    }
    let personal = state.epochs.get(&key.epoch).map(|e| e.terms.aggregation);
    if personal == Some(Aggregation::Personalized) {
        let message = "with `aggregation = \"personalized\"` a stage begins with what each person \
                       kept from the one before: none can be left out; replay without \
                       `--without-missing`";
        return Err(Refused::invalid(message));
    }
    let line = format!("replay {} without who is missing", key.shard);
    let mut events = policy::note_by(state, by, line, fresh, now)?;
    events.extend(replays::begin(state, key, true, now));
    Ok(events)
}

/// Who contributed to a stage and has no device any more that could train it again.
pub(super) fn gone(state: &State, key: ShardKey, stage: u16) -> BTreeSet<SubjectId> {
    let rounds = state.recorded_of(key, stage);
    let all: BTreeSet<SubjectId> = rounds.into_iter().flat_map(|(_, c)| c).map(named).collect();
    let is_gone = |s: &SubjectId| state.person(s).is_none_or(|p| p.devices.is_empty());
    all.into_iter().filter(is_gone).collect()
}

fn named(of: Contributor) -> SubjectId {
    of.0
}

/// A stage of a replay cannot be trained: it is left out, or the replay ends.
pub(super) fn unproven(
    state: &State,
    run: &RunKey,
    missing: impl IntoIterator<Item = SubjectId>,
    why: String,
    now: Now,
) -> Vec<Event> {
    let key = run.shard_key();
    let without_missing = state.proofs.get(&key).is_some_and(|p| p.without_missing);
    let number = |s: SubjectId| state.person(&s).map(|p| p.number);
    let missing: Vec<PersonNo> = missing.into_iter().filter_map(number).collect();
    let mut events = vec![Event::StageUnproven {
        shard: key,
        stage: run.stage,
        missing,
    }];
    if !without_missing {
        events.extend(replays::fail(state, key, why, now));
        return events;
    }
    let next = after(state, &events);
    let epoch = next.epochs.get(&key.epoch);
    let replay = next.shard(key).and_then(|s| s.replay.as_ref());
    if let Some((epoch, replay)) = epoch.zip(replay)
        && replay.run.done(&epoch.terms)
    {
        events.push(ended(&next, key, replay.run.hash, now));
    }
    events
}

/// A replay has come to its end with this adapter.
pub(super) fn ended(state: &State, key: ShardKey, hash: Digest, now: Now) -> Event {
    let proof = state.proofs.get(&key).filter(|p| p.is_partial());
    Event::ReplayEnded {
        shard: key,
        at: now.unix_ms,
        hashes: match proof {
            // Its end is what was recorded, and nothing that was computed.
            Some(_) => None,
            None => Some((hash, state.expected_of(key))),
        },
        failure: proof.map(in_words),
    }
}

fn numbers(stages: &[u16]) -> String {
    let all: Vec<String> = stages.iter().map(u16::to_string).collect();
    match &all[..] {
        [one] => format!("stage {one}"),
        _ => format!("stages {}", all.join(", ")),
    }
}

/// What a replay has proven that left something out.
fn in_words(proof: &Proof) -> String {
    let mut equal = vec![];
    let mut differs = vec![];
    let mut unproven = vec![];
    for (stage, found) in &proof.stages {
        match found {
            StageFound::Trained { replayed, recorded } if replayed == recorded => {
                equal.push(*stage);
            }
            StageFound::Trained { .. } => differs.push(*stage),
            StageFound::Unproven { .. } => unproven.push(*stage),
        }
    }
    let mut text = match differs.is_empty() {
        true => "PARTIAL".to_owned(),
        false => format!("DIFFERENT: not what was recorded: {}", numbers(&differs)),
    };
    if !equal.is_empty() {
        text += &format!("; as recorded: {}", numbers(&equal));
    }
    let why = match proof.missing().len() {
        0 => "which could not be added up again".to_owned(),
        people => format!("which cannot be trained again without {people} who are missing"),
    };
    text += &format!("; not proven: {}, {why}", numbers(&unproven));
    text
}

/// Whom a replay's round still waits for.
pub(super) fn waited_for(state: &State, run: &RunKey) -> Vec<SubjectId> {
    let open = state.volatile.open.get(&run.generation);
    let Some(open) = open.filter(|o| o.run == *run) else {
        return vec![];
    };
    let stored = state.stages.get(&run.stage_key());
    let has = |s: &SubjectId| {
        let one = (s.clone(), run.round);
        stored.is_some_and(|k| k.stored.contains_key(&one))
    };
    open.round.members().filter(|s| !has(s)).cloned().collect()
}

impl State {
    /// What the newest replay of a shard has found; none: there was none, or the shard was trained
    /// again since.
    pub fn proof(&self, key: ShardKey) -> Option<&Proof> {
        self.proofs.get(&key)
    }

    /// A replay as far as it got, with who is missing.
    ///
    /// # Errors
    /// [`Refused`]: none was asked for.
    pub fn replay_progress(&self, key: ShardKey, now: Now) -> Result<ReplayProgress, Refused> {
        let known = self.shard(key).and_then(|s| s.replay.as_ref());
        let Some((replay, epoch)) = known.zip(self.epochs.get(&key.epoch)) else {
            let message = format!(
                "no replay of {} was asked for, or the shard was trained again since",
                key.shard
            );
            return Err(Refused::invalid(message));
        };
        // An older build has begun it.
        let none = Proof::default();
        let proof = self.proofs.get(&key).unwrap_or(&none);
        let waiting = match replay.runs() {
            true => waited_for(self, &replay.run.key(key)),
            false => vec![],
        };
        let missing = proof.missing();
        let until = replay.ended.unwrap_or(now.unix_ms);
        Ok(ReplayProgress {
            shard: key.shard,
            without_missing: proof.without_missing,
            verdict: verdict(replay, proof),
            rounds: replay.run.progress(&epoch.terms),
            stages: stages_found(proof),
            waiting_in_all: waiting.len() as u32,
            waiting: waiting.into_iter().take(SHOWN).collect(),
            missing_in_all: missing.len() as u32,
            missing: missing
                .into_iter()
                .take(SHOWN)
                .map(|n| self.missing_person(n))
                .collect(),
            hashes: replay.hashes,
            why: replay.failure.clone().unwrap_or_default(),
            seconds: until.saturating_sub(replay.started) as f64 / 1000.0,
        })
    }

    fn missing_person(&self, number: PersonNo) -> MissingPerson {
        let subject = self.index.names.get(&number).cloned();
        let person = subject.as_ref().and_then(|s| self.person(s));
        let why = match person.map(|p| p.devices.len()) {
            None => "deleted since",
            Some(0) => "has no device",
            Some(_) => "no device has trained it again: away, or installed anew",
        };
        MissingPerson {
            number: number.0,
            subject,
            why: why.into(),
        }
    }
}

fn verdict(replay: &Replay, proof: &Proof) -> ReplayVerdict {
    match replay.hashes {
        _ if replay.runs() => ReplayVerdict::Running,
        Some((replayed, live)) if replayed == live => ReplayVerdict::Equal,
        Some(_) => ReplayVerdict::Different,
        None if proof.differs() => ReplayVerdict::Different,
        None if proof.without_missing && proof.is_partial() => ReplayVerdict::Partial,
        None => ReplayVerdict::GivenUp,
    }
}

fn stages_found(proof: &Proof) -> Vec<StageProof> {
    let shown = |(stage, found): (&u16, &StageFound)| StageProof {
        stage: *stage,
        outcome: match found {
            StageFound::Trained { replayed, recorded } if replayed == recorded => {
                StageOutcome::Equal
            }
            StageFound::Trained { replayed, recorded } => StageOutcome::Different {
                replayed: *replayed,
                recorded: *recorded,
            },
            StageFound::Unproven { missing } => StageOutcome::Unproven {
                missing: missing.len() as u32,
            },
        },
    };
    proof.stages.iter().map(shown).collect()
}
