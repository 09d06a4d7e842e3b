//! What is made from the log: orders for devices, receipts, and what an auditor gets.

use std::collections::BTreeMap;

use lethe_ledger::{
    CatalogueVersion, Contributor, Deletion, Member, ReceiptParts, RecordBefore, ShardKey, State,
    TrainingRecord,
};
use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::message::{EraseOrder, Orders};
use lethe_receipt::audit::{self, Bundle, MAX_BUNDLE, Round, VERSION};
use lethe_receipt::hex::hex;
use lethe_receipt::receipt::{
    Fate, Logged, Opening, RecordProof, SignedByTally, VerifyError, issue, logged, verify,
};
use lethe_receipt::records::record_key;
use lethe_receipt::statement::canonical;

use super::{Evidence, refused};
use crate::CoordinatorError;

impl Evidence {
    /// The orders behind a task, for a device that has seen a head of `seen` entries: all of them
    /// with proofs about one head.
    pub(crate) fn orders(
        &self,
        state: &State,
        certificate: &Digest,
        task: u64,
        seen: u64,
    ) -> Result<Orders, CoordinatorError> {
        let wanted = state.orders_for(certificate, task).map_err(refused)?;
        self.proven(wanted, seen)
    }

    /// The same of deletions with larger numbers: an older copy of a device's folder lacks them.
    pub(crate) fn orders_since(
        &self,
        state: &State,
        certificate: &Digest,
        deletion: u64,
        seen: u64,
    ) -> Result<Orders, CoordinatorError> {
        let wanted = state.orders_since(certificate, deletion);
        self.proven(wanted.map_err(refused)?, seen)
    }

    fn proven(
        &self,
        wanted: Vec<(u64, &Deletion, u64)>,
        seen: u64,
    ) -> Result<Orders, CoordinatorError> {
        let mut orders = vec![];
        for (id, deletion, index) in wanted {
            let proof = self.log.tree().inclusion(index);
            let request = &deletion.request;
            orders.push(EraseOrder {
                deletion: id,
                kind: request.kind().into(),
                subject: request.subject().map_or("", SubjectId::as_str).into(),
                items: request.items().to_vec(),
                from: request.from(),
                salt: deletion.salt,
                index,
                proof: proof.ok_or(VerifyError::NotIncluded { index })?,
            });
        }
        // Who has seen more than there is finds out that the log was put back.
        let consistency = self.log.tree().consistency(seen).unwrap_or_default();
        Ok(Orders {
            orders,
            checkpoint: self.checkpoint(),
            consistency,
        })
    }

    /// The receipt of a deletion whose statement is in the log. One that does not verify is an
    /// error: once a receipt is stored, what it was made of is gone. `tally` is what a tally of its
    /// own has signed of it.
    pub(crate) fn receipt(
        &self,
        parts: ReceiptParts,
        tally: SignedByTally,
    ) -> Result<Vec<u8>, CoordinatorError> {
        let deletion = parts.deletion;
        let subject = deletion.request.subject();
        let opening = Opening {
            subject: subject.map_or(String::new(), |s| s.as_str().to_owned()),
            items: deletion.request.items().to_vec(),
            from: deletion.request.from(),
            salt: deletion.salt,
        };
        let records = match parts.proof {
            Some((before, after, fate)) => Some(self.record_proof(before, after, fate)?),
            None => None,
        };
        let bytes = issue(
            parts.statement,
            opening,
            parts.index,
            records,
            tally,
            self.log.tree(),
            &self.signer,
        )?;
        verify(&bytes, self.signer.verifier())?;
        Ok(bytes)
    }

    /// What the log says of a person's record, before and now.
    fn record_proof(
        &self,
        before: RecordBefore,
        after: TrainingRecord,
        fate: Fate,
    ) -> Result<RecordProof, CoordinatorError> {
        Ok(RecordProof {
            salt: hex(&before.salt),
            before: self.logged(before.training)?,
            member: before.member,
            after: self.logged(after)?,
            fate,
        })
    }

    fn logged(&self, record: TrainingRecord) -> Result<Logged, CoordinatorError> {
        let TrainingRecord {
            training,
            salt,
            index,
        } = record;
        Ok(logged(training, &salt, index, self.log.tree())?)
    }

    /// A shard's training as it stands, for an auditor.
    pub(crate) fn bundle(
        &self,
        state: &State,
        shard: ShardKey,
    ) -> Result<String, CoordinatorError> {
        let Some((epoch, known)) = state.epoch(shard.epoch).zip(state.shard(shard)) else {
            return Err(CoordinatorError::invalid(
                "there is no such shard: `lethe-admin status` lists them",
            ));
        };
        if !known.run.done(&epoch.terms) {
            return Err(CoordinatorError::invalid(
                "the shard is being trained: export it when `lethe-admin status` says it is done",
            ));
        }
        let training = known.logged.clone();
        let training = training.filter(|t| state.records_now(shard, t).is_some());
        let training = training.ok_or_else(|| {
            CoordinatorError::invalid("the log does not yet say what the shard is trained on")
        })?;
        let all: Vec<Member<'_>> = state.counting(shard).collect();
        let bundle = Bundle {
            version: VERSION,
            recipe: epoch.recipe.clone(),
            training: self.logged(training)?,
            members: all.iter().map(member).collect(),
            rounds: rounds(state, shard, &all)?,
            adapter: known.run.hash.hex(),
            engine: lethe_model::engine::kind_from_env(),
            checkpoint: self.checkpoint(),
            catalogue: catalogue_of(state, epoch.catalogue),
            signed: String::new(),
        };
        let bundle = bundle.signed_by(&self.signer)?;
        let text = String::from_utf8_lossy(&canonical(&bundle)).into_owned();
        if text.len() > MAX_BUNDLE - 1024 {
            let got = text.len();
            let most = MAX_BUNDLE - 1024;
            return Err(CoordinatorError::invalid(format!(
                "the shard's bundle has {got} bytes, at most {most} fit into a reply"
            )));
        }
        Ok(text)
    }
}

/// The version of the catalogue that an epoch has; none where no version was ever applied.
fn catalogue_of(state: &State, version: CatalogueVersion) -> Option<audit::CatalogueOf> {
    let (no, record) = state.catalogues().find(|(no, _)| *no == version)?;
    Some(audit::CatalogueOf {
        number: no.0,
        digest: record.digest.hex(),
    })
}

/// A person as an auditor sees them: by the key of their record.
fn member(m: &Member<'_>) -> audit::Member {
    audit::Member {
        key: hex(&record_key(&m.profile.salt, m.subject.as_str())),
        data: m.place.commitment.hex(),
        slice: m.place.slice,
    }
}

/// The recorded rounds, with people as positions in `all`.
fn rounds(
    state: &State,
    shard: ShardKey,
    all: &[Member<'_>],
) -> Result<Vec<Round>, CoordinatorError> {
    let position: BTreeMap<&SubjectId, u32> = all.iter().map(|m| m.subject).zip(0..).collect();
    let mut out = vec![];
    for ((stage, round), contributors) in state.recorded_rounds(shard) {
        let members = contributors.iter().map(|(s, _)| position.get(s).copied());
        let members: Option<Vec<u32>> = members.collect();
        let members = members.ok_or_else(|| {
            CoordinatorError::invalid("a round has somebody who is not in the shard any more")
        })?;
        out.push(Round {
            stage,
            round,
            members,
            begun: begun(round, &contributors),
        });
    }
    Ok(out)
}

/// The round that each update was begun in; empty where none was late.
fn begun(round: u16, contributors: &[Contributor]) -> Vec<u16> {
    let begun = contributors.iter().map(|(_, begun)| *begun);
    if begun.clone().all(|b| b == round) {
        return vec![];
    }
    begun.collect()
}
