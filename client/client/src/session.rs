//! The connection, opened when needed and again after a loss.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lethe_proto::codec::Extension;
use lethe_proto::message::{Refusal, Reply, Request};
use lethe_transport::TransportError;
use lethe_transport::client::Connection;
use lethe_transport::identity::Identity;
use lethe_transport::place::Place;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::backoff::Backoff;

/// Calls the coordinator, connecting when there is no connection.
#[derive(Debug)]
pub(crate) struct Session {
    place: Place,
    /// Trusted, and no other.
    authority: std::sync::Mutex<Vec<u8>>,
    /// Shown with the next connection.
    identity: std::sync::Mutex<Identity>,
    /// Sent with every request, by a newer minor version.
    extensions: Vec<Extension>,
    live: std::sync::Mutex<Option<Arc<Connection>>>,
    /// Held while a connection is opened.
    opening: Mutex<()>,
    /// Closed for good: work that goes on in the background must not open a connection again.
    closed: AtomicBool,
    pub(crate) counters: Arc<Counters>,
    /// Is told when the coordinator knows this device no longer, whatever was asked.
    refused: Refused,
    /// Keeps the authority that took the place of the one that is trusted.
    follows: Follows,
}

/// Keeps an authority (DER) in place of another one, durably; returns whether it did.
#[derive(Clone)]
pub(crate) struct Follows(Arc<Keeps>);

type Keeps = dyn Fn(&[u8], &[u8]) -> bool + Send + Sync;

impl Follows {
    /// `keeps` is given the authority of before, and the present one.
    pub(crate) fn new(keeps: impl Fn(&[u8], &[u8]) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(keeps))
    }
}

impl std::fmt::Debug for Follows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Follows")
    }
}

/// What is done when the coordinator, whose certificate was checked, says that it knows this device
/// no longer.
#[derive(Clone)]
pub(crate) struct Refused(Arc<dyn Fn() + Send + Sync>);

impl Refused {
    pub(crate) fn new(does: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(does))
    }
}

impl std::fmt::Debug for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Refused")
    }
}

/// What a client has exchanged so far.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Bytes of updates and adapters, both ways.
    pub(crate) update_bytes: AtomicU64,
    /// Bytes of hidden states and gradients, both ways.
    pub(crate) activation_bytes: AtomicU64,
    /// Samples of the updates that were sent.
    pub(crate) samples: AtomicU64,
}

impl Session {
    pub(crate) fn new(
        place: Place,
        authority: Vec<u8>,
        identity: Identity,
        extensions: Vec<Extension>,
        counters: Arc<Counters>,
        refused: Refused,
        follows: Follows,
    ) -> Self {
        Self {
            place,
            authority: std::sync::Mutex::new(authority),
            identity: std::sync::Mutex::new(identity),
            extensions,
            live: std::sync::Mutex::new(None),
            opening: Mutex::new(()),
            closed: AtomicBool::new(false),
            counters,
            refused,
            follows,
        }
    }

    fn authority(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        // A whole value is put there or none.
        self.authority
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn identity(&self) -> std::sync::MutexGuard<'_, Identity> {
        // A whole value is put there or none.
        self.identity
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A certificate for a new key, in exchange for the one of this connection.
    pub(crate) async fn renew(&self) -> Result<Identity, TransportError> {
        let renewed = self.connection().await?.renew().await;
        self.heard(renewed)
    }

    fn heard<T>(&self, answer: Result<T, TransportError>) -> Result<T, TransportError> {
        if matches!(answer, Err(TransportError::Withdrawn)) {
            (self.refused.0)();
        }
        answer
    }

    /// Shows this identity from the next connection on.
    pub(crate) fn show(&self, identity: Identity) {
        *self.identity() = identity;
    }

    fn live(&self) -> std::sync::MutexGuard<'_, Option<Arc<Connection>>> {
        self.live
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn open_one(&self) -> Option<Arc<Connection>> {
        self.live().as_ref().filter(|c| !c.is_closed()).cloned()
    }

    async fn connection(&self) -> Result<Arc<Connection>, TransportError> {
        if let Some(c) = self.open_one() {
            return Ok(c);
        }
        let _one = self.opening.lock().await;
        if let Some(c) = self.open_one() {
            return Ok(c);
        }
        let identity = self.identity().clone();
        self.ends_when_closed()?;
        let authority = self.authority().clone();
        let fresh = Connection::open(self.place.clone(), &authority, Some(&identity)).await;
        let fresh = self.heard(fresh)?;
        self.follow(&fresh, &authority);
        let fresh = Arc::new(fresh.extended(self.extensions.clone()));
        *self.live() = Some(fresh.clone());
        // It may have been closed meanwhile.
        self.ends_when_closed()?;
        Ok(fresh)
    }

    /// Goes over to the authority that took the place of the one under which the coordinator was
    /// verified just now, if one did.
    fn follow(&self, connection: &Connection, authority: &[u8]) {
        let Some(next) = connection.shown().successor(authority) else {
            return;
        };
        if (self.follows.0)(authority, &next) {
            *self.authority() = next;
        }
    }

    fn ends_when_closed(&self) -> Result<(), TransportError> {
        if self.closed.load(Ordering::SeqCst) {
            self.live().take();
            return Err(TransportError::Lost("the client was closed".into()));
        }
        Ok(())
    }

    /// One call. A lost connection is an error; the next call opens a new one.
    pub(crate) async fn call(&self, request: &Request) -> Result<Reply, TransportError> {
        let answer = self.connection().await?.call(request).await;
        self.heard(answer)
    }

    /// A call that may be sent twice: tried again, on a new connection, until `until`.
    pub(crate) async fn call_until(
        &self,
        request: &Request,
        until: Instant,
    ) -> Result<Reply, TransportError> {
        let mut pause = Backoff::default();
        loop {
            match self.call(request).await {
                Err(e) if e.is_transient() && !self.closed.load(Ordering::SeqCst) => {
                    let next = Instant::now() + pause.next();
                    if next >= until {
                        return Err(e);
                    }
                    tracing::debug!("{e}; trying again");
                    tokio::time::sleep_until(next).await;
                }
                other => return other,
            }
        }
    }

    /// A call that waits for a coordinator that has too much to do, as long as there is `patience`
    /// left. Where there is none it fails at once: the last list need not wait.
    pub(crate) async fn call_while_busy(
        &self,
        request: &Request,
        patience: &mut Duration,
    ) -> Result<Reply, TransportError> {
        let mut pause = Backoff::default();
        loop {
            let answer = self.call(request).await;
            let busy = matches!(
                &answer,
                Err(TransportError::Refused { code, .. }) if *code == Refusal::Busy
            );
            let next = pause.next();
            if !busy || next > *patience || self.closed.load(Ordering::SeqCst) {
                return answer;
            }
            *patience -= next;
            tokio::time::sleep(next).await;
        }
    }

    /// The device has another address: the connection goes on from there.
    pub(crate) fn rebind(&self) -> Result<(), TransportError> {
        match self.open_one() {
            Some(c) => c.rebind(),
            None => Ok(()),
        }
    }

    /// Ends the connection, if there is one; the next call opens another.
    pub(crate) fn hang_up(&self) {
        self.live().take();
    }

    /// Ends the connection, if there is one, and opens none again.
    pub(crate) fn shut(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.live().take();
    }

    /// The same, and waits until the coordinator has been told.
    pub(crate) async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let live = self.live().take();
        if let Some(c) = live.and_then(Arc::into_inner) {
            c.close().await;
        }
    }

    pub(crate) fn count_update(&self, bytes: usize) {
        self.counters
            .update_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_activations(&self, bytes: usize) {
        self.counters
            .activation_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_samples(&self, samples: u32) {
        self.counters
            .samples
            .fetch_add(u64::from(samples), Ordering::Relaxed);
    }
}
