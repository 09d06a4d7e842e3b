//! What is served is in the log.

use super::Decided;
use crate::command::Command;
use crate::event::Event;
use crate::state::{LogHead, LoggedPart, State};

pub(super) fn decide(state: &State, command: Command) -> Decided {
    let mut events = match &command {
        Command::ReleaseLogged { part, .. } => release(state, part),
        Command::SnapshotLogged { part, .. } => snapshot(state, part),
        _ => vec![],
    };
    if let Command::ReleaseLogged { head, .. } | Command::SnapshotLogged { head, .. } = command {
        events.extend(grew(state, head));
    }
    Ok(events)
}

/// The log may have grown, whatever became of the rest.
pub(super) fn grew(state: &State, head: LogHead) -> Option<Event> {
    let grew = head != state.core.log && head.entries >= state.core.log.entries;
    grew.then_some(Event::LogGrew { head })
}

fn release(state: &State, part: &LoggedPart) -> Vec<Event> {
    // Another one is current since.
    if state.release_to_log() != Some(part.number) {
        return vec![];
    }
    vec![Event::ReleaseLogged { part: part.clone() }]
}

fn snapshot(state: &State, part: &LoggedPart) -> Vec<Event> {
    if state.logged.snapshot.as_ref() == Some(part) {
        return vec![];
    }
    vec![Event::SnapshotLogged { part: part.clone() }]
}
