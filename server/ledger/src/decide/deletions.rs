//! Deletions: how requests are checked and accepted, one or many at once.

use std::collections::BTreeMap;

use lethe_plan::{Inventory, Plan, Request, plan};
use lethe_proto::admin::DeletionPhase;
use lethe_proto::ids::SubjectId;
use lethe_receipt::records::Records;

use super::Decided;
use crate::apply::keys_of_run;
use crate::command::OwnPlans;
use crate::event::Event;
use crate::ids::{EpochNo, Fresh, Now, Refused, ShardKey, StageKey};
use crate::state::{Deletion, Numbers, PendingErase, RemovedRecord, State};

/// Most requests in one batch, and most items in one request.
const MAX_BATCH: usize = 1000;

/// The first of January 1990, in Unix seconds: nobody's history is older.
const EARLIEST: i64 = 631_152_000;

/// What is accepted.
pub(super) struct Asked {
    pub(super) requests: Vec<Request>,
    pub(super) reference: String,
    pub(super) asked: u64,
    pub(super) plans: Vec<OwnPlans>,
    pub(super) fresh: Fresh,
}

/// What earlier requests ask of a person who joins.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inherited {
    pub(crate) restricted: bool,
    pub(crate) erase: Option<PendingErase>,
}

/// Refuses times that are a slip: another unit, a date read as a number, the future.
fn check_time(request: &Request, now: Now) -> Result<(), Refused> {
    let Some(from) = request.from() else {
        return Ok(());
    };
    let seconds = i64::try_from(now.unix_ms / 1000).unwrap_or(i64::MAX);
    let tomorrow = seconds.saturating_add(86_400);
    let why = if from < EARLIEST {
        "lies before 1990: it would have been read as everything that the person ever did. To \
         forget everything, ask for that"
    } else if from > tomorrow {
        "lies beyond tomorrow: it would have been read as nothing so far. Are these milliseconds?"
    } else {
        return Ok(());
    };
    let message = format!("the time {from} (seconds since 1970) {why}");
    Err(Refused::invalid(message))
}

/// Refuses items that nobody knows: a receipt would say that they were deleted.
fn check_items(state: &State, request: &Request, confirmed: bool) -> Result<(), Refused> {
    let known = &state.rules.items;
    let unknown = request.items().iter().find(|i| !known.contains(*i));
    let Some(item) = unknown.filter(|_| !confirmed) else {
        return Ok(());
    };
    let parts: Vec<&str> = item
        .split([';', ',', '|', '/', ' ', '\t'])
        .map(str::trim)
        .filter(|p| !p.is_empty())
        .collect();
    let named = parts.iter().filter(|p| known.contains(**p)).count();
    let hint = if parts.len() > 1 && named > 0 {
        format!(
            " The items {} are: name each by itself (several `--item`; in a file, blanks between \
             them).",
            parts.join(" and ")
        )
    } else {
        String::new()
    };
    Err(Refused::invalid(format!(
        "item {item:?} is not in the catalogue; it would have been read as one item of that \
         name.{hint} If it was in an earlier catalogue, confirm with `--yes`"
    )))
}

/// Refuses a batch that cannot be carried out; plans nothing.
///
/// `confirmed`: the operator means items that are not in the catalogue.
pub(super) fn check(
    state: &State,
    requests: &[Request],
    confirmed: bool,
    now: Now,
) -> Result<(), Refused> {
    let most_items = requests.iter().map(|r| r.items().len()).max().unwrap_or(0);
    let longest = most_items.max(requests.len());
    if longest > MAX_BATCH {
        return Err(Refused::invalid(format!(
            "{longest} requests or items at once, at most {MAX_BATCH}: divide them"
        )));
    }
    for r in requests.iter().filter(|r| r.asks_devices()) {
        if let Some(s) = r.subject()
            && state.profile(s).is_none()
        {
            return Err(Refused::invalid(format!(
                "{s} has not joined (or was deleted): there is no data of theirs to choose from"
            )));
        }
    }
    for r in requests {
        check_items(state, r, confirmed)?;
        check_time(r, now)?;
    }
    // The planner's own checks, which need nobody's place: unknown people, people named twice,
    // requests without content.
    let everybody = Inventory {
        shards: vec![],
        unplaced: named(state, requests),
        stages: 0,
        rounds_per_stage: 0,
        cohort: 0,
        samples_per_round: 0,
        rates: state.core.rates,
    };
    plan(&everybody, requests)?;
    Ok(())
}

impl State {
    /// What a batch would do, by epoch; writes nothing. Refuses what `Command::Forget` would.
    pub fn dry_run(
        &self,
        requests: &[Request],
        confirmed: bool,
        now: Now,
    ) -> Result<OwnPlans, Refused> {
        check(self, requests, confirmed, now)?;
        let mut out = vec![];
        for (no, inventory) in inventories(self) {
            let plan = plan(&inventory, requests)?;
            plan.lint(&inventory)?;
            out.push((no, plan));
        }
        Ok(out)
    }
}

fn named(state: &State, requests: &[Request]) -> Vec<SubjectId> {
    let named = requests.iter().filter_map(|r| r.subject());
    named
        .filter(|s| state.people.contains_key(*s))
        .cloned()
        .collect()
}

/// Accepts requests: all of them, or none. They are executed later, and from here on nothing is
/// served or trained before they are.
pub(super) fn forget(state: &State, asked: Asked, now: Now) -> Decided {
    let inventories = inventories(state);
    let mut trees: BTreeMap<ShardKey, Records> = BTreeMap::new();
    let mut numbers = Numbers {
        deletion: state.core.numbers.deletion,
        task: state.core.numbers.task,
        ..Numbers::default()
    };
    let batch = asked.requests.len() as u32;
    let mut supplied = asked.plans.into_iter();
    let mut accepted = vec![];
    for (i, request) in asked.requests.into_iter().enumerate() {
        numbers.deletion += 1;
        numbers.task += u64::from(request.asks_devices());
        let plans = plans_of(&inventories, &request, supplied.next().unwrap_or_default())?;
        let task = request.asks_devices().then_some(numbers.task);
        let mut deletion = record(state, request, plans, &mut trees);
        deletion.batch = batch;
        deletion.task = task;
        deletion.requested_at = asked.asked;
        deletion.accepted_at = now.unix_ms;
        deletion.salt = asked.fresh.salt(i as u64);
        deletion.reference = asked.reference.clone();
        accepted.push(Event::DeletionAccepted {
            id: numbers.deletion,
            deletion: Box::new(deletion),
        });
    }
    let mut events = vec![Event::NumbersTaken { numbers }];
    events.extend(accepted);
    Ok(events)
}

pub(super) fn inventories(state: &State) -> Vec<(EpochNo, Inventory)> {
    // Of epochs that have ended nothing is left to plan for.
    let living = state.living();
    living
        .filter_map(|(no, _)| Some((no, state.inventory(no)?)))
        .collect()
}

/// Plans of one request, per epoch: those that were made on a snapshot, where they are still safe
/// to execute.
fn plans_of(
    inventories: &[(EpochNo, Inventory)],
    request: &Request,
    supplied: OwnPlans,
) -> Result<OwnPlans, Refused> {
    let own = std::slice::from_ref(request);
    let mut out = vec![];
    for (no, inventory) in inventories {
        let given = supplied
            .iter()
            .find(|(epoch, _)| epoch == no)
            .map(|(_, p)| p);
        let fits = given.filter(|p| p.requests == own && p.lint(inventory).is_ok());
        let plan = match fits {
            Some(plan) => plan.clone(),
            None => {
                let plan = plan(inventory, own)?;
                plan.lint(inventory)?;
                plan
            }
        };
        out.push((*no, plan));
    }
    Ok(out)
}

/// A deletion as it is accepted; times, numbers and salt are the caller's.
fn record(
    state: &State,
    request: Request,
    plans: OwnPlans,
    trees: &mut BTreeMap<ShardKey, Records>,
) -> Deletion {
    let proof = request.subject().and_then(|s| {
        state.record_before(s, |key| {
            Some(&*trees.entry(key).or_insert_with(|| state.records_of(key)))
        })
    });
    let mut deletion = Deletion {
        batch: 1,
        plans,
        phase: DeletionPhase::Planned,
        requested_at: 0,
        accepted_at: 0,
        exact_after_ms: None,
        retrained_after_ms: None,
        before: state.served_hashes(),
        rolled_back: vec![],
        keys_destroyed: 0,
        salt: [0; 32],
        task: None,
        proof,
        bytes_before: state.core.rates.bytes,
        statement: None,
        statement_index: None,
        order_index: None,
        removed: RemovedRecord::default(),
        receipt: None,
        reference: String::new(),
        request,
    };
    deletion.keys_destroyed = existing(state, &deletion);
    deletion
}

/// How many keys there are of those that a deletion, by its own plan, destroys.
pub(super) fn existing(state: &State, deletion: &Deletion) -> u32 {
    let mut stages = 0;
    for (key, from) in deletion.affected() {
        stages += stage_keys(state, key, from).len();
    }
    let people = match deletion.request.subject() {
        Some(_) if matches!(deletion.request, Request::Restrict { .. }) => 0,
        Some(s) => usize::from(state.people.contains_key(s)),
        None => state
            .people
            .values()
            .filter(|p| p.profile.is_some())
            .count(),
    };
    (stages + people) as u32
}

/// Keys of a shard's stages from `from` on, of what is live and of a replay, that are there.
pub(super) fn stage_keys(state: &State, key: ShardKey, from: u16) -> Vec<StageKey> {
    let Some(shard) = state.shard(key) else {
        return vec![];
    };
    let live = keys_of_run(&shard.run, key, from);
    live.into_iter()
        .filter(|k| state.stages.contains_key(k))
        .collect()
}

/// A deletion that the journal holds and the data folder lacks: a backup was restored.
pub(super) fn again(
    state: &State,
    inventories: &[(EpochNo, Inventory)],
    accepted: &crate::command::Accepted,
    trees: &mut BTreeMap<ShardKey, Records>,
) -> Result<Event, Refused> {
    let request = accepted.request.clone();
    let mut plans = vec![];
    for (no, inventory) in inventories {
        let plan = match plan(inventory, std::slice::from_ref(&request)) {
            Ok(plan) => plan,
            // The backup is older than the person: it is kept for the day on which they join again.
            Err(lethe_plan::PlanError::UnknownSubject(_)) => {
                Plan::nothing_held(inventory, &request)
            }
            Err(e) => return Err(e.into()),
        };
        plans.push((*no, plan));
    }
    let mut deletion = record(state, request, plans, trees);
    deletion.batch = accepted.batch;
    deletion.task = accepted.task.filter(|_| deletion.request.asks_devices());
    deletion.requested_at = accepted.at;
    deletion.accepted_at = accepted.at;
    deletion.salt = accepted.salt;
    deletion.reference = accepted.reference.clone();
    Ok(Event::DeletionAccepted {
        id: accepted.id,
        deletion: Box::new(deletion),
    })
}

/// What requests so far ask of a person of whom nothing else is known: who only enrolled, or joins
/// again after a backup that did not know them was restored. Takedowns concern everybody who joins
/// later too.
pub(crate) fn inherited(state: &State, subject: &SubjectId) -> Inherited {
    let mut out = Inherited::default();
    for (id, d) in state
        .deletions
        .iter()
        .filter(|(_, d)| d.request.concerns(subject))
    {
        match &d.request {
            Request::Erase { .. } => out = Inherited::default(),
            Request::Restrict { .. } => out.restricted |= !state.lifted.contains_key(id),
            request => {
                let earlier = out.erase.take();
                out.erase = Some(PendingErase::of(d.task.unwrap_or(0), request).with(earlier));
            }
        }
    }
    out
}
