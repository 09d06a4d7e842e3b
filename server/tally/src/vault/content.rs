//! A contribution as bytes.

use lethe_parts::history::Interaction;
use lethe_proto::codec::{self, CodecError};
use serde::{Deserialize, Serialize};

/// The most bytes of a contribution: `MAX_CLIP` events take fewer.
const MOST: usize = 1 << 20;

/// An event as it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    item: u32,
    day: i32,
    /// Half stars; 0: it stands for no rating.
    half_stars: u8,
    /// Bit 0: seen, 1: liked, 2: hidden.
    flags: u8,
}

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
    let stored = events.iter().map(|e| Stored {
        item: e.item,
        day: e.day,
        half_stars: e.half_stars.unwrap_or(0),
        flags: u8::from(e.seen) | u8::from(e.liked) << 1 | u8::from(e.hidden) << 2,
    });
    codec::to_bytes(&(whole, stored.collect::<Vec<_>>()))
}

/// Reads [`to_bytes`].
pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Content, CodecError> {
    let (whole, stored): (bool, Vec<Stored>) = codec::from_bytes(bytes, MOST)?;
    let events = stored.into_iter().map(|s| Interaction {
        item: s.item,
        day: s.day,
        seen: s.flags & 1 > 0,
        half_stars: (s.half_stars > 0).then_some(s.half_stars),
        liked: s.flags & 2 > 0,
        hidden: s.flags & 4 > 0,
    });
    Ok(Content {
        whole,
        events: events.collect(),
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
