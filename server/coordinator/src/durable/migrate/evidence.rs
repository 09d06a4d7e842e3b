//! Deletions with their receipts, and proposals. Their keys keep their names.

use lethe_ledger::{
    Deletion, EpochNo, Owner, ProposalRecord, RecordBefore, RemovedRecord, RolledShard, SliceId,
};
use lethe_proto::ids::ShardId;

use super::super::values::{NewValue, receipt_ref};
use super::old;
use super::shards::training;
use super::{Part, Source, numbered};
use crate::CoordinatorError;

/// Deletions in a batch.
const AT_ONCE: usize = 256;

pub(super) fn parts(source: &Source) -> Result<Vec<Part>, CoordinatorError> {
    let mut parts = vec![];
    let mut part = Part::default();
    for (id, record) in numbered::<old::DeletionRecord>(&source.store)? {
        let deletion = deletion(source, id, record, &mut part)?;
        part.slice(SliceId::Deletion(id), &deletion)?;
        if part.slices.len() >= AT_ONCE {
            parts.push(std::mem::take(&mut part));
        }
    }
    for (id, record) in numbered::<old::ProposalRecord>(&source.store)? {
        let proposal = ProposalRecord {
            what: record.what,
            at: record.at,
            approved: record.approved,
        };
        part.slice(SliceId::Proposal(id), &proposal)?;
    }
    parts.push(part);
    Ok(parts)
}

fn deletion(
    source: &Source,
    id: u64,
    record: old::DeletionRecord,
    part: &mut Part,
) -> Result<Deletion, CoordinatorError> {
    let store = &source.store;
    let key = id.to_string();
    let removed = store.get::<old::RemovedRecord>(&key)?;
    let order = store.get::<old::OrderRecord>(&key)?;
    let mut receipt = None;
    if let Some(old::ReceiptRecord(content)) = store.get::<old::ReceiptRecord>(&key)? {
        let value = receipt_ref(id, &content);
        let owner = Owner::Deletion(id);
        part.values
            .push(NewValue::new(value.clone(), owner, content));
        receipt = Some(value);
    }
    let rolled = record.rolled_back.into_iter().map(|(shard, stage, hash)| {
        let shard = source.shard(shard);
        RolledShard { shard, stage, hash }
    });
    Ok(Deletion {
        request: record.request,
        batch: record.batch,
        plans: vec![(EpochNo::FIRST, record.plan)],
        phase: record.phase,
        requested_at: record.requested_at,
        accepted_at: record.accepted_at,
        exact_after_ms: record.exact_after_ms,
        retrained_after_ms: record.retrained_after_ms,
        before: record.before,
        rolled_back: rolled.collect(),
        keys_destroyed: record.keys_destroyed,
        salt: record.salt,
        task: record.task,
        proof: record.proof.map(|p| RecordBefore {
            shard: source.shard(ShardId(p.training.training.shard)),
            salt: p.salt,
            training: training(p.training),
            member: p.member,
        }),
        bytes_before: record.bytes_before,
        statement: record.statement,
        // If the log holds it, entering it again finds it.
        statement_index: None,
        order_index: order.map(|o| o.index),
        removed: removed.map_or_else(RemovedRecord::default, |r| RemovedRecord {
            events: r.events,
            answered: r.answered,
        }),
        receipt,
        reference: record.reference,
    })
}
