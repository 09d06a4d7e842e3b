//! Deletions: how they are planned and accepted, one or many at once. `execute` carries them out.

use std::collections::{BTreeMap, BTreeSet};

use lethe_plan::{Inventory, Member, Plan, Request, ShardInventory, plan};
use lethe_proto::admin::DeletionPhase;
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_proto::message::{Refusal, Role};
use lethe_store::sealed::{Batch, KeyName};

use super::Core;
use super::journal::Accepted;
use crate::CoordinatorError;
use crate::records::{
    DeletionRecord, Inherited, Invite, Kept, KeptRecord, PendingErase, SubjectRecord,
};

/// Most requests in one batch, and most items in one request.
const MAX_BATCH: usize = 1000;

/// The first of January 1990, in Unix seconds: nobody's history is older.
const EARLIEST: i64 = 631_152_000;

/// Refuses times that are a slip: another unit, a date read as a number, the future.
fn check_time(request: &Request, now: u64) -> Result<(), CoordinatorError> {
    let Some(from) = request.from() else {
        return Ok(());
    };
    let tomorrow = i64::try_from(now)
        .unwrap_or(i64::MAX)
        .saturating_add(86_400);
    let why = if from < EARLIEST {
        "lies before 1990: it would have been read as everything that the person ever did. To \
         forget everything, ask for that"
    } else if from > tomorrow {
        "lies beyond tomorrow: it would have been read as nothing so far. Are these milliseconds?"
    } else {
        return Ok(());
    };
    let message = format!("the time {from} (seconds since 1970) {why}");
    Err(CoordinatorError::refuse(Refusal::Invalid, message))
}

/// The record of a person who stays, with what is to be erased beside what waits already.
fn pending(mut r: SubjectRecord, task: u64, request: &Request) -> SubjectRecord {
    r.merge_erase(Some(PendingErase::of(task, request)));
    r
}

fn kept_key(id: &str) -> KeyName {
    KeyName::evidence_of(&format!("kept/{id}"))
}

fn put_kept(batch: Batch, id: u64, kept: &[Kept]) -> Result<Batch, CoordinatorError> {
    let id = id.to_string();
    Ok(if kept.is_empty() {
        batch
    } else {
        batch.put(&kept_key(&id), &id, &KeptRecord(kept.to_vec()))?
    })
}

impl Core {
    pub(super) fn inventory(&self) -> Result<Inventory, CoordinatorError> {
        let member = |(s, r): (&SubjectId, &SubjectRecord)| Member {
            subject: s.clone(),
            slice: r.slice,
            samples: r.samples,
            idle: r.idle,
        };
        let shard = |id: ShardId| ShardInventory {
            id,
            members: self
                .subjects
                .iter()
                .filter(|(_, r)| r.shard == Some(id))
                .map(member)
                .collect(),
            trained_stage: self.trained_stage(id),
            losses: self.stage_losses(id),
        };
        let mut unplaced: BTreeSet<SubjectId> = self
            .subjects
            .iter()
            .filter(|(_, r)| r.shard.is_none())
            .map(|(s, _)| s.clone())
            .collect();
        let enrolled = self.certificates.values().filter_map(|r| match r {
            Role::Subject(s) => Some(s.clone()),
            Role::Admin => None,
        });
        let invited = self.store.all::<Invite>()?.into_iter().map(|(_, i)| i.0);
        unplaced.extend(
            enrolled
                .chain(invited)
                .filter(|s| !self.subjects.contains_key(s)),
        );
        Ok(Inventory {
            shards: (0..self.recipe.shards)
                .map(|k| shard(ShardId(k as u16)))
                .collect(),
            unplaced: unplaced.into_iter().collect(),
            stages: self.recipe.slices as u16,
            rounds_per_stage: self.recipe.rounds as u32,
            cohort: self.recipe.cohort as u32,
            samples_per_round: self.recipe.local.samples as u32,
            rates: self.rates(),
        })
    }

    /// The stage that a shard's training has entered: a round that is open counts, its clients are
    /// at work.
    fn trained_stage(&self, shard: ShardId) -> u16 {
        let run = &self.runs[usize::from(shard.0)];
        let started = run.round > 0 || run.open.is_some();
        (run.stage - u16::from(!started)).min(self.recipe.slices as u16)
    }

    /// Mean training loss of the last round of every finished stage.
    fn stage_losses(&self, shard: ShardId) -> Vec<Option<f32>> {
        let losses = self.runs[usize::from(shard.0)].losses();
        let stages = losses.chunks_exact(self.recipe.rounds);
        stages
            .map(|stage| stage.last().copied().flatten())
            .collect()
    }

    /// Plans a batch; writes nothing.
    ///
    /// `confirmed`: the operator means items that are not in the catalogue.
    pub(crate) fn plan_deletion(
        &self,
        requests: &[Request],
        confirmed: bool,
    ) -> Result<Plan, CoordinatorError> {
        let invalid = |message: String| Err(CoordinatorError::refuse(Refusal::Invalid, message));
        let longest = requests
            .iter()
            .map(|r| r.items().len())
            .max()
            .unwrap_or(0)
            .max(requests.len());
        if longest > MAX_BATCH {
            return invalid(format!(
                "{longest} requests or items at once, at most {MAX_BATCH}: divide them"
            ));
        }
        for r in requests {
            let Some(s) = r.subject().filter(|_| r.asks_devices()) else {
                continue;
            };
            if !self.subjects.contains_key(s) {
                return invalid(format!(
                    "{s} has not joined (or was deleted): there is no data of theirs to choose from"
                ));
            }
        }
        for r in requests {
            self.check_items(r, confirmed)?;
            check_time(r, self.unix_ms / 1000)?;
        }
        let inventory = self.inventory()?;
        let plan = plan(&inventory, requests)?;
        plan.lint(&inventory)?;
        Ok(plan)
    }

    /// Refuses items that nobody knows: a receipt would say that they were deleted.
    fn check_items(&self, request: &Request, confirmed: bool) -> Result<(), CoordinatorError> {
        let unknown = request.items().iter().find(|i| !self.items.contains(*i));
        let Some(item) = unknown.filter(|_| !confirmed) else {
            return Ok(());
        };
        let parts: Vec<&str> = item
            .split([';', ',', '|', '/', ' ', '\t'])
            .map(str::trim)
            .filter(|p| !p.is_empty())
            .collect();
        let known = parts.iter().filter(|p| self.items.contains(**p)).count();
        let hint = if parts.len() > 1 && known > 0 {
            format!(
                " The items {} are: name each by itself (several `--item`; in a file, blanks \
                 between them).",
                parts.join(" and ")
            )
        } else {
            String::new()
        };
        let message = format!(
            "item {item:?} is not in the catalogue; it would have been read as one item of that \
             name.{hint} If it was in an earlier catalogue, confirm with `--yes`"
        );
        Err(CoordinatorError::refuse(Refusal::Invalid, message))
    }

    /// Accepts requests and makes the served model exact before it returns. A deletion of
    /// everything supersedes deletions that wait for the device; further items are added to those
    /// that wait. If the store fails after the acceptance, the deletions stay accepted: nothing is
    /// served or trained until a retry has executed them.
    pub(crate) fn forget(
        &mut self,
        requests: Vec<Request>,
        reference: &str,
        asked: u64,
    ) -> Result<(Plan, Vec<u64>), CoordinatorError> {
        // Whoever asked has confirmed what is unusual, or was refused.
        let whole = self.plan_deletion(&requests, true)?;
        let inventory = self.inventory()?;
        let mut counters = self.counters.clone();
        let (mut ids, mut records) = (vec![], vec![]);
        for request in requests {
            counters.deletion += 1;
            counters.task += u64::from(request.asks_devices());
            let own = plan(&inventory, std::slice::from_ref(&request))?;
            let (mut record, kept) =
                self.accept(request, own, whole.requests.len() as u32, counters.task)?;
            (record.requested_at, record.reference) = (asked, reference.to_owned());
            ids.push(counters.deletion);
            records.push((record, kept));
        }
        // What the journal holds must complete, whatever happens to this process or to the next
        // write.
        let mut failed = None;
        for (id, (record, kept)) in ids.iter().copied().zip(records) {
            let accepted = Accepted::of(id, &record);
            if let Err(e) = self.with_space(|core| core.journal.append(&accepted)) {
                failed = Some(e);
                break;
            }
            (self.counters.deletion, self.counters.task) = (id, counters.task);
            self.deletions.insert(id, record);
            self.unstored.insert(id, kept);
        }
        self.with_space(Self::store_accepted)?;
        // With those that a failing store has left: what they keep of a person must not outlive
        // that person's deletion.
        self.with_space(Self::execute_pending)?;
        if let Some(e) = failed {
            return Err(e);
        }
        Ok((whole, ids))
    }

    /// Writes accepted deletions, those who stay, and the numbers; before anything of them is
    /// executed.
    pub(super) fn store_accepted(&mut self) -> Result<(), CoordinatorError> {
        if self.unstored.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new().put(&KeyName::public(), "", &self.counters)?;
        for (id, kept) in &self.unstored {
            if let Some(record) = self.deletions.get(id) {
                batch = batch.put(&KeyName::evidence(*id), &id.to_string(), record)?;
                batch = put_kept(batch, *id, kept)?;
            }
        }
        self.store.write(batch)?;
        self.unstored.clear();
        Ok(())
    }

    /// Tries again with the space that was set aside, unless it was the request that failed.
    pub(super) fn with_space<T>(
        &mut self,
        mut step: impl FnMut(&mut Self) -> Result<T, CoordinatorError>,
    ) -> Result<T, CoordinatorError> {
        match step(self) {
            Err(e) if !e.is_request() && self.reserve.release() => {
                tracing::warn!(
                    "{e}; the space that was set aside for deletions is used now: make room"
                );
                step(self)
            }
            other => other,
        }
    }

    /// Sets space aside, now or when there is some again.
    pub(super) fn set_aside_space(&self) {
        if let Err(e) = self.reserve.take() {
            tracing::warn!("no space could be set aside for deletions: {e}");
        }
    }

    /// Deletions that were accepted after this data folder was copied are done again, before
    /// anything is served; those that the journal lacks are added to it.
    pub(super) fn catch_up(
        &mut self,
        mut accepted: BTreeMap<u64, Accepted>,
    ) -> Result<(), CoordinatorError> {
        // Numbers of deletions and tasks never come to mean something else, whatever was lost with
        // the last writes.
        let deletions = self.deletions.keys().chain(accepted.keys()).copied();
        self.counters.deletion = deletions.chain([self.counters.deletion]).max().unwrap_or(0);
        let known = self.deletions.values().filter_map(|d| d.task);
        let tasks = known.chain(accepted.values().filter_map(|a| a.task));
        self.counters.task = tasks.chain([self.counters.task]).max().unwrap_or(0);
        self.execute_pending()?;
        for (id, d) in &self.deletions {
            if accepted.remove(id).is_none() {
                self.journal.append(&Accepted::of(*id, d))?;
            }
        }
        if accepted.is_empty() {
            return self.drop_kept();
        }
        tracing::warn!(
            count = accepted.len(),
            "the data folder lacks accepted deletions (a restored backup?): done again"
        );
        for (id, a) in accepted {
            self.again(id, a)?;
        }
        self.save_counters()?;
        self.drop_kept()
    }

    /// What a crash left of those who stay.
    pub(super) fn drop_kept(&mut self) -> Result<(), CoordinatorError> {
        let planned = |id: &String| {
            let d = id.parse().ok().and_then(|id: u64| self.deletions.get(&id));
            d.is_some_and(|d| d.phase == DeletionPhase::Planned)
        };
        let left: Vec<KeyName> = self
            .store
            .keys::<KeptRecord>()
            .iter()
            .filter(|id| !planned(id))
            .map(|id| kept_key(id))
            .collect();
        if !left.is_empty() {
            self.store.destroy(&left)?;
        }
        Ok(())
    }

    fn again(&mut self, id: u64, a: Accepted) -> Result<(), CoordinatorError> {
        let inventory = self.inventory()?;
        let plan = match plan(&inventory, std::slice::from_ref(&a.request)) {
            Ok(plan) => plan,
            // The backup is older than the person: it is kept for the day on which they join again.
            Err(lethe_plan::PlanError::UnknownSubject(_)) => {
                Plan::nothing_held(&inventory, &a.request)
            }
            Err(e) => return Err(e.into()),
        };
        let (mut record, kept) = self.accept(
            a.request,
            plan,
            a.batch,
            a.task.unwrap_or(self.counters.task),
        )?;
        (record.salt, record.accepted_at, record.requested_at) = (a.salt, a.at, a.at);
        record.reference = a.reference;
        let batch = Batch::new().put(&KeyName::evidence(id), &id.to_string(), &record)?;
        let batch = put_kept(batch, id, &kept)?;
        self.store
            .write(batch.put(&KeyName::public(), "", &self.counters)?)?;
        self.deletions.insert(id, record);
        self.execute_pending()
    }

    fn accept(
        &self,
        request: Request,
        plan: Plan,
        batch: u32,
        task: u64,
    ) -> Result<(DeletionRecord, Vec<Kept>), CoordinatorError> {
        let stays = |s: &SubjectId| request.asks_devices() && request.concerns(s);
        let kept = |(s, r): (&SubjectId, &SubjectRecord)| Kept {
            subject: s.clone(),
            record: pending(r.clone(), task, &request),
            certificates: self.certificates_of(s),
        };
        let keep: Vec<Kept> = self
            .subjects
            .iter()
            .filter(|(s, _)| stays(s))
            .map(kept)
            .collect();
        let own: Vec<KeyName> = match request.subject() {
            Some(s) if !matches!(request, Request::Restrict { .. }) => {
                vec![KeyName::subject(s.as_str())]
            }
            Some(_) => vec![],
            None => keep
                .iter()
                .map(|k| KeyName::subject(k.subject.as_str()))
                .collect(),
        };
        let record = DeletionRecord {
            batch,
            phase: DeletionPhase::Planned,
            requested_at: self.unix_ms,
            accepted_at: self.unix_ms,
            exact_after_ms: None,
            retrained_after_ms: None,
            before: self.served_hashes(),
            rolled_back: vec![],
            keys_destroyed: self.store.existing(&self.keys_of(&plan.affected(), &own)) as u32,
            salt: lethe_seal::random()?,
            task: request.asks_devices().then_some(task),
            proof: request.subject().and_then(|s| self.record_before(s)),
            bytes_before: self.rates().bytes,
            statement: None,
            reference: String::new(),
            plan,
            request,
        };
        Ok((record, keep))
    }

    /// What requests so far ask of a person of whom nothing else is known: who only enrolled, or
    /// joins again after a backup that did not know them was restored. Takedowns concern everybody
    /// who joins later too.
    pub(super) fn inherited(&self, subject: &SubjectId) -> Inherited {
        let mut out = Inherited::default();
        for d in self
            .deletions
            .values()
            .filter(|d| d.request.concerns(subject))
        {
            match &d.request {
                Request::Erase { .. } => out = Inherited::default(),
                Request::Restrict { .. } => out.restricted = true,
                request => {
                    let earlier = out.erase.take();
                    out.erase = Some(PendingErase::of(d.task.unwrap_or(0), request).with(earlier));
                }
            }
        }
        out
    }

    /// Whether an accepted deletion still has to be executed: only while the store fails.
    pub(super) fn deletion_unexecuted(&self) -> bool {
        self.deletions
            .values()
            .any(|d| d.phase == DeletionPhase::Planned)
    }

    /// Refuses to serve while an accepted deletion has not been executed, and what was rolled back
    /// has no release of its own yet.
    pub(super) fn may_serve(&self) -> Result<(), CoordinatorError> {
        if self.deletion_unexecuted() || !self.rolling.is_empty() || self.unreleased {
            let message = "a deletion is being executed: try again in a moment";
            return Err(CoordinatorError::refuse(Refusal::Busy, message));
        }
        Ok(())
    }

    /// Executes the deletions that were accepted and that a crash or a failing store interrupted.
    pub(super) fn execute_pending(&mut self) -> Result<(), CoordinatorError> {
        let planned = |d: &DeletionRecord| d.phase == DeletionPhase::Planned;
        let pending: Vec<u64> = self
            .deletions
            .iter()
            .filter(|(_, d)| planned(d))
            .map(|(id, _)| *id)
            .collect();
        if pending.is_empty() {
            Ok(())
        } else {
            self.execute(&pending)
        }
    }

    /// Continues what a crash interrupted, and publishes if what is served is no longer what was
    /// released.
    pub(super) fn resume(&mut self) -> Result<(), CoordinatorError> {
        self.execute_pending()?;
        if self.counters.release > 0 && self.counters.served != self.served_hashes() {
            self.next_release(self.served.clone())?;
        }
        self.unreleased = false;
        Ok(())
    }

    fn certificates_of(&self, subject: &SubjectId) -> Vec<Digest> {
        let own = |r: &Role| matches!(r, Role::Subject(s) if s == subject);
        self.certificates
            .iter()
            .filter(|(_, r)| own(r))
            .map(|(d, _)| *d)
            .collect()
    }

    /// Those who stay, of a deletion that has not been executed.
    pub(super) fn kept_of(&self, id: u64) -> Result<Vec<Kept>, CoordinatorError> {
        Ok(self
            .store
            .get::<KeptRecord>(&id.to_string())?
            .unwrap_or_default()
            .0)
    }

    pub(super) fn save_deletions(
        &mut self,
        changed: Vec<(u64, DeletionRecord)>,
    ) -> Result<(), CoordinatorError> {
        let put = |b: Batch, (id, d): &(u64, DeletionRecord)| {
            b.put(&KeyName::evidence(*id), &id.to_string(), d)
        };
        self.store
            .write(changed.iter().try_fold(Batch::new(), put)?)?;
        self.deletions.extend(changed);
        Ok(())
    }
}
