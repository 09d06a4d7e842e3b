//! Joining, lists, catalogues and epochs, as devices and operators see them.
//!
//! One program for all of them: each program of tests is linked with the whole of Lethe, which
//! takes longer than to run it.

mod catalogue;
mod devices;
mod first_steps;
mod identity;
mod lists;
mod log_key;
mod masked;
mod metrics;
mod network;
mod people;
mod rolls;
mod two_parties;
mod versions;
