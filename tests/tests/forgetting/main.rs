//! Deletions, and what people ask about their data.
//!
//! One program for all of them: each program of tests is linked with the whole of Lethe, which
//! takes longer than to run it.

mod copies;
mod erase_orders;
mod forget;
mod handle;
mod quarantine;
mod requests;
mod requests_clear;
mod requests_lists;
