//! What the world is told after an event.

use std::collections::BTreeSet;

use lethe_proto::ids::{Digest, SubjectId};

use crate::event::Event;
use crate::ids::{Contributor, Owner, RunKey, ShardKey};
use crate::state::State;

/// Whose polls have something to find.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wake {
    /// Everybody's.
    pub everybody: bool,
    /// Theirs.
    pub subjects: BTreeSet<SubjectId>,
}

/// Something to do outside.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Stop the jobs of these shards and wait for their end; then destroy the keys, and then say
    /// `Command::KeysDestroyed`.
    DestroyKeys {
        /// Shards whose jobs write what must not be written any more.
        shards: Vec<ShardKey>,
        /// The keys.
        keys: Vec<Owner>,
    },
    /// Add up; then `Command::RoundAggregated` or `Command::AggregationFailed`.
    Aggregate {
        /// The round.
        run: RunKey,
        /// What counts.
        counted: Vec<Contributor>,
    },
    /// Training sessions may be stale.
    SweepSessions,
    /// Decoded copies of what these shards learned, and of what these people sent, are to go.
    ForgetCaches {
        /// Shards.
        shards: Vec<ShardKey>,
        /// People.
        people: Vec<SubjectId>,
    },
    /// Something is due: ask `due` at once, and not at the next beat of the clock.
    LookForDuties,
}

/// Everything that follows from a list of events.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effects {
    /// Polls to wake.
    pub wake: Wake,
    /// Certificates whose connections are to be closed, if the state does not know them any more;
    /// add those of [`withdrawn`], too.
    pub disconnect: Vec<Digest>,
    /// The rest, in order.
    pub all: Vec<Effect>,
}

/// Adds what follows from an event that was applied. Certificates that an event has withdrawn are
/// not in `state_after` any more: [`withdrawn`] names them, asked before.
pub fn effects(state_after: &State, event: &Event, out: &mut Effects) {
    match event {
        Event::ExecutionBegan { execution } => {
            let keys = state_after.keys_to_destroy();
            let shards: Vec<ShardKey> = execution.rolled.iter().map(|(k, _)| *k).collect();
            let people = keys.iter().filter_map(|k| match k {
                Owner::Person(s) => Some(s.clone()),
                _ => None,
            });
            let people: Vec<SubjectId> = people.collect();
            for person in people.iter().filter_map(|s| state_after.person(s)) {
                out.disconnect.extend(person.certificates());
            }
            out.all.push(Effect::SweepSessions);
            out.all.push(Effect::ForgetCaches {
                shards: shards.clone(),
                people,
            });
            out.all.push(Effect::DestroyKeys { shards, keys });
        }
        Event::KeysDestroyed => {
            out.wake.everybody = true;
            out.all.push(Effect::SweepSessions);
        }
        Event::RoundSealed { run, counted, .. } => out.all.push(Effect::Aggregate {
            run: *run,
            counted: counted.clone(),
        }),
        Event::RoundOpened { cohort, .. } => out.wake.subjects.extend(cohort.iter().cloned()),
        Event::RoundExtended { run, .. } => {
            let open = state_after.open_round(run.generation);
            out.wake
                .subjects
                .extend(open.into_iter().flat_map(|o| o.round.members().cloned()));
        }
        Event::RoundClosed { .. }
        | Event::ReplayEnded { .. }
        | Event::StageUnproven { .. }
        | Event::RoundAbandoned { .. } => {
            out.all.push(Effect::SweepSessions);
        }
        // Polls say that there is another epoch.
        Event::EpochFounded { .. }
        | Event::EpochBegan { .. }
        | Event::Released { .. }
        | Event::ReleaseLogged { .. }
        | Event::SnapshotLogged { .. }
        | Event::Excluded { .. } => {
            out.wake.everybody = true;
        }
        // Rounds that were open are gone, and so is what was learned.
        Event::EpochReached { no, .. } => {
            out.wake.everybody = true;
            out.all.push(Effect::SweepSessions);
            if state_after.ended(*no) {
                let all = state_after.shards().map(|(key, _, _)| key);
                out.all.push(Effect::ForgetCaches {
                    shards: all.filter(|key| key.epoch == *no).collect(),
                    people: vec![],
                });
            }
        }
        Event::Joined { .. } => out.wake.everybody = true,
        // The person's other devices may have waited for this one.
        Event::DeviceErased { subject, .. } => {
            out.wake.subjects.insert(subject.clone());
        }
        Event::DeviceReplaced { .. }
        | Event::OperatorReplaced { .. }
        | Event::Withdrawn { .. }
        | Event::OperatorRemoved { .. } => {
            out.all.push(Effect::SweepSessions);
        }
        _ => {}
    }
    if !matches!(
        event,
        Event::TaskOffered { .. } | Event::ReleaseFetched { .. }
    ) && out.all.last() != Some(&Effect::LookForDuties)
    {
        out.all.push(Effect::LookForDuties);
    }
}

/// Certificates that an event will withdraw; asked on the state before it is applied.
pub fn withdrawn(state_before: &State, event: &Event) -> Vec<Digest> {
    match event {
        Event::Withdrawn { subject } => {
            let person = state_before.person(subject);
            person
                .into_iter()
                .flat_map(|p| p.certificates().copied())
                .collect()
        }
        Event::DeviceReplaced {
            subject,
            device,
            certificate,
        } => {
            let person = state_before.person(subject);
            let device = person.and_then(|p| p.devices.get(device));
            let old = device.and_then(|d| *d.certificates.get(certificate)?);
            old.into_iter().collect()
        }
        Event::OperatorReplaced { certificate } => {
            let operator = state_before.core().operators.get(certificate);
            operator.and_then(|o| o.replaces).into_iter().collect()
        }
        Event::OperatorRemoved { root } => {
            let all = state_before.core().operators.iter();
            all.filter(|(_, o)| o.root == *root)
                .map(|(c, _)| *c)
                .collect()
        }
        _ => vec![],
    }
}
