//! Releases, the error table, and the adapters of a query.

use std::sync::Arc;

use lethe_learn::apa::{ApaParams, ErrorRow};
use lethe_model::lora::Adapter;
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_proto::message::{ErrorReport, Refusal, ReleaseInfo, ServedAdapter};
use lethe_proto::packed::{Packed, PackedError};
use lethe_recipe::{Combination, Recipe};
use lethe_store::sealed::{Batch, KeyName};

use super::Core;
use super::updates::Whole;
use crate::CoordinatorError;
use crate::records::{Counters, ErrorRecord, ErrorRowRecord};

fn refuse(code: Refusal, message: impl Into<String>) -> CoordinatorError {
    CoordinatorError::refuse(code, message)
}

/// What clients start a round from, or score with: the device's part as it is sent, and the
/// coordinator's part.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) device: Packed,
    pub(crate) middle: Arc<Adapter>,
}

/// Both parts of an adapter.
pub(super) fn round_parts(
    recipe: &Recipe,
    whole: &Whole,
    theta: Vec<f32>,
) -> Result<Parts, CoordinatorError> {
    let adapter = Adapter::from_data(&whole.shape, theta)?;
    Ok(Parts {
        device: device_part(recipe, whole, &adapter)?,
        middle: Arc::new(adapter.select(|l| !whole.on_device(recipe, l))),
    })
}

/// The device part of an adapter on the wire: exact, or its difference from the initial one in few
/// bits, which the device computes for itself.
pub(super) fn device_part(
    recipe: &Recipe,
    whole: &Whole,
    adapter: &Adapter,
) -> Result<Packed, PackedError> {
    let mut edge = adapter.select(|l| whole.on_device(recipe, l));
    if recipe.adapters.lossy() {
        let initial = recipe.initial(edge.shape());
        edge.data
            .iter_mut()
            .zip(&initial.data)
            .for_each(|(v, i)| *v -= i);
    }
    Packed::encode(&edge.data, recipe.adapters)
}

/// Served adapters with a query's weights.
pub(crate) type Weighted = Vec<(Arc<Adapter>, f32)>;

/// Parameters, rows and number of shards of the error table.
pub(crate) type Table = (ApaParams, Arc<Vec<ErrorRow>>, usize);

impl Core {
    /// Publishes a release when every shard is trained and one of them is newer than what is
    /// served.
    pub(super) fn publish(&mut self) -> Result<(), CoordinatorError> {
        let trained = self.epoch.is_some() && self.runs.iter().all(|r| r.done(&self.recipe));
        if trained {
            let hashes: Vec<Digest> = self.runs.iter().map(super::Run::hash).collect();
            if self.counters.release == 0 || self.counters.served != hashes {
                let served = self
                    .runs
                    .iter()
                    .map(|r| {
                        Ok(Arc::new(Adapter::from_data(
                            &self.shape,
                            r.state.theta.clone(),
                        )?))
                    })
                    .collect::<Result<_, CoordinatorError>>()?;
                self.next_release(served)?;
            }
        }
        Ok(())
    }

    /// A new release of these adapters; clients that hold an older one are refused until they
    /// update. It is written first: until the write has succeeded, what was served is served.
    pub(super) fn next_release(
        &mut self,
        served: Vec<Arc<Adapter>>,
    ) -> Result<(), CoordinatorError> {
        let release = self.counters.release + 1;
        self.numbers.set(release)?;
        let record = self.release_record(&served)?;
        let counters = Counters {
            release,
            served: served.iter().map(|a| Digest::of_values(&a.data)).collect(),
            ..self.counters.clone()
        };
        let owner = KeyName::public();
        let batch = Batch::new().put(&owner, "", &counters)?;
        self.store
            .write(batch.put(&owner, &release.to_string(), &record)?)?;
        self.counters = counters;
        self.served = served;
        self.table = None;
        self.parts.clear();
        self.releases.insert(release, record);
        self.wake.everybody = true;
        tracing::info!(release, "released");
        Ok(())
    }

    /// The device parts of the current release; those whose digests are in `known` are only named.
    pub(crate) fn release(
        &mut self,
        subject: &SubjectId,
        have: Option<u64>,
        known: &[Digest],
    ) -> Result<ReleaseInfo, CoordinatorError> {
        self.may_serve()?;
        let release = self.counters.release;
        if release == 0 {
            return Err(refuse(
                Refusal::Busy,
                "no release yet: the first training has not finished",
            ));
        }
        let mut adapters = vec![];
        if have != Some(release) {
            for (k, part) in self.parts_for(subject)?.into_iter().enumerate() {
                let digest = part.digest();
                adapters.push(match known.get(k) == Some(&digest) {
                    true => ServedAdapter::Same(digest),
                    false => ServedAdapter::New(Packed::clone(&part)),
                });
            }
        }
        // Nothing is served while an accepted deletion is not executed: all of them are in this
        // release.
        let lineage = self.counters.deletion;
        Ok(ReleaseInfo {
            release,
            lineage,
            valid_s: self.config.release_hours * 3600,
            adapters,
        })
    }

    /// What is served to a subject: every shard's adapter, its own in place of its shard's in mode
    /// `personalized`.
    fn adapters_for(&self, subject: &SubjectId) -> Result<Vec<Arc<Adapter>>, CoordinatorError> {
        let mut served = self.served.clone();
        if let Some((k, own)) = self.own_adapter(subject)? {
            served[k] = own;
        }
        Ok(served)
    }

    /// The same as devices get it. What is the same for everybody is packed once per release.
    fn parts_for(&mut self, subject: &SubjectId) -> Result<Vec<Arc<Packed>>, CoordinatorError> {
        if self.parts.len() != self.served.len() {
            let pack = |a: &Arc<Adapter>| Ok(Arc::new(device_part(&self.recipe, &self.whole, a)?));
            self.parts = self
                .served
                .iter()
                .map(pack)
                .collect::<Result<_, PackedError>>()?;
        }
        let mut parts = self.parts.clone();
        if let Some((k, own)) = self.own_adapter(subject)? {
            parts[k] = Arc::new(device_part(&self.recipe, &self.whole, &own)?);
        }
        Ok(parts)
    }

    /// Whether this release is the one that may be served now.
    pub(crate) fn current(&self, release: u64) -> Result<(), CoordinatorError> {
        self.may_serve()?;
        if release != self.counters.release {
            let message = format!(
                "release {release} was withdrawn, the current one is {}: fetch it",
                self.counters.release
            );
            return Err(refuse(Refusal::StaleRelease, message));
        }
        Ok(())
    }

    /// Served adapters for a scoring pass with these weights; mixing them is left to the caller,
    /// outside the lock.
    pub(crate) fn scoring(
        &self,
        subject: &SubjectId,
        release: u64,
        omega: &[f32],
    ) -> Result<(Weighted, Combination), CoordinatorError> {
        if omega.is_empty() {
            return Ok((vec![], self.recipe.combine));
        }
        self.current(release)?;
        if omega.len() != self.served.len() || omega.iter().any(|w| !w.is_finite()) {
            return Err(refuse(
                Refusal::Invalid,
                format!("{} weights for {} shards", omega.len(), self.served.len()),
            ));
        }
        Ok((
            self.adapters_for(subject)?
                .into_iter()
                .zip(omega.iter().copied())
                .collect(),
            self.recipe.combine,
        ))
    }

    /// What a query's weights (APA) are computed from: rows whose errors are all measured on what
    /// is served.
    pub(crate) fn table(&mut self, embedding: &[f32]) -> Result<Table, CoordinatorError> {
        self.may_serve()?;
        if embedding.len() != self.hidden || embedding.iter().any(|v| !v.is_finite()) {
            let got = embedding.len();
            return Err(refuse(
                Refusal::Invalid,
                format!(
                    "an embedding of {got} finite values, expected {}",
                    self.hidden
                ),
            ));
        }
        let table = match self.table.take() {
            Some(t) => t,
            None => Arc::new(
                self.errors
                    .values()
                    .flat_map(|r| r.rows.iter().filter_map(|r| self.row(r)))
                    .collect(),
            ),
        };
        self.table = Some(table.clone());
        Ok((self.recipe.apa, table, self.served.len()))
    }

    fn row(&self, row: &ErrorRowRecord) -> Option<ErrorRow> {
        let errors = row
            .errors
            .iter()
            .zip(&self.counters.served)
            .map(|(e, served)| match e {
                Some((hash, e)) if hash == served => Some(*e),
                _ => None,
            });
        Some(ErrorRow {
            embedding: row.embedding.clone(),
            errors: errors.collect::<Option<_>>()?,
        })
    }

    /// Shards whose served adapter this subject has not measured; `None` when nothing is due.
    pub(super) fn validation_due(&self, subject: &SubjectId) -> Option<Vec<ShardId>> {
        let unused = self
            .subjects
            .get(subject)
            .is_some_and(|r| r.erase.is_some() || r.restricted);
        if unused || self.counters.release == 0 || self.runs.iter().any(|r| !r.done(&self.recipe)) {
            return None;
        }
        let record = self.errors.get(subject);
        let due = |k: &usize| match record {
            None => true,
            Some(r) => r
                .rows
                .iter()
                .any(|row| row.errors[*k].map(|(h, _)| h) != Some(self.counters.served[*k])),
        };
        let shards: Vec<ShardId> = (0..self.served.len())
            .filter(due)
            .map(|k| ShardId(k as u16))
            .collect();
        (!shards.is_empty()).then_some(shards)
    }

    /// Whether all subjects have measured what is served.
    pub(super) fn validated(&self) -> bool {
        self.counters.release > 0
            && self
                .subjects
                .keys()
                .all(|s| self.validation_due(s).is_none())
    }

    /// Takes a subject's measurements; they are the subject's data and go with it.
    pub(crate) fn take_errors(
        &mut self,
        subject: &SubjectId,
        release: u64,
        rows: Vec<ErrorReport>,
    ) -> Result<(), CoordinatorError> {
        if release == 0 || release != self.counters.release {
            return Err(refuse(
                Refusal::StaleRelease,
                "the release was withdrawn meanwhile: fetch the current one",
            ));
        }
        if self
            .subjects
            .get(subject)
            .is_some_and(|r| r.erase.is_some())
        {
            let message =
                "measured before the device erased what it was told to: ask for work again";
            return Err(refuse(Refusal::StaleRelease, message));
        }
        if self.subjects.get(subject).is_some_and(|r| r.restricted) {
            return Err(refuse(
                Refusal::Forbidden,
                "this person's data is restricted: it is kept and not used",
            ));
        }
        let most = self.recipe.validation;
        if rows.len() > most || !self.subjects.contains_key(subject) {
            let got = rows.len();
            let message = format!("{got} rows, at most {most}, from a subject that joined");
            return Err(refuse(Refusal::Invalid, message));
        }
        rows.iter().try_for_each(|r| self.check_row(r))?;
        let shards = self.served.len();
        let mut record = self.errors.get(subject).cloned().unwrap_or_default();
        for r in rows {
            let known = record.rows.iter().position(|x| x.sample == r.sample);
            let at = known.unwrap_or_else(|| {
                record.rows.push(ErrorRowRecord {
                    sample: r.sample,
                    embedding: vec![],
                    errors: vec![None; shards],
                });
                record.rows.len() - 1
            });
            let row = &mut record.rows[at];
            row.embedding = r.embedding;
            for (shard, e) in r.errors {
                row.errors[usize::from(shard.0)] =
                    Some((self.counters.served[usize::from(shard.0)], e));
            }
        }
        self.save_errors(subject, record)
    }

    /// Refuses a row that steers more than its share: the weights of everybody's queries are
    /// computed from all rows.
    fn check_row(&self, r: &ErrorReport) -> Result<(), CoordinatorError> {
        let (shards, hidden, most) = (self.served.len(), self.hidden, self.recipe.validation);
        let finite = r.embedding.iter().all(|v| v.is_finite());
        if !finite || r.embedding.len() != hidden || r.sample as usize >= most {
            let message = format!(
                "a row must hold {hidden} finite values and a sample below {most}, not {} and {}",
                r.embedding.len(),
                r.sample
            );
            return Err(refuse(Refusal::Invalid, message));
        }
        // The probability of the wrong answer; a value that is not a number is not in the range.
        let wrong =
            |(s, e): &&(ShardId, f32)| usize::from(s.0) >= shards || !(0.0..=1.0).contains(e);
        match r.errors.iter().find(wrong) {
            Some((shard, e)) => {
                let message =
                    format!("error {e} of {shard}: expected 0 to 1, of a shard below {shards}");
                Err(refuse(Refusal::Invalid, message))
            }
            None => Ok(()),
        }
    }

    fn save_errors(
        &mut self,
        subject: &SubjectId,
        record: ErrorRecord,
    ) -> Result<(), CoordinatorError> {
        let owner = KeyName::subject(subject.as_str());
        self.store
            .write(Batch::new().put(&owner, subject.as_str(), &record)?)?;
        self.errors.insert(subject.clone(), record);
        self.table = None;
        Ok(())
    }
}
