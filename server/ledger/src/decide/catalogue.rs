//! Versions of the catalogue follow each other.

use super::policy::note_by;
use super::{Decided, refuse};
use crate::command::{Command, NewCatalogue};
use crate::event::Event;
use crate::ids::{CatalogueVersion, Now};
use crate::state::{CatalogueRecord, State};
use lethe_proto::ids::Digest;
use lethe_proto::message::Refusal;

pub(super) fn decide(state: &State, command: Command, now: Now) -> Decided {
    let Command::ApplyCatalogue {
        founded,
        next,
        by,
        line,
        fresh,
    } = command
    else {
        return Ok(vec![]);
    };
    let newest = state.newest_catalogue();
    let before = newest.map_or(founded.digest, |(_, record)| record.digest);
    let version = newest.map_or(CatalogueVersion(2), |(no, _)| CatalogueVersion(no.0 + 1));
    if next.version != version || next.before != before {
        let message = format!(
            "the changes are of version {}, expected {} after {}: another version was applied \
             meanwhile; compare the folder with it again",
            next.version.0,
            version.0,
            before.short()
        );
        return refuse(Refusal::Busy, message);
    }
    if newest.is_some_and(|(_, record)| record.index.is_none()) {
        return refuse(
            Refusal::Busy,
            "the log does not hold the version before yet: try again in a moment",
        );
    }
    // It may be refused for its pace, and is before anything is decided.
    let mut events = note_by(state, by, line, fresh, now)?;
    let at = now.unix_ms / 1000;
    // The log has where the chain of versions begins, too.
    if newest.is_none() {
        let founded = NewCatalogue {
            before: Digest::default(),
            ..founded
        };
        events.push(applied(founded, at));
    }
    events.push(applied(next, at));
    Ok(events)
}

fn applied(new: NewCatalogue, at: u64) -> Event {
    Event::CatalogueApplied {
        version: new.version,
        record: CatalogueRecord {
            digest: new.digest,
            before: new.before,
            places: new.places,
            at,
            changes: new.changes,
            index: None,
        },
    }
}
