//! Events about what a replay finds.

use super::rounds::forget_rounds;
use crate::event::Event;
use crate::ids::{Owner, ShardKey, SliceId, StageKey, Table};
use crate::state::{Proof, StageFound, State};

pub(super) fn apply_proof(state: &mut State, event: &Event) {
    match event {
        Event::ReplayScoped {
            shard,
            without_missing,
        } => {
            let proof = Proof {
                without_missing: *without_missing,
                ..Proof::default()
            };
            state.proofs.insert(*shard, proof);
            state.touch(SliceId::Proof(*shard));
        }
        Event::StageReplayed {
            shard,
            stage,
            replayed,
            recorded,
        } => {
            let (replayed, recorded) = (*replayed, *recorded);
            found(
                state,
                *shard,
                *stage,
                StageFound::Trained { replayed, recorded },
            );
        }
        Event::StageUnproven {
            shard,
            stage,
            missing,
        } => {
            let missing = missing.clone();
            found(state, *shard, *stage, StageFound::Unproven { missing });
            if state.proofs.get(shard).is_some_and(|p| p.without_missing) {
                leave_out(state, *shard, *stage);
            }
        }
        _ => {}
    }
}

fn found(state: &mut State, key: ShardKey, stage: u16, what: StageFound) {
    if let Some(proof) = state.proofs.get_mut(&key) {
        proof.stages.insert(stage, what);
        state.touch(SliceId::Proof(key));
    }
}

/// A shard was trained again: what a replay found is not about it any more.
pub(super) fn forget_proof(state: &mut State, key: ShardKey) {
    if state.proofs.remove(&key).is_some() {
        state.touch(SliceId::Proof(key));
    }
}

/// A replay goes on with the end of this stage as it was recorded.
fn leave_out(state: &mut State, key: ShardKey, stage: u16) {
    let epoch = state.epochs.get(&key.epoch);
    let Some((epoch, shard)) = epoch.and_then(|e| Some((e, e.shard(key.shard)?))) else {
        return;
    };
    let end = shard.run.stages.get(&stage);
    let end = end.and_then(|s| s.checkpoint.clone());
    let replay = shard.replay.as_ref();
    let replay = replay.filter(|r| r.runs() && r.run.stage == stage);
    let (Some(end), Some(replay)) = (end, replay) else {
        return;
    };
    let rounds = usize::from(epoch.terms.rounds);
    let from = rounds * usize::from(stage.saturating_sub(1));
    let recorded = shard.run.rounds.get(from..from + rounds);
    let recorded = recorded.unwrap_or_default().to_vec();
    let generation = replay.run.generation;
    let old = replay.run.state.clone();
    let spent = StageKey {
        epoch: key.epoch,
        shard: key.shard,
        generation,
        stage,
    };
    forget_rounds(state, generation);
    state
        .dropped
        .extend(old.filter(|v| v.table == Table::RunState));
    // What it has learned of this stage goes, with its key.
    state.remove_owner(&Owner::Stage(spent));
    state.edit_core(|c| c.spent.extend([Owner::Stage(spent)]));
    state.edit_shard(key, |s| {
        let Some(run) = s.replay.as_mut().map(|r| &mut r.run) else {
            return;
        };
        run.rounds.truncate(from);
        run.rounds.extend(recorded);
        run.stages.remove(&stage);
        run.state = Some(end.value);
        run.hash = end.hash;
        run.stage = stage + 1;
        run.round = 0;
    });
}
