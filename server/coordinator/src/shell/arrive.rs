//! What many devices bring at the same time is written together.

use std::collections::{BTreeMap, BTreeSet};

use lethe_ledger::{Command, StageKey, StoredUpdate};
use lethe_proto::codec;
use lethe_proto::ids::SubjectId;
use lethe_proto::message::Refusal;

use super::Shell;
use crate::CoordinatorError;
use crate::arrivals::{Answer, Arrived, Fetch};
use crate::rounds::internal;

impl Shell {
    /// Stores updates that arrived together, and answers each.
    pub(crate) fn take_updates(&self, arrived: Vec<Arrived>) {
        let mut stages: BTreeMap<StageKey, Vec<Arrived>> = BTreeMap::new();
        for a in arrived {
            stages.entry(a.run.stage_key()).or_default().push(a);
        }
        for (stage, arrived) in stages {
            self.store_updates(stage, arrived);
        }
    }

    /// Writes down what devices fetched together, and answers each.
    pub(crate) fn take_fetches(&self, fetched: Vec<Fetch>) {
        let mut releases: BTreeMap<u64, Vec<Fetch>> = BTreeMap::new();
        for f in fetched {
            releases.entry(f.release).or_default().push(f);
        }
        for (release, fetched) in releases {
            let command = Command::Fetched {
                devices: fetched.iter().map(|f| f.certificate).collect(),
                release,
            };
            let written = self.execute(command, vec![]);
            self.say_if_failed("write that a release was fetched", &written);
            answer_all(&written, fetched.into_iter().map(|f| f.answer));
        }
    }

    fn say_if_failed<T>(&self, what: &'static str, done: &Result<T, CoordinatorError>) {
        if let Err(e) = done
            && !e.is_request()
        {
            self.complain(what, e);
        }
    }

    fn store_updates(&self, stage: StageKey, arrived: Vec<Arrived>) {
        let now = self.clock.now();
        let mut known: BTreeSet<(u16, SubjectId)> = BTreeSet::new();
        let mut taken = vec![];
        for a in arrived {
            let expected = self.state().expects(a.run.wire(), &a.subject, now);
            let answer = match expected {
                Ok(()) if known.insert((a.run.round, a.subject.clone())) => {
                    taken.push(a);
                    continue;
                }
                // A client may have sent it twice, and both came together.
                Ok(()) => {
                    CoordinatorError::refuse(Refusal::Busy, "this update is being stored already")
                }
                Err(e) => e.into(),
            };
            // Whoever asked may be gone.
            let _ = a.answer.send(Err(answer));
        }
        if taken.is_empty() {
            return;
        }
        let stored = self.store_together(stage, &taken);
        if stored.as_ref().is_err_and(CoordinatorError::is_request) && taken.len() > 1 {
            // One of them may have lost its round meanwhile: each by itself.
            for a in taken {
                let one = std::slice::from_ref(&a);
                let stored = self.store_together(stage, one);
                let _ = a.answer.send(stored);
            }
            return;
        }
        self.say_if_failed("store updates", &stored);
        answer_all(&stored, taken.into_iter().map(|a| a.answer));
    }

    fn store_together(&self, stage: StageKey, taken: &[Arrived]) -> Result<(), CoordinatorError> {
        let seen = self.caches.seen();
        let secret = self.values().stage_secret(&stage)?;
        let mut values = vec![];
        let mut updates = vec![];
        for a in taken {
            let content = codec::to_bytes(&a.update).map_err(|e| internal(&e))?;
            let value = secret.seal_update(&a.subject, a.run.round, &content)?;
            updates.push(StoredUpdate {
                subject: a.subject.clone(),
                begun: a.run.round,
                value: value.at.clone(),
            });
            values.push(value);
        }
        // They are there when the round that counts them is added up; else they are read again.
        for a in taken {
            let of = (a.subject.clone(), a.run.round);
            let contribution = a.contribution.clone();
            self.caches
                .keep_contribution(&a.run, of, contribution, seen);
        }
        let stored = self.execute(Command::StoreUpdates { stage, updates }, values);
        if stored.is_err() {
            for a in taken {
                let of = (a.subject.clone(), a.run.round);
                self.caches.drop_contribution(&a.run, &of);
            }
        }
        stored.map(drop)
    }
}

/// Tells all who wait what became of what they have brought together. Some may be gone.
fn answer_all<T>(done: &Result<T, CoordinatorError>, waiting: impl Iterator<Item = Answer>) {
    for to in waiting {
        let answer = match done {
            Ok(_) => Ok(()),
            Err(e) => Err(CoordinatorError::refuse(e.code(), e.to_string())),
        };
        let _ = to.send(answer);
    }
}
