//! What shows that a deletion happened: its phases, its receipt, its entry in the log.

use lethe_proto::admin::{DeletionPhase, DeletionState, DeletionSummary};
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_receipt::receipt::{Fate, Opening, RecordProof, issue, logged};
use lethe_receipt::statement::{
    AffectedShard, Cost, Kind, Removed, Statement, VERSION, canonical, commitment,
};
use lethe_store::sealed::{Batch, KeyName};

use super::log::key_of;
use super::{Core, checkpoint_id, page};
use crate::CoordinatorError;
use crate::records::{
    Checkpoint, DeletionRecord, ReceiptRecord, RecordBefore, SubjectRecord, TrainingRecord,
};

/// Version and build, as it appears in receipts.
pub(crate) const BUILD: &str = concat!("lethe ", env!("CARGO_PKG_VERSION"));

/// What was trained on before, what is now, and what became of the record.
type Proven = (RecordBefore, TrainingRecord, Fate);

fn waiting(d: &DeletionRecord) -> bool {
    matches!(
        d.phase,
        DeletionPhase::Retraining | DeletionPhase::WaitingForDevice
    )
}

impl Core {
    /// Subjects whose devices a deletion waits for.
    fn erasing(&self, d: &DeletionRecord) -> usize {
        let bound = self.config.erase_wait_s * 1000;
        let in_time = self.unix_ms <= d.accepted_at.max(self.started_at) + bound;
        // Who is not trained on (they came late, or are restricted) is asked all the same, and
        // has as long to answer.
        let waits = |s: &SubjectId, r: &SubjectRecord| match &r.erase {
            None => false,
            Some(e) if r.idle => in_time && !e.confirmed && !self.unconsented.contains(s),
            Some(_) => true,
        };
        let concerned = |s: &SubjectId| d.task.is_some() && d.request.concerns(s);
        self.subjects
            .iter()
            .filter(|(s, r)| concerned(s) && waits(s, r))
            .count()
    }

    fn retrained(&self, shard: ShardId) -> bool {
        let run = &self.runs[usize::from(shard.0)];
        run.done(&self.recipe)
            && self.counters.served.get(usize::from(shard.0)) == Some(&run.hash())
    }

    /// Issues the receipts of deletions whose shards are trained and released again.
    pub(super) fn finish_deletions(&mut self) -> Result<(), CoordinatorError> {
        let pending: Vec<u64> = self
            .deletions
            .iter()
            .filter(|(_, d)| waiting(d))
            .map(|(id, _)| *id)
            .collect();
        for id in pending {
            let Some(mut d) = self.deletions.get(&id).cloned() else {
                continue;
            };
            if self.erasing(&d) > 0 {
                continue;
            }
            d.phase = DeletionPhase::Retraining;
            if d.rolled_back.iter().all(|(s, _, _)| self.retrained(*s)) {
                // Stored first, so that a crash makes the same statement again, word for word.
                self.log_trainings()?;
                let provable = self.record_proof(&d)?.is_some();
                if d.statement.as_ref().is_none_or(|s| s.recorded != provable) {
                    d.retrained_after_ms = Some(self.unix_ms.saturating_sub(d.accepted_at));
                    d.statement = Some(self.statement(id, &d)?);
                    self.save_deletions(vec![(id, d.clone())])?;
                }
                let receipt = self.receipt(&d)?;
                d.phase = DeletionPhase::Done;
                // What only the receipt needed goes with it; the receipt itself is sealed under
                // this deletion's key.
                (d.proof, d.statement) = (None, None);
                let owner = KeyName::evidence(id);
                let batch = Batch::new().put(&owner, &id.to_string(), &ReceiptRecord(receipt))?;
                self.store.write(batch.put(&owner, &id.to_string(), &d)?)?;
                self.deletions.insert(id, d);
                tracing::info!(deletion = id, "receipt issued");
            } else {
                self.deletions.insert(id, d);
            }
        }
        Ok(())
    }

    /// A device that does not erase in time: the person is left out of training until the next
    /// epoch. Whenever the device comes back it is still told to erase, and nothing that it
    /// measures is taken before it has.
    pub(super) fn give_up_waiting(&mut self) -> Result<(), CoordinatorError> {
        let bound = self.config.erase_wait_s * 1000;
        let late = |d: &&DeletionRecord| {
            d.phase == DeletionPhase::WaitingForDevice
                && self.unix_ms > d.accepted_at.max(self.started_at) + bound
        };
        let requests: Vec<_> = self
            .deletions
            .values()
            .filter(late)
            .map(|d| d.request.clone())
            .collect();
        let waits = |d: &DeletionRecord| d.phase == DeletionPhase::WaitingForDevice;
        let waiting: Vec<_> = self
            .deletions
            .values()
            .filter(|d| waits(d))
            .map(|d| d.request.clone())
            .collect();
        // Who joined with something to erase that others have erased long ago is waited for as
        // long, from then on.
        let due = |s: &SubjectId, r: &SubjectRecord| match waiting.iter().any(|w| w.concerns(s)) {
            true => requests.iter().any(|w| w.concerns(s)),
            false => self.unix_ms > r.since.max(self.started_at) + bound,
        };
        let subjects: Vec<SubjectId> = self
            .subjects
            .iter()
            .filter(|(s, r)| r.erase.is_some() && !r.idle && due(s, r))
            .map(|(s, _)| s.clone())
            .collect();
        for s in subjects {
            if let Some(mut r) = self.subjects.get(&s).cloned() {
                r.idle = true;
                self.save_subject(&s, r)?;
            }
        }
        Ok(())
    }

    fn statement(&self, id: u64, d: &DeletionRecord) -> Result<Statement, CoordinatorError> {
        let request = &d.request;
        let subject = request.subject().map_or("", SubjectId::as_str);
        let hash = |k: usize| {
            self.counters
                .served
                .get(k)
                .map_or(String::new(), Digest::hex)
        };
        let last = self.recipe.slices as u16;
        let affected = d.rolled_back.iter().map(|(s, stage, rolled)| {
            let k = usize::from(s.0);
            let lineage = self
                .store
                .get::<Checkpoint>(&checkpoint_id(*s, last))?
                .map_or(String::new(), |c| c.lineage.hex());
            Ok(AffectedShard {
                shard: s.0,
                from_stage: *stage,
                before: d.before.get(k).map_or(String::new(), Digest::hex),
                rolled_back_to: rolled.hex(),
                after: hash(k),
                lineage,
                rounds: u32::from(last + 1 - stage) * self.recipe.rounds as u32,
            })
        });
        let affected: Vec<AffectedShard> = affected.collect::<Result<_, CoordinatorError>>()?;
        let same = |k: &usize| {
            d.before.get(*k).map(Digest::hex) == Some(hash(*k))
                && d.rolled_back.iter().all(|(s, _, _)| usize::from(s.0) != *k)
        };
        let untouched = d
            .plan
            .untouched
            .iter()
            .map(|s| usize::from(s.0))
            .filter(same)
            .map(|k| (k as u16, hash(k)))
            .collect();
        Ok(Statement {
            version: VERSION,
            kind: request.kind().into(),
            deletion: id,
            batch: d.batch,
            commitment: commitment(&d.salt, subject, request.items(), request.from()),
            accepted_at: d.accepted_at / 1000,
            exact_after_ms: d.exact_after_ms.unwrap_or(0),
            retrained_after_ms: d.retrained_after_ms.unwrap_or(0),
            keys_destroyed: d.keys_destroyed,
            affected,
            untouched,
            release: self.counters.release,
            recipe: self.recipe_digest.hex(),
            base_model: self.model.hex(),
            build: BUILD.into(),
            recorded: self.record_proof(d)?.is_some(),
            forecast: forecast(d),
            actual: self.actual(d)?,
            removed: self.removed_for(id, d).map(stated),
        })
    }

    fn receipt(&mut self, d: &DeletionRecord) -> Result<Vec<u8>, CoordinatorError> {
        let Some(statement) = d.statement.clone() else {
            return Ok(vec![]);
        };
        self.log_trainings()?;
        let records = self.record_proof(d)?;
        let index = self.enter(Kind::Deletion, &d.salt, &canonical(&statement))?;
        let records = records
            .map(|(before, after, fate)| {
                let logged = |t: TrainingRecord| logged(t.training, &t.salt, t.index, &self.tree);
                Ok::<_, CoordinatorError>(RecordProof {
                    salt: lethe_receipt::hex::hex(&before.salt),
                    before: logged(before.training)?,
                    member: before.member,
                    after: logged(after)?,
                    fate,
                })
            })
            .transpose()?;
        let opening = Opening {
            subject: d
                .request
                .subject()
                .map_or(String::new(), |s| s.as_str().to_owned()),
            items: d.request.items().to_vec(),
            from: d.request.from(),
            salt: d.salt,
        };
        Ok(issue(
            statement,
            opening,
            index,
            records,
            &self.tree,
            &self.signer,
        )?)
    }

    /// What the log says of the person's record before and now. `None` when no shard was trained on
    /// it, or when what the log says now is not what the shard holds (another deletion is in
    /// between: its rollback waits for a device).
    fn record_proof(&self, d: &DeletionRecord) -> Result<Option<Proven>, CoordinatorError> {
        let (Some(before), Some(subject)) = (d.proof.clone(), d.request.subject()) else {
            return Ok(None);
        };
        let shard = ShardId(before.training.training.shard);
        let Some(after) = self
            .logged_training(shard)?
            .filter(|t| t.index > before.training.index)
        else {
            return Ok(None);
        };
        let Some(records) = self.records_now(&after) else {
            return Ok(None);
        };
        let key = key_of(&before.salt, subject);
        let fate = match records.member(&key) {
            Some(leaf) if leaf.data == before.member.data => Fate::Unchanged(leaf),
            Some(leaf) => Fate::Replaced(leaf),
            None => match records.absent(&key) {
                Some(gap) => Fate::Absent(gap),
                None => return Ok(None),
            },
        };
        Ok(Some((before, after, fate)))
    }

    /// What retraining cost: rounds and updates as recorded, bytes of all training since the
    /// acceptance.
    fn actual(&self, d: &DeletionRecord) -> Result<Cost, CoordinatorError> {
        let mut cost = Cost {
            bytes: self.rates().bytes.saturating_sub(d.bytes_before),
            milliseconds: d
                .retrained_after_ms
                .unwrap_or(0)
                .saturating_sub(d.exact_after_ms.unwrap_or(0)),
            ..Cost::default()
        };
        for (shard, from, _) in &d.rolled_back {
            for ((stage, _), contributors) in self.recorded_rounds(*shard)? {
                if stage >= *from {
                    cost.rounds += 1;
                    cost.client_rounds += contributors.len() as u64;
                }
            }
        }
        Ok(cost)
    }

    /// A deletion as the admin tool shows it.
    pub(crate) fn deletion_state(&self, id: u64) -> Option<DeletionState> {
        let d = self.deletions.get(&id)?;
        let seconds = |ms: Option<u64>| ms.map(|ms| ms as f64 / 1000.0);
        Some(DeletionState {
            id,
            request: d.request.clone(),
            batch: d.batch,
            plan: d.plan.to_string(),
            waits_for: self.waits_for(d),
            phase: d.phase,
            seconds_until_exact: seconds(d.exact_after_ms),
            seconds_until_retrained: seconds(d.retrained_after_ms),
            removed: self.removed_for(id, d),
            before: d.before.clone(),
            now: self.served_hashes(),
            affected: d.rolled_back.iter().map(|(s, _, _)| *s).collect(),
        })
    }

    /// Says so in the server's log when a deletion is not done in time.
    pub(super) fn warn_overdue(&self) {
        let bound = self.config.deadline_days * 86_400_000;
        for (id, d) in &self.deletions {
            if d.phase != DeletionPhase::Done && self.unix_ms > d.requested_at + bound {
                tracing::error!(deletion = id, "overdue: it waits for {}", self.waits_for(d));
            }
        }
    }

    fn waits_for(&self, d: &DeletionRecord) -> String {
        if d.phase == DeletionPhase::Planned {
            return "the store: it fails; see the server's log".into();
        }
        if !waiting(d) {
            return String::new();
        }
        let erasing = self.erasing(d);
        if erasing > 0 {
            return format!(
                "{erasing} device(s) that have to erase (at most {} s)",
                self.config.erase_wait_s
            );
        }
        let open = |s: ShardId| {
            let run = &self.runs[usize::from(s.0)];
            let (done, all) = run.progress(&self.recipe);
            let waits = run.open.as_ref().map_or(0, |o| o.round.waiting());
            format!(
                "{s}: round {} of {all}, {waits} client(s) have not answered",
                done + 1
            )
        };
        let shards = d
            .rolled_back
            .iter()
            .map(|(s, _, _)| *s)
            .filter(|s| !self.retrained(*s));
        let parts: Vec<String> = shards.map(open).collect();
        if parts.is_empty() {
            "other shards, to be released together".into()
        } else {
            parts.join("; ")
        }
    }

    /// A page of the deletions after a number, oldest first.
    pub(crate) fn deletion_list(&self, after: u64) -> Vec<DeletionSummary> {
        let seconds = |ms: Option<u64>| ms.map(|ms| ms as f64 / 1000.0);
        let summary = |(id, d): (&u64, &DeletionRecord)| DeletionSummary {
            id: *id,
            request: d.request.clone(),
            reference: d.reference.clone(),
            phase: d.phase,
            accepted_at: d.accepted_at / 1000,
            due_at: d.requested_at / 1000 + self.config.deadline_days * 86_400,
            seconds_until_exact: seconds(d.exact_after_ms),
            seconds_until_retrained: seconds(d.retrained_after_ms),
        };
        page(self.deletions.range(after.saturating_add(1)..).map(summary))
    }
}

fn stated(r: lethe_proto::admin::Removed) -> Removed {
    Removed {
        events: r.events,
        answered: r.answered,
        silent: r.silent,
        unconsented: r.unconsented,
    }
}

fn forecast(d: &DeletionRecord) -> Cost {
    let c = &d.plan.forecast.cost;
    Cost {
        rounds: c.rounds,
        client_rounds: c.client_rounds,
        bytes: c.bytes,
        milliseconds: (c.seconds * 1000.0) as u64,
    }
}
