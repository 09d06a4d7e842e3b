//! What is public: the epoch, releases, actions, and the rest.

use std::collections::{BTreeMap, BTreeSet};

use lethe_ledger::{
    Action, ActionRecord, CatalogueVersion, Core, Epoch, EpochNo, LogHead, Numbers, Operator,
    PartId, Partition, Person, Release, ServedShard, Shard, SliceId,
};
use lethe_proto::ids::{Digest, SubjectId};

use super::old;
use super::people::counters;
use super::{Part, Source, digests, numbered};
use crate::CoordinatorError;
use crate::terms::terms;

pub(super) fn part(
    source: &Source,
    shards: Vec<Shard>,
    people: &BTreeMap<SubjectId, Person>,
) -> Result<Part, CoordinatorError> {
    let mut part = Part::default();
    releases(source, &shards, &mut part)?;
    let mut actions = 0;
    for (index, record) in numbered::<old::ActionRecord>(&source.store)? {
        actions += 1;
        let action = Action {
            at: record.action.at,
            by: record.action.by,
            what: record.action.what,
        };
        let record = ActionRecord {
            salt: record.salt,
            action,
            index: Some(index),
        };
        part.slice(SliceId::Action(actions), &record)?;
    }
    let core = core(source, &shards, people, actions)?;
    part.slice(SliceId::Core, &core)?;
    let epoch = epoch(source, shards)?;
    part.slice(SliceId::Epoch(EpochNo::FIRST), &epoch)?;
    Ok(part)
}

fn epoch(source: &Source, shards: Vec<Shard>) -> Result<Epoch, CoordinatorError> {
    let begun = source.store.get::<old::Epoch>("")?;
    Ok(Epoch {
        terms: terms(&source.recipe, source.base.anchors, source.base.hidden),
        recipe: source.foundation.recipe.clone(),
        // The digest of its text: this build may write the same recipe in another way.
        recipe_digest: Digest::of(&[b"lethe-recipe", source.foundation.recipe.as_bytes()]),
        model: source.foundation.model,
        initial: source.base.initial,
        catalogue: CatalogueVersion(1),
        partition: begun.map(|e| Partition {
            sub_shards: e.sub_shards,
            tenure: e.tenure,
        }),
        shards,
    })
}

fn releases(source: &Source, shards: &[Shard], part: &mut Part) -> Result<(), CoordinatorError> {
    let all = numbered::<old::ReleaseRecord>(&source.store)?;
    let newest = all.last().map(|(no, _)| *no);
    for (no, record) in all {
        let mut recalled = record.recalled;
        let mut served = vec![];
        for (k, (digest, census)) in record.shards.into_iter().enumerate() {
            let stages = shards.get(k).into_iter().flat_map(|s| &s.run.stages);
            let mut kept = stages.filter_map(|(stage, s)| Some((*stage, s.checkpoint.as_ref()?)));
            let found = kept.find(|(_, c)| c.hash == digest);
            let initial = digest == source.base.initial;
            if found.is_none() && !initial && newest == Some(no) {
                // A rollback was interrupted before its release: what this one served is gone.
                recalled = true;
            }
            served.push(ServedShard {
                digest,
                value: found.map(|(_, c)| c.value.clone()),
                stage: found.map_or(0, |(stage, _)| stage),
                census,
            });
        }
        if recalled {
            served.iter_mut().for_each(|s| s.value = None);
        }
        let release = Release {
            at: record.at,
            epoch: EpochNo::FIRST,
            part: PartId::Adapters,
            shards: served,
            validation: record.validation,
            recalled,
        };
        part.slice(SliceId::Release(no), &release)?;
    }
    Ok(())
}

fn core(
    source: &Source,
    shards: &[Shard],
    people: &BTreeMap<SubjectId, Person>,
    actions: u64,
) -> Result<Core, CoordinatorError> {
    let store = &source.store;
    let counted = counters(source)?;
    let generations = shards.iter().map(|s| s.run.generation);
    let numbers = Numbers {
        epoch: EpochNo::FIRST.0,
        release: counted.release,
        generation: generations.max().unwrap_or(0).max(counted.generation),
        deletion: counted.deletion,
        task: counted.task,
        person: people
            .values()
            .map(|p| p.number.0)
            .fold(counted.subject, u32::max),
        proposal: counted.proposal,
        action: actions,
    };
    let log = store.get::<old::LogHead>("")?;
    let log = log.map_or_else(LogHead::default, |l| LogHead {
        entries: l.entries,
        root: l.root,
    });
    let rates = store.get::<old::RatesRecord>("")?;
    let invitations: BTreeSet<Digest> = digests::<old::AdminInvite>(store)?
        .into_iter()
        .map(|(secret, _)| secret)
        .collect();
    Ok(Core {
        numbers,
        approvals: store.get::<old::Policy>("")?.map_or(0, |p| p.approvals),
        operators: operators(source)?,
        operator_invitations: invitations,
        rates: rates.map_or_else(Default::default, |r| r.0),
        log,
        serving: (counted.release > 0).then_some(EpochNo::FIRST),
        ..Core::default()
    })
}

fn operators(source: &Source) -> Result<BTreeMap<Digest, Operator>, CoordinatorError> {
    let store = &source.store;
    let known: BTreeMap<Digest, old::OperatorRecord> =
        digests::<old::OperatorRecord>(store)?.into_iter().collect();
    let renewals = digests::<old::Renewal>(store)?.into_iter();
    let renewals: BTreeMap<Digest, Digest> = renewals.map(|(new, r)| (new, r.replaces)).collect();
    let operator = |certificate: Digest| {
        let record = known.get(&certificate);
        Operator {
            root: record.map_or(certificate, |r| r.root),
            since: record.map(|r| r.since),
            expires: record.map(|r| r.expires),
            replaces: renewals.get(&certificate).copied(),
        }
    };
    let all = digests::<old::AdminCert>(store)?.into_iter();
    Ok(all.map(|(c, _)| (c, operator(c))).collect())
}
