//! Events make the state.

use std::collections::btree_map::Entry;

use lethe_proto::ids::Digest;

use super::command::Event;
use super::state::{Cell, Member, Out, Person, RowId, State, WasShown};
use crate::ids::{CellNo, Number, Version};

/// Past cells that a member is remembered in. To be together again with people of an older one
/// would tell on somebody only to who kept a snapshot from before 64 others, all of which lost a
/// member; and the draw, which nobody can steer, would have to bring them together. Without a bound
/// the row of somebody who stays grows with every deletion around them.
const PAST: usize = 64;

/// Makes an event part of the state.
pub fn apply(state: &mut State, event: &Event) {
    match event {
        Event::Known {
            handle,
            number,
            salt,
            since,
        } => {
            let person = Person {
                number: *number,
                salt: *salt,
                since: *since,
                at: *since,
                source: [0; 16],
                events: 0,
            };
            state.people.insert(*handle, person);
            state.index.handles.insert(*number, *handle);
            state.changed.insert(RowId::Person(*handle));
        }
        Event::Spoke {
            handle,
            at,
            source,
            events,
        } => {
            if let Some(person) = state.people.get_mut(handle) {
                person.at = *at;
                person.source = *source;
                person.events = *events;
                state.changed.insert(RowId::Person(*handle));
            }
        }
        Event::Forgotten { handle } => {
            if let Some(person) = state.people.remove(handle) {
                state.index.handles.remove(&person.number);
                state.changed.insert(RowId::Person(*handle));
            }
        }
        Event::Came { number, name } => came(state, *number, *name),
        Event::Brought { number, digest } => brought(state, *number, *digest),
        Event::Left { number } => left(state, *number),
        Event::Opened { cell, members } => opened(state, *cell, members),
        Event::Renewed { cell, members } => renewed(state, *cell, members),
        Event::Dissolved { cell, at } => dissolved(state, *cell, *at),
        Event::TakenDown { items } => {
            state.cleared.extend(items);
            state.changed.insert(RowId::Cleared);
            fold_changed(state, true);
        }
        Event::Recalled { at, cells } => {
            let out = state.core.out;
            state.core.out = Some(Out {
                since: out.map_or(*at, |o| o.since),
                cells: out.map_or(0, |o| o.cells).saturating_add(*cells),
            });
            state.core.served = None;
            // Whatever was published before holds the same people, or more.
            state.core.recalled = state.core.snapshot;
            state.core.generation += 1;
            state.changed.insert(RowId::Core);
        }
        Event::Skipped { to, charge } => {
            // Nobody knows what they were: each may have been published.
            let skipped = to.saturating_sub(state.core.snapshot);
            state.core.spent = state.core.spent.with(skipped, *charge);
            state.core.snapshot = *to;
            state.core.recalled = *to;
            state.changed.insert(RowId::Core);
        }
        Event::Published {
            number,
            cells,
            charge,
        } => {
            state.core.spent = state.core.spent.with(1, *charge);
            published(state, *number, cells);
        }
    }
}

fn fold_changed(state: &mut State, forgets: bool) {
    state.core.changes += 1;
    state.core.forgets += u64::from(forgets);
    state.changed.insert(RowId::Core);
}

fn came(state: &mut State, number: Number, name: Digest) {
    let member = Member {
        name,
        newest: Version(0),
        digest: Digest::default(),
        counts: None,
        cell: None,
        past: vec![],
        was_shown: None,
    };
    if let Entry::Vacant(place) = state.members.entry(number) {
        place.insert(member);
        state.index.waiting.insert(number);
        state.changed.insert(RowId::Member(number));
    }
}

fn brought(state: &mut State, number: Number, digest: Digest) {
    let Some(member) = state.members.get_mut(&number) else {
        return;
    };
    member.newest = Version(member.newest.0.saturating_add(1));
    member.digest = digest;
    if let Some(cell) = member.cell {
        state.index.grown.entry(cell).or_default().insert(number);
    }
    state.changed.insert(RowId::Member(number));
}

fn left(state: &mut State, number: Number) {
    state.members.remove(&number);
    state.index.waiting.remove(&number);
    state.changed.insert(RowId::Member(number));
}

fn opened(state: &mut State, cell: CellNo, members: &[Number]) {
    for number in members {
        if let Some(member) = state.members.get_mut(number) {
            member.cell = Some(cell);
            member.counts = Some((member.newest, member.digest));
            state.index.waiting.remove(number);
            state.changed.insert(RowId::Member(*number));
        }
    }
    let opened = Cell {
        members: members.to_vec(),
        shown: false,
    };
    state.cells.insert(cell, opened);
    state.core.cell = state.core.cell.max(cell.0);
    state.changed.insert(RowId::Cell(cell));
    fold_changed(state, false);
}

fn renewed(state: &mut State, cell: CellNo, members: &[Number]) {
    for number in members {
        if let Some(member) = state.members.get_mut(number) {
            member.counts = Some((member.newest, member.digest));
            state.changed.insert(RowId::Member(*number));
        }
    }
    state.index.grown.remove(&cell);
    fold_changed(state, false);
}

fn dissolved(state: &mut State, cell: CellNo, at: u64) {
    state.index.grown.remove(&cell);
    let Some(gone) = state.cells.remove(&cell) else {
        return;
    };
    // The newest snapshot has every cell that was ever shown and is there.
    let was_shown = WasShown {
        number: state.core.snapshot,
        at,
    };
    for number in gone.members {
        let Some(member) = state.members.get_mut(&number) else {
            continue;
        };
        member.cell = None;
        member.counts = None;
        // Nobody has seen a cell that was not published.
        if gone.shown {
            member.was_shown = Some(was_shown);
            member.past.push(cell);
            // Cells may dissolve in any order.
            member.past.sort_unstable();
            let older = member.past.len().saturating_sub(PAST);
            member.past.drain(..older);
        }
        state.index.waiting.insert(number);
        state.changed.insert(RowId::Member(number));
    }
    state.changed.insert(RowId::Cell(cell));
    fold_changed(state, true);
}

fn published(state: &mut State, number: u64, cells: &[CellNo]) {
    for no in cells {
        if let Some(cell) = state.cells.get_mut(no).filter(|c| !c.shown) {
            cell.shown = true;
            state.changed.insert(RowId::Cell(*no));
        }
    }
    state.core.snapshot = number;
    state.core.served = Some(number);
    state.core.out = None;
    state.changed.insert(RowId::Core);
}
