//! A contribution as bytes.

use lethe_parts::history::Interaction;
use lethe_proto::codec::CodecError;
use lethe_proto::lists::{Placed, PlacedEvent};

/// What a handle contributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    /// Nothing older was left out.
    pub(crate) whole: bool,
    /// Oldest first.
    pub(crate) events: Vec<Interaction>,
}

/// The bytes of a contribution; equal ones have equal bytes.
pub(crate) fn to_bytes(whole: bool, events: &[Interaction]) -> Result<Vec<u8>, CodecError> {
    let placed = events.iter().map(|e| PlacedEvent {
        item: e.item,
        day: e.day,
        half_stars: e.half_stars.unwrap_or(0),
        flags: e.flags(),
    });
    let events = placed.collect();
    Placed { whole, events }.to_bytes()
}

/// Reads [`to_bytes`].
pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Content, CodecError> {
    let Placed { whole, events } = Placed::from_bytes(bytes)?;
    let read = |e: PlacedEvent| Interaction::of_flags(e.item, e.day, e.half_stars, e.flags);
    Ok(Content {
        whole,
        events: events.into_iter().map(read).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let one = |flags: u8| Interaction {
            item: 70_000 + u32::from(flags),
            day: 19_000,
            seen: flags & 1 > 0,
            half_stars: (flags > 3).then_some(flags),
            liked: flags & 2 > 0,
            hidden: flags & 4 > 0,
        };
        let events: Vec<Interaction> = (0..8).map(one).collect();
        let bytes = to_bytes(true, &events).expect("encodes");
        let read = from_bytes(&bytes).expect("decodes");
        assert!(read.whole && read.events == events);
        assert!(from_bytes(&bytes[1..]).is_err());
    }
}
