//! One file per command.

pub(crate) mod enrol;
pub(crate) mod forget;
pub(crate) mod invite;
pub(crate) mod receipt;
pub(crate) mod replay;
pub(crate) mod revoke;
pub(crate) mod status;
pub(crate) mod verify;
