//! Room in memory for what passes keep: so many of them, and so many bytes together.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Memory is counted in pieces of this many bytes: all of it is less than a semaphore's most.
const PIECE: usize = 64 << 10;

/// The bounds, and who has what of them.
#[derive(Debug)]
pub(crate) struct Room {
    places: Arc<Semaphore>,
    pieces: Arc<Semaphore>,
    all_pieces: u32,
}

/// A pass's part of the room; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Place {
    _place: OwnedSemaphorePermit,
    _pieces: OwnedSemaphorePermit,
}

impl Room {
    /// Room for `passes` passes (at least one) with `mib` MiB together.
    pub(crate) fn new(passes: usize, mib: usize) -> Self {
        let pieces = mib.saturating_mul(1 << 20) / PIECE;
        let pieces = pieces.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self {
            places: Arc::new(Semaphore::new(passes.clamp(1, Semaphore::MAX_PERMITS))),
            pieces: Arc::new(Semaphore::new(pieces)),
            all_pieces: pieces as u32,
        }
    }

    /// A pass that needs more than there is gets all of it, and runs alone.
    fn pieces_of(&self, bytes: usize) -> u32 {
        let pieces = u32::try_from(bytes.div_ceil(PIECE)).unwrap_or(u32::MAX);
        pieces.min(self.all_pieces)
    }

    /// Room for a pass that keeps `bytes`, if there is some now.
    pub(crate) fn try_take(&self, bytes: usize) -> Option<Place> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        let count = self.pieces_of(bytes);
        let pieces = self.pieces.clone().try_acquire_many_owned(count).ok()?;
        Some(Place {
            _place: place,
            _pieces: pieces,
        })
    }

    /// Waits for room, in the order of asking.
    pub(crate) async fn take(&self, bytes: usize) -> Place {
        // Nobody closes the semaphores.
        let closed = "the room is not closed while it is used";
        let place = self.places.clone().acquire_owned().await.expect(closed);
        let count = self.pieces_of(bytes);
        let pieces = self.pieces.clone().acquire_many_owned(count).await;
        Place {
            _place: place,
            _pieces: pieces.expect(closed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn passes_and_their_bytes_are_bounded() {
        let room = Room::new(2, 10);
        let first = room.try_take(6 * MIB).expect("all is free");
        assert!(room.try_take(5 * MIB).is_none(), "11 of 10 MiB");
        let second = room.try_take(4 * MIB).expect("10 of 10 MiB");
        assert!(room.try_take(0).is_none(), "three passes of two");
        drop(second);
        let small = room.try_take(1).expect("a piece is free");
        drop(first);
        drop(small);
        assert!(room.try_take(10 * MIB).is_some(), "all came back");
    }

    #[test]
    fn a_pass_that_needs_more_than_all_runs_alone() {
        let room = Room::new(4, 10);
        let alone = room.try_take(usize::MAX).expect("all is free");
        assert!(room.try_take(1).is_none());
        drop(alone);
        assert!(room.try_take(1).is_some());
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_leaves_nothing_taken() {
        let room = Room::new(4, 10);
        let held = room.take(6 * MIB).await;
        {
            let waits = room.take(6 * MIB);
            tokio::pin!(waits);
            let soon = std::time::Duration::from_millis(1);
            assert!(tokio::time::timeout(soon, &mut waits).await.is_err());
            assert!(room.try_take(1).is_none(), "who waits is first");
        }
        drop(held);
        assert!(room.try_take(10 * MIB).is_some());
    }
}
