//! What shows that a deletion happened: what the log is to hold, statements, receipts.

use std::collections::BTreeSet;

use lethe_proto::admin::{DeletionPhase, Removed as RemovedState};
use lethe_proto::ids::{Digest, SubjectId};
use lethe_receipt::hex::hex;
use lethe_receipt::receipt::Fate;
use lethe_receipt::records::record_key;
use lethe_receipt::statement::{
    AffectedShard, Cost, EpochStood, Removed, RolledBack, StatedEpoch, Statement, TRAINING_VERSION,
    Training, VERSION, commitment,
};

use super::Decided;
use crate::command::{Command, LogFor};
use crate::event::{Event, Stated};
use crate::ids::{EpochNo, Fresh, Now, ShardKey, ValueRef};
use crate::state::{Deletion, ListsRecord, RecordBefore, State, TrainingRecord};

/// What was trained on before, what is now, and what became of the record.
pub(crate) type Proven = (RecordBefore, TrainingRecord, Fate);

pub(super) fn decide(state: &State, command: Command, _now: Now) -> Decided {
    match command {
        Command::MembersHashed {
            shard,
            version,
            root,
            count,
            fresh,
        } => Ok(hashed(state, shard, version, root, count, fresh)),
        Command::Logged { about, index, head } => {
            let mut events = logged(state, &about, index);
            events.extend(super::logged::grew(state, head));
            Ok(events)
        }
        _ => Ok(vec![]),
    }
}

fn hashed(
    state: &State,
    key: ShardKey,
    version: u64,
    root: [u8; 32],
    count: u64,
    fresh: Fresh,
) -> Vec<Event> {
    let versions = state
        .volatile
        .versions
        .get(&key)
        .copied()
        .unwrap_or_default();
    let (Some(epoch), Some(shard)) = (state.epochs.get(&key.epoch), state.shard(key)) else {
        return vec![];
    };
    if versions.members != version || versions.logged == version || epoch.partition.is_none() {
        return vec![];
    }
    let training = Training {
        version: TRAINING_VERSION,
        shard: key.shard.0,
        generation: shard.run.generation,
        root: hex(&root),
        count,
        recipe: epoch.recipe_digest.hex(),
        seed: epoch.terms.seed,
        base_model: epoch.model.hex(),
        build: state.rules.build.clone(),
    };
    // What is intended goes into the log first, whatever has changed since.
    if let Some(intended) = &shard.intended {
        if intended.training == training {
            return vec![];
        }
    } else if shard
        .logged
        .as_ref()
        .is_some_and(|l| l.training == training)
    {
        return vec![Event::MembersLogged {
            shard: key,
            version,
        }];
    }
    vec![Event::TrainingStated {
        shard: key,
        training,
        salt: fresh.salt(0),
    }]
}

fn logged(state: &State, about: &LogFor, index: u64) -> Vec<Event> {
    let event = match about {
        LogFor::Training(shard) => {
            let intended = state.shard(*shard).is_some_and(|s| s.intended.is_some());
            intended.then_some(Event::TrainingLogged {
                shard: *shard,
                index,
            })
        }
        LogFor::Order(id) => {
            let open = state
                .deletions
                .get(id)
                .is_some_and(|d| d.order_index.is_none());
            open.then_some(Event::OrderLogged { id: *id, index })
        }
        LogFor::Statement(id) => {
            let d = state.deletions.get(id);
            let open = d.is_some_and(|d| d.statement.is_some() && d.statement_index.is_none());
            open.then_some(Event::StatementLogged { id: *id, index })
        }
        LogFor::Action(no) => {
            let open = state.actions.get(no).is_some_and(|a| a.index.is_none());
            open.then_some(Event::ActionLogged { no: *no, index })
        }
        LogFor::Catalogue(version) => {
            let record = state.catalogues.get(version);
            let open = record.is_some_and(|r| r.index.is_none());
            open.then_some(Event::CatalogueLogged {
                version: *version,
                index,
            })
        }
    };
    event.into_iter().collect()
}

/// The next step of a deletion whose shards are, perhaps, trained again.
pub(super) fn finish(state: &State, id: u64, now: Now) -> Decided {
    let Some(d) = state.deletions.get(&id).filter(|d| d.waits()) else {
        return Ok(vec![]);
    };
    if state.erasing(d, now) > 0 {
        return Ok(vec![]);
    }
    if !state.all_retrained(d) {
        let waits = d.phase == DeletionPhase::WaitingForDevice;
        let event = waits.then_some(Event::DeletionRetraining { id });
        return Ok(event.into_iter().collect());
    }
    if !state.all_logged() || !state.lists_are_whole(id) {
        return Ok(vec![]);
    }
    let provable = state.record_proof(d).is_some();
    if d.statement.as_ref().is_some_and(|s| s.recorded == provable) {
        return Ok(vec![]);
    }
    let retrained_after_ms = now.unix_ms.saturating_sub(d.accepted_at);
    let statement = state.statement(id, d, retrained_after_ms, provable, now);
    let mut events = vec![];
    if d.phase == DeletionPhase::WaitingForDevice {
        events.push(Event::DeletionRetraining { id });
    }
    events.push(Event::StatementFixed {
        id,
        retrained_after_ms,
        statement: Stated(Box::new(statement)),
    });
    Ok(events)
}

pub(super) fn issued(state: &State, id: u64, receipt: ValueRef) -> Vec<Event> {
    let d = state.deletions.get(&id).filter(|d| d.waits());
    let ready = d.is_some_and(|d| d.statement.is_some() && d.statement_index.is_some());
    ready
        .then_some(Event::ReceiptIssued { id, receipt })
        .into_iter()
        .collect()
}

fn stated(r: RemovedState) -> Removed {
    Removed {
        events: r.events,
        answered: r.answered,
        silent: r.silent,
        unconsented: r.unconsented,
    }
}

fn forecast(d: &Deletion, state: &State) -> Cost {
    let served = state.current_release().map(|(_, r)| r.epoch);
    let plan = d
        .plans
        .iter()
        .find(|(no, _)| Some(*no) == served)
        .or_else(|| d.plans.last());
    let Some((_, plan)) = plan else {
        return Cost::default();
    };
    let c = &plan.forecast.cost;
    Cost {
        rounds: c.rounds,
        client_rounds: c.client_rounds,
        bytes: c.bytes,
        milliseconds: (c.seconds * 1000.0) as u64,
    }
}

impl State {
    /// People whose devices a deletion waits for.
    pub fn erasing(&self, d: &Deletion, now: Now) -> usize {
        let bound = self.rules.erase_wait_s * 1000;
        let since = d.accepted_at.max(self.volatile.started_at);
        let in_time = now.unix_ms <= since + bound;
        // Who is not trained on (they came late, or are restricted) is asked all the same, and has
        // as long to answer.
        let waits = |s: &&SubjectId| {
            let Some(person) = self.people.get(*s) else {
                return false;
            };
            let profile = person.profile.as_ref();
            match profile.and_then(|p| Some((p, p.erase.as_ref()?))) {
                None => false,
                Some((p, e)) if p.excluded() => {
                    in_time && !e.confirmed && !person.withholds(e.task)
                }
                Some(_) => true,
            }
        };
        if d.task.is_none() {
            return 0;
        }
        let concerned = self.index.erasing.iter().filter(|s| d.request.concerns(s));
        concerned.filter(waits).count()
    }

    /// A shard is trained and released again, or nothing of it is served: its epoch has ended,
    /// another one has followed it, or it follows the one that is served and has no release yet.
    pub(crate) fn retrained(&self, key: ShardKey) -> bool {
        let Some(epoch) = self.epochs.get(&key.epoch) else {
            return true;
        };
        let not_served = self
            .core
            .serving
            .is_some_and(|serving| serving != key.epoch);
        if not_served || self.ended(key.epoch) {
            return true;
        }
        let shard = epoch.shard(key.shard);
        shard.is_none_or(|s| s.run.done(&epoch.terms) && self.served_of(key) == Some(s.run.hash))
    }

    pub(crate) fn all_retrained(&self, d: &Deletion) -> bool {
        d.rolled_back.iter().all(|r| self.retrained(r.shard))
    }

    /// The log says of every shard what it is trained on now.
    pub(crate) fn all_logged(&self) -> bool {
        let begun = self
            .shards()
            .filter(|(key, epoch, _)| epoch.partition.is_some() && !self.ended(key.epoch));
        let mut versions = begun.map(|(key, _, _)| self.volatile.versions.get(&key));
        versions.all(|v| v.is_some_and(|v| v.members == v.logged))
    }

    /// The lists are complete again without a deletion's data.
    pub(crate) fn lists_are_whole(&self, id: u64) -> bool {
        self.lists.get(&id).is_none_or(ListsRecord::is_whole)
    }

    /// What the log says of the person's record before and now. None when no shard was trained on
    /// it, or when what the log says now is not what the shard holds.
    pub(crate) fn record_proof(&self, d: &Deletion) -> Option<Proven> {
        let before = d.proof.clone()?;
        let subject = d.request.subject()?;
        let after = self.shard(before.shard)?.logged.clone()?;
        if after.index <= before.training.index {
            return None;
        }
        let records = self.records_now(before.shard, &after)?;
        let key = record_key(&before.salt, subject.as_str());
        let fate = match records.member(&key) {
            Some(leaf) if leaf.data == before.member.data => Fate::Unchanged(leaf),
            Some(leaf) => Fate::Replaced(leaf),
            None => Fate::Absent(records.absent(&key)?),
        };
        Some((before, after, fate))
    }

    fn statement(
        &self,
        id: u64,
        d: &Deletion,
        retrained_after_ms: u64,
        recorded: bool,
        now: Now,
    ) -> Statement {
        let lists = self.stated_lists(id);
        let request = &d.request;
        let subject = request.subject().map_or("", SubjectId::as_str);
        let (release, epoch) = self
            .current_release()
            .map_or((0, self.newest_begun()), |(no, r)| (no, Some(r.epoch)));
        let fixed = epoch.and_then(|no| self.epochs.get(&no));
        let served = self.served_hashes();
        let hash = |k: usize| served.get(k).map_or(String::new(), Digest::hex);
        // Hashes of before are those of the epoch that was served then: shards of another one have
        // none.
        let same_epoch = self.served_at(d.accepted_at) == epoch;
        let hashes_before: &[Digest] = if same_epoch { &d.before } else { &[] };
        let before = |k: usize| hashes_before.get(k).map_or(String::new(), Digest::hex);
        let own = d
            .rolled_back
            .iter()
            .filter(|r| Some(r.shard.epoch) == epoch);
        let affected = own.clone().map(|r| {
            let k = usize::from(r.shard.shard.0);
            let last = fixed.map_or(0, |e| e.terms.slices);
            let end = self
                .shard(r.shard)
                .and_then(|s| s.run.stages.get(&last)?.checkpoint.as_ref());
            let rounds = fixed.map_or(0, |e| u32::from(e.terms.rounds));
            AffectedShard {
                shard: r.shard.shard.0,
                from_stage: r.stage,
                before: before(k),
                rolled_back_to: r.hash.hex(),
                after: hash(k),
                lineage: end.map_or(String::new(), |c| c.lineage.hex()),
                rounds: u32::from((last + 1).saturating_sub(r.stage)) * rounds,
            }
        });
        let plan = d.plans.iter().find(|(no, _)| Some(*no) == epoch);
        let untouched = plan.into_iter().flat_map(|(_, p)| &p.untouched);
        let untouched = untouched.map(|s| usize::from(s.0)).filter(|k| {
            let same = hashes_before.get(*k).map(Digest::hex) == Some(hash(*k));
            same && own.clone().all(|r| usize::from(r.shard.shard.0) != *k)
        });
        Statement {
            version: VERSION,
            kind: request.kind().into(),
            deletion: id,
            batch: d.batch,
            commitment: commitment(&d.salt, subject, request.items(), request.from()),
            accepted_at: d.accepted_at / 1000,
            exact_after_ms: d.exact_after_ms.unwrap_or(0),
            retrained_after_ms,
            keys_destroyed: d.keys_destroyed,
            affected: affected.collect(),
            untouched: untouched.map(|k| (k as u16, hash(k))).collect(),
            release,
            recipe: fixed.map_or(String::new(), |e| e.recipe_digest.hex()),
            base_model: fixed.map_or(String::new(), |e| e.model.hex()),
            build: self.rules.build.clone(),
            recorded,
            forecast: forecast(d, self),
            actual: self.actual(d, retrained_after_ms),
            removed: self.removed_of(d, now).map(stated),
            lists,
            epochs: Some(self.stated_epochs(d, epoch)),
        }
    }

    /// The epoch that was served at a time, in milliseconds since 1970.
    fn served_at(&self, at: u64) -> Option<EpochNo> {
        let mut newest_first = self.epochs.keys().rev();
        newest_first
            .find(|no| self.served_since(**no).is_some_and(|since| since <= at))
            .copied()
    }

    /// The epochs that a deletion is about: those that were alive when it was accepted, those in
    /// which something was rolled back, and the one that is served or trained now.
    fn stated_epochs(&self, d: &Deletion, now: Option<EpochNo>) -> Vec<StatedEpoch> {
        let serving = self.core.serving;
        let planned = d.plans.iter().map(|(no, _)| *no);
        let rolled = d.rolled_back.iter().map(|r| r.shard.epoch);
        let numbers: BTreeSet<EpochNo> = planned.chain(rolled).chain(now).collect();
        let of = |no: EpochNo| {
            let epoch = self.epochs.get(&no)?;
            let stood = if Some(no) == serving {
                EpochStood::Served
            } else if self.ended(no) || serving.is_some_and(|serving| no < serving) {
                EpochStood::Ended
            } else {
                EpochStood::Follows
            };
            let own = d.rolled_back.iter().filter(|r| r.shard.epoch == no);
            let own = own.filter(|_| stood != EpochStood::Served);
            let version = self.catalogues.get(&epoch.catalogue);
            Some(StatedEpoch {
                epoch: no.0,
                stood,
                recipe: epoch.recipe_digest.hex(),
                base_model: epoch.model.hex(),
                catalogue: epoch.catalogue.0,
                catalogue_digest: version.map_or(String::new(), |v| v.digest.hex()),
                rolled_back: own
                    .map(|r| RolledBack {
                        shard: r.shard.shard.0,
                        from_stage: r.stage,
                        rolled_back_to: r.hash.hex(),
                    })
                    .collect(),
            })
        };
        numbers.into_iter().filter_map(of).collect()
    }

    /// What retraining cost: rounds and updates as recorded, bytes of all training since the
    /// acceptance.
    fn actual(&self, d: &Deletion, retrained_after_ms: u64) -> Cost {
        let mut cost = Cost {
            bytes: self.core.rates.bytes.saturating_sub(d.bytes_before),
            milliseconds: retrained_after_ms.saturating_sub(d.exact_after_ms.unwrap_or(0)),
            ..Cost::default()
        };
        for r in &d.rolled_back {
            let Some(epoch) = self.epochs.get(&r.shard.epoch) else {
                continue;
            };
            let per_stage = usize::from(epoch.terms.rounds);
            let before = per_stage * usize::from(r.stage.saturating_sub(1));
            let rounds = self.shard(r.shard).map(|s| s.run.rounds.as_slice());
            for round in rounds.unwrap_or_default().iter().skip(before) {
                cost.rounds += 1;
                cost.client_rounds += u64::from(round.clients);
            }
        }
        cost
    }

    /// What devices removed for a deletion so far; none when it asks nothing of them.
    pub fn removed_of(&self, d: &Deletion, _now: Now) -> Option<RemovedState> {
        d.task?;
        let (mut silent, mut unconsented) = (0, 0);
        for subject in self.index.erasing.iter().filter(|s| d.request.concerns(s)) {
            let Some(person) = self.people.get(subject) else {
                continue;
            };
            let Some(profile) = person.profile.as_ref().filter(|p| p.excluded()) else {
                continue;
            };
            let open = |e: &&crate::state::PendingErase| !e.confirmed && d.is_part(e);
            match profile.erase.as_ref().filter(open) {
                Some(e) if person.withholds(e.task) => unconsented += 1,
                Some(_) => silent += 1,
                None => {}
            }
        }
        Some(RemovedState {
            events: d.removed.events,
            answered: d.removed.answered,
            silent,
            unconsented,
        })
    }
}
