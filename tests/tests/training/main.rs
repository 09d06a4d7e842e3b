//! Rounds, adapters and what they are replayed from.
//!
//! One program for all of them: each program of tests is linked with the whole of Lethe, which
//! takes longer than to run it.

mod audit;
mod canary;
mod composition;
mod compression;
mod conditions;
mod federation;
mod frozen;
mod late;
mod partition;
mod privacy_formats;
mod robust;
mod same_bytes;
