//! One file per command.

pub(crate) mod catalogue;
pub(crate) mod coverage;
pub(crate) mod disks;
pub(crate) mod enrol;
pub(crate) mod epoch;
pub(crate) mod export_audit;
pub(crate) mod forget;
pub(crate) mod import;
pub(crate) mod invite;
pub(crate) mod lineage;
pub(crate) mod list;
pub(crate) mod lists;
pub(crate) mod log;
pub(crate) mod operators;
pub(crate) mod policy;
pub(crate) mod receipt;
pub(crate) mod replay;
pub(crate) mod requests;
pub(crate) mod restriction;
pub(crate) mod revoke;
pub(crate) mod scan;
pub(crate) mod shard;
pub(crate) mod shell;
pub(crate) mod status;
pub(crate) mod verify;
