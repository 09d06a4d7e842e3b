//! What is read: work for devices, orders, states of deletions, lineage, metrics. None of it
//! changes anything.

use lethe_learn::seed::Seed;
use lethe_plan::lineage::Census;
use lethe_proto::admin::{
    ActionState, Coverage, DeletionPhase, DeletionState, DeletionSummary, ProposalState,
    ReleaseLineage, SubjectLineage,
};
use lethe_proto::codec;
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_proto::limits::PAGE;
use lethe_proto::message::Refusal;
use lethe_receipt::statement::Statement;

use crate::decide::Proven;
use crate::ids::{EpochNo, Now, Refused, RunKey, ShardKey, ValueRef};
use crate::state::{Deletion, Holder, Place, Profile, Release, State};

/// Most orders in a page of [`State::orders_since`].
const ORDERS: usize = 100;

/// Work for a device.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Erase what the orders of this task name.
    Erase {
        /// The task.
        task: u64,
    },
    /// Take part in a round; `Command::Offer` says that it was offered.
    Train {
        /// The round.
        run: RunKey,
        /// Where it starts from; none: from the initial state.
        start: Option<ValueRef>,
        /// The round in which an update of this client counted last.
        counted: Option<u16>,
        /// Seed of the round.
        seed: Seed,
        /// Milliseconds until its update is not taken any longer.
        deadline_ms: u64,
    },
    /// Measure shards of a release.
    Validate {
        /// The release.
        release: u64,
        /// The shards.
        shards: Vec<ShardId>,
    },
}

/// One shard, for monitoring.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardView {
    /// Which.
    pub key: ShardKey,
    /// People whose data it is trained on.
    pub subjects: u64,
    /// Rounds done and in all.
    pub rounds: (u32, u32),
    /// Hash of the present adapter.
    pub adapter: Digest,
    /// Training is finished.
    pub done: bool,
    /// It was damaged.
    pub quarantined: bool,
    /// Nothing is trained in it until an operator releases it, or a time is over.
    pub held: bool,
    /// Mean loss of each finished round.
    pub losses: Vec<Option<f32>>,
    /// Deadlines in a row that passed without enough answers.
    pub starved: u32,
    /// Its round was abandoned; it is tried again later.
    pub abandoned: bool,
    /// Clients of the open round that have not answered.
    pub waiting: u64,
}

/// The state at one time, for monitoring. It names nobody.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// People who joined.
    pub subjects: u64,
    /// The current release.
    pub release: u64,
    /// The epoch that is served or, before that, trained; 0: none.
    pub epoch: u32,
    /// The newest epoch that is alive.
    pub newest_epoch: u32,
    /// All shards of the epochs that are alive.
    pub shards: Vec<ShardView>,
    /// Deletions per phase.
    pub deletions: [(&'static str, u64); 4],
    /// Not done in time.
    pub overdue: u64,
    /// Seconds until the first deadline; negative when it has passed.
    pub next_deadline: Option<f64>,
    /// Seconds from acceptance until exact.
    pub exact: Vec<f64>,
    /// Proposals that wait.
    pub proposals: u64,
    /// Entries of the log.
    pub log_entries: u64,
}

/// A person's rows of the error table that count now.
#[derive(Clone, Debug, PartialEq)]
pub struct MeasuredRows {
    /// Samples that were measured on every adapter that is served.
    pub samples: Vec<u32>,
    /// Where the rows of each shard are, by shard number.
    pub shards: Vec<ValueRef>,
}

/// What a receipt is made of.
#[derive(Clone, Debug)]
pub struct ReceiptParts {
    /// The statement.
    pub statement: Statement,
    /// Its entry of the log.
    pub index: u64,
    /// What was asked: subject, items, time.
    pub deletion: Deletion,
    /// What the log says of the person's record.
    pub proof: Option<Proven>,
}

/// As many as make a page, at least one.
pub(crate) fn page<T: serde::Serialize>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut out = vec![];
    let mut bytes = 0;
    for item in all {
        bytes += codec::to_bytes(&item).map_or(PAGE, |b| b.len());
        if bytes > PAGE && !out.is_empty() {
            break;
        }
        out.push(item);
    }
    out
}

impl State {
    /// The next thing that a device should do, if there is any.
    pub fn work_for(&self, certificate: &Digest, now: Now) -> Option<Work> {
        let holder = self.index.holders.get(certificate)?;
        let person = self.people.get(&holder.subject)?;
        let profile = person.profile.as_ref()?;
        // Offered until a device has joined again: one that stopped between its two answers goes on
        // from here.
        if let Some(e) = &profile.erase {
            // Told once for a connection; then the app or the person has to say something.
            let device = person.devices.get(&holder.device);
            let withheld = device.is_some_and(|d| d.withheld == Some(e.task));
            // Who has confirmed waits for the person's other devices; then one of them joins again.
            let waits = !e.confirmed && device.is_some_and(|d| d.confirmed == Some(e.task));
            return (!withheld && !waits).then_some(Work::Erase { task: e.task });
        }
        let measures = || {
            let due = self.validation_due(&holder.subject);
            due.filter(|_| !self.measures_nothing(&holder.device))
        };
        self.training_for(&holder.subject, now).or_else(measures)
    }

    /// Whether a device has said of the current release that it can measure nothing of it.
    fn measures_nothing(&self, device: &Digest) -> bool {
        let current = self.current_release().map(|(no, _)| no);
        current.is_some() && self.volatile.unmeasured.get(device).copied() == current
    }

    fn training_for(&self, subject: &SubjectId, now: Now) -> Option<Work> {
        let takes = |open: &&crate::state::Open| {
            open.sealed.is_none() && open.round.offers(subject, now.uptime_ms)
        };
        let open = self.volatile.open.values().find(takes)?;
        let view = self.run_view(open.run.generation)?;
        let terms = &view.epoch.terms;
        // Where updates may be late, a device may take longer than its round.
        let late = u64::from(terms.staleness.unwrap_or(0)) * terms.deadline_ms();
        let stage = self
            .stages
            .get(&open.run.stage_key())
            .filter(|_| terms.feeds_back);
        let own = self.personal_of(&open.run, subject);
        Some(Work::Train {
            run: open.run,
            start: match terms.aggregation {
                crate::terms::Aggregation::Personalized => own.cloned(),
                _ => view.run.state.clone(),
            },
            counted: stage.and_then(|s| s.counted_of(subject, open.run.round)),
            seed: terms.round_seed(&open.run),
            deadline_ms: open.round.deadline().saturating_sub(now.uptime_ms) + late,
        })
    }

    /// Shards whose served adapter this subject has not measured; none when nothing is due.
    pub fn validation_due(&self, subject: &SubjectId) -> Option<Work> {
        let profile = self.profile(subject);
        let unused = profile.is_some_and(|r| r.erase.is_some() || r.restricted);
        let (no, release) = self.served_release()?;
        // Who has nothing to train on has nothing to measure with either.
        let place = profile.and_then(|p| p.places.get(&release.epoch));
        let unused = unused || place.is_none_or(|p| p.samples == 0);
        if unused || !self.epochs.get(&release.epoch)?.trained() {
            return None;
        }
        let errors = self.people.get(subject)?.errors.as_ref();
        let due = |(k, served): &(usize, &crate::state::ServedShard)| {
            let Some(errors) = errors.filter(|e| !e.samples.is_empty()) else {
                return true;
            };
            let key = crate::state::shard_key(release.epoch, *k);
            let measured = errors.shards.get(&key);
            let fits = |s: &u32| measured.and_then(|m| m.samples.get(s)) == Some(&served.digest);
            !errors.samples.iter().all(fits)
        };
        let shards = release.shards.iter().enumerate().filter(due);
        let shards: Vec<ShardId> = shards.map(|(k, _)| ShardId(k as u16)).collect();
        (!shards.is_empty()).then_some(Work::Validate {
            release: no,
            shards,
        })
    }

    /// Where a person's rows of a shard are.
    pub fn rows_of(&self, subject: &SubjectId, key: ShardKey) -> Option<&ValueRef> {
        let errors = self.people.get(subject)?.errors.as_ref()?;
        errors.shards.get(&key).map(|m| &m.value)
    }

    /// Everybody's rows of the error table that count now, in the order of people.
    pub fn measured(&self) -> Vec<MeasuredRows> {
        let Some((_, release)) = self.current_release() else {
            return vec![];
        };
        let of = |errors: &crate::state::Errors| {
            let mut shards = vec![];
            let mut samples: Vec<u32> = errors.samples.iter().copied().collect();
            for (k, served) in release.shards.iter().enumerate() {
                let measured = errors
                    .shards
                    .get(&crate::state::shard_key(release.epoch, k))?;
                samples.retain(|s| measured.samples.get(s) == Some(&served.digest));
                shards.push(measured.value.clone());
            }
            Some(MeasuredRows { samples, shards })
        };
        let errors = self.people.values().filter_map(|p| p.errors.as_ref());
        errors
            .filter_map(of)
            .filter(|m| !m.samples.is_empty())
            .collect()
    }

    /// Devices that are enrolled.
    pub fn devices(&self) -> usize {
        self.people.values().map(|p| p.devices.len()).sum()
    }

    /// Whether all people have measured what is served, but for those none of whose devices can.
    pub fn validated(&self) -> bool {
        let mut joined = self.people.iter().filter(|(_, p)| p.profile.is_some());
        self.served_release().is_some()
            && joined.all(|(s, person)| {
                self.validation_due(s).is_none()
                    || person.devices.keys().all(|d| self.measures_nothing(d))
            })
    }

    /// The deletions behind a device's task, with the log's entries of their orders. The shell adds
    /// the proofs.
    pub fn orders_for(
        &self,
        certificate: &Digest,
        task: u64,
    ) -> Result<Vec<(u64, &Deletion, u64)>, Refused> {
        let holder = self.index.holders.get(certificate);
        let profile = holder.and_then(|h| self.profile(&h.subject).map(|p| (h, p)));
        let pending = profile.and_then(|(h, p)| Some((h, p.erase.as_ref()?)));
        let Some((holder, pending)) = pending.filter(|(_, e)| e.task == task) else {
            let message = "there is no such order now: ask for work again";
            return Err(Refused::new(Refusal::RoundClosed, message));
        };
        let mut out = vec![];
        for (id, d) in &self.deletions {
            if !d.request.concerns(&holder.subject) || !d.is_part(pending) {
                continue;
            }
            let Some(index) = d.order_index else {
                let message = "the order is being entered into the log: try again in a moment";
                return Err(Refused::new(Refusal::Busy, message));
            };
            out.push((*id, d, index));
        }
        Ok(out)
    }

    /// Orders of deletions with larger numbers that concern a person, oldest first, with the log's
    /// entries. What is erased with a person's data concerns nobody who comes back.
    fn orders_of<'a>(
        &'a self,
        subject: &'a SubjectId,
        after: u64,
    ) -> impl Iterator<Item = (u64, &'a Deletion, u64)> {
        let all = self.deletions.iter();
        let erased =
            all.filter(|(_, d)| d.request.erases_subject() && d.request.subject() == Some(subject));
        let erased = erased.map(|(id, _)| *id).max().unwrap_or(0);
        let later = self.deletions.range(after.max(erased).saturating_add(1)..);
        let own = later.filter(move |(_, d)| d.task.is_some() && d.request.concerns(subject));
        own.filter_map(|(id, d)| Some((*id, d, d.order_index?)))
    }

    /// Orders that a copy of a device's folder lacks which has carried out those up to this
    /// deletion: a page. Those of a task that waits for the device come with the task.
    ///
    /// # Errors
    /// [`Refused`]: the device is nobody's any more.
    pub fn orders_since(
        &self,
        certificate: &Digest,
        deletion: u64,
    ) -> Result<Vec<(u64, &Deletion, u64)>, Refused> {
        let Some(holder) = self.index.holders.get(certificate) else {
            let message = "this subject's certificates were withdrawn";
            return Err(Refused::new(Refusal::Forbidden, message));
        };
        Ok(self
            .orders_carried_out(holder, deletion)
            .take(ORDERS)
            .collect())
    }

    /// Orders that a device has carried out, as far as is known here: those with larger numbers,
    /// oldest first.
    pub(crate) fn orders_carried_out<'a>(
        &'a self,
        holder: &'a Holder,
        after: u64,
    ) -> impl Iterator<Item = (u64, &'a Deletion, u64)> {
        let person = self.people.get(&holder.subject);
        let device = person.and_then(|p| p.devices.get(&holder.device));
        let confirmed = device.and_then(|d| d.confirmed);
        let pending = person.and_then(|p| p.profile.as_ref()?.erase.as_ref());
        let pending = pending.filter(|e| confirmed != Some(e.task));
        let all = self.orders_of(&holder.subject, after);
        all.filter(move |(_, d, _)| !pending.is_some_and(|e| d.is_part(e)))
    }

    /// Whether it is written down that a device holds this release, and no older one.
    pub fn has_fetched(&self, certificate: &Digest, release: u64) -> bool {
        let device = self.index.holders.get(certificate).and_then(|holder| {
            let person = self.people.get(&holder.subject)?;
            person.devices.get(&holder.device)
        });
        device.is_some_and(|d| d.release == release)
    }

    /// Training samples that a subject joined with.
    pub fn joined_samples(&self, run: &RunKey, subject: &SubjectId) -> u32 {
        let place = self.profile(subject).and_then(|p| p.places.get(&run.epoch));
        place.map_or(0, |p| p.samples)
    }

    /// What the receipt of a deletion is made of, once its statement is in the log.
    pub fn receipt_parts(&self, id: u64) -> Option<ReceiptParts> {
        let d = self.deletions.get(&id)?;
        let statement = d.statement.clone()?;
        let proof = self.record_proof(d);
        // Another deletion came in between: `Command::Finish` makes another statement.
        if statement.recorded != proof.is_some() {
            return None;
        }
        Some(ReceiptParts {
            statement,
            index: d.statement_index?,
            deletion: d.clone(),
            proof,
        })
    }

    /// A deletion as the admin tool shows it.
    pub fn deletion_state(&self, id: u64, now: Now) -> Option<DeletionState> {
        let d = self.deletions.get(&id)?;
        let plan = self.plans_in_words(&d.plans);
        Some(DeletionState {
            id,
            request: d.request.clone(),
            batch: d.batch,
            plan,
            waits_for: self.waits_for(d, now),
            phase: d.phase,
            seconds_until_exact: seconds(d.exact_after_ms),
            seconds_until_retrained: seconds(d.retrained_after_ms),
            removed: self.removed_of(d, now),
            before: d.before.clone(),
            now: self.served_hashes(),
            affected: d.rolled_back.iter().map(|r| r.shard.shard).collect(),
        })
    }

    /// A page of the deletions after a number, oldest first.
    pub fn deletion_list(&self, after: u64) -> Vec<DeletionSummary> {
        let summary = |(id, d): (&u64, &Deletion)| DeletionSummary {
            id: *id,
            request: d.request.clone(),
            reference: d.reference.clone(),
            phase: d.phase,
            accepted_at: d.accepted_at / 1000,
            due_at: d.requested_at / 1000 + self.rules.deadline_days * 86_400,
            seconds_until_exact: seconds(d.exact_after_ms),
            seconds_until_retrained: seconds(d.retrained_after_ms),
        };
        page(self.deletions.range(after.saturating_add(1)..).map(summary))
    }

    /// What a deletion waits for, in words.
    pub fn waits_for(&self, d: &Deletion, now: Now) -> String {
        let window = self.rules.erase_window_ms;
        if d.phase == DeletionPhase::Planned && window > 0 {
            let left = d
                .accepted_at
                .saturating_add(window)
                .saturating_sub(now.unix_ms);
            return format!(
                "other deletions, to be executed together (erase_window_s: at most {} s more)",
                left.div_ceil(1000)
            );
        }
        if d.phase == DeletionPhase::Planned {
            return "the store: it fails; see the server's log".into();
        }
        if !d.waits() {
            return String::new();
        }
        let erasing = self.erasing(d, now);
        if erasing > 0 {
            let since = d.accepted_at.max(self.volatile.started_at);
            let wait_ms = self.rules.erase_wait_s.saturating_mul(1000);
            let left = since.saturating_add(wait_ms).saturating_sub(now.unix_ms);
            return format!(
                "{erasing} device(s) that have to erase (erase_wait_s: at most {} s more, then \
                 training goes on without them)",
                left.div_ceil(1000)
            );
        }
        let shards = d.rolled_back.iter().map(|r| r.shard);
        let parts: Vec<String> = shards
            .filter(|s| !self.retrained(*s))
            .filter_map(|s| self.round_in_words(s, now))
            .collect();
        if parts.is_empty() && self.lists_wait() {
            "the next snapshot of the lists".into()
        } else if parts.is_empty() {
            "other shards, to be released together".into()
        } else {
            parts.join("; ")
        }
    }

    fn round_in_words(&self, key: ShardKey, now: Now) -> Option<String> {
        let epoch = self.epochs.get(&key.epoch)?;
        let run = &epoch.shard(key.shard)?.run;
        let (done, all) = run.progress(&epoch.terms);
        let open = self.volatile.open.get(&run.generation);
        let waits = open.map_or(0, |o| o.round.waiting());
        let shard = key.shard;
        if self.is_on_hold(key, now) {
            return Some(format!(
                "{shard}: it is held, and nothing is trained in it: `lethe-admin shard release {}`",
                shard.0
            ));
        }
        if self.volatile.abandoned.contains_key(&run.generation) {
            return Some(format!(
                "{shard}: round {} of {all} was abandoned, too few clients answered; it is tried \
                 again every hour",
                done + 1
            ));
        }
        Some(format!(
            "{shard}: round {} of {all}, {waits} client(s) have not answered",
            done + 1
        ))
    }

    /// Deletions that are not done in time, with what they wait for.
    pub fn overdue(&self, now: Now) -> Vec<(u64, String)> {
        let bound = self.rules.deadline_days * 86_400_000;
        let open = self.index.planned.iter().chain(&self.index.waiting);
        let late = open.filter_map(|id| Some((*id, self.deletions.get(id)?)));
        let late = late.filter(|(_, d)| now.unix_ms > d.requested_at + bound);
        late.map(|(id, d)| (id, self.waits_for(d, now))).collect()
    }

    /// A page of the proposals that wait, after a number.
    pub fn proposal_list(&self, after: u64) -> Vec<ProposalState> {
        let missing = |n: usize| self.approvals().saturating_sub(n as u8);
        let waiting = self.proposals.range(after.saturating_add(1)..);
        page(waiting.map(|(id, p)| ProposalState {
            id: *id,
            what: p.what.clone(),
            at: p.at / 1000,
            approved: p.approved.clone(),
            missing: missing(p.approved.len()),
        }))
    }

    /// What operators did: the newest that fit into a message.
    pub fn action_list(&self) -> Vec<ActionState> {
        let logged = self.actions.values().filter_map(|r| {
            Some(ActionState {
                entry: r.index?,
                at: r.action.at,
                by: r.action.by,
                what: r.action.what.clone(),
            })
        });
        let mut all: Vec<ActionState> = logged.collect();
        all.sort_by_key(|a| a.entry);
        let skip = all.len().saturating_sub(200);
        all.split_off(skip)
    }

    /// What a subject's data is in.
    pub fn subject_lineage(&self, subject: &SubjectId) -> Result<SubjectLineage, Refused> {
        let person = self.people.get(subject);
        let Some((person, profile)) = person.and_then(|p| Some((p, p.profile.as_ref()?))) else {
            return Err(Refused::invalid(format!(
                "{subject} has not joined, or was deleted: `lethe-admin list` shows the deletions"
            )));
        };
        let place = self.place_shown(profile);
        let about = self
            .deletions
            .iter()
            .filter(|(_, d)| d.request.subject() == Some(subject));
        let number = person.number.0;
        let mut out = SubjectLineage {
            number,
            place: place.and_then(|(_, p)| Some((p.shard?, p.slice))),
            idle: self.not_trained(subject),
            samples: place.map_or(0, |(_, p)| p.samples),
            checkpoints: vec![],
            served: false,
            rounds: 0,
            error_rows: person.errors.as_ref().map_or(0, |e| e.samples.len()) as u32,
            open_updates: 0,
            releases: self.releases_with(number),
            deletions: about.map(|(id, _)| *id).collect(),
        };
        if let Some((no, p)) = place.filter(|(no, _)| profile.trained(*no).is_some())
            && let Some(shard) = p.shard
        {
            let key = ShardKey { epoch: no, shard };
            self.lineage_in_shard(subject, key, p.slice, &mut out);
        }
        Ok(out)
    }

    /// Of the places of a person the one in the epoch that is served, or else the newest.
    fn place_shown<'a>(&self, profile: &'a Profile) -> Option<(EpochNo, &'a Place)> {
        let newest = profile.places.iter().next_back();
        let serving = self.core.serving;
        let served = serving.and_then(|no| Some((no, profile.places.get(&no)?)));
        served.or(newest.map(|(no, place)| (*no, place)))
    }

    /// Why nothing is trained on a person's data, in words; empty when it is.
    pub(crate) fn not_trained(&self, subject: &SubjectId) -> String {
        let Some(profile) = self.profile(subject) else {
            return "has not joined".into();
        };
        let place = self.place_shown(profile).map(|(_, p)| p);
        let samples = place.map_or(0, |p| p.samples);
        let left_out = place.is_none_or(|p| p.excluded);
        if left_out && profile.erase.is_none() && self.was_readmitted(subject) {
            return "the restriction is lifted: in lists again, and trained on from the next epoch \
                    on that the person joins"
                .into();
        }
        why_excluded(profile, samples)
    }

    fn releases_with(&self, number: u32) -> Vec<(u64, bool)> {
        let has = |r: &Release| r.shards.iter().any(|s| s.census.contains(number));
        let with = self.releases.iter().filter(|(_, r)| has(r));
        with.map(|(no, r)| (*no, r.recalled)).collect()
    }

    fn lineage_in_shard(
        &self,
        subject: &SubjectId,
        key: ShardKey,
        slice: u16,
        out: &mut SubjectLineage,
    ) {
        let Some(shard) = self.shard(key) else {
            return;
        };
        let kept = shard.run.stages.range(slice + 1..);
        out.checkpoints = kept
            .filter(|(_, s)| s.checkpoint.is_some())
            .map(|(s, _)| *s)
            .collect();
        let mut stages = vec![];
        for ((stage, _), contributors) in self.recorded_rounds(key) {
            if contributors.iter().any(|(s, _)| s == subject) {
                stages.push(stage);
            }
        }
        out.rounds = stages.len() as u32;
        // A shard is trained by cohorts: who was in none has left no trace in it.
        let release = self.current_release().filter(|(_, r)| r.epoch == key.epoch);
        let served = release.and_then(|(_, r)| r.shards.get(usize::from(key.shard.0)));
        out.served = served.is_some_and(|s| stages.iter().any(|stage| *stage <= s.stage));
        let present = self.stages.get(&shard.run.key(key).stage_key());
        let stored = present.into_iter().flat_map(|s| s.stored.keys());
        out.open_updates = stored.filter(|(s, _)| s == subject).count() as u32;
    }

    /// Whose data a release was computed from.
    pub fn release_lineage(&self, no: u64) -> Result<ReleaseLineage, Refused> {
        let Some(r) = self.releases.get(&no) else {
            let current = self.current_release().map_or(0, |(no, _)| no);
            return Err(Refused::invalid(format!(
                "there is no release {no}; the current one is {current}"
            )));
        };
        if self.ended(r.epoch) {
            return Err(Refused::invalid(format!(
                "release {no} is of {}, which has ended: nobody serves it, and whose data it was \
                 computed from is not kept",
                r.epoch
            )));
        }
        let mut subjects = vec![];
        for (s, person) in self.people.iter().filter(|(_, p)| p.profile.is_some()) {
            let shard = r
                .shards
                .iter()
                .position(|s| s.census.contains(person.number.0));
            subjects.extend(shard.map(|k| (s.clone(), ShardId(k as u16))));
        }
        let all = Census::union(r.shards.iter().map(|s| &s.census)).len();
        Ok(ReleaseLineage {
            release: no,
            at: r.at,
            recalled: r.recalled,
            shards: r
                .shards
                .iter()
                .map(|s| (s.digest, s.census.len()))
                .collect(),
            deleted: all.saturating_sub(subjects.len() as u64),
            subjects,
            validation: r.validation.len(),
        })
    }

    /// Which people's devices still hold a release; the newest that was recalled when none is
    /// named. A person counts by the device that is farthest behind.
    pub fn coverage(&self, release: Option<u64>) -> Result<Coverage, Refused> {
        let newest = || {
            self.releases
                .iter()
                .rev()
                .find(|(_, r)| r.recalled)
                .map(|(no, _)| *no)
        };
        let known = release
            .or_else(newest)
            .and_then(|no| Some((no, self.releases.get(&no)?)));
        let Some((no, r)) = known else {
            let message = "no such release, or none was recalled so far";
            return Err(Refused::invalid(message));
        };
        let mut out = Coverage {
            release: no,
            recalled: r.recalled,
            dropped: 0,
            holding: 0,
            never: 0,
        };
        for person in self.people.values().filter(|p| p.profile.is_some()) {
            let held = person
                .devices
                .values()
                .map(|d| d.release)
                .filter(|r| *r > 0);
            match held.min() {
                None => out.never += 1,
                Some(held) if held > no => out.dropped += 1,
                Some(_) => out.holding += 1,
            }
        }
        Ok(out)
    }

    /// What monitoring sees.
    pub fn view(&self, now: Now) -> View {
        let count = |phase| self.deletions.values().filter(|d| d.phase == phase).count() as u64;
        let bound = self.rules.deadline_days * 86_400_000;
        let left = |d: &Deletion| ((d.requested_at + bound) as f64 - now.unix_ms as f64) / 1000.0;
        let open = self
            .deletions
            .values()
            .filter(|d| d.phase != DeletionPhase::Done);
        let open: Vec<f64> = open.map(left).collect();
        let exact = self
            .deletions
            .values()
            .filter_map(|d| seconds(d.exact_after_ms));
        View {
            subjects: self.people.values().filter(|p| p.profile.is_some()).count() as u64,
            release: self.current_release().map_or(0, |(no, _)| no),
            epoch: self.shard_of_wire(ShardId(0)).map_or(0, |key| key.epoch.0),
            newest_epoch: self.joining().map_or(0, |no| no.0),
            shards: self
                .shards()
                .map(|(key, _, _)| key)
                .filter(|key| !self.ended(key.epoch))
                .filter_map(|k| self.shard_view(k))
                .collect(),
            deletions: [
                ("accepted", count(DeletionPhase::Planned)),
                ("waiting-for-device", count(DeletionPhase::WaitingForDevice)),
                ("retraining", count(DeletionPhase::Retraining)),
                ("done", count(DeletionPhase::Done)),
            ],
            overdue: open.iter().filter(|s| **s < 0.0).count() as u64,
            next_deadline: open.iter().copied().reduce(f64::min),
            exact: exact.collect(),
            proposals: self.proposals.len() as u64,
            log_entries: self.core.log.entries,
        }
    }

    /// One shard at a glance.
    pub fn shard_view(&self, key: ShardKey) -> Option<ShardView> {
        let epoch = self.epochs.get(&key.epoch)?;
        let run = &epoch.shard(key.shard)?.run;
        let open = self.volatile.open.get(&run.generation);
        Some(ShardView {
            key,
            subjects: self.members(key).count() as u64,
            rounds: run.progress(&epoch.terms),
            adapter: run.hash,
            done: run.done(&epoch.terms),
            quarantined: self.core.quarantined.contains(&key)
                || self.holds.get(&key).is_some_and(|h| h.damaged),
            held: self.holds.contains_key(&key),
            losses: run.losses(),
            starved: open.map_or(0, |o| o.starved),
            abandoned: self.volatile.abandoned.contains_key(&run.generation),
            waiting: open.map_or(0, |o| o.round.waiting() as u64),
        })
    }
}

fn seconds(ms: Option<u64>) -> Option<f64> {
    ms.map(|ms| ms as f64 / 1000.0)
}

fn why_excluded(r: &Profile, samples: u32) -> String {
    let why = match (r.restricted, r.excluded(), &r.erase) {
        (true, _, _) => "restricted: the data is kept and not used",
        (_, true, Some(_)) => "the device did not erase in time: left out until the next epoch",
        (_, true, None) => {
            "came after the epoch started, or erased too late: left out until the next one"
        }
        (_, _, Some(_)) => "the device has to erase first",
        _ if samples == 0 => "no training samples",
        _ => "",
    };
    why.into()
}
