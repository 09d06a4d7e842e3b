//! Large messages take turns: what is on its way to and from thousands of clients at the same time
//! has a bound.
//!
//! A connection may send [`limits::UNASKED`] bytes that nobody has read; for more it needs credit,
//! which it gets by and by when its message has found room. Messages of one direction share
//! [`limits::COMING`] or [`limits::GOING`] bytes; one that takes longer than [`limits::LINGER`]
//! moves to the [`limits::SLOW`] bytes of those whose peers are slow, so that these do not hold up
//! the others; when there is no room for it either, it is cut off. An update that has come makes
//! way for the next and needs room among the [`limits::KEPT`] bytes until it is stored; most other
//! messages have room among the [`limits::ASIDE`] bytes until they are answered, one of a peer at a
//! time. Those that wait for each other have none: whoever answers bounds them. A peer has one
//! large message at a time in each direction, and one that falls behind an even pace is cut off.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use lethe_proto::ids::Digest;
use lethe_proto::limits;
use quinn::VarInt;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

/// Room is given in units of this many bytes.
const UNIT: usize = 1 << 10;

/// There is no room: to be tried again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crowded;

/// Room for messages of one direction.
#[derive(Debug)]
pub(crate) struct Room {
    swift: Pool,
    slow: Pool,
    kept: Pool,
    aside: Pool,
    waits: Waits,
}

#[derive(Clone, Copy, Debug)]
struct Waits {
    /// For room.
    enter: Duration,
    /// Until one is slow.
    linger: Duration,
    /// For room among the slow.
    crowded: Duration,
}

/// Room in units, and how many there are.
#[derive(Debug)]
struct Pool(Semaphore, usize);

impl Pool {
    fn new(bytes: usize) -> Self {
        Self(Semaphore::new(bytes / UNIT), bytes / UNIT)
    }

    /// Room for so many units within a time; one that is larger than all takes all.
    async fn enter(&self, units: usize, within: Duration) -> Result<SemaphorePermit<'_>, Crowded> {
        let enter = self.0.acquire_many(units.min(self.1) as u32);
        timeout(within, enter)
            .await
            .map_err(|_| Crowded)?
            .map_err(|_| Crowded)
    }
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            enter: limits::ROOM_WAIT,
            linger: limits::LINGER,
            crowded: limits::CROWDED,
        }
    }
}

/// Room that a message has, until it is dropped; none when it is small.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    units: usize,
    room: Option<SemaphorePermit<'a>>,
}

impl Room {
    fn new(swift: usize, slow: usize, waits: Waits) -> Self {
        Self {
            swift: Pool::new(swift),
            slow: Pool::new(slow),
            kept: Pool::new(limits::KEPT),
            aside: Pool::new(limits::ASIDE),
            waits,
        }
    }

    /// For what comes from peers.
    pub(crate) fn coming() -> Self {
        Self::new(limits::COMING, limits::SLOW, Waits::default())
    }

    /// For what goes to them.
    pub(crate) fn going() -> Self {
        Self::new(limits::GOING, limits::SLOW, Waits::default())
    }

    /// Waits for room for a message of `bytes`.
    pub(crate) async fn enter(&self, bytes: usize) -> Result<Place<'_>, Crowded> {
        let units = bytes.div_ceil(UNIT);
        if bytes <= limits::SMALL {
            return Ok(Place { units, room: None });
        }
        let room = self.swift.enter(units, self.waits.enter).await?;
        Ok(Place {
            units,
            room: Some(room),
        })
    }

    /// Moves a message that has room, which comes back with what that gave. One that takes long
    /// moves to the slow, or is cut off.
    pub(crate) async fn carry<'a, T>(
        &'a self,
        mut place: Place<'a>,
        message: impl Future<Output = T>,
    ) -> Result<(T, Place<'a>), Crowded> {
        if place.room.is_none() {
            return Ok((message.await, place));
        }
        let mut message = pin!(message);
        if let Ok(done) = timeout(self.waits.linger, &mut message).await {
            return Ok((done, place));
        }
        let slow = tokio::select! {
            done = &mut message => return Ok((done, place)),
            slow = self.slow.enter(place.units, self.waits.crowded) => slow?,
        };
        place.room = Some(slow);
        Ok((message.await, place))
    }
}

impl Room {
    /// A message that has come makes way for others, and has room among those that are kept. Until
    /// there is some, it stays where it is: then less comes.
    pub(crate) async fn keep<'a>(&'a self, mut place: Place<'a>) -> Result<Place<'a>, Crowded> {
        if place.room.is_some() {
            let kept = self.kept.enter(place.units, self.waits.enter).await?;
            place.room = Some(kept);
        }
        Ok(place)
    }
}

impl Room {
    /// The same for a message that need not be stored: without room, it is to be sent again.
    pub(crate) fn set_aside<'a>(&'a self, mut place: Place<'a>) -> Result<Place<'a>, Crowded> {
        if place.room.is_some() {
            let units = place.units.min(self.aside.1) as u32;
            let aside = self.aside.0.try_acquire_many(units).map_err(|_| Crowded)?;
            place.room = Some(aside);
        }
        Ok(place)
    }
}

/// A peer's turn, one large message at a time in each direction, and one that is being answered.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) coming: Semaphore,
    pub(crate) going: Semaphore,
    pub(crate) asked: Semaphore,
}

/// The turns of all peers, by certificate.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<HashMap<Digest, Weak<Turn>>>);

impl Turns {
    /// That of a peer, the same for all its connections; strangers have one each.
    pub(crate) fn of(&self, peer: Option<&Digest>) -> Arc<Turn> {
        let fresh = || {
            Arc::new(Turn {
                coming: Semaphore::new(1),
                going: Semaphore::new(1),
                asked: Semaphore::new(1),
            })
        };
        let Some(peer) = peer else { return fresh() };
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(peer).and_then(Weak::upgrade) {
            return turn;
        }
        if turns.len() >= turns.capacity() {
            turns.retain(|_, t| t.strong_count() > 0);
        }
        let turn = fresh();
        turns.insert(*peer, Arc::downgrade(&turn));
        turn
    }
}

/// Waits for a turn if a message of `bytes` needs one.
pub(crate) async fn turn(
    of: &Semaphore,
    bytes: usize,
) -> Result<Option<SemaphorePermit<'_>>, Crowded> {
    if bytes <= limits::SMALL {
        return Ok(None);
    }
    timeout(limits::ROOM_WAIT, of.acquire())
        .await
        .map_err(|_| Crowded)?
        .map(Some)
        .map_err(|_| Crowded)
}

/// An even pace: by when the next bytes of a message must move so that it is not late.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    started: Instant,
    bytes: usize,
}

impl Pace {
    /// Of a message of so many bytes that begins now.
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            started: Instant::now(),
            bytes: bytes.max(1),
        }
    }

    /// When so many of them have moved.
    pub(crate) fn due(self, moved: usize) -> Instant {
        let share = moved.min(self.bytes) as f64 / self.bytes as f64;
        self.started + limits::BEHIND + (limits::RPC_TIMEOUT - limits::BEHIND).mul_f64(share)
    }
}

/// What a connection may send beyond [`limits::UNASKED`].
#[derive(Debug, Default)]
pub(crate) struct Credit(Mutex<Account>);

#[derive(Debug, Default, PartialEq)]
struct Account {
    /// Bytes of messages that are being read and have not come.
    awaited: u64,
    /// Bytes that were granted and have not come. More than are awaited after a message that was
    /// cut off.
    granted: u64,
}

impl Account {
    /// How much is to be granted for `bytes` more.
    fn ask(&mut self, bytes: u64) -> u64 {
        self.awaited += bytes;
        let more = self.awaited.saturating_sub(self.granted);
        self.granted += more;
        more
    }

    fn came(&mut self, bytes: u64) {
        self.awaited = self.awaited.saturating_sub(bytes);
        self.granted = self.granted.saturating_sub(bytes);
    }

    fn gave_up(&mut self, bytes: u64) {
        self.awaited = self.awaited.saturating_sub(bytes);
    }
}

impl Credit {
    /// Lets a message of `bytes` come, [`limits::AHEAD`] of it before it is read.
    pub(crate) fn grant<'a>(
        &'a self,
        connection: &'a quinn::Connection,
        bytes: usize,
    ) -> Awaited<'a> {
        let mut awaited = Awaited {
            credit: self,
            connection,
            asked: 0,
            later: bytes as u64,
        };
        awaited.ask();
        awaited
    }

    fn with<T>(&self, f: impl FnOnce(&mut Account) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A message that is coming.
#[derive(Debug)]
pub(crate) struct Awaited<'a> {
    credit: &'a Credit,
    connection: &'a quinn::Connection,
    /// Bytes that may come and have not.
    asked: u64,
    /// Bytes that may come later.
    later: u64,
}

impl Awaited<'_> {
    fn ask(&mut self) {
        let bytes = self.later.min(limits::AHEAD.saturating_sub(self.asked));
        // By and by, and not at every packet.
        if bytes == 0 || (bytes < self.later && bytes < limits::AHEAD / 4) {
            return;
        }
        (self.asked, self.later) = (self.asked + bytes, self.later - bytes);
        self.credit.with(|account| {
            let more = account.ask(bytes);
            if let Ok(window) = VarInt::from_u64(limits::UNASKED + more) {
                // The peer may send `more` once: what is read of it opens the window no further.
                self.connection.set_receive_window(window);
                self.connection
                    .set_receive_window(VarInt::from_u64(limits::UNASKED).unwrap_or(window));
            }
        });
    }

    /// So many bytes of it came.
    pub(crate) fn came(&mut self, bytes: usize) {
        self.asked = self.asked.saturating_sub(bytes as u64);
        self.credit.with(|a| a.came(bytes as u64));
        self.ask();
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.credit.with(|a| a.gave_up(self.asked));
    }
}

#[cfg(test)]
mod tests;
