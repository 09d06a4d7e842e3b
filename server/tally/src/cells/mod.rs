//! Who counts: cells, as a pure state machine. Nothing in this module does I/O, reads a clock or
//! draws a random number.
//!
//! People count in cells of n. [`decide`] says what a command makes happen, [`apply`] makes it so,
//! [`due`] says what may be done next. [`lint`] is other code: it checks all folds that were ever
//! published against each other.
//!
//! The rules:
//! - Nobody counts before their cell opens. A cell opens when at least 4n wait. Its members are
//!   drawn by rank of a keyed hash, and at most n/m of them may have been together in a cell that
//!   was published.
//! - Who leaves while waiting leaves no trace. A cell that loses somebody is dissolved at once; its
//!   other members wait like newcomers. Cells are never mended.
//! - Contributions that grew replace those that count when at least m of a cell have grown, all of
//!   that cell together.
//!
//! The state is divided into rows: one for each handle, sealed under its key, and public ones, in
//! which handles appear as numbers. When a key is destroyed its row is missing, and nothing else.

mod apply;
mod command;
mod decide;
mod draw;
mod due;
mod lint;
mod settings;
mod state;

pub use apply::apply;
pub use command::{Command, Event, Leaver, Offered, Owner, Refused};
pub use decide::decide;
pub(crate) use decide::in_time;
pub use due::{Duty, due};
pub use lint::{Fault, Fold, Left, lint, lint_pair};
pub use settings::{CellSettings, SettingsError};
pub use state::{Cell, Core, Member, Out, Person, Row, RowId, Spent, State, WasShown};
