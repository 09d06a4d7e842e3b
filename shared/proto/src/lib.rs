//! The protocol, without input or output: identifiers, limits, messages, codec and state machines.
//!
//! Nothing here opens a socket or reads a clock: [`codec`] turns messages into bounded bytes and
//! back, and [`round::Round`] decides what happens next from events and times that its caller
//! passes in. `lethe-transport` carries the bytes. Every RPC is one request and one reply on a
//! stream of its own.
//!
//! ```
//! use lethe_proto::{codec, message::{Reply, Request}};
//! let bytes = codec::encode_request(&Request::Poll)?;
//! assert_eq!(codec::decode_request(&bytes)?, Request::Poll);
//! # Ok::<(), lethe_proto::codec::CodecError>(())
//! ```

pub mod admin;
pub mod catalogue;
pub mod codec;
pub mod deletion;
pub mod disks;
pub mod epochs;
pub mod ids;
pub mod limits;
pub mod lists;
pub mod masked;
pub mod message;
pub mod packed;
pub mod payload;
pub mod people;
pub mod round;
pub mod tally;
