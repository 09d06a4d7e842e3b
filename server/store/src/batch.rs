//! Changes to the store, and the names of the keys that seal them.

use lethe_proto::codec;

use crate::{Class, Persisted, StoreError};

/// The name of a key: whose data it seals.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyName {
    pub(crate) name: String,
    pub(crate) class: Class,
    /// The database that holds what it seals; the main one when none is named.
    pub(crate) database: Option<String>,
}

impl KeyName {
    /// A subject's key.
    pub fn subject(id: &str) -> Self {
        Self {
            name: format!("subject:{id}"),
            class: Class::Subject,
            database: None,
        }
    }

    /// A key for what was derived from a shard's subjects, such as one stage of its training.
    /// `database` holds what it seals, and names the shard.
    pub fn stage(database: &str, name: &str) -> Self {
        Self {
            name: format!("{}{name}", Self::prefix(database)),
            class: Class::Shard,
            database: Some(database.to_owned()),
        }
    }

    /// The key of one deletion's request and receipt.
    pub fn evidence(deletion: u64) -> Self {
        Self {
            name: format!("evidence:{deletion}"),
            class: Class::Evidence,
            database: None,
        }
    }

    /// The key of one other piece of evidence, such as a proposal.
    pub fn evidence_of(name: &str) -> Self {
        Self {
            name: format!("evidence:{name}"),
            class: Class::Evidence,
            database: None,
        }
    }

    /// The key of public records.
    pub fn public() -> Self {
        Self {
            name: "public".into(),
            class: Class::Public,
            database: None,
        }
    }

    /// How the names of the keys of a database begin.
    pub(crate) fn prefix(database: &str) -> String {
        format!("shard:{database}/")
    }

    /// The database that a key's name belongs to; none for the main one.
    pub(crate) fn database_of(name: &str) -> Option<&str> {
        let (database, _) = name.strip_prefix("shard:")?.split_once('/')?;
        Some(database)
    }

    pub(crate) fn class_of(name: &str) -> Class {
        match name.split(':').next() {
            Some("subject") => Class::Subject,
            Some("shard") => Class::Shard,
            Some("evidence") => Class::Evidence,
            _ => Class::Public,
        }
    }
}

/// Changes that are applied together. Every database takes its part of them whole or not at all:
/// the shards first, then the main one. A crash in between leaves a shard ahead, never behind.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub(crate) changes: Vec<Change>,
}

#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) table: &'static str,
    pub(crate) key: String,
    pub(crate) value: Option<(KeyName, Vec<u8>)>,
    pub(crate) absent: Absent,
}

/// What becomes of a change whose owner has no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absent {
    /// A key is made.
    Make,
    /// The change is left out.
    Skip,
    /// The batch fails.
    Fail,
}

impl Batch {
    /// No change yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Stores `value` under `key`, sealed with `owner`'s key, whose class must be the type's. A key
    /// that does not exist is made. Where names are never used twice, this is for the first thing
    /// of an owner; all others are for [`Self::put_required`].
    pub fn put<T: Persisted>(
        self,
        owner: &KeyName,
        key: &str,
        value: &T,
    ) -> Result<Self, StoreError> {
        self.add(owner, key, value, Absent::Make)
    }

    /// The same, but nothing is stored when the owner's key does not exist: what was decided before
    /// somebody was deleted, and is written after it, does not bring them back.
    pub fn put_existing<T: Persisted>(
        self,
        owner: &KeyName,
        key: &str,
        value: &T,
    ) -> Result<Self, StoreError> {
        self.add(owner, key, value, Absent::Skip)
    }

    /// The same, but the whole batch fails when the owner's key does not exist
    /// ([`StoreError::NoKey`]) and no other change of the batch makes it: whoever writes it is
    /// wrong about the owner, and a name that was destroyed does not come back.
    pub fn put_required<T: Persisted>(
        self,
        owner: &KeyName,
        key: &str,
        value: &T,
    ) -> Result<Self, StoreError> {
        self.add(owner, key, value, Absent::Fail)
    }

    fn add<T: Persisted>(
        mut self,
        owner: &KeyName,
        key: &str,
        value: &T,
        absent: Absent,
    ) -> Result<Self, StoreError> {
        let encode = |why: String| StoreError::Encode {
            table: T::TABLE,
            why,
        };
        if owner.class != T::CLASS {
            return Err(encode(format!(
                "it is of class {:?}, the key of {:?}",
                T::CLASS,
                owner.class
            )));
        }
        let bytes = codec::to_bytes(value).map_err(|e| encode(e.to_string()))?;
        self.changes.push(Change {
            table: T::TABLE,
            key: key.to_owned(),
            value: Some((owner.clone(), bytes)),
            absent,
        });
        Ok(self)
    }

    /// Deletes a record.
    pub fn delete<T: Persisted>(mut self, key: &str) -> Self {
        self.changes.push(Change {
            table: T::TABLE,
            key: key.to_owned(),
            value: None,
            absent: Absent::Make,
        });
        self
    }
}
