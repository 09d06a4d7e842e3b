//! The ledger: every decision of the coordinator as a pure state machine.
//!
//! [`decide`] says what happens, [`apply`] makes it so, [`due`] says what the clock makes due, and
//! [`effects`] what the world has to be told. None of them does I/O, reads a clock or draws a
//! random number. The shell: decide on a read lock, write the events (and the values that came with
//! the command), apply on a write lock, effects.

mod apply;
mod command;
mod decide;
mod due;
mod effects;
mod event;
mod ids;
mod state;
mod terms;
mod views;

pub use apply::apply;
pub use command::{Accepted, Command, LogFor, OwnPlans, Spent};
pub use decide::decide;
pub use due::{Duty, due};
pub use effects::{Effect, Effects, Wake, effects, withdrawn};
pub use event::{Before, Event, MeasuredShard, Stated, StoredUpdate};
pub use ids::{
    CatalogueVersion, Contributor, EpochNo, Fresh, Now, Owner, PartId, PersonNo, Refused, RunKey,
    ShardKey, SliceId, StageKey, Table, ValueRef,
};
pub use state::*;
pub use terms::{Aggregation, Mode, Placement, Rules, Schedule, Terms};
pub use views::{ReceiptParts, ShardView, View, Work};
