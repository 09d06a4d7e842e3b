//! One file per command.

pub(crate) mod fetch;
pub(crate) mod train_central;
