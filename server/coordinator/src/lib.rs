//! The coordinator: rounds per shard, the middle layers, releases, deletions, and the admin API.
//!
//! [`Coordinator`] answers requests that `lethe-transport` delivers. `lethe-ledger` decides; the
//! shell around it writes what was decided to the sealed store, applies it and does what follows.
//! Passes over the model, and all arithmetic, happen without a lock. Killing the process at any
//! instant loses nothing that was acknowledged: opening the same folder again goes on from the last
//! completed round. It is sent no tokens,
//! labels or scores; but whoever runs it can read tokens from the hidden states and labels from the
//! gradients that it handles (docs/privacy-teams.md).
//!
//! It does not decide what a deletion needs (`lethe-plan` does) and it does not open sockets
//! (`lethe-transport` does). `server/coordinator/src/main.rs` shows how to run one.

mod admin;
mod aggregate;
mod arrivals;
mod batch;
mod catalogue;
pub mod config;
mod content;
mod coordinator;
#[cfg(test)]
mod copy;
mod disks;
mod durable;
mod epochs;
mod error;
mod evidence;
mod fatal;
mod group_commit;
mod handlers;
pub mod lists;
mod metrics;
mod middle;
mod passes;
pub mod process;
mod quota;
mod room;
pub mod rotation;
mod rounds;
pub mod rounds_alone;
mod rows;
mod shell;
mod slots;
mod strikes;
mod terms;
mod waiters;
mod waiting;
mod witnesses;
#[cfg(any(test, feature = "simulation"))]
pub use shell::year;

pub use coordinator::Coordinator;
pub use error::CoordinatorError;
