//! Rounds: opening, offering, storing updates, closing.

use std::collections::BTreeMap;

use lethe_plan::Rates;
use lethe_proto::ids::SubjectId;
use lethe_proto::message::Refusal;
use lethe_proto::round::Outcome;

use super::{Decided, after, proofs, refuse, replays};
use crate::command::{Command, Spent};
use crate::event::{Event, StoredUpdate};
use crate::ids::{Contributor, Now, RunKey, StageKey, ValueRef};
use crate::state::{Checkpoint, RoundSum, State};
use crate::terms::Mode;

/// How often a starved round is tried again before its shard waits for people to look.
pub(crate) const MAX_STARVED: u32 = 1000;
/// How long it waits then.
const ABANDONED_MS: u64 = 3_600_000;

pub(super) fn decide(state: &State, command: Command, now: Now) -> Decided {
    match command {
        Command::OpenRound { run } => Ok(open(state, run, now)),
        Command::Offer { device, run } => Ok(offer(state, &device, run, now)),
        Command::StoreUpdates { stage, updates } => store(state, stage, updates, now),
        Command::Decline { device, round } => {
            let holder = state.index.holders.get(&device);
            let run = state.run_of_wire(round);
            let event = holder.zip(run).map(|(holder, run)| Event::Declined {
                run,
                subject: holder.subject.clone(),
            });
            Ok(event.into_iter().collect())
        }
        Command::Deadline { run } => Ok(deadline(state, run, now)),
        Command::SealRound { run } => Ok(seal(state, run, now)),
        Command::RoundAggregated {
            run,
            counted,
            left_out,
            state: value,
            hash,
            norm,
            loss,
            personal,
            checkpoint,
            lineage,
            spent,
        } => {
            let result = Aggregated {
                left_out,
                value,
                hash,
                sum: RoundSum {
                    loss,
                    norm,
                    clients: counted.len() as u32,
                },
                personal,
                checkpoint,
                lineage,
                spent,
            };
            aggregated(state, run, counted, result, now)
        }
        Command::RoundShort { run, why } => Ok(short(state, run, why, now)),
        Command::AggregationFailed { run, .. } => {
            let open = state.volatile.open.get(&run.generation);
            let sealed = open.is_some_and(|o| o.run == run && o.sealed.is_some());
            Ok(sealed
                .then_some(Event::RoundUnsealed { run })
                .into_iter()
                .collect())
        }
        _ => Ok(vec![]),
    }
}

impl State {
    /// Whether a round of this run may be opened now.
    pub(crate) fn may_open(&self, run: &RunKey, now: Now) -> bool {
        let Some(view) = self.run_view(run.generation) else {
            return false;
        };
        let until = self.volatile.abandoned.get(&run.generation);
        if view.run.key(view.at) != *run
            || view.run.done(&view.epoch.terms)
            || self.volatile.open.contains_key(&run.generation)
            || until.is_some_and(|until| now.uptime_ms < *until)
        {
            return false;
        }
        if !view.live {
            return self.core.executing.is_none();
        }
        // While an accepted deletion is not executed, nothing is trained on what it concerns. An
        // epoch that another one has followed is not trained any further.
        let versions = self
            .volatile
            .versions
            .get(&view.at)
            .copied()
            .unwrap_or_default();
        self.rules.mode == Mode::Serve
            && view.epoch.partition.is_some()
            && !self.ended(view.at.epoch)
            && !self.unexecuted()
            && self.core.lost.is_empty()
            && !self.lists_go_first(now)
            && self
                .core
                .serving
                .is_none_or(|serving| view.at.epoch >= serving)
            && !self.held(view.at)
            && !self.is_on_hold(view.at, now)
            && versions.members == versions.logged
    }

    /// The first members by a seeded rank of the subject alone, so that who is chosen depends on
    /// the others only through who ranks before. Who let deadline after deadline pass comes last,
    /// and only where there would be too few others.
    fn cohort(&self, run: &RunKey, now: Now) -> Vec<SubjectId> {
        let Some(view) = self.run_view(run.generation) else {
            return vec![];
        };
        let seed = view.epoch.terms.round_seed(run);
        let eligible = self.members(view.at).filter(|m| m.place.slice < run.stage);
        let mut ranked: Vec<(u64, &SubjectId)> = eligible
            .map(|m| {
                (
                    seed.rank("cohort", m.subject.as_str().as_bytes()),
                    m.subject,
                )
            })
            .collect();
        ranked.sort();
        let is_quiet = |subject: &SubjectId| {
            let silence = self.volatile.silent.get(subject);
            silence.is_some_and(|s| s.until > now.uptime_ms)
        };
        let quiet: Vec<(u64, &SubjectId)> = ranked.extract_if(.., |(_, s)| is_quiet(s)).collect();
        let terms = &view.epoch.terms;
        let missing = (terms.quorum as usize).saturating_sub(ranked.len());
        ranked.extend(quiet.into_iter().take(missing));
        let chosen = ranked.into_iter().take(terms.cohort as usize);
        chosen.map(|(_, s)| s.clone()).collect()
    }
}

fn open(state: &State, run: RunKey, now: Now) -> Vec<Event> {
    if !state.may_open(&run, now) {
        return vec![];
    }
    let Some(view) = state.run_view(run.generation) else {
        return vec![];
    };
    let cohort = if view.live {
        state.cohort(&run, now)
    } else if let gone = proofs::gone(state, view.at, run.stage)
        && !gone.is_empty()
        && state.proof(view.at).is_some_and(|p| p.without_missing)
    {
        // Nobody is asked to train for nothing.
        return proofs::unproven(state, &run, gone, String::new(), now);
    } else {
        state.replay_cohort(view.at, run.stage, run.round)
    };
    let mut events = vec![Event::RoundOpened {
        run,
        cohort,
        deadline: now.uptime_ms + view.epoch.terms.deadline_ms(),
    }];
    // A hold that is over: nobody has to release what is trained.
    let over = view.live && state.holds.contains_key(&view.at);
    events.extend(over.then_some(Event::ShardReleased { shard: view.at }));
    events
}

fn offer(state: &State, device: &lethe_proto::ids::Digest, run: RunKey, now: Now) -> Vec<Event> {
    let holder = state.index.holders.get(device);
    let open = state
        .volatile
        .open
        .get(&run.generation)
        .filter(|o| o.run == run);
    let event = holder.zip(open).map(|(holder, _)| Event::TaskOffered {
        run,
        subject: holder.subject.clone(),
        at: now.uptime_ms,
    });
    event.into_iter().collect()
}

/// All of them, or none: the shell asks `State::expects` for each before it seals their values, and
/// again by this.
fn store(state: &State, stage: StageKey, updates: Vec<StoredUpdate>, now: Now) -> Decided {
    let mut arrived: BTreeMap<u16, Vec<SubjectId>> = BTreeMap::new();
    for u in &updates {
        let key = lethe_proto::ids::RoundKey {
            epoch: stage.epoch,
            shard: stage.shard,
            generation: stage.generation,
            stage: stage.stage,
            round: u.begun,
        };
        state.expects(key, &u.subject, now)?;
        let known = arrived.entry(u.begun).or_default();
        if known.contains(&u.subject) {
            // A client may have sent it twice, and both came together.
            return refuse(Refusal::Busy, "this update is being stored already");
        }
        known.push(u.subject.clone());
    }
    if updates.is_empty() {
        return Ok(vec![]);
    }
    let mut events: Vec<Event> = vec![];
    for (round, subjects) in arrived {
        let run = RunKey {
            epoch: stage.epoch,
            shard: stage.shard,
            generation: stage.generation,
            stage: stage.stage,
            round,
        };
        events.push(Event::UpdatesArrived {
            run,
            subjects,
            at: now.uptime_ms,
        });
    }
    events.push(Event::UpdatesStored { stage, updates });
    Ok(events)
}

impl State {
    /// What has become of an open round: none while it goes on, or is being added up.
    pub(crate) fn outcome(&self, run: &RunKey, now: Now) -> Option<Outcome> {
        let open = self.volatile.open.get(&run.generation);
        let open = open.filter(|o| o.run == *run && o.sealed.is_none())?;
        let outcome = open.round.outcome(now.uptime_ms)?;
        let Some(cohort) = (!self.is_live(run)).then(|| open.round.members().count()) else {
            return Some(outcome);
        };
        // A replay needs everybody who was there.
        let got = match outcome {
            Outcome::Aggregate(done) if done.len() == cohort => {
                return Some(Outcome::Aggregate(done));
            }
            Outcome::Aggregate(done) => done.len(),
            Outcome::Starved { got, .. } => got,
        };
        Some(Outcome::Starved {
            got,
            needed: cohort,
        })
    }
}

fn deadline(state: &State, run: RunKey, now: Now) -> Vec<Event> {
    let Some(Outcome::Starved { needed, .. }) = state.outcome(&run, now) else {
        return vec![];
    };
    let Some(view) = state.run_view(run.generation) else {
        return vec![];
    };
    let open = state.volatile.open.get(&run.generation);
    let starved = open.map_or(0, |o| o.starved);
    if !view.live && starved + 1 >= replays::MAX_STARVED {
        let missing = proofs::waited_for(state, &run);
        return proofs::unproven(state, &run, missing, replays::missing(needed), now);
    }
    if starved >= MAX_STARVED {
        return vec![Event::RoundAbandoned {
            run,
            until: now.uptime_ms + ABANDONED_MS,
        }];
    }
    vec![Event::RoundExtended {
        run,
        deadline: now.uptime_ms + view.epoch.terms.deadline_ms(),
    }]
}

fn short(state: &State, run: RunKey, why: String, now: Now) -> Vec<Event> {
    let open = state.volatile.open.get(&run.generation);
    let sealed = open.is_some_and(|o| o.run == run && o.sealed.is_some());
    let Some(view) = state.run_view(run.generation).filter(|_| sealed) else {
        return vec![];
    };
    if !view.live {
        return proofs::unproven(state, &run, [], why, now);
    }
    vec![
        Event::RoundUnsealed { run },
        Event::RoundExtended {
            run,
            deadline: now.uptime_ms + view.epoch.terms.deadline_ms(),
        },
    ]
}

fn seal(state: &State, run: RunKey, now: Now) -> Vec<Event> {
    if !matches!(state.outcome(&run, now), Some(Outcome::Aggregate(_))) {
        return vec![];
    }
    vec![Event::RoundSealed {
        run,
        counted: state.counted_now(&run),
        at: now.uptime_ms,
    }]
}

/// The result of a job.
struct Aggregated {
    left_out: Vec<Contributor>,
    value: ValueRef,
    hash: lethe_proto::ids::Digest,
    sum: RoundSum,
    personal: Vec<(SubjectId, ValueRef)>,
    checkpoint: Option<ValueRef>,
    lineage: Option<(u64, lethe_proto::ids::Digest)>,
    spent: Spent,
}

/// Whether those who count and those who are left out are all whose updates were to be added up.
fn same(sealed: &[Contributor], counted: &[Contributor], left_out: &[Contributor]) -> bool {
    if left_out.is_empty() {
        return sealed == counted;
    }
    let mut all: Vec<&Contributor> = counted.iter().chain(left_out).collect();
    all.sort();
    let mut expected: Vec<&Contributor> = sealed.iter().collect();
    expected.sort();
    all == expected
}

fn aggregated(
    state: &State,
    run: RunKey,
    counted: Vec<Contributor>,
    result: Aggregated,
    time: Now,
) -> Decided {
    let view = state
        .run_view(run.generation)
        .filter(|v| v.run.key(v.at) == run);
    let open = state
        .volatile
        .open
        .get(&run.generation)
        .filter(|o| o.run == run);
    let sealed = open.and_then(|o| o.sealed.as_ref());
    let (Some(view), Some(sealed)) = (view, sealed) else {
        return Ok(vec![]);
    };
    let stored = state.stages.get(&run.stage_key());
    let all_there = counted
        .iter()
        .all(|c| stored.is_some_and(|s| s.stored.contains_key(c)));
    if !same(&sealed.counted, &counted, &result.left_out) || !all_there {
        return Ok(vec![]);
    }
    let terms = &view.epoch.terms;
    let ends = run.round + 1 >= terms.rounds;
    if ends != result.checkpoint.is_some() {
        return refuse(
            Refusal::Internal,
            "a stage ends with a checkpoint, and nothing else does",
        );
    }
    let checkpoint = result.checkpoint.map(|value| {
        let version = state
            .volatile
            .versions
            .get(&view.at)
            .map_or(0, |v| v.members);
        // Computed by the job while the members were what they are now, or computed here.
        let known = result.lineage.filter(|(v, _)| *v == version);
        Checkpoint {
            value,
            hash: result.hash,
            lineage: known.map_or_else(|| state.lineage(view.at, run.stage), |(_, d)| d),
        }
    });
    let now = state.core.rates;
    let rates = Rates {
        client_rounds: now.client_rounds + if view.live { counted.len() as u64 } else { 0 },
        busy_ms: now.busy_ms + result.spent.busy_ms,
        client_ms: now.client_ms + state.volatile.client_ms,
        bytes: now.bytes + result.spent.bytes,
    };
    let mut events = vec![
        Event::RoundClosed {
            run,
            sum: result.sum,
            state: result.value,
            hash: result.hash,
            checkpoint,
            rates,
        },
        Event::RoundCounted {
            stage: run.stage_key(),
            round: run.round,
            counted,
            personal: result.personal,
        },
    ];
    if !result.left_out.is_empty() {
        events.push(Event::UpdatesLeftOut {
            stage: run.stage_key(),
            updates: result.left_out,
        });
    }
    if !view.live && ends {
        let first = state
            .shard(view.at)
            .and_then(|s| s.run.stages.get(&run.stage));
        let recorded = first.and_then(|s| s.checkpoint.as_ref()).map(|c| c.hash);
        // An audit knows the end alone.
        events.extend(recorded.map(|recorded| Event::StageReplayed {
            shard: view.at,
            stage: run.stage,
            replayed: result.hash,
            recorded,
        }));
        if run.stage >= terms.slices {
            let next = after(state, &events);
            events.push(proofs::ended(&next, view.at, result.hash, time));
        }
    }
    Ok(events)
}
