//! What is too large for the state: how it is named, sealed and read.
//!
//! An id is never used twice: it says where the value belongs, and has the beginning of its digest
//! in it, so that whoever deletes what nothing refers to any longer never meets another value.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lethe_ledger::{CatalogueVersion, EpochNo, Owner, RunKey, ShardKey, StageKey, Table, ValueRef};
use lethe_proto::ids::{Digest, ShardId, SubjectId};
use lethe_store::sealed::{Batch, SealedStore};
use lethe_store::{Persisted, StoreError};

use zeroize::Zeroizing;

use super::tables::{
    CatalogueValue, CheckpointValue, ErrorRowsValue, Missing, PersonalValue, ReceiptValue,
    RunStateValue, StageUpdateKey, UpdateValue, ValueRow, key_of, put, stage_id,
};
use crate::CoordinatorError;

/// A value that is written together with the events that name it.
#[derive(Clone, Debug)]
pub(crate) struct NewValue {
    /// Its name.
    pub(crate) at: ValueRef,
    /// Whose key seals it; of an update: the person's, and the stage's is in its name.
    pub(crate) owner: Owner,
    /// What it is, or an update that is sealed under its stage's key already.
    content: Vec<u8>,
    sealed: bool,
}

impl NewValue {
    /// Not sealed yet.
    pub(crate) fn new(at: ValueRef, owner: Owner, content: Vec<u8>) -> Self {
        Self {
            at,
            owner,
            content,
            sealed: false,
        }
    }
}

fn named(table: Table, id: &str, content: &[u8]) -> ValueRef {
    let digest = Digest::of(&[content]);
    let id = format!("{id}/{}", &digest.hex()[..16]);
    ValueRef { table, id, digest }
}

/// The update that a person began in a round of a stage.
pub(crate) fn update_ref(
    stage: &StageKey,
    subject: &SubjectId,
    begun: u16,
    content: &[u8],
) -> ValueRef {
    let mut at = named(
        Table::Update,
        &format!("{}/{begun}", stage_id(stage)),
        content,
    );
    // Last: it may have anything in it.
    at.id = format!("{}/{subject}", at.id);
    at
}

/// The stage that an update's id names.
fn stage_of_update(id: &str) -> Option<StageKey> {
    let mut parts = id.splitn(5, '/');
    Some(StageKey {
        epoch: EpochNo(parts.next()?.parse().ok()?),
        shard: ShardId(parts.next()?.parse().ok()?),
        generation: parts.next()?.parse().ok()?,
        stage: parts.next()?.parse().ok()?,
    })
}

/// The state of a run that a round of a stage has left, before the stage's end.
pub(crate) fn run_state_ref(run: &RunKey, content: &[u8]) -> ValueRef {
    let id = format!("{}/{}", stage_id(&run.stage_key()), run.round);
    named(Table::RunState, &id, content)
}

/// The state of a run at the end of a stage.
pub(crate) fn checkpoint_ref(stage: &StageKey, content: &[u8]) -> ValueRef {
    named(Table::Checkpoint, &stage_id(stage), content)
}

/// A person's own parameters, as a round has left them.
pub(crate) fn personal_ref(run: &RunKey, subject: &SubjectId, content: &[u8]) -> ValueRef {
    let id = format!("{}/{}", stage_id(&run.stage_key()), run.round);
    let mut at = named(Table::Personal, &id, content);
    at.id = format!("{}/{subject}", at.id);
    at
}

/// What a person has measured on a shard. `sequence`: any number that grows.
pub(crate) fn error_rows_ref(
    shard: &ShardKey,
    subject: &SubjectId,
    sequence: u64,
    content: &[u8],
) -> ValueRef {
    let id = format!("{}/{}/{sequence}", shard.epoch.0, shard.shard.0);
    let mut at = named(Table::ErrorRows, &id, content);
    at.id = format!("{}/{subject}", at.id);
    at
}

/// The receipt of a deletion.
pub(crate) fn receipt_ref(deletion: u64, content: &[u8]) -> ValueRef {
    named(Table::Receipt, &deletion.to_string(), content)
}

/// What a version of the catalogue changed.
pub(crate) fn catalogue_ref(version: CatalogueVersion, content: &[u8]) -> ValueRef {
    named(Table::Catalogue, &version.0.to_string(), content)
}

/// Keys of updates that this process has made or read. There is one of a stage: whoever seals first
/// decides which.
#[derive(Default)]
pub(super) struct Secrets(Mutex<BTreeMap<StageKey, UpdateKey>>);

/// In one place, which is overwritten when the last holder lets go of it.
type UpdateKey = Arc<Zeroizing<[u8; 32]>>;

impl Secrets {
    fn known(&self) -> MutexGuard<'_, BTreeMap<StageKey, UpdateKey>> {
        // Each change is one step: a panic leaves nothing half-done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn forget(&self, stage: &StageKey) {
        self.known().remove(stage);
    }
}

/// The key of a stage's updates: with it, they can be sealed without any lock.
#[derive(Clone)]
pub(crate) struct StageSecret {
    stage: StageKey,
    secret: UpdateKey,
}

impl StageSecret {
    /// Seals a person's update.
    pub(crate) fn seal_update(
        &self,
        subject: &SubjectId,
        begun: u16,
        content: &[u8],
    ) -> Result<NewValue, CoordinatorError> {
        let at = update_ref(&self.stage, subject, begun, content);
        let content = lethe_seal::seal(&self.secret, at.id.as_bytes(), content)?;
        Ok(NewValue {
            at,
            owner: Owner::Person(subject.clone()),
            content,
            sealed: true,
        })
    }
}

/// Reads values; needs no lock.
#[derive(Clone)]
pub(crate) struct Values {
    pub(super) store: Arc<SealedStore>,
    pub(super) secrets: Arc<Secrets>,
}

impl Values {
    pub(super) fn new(store: Arc<SealedStore>) -> Self {
        Self {
            store,
            secrets: Arc::default(),
        }
    }

    /// Removes values that nothing refers to any longer. Their ids never come back, so it may be
    /// done at any time; what a crash leaves goes when the folder is opened.
    pub(crate) fn delete(&self, refs: &[ValueRef]) -> Result<(), CoordinatorError> {
        let all = refs.iter();
        let batch = all.fold(Batch::new(), |b, at| delete_value(b, at.table, &at.id));
        if batch.is_empty() {
            return Ok(());
        }
        Ok(self.store.write(batch)?)
    }

    /// A value, if it is there and its keys are.
    pub(crate) fn get(&self, at: &ValueRef) -> Result<Option<Vec<u8>>, CoordinatorError> {
        let found = match at.table {
            Table::Update => self.update(&at.id)?,
            Table::RunState => self.read::<RunStateValue>(&at.id)?,
            Table::Checkpoint => self.read::<CheckpointValue>(&at.id)?,
            Table::Personal => self.read::<PersonalValue>(&at.id)?,
            Table::ErrorRows => self.read::<ErrorRowsValue>(&at.id)?,
            Table::Receipt => self.read::<ReceiptValue>(&at.id)?,
            Table::Catalogue => self.read::<CatalogueValue>(&at.id)?,
        };
        match found {
            Some(content) if Digest::of(&[&content]) != at.digest => {
                let name = format!("values ({:?})", at.table);
                let why = "a value is not what the ledger says".into();
                Err(StoreError::Corrupt { name, why }.into())
            }
            found => Ok(found),
        }
    }

    fn read<T: ValueRow>(&self, id: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.store.get::<T>(id)?.map(T::take))
    }

    fn update(&self, id: &str) -> Result<Option<Vec<u8>>, CoordinatorError> {
        let Some(sealed) = self.read::<UpdateValue>(id)? else {
            return Ok(None);
        };
        let Some(stage) = stage_of_update(id) else {
            return Ok(None);
        };
        let secret = self.stored_secret(&stage)?;
        Ok(secret.and_then(|secret| lethe_seal::unseal(&secret, id.as_bytes(), &sealed)))
    }

    fn stored_secret(&self, stage: &StageKey) -> Result<Option<UpdateKey>, StoreError> {
        let row = self.store.get::<StageUpdateKey>(&stage_id(stage))?;
        Ok(row.map(|k| Arc::new(Zeroizing::new(k.0))))
    }

    /// The key of a stage's updates; it is stored with the first of them.
    pub(crate) fn stage_secret(&self, stage: &StageKey) -> Result<StageSecret, CoordinatorError> {
        let of = |secret| StageSecret {
            stage: *stage,
            secret,
        };
        if let Some(known) = self.secrets.known().get(stage) {
            return Ok(of(known.clone()));
        }
        let new = match self.stored_secret(stage)? {
            Some(stored) => stored,
            None => Arc::new(Zeroizing::new(lethe_seal::random()?)),
        };
        // Somebody else may have made one meanwhile: theirs counts.
        Ok(of(self
            .secrets
            .known()
            .entry(*stage)
            .or_insert(new)
            .clone()))
    }

    /// Adds values to a batch, each under the key of its owner, which must exist or be made by the
    /// batch; and the keys of updates, with the first of each stage.
    pub(super) fn put_values(
        &self,
        mut batch: Batch,
        values: Vec<NewValue>,
    ) -> Result<Batch, CoordinatorError> {
        let mut stages: Vec<StageKey> = vec![];
        for value in values {
            let mut value = value;
            if value.at.table == Table::Update {
                let stage = stage_of_update(&value.at.id).ok_or_else(|| misnamed(&value.at))?;
                let secret = self.stage_secret(&stage)?;
                if !value.sealed {
                    let id = value.at.id.as_bytes();
                    value.content = lethe_seal::seal(&secret.secret, id, &value.content)?;
                }
                if !stages.contains(&stage) {
                    batch = self.put_secret(batch, &secret)?;
                    stages.push(stage);
                }
            }
            batch = put_value(batch, value)?;
        }
        Ok(batch)
    }

    fn put_secret(&self, batch: Batch, secret: &StageSecret) -> Result<Batch, StoreError> {
        if self.stored_secret(&secret.stage)?.is_some() {
            return Ok(batch);
        }
        let row = StageUpdateKey(**secret.secret);
        let owner = key_of(&Owner::Stage(secret.stage));
        put(batch, &owner, &stage_id(&secret.stage), &row, Missing::Fail)
    }
}

fn misnamed(at: &ValueRef) -> StoreError {
    StoreError::Encode {
        table: "values",
        why: format!("the id of a value in {:?} names no stage", at.table),
    }
}

fn put_value(batch: Batch, value: NewValue) -> Result<Batch, StoreError> {
    let one = match value.at.table {
        Table::Update => put_value_as::<UpdateValue>,
        Table::RunState => put_value_as::<RunStateValue>,
        Table::Checkpoint => put_value_as::<CheckpointValue>,
        Table::Personal => put_value_as::<PersonalValue>,
        Table::ErrorRows => put_value_as::<ErrorRowsValue>,
        Table::Receipt => put_value_as::<ReceiptValue>,
        Table::Catalogue => put_value_as::<CatalogueValue>,
    };
    one(batch, value)
}

fn put_value_as<T: ValueRow>(batch: Batch, value: NewValue) -> Result<Batch, StoreError> {
    let owner = key_of(&value.owner);
    let row = T::new(value.content);
    put(batch, &owner, &value.at.id, &row, Missing::Fail)
}

/// Removes a value.
pub(super) fn delete_value(batch: Batch, table: Table, id: &str) -> Batch {
    match table {
        Table::Update => batch.delete::<UpdateValue>(id),
        Table::RunState => batch.delete::<RunStateValue>(id),
        Table::Checkpoint => batch.delete::<CheckpointValue>(id),
        Table::Personal => batch.delete::<PersonalValue>(id),
        Table::ErrorRows => batch.delete::<ErrorRowsValue>(id),
        Table::Receipt => batch.delete::<ReceiptValue>(id),
        Table::Catalogue => batch.delete::<CatalogueValue>(id),
    }
}

/// All values that are stored.
pub(super) fn stored(store: &SealedStore) -> Vec<(Table, String)> {
    fn of<T: Persisted>(store: &SealedStore, table: Table) -> Vec<(Table, String)> {
        store
            .keys::<T>()
            .into_iter()
            .map(|id| (table, id))
            .collect()
    }
    [
        of::<UpdateValue>(store, Table::Update),
        of::<RunStateValue>(store, Table::RunState),
        of::<CheckpointValue>(store, Table::Checkpoint),
        of::<PersonalValue>(store, Table::Personal),
        of::<ErrorRowsValue>(store, Table::ErrorRows),
        of::<ReceiptValue>(store, Table::Receipt),
        of::<CatalogueValue>(store, Table::Catalogue),
    ]
    .concat()
}
