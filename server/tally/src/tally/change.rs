//! A change of the cells, and what follows from it for contributions, sums and keys.

use std::collections::{BTreeMap, BTreeSet};

use crate::cells::{Event, State, apply};
use crate::ids::{Handle, Number, Version};
use crate::vault::{Brought, Source, VersionOf};

/// Events that are written together.
#[derive(Default)]
pub(super) struct Change {
    events: Vec<Event>,
    /// Contributions that are to count: one a handle.
    pub(super) brought: Vec<Brought>,
    /// What each device has brought last, of handles with several.
    pub(super) sources: BTreeMap<Handle, Vec<Source>>,
    /// Where those stood whom the events are about, before.
    before: BTreeMap<Number, Option<Standing>>,
    generation: Option<u64>,
}

/// Which versions of a member are stored, and which counts.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Standing {
    handle: Handle,
    newest: Version,
    counts: Option<Version>,
}

impl Standing {
    fn of(state: &State, number: Number) -> Option<Self> {
        let member = state.members().get(&number)?;
        Some(Self {
            handle: state.handle(number)?,
            newest: member.newest,
            counts: member.counts.as_ref().map(|c| c.0),
        })
    }

    fn counting(&self) -> Option<VersionOf> {
        Some(VersionOf {
            handle: self.handle,
            version: self.counts?,
        })
    }

    fn stored(&self) -> BTreeSet<VersionOf> {
        let newest = VersionOf {
            handle: self.handle,
            version: self.newest,
        };
        [Some(newest), self.counting()]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// What follows from a change.
#[derive(Default)]
pub(super) struct Effect {
    /// Contributions that count no more.
    pub(super) outgoing: Vec<VersionOf>,
    /// Contributions that count from now on.
    pub(super) incoming: Vec<VersionOf>,
    /// Versions that nothing needs any more, of handles that stay.
    pub(super) dropped: BTreeSet<VersionOf>,
    /// Handles whose keys are to be destroyed.
    pub(super) forgotten: Vec<Handle>,
    /// The generation that was recalled.
    pub(super) recalled: Option<u64>,
}

impl Change {
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.sources.is_empty()
    }

    /// Makes events part of the state, and of this change.
    pub(super) fn take(&mut self, state: &mut State, events: &[Event]) {
        for number in events.iter().flat_map(|e| about(state, e)) {
            let standing = || Standing::of(state, number);
            self.before.entry(number).or_insert_with(standing);
        }
        self.generation.get_or_insert(state.core().generation);
        events.iter().for_each(|event| apply(state, event));
        self.events.extend_from_slice(events);
    }

    /// Items that it clears.
    pub(super) fn cleared(&self) -> impl Iterator<Item = u32> + '_ {
        let items = self.events.iter().filter_map(|e| match e {
            Event::TakenDown { items } => Some(items),
            _ => None,
        });
        items.flatten().copied()
    }

    /// What follows, with the state after it.
    pub(super) fn effect(&self, state: &State) -> Effect {
        let mut effect = Effect::default();
        for (number, before) in &self.before {
            let after = Standing::of(state, *number);
            let counted = before.and_then(|s| s.counting());
            let counts = after.and_then(|s| s.counting());
            if counted != counts {
                effect.outgoing.extend(counted);
                effect.incoming.extend(counts);
            }
            // What a leaver's key seals goes with the key.
            if let (Some(before), Some(after)) = (before, after) {
                let stays = after.stored();
                effect.dropped.extend(before.stored().difference(&stays));
            }
        }
        let forgotten = self.events.iter().filter_map(|e| match e {
            Event::Forgotten { handle } => Some(*handle),
            _ => None,
        });
        effect.forgotten = forgotten.collect();
        let now = state.core().generation;
        effect.recalled = self.generation.filter(|before| *before != now);
        effect
    }
}

/// Members whom an event is about, as the state is before it.
fn about(state: &State, event: &Event) -> Vec<Number> {
    match event {
        Event::Came { number, .. } | Event::Brought { number, .. } | Event::Left { number } => {
            vec![*number]
        }
        Event::Opened { members, .. } | Event::Renewed { members, .. } => members.clone(),
        Event::Dissolved { cell, .. } => {
            let cell = state.cells().get(cell);
            cell.map_or(vec![], |c| c.members.clone())
        }
        _ => vec![],
    }
}
