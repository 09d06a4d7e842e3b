//! The ledger: every decision of the coordinator as a pure state machine.
//!
//! [`decide`] says what happens, [`apply`] makes it so, [`due`] says what the clock makes due, and
//! [`effects`] what the world has to be told. None of them does I/O, reads a clock or draws a
//! random number. The shell: decide on a read lock, write the events (and the values that came with
//! the command), apply on a write lock, effects.
//!
//! The state is divided into slices, each sealed under the key of its owner. When a key is
//! destroyed, its slices and events are missing when the state is rebuilt, and nothing else is.
//!
//! ```
//! use lethe_ledger::{Command, Now, Owner, State, apply, decide};
//! use lethe_proto::ids::{Digest, SubjectId};
//! let mut state = State::default();
//! let subject = SubjectId::new("ada")?;
//! let invite = Command::Invite { subject: subject.clone(), secret: Digest([1; 32]) };
//! let events = decide(&state, invite, Now::default())?;
//! // Here the shell writes the events. Then:
//! events.iter().for_each(|event| apply(&mut state, event));
//! assert!(state.person(&subject).is_some());
//! // Ada's key is destroyed: what is read again knows nobody.
//! let ada = Owner::Person(subject.clone());
//! let mut again = State::default();
//! for event in events.iter().filter(|event| event.owner() != ada) {
//!     apply(&mut again, event);
//! }
//! assert!(again.person(&subject).is_none());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod apply;
mod command;
mod decide;
mod due;
mod effects;
mod epochs;
mod event;
mod ids;
mod state;
mod terms;
mod views;

pub use apply::apply;
pub use command::{Accepted, AskedBy, Command, LogFor, NewCatalogue, OwnPlans, Spent};
pub use decide::decide;
pub use due::{Duty, due};
pub use effects::{Effect, Effects, Wake, effects, withdrawn};
pub use event::{Before, Event, MeasuredShard, Stated, StoredUpdate};
pub use ids::{
    CatalogueVersion, Contributor, EpochNo, Fresh, Now, Owner, PartId, PersonNo, Refused, RunKey,
    ShardKey, SliceId, StageKey, Table, ValueRef,
};
pub use state::*;
pub use terms::{Aggregation, Mode, Placement, Roll, Rules, Schedule, Terms};
pub use views::{MeasuredRows, ReceiptParts, ShardView, View, Work};
