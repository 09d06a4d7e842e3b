//! What may be done next.

use super::state::State;
use crate::ids::CellNo;

/// A job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// `Command::OpenCell`: enough wait. Nothing happens when too many of them have been together.
    OpenCell,
    /// `Command::Renew`.
    Renew(CellNo),
    /// What was published is out: solve, then `Command::Publish`.
    Publish,
}

/// Everything that may be done now.
pub fn due(state: &State) -> Vec<Duty> {
    let mut out = vec![];
    if state.waiting() >= state.settings.waiting(state.size()) {
        out.push(Duty::OpenCell);
    }
    let enough = state.settings.changed as usize;
    let grown = state.index.grown.iter().filter(|g| g.1.len() >= enough);
    out.extend(grown.map(|g| Duty::Renew(*g.0)));
    if state.core.out.is_some() {
        out.push(Duty::Publish);
    }
    out
}
