//! `lethe-tally`: a tally as a process of its own, run by somebody else than the coordinator. It
//! holds histories under handles, and knows no names.
//!
//! - [`Service`]: answers each [`lethe_proto::tally::TallyRequest`]. It has no clock, no network
//!   and no thread of its own;
//! - [`party`]: the listener, certificates, and requests on their way to the service;
//! - [`process`]: configuration, folder, commands.
//!
//! `docs/two-parties.md` has the design.

pub mod config;
mod door;
mod error;
mod evidence;
mod office;
pub mod party;
pub mod process;
mod sealing;
mod service;
mod sums;
mod tickets;

pub use error::TallydError;
pub use service::{Opening, Service};
