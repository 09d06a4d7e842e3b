//! Epochs that follow one another: founding, beginning, giving up, retiring.

use std::collections::BTreeSet;

use lethe_learn::partition::SubShards;
use lethe_proto::epochs::Lacks;
use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::message::Refusal;

use super::{Decided, policy, refuse};
use crate::command::{AskedBy, Command};
use crate::event::Event;
use crate::ids::{CatalogueVersion, EpochNo, Now, Refused};
use crate::state::{Epoch, Life, Numbers, Partition, Profile, Shard, State, Step};
use crate::terms::{Mode, Terms};

/// Most devices of which is known what they lack for an epoch.
const MAX_LACKS: usize = 100_000;

/// What an epoch is founded with.
struct Founds {
    terms: Terms,
    recipe: String,
    recipe_digest: Digest,
    model: Digest,
    initial: Digest,
    catalogue: CatalogueVersion,
    base: Option<String>,
    asked: Option<AskedBy>,
}

pub(super) fn decide(state: &State, command: Command, now: Now) -> Decided {
    match command {
        Command::FoundEpoch {
            terms,
            recipe,
            recipe_digest,
            model,
            initial,
            catalogue,
            base,
            asked,
        } => {
            let founds = Founds {
                terms,
                recipe,
                recipe_digest,
                model,
                initial,
                catalogue,
                base,
                asked,
            };
            found(state, founds, now)
        }
        Command::BeginEpoch { epoch } => begin(state, epoch, now),
        Command::DropEpoch { epoch, asked } => give_up(state, epoch, asked, now),
        Command::Retire { epoch } => {
            if !state.may_retire(epoch) {
                return Ok(vec![]);
            }
            let retired = Event::EpochRetired { no: epoch };
            Ok(vec![retired, reached(epoch, Step::Retired, now)])
        }
        Command::Lacks {
            device,
            epoch,
            lacks,
        } => Ok(lack(state, device, epoch, lacks)),
        _ => Ok(vec![]),
    }
}

/// That an epoch has come so far.
pub(super) fn reached(no: EpochNo, step: Step, now: Now) -> Event {
    Event::EpochReached {
        no,
        step,
        at: now.unix_ms,
    }
}

fn found(state: &State, founds: Founds, now: Now) -> Decided {
    let terms = &founds.terms;
    if terms.shards == 0 || terms.slices == 0 || terms.rounds == 0 {
        return refuse(Refusal::Invalid, "an epoch needs shards, slices and rounds");
    }
    state.may_found()?;
    let no = state.core.numbers.epoch + 1;
    let mut events = match founds.asked {
        None => vec![],
        Some(asked) => {
            let line = format!("start epoch {no} with recipe {}", founds.recipe_digest);
            noted(state, asked, line, now)?
        }
    };
    let first = state.core.numbers.generation + 1;
    let shards = (0..terms.shards).map(|k| Shard::new(first + u32::from(k), founds.initial));
    let numbers = Numbers {
        epoch: no,
        generation: state.core.numbers.generation + u32::from(terms.shards),
        ..Numbers::default()
    };
    let epoch = Epoch {
        shards: shards.collect(),
        terms: founds.terms,
        recipe: founds.recipe,
        recipe_digest: founds.recipe_digest,
        model: founds.model,
        initial: founds.initial,
        catalogue: founds.catalogue,
        partition: None,
    };
    let life = Life {
        founded: now.unix_ms,
        by: founds.asked.map_or_else(Digest::default, |a| a.by),
        base: founds.base,
        ..Life::default()
    };
    let no = EpochNo(no);
    events.push(Event::NumbersTaken { numbers });
    events.push(Event::EpochFounded {
        no,
        epoch: Box::new(epoch),
    });
    events.push(Event::EpochAsked { no, life });
    Ok(events)
}

/// What the log is to hold of it: an operator has a pace, the server has none.
fn noted(state: &State, asked: AskedBy, line: String, now: Now) -> Decided {
    if asked.by == Digest::default() {
        return Ok(policy::note(state, asked.by, line, asked.fresh, now));
    }
    policy::note_by(state, asked.by, line, asked.fresh, now)
}

impl State {
    /// Whether an epoch may be founded now: one roll at a time.
    pub fn may_found(&self) -> Result<(), Refused> {
        if self.rules.mode != Mode::Serve {
            return Err(Refused::invalid("an audit has one epoch"));
        }
        let Some(newest) = self.joining() else {
            return Ok(());
        };
        if self.core.serving == Some(newest) {
            return self.older_have_ended(newest);
        }
        let far = self.how_far(newest);
        let number = newest.0;
        Err(Refused::new(
            Refusal::Busy,
            format!(
                "epoch {number} is under way and not served yet: {far}. One follows another: wait, \
                 or give it up with `lethe-admin epoch cancel {number}`"
            ),
        ))
    }

    /// Devices keep what they joined every epoch with that is alive: there are two at most, and
    /// while one waits to be retired none is founded.
    fn older_have_ended(&self, newest: EpochNo) -> Result<(), Refused> {
        let Some((older, _)) = self.living().find(|(no, _)| *no < newest) else {
            return Ok(());
        };
        let number = older.0;
        Err(Refused::new(
            Refusal::Busy,
            format!(
                "epoch {number} is not retired yet: a deletion that is about it is not done \
                 (`lethe-admin list`). The next epoch is founded after it"
            ),
        ))
    }

    fn how_far(&self, no: EpochNo) -> String {
        let Some(epoch) = self.epochs.get(&no) else {
            return String::new();
        };
        if epoch.partition.is_none() {
            let (all, trains) = self.joined_in(no);
            return format!("{all} people have joined it, {trains} with training samples");
        }
        let progress = epoch.shards.iter().map(|s| s.run.progress(&epoch.terms));
        let (done, all) = progress.fold((0, 0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
        format!("{done} of {all} rounds are trained")
    }

    /// Whether an epoch that follows another begins now: enough of those in the other one have
    /// joined it, or they had long enough.
    pub(crate) fn may_begin(&self, no: EpochNo, now: Now) -> bool {
        let Some(epoch) = self.epochs.get(&no) else {
            return false;
        };
        let follows = self.core.serving.is_some_and(|serving| serving < no);
        let waits = epoch.partition.is_none() && follows && !self.ended(no);
        if !waits || self.unexecuted() || self.rules.mode != Mode::Serve {
            return false;
        }
        // The names alone first: this is asked often.
        let names = self.index.joined.get(&no).map_or(0, BTreeSet::len);
        let over = self.joins_until(no).is_some_and(|t| now.unix_ms >= t);
        if names < self.rules.min_subjects || !(over || names >= self.enough()) {
            return false;
        }
        if !over && names - self.coming_back(no) < self.enough() {
            return false;
        }
        self.joined_in(no).1 >= self.rules.min_subjects
    }

    /// People who joined an epoch that has not begun, and have erased something since: they are
    /// about to join it again. If it began now it would begin without them.
    fn coming_back(&self, no: EpochNo) -> usize {
        let names = self.index.joined.get(&no).into_iter().flatten();
        let profiles = names.filter_map(|s| self.profile(s));
        let away = |p: &&Profile| {
            let excluded = p.places.get(&no).is_some_and(|place| place.excluded);
            excluded && !p.restricted && p.erase.is_none()
        };
        profiles.filter(away).count()
    }

    /// Whether an epoch is given up for want of people.
    pub(crate) fn may_drop(&self, no: EpochNo, now: Now) -> bool {
        let epoch = self.epochs.get(&no);
        let waits = epoch.is_some_and(|e| e.partition.is_none())
            && self.rolling() == Some(no)
            && self.is_quiet();
        let over = self.joins_until(no).is_some_and(|t| now.unix_ms >= t);
        waits && over && !self.may_begin(no, now)
    }

    /// Nothing is being executed, and nobody moves.
    pub(crate) fn is_quiet(&self) -> bool {
        self.core.executing.is_none()
            && !self.unexecuted()
            && self.core.lost.is_empty()
            && self.index.moving.is_empty()
    }

    /// What the partition needs of those who have joined an epoch and train, besides one.
    fn places_in(&self, no: EpochNo, besides: Option<&SubjectId>) -> Vec<JoinedAt> {
        let names = self.index.joined.get(&no);
        let of = |s: &SubjectId| {
            let profile = self.profile(s)?;
            let place = profile.places.get(&no).filter(|p| p.samples > 0)?;
            Some(JoinedAt {
                anchor: place.anchor,
                since: profile.since,
            })
        };
        let names = names.into_iter().flatten();
        names
            .filter(|s| Some(*s) != besides)
            .filter_map(of)
            .collect()
    }

    /// The first epoch begins with this person, if enough have joined. One that follows another has
    /// a time of its own: [`Self::may_begin`].
    pub(super) fn begins_with(
        &self,
        no: EpochNo,
        subject: &SubjectId,
        joined: JoinedAt,
        now: Now,
    ) -> Result<Vec<Event>, Refused> {
        let open = self.epochs.get(&no).filter(|e| e.partition.is_none());
        let Some(epoch) = open.filter(|_| self.core.serving.is_none()) else {
            return Ok(vec![]);
        };
        let names = self.index.joined.get(&no);
        let others = names.into_iter().flatten().filter(|s| *s != subject);
        // Each of a thousand joins asks this: the names alone first.
        let most = others.count() + 1;
        if self.rules.mode != Mode::Serve || most < self.rules.min_subjects {
            return Ok(vec![]);
        }
        let mut all = self.places_in(no, Some(subject));
        all.push(joined);
        if all.len() < self.rules.min_subjects {
            return Ok(vec![]);
        }
        begun(no, epoch, &all, now)
    }
}

/// What the partition needs to know of somebody who joined.
#[derive(Clone, Copy, Debug)]
pub(super) struct JoinedAt {
    pub(super) anchor: u16,
    pub(super) since: u64,
}

fn begun(no: EpochNo, epoch: &Epoch, all: &[JoinedAt], now: Now) -> Decided {
    let mut counts = vec![0; usize::from(epoch.terms.anchors.max(1))];
    for joined in all {
        if let Some(count) = counts.get_mut(usize::from(joined.anchor)) {
            *count += 1;
        }
    }
    let sub_shards = SubShards::allot(&counts, usize::from(epoch.terms.shards))
        .map_err(|e| Refused::new(Refusal::Internal, e.to_string()))?;
    let mut times: Vec<u64> = all.iter().map(|joined| joined.since).collect();
    times.sort_unstable();
    let slices = usize::from(epoch.terms.slices.max(1));
    let bound = |i: usize| {
        let at = times.get(i * times.len() / slices);
        at.copied().unwrap_or(u64::MAX)
    };
    let partition = Partition {
        sub_shards,
        tenure: (1..slices).map(bound).collect(),
    };
    Ok(vec![
        Event::EpochBegan { no, partition },
        reached(no, Step::Began, now),
    ])
}

fn begin(state: &State, no: EpochNo, now: Now) -> Decided {
    let epoch = state.epochs.get(&no).filter(|_| state.may_begin(no, now));
    let Some(epoch) = epoch else {
        return Ok(vec![]);
    };
    begun(no, epoch, &state.places_in(no, None), now)
}

fn give_up(state: &State, no: EpochNo, asked: Option<AskedBy>, now: Now) -> Decided {
    let Some(asked) = asked else {
        let event = state.may_drop(no, now);
        let event = event.then(|| reached(no, Step::Dropped, now));
        return Ok(event.into_iter().collect());
    };
    if state.rolling() != Some(no) {
        return Err(Refused::invalid(format!(
            "epoch {} does not follow the one that is served, or has ended: `lethe-admin epoch \
             status` shows which one does",
            no.0
        )));
    }
    if !state.is_quiet() {
        return Err(Refused::executing());
    }
    let line = format!("give up epoch {}", no.0);
    let mut events = noted(state, asked, line, now)?;
    events.push(reached(no, Step::Dropped, now));
    Ok(events)
}

impl State {
    /// A device that joins an epoch lacks nothing for it any more.
    pub(super) fn lacks_nothing(&self, device: &Digest, epoch: EpochNo) -> Option<Event> {
        let device = self.index.holders.get(device)?.device;
        let known = self.volatile.lacks.get(&epoch)?;
        let event = Event::LackGone { epoch, device };
        known.contains_key(&device).then_some(event)
    }
}

fn lack(state: &State, device: Digest, epoch: EpochNo, lacks: Lacks) -> Vec<Event> {
    let Some(holder) = state.index.holders.get(&device) else {
        return vec![];
    };
    let known = state.volatile.lacks.get(&epoch);
    let full = known.is_some_and(|k| k.len() >= MAX_LACKS);
    let said = known.and_then(|k| k.get(&holder.device)) == Some(&lacks);
    if said || full || !state.epochs.contains_key(&epoch) || state.ended(epoch) {
        return vec![];
    }
    vec![Event::LackNoted {
        epoch,
        device: holder.device,
        lacks,
    }]
}
