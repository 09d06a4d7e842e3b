//! What is read of epochs: by devices, by operators.

use std::collections::BTreeMap;

use lethe_plan::Plan;
use lethe_proto::epochs::{EpochCost, EpochPhase, EpochState, EpochStates, Lacks, TrainsFrom};
use lethe_proto::ids::{Digest, SubjectId};

use crate::ids::{EpochNo, Now};
use crate::state::{Epoch, State};
use crate::terms::Terms;
use crate::views::Work;

/// Epochs that have ended and are still shown.
const SHOWN: usize = 12;

impl State {
    /// From when on a person's data trains adapters.
    pub fn trains_from(&self, subject: &SubjectId) -> TrainsFrom {
        let next = TrainsFrom::NextEpoch {
            at: self.next_roll().map(|ms| ms / 1000),
        };
        let Some(profile) = self.profile(subject) else {
            return next;
        };
        if profile.restricted {
            return TrainsFrom::Restricted;
        }
        let newest = self.joining();
        let trained = newest.filter(|no| profile.trained(*no).is_some());
        let begun = |no: &EpochNo| self.epochs.get(no).is_some_and(|e| e.partition.is_some());
        if let Some(epoch) = trained.filter(|no| !begun(no)) {
            // Nobody waits for it who is trained on already.
            let serving = self
                .core
                .serving
                .filter(|no| profile.trained(*no).is_some());
            return serving.map_or(
                TrainsFrom::WithEpoch {
                    epoch,
                    at_latest: self.waits_until(epoch),
                },
                |epoch| TrainsFrom::Now { epoch },
            );
        }
        let trained = trained.or_else(|| {
            let serving = self.core.serving?;
            profile.trained(serving).map(|_| serving)
        });
        if let Some(epoch) = trained {
            return TrainsFrom::Now { epoch };
        }
        let place = newest.and_then(|no| profile.places.get(&no));
        match place {
            Some(place) if !place.excluded && place.samples == 0 => TrainsFrom::NoSamples,
            _ => next,
        }
    }

    /// Whether a client that takes all epochs for one does this work as others would: it has the
    /// data that it joined with last, and fits another epoch only where the person joined that one
    /// with the same.
    pub fn fits_older(&self, subject: &SubjectId, work: &Work) -> bool {
        let epoch = match work {
            Work::Erase { .. } => return true,
            Work::Train { run, .. } => run.epoch,
            Work::Validate { release, .. } => match self.releases.get(release) {
                Some(release) => release.epoch,
                None => return true,
            },
        };
        let Some(profile) = self.profile(subject) else {
            return true;
        };
        let last = profile.places.values().next_back();
        let own = profile.places.get(&epoch);
        own.map(|p| p.commitment) == last.map(|p| p.commitment)
    }

    /// When an epoch that follows another begins at the latest, in Unix seconds.
    fn waits_until(&self, no: EpochNo) -> Option<u64> {
        self.core.serving?;
        self.joins_until(no).map(|ms| ms / 1000)
    }

    /// All epochs that are alive, and the newest that are not.
    pub fn epoch_states(&self) -> EpochStates {
        let ended = self.epochs.keys().filter(|no| self.ended(**no)).count();
        let mut skip = ended.saturating_sub(SHOWN);
        let mut epochs = vec![];
        for (no, epoch) in &self.epochs {
            if skip > 0 && self.ended(*no) {
                skip -= 1;
                continue;
            }
            epochs.push(self.epoch_state(*no, epoch));
        }
        let (newcomers, people) = self.newcomers();
        EpochStates {
            epochs,
            newcomers: newcomers as u64,
            people: people as u64,
            next: self.next_roll().map(|ms| ms / 1000),
            new_people: self.rules.roll.new_people,
        }
    }

    fn epoch_state(&self, no: EpochNo, epoch: &Epoch) -> EpochState {
        let life = self.life(no).cloned().unwrap_or_default();
        let seconds = |ms: Option<u64>| ms.map(|ms| ms / 1000);
        let phase = if life.dropped.is_some() {
            EpochPhase::Dropped
        } else if life.retired.is_some() {
            EpochPhase::Retired
        } else if self.core.serving == Some(no) {
            EpochPhase::Serving
        } else if self.core.serving.is_some_and(|serving| serving > no) {
            EpochPhase::Retiring
        } else if epoch.partition.is_some() {
            EpochPhase::Training
        } else {
            EpochPhase::Joining
        };
        let waits = phase == EpochPhase::Joining && self.core.serving.is_some();
        let progress = epoch.shards.iter().map(|s| s.run.progress(&epoch.terms));
        let rounds = progress.fold((0, 0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
        let (joined, trains) = self.joined_in(no);
        EpochState {
            no,
            phase,
            recipe: epoch.recipe_digest,
            model: epoch.model,
            founded: life.founded / 1000,
            began: seconds(life.began),
            served: seconds(self.served_since(no)),
            ended: seconds(life.retired.or(life.dropped)),
            joined: joined as u64,
            trains: trains as u64,
            enough: if waits { self.enough() as u64 } else { 0 },
            joins_until: seconds(self.joins_until(no)).filter(|_| waits),
            rounds,
            lacks: self.lacks_of(no),
        }
    }

    fn lacks_of(&self, no: EpochNo) -> Vec<(Lacks, u64)> {
        let known: Option<&BTreeMap<Digest, Lacks>> = self.volatile.lacks.get(&no);
        let mut counts: BTreeMap<Lacks, u64> = BTreeMap::new();
        for lacks in known.into_iter().flat_map(BTreeMap::values) {
            *counts.entry(*lacks).or_default() += 1;
        }
        counts.into_iter().collect()
    }

    /// Plans for people, each under its epoch where there are several.
    pub fn plans_in_words(&self, plans: &[(EpochNo, Plan)]) -> String {
        let text = |(no, plan): &(EpochNo, Plan)| match plans.len() {
            1 => plan.to_string(),
            _ => format!("{no}:\n{plan}"),
        };
        let texts: Vec<String> = plans.iter().map(text).collect();
        texts.join("\n\n")
    }

    /// What an epoch costs until it is served, at most.
    pub fn cost_of(&self, terms: &Terms) -> EpochCost {
        let rounds = u64::from(terms.shards) * u64::from(terms.slices) * u64::from(terms.rounds);
        let client_rounds = rounds * u64::from(terms.cohort);
        let rates = self.core.rates;
        let per = |total: u64, of: u64| (of > 0).then(|| total as f64 / of as f64);
        let times = |one: Option<f64>, n: u64| one.map(|one| (one * n as f64) as u64);
        EpochCost {
            rounds,
            client_rounds,
            samples: client_rounds * u64::from(terms.samples),
            bytes: times(per(rates.bytes, rates.client_rounds), client_rounds),
            seconds: times(
                per(rates.busy_ms, rates.client_rounds * 1000),
                client_rounds,
            ),
        }
    }

    /// The time as operators read it, in Unix seconds, at which an epoch founded now begins at the
    /// latest, or is given up.
    pub fn joins_until_from(&self, now: Now) -> u64 {
        now.unix_ms.saturating_add(self.rules.roll.join_ms) / 1000
    }
}
