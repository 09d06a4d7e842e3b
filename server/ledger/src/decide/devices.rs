//! People and their devices: joining, erasing, fetching, measuring.

use std::collections::BTreeSet;

use lethe_proto::admin::DeletionPhase;
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_proto::limits::MAX_SAMPLES;
use lethe_proto::message::{Erased, ErrorReport, Refusal};

use super::rolls::JoinedAt;
use super::{Decided, deletions, refuse};
use crate::command::Command;
use crate::event::{Event, MeasuredShard};
use crate::ids::{EpochNo, Fresh, Now, Refused, ShardKey, ValueRef};
use crate::state::{Epoch, Holder, Moving, Place, Profile, RemovedRecord, State};

/// Most events that a device can say it removed for one order.
const MAX_REMOVED: u32 = MAX_SAMPLES;

pub(super) fn decide(state: &State, command: Command, now: Now) -> Decided {
    match command {
        Command::Hello { device } => Ok(hello(state, &device)),
        Command::Join {
            device,
            epoch,
            anchor,
            samples,
            commitment,
            fresh,
        } => {
            let asks = Join {
                epoch,
                anchor,
                samples,
                commitment,
                fresh,
            };
            let mut events = join(state, &device, &asks, now)?;
            events.extend(state.lacks_nothing(&device, epoch));
            Ok(events)
        }
        Command::Erased {
            device,
            task,
            outcome,
        } => erased(state, &device, task, &outcome),
        Command::Fetched { devices, release } => Ok(fetched(state, &devices, release)),
        Command::Errors {
            device,
            release,
            rows,
            values,
        } => errors(state, &device, release, &rows, values),
        Command::GiveUpWaiting => {
            let late = state.late_people(now);
            Ok(late
                .into_iter()
                .map(|subject| Event::Excluded { subject })
                .collect())
        }
        _ => Ok(vec![]),
    }
}

fn hello(state: &State, device: &Digest) -> Vec<Event> {
    let holder = state.index.holders.get(device);
    let withheld = holder.filter(|h| {
        let person = state.people.get(&h.subject);
        let device = person.and_then(|p| p.devices.get(&h.device));
        device.is_some_and(|d| d.withheld.is_some())
    });
    let event = withheld.map(|h| Event::ConsentAskedAgain {
        subject: h.subject.clone(),
        device: h.device,
    });
    event.into_iter().collect()
}

struct Join {
    epoch: EpochNo,
    anchor: Option<u16>,
    samples: u32,
    commitment: Digest,
    fresh: Fresh,
}

fn join(state: &State, device: &Digest, asks: &Join, now: Now) -> Decided {
    let Some(Holder { subject, .. }) = state.index.holders.get(device) else {
        // The connection may have been accepted before a deletion that has happened since.
        return refuse(
            Refusal::Forbidden,
            "this subject's certificates were withdrawn",
        );
    };
    let Some(epoch) = state.epochs.get(&asks.epoch) else {
        let message = format!(
            "there is no epoch {}: take it from the welcome",
            asks.epoch.0
        );
        return refuse(Refusal::Invalid, message);
    };
    if state.ended(asks.epoch) {
        let message = format!(
            "{} has ended: ask for the epochs that are alive, and join the newest",
            asks.epoch
        );
        return refuse(Refusal::Invalid, message);
    }
    let anchor = check_join(epoch, subject, asks)?;
    // Until a deletion has been executed, the person may be somebody who stays and is not written
    // anew yet.
    if state.unexecuted() {
        return Err(Refused::executing());
    }
    let person = state.people.get(subject);
    if person.is_some_and(|p| p.moving.is_some()) {
        return Ok(vec![]);
    }
    let known = person.and_then(|p| p.profile.as_ref());
    let rejoin = known.is_some_and(|r| r.erase.as_ref().is_some_and(|e| e.confirmed));
    let erasing = known.is_some_and(|r| r.erase.is_some());
    let begun = epoch.partition.is_some();
    let placed = known.and_then(|r| r.places.get(&asks.epoch));
    if !rejoin && (erasing || (placed.is_some() && begun)) {
        // A device that has yet to erase does not get around it by joining again. And new data
        // counts from the next epoch on: what is being trained must stay what was committed to.
        return Ok(vec![]);
    }
    let since = known.map_or(now.unix_ms, |r| r.since);
    let inherited = match known {
        Some(_) => deletions::Inherited::default(),
        None => deletions::inherited(state, subject),
    };
    // Who was left out stays out: the receipt of that deletion says what was trained. In an epoch
    // that has not begun nothing is: who joins it is in it, whatever was before.
    let restricted = known.is_some_and(|r| r.restricted) || inherited.restricted;
    let stays_out = begun && placed.filter(|_| rejoin).is_none_or(|place| place.excluded);
    let place = Place {
        anchor,
        samples: asks.samples,
        commitment: asks.commitment,
        shard: epoch.shard_of(subject, anchor),
        slice: epoch.slice_of(subject, since),
        excluded: stays_out || restricted,
    };
    let same = placed == Some(&place) && known.is_some_and(|r| r.restricted == restricted);
    if same && !rejoin {
        // The answer of before was lost.
        return Ok(vec![]);
    }
    let moved = rejoin && placed.and_then(|p| p.shard) != place.shard;
    if moved && !place.excluded && place.shard.is_some() {
        // What remains of a person after a partial deletion lies nearer to another shard: that one
        // is rolled back and trained again too, before the person is a member of it.
        return Ok(vec![Event::MoveAsked {
            subject: subject.clone(),
            moving: Moving {
                epoch: asks.epoch,
                place,
            },
        }]);
    }
    let mut events = vec![Event::Joined {
        subject: subject.clone(),
        epoch: asks.epoch,
        place: place.clone(),
        salt: known.map_or_else(|| asks.fresh.salt(0), |r| r.salt),
        since,
        restricted,
        erase: inherited.erase,
    }];
    // Who has nothing to train on takes part in sums only, and begins no epoch.
    if asks.samples > 0 {
        let joined = JoinedAt { anchor, since };
        events.extend(state.begins_with(asks.epoch, subject, joined, now)?);
    }
    Ok(events)
}

/// The anchor, if what is asked is within bounds.
fn check_join(epoch: &Epoch, subject: &SubjectId, asks: &Join) -> Result<u16, Refused> {
    let anchors = epoch.terms.anchors.max(1);
    // Who names no direction is placed by who they are: never at random, nor by who came first.
    let by_name = || {
        let seed = epoch.terms.epoch_seed();
        let rank = seed.rank("anchor", subject.as_str().as_bytes());
        (rank % u64::from(anchors)) as u16
    };
    let anchor = asks.anchor.unwrap_or_else(by_name);
    if anchor >= anchors {
        let message = format!("anchor {anchor} of {anchors}: take it from the welcome");
        return Err(Refused::invalid(message));
    }
    if asks.samples > MAX_SAMPLES {
        let samples = asks.samples;
        let message = format!("{samples} training samples, at most {MAX_SAMPLES} of a person");
        return Err(Refused::invalid(message));
    }
    Ok(anchor)
}

fn erased(state: &State, certificate: &Digest, task: u64, outcome: &Erased) -> Decided {
    let Some(Holder { subject, device }) = state.index.holders.get(certificate) else {
        return Ok(vec![]);
    };
    let Some(person) = state.people.get(subject) else {
        return Ok(vec![]);
    };
    let Some(profile) = &person.profile else {
        return Ok(vec![]);
    };
    let Some(pending) = &profile.erase else {
        return Ok(vec![]);
    };
    if pending.task != task {
        // More was ordered meanwhile. What the device removed must not be lost with an
        // acknowledgement: it reports it with the newer task.
        let message = "more was ordered meanwhile: ask for work again";
        return refuse(Refusal::RoundClosed, message);
    }
    let known = person.devices.get(device);
    match outcome {
        Erased::Done { removed } => {
            if let Some((deletion, n)) = removed.iter().find(|(_, n)| *n > MAX_REMOVED) {
                return Err(Refused::invalid(format!(
                    "{n} events removed for deletion {deletion}, expected at most {MAX_REMOVED}: \
                     no device holds more"
                )));
            }
            if known.is_none_or(|d| d.confirmed == Some(task)) {
                return Ok(vec![]);
            }
            let mut others = person.devices.iter().filter(|(d, _)| *d != device);
            let last = others.all(|(_, d)| d.confirmed == Some(task));
            let mut events = vec![Event::DeviceErased {
                subject: subject.clone(),
                device: *device,
                task,
            }];
            events.extend(removed_for(state, subject, removed, last));
            Ok(events)
        }
        Erased::WaitsForConsent => {
            let mut events = vec![];
            if known.is_some_and(|d| d.withheld != Some(task)) {
                events.push(Event::ErasureWithheld {
                    subject: subject.clone(),
                    device: *device,
                    task,
                });
            }
            if !profile.excluded() {
                // Nobody waits for it: the person is left out of training, as after the deadline.
                events.push(Event::Excluded {
                    subject: subject.clone(),
                });
            }
            Ok(events)
        }
    }
}

/// What a device removed, added to what each deletion knows. A person has answered when all of
/// their devices have.
fn removed_for(
    state: &State,
    subject: &SubjectId,
    removed: &[(u64, u32)],
    last: bool,
) -> Vec<Event> {
    let mut events = vec![];
    let open = state.index.planned.iter().chain(&state.index.waiting);
    for id in open {
        let Some(d) = state.deletions.get(id) else {
            continue;
        };
        let told = removed.iter().find(|(deletion, _)| deletion == id);
        let Some((_, n)) = told.filter(|_| d.task.is_some() && d.request.concerns(subject)) else {
            continue;
        };
        let removed = RemovedRecord {
            events: d.removed.events.saturating_add(u64::from(*n)),
            answered: d.removed.answered.saturating_add(u32::from(last)),
        };
        events.push(Event::RemovedCounted { id: *id, removed });
    }
    events
}

fn fetched(state: &State, devices: &[Digest], release: u64) -> Vec<Event> {
    let devices: BTreeSet<&Digest> = devices.iter().collect();
    let event = |certificate: &Digest| {
        let holder = state.index.holders.get(certificate)?;
        let person = state.people.get(&holder.subject)?;
        let device = person.devices.get(&holder.device)?;
        (person.profile.is_some() && device.release != release).then(|| Event::ReleaseFetched {
            subject: holder.subject.clone(),
            device: holder.device,
            release,
        })
    };
    devices.into_iter().filter_map(event).collect()
}

fn errors(
    state: &State,
    certificate: &Digest,
    release: u64,
    rows: &[ErrorReport],
    values: Vec<(ShardId, ValueRef)>,
) -> Decided {
    let current = state.current_release().filter(|(no, _)| *no == release);
    let Some((_, current)) = current else {
        return refuse(
            Refusal::StaleRelease,
            "the release was withdrawn meanwhile: fetch the current one",
        );
    };
    let holder = state.index.holders.get(certificate);
    let profile = holder.and_then(|h| state.profile(&h.subject));
    if profile.is_some_and(|r| r.erase.is_some()) {
        let message = "measured before the device erased what it was told to: ask for work again";
        return refuse(Refusal::StaleRelease, message);
    }
    if profile.is_some_and(|r| r.restricted) {
        return refuse(
            Refusal::Forbidden,
            "this person's data is restricted: it is kept and not used",
        );
    }
    let Some(epoch) = state.epochs.get(&current.epoch) else {
        return refuse(Refusal::Internal, "the release's epoch is gone");
    };
    let most = epoch.terms.validation as usize;
    let Some(holder) = holder.filter(|_| profile.is_some() && rows.len() <= most) else {
        let got = rows.len();
        let message = format!("{got} rows, at most {most}, from a subject that joined");
        return refuse(Refusal::Invalid, message);
    };
    if rows.is_empty() {
        // The device is not asked about this release again. What was measured before stays.
        let event = Event::NothingMeasured {
            device: holder.device,
            release,
        };
        return Ok(vec![event]);
    }
    let shards = current.shards.len();
    rows.iter().try_for_each(|r| check_row(epoch, shards, r))?;
    let mut measured = vec![];
    for (shard, value) in values {
        let Some(served) = current.shards.get(usize::from(shard.0)) else {
            continue;
        };
        let has = |r: &&ErrorReport| r.errors.iter().any(|(s, _)| *s == shard);
        let samples: Vec<u32> = rows.iter().filter(has).map(|r| r.sample).collect();
        if samples.is_empty() {
            continue;
        }
        measured.push(MeasuredShard {
            shard: ShardKey {
                epoch: current.epoch,
                shard,
            },
            adapter: served.digest,
            samples,
            value,
        });
    }
    Ok(vec![Event::ErrorsMeasured {
        subject: holder.subject.clone(),
        samples: rows.iter().map(|r| r.sample).collect(),
        shards: measured,
    }])
}

/// Refuses a row that steers more than its share: the weights of everybody's queries are computed
/// from all rows.
fn check_row(epoch: &Epoch, shards: usize, r: &ErrorReport) -> Result<(), Refused> {
    let hidden = epoch.terms.hidden as usize;
    let most = epoch.terms.validation;
    let finite = r.embedding.iter().all(|v| v.is_finite());
    if !finite || r.embedding.len() != hidden || r.sample >= most {
        return Err(Refused::invalid(format!(
            "a row must hold {hidden} finite values and a sample below {most}, not {} and {}",
            r.embedding.len(),
            r.sample
        )));
    }
    // The probability of the wrong answer; a value that is not a number is not in the range.
    let wrong = |(s, e): &&(ShardId, f32)| usize::from(s.0) >= shards || !(0.0..=1.0).contains(e);
    match r.errors.iter().find(wrong) {
        Some((shard, e)) => Err(Refused::invalid(format!(
            "error {e} of {shard}: expected 0 to 1, of a shard below {shards}"
        ))),
        None => Ok(()),
    }
}

impl State {
    /// An accepted deletion has not been executed: nothing is trained before it is.
    pub fn unexecuted(&self) -> bool {
        !self.index.planned.is_empty() || self.core.executing.is_some()
    }

    /// Nothing is served before an execution has ended. Where deletions gather, what is served
    /// stays what it was until they are executed together.
    pub fn holds_serving(&self) -> bool {
        let gathers = self.rules.erase_window_ms > 0;
        self.core.executing.is_some() || !(gathers || self.index.planned.is_empty())
    }

    /// Where a device's person stands after `Join`: the shard once the epoch has begun, and the
    /// commitment that counts.
    pub fn joined(
        &self,
        device: &Digest,
        epoch: EpochNo,
        commitment: Digest,
    ) -> Result<(Option<ShardId>, Digest), Refused> {
        let holder = self.index.holders.get(device);
        let person = holder.and_then(|h| self.people.get(&h.subject));
        if person.is_some_and(|p| p.moving.is_some()) {
            return Err(Refused::executing());
        }
        let profile = person.and_then(|p| p.profile.as_ref());
        let place = profile.and_then(|p| p.places.get(&epoch));
        // Who came after the epoch had begun is in no shard of it.
        let shard = place.filter(|p| !p.excluded).and_then(|p| p.shard);
        Ok((shard, place.map_or(commitment, |p| p.commitment)))
    }

    /// Whose devices did not erase in time and who are trained on so far: they are left out until
    /// the next epoch. Whenever a device comes back it is still told to erase.
    pub(crate) fn late_people(&self, now: Now) -> Vec<SubjectId> {
        let bound = self.rules.erase_wait_s * 1000;
        let started = self.volatile.started_at;
        let waits = self
            .index
            .waiting
            .iter()
            .filter_map(|id| self.deletions.get(id));
        let waits = waits.filter(|d| d.phase == DeletionPhase::WaitingForDevice);
        let waits: Vec<_> = waits.collect();
        let is_late = |s: &SubjectId, profile: &Profile| {
            let mut concerned = waits.iter().filter(|d| d.request.concerns(s)).peekable();
            if concerned.peek().is_none() {
                // Who joined with something to erase that others have erased long ago is waited
                // for as long, from then on.
                return now.unix_ms > profile.since.max(started) + bound;
            }
            concerned.any(|d| now.unix_ms > d.accepted_at.max(started) + bound)
        };
        let erasing = self.index.erasing.iter();
        let late = erasing.filter(|s| {
            let profile = self.profile(s).filter(|p| !p.excluded());
            profile.is_some_and(|p| is_late(s, p))
        });
        late.cloned().collect()
    }
}
