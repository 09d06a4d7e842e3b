//! What the ledger decides, rule by rule. One program for all: each program of tests is compiled
//! with the whole ledger.

mod approvals;
mod common;
mod decisions;
mod holds;
mod people;
mod quotas;
mod replays;
mod rolls;
