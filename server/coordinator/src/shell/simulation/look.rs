//! What must hold after every event, and what is dear only now and then.

use std::collections::BTreeMap;
use std::sync::Arc;

use lethe_ledger::{SliceId, State};
use lethe_proto::admin::DeletionPhase;
use lethe_proto::codec;
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::message::ServedPart;

use super::super::Shell;
use super::people;
use super::world::{Seen, Simulation};
use crate::content::{ErrorRows, TrainState};
use crate::fatal;
use crate::rounds::parts;
use crate::rows::together;

/// The first slice in which two states differ.
pub(super) fn difference(a: &State, b: &State) -> Option<SliceId> {
    let of = |state: &State| -> BTreeMap<SliceId, Option<Vec<u8>>> {
        let all = state.slices().into_iter();
        all.map(|id| (id.clone(), state.slice(&id))).collect()
    };
    let a = of(a);
    let b = of(b);
    let mut all = a.keys().chain(b.keys());
    all.find(|id| a.get(*id) != b.get(*id)).cloned()
}

impl Seen {
    /// An older folder came back: what it did not know yet is unknown again. Numbers of releases,
    /// deletions and the log are not.
    pub(super) fn forget(&mut self) {
        *self = Self {
            release: self.release,
            accepted: std::mem::take(&mut self.accepted),
            asked: std::mem::take(&mut self.asked),
            revoked: std::mem::take(&mut self.revoked),
            returned: std::mem::take(&mut self.returned),
            head: self.head,
            ..Self::default()
        };
    }
}

impl Simulation {
    /// A coordinator was opened.
    pub(super) fn opened(&mut self, shell: Arc<Shell>) {
        {
            let mut rules = fatal::lock(&shell.rules);
            rules.job_wait_ms = self.patience;
            shell.state_alone().set_rules(rules.clone());
        }
        self.let_jobs_end(&shell);
        shell.set_aside_space();
        self.surprised = false;
        self.before = None;
        let held = shell.evidence().held().unwrap();
        for accepted in held.journal {
            let known = shell.state().deletions().get(&accepted.id).cloned();
            let known = known.map(|d| (d.request, d.salt));
            let wanted = (accepted.request, accepted.salt);
            assert_eq!(known, Some(wanted), "{}: {}", self.story(), accepted.id);
        }
        for k in ["0", "1", "2-0", "2-1"] {
            let marker = self.data().join(format!("shards/{k}.quarantined"));
            assert!(
                !marker.exists(),
                "{}: {k} is lost again and again",
                self.story()
            );
        }
        self.shell = Some(shell);
    }

    pub(super) fn look(&mut self) {
        let Some(shell) = self.shell.clone() else {
            return;
        };
        {
            let state = shell.state();
            self.numbers(&state);
            self.counted(&state);
            self.accepted(&state);
            self.restrictions(&state);
            self.served(&state);
        }
        self.log(&shell);
        self.look_at_lists(&shell);
        if self.events.is_multiple_of(8) {
            self.given(&shell);
        }
        if self.events.is_multiple_of(16) {
            self.acknowledged(&shell.state());
        }
        if self.events.is_multiple_of(24) {
            self.caches(&shell);
        }
    }

    /// Nothing goes back.
    fn numbers(&mut self, state: &State) {
        let now = state.core().numbers;
        let before = self.seen.numbers;
        assert_eq!(
            now.max(before),
            now,
            "{}: {before:?} went back",
            self.story()
        );
        assert!(
            now.release >= self.seen.release,
            "{}: a release",
            self.story()
        );
        assert!(
            state.recalled() >= self.seen.recalled,
            "{}: a recall",
            self.story()
        );
        self.seen.numbers = now;
        self.seen.release = now.release;
        self.seen.recalled = state.recalled();
        let mut shards = 0;
        for (key, _, shard) in state.shards() {
            let run = &shard.run;
            let at = (run.generation, run.stage, run.round);
            let before = self.seen.runs.insert(key, at);
            let back = before.filter(|b| *b > at);
            assert_eq!(back, None, "{}: {key:?} went back to {at:?}", self.story());
            let replay = shard.replay.as_ref().and_then(|r| r.hashes);
            if let Some((replayed, live)) = replay {
                assert_eq!(replayed, live, "{}: a replay of {key:?}", self.story());
            }
            shards += 1;
        }
        let epochs = state.epochs().len();
        assert_eq!(shards, epochs * self.recipe.shards, "{}", self.story());
    }

    /// No update counts twice, or later than it may.
    fn counted(&mut self, state: &State) {
        let most = self.recipe.staleness.unwrap_or(0);
        for (key, stage) in state.stages() {
            let mut all: Vec<&(SubjectId, u16)> = vec![];
            for (round, counted) in &stage.rounds {
                all.extend(counted);
                for (subject, begun) in counted.iter().filter(|(_, begun)| begun != round) {
                    let late = usize::from(round.checked_sub(*begun).unwrap());
                    assert!(
                        late <= most,
                        "{}: {subject} is too late in {key:?}",
                        self.story()
                    );
                    let run = lethe_ledger::RunKey {
                        epoch: key.epoch,
                        shard: key.shard,
                        generation: key.generation,
                        stage: key.stage,
                        round: *begun,
                    };
                    if self.seen.late.insert((run, subject.clone())) {
                        self.count.one("late updates");
                    }
                }
            }
            let n = all.len();
            all.sort();
            all.dedup();
            assert_eq!(
                all.len(),
                n,
                "{}: {key:?} counts an update twice",
                self.story()
            );
        }
    }

    /// What was accepted stays so, once.
    fn accepted(&mut self, state: &State) {
        let mut by_reference: BTreeMap<&str, usize> = BTreeMap::new();
        for d in state.deletions().values() {
            *by_reference.entry(&d.reference).or_default() += 1;
        }
        for (reference, n) in by_reference {
            let asked = self.seen.asked.get(reference);
            assert_eq!(asked, Some(&n), "{}: {reference:?}", self.story());
        }
        for (id, request) in &self.seen.accepted {
            let known = state.deletions().get(id).map(|d| &d.request);
            assert_eq!(known, Some(request), "{}: deletion {id}", self.story());
        }
        for (id, d) in state.deletions() {
            if self.seen.accepted.contains_key(id) {
                continue;
            }
            self.seen.accepted.insert(*id, d.request.clone());
        }
        for d in state.deletions().values() {
            if let DeletionRequest::Erase { subject } = &d.request
                && d.phase != DeletionPhase::Planned
                && !self.seen.returned.contains(subject)
            {
                let back = state.people().contains_key(subject);
                assert!(!back, "{}: {subject} is back", self.story());
            }
        }
        let moves = state.people().values().any(|p| p.moving.is_some());
        self.count.add("moves", u64::from(moves));
    }

    fn restrictions(&mut self, state: &State) {
        if !state.unexecuted() {
            for (id, d) in state.deletions() {
                if let DeletionRequest::Restrict { subject } = &d.request
                    && state.lifted_at(*id).is_none()
                    && let Some(profile) = state.profile(subject)
                    && !self.seen.returned.contains(subject)
                {
                    assert!(profile.restricted, "{}: {subject} is in use", self.story());
                }
            }
            // Who was erased may come back.
            let known = |s: &SubjectId| state.people().contains_key(s);
            let lifted = |s: &SubjectId| people::is_readmitted(state, s);
            self.seen.restricted.retain(|s| known(s) && !lifted(s));
        }
        for (subject, person) in state.people() {
            let restricted = person.profile.as_ref().is_some_and(|p| p.restricted);
            let before = self.seen.restricted.contains(subject);
            assert!(
                !before || restricted || person.profile.is_none() || state.unexecuted(),
                "{}: {subject} is not restricted any more",
                self.story()
            );
            if restricted {
                self.seen.restricted.insert(subject.clone());
            }
        }
    }

    /// What may be fetched is recorded, and not recalled.
    fn served(&self, state: &State) {
        let Some((no, release)) = state
            .current_release()
            .filter(|_| state.may_serve().is_ok())
        else {
            return;
        };
        assert!(
            !release.recalled,
            "{}: {no} is recalled and served",
            self.story()
        );
        let hashes = state.served_hashes();
        assert_eq!(release.digests(), hashes, "{}: release {no}", self.story());
    }

    /// What devices are given is in the log, word for word, and they can check that.
    fn given(&mut self, shell: &Shell) {
        let key = self.common.log_key.clone();
        if let Ok(served) = shell.served() {
            let no = served.release;
            let proven = shell.proven(ServedPart::Release(no), 0);
            let proven = proven.unwrap_or_else(|e| panic!("{}: {no}: {e}", self.story()));
            let stated = proven.release(&key, None);
            let (stated, _) = stated.unwrap_or_else(|e| panic!("{}: {e}", self.story()));
            let parts = served.parts.iter().map(|p| p.device.digest().hex());
            assert!(parts.eq(stated.parts), "{}: release {no}", self.story());
            let adapters = shell.state().served_hashes();
            let adapters = adapters.iter().map(Digest::hex);
            assert!(adapters.eq(stated.adapters), "{}: {no}", self.story());
            self.count.one("releases in the log");
        }
        let Some(lists) = &shell.lists else {
            return;
        };
        if let Some(number) = lists.state(shell).served {
            let proven = shell.proven(ServedPart::Snapshot(number), 0);
            let proven = proven.unwrap_or_else(|e| panic!("{}: {number}: {e}", self.story()));
            let named = proven.snapshot(&key, None);
            let (named, _) = named.unwrap_or_else(|e| panic!("{}: {e}", self.story()));
            let digest = lists.newest().map(|s| s.digest.hex());
            assert_eq!(Some(named.sha256), digest, "{}", self.story());
            self.count.one("snapshots in the log");
        }
    }

    /// The log goes on from what it was, and holds what the state says it holds.
    fn log(&mut self, shell: &Shell) {
        let evidence = shell.evidence();
        let folder = self.config.evidence();
        let head = evidence.head();
        if head != self.seen.head {
            let goes_on = evidence.check(&self.seen.head, &folder);
            assert!(goes_on.is_ok(), "{}: the log: {goes_on:?}", self.story());
            self.seen.head = head;
        }
        let known = shell.state().core().log;
        let there = evidence.check(&known, &folder);
        assert!(there.is_ok(), "{}: the log: {there:?}", self.story());
    }

    /// Every update that was acknowledged is there, or has counted.
    pub(super) fn acknowledged(&self, state: &State) {
        if state.core().executing.is_some() || !state.core().lost.is_empty() {
            return;
        }
        let masks = self.recipe.grid().is_some();
        for (run, subject) in &self.seen.acknowledged {
            if state.ended(run.epoch) {
                continue;
            }
            let shard = state.shard(run.shard_key());
            let live = shard.is_some_and(|s| {
                let of = s.run.stages.get(&run.stage);
                let generation = of.map_or(s.run.generation, |x| x.generation);
                generation == run.generation && s.run.stage >= run.stage
            });
            if !live {
                continue;
            }
            let contributor = (subject.clone(), run.round);
            let there = state.stage(&run.stage_key()).is_some_and(|s| {
                let counted = s.rounds.values().any(|c| c.contains(&contributor));
                // The tally does not sum everybody's masks.
                let left_out = masks && s.rounds.contains_key(&run.round);
                counted || left_out || s.stored.contains_key(&contributor)
            });
            assert!(
                there,
                "{}: {subject}'s update in {run:?} is lost",
                self.story()
            );
        }
    }

    /// Decoded copies are those of what is stored.
    pub(super) fn caches(&mut self, shell: &Shell) {
        let Ok(served) = shell.served() else {
            return;
        };
        let (epoch, values) = {
            let state = shell.state();
            let (_, release) = state.current_release().unwrap();
            let values: Vec<_> = release.shards.iter().map(|s| s.value.clone()).collect();
            (release.epoch, values)
        };
        let kit = shell.kit(epoch).unwrap();
        for (k, at) in values.into_iter().enumerate() {
            let theta = match at {
                None => kit.initial.theta.clone(),
                Some(at) => {
                    // While the disk is dead nothing can be compared.
                    let Ok(content) = shell.values().get(&at) else {
                        return;
                    };
                    let gone = || panic!("{}: {at:?} is served, and gone", self.story());
                    let content = content.unwrap_or_else(gone);
                    let state: TrainState = codec::from_bytes(&content, content.len()).unwrap();
                    state.theta
                }
            };
            let hash = shell.state().served_hashes()[k];
            assert_eq!(
                Digest::of_values(&theta),
                hash,
                "{}: shard {k}",
                self.story()
            );
            let made = parts(&kit.recipe, &kit.whole, theta).unwrap();
            let given = &served.parts[k];
            let same = given.device == made.device && given.middle.data == made.middle.data;
            assert!(
                same,
                "{}: another adapter of shard {k} is served",
                self.story()
            );
        }
        self.table(shell);
    }

    fn table(&mut self, shell: &Shell) {
        let Ok(table) = shell.table() else {
            return;
        };
        let measured = shell.state().measured();
        let mut rows = vec![];
        for person in measured {
            let mut shards: Vec<ErrorRows> = vec![];
            for at in &person.shards {
                let Ok(Some(content)) = shell.values().get(at) else {
                    return;
                };
                shards.push(codec::from_bytes(&content, content.len()).unwrap());
            }
            rows.extend(together(&person.samples, &shards));
        }
        self.count.add("errors", rows.len() as u64);
        assert_eq!(
            *table,
            rows,
            "{}: the error table is an old one",
            self.story()
        );
    }
}
