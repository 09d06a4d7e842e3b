//! People and their devices: what each has recorded, and what the server has of it.

use lethe_learn::seed::Seed;
use lethe_parts::event::{Event, Meaning};
use lethe_parts::history::Interaction;
use lethe_proto::lists::{Contributed, Placed, PlacedEvent, SharedEvent};
use lethe_proto::message::Request;
use lethe_proto::{codec, ids::Digest};

/// How somebody stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Not here, or deleted and back with nothing: the next event enrols.
    Outside,
    /// Contributes.
    In,
    /// Has withdrawn the contribution; the device goes on.
    Withdrawn,
    /// Was deleted, and what happens is not recorded.
    Gone,
}

/// Somebody and their device.
#[derive(Clone, Debug)]
pub(crate) struct Person {
    pub(crate) standing: Standing,
    /// Grows with each deletion: who comes back is somebody else.
    life: u32,
    /// The history on the device, oldest first.
    pub(crate) events: Vec<Event>,
    /// Contributions that the server has taken since the person came, as it seals them.
    pub(crate) sent: Vec<Vec<u8>>,
    /// There is something that was not contributed.
    pub(crate) changed: bool,
    /// Number of the snapshot on the device.
    pub(crate) have: Option<u64>,
    /// The day on which the history on the device begins.
    pub(crate) since: i32,
}

impl Default for Person {
    fn default() -> Self {
        Self {
            standing: Standing::Outside,
            life: 0,
            events: vec![],
            sent: vec![],
            changed: false,
            have: None,
            since: 0,
        }
    }
}

/// A contribution that is due.
pub(crate) struct Due {
    /// As the server seals it.
    pub(crate) bytes: Vec<u8>,
    /// Bytes on the wire.
    pub(crate) wire: usize,
}

impl Person {
    /// What the server knows them by.
    pub(crate) fn handle(&self, seed: &Seed, person: u32) -> [u8; 16] {
        let parts = [person.to_le_bytes(), self.life.to_le_bytes()];
        let derived = seed.derive("handle", &[&parts[0], &parts[1]]);
        let mut out = [0; 16];
        out.copy_from_slice(&derived.0[..16]);
        out
    }

    /// Everything about them is deleted.
    pub(crate) fn delete(&mut self) {
        *self = Self {
            standing: Standing::Gone,
            life: self.life + 1,
            ..Self::default()
        };
    }

    /// They contribute no more; the history stays on the device.
    pub(crate) fn withdraw(&mut self) {
        self.standing = Standing::Withdrawn;
        self.sent.clear();
    }

    /// They contribute again.
    pub(crate) fn contribute_again(&mut self) {
        self.standing = Standing::In;
        self.changed = !self.events.is_empty();
    }

    /// Their newest events, as a device contributes them.
    pub(crate) fn due(
        &self,
        meaning: &Meaning,
        clip: usize,
        ids: &[String],
    ) -> anyhow::Result<Due> {
        let read = Interaction::read(&self.events, meaning);
        let older = read.len().saturating_sub(clip);
        let shared = |i: &Interaction| SharedEvent {
            item: ids[i.item as usize].clone(),
            day: i.day,
            half_stars: i.half_stars.unwrap_or(0),
            flags: i.flags(),
        };
        let placed = |i: &Interaction| PlacedEvent {
            item: i.item,
            day: i.day,
            half_stars: i.half_stars.unwrap_or(0),
            flags: i.flags(),
        };
        let placed = Placed {
            whole: older == 0,
            events: read[older..].iter().map(placed).collect(),
        };
        let body = Contributed {
            source: [1; 16],
            whole: older == 0,
            events: read[older..].iter().map(shared).collect(),
        };
        Ok(Due {
            bytes: placed.to_bytes()?,
            wire: codec::encode_request(&Request::Contribute(body))?.len(),
        })
    }

    /// The server has taken a contribution.
    pub(crate) fn taken(&mut self, bytes: Vec<u8>) {
        self.changed = false;
        if self.sent.last() != Some(&bytes) {
            self.sent.push(bytes);
        }
    }
}

/// SHA-256 of a text, as figures name each other by it.
pub(crate) fn digest(text: &str) -> String {
    Digest::of(&[text.as_bytes()]).hex()
}
