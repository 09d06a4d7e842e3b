//! The transparency log: what is entered, and how it is published.

use lethe_proto::ids::{ShardId, SubjectId};
use lethe_proto::limits::MAX_SMALL;
use lethe_receipt::hex::hex;
use lethe_receipt::records::{Records, record_key};
use lethe_receipt::statement::{Kind, TRAINING_VERSION, Training, canonical, entry};
use lethe_receipt::tiles::files;
use lethe_store::sealed::{Batch, KeyName};

use super::Core;
use super::evidence::BUILD;
use crate::CoordinatorError;
use crate::records::{LogHead, RecordBefore, SubjectRecord, TrainingRecord};

impl Core {
    /// Enters a statement, unless a crash kept its caller from knowing that it is there. Returns
    /// its index.
    pub(super) fn enter(
        &mut self,
        kind: Kind,
        salt: &[u8; 32],
        statement: &[u8],
    ) -> Result<u64, CoordinatorError> {
        self.enter_entry(&entry(kind, salt, statement))
    }

    /// The same with the entry's bytes.
    pub(super) fn enter_entry(&mut self, bytes: &[u8]) -> Result<u64, CoordinatorError> {
        if let Some(i) = self.log.entries().iter().rposition(|e| *e == bytes) {
            self.remember_log()?;
            return Ok(i as u64);
        }
        let index = self.log.append(bytes)?;
        self.tree.push(bytes);
        self.remember_log()?;
        if let Err(e) = self.publish_log(index) {
            tracing::error!(
                "the log's files for auditors are behind: {e}; the next entry or start writes \
                 them again"
            );
        }
        Ok(index)
    }

    /// Public key of the log (verifier key text).
    pub(crate) fn log_key(&self) -> String {
        self.signer.verifier().text()
    }

    /// Writes into the data folder how far the log is.
    fn remember_log(&mut self) -> Result<(), CoordinatorError> {
        let now = LogHead {
            entries: self.tree.len(),
            root: self.tree.root(),
        };
        if self.store.get::<LogHead>("")? != Some(now) {
            self.store
                .write(Batch::new().put(&KeyName::public(), "", &now)?)?;
        }
        Ok(())
    }

    /// Refuses an evidence folder that does not continue the log that the data folder knows: an
    /// older copy of it, or another's. A data folder that is older than the evidence (a restored
    /// backup) is fine.
    pub(super) fn check_log(&self) -> Result<(), CoordinatorError> {
        let Some(known) = self.store.get::<LogHead>("")? else {
            return Ok(());
        };
        let (folder, has, knows) = (self.config.evidence(), self.tree.len(), known.entries);
        if has < knows {
            return Err(CoordinatorError::Evidence { folder, has, knows });
        }
        if self.tree.first(knows).root() != known.root {
            return Err(CoordinatorError::OtherLog { folder, knows });
        }
        Ok(())
    }

    /// The signed head of the log.
    pub(super) fn checkpoint(&self) -> String {
        self.signer.checkpoint(self.tree.len(), &self.tree.root())
    }

    /// Writes the files that changed since the log had `from` entries, the head last. They are for
    /// anybody to copy. Then the last tile's older files go, but for the newest one: whoever read
    /// the head before this one finds what that names.
    pub(super) fn publish_log(&self, from: u64) -> std::io::Result<()> {
        let folder = self.config.evidence().join("tiles");
        // One tile back: the last publication may have failed.
        let files = files(self.log.entries(), from.saturating_sub(256)).unwrap_or_default();
        for (path, bytes) in &files {
            replace(&folder.join(path), bytes)?;
        }
        replace(&folder.join("checkpoint"), self.checkpoint().as_bytes())?;
        for (path, _) in &files {
            remove_older(&folder, path)?;
        }
        Ok(())
    }

    /// Entries from `from` on that fit into a message, and the head.
    pub(super) fn log_page(&self, from: u64) -> (Vec<Vec<u8>>, String) {
        let from = usize::try_from(from)
            .unwrap_or(usize::MAX)
            .min(self.log.entries().len());
        let mut room = MAX_SMALL / 2;
        let fits = |e: &&Vec<u8>| {
            room = room.saturating_sub(e.len() + 8);
            room > 0
        };
        (
            self.log.entries()[from..]
                .iter()
                .take_while(fits)
                .cloned()
                .collect(),
            self.checkpoint(),
        )
    }

    /// What a shard is trained on: everybody in it whose data counts. Who has yet to erase is not
    /// in it; the shard waits.
    fn records_of(&self, shard: ShardId) -> Records {
        let counts = |(_, r): &(&SubjectId, &SubjectRecord)| r.erase.is_none();
        let record = |(s, r): (&SubjectId, &SubjectRecord)| {
            (record_key(&r.salt, s.as_str()), r.commitment.0)
        };
        Records::new(self.members(shard).filter(counts).map(record))
    }

    /// Enters into the log what a shard is going to be trained on, if the log does not say so yet.
    pub(super) fn log_training(&mut self, shard: ShardId) -> Result<(), CoordinatorError> {
        if self.epoch.is_none() || !self.dirty.contains(&shard) {
            return Ok(());
        }
        let records = self.records_of(shard);
        let training = Training {
            version: TRAINING_VERSION,
            shard: shard.0,
            generation: self.runs[usize::from(shard.0)].generation,
            root: hex(&records.root()),
            count: records.count(),
            recipe: self.recipe_digest.hex(),
            seed: self.recipe.seed,
            base_model: self.model.hex(),
            build: BUILD.into(),
        };
        let id = shard.0.to_string();
        if self
            .store
            .get::<TrainingRecord>(&id)?
            .is_none_or(|known| known.training != training)
        {
            let salt = lethe_seal::random()?;
            let index = self.enter(Kind::Training, &salt, &canonical(&training))?;
            let record = TrainingRecord {
                training,
                salt,
                index,
            };
            self.store
                .write(Batch::new().put(&KeyName::public(), &id, &record)?)?;
        }
        self.dirty.remove(&shard);
        Ok(())
    }

    /// The same for every shard that has changed.
    pub(super) fn log_trainings(&mut self) -> Result<(), CoordinatorError> {
        let changed: Vec<ShardId> = self.dirty.iter().copied().collect();
        changed.into_iter().try_for_each(|s| self.log_training(s))
    }

    /// What the log says that a shard is trained on.
    pub(super) fn logged_training(
        &self,
        shard: ShardId,
    ) -> Result<Option<TrainingRecord>, CoordinatorError> {
        Ok(self.store.get::<TrainingRecord>(&shard.0.to_string())?)
    }

    /// The members of a shard, or their data, have changed.
    pub(super) fn touched(&mut self, shard: Option<ShardId>) {
        self.dirty.extend(shard);
    }

    /// Proof that the log says a subject's record was trained on. While an earlier deletion about
    /// the same person is not finished, it is that deletion's.
    pub(super) fn record_before(&self, subject: &SubjectId) -> Option<RecordBefore> {
        let unfinished = self.deletions.values().rev().find(|d| {
            d.phase != lethe_proto::admin::DeletionPhase::Done
                && d.request.subject() == Some(subject)
                && d.proof.is_some()
        });
        if let Some(d) = unfinished {
            return d.proof.clone();
        }
        let record = self.subjects.get(subject)?;
        let shard = record.shard?;
        let training = self.logged_training(shard).ok().flatten()?;
        let records = self.records_of(shard);
        // Nothing was said of what the shard holds now: no stage has been trained on it.
        (hex(&records.root()) == training.training.root).then_some(())?;
        let member = records.member(&record_key(&record.salt, subject.as_str()))?;
        Some(RecordBefore {
            salt: record.salt,
            training,
            member,
        })
    }

    /// The tree of records that a logged statement is about, if it is still what the shard holds.
    pub(super) fn records_now(&self, training: &TrainingRecord) -> Option<Records> {
        let records = self.records_of(ShardId(training.training.shard));
        (hex(&records.root()) == training.training.root).then_some(records)
    }
}

/// Key of a subject's record.
pub(super) fn key_of(salt: &[u8; 32], subject: &SubjectId) -> [u8; 32] {
    record_key(salt, subject.as_str())
}

/// Writes a file so that a reader finds the old or the new content, nothing between.
fn replace(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let next = path.with_extension("next");
    std::fs::write(&next, bytes)?;
    std::fs::rename(next, path)
}

/// Removes files of the same tile with fewer entries, but for the one with the most of those. A
/// whole tile that is not the last of its level needs none of them.
fn remove_older(folder: &std::path::Path, path: &str) -> std::io::Result<()> {
    let (tile, width) = match path.split_once(".p/") {
        Some((tile, width)) => (tile, width.parse().unwrap_or(usize::MAX)),
        None => (path, usize::MAX),
    };
    let parts = folder.join(format!("{tile}.p"));
    let names = match std::fs::read_dir(&parts) {
        Ok(names) => names,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let widths = names.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<usize>().ok());
    let mut older: Vec<usize> = widths.filter(|w| *w < width).collect();
    older.sort_unstable();
    older.pop();
    for w in older {
        std::fs::remove_file(parts.join(w.to_string()))?;
    }
    Ok(())
}
