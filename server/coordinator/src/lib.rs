//! The coordinator: rounds per shard, the middle layers, releases, deletions, and the admin API.
//!
//! [`Coordinator`] answers requests that `lethe-transport` delivers. All decisions are made in
//! `core` under one lock and written to the sealed store before they are acknowledged; forward and
//! backward passes run outside the lock on a bounded pool. Killing the process at any instant loses
//! nothing that was acknowledged: opening the same folder again goes on from the last completed
//! round. It is sent no tokens,
//! labels or scores; but whoever runs it can read tokens from the hidden states and labels from the
//! gradients that it handles (docs/privacy-teams.md).
//!
//! It does not decide what a deletion needs (`lethe-plan` does) and it does not open sockets
//! (`lethe-transport` does). `server/coordinator/src/main.rs` shows how to run one.

mod aggregate;
mod arrivals;
mod batch;
pub mod config;
mod coordinator;
mod core;
// The shell that calls it comes next.
#[allow(dead_code)]
mod durable;
mod error;
// What lies outside the data folder, on the ledger. The shell that uses it comes next.
#[allow(dead_code)]
mod evidence;
mod fatal;
mod handlers;
mod metrics;
mod middle;
pub mod process;
mod records;
mod run;
mod slots;
mod waiters;

pub use coordinator::Coordinator;
pub use error::CoordinatorError;
