//! A witness of transparency logs: it signs heads that extend what it signed before, and no others
//! (C2SP tlog-witness, `add-checkpoint`).
//!
//! Whoever runs it should be somebody else than who runs the log, on another machine. It keeps the
//! newest head of each log that it was told of, durable before a signature is given out: a witness
//! that forgets could sign two histories.

mod service;
mod state;

pub use service::{Answer, Service, bind, serve};
pub use state::{State, StateError};
