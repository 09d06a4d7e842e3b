//! QUIC with mutual authentication: the only crate that names quinn and rustls.
//!
//! The coordinator holds a small certificate authority ([`identity::Authority`]). A client enrols
//! once with a single-use invitation ([`identity::Invitation`]) and then connects with its
//! certificate. TLS 1.3 only, ring provider, no session resumption and no 0-RTT, so that every
//! connection is checked against the revocation list. One bidirectional stream carries one RPC; the
//! messages are `lethe-proto`'s. Entry types: [`server::Server`], [`client::Connection`].
//!
//! ```
//! use lethe_transport::identity::{Authority, ClientKey, Invitation};
//! let authority = Authority::create()?;
//! let key = ClientKey::generate()?;
//! let certificate = authority.sign(&key.request()?, std::time::Duration::from_secs(3600))?;
//! let identity = key.with_certificate(certificate);
//! assert_ne!(identity.fingerprint(), authority.fingerprint());
//! # Ok::<(), lethe_transport::TransportError>(())
//! ```

pub mod client;
mod config;
pub mod crowd;
mod error;
mod exchange;
mod frame;
pub mod identity;
mod pace;
pub mod place;
pub mod rate;
pub mod server;
pub mod shown;

pub use error::{TransportError, utc};
