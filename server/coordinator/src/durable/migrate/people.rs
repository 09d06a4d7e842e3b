//! People: profile, devices, invitations, what they measured.

use std::collections::{BTreeMap, BTreeSet};

use lethe_ledger::{
    Device, EpochNo, Errors, Measured, Owner, PendingErase, Person, PersonNo, Place, Profile,
    ShardKey, SliceId,
};
use lethe_proto::admin::DeletionPhase;
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::{Digest, ShardId, SubjectId};

use super::super::values::{NewValue, error_rows_ref};
use super::old;
use super::{Part, Source, bytes, digests, subjects};
use crate::CoordinatorError;
use crate::content::{ErrorRow, ErrorRows};

/// People in a batch.
const AT_ONCE: usize = 256;

/// Everybody, but for what they measured.
pub(super) fn people(source: &Source) -> Result<BTreeMap<SubjectId, Person>, CoordinatorError> {
    let store = &source.store;
    let mut records = subjects::<old::SubjectRecord>(store)?;
    let mut certificates = certificates(source)?;
    for kept in stay(source)? {
        if records.contains_key(&kept.subject) {
            // Their key was not destroyed yet: they are kept again when the deletion is executed.
            continue;
        }
        certificates.insert(
            kept.subject.clone(),
            kept.certificates.into_iter().collect(),
        );
        records.insert(kept.subject, kept.record);
    }
    let mut invitations: BTreeMap<SubjectId, BTreeSet<Digest>> = BTreeMap::new();
    for (secret, old::Invite(subject)) in digests::<old::Invite>(store)? {
        invitations.entry(subject).or_default().insert(secret);
    }
    let releases = subjects::<old::DeviceRecord>(store)?;
    let renewals: BTreeMap<Digest, Digest> = digests::<old::Renewal>(store)?
        .into_iter()
        .map(|(new, renewal)| (new, renewal.replaces))
        .collect();
    let mut names: BTreeSet<SubjectId> = records.keys().cloned().collect();
    names.extend(certificates.keys().cloned());
    names.extend(invitations.keys().cloned());
    let mut number = counters(source)?.subject;
    let mut people = BTreeMap::new();
    for name in names {
        let record = records.remove(&name);
        // Who was invited and has not joined had no number: they get the next ones.
        number += u32::from(record.is_none());
        let own = certificates.remove(&name).unwrap_or_default();
        let mut devices = devices(&own, &renewals);
        for device in devices.values_mut() {
            // Whose device it was that fetched it was not written down: any may hold it.
            device.release = releases.get(&name).map_or(0, |d| d.release);
            let erase = record.as_ref().and_then(|r| r.erase.as_ref());
            device.confirmed = erase.filter(|e| e.confirmed).map(|e| e.task);
        }
        let person = Person {
            number: PersonNo(record.as_ref().map_or(number, |r| r.number)),
            profile: record.map(profile),
            devices,
            invitations: invitations.remove(&name).unwrap_or_default(),
            errors: None,
            moving: None,
        };
        people.insert(name, person);
    }
    Ok(people)
}

pub(super) fn counters(source: &Source) -> Result<old::Counters, CoordinatorError> {
    Ok(source.store.get::<old::Counters>("")?.unwrap_or_default())
}

fn certificates(
    source: &Source,
) -> Result<BTreeMap<SubjectId, BTreeSet<Digest>>, CoordinatorError> {
    let mut out: BTreeMap<SubjectId, BTreeSet<Digest>> = BTreeMap::new();
    for (certificate, old::SubjectCert(subject)) in digests::<old::SubjectCert>(&source.store)? {
        out.entry(subject).or_default().insert(certificate);
    }
    Ok(out)
}

/// Those who stay when a deletion is executed that was interrupted: what is to be written anew
/// under their fresh keys. Who is erased by another one of these deletions does not stay.
fn stay(source: &Source) -> Result<Vec<old::Kept>, CoordinatorError> {
    let planned: BTreeMap<u64, DeletionRequest> =
        super::numbered::<old::DeletionRecord>(&source.store)?
            .into_iter()
            .filter(|(_, d)| d.phase == DeletionPhase::Planned)
            .map(|(id, d)| (id, d.request))
            .collect();
    let erased: BTreeSet<&SubjectId> = planned
        .values()
        .filter(|r| r.erases_subject())
        .filter_map(|r| r.subject())
        .collect();
    let mut out: Vec<old::Kept> = vec![];
    for (id, kept) in super::numbered::<old::KeptRecord>(&source.store)? {
        for k in kept.0 {
            let known = out.iter().any(|o| o.subject == k.subject);
            if planned.contains_key(&id) && !erased.contains(&k.subject) && !known {
                // What the devices have to erase is merged in again with the execution.
                out.push(k);
            }
        }
    }
    Ok(out)
}

/// A certificate that is to replace another one, when it is first used, is the same device's.
fn devices(
    certificates: &BTreeSet<Digest>,
    renewals: &BTreeMap<Digest, Digest>,
) -> BTreeMap<Digest, Device> {
    let replaced = |c: &Digest| renewals.get(c).filter(|old| certificates.contains(*old));
    let mut out: BTreeMap<Digest, Device> = BTreeMap::new();
    for certificate in certificates {
        let mut first = certificate;
        // Fewer steps than certificates: a circle, which cannot be, would end too.
        for _ in certificates {
            first = replaced(first).unwrap_or(first);
        }
        let device = out.entry(*first).or_default();
        device
            .certificates
            .insert(*certificate, replaced(certificate).copied());
    }
    out
}

fn profile(record: old::SubjectRecord) -> Profile {
    let place = Place {
        anchor: record.anchor,
        samples: record.samples,
        commitment: record.commitment,
        shard: record.shard,
        slice: record.slice,
        excluded: record.idle,
    };
    Profile {
        places: BTreeMap::from([(EpochNo::FIRST, place)]),
        restricted: record.restricted,
        erase: record.erase.map(|e| PendingErase {
            task: e.task,
            items: e.items,
            from: e.from,
            confirmed: e.confirmed,
        }),
        salt: record.salt,
        since: record.since,
    }
}

/// Everybody with what they measured, some at a time.
pub(super) fn parts(
    source: &Source,
    people: &BTreeMap<SubjectId, Person>,
) -> Result<Vec<Part>, CoordinatorError> {
    let mut errors = subjects::<old::ErrorRecord>(&source.store)?;
    let mut parts = vec![];
    let mut part = Part::default();
    for (subject, person) in people {
        let mut person = person.clone();
        if let Some(record) = errors.remove(subject) {
            person.errors = Some(measured(source, subject, &record, &mut part)?);
        }
        part.slice(SliceId::Person(subject.clone()), &person)?;
        if part.slices.len() >= AT_ONCE {
            parts.push(std::mem::take(&mut part));
        }
    }
    parts.push(part);
    Ok(parts)
}

fn measured(
    source: &Source,
    subject: &SubjectId,
    record: &old::ErrorRecord,
    part: &mut Part,
) -> Result<Errors, CoordinatorError> {
    let mut errors = Errors {
        samples: record.rows.iter().map(|r| r.sample).collect(),
        shards: BTreeMap::new(),
    };
    for k in 0..source.recipe.shards {
        let key: ShardKey = source.shard(ShardId(k as u16));
        let mut rows = vec![];
        let mut samples = BTreeMap::new();
        for row in &record.rows {
            let Some((adapter, error)) = row.errors.get(k).copied().flatten() else {
                continue;
            };
            samples.insert(row.sample, adapter);
            rows.push(ErrorRow {
                sample: row.sample,
                embedding: row.embedding.clone(),
                error,
            });
        }
        if rows.is_empty() {
            continue;
        }
        let content = bytes(&ErrorRows(rows))?;
        let value = error_rows_ref(&key, subject, 0, &content);
        let owner = Owner::Person(subject.clone());
        part.values
            .push(NewValue::new(value.clone(), owner, content));
        errors.shards.insert(key, Measured { samples, value });
    }
    Ok(errors)
}
