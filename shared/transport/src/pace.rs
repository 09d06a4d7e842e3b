//! Large messages take turns: what is on its way to and from thousands of clients at the same time has a bound.
//!
//! A connection may send [`limits::UNASKED`] bytes that nobody has read; for more it needs credit, which it gets when its message has
//! found room. Messages of one direction share [`limits::SWIFT`] bytes; one that takes longer than [`limits::LINGER`] moves to the
//! [`limits::SLOW`] bytes of those whose peers are slow, when there is room, so that they do not hold up the others.

use std::future::Future;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lethe_proto::limits;
use quinn::VarInt;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// Room is given in units of this many bytes.
const UNIT: usize = 1 << 10;

/// Room for messages of one direction.
#[derive(Debug)]
pub(crate) struct Room {
    swift: Pool,
    slow: Pool,
    /// How long one may take before it is slow, and how long it may wait.
    waits: (Duration, Duration),
}

/// Room in units, and how many there are.
#[derive(Debug)]
struct Pool(Semaphore, usize);

impl Pool {
    fn new(bytes: usize) -> Self {
        Self(Semaphore::new(bytes / UNIT), bytes / UNIT)
    }

    async fn enter(&self, units: usize) -> Option<SemaphorePermit<'_>> {
        self.0.acquire_many(units.min(self.1) as u32).await.ok()
    }
}

impl Default for Room {
    fn default() -> Self {
        Self::new(limits::SWIFT, limits::SLOW, (limits::LINGER, limits::RPC_TIMEOUT))
    }
}

impl Room {
    fn new(swift: usize, slow: usize, waits: (Duration, Duration)) -> Self {
        Self { swift: Pool::new(swift), slow: Pool::new(slow), waits }
    }

    /// Does `work` when there is room for a message of `bytes`, which comes back with what the work gave and is kept until it is
    /// dropped; small ones need none. One that is larger than all room takes all of it. `None` if there was no room for as long as a
    /// call may take.
    pub(crate) async fn carry<T>(&self, bytes: usize, work: impl Future<Output = T>) -> Option<(T, Place<'_>)> {
        if bytes <= limits::SMALL {
            return Some((work.await, None));
        }
        let units = bytes.div_ceil(UNIT);
        let swift = timeout(self.waits.1, self.swift.enter(units)).await.ok()?;
        let mut work = pin!(work);
        if let Ok(done) = timeout(self.waits.0, &mut work).await {
            return Some((done, swift));
        }
        let slow = tokio::select! {
            done = &mut work => return Some((done, swift)),
            slow = self.slow.enter(units) => slow,
        };
        drop(swift);
        Some((work.await, slow))
    }
}

/// Room that a message has; none when it is small.
pub(crate) type Place<'a> = Option<SemaphorePermit<'a>>;

/// What a connection may send beyond [`limits::UNASKED`].
#[derive(Debug, Default)]
pub(crate) struct Credit(Mutex<Account>);

#[derive(Debug, Default, PartialEq)]
struct Account {
    /// Bytes of messages that are being read and have not come.
    awaited: u64,
    /// Bytes that were granted and have not come. More than are awaited after a message that was cut off.
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
    fn with<T>(&self, f: impl FnOnce(&mut Account) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets a message of `bytes` come.
    pub(crate) fn grant<'a>(&'a self, connection: &quinn::Connection, bytes: usize) -> Awaited<'a> {
        self.with(|account| {
            let more = account.ask(bytes as u64);
            if let Ok(window) = VarInt::from_u64(limits::UNASKED + more) {
                // The peer may send `more` once: what is read of it opens the window no further.
                connection.set_receive_window(window);
                connection.set_receive_window(VarInt::from_u64(limits::UNASKED).unwrap_or(window));
            }
        });
        Awaited { credit: self, left: bytes as u64 }
    }
}

/// A message that is coming.
#[derive(Debug)]
pub(crate) struct Awaited<'a> {
    credit: &'a Credit,
    left: u64,
}

impl Awaited<'_> {
    /// So many bytes of it came.
    pub(crate) fn came(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes as u64);
        self.credit.with(|a| a.came(bytes as u64));
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.credit.with(|a| a.gave_up(self.left));
    }
}

#[cfg(test)]
mod tests;
