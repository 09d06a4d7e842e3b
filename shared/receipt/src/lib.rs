//! Deletion receipts and the transparency log that they are entered in; verification needs nothing
//! else.
//!
//! The log is an RFC 6962 Merkle tree ([`merkle`]) of salted hashes ([`statement::entry`]); its
//! head is signed as a C2SP checkpoint, a signed note ([`note`]), and may be cosigned by a witness
//! ([`witness`]); its files are laid out as C2SP tlog-tiles ([`tiles`]). Before a shard is trained,
//! the log commits to its records ([`records`]). A [`receipt::Receipt`] is one JSON document: a
//! statement, proofs that it and the commitments before and after are in the log, that the person's
//! record was trained on before and is not now, and the signed checkpoint. [`receipt::verify`]
//! works offline with the log's public key alone and fails on any altered byte; [`report`] says in
//! words what that proves and what not. Before anything is served, the log holds what devices are
//! to use ([`served`]). A [`policy`] says which witnesses have to have signed a head, and [`proof`]
//! is a proof of inclusion as other tools of transparency logs read it. [`snapshot`] is what is
//! signed about the tables that devices rank with; [`lists_audit`] is what folds the sums behind
//! them again. [`succession`] is how a log's key is exchanged. The program `lethe-verify` is this
//! crate and nothing else.
//!
//! ```
//! use lethe_receipt::merkle::{Tree, verify_inclusion};
//! let mut tree = Tree::default();
//! let index = tree.push(b"entry");
//! let proof = tree.inclusion(index).expect("just pushed");
//! assert!(verify_inclusion(b"entry", index, tree.len(), &proof, &tree.root()));
//! ```

pub mod audit;
pub mod head;
pub mod hex;
pub mod lists_audit;
pub mod manifest;
pub mod merkle;
mod mldsa;
pub mod note;
pub mod order;
pub mod policy;
pub mod proof;
pub mod receipt;
pub mod records;
pub mod report;
pub mod sealing;
pub mod served;
pub mod snapshot;
pub mod statement;
pub mod succession;
pub mod tiles;
pub mod vouch;
pub mod witness;
