//! The recommender as pure code: integer sums over people's histories, tables that are solved from
//! them in closed form, and scoring on the device.
//!
//! Nothing here does I/O, reads a clock, draws random numbers or runs a language model. The walk
//! through the crate is that of the data:
//!
//! 1. [`event`]: what an app records, and what it counts as;
//! 2. [`contribution`]: what one person adds, within bounds;
//! 3. [`sums`]: everybody together, in integers, to add to and to subtract from;
//! 4. [`solve`]: from sums to [`tables`]; [`content`] is what is public about items;
//! 5. [`snapshot`]: tables in few bits, and deltas;
//! 6. [`score`]: history in, page out.
//!
//! `docs/recommend.md` has the formulas, what they are worth, and what they cost.
//!
//! ```
//! use lethe_parts::content::{Content, Description};
//! use lethe_parts::contribution::{Bounds, Contribution};
//! use lethe_parts::event::{Event, Kind, Meaning};
//! use lethe_parts::history::{History, Interaction};
//! use lethe_parts::score::{Options, Ranker, Request};
//! use lethe_parts::solve::{Settings, solve};
//! use lethe_parts::{snapshot, sums::Sums};
//!
//! let items: Vec<Description> = ["Heat", "Fargo", "Alien", "Babe"]
//!     .map(|title| Description { title: title.into(), ..Description::default() })
//!     .into();
//! let content = Content::new(&items);
//! let meaning = Meaning::default();
//! let events = |who: u32| -> Vec<Event> {
//!     (0..3)
//!         .map(|n| Event {
//!             item: (who + n) % 4,
//!             time: 86_400 * i64::from(n),
//!             kind: Kind::Rating,
//!             value: 4.0,
//!         })
//!         .collect()
//! };
//!
//! // On the tally: fold everybody, solve, publish.
//! let bounds = Bounds { items: 4, clip: 200, first_day: 0, last_day: 10 };
//! let mut sums = Sums::new(4);
//! for who in 0..20 {
//!     let read = Interaction::read(&events(who), &meaning);
//!     sums.fold(&Contribution::newest(&read, &bounds)?)?;
//! }
//! let solved = solve(&sums, &content, &Settings::default(), 5)?;
//! let bytes = snapshot::encode(&solved.tables, &snapshot::Packing::default())?;
//!
//! // On a device: read the snapshot, rank.
//! let tables = snapshot::decode(&bytes)?;
//! let history = History::of_events(&events(0)[..1], &meaning);
//! let request = Request { history: &history, today: 6 };
//! let page = Ranker::default().page(&tables, &content, &request, &Options::default());
//! assert_eq!(page.items.len(), 3, "all but the one that was met");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod codec;
pub mod content;
pub mod contribution;
pub mod ease;
pub mod event;
pub mod field;
pub mod history;
mod linalg;
mod matrix;
pub mod merge;
pub mod noise;
mod part;
pub mod refold;
pub mod rows;
pub mod score;
pub mod snapshot;
pub mod solve;
pub mod sums;
pub mod tables;
mod unseen;

pub use linalg::NotPositive;
pub use matrix::{DENSE_ITEMS, SumMatrix};
pub use part::{Forgetting, Part, Refused, Scorer};
