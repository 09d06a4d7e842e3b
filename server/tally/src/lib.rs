//! The tally: it holds what people contribute to the recommender's sums, and publishes snapshots.
//!
//! It knows people by [`Handle`], a random name that somebody else gave them. It has a folder of
//! its own, with keys of its own.
//!
//! - [`cells`]: who counts, as a pure state machine, and a lint over everything published;
//! - the vault: contributions, each sealed under a key that a deletion destroys;
//! - [`Tally`]: both with the integer sums; it folds, solves, signs and serves;
//! - [`Statement`]: what is signed about a snapshot.
//!
//! `docs/tally.md` is for newcomers.
//!
//! ```
//! use std::sync::Arc;
//! use lethe_parts::content::{Content, Description};
//! use lethe_parts::history::Interaction;
//! use lethe_store::memory::MemoryStorage;
//! use lethe_tally::{Handle, Offer, Options, Served, Statement, Tally};
//!
//! let items = vec![Description::default(); 5];
//! let folder = tempfile::tempdir()?;
//! let now = 20_000 * 86_400;
//! let tally = Tally::open(
//!     &|_| Ok(Box::<MemoryStorage>::default()),
//!     folder.path(),
//!     Arc::new(Content::new(&items)),
//!     Options::default(),
//!     now,
//! )?;
//! for who in 0..70u8 {
//!     let met = |item| Interaction {
//!         item: (u32::from(who) + item) % 5,
//!         day: 19_990,
//!         seen: true,
//!         half_stars: None,
//!         liked: false,
//!         hidden: false,
//!     };
//!     let offer = Offer {
//!         handle: Handle([who; 16]),
//!         source: [1; 16],
//!         whole: true,
//!         events: &[met(0), met(1)],
//!     };
//!     tally.contribute(&offer, now)?;
//! }
//! assert_eq!(tally.open_cells(now)?, 1, "a cell of 16: fewer than 64 wait then");
//! tally.publish(20_000, now)?;
//! let Served::Snapshot(snapshot) = tally.served() else { panic!("published") };
//! let statement = Statement::open(&snapshot.note, tally.verifier())?;
//! assert_eq!(statement.people, 16);
//!
//! // Everybody leaves: what was published is out until the next is there.
//! tally.leave(&(0..70).map(|who| Handle([who; 16])).collect::<Vec<_>>(), now + 1)?;
//! assert_eq!(tally.served(), Served::Out { since: now + 1 });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod catalogue;
pub mod cells;
mod error;
mod ids;
pub mod settings;
mod tally;
mod vault;

pub use catalogue::{Catalogue, OtherCatalogue, TextVectors, content_of_entries};
pub use cells::Leaver;
pub use error::TallyError;
pub use ids::{CellNo, Fresh, Handle, Number, Version};
pub use lethe_receipt::snapshot::{SnapshotNoise, SnapshotStatement as Statement};
pub use tally::{
    Allowed, Audited, Done, Finished, Held, Job, Lists, NoiseConfig, NoiseStatus, Offer, Options,
    Per, Published, Refolded, Served, Status, Tally, fold_root,
};
