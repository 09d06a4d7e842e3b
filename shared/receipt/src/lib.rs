//! Deletion receipts and the transparency log that they are entered in; verification needs nothing else.
//!
//! The log is an RFC 6962 Merkle tree ([`merkle`]); its head is signed as a C2SP checkpoint, a signed note
//! ([`note`]). A [`receipt::Receipt`] is one JSON document: a statement, a proof that the statement's salted hash is
//! in the log, and the signed checkpoint. [`receipt::verify`] works offline with the log's public key alone and fails
//! on any altered byte. What a receipt cannot prove: that no copy exists outside the coordinator's store.
//!
//! ```
//! use lethe_receipt::merkle::{Tree, verify_inclusion};
//! let mut tree = Tree::default();
//! let index = tree.push(b"entry");
//! let proof = tree.inclusion(index).expect("just pushed");
//! assert!(verify_inclusion(b"entry", index, tree.len(), &proof, &tree.root()));
//! ```

pub mod merkle;
pub mod note;
pub mod receipt;
