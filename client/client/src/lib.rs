//! The client library.

pub mod encode;
