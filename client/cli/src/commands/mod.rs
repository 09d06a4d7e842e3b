//! One file per command.

pub(crate) mod audit;
mod audit_devices;
pub(crate) mod audit_lists;
pub(crate) mod bench;
pub(crate) mod demo;
pub(crate) mod device;
pub(crate) mod encode;
pub(crate) mod fetch;
pub(crate) mod fleet;
pub(crate) mod inspect;
mod load;
pub(crate) mod train_central;
