#![allow(clippy::unwrap_used, clippy::panic)]

mod admin;
mod driver;
mod journal;
mod log;
mod proofs;
mod succession;
