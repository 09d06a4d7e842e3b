//! Decisions: what a command makes happen, or why it is refused.

use std::collections::BTreeSet;

use super::command::{Command, Event, Leaver, Offered, Refused};
use super::draw::draw;
use super::state::State;
use crate::ids::{CellNo, Fresh, Handle, Number};

type Decided = Result<Vec<Event>, Refused>;

/// What a command makes happen at `now`, in seconds since 1970. All of it is written as one batch,
/// or none. An empty list: nothing, or nothing any more.
///
/// # Errors
/// [`Refused`] says why a contribution is not taken.
pub fn decide(state: &State, command: &Command, now: u64) -> Decided {
    match command {
        Command::Contribute {
            handle,
            offered,
            fresh,
            refresh_s,
        } => match state.people.contains_key(handle) {
            true => again(state, *handle, offered, *refresh_s, now),
            false => first(state, *handle, offered, *fresh, now),
        },
        Command::Leave(handles) => Ok(leave(state, handles, now)),
        Command::LeaveOlder(leavers) => {
            let is_older = |l: &&Leaver| {
                let person = state.people.get(&l.handle);
                person.is_some_and(|p| p.since <= l.before)
            };
            let older = leavers.iter().filter(is_older).map(|l| l.handle);
            Ok(leave(state, &older.collect::<Vec<_>>(), now))
        }
        Command::LeaveStrays => {
            let is_stray = |n: &&Number| state.handle(**n).is_none();
            let strays = state.members.keys().filter(is_stray).copied();
            Ok(left(state, strays.collect(), now))
        }
        Command::OpenCell { secret } => {
            let cell = CellNo(state.core.cell + 1);
            let members = draw(state, secret, cell);
            let opened = members.map(|members| Event::Opened { cell, members });
            Ok(opened.into_iter().collect())
        }
        Command::Renew(cell) => Ok(renew(state, *cell)),
        Command::TakeDown(items) => Ok(take_down(state, items, now)),
        Command::Publish {
            number,
            forgets,
            cells,
            charge,
        } => {
            let in_time = *number == state.core.snapshot + 1 && *forgets == state.core.forgets;
            let published = Event::Published {
                number: *number,
                cells: cells.clone(),
                charge: *charge,
            };
            Ok(in_time.then_some(published).into_iter().collect())
        }
        Command::Skip { to, charge } => Ok(skip(state, *to, *charge, now)),
        Command::Lost => {
            let served = state.core.served.is_some();
            let recalled = Event::Recalled { at: now, cells: 0 };
            Ok(served.then_some(recalled).into_iter().collect())
        }
    }
}

fn first(state: &State, handle: Handle, offered: &Offered, salt: Fresh, now: u64) -> Decided {
    let got = state.members.len();
    if got >= state.settings.people as usize {
        return Err(Refused::Full { got });
    }
    let number = salt.number();
    if state.members.contains_key(&number) {
        return Err(Refused::Taken);
    }
    Ok(vec![
        Event::Known {
            handle,
            number,
            salt,
            since: now,
        },
        spoke(handle, offered, now),
        Event::Came {
            number,
            name: salt.name(number),
        },
        Event::Brought {
            number,
            digest: salt.version(crate::ids::Version(1), &offered.content),
        },
    ])
}

fn spoke(handle: Handle, offered: &Offered, now: u64) -> Event {
    Event::Spoke {
        handle,
        at: now,
        source: offered.source,
        events: offered.events,
    }
}

/// Whether something may be brought in a place where something was brought `last`.
///
/// # Errors
/// [`Refused::TooSoon`].
pub(crate) fn in_time(last: Option<u64>, refresh_s: u64, now: u64) -> Result<(), Refused> {
    let Some(last) = last else {
        return Ok(());
    };
    let since_s = now.saturating_sub(last);
    match since_s < refresh_s {
        true => Err(Refused::TooSoon {
            since_s,
            refresh_s,
            wait_s: refresh_s - since_s,
        }),
        false => Ok(()),
    }
}

fn again(state: &State, handle: Handle, offered: &Offered, refresh_s: u64, now: u64) -> Decided {
    let Some(person) = state.people.get(&handle) else {
        return Ok(vec![]);
    };
    let Some(member) = state.members.get(&person.number) else {
        return Ok(vec![]);
    };
    // The same once more: an answer was lost; or other devices have brought all of it.
    if person.salt.version(member.newest, &offered.content) == member.digest {
        return Ok(vec![]);
    }
    in_time(offered.last, refresh_s, now)?;
    let got = member.newest.0;
    let next = got.checked_add(1).ok_or(Refused::Versions { got })?;
    Ok(vec![
        spoke(handle, offered, now),
        Event::Brought {
            number: person.number,
            digest: person
                .salt
                .version(crate::ids::Version(next), &offered.content),
        },
    ])
}

fn leave(state: &State, handles: &[Handle], now: u64) -> Vec<Event> {
    let handles: BTreeSet<Handle> = handles.iter().copied().collect();
    let known = |h: &Handle| state.people.get(h).map(|p| (*h, p.number));
    let known: Vec<(Handle, Number)> = handles.iter().filter_map(known).collect();
    let forgotten = known.iter().map(|k| Event::Forgotten { handle: k.0 });
    let mut events: Vec<Event> = forgotten.collect();
    events.extend(left(state, known.iter().map(|k| k.1).collect(), now));
    events
}

/// Members leave, and their cells with them.
fn left(state: &State, numbers: BTreeSet<Number>, now: u64) -> Vec<Event> {
    let cell_of = |n: &Number| state.members.get(n)?.cell;
    let cells: BTreeSet<CellNo> = numbers.iter().filter_map(cell_of).collect();
    let known = numbers.iter().filter(|n| state.members.contains_key(n));
    let mut events: Vec<Event> = known.map(|n| Event::Left { number: *n }).collect();
    let dissolved = |cell: &CellNo| Event::Dissolved {
        cell: *cell,
        at: now,
    };
    events.extend(cells.iter().map(dissolved));
    let shown = |cell: &&CellNo| state.cells.get(cell).is_some_and(|c| c.shown);
    let shown = cells.iter().filter(shown).count() as u32;
    if shown > 0 {
        events.push(Event::Recalled {
            at: now,
            cells: shown,
        });
    }
    events
}

fn renew(state: &State, cell: CellNo) -> Vec<Event> {
    let grown = state.index.grown.get(&cell);
    let enough = grown.filter(|g| g.len() >= state.settings.changed as usize);
    let renewed = enough.map(|grown| Event::Renewed {
        cell,
        members: grown.iter().copied().collect(),
    });
    renewed.into_iter().collect()
}

fn take_down(state: &State, items: &[u32], now: u64) -> Vec<Event> {
    let items: BTreeSet<u32> = items.iter().copied().collect();
    let items: Vec<u32> = items.difference(&state.cleared).copied().collect();
    if items.is_empty() {
        return vec![];
    }
    let mut events = vec![Event::TakenDown { items }];
    if state.core.served.is_some() {
        events.push(Event::Recalled { at: now, cells: 0 });
    }
    events
}

fn skip(state: &State, to: u64, charge: u64, now: u64) -> Vec<Event> {
    if to <= state.core.snapshot {
        return vec![];
    }
    let mut events = vec![];
    if state.core.served.is_some() {
        events.push(Event::Recalled { at: now, cells: 0 });
    }
    events.push(Event::Skipped { to, charge });
    events
}
