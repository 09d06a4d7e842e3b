//! Events about a person.

use std::collections::BTreeMap;

use lethe_proto::ids::{Digest, SubjectId};

use crate::event::{Event, MeasuredShard};
use crate::ids::EpochNo;
use crate::state::{Device, Errors, Measured, Person, Profile, State};

pub(super) fn apply_person(state: &mut State, subject: &SubjectId, event: &Event) {
    match event {
        Event::PersonKnown { number, .. } => {
            let person = Person {
                number: *number,
                ..Person::default()
            };
            state.put_person(subject, person);
        }
        Event::PersonKept { person, .. } => state.put_person(subject, (**person).clone()),
        other => state.edit_person(subject, |p| edit_person(p, other)),
    }
}

fn edit_person(p: &mut Person, event: &Event) {
    match event {
        Event::Invited { secret, .. } => p.invitations.extend([*secret]),
        Event::DeviceEnrolled {
            secret,
            certificate,
            ..
        } => {
            p.invitations.remove(secret);
            let mut device = Device::default();
            device.certificates.insert(*certificate, None);
            p.devices.insert(*certificate, device);
        }
        Event::DeviceRenewed {
            device,
            certificate,
            replaces,
            ..
        } => {
            if let Some(d) = p.devices.get_mut(device) {
                d.certificates.retain(|_, old| *old != Some(*replaces));
                d.certificates.insert(*certificate, Some(*replaces));
            }
        }
        Event::DeviceReplaced {
            device,
            certificate,
            ..
        } => {
            if let Some(d) = p.devices.get_mut(device) {
                let old = d.certificates.get_mut(certificate).and_then(Option::take);
                d.certificates.retain(|c, _| Some(*c) != old);
            }
        }
        Event::Withdrawn { .. } => {
            p.devices.clear();
            p.invitations.clear();
        }
        Event::MoveAsked { moving, .. } => p.moving = Some(moving.clone()),
        Event::ConsentAskedAgain { device, .. } => {
            if let Some(d) = p.devices.get_mut(device) {
                d.withheld = None;
            }
        }
        Event::ErasureWithheld { device, task, .. } => {
            if let Some(d) = p.devices.get_mut(device) {
                d.withheld = Some(*task);
            }
        }
        Event::DeviceErased { device, task, .. } => device_erased(p, *device, *task),
        Event::ReleaseFetched {
            device, release, ..
        } => {
            if let Some(d) = p.devices.get_mut(device) {
                d.release = *release;
            }
        }
        Event::ErrorsMeasured {
            samples, shards, ..
        } => measure(p, samples, shards),
        other => edit_profile(p, other),
    }
}

fn edit_profile(p: &mut Person, event: &Event) {
    match event {
        Event::Joined {
            epoch,
            place,
            salt,
            since,
            restricted,
            erase,
            ..
        } => {
            p.moving = None;
            let profile = p.profile.get_or_insert_with(|| Profile {
                places: BTreeMap::new(),
                restricted: false,
                erase: None,
                salt: *salt,
                since: *since,
            });
            if profile.erase.is_some() && erase.is_none() {
                // What the other epochs committed to is not what the devices hold any more.
                profile.places.values_mut().for_each(|p| p.excluded = true);
            }
            profile.places.insert(*epoch, place.clone());
            profile.restricted = *restricted;
            profile.erase = erase.clone();
        }
        Event::Excluded { .. } => {
            for place in p.profile.iter_mut().flat_map(|p| p.places.values_mut()) {
                place.excluded = true;
            }
        }
        Event::Readmitted { epochs, .. } => readmit(p, epochs),
        Event::SetAside { .. } => {
            p.errors = None;
            if let Some(profile) = p.profile.as_mut() {
                profile.restricted = true;
                profile.places.values_mut().for_each(|p| p.excluded = true);
            }
        }
        _ => {}
    }
}

fn readmit(p: &mut Person, epochs: &[EpochNo]) {
    let Some(profile) = p.profile.as_mut() else {
        return;
    };
    profile.restricted = false;
    if profile.erase.is_some() {
        // Who has to erase something first joins again with what remains.
        return;
    }
    for (no, place) in &mut profile.places {
        place.excluded &= !epochs.contains(no);
    }
}

fn device_erased(p: &mut Person, device: Digest, task: u64) {
    if let Some(d) = p.devices.get_mut(&device) {
        d.confirmed = Some(task);
        d.withheld = None;
    }
    let all = p.all_confirmed(task);
    let pending = p.profile.as_mut().and_then(|p| p.erase.as_mut());
    if let Some(pending) = pending.filter(|e| all && e.task == task) {
        pending.confirmed = true;
    }
}

fn measure(p: &mut Person, samples: &[u32], shards: &[MeasuredShard]) {
    let errors = p.errors.get_or_insert_with(Errors::default);
    // Samples of another epoch say nothing of this one: it may have fewer.
    let known = errors.shards.keys().next().map(|key| key.epoch);
    let now = shards.first().map(|m| m.shard.epoch);
    if known.is_some() && now.is_some() && known != now {
        errors.samples.clear();
        errors.shards.clear();
    }
    errors.samples.extend(samples);
    for m in shards {
        let known = errors.shards.remove(&m.shard).map(|k| k.samples);
        let mut all = known.unwrap_or_default();
        all.extend(m.samples.iter().map(|s| (*s, m.adapter)));
        let measured = Measured {
            samples: all,
            value: m.value.clone(),
        };
        errors.shards.insert(m.shard, measured);
    }
}
