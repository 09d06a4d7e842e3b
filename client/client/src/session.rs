//! The connection, opened when needed and again after a loss.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lethe_proto::codec::Extension;
use lethe_proto::message::{Reply, Request};
use lethe_transport::TransportError;
use lethe_transport::client::Connection;
use lethe_transport::identity::Identity;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::backoff::Backoff;

/// Calls the coordinator, connecting when there is no connection.
#[derive(Debug)]
pub(crate) struct Session {
    addr: SocketAddr,
    authority: Vec<u8>,
    /// Shown with the next connection.
    identity: std::sync::Mutex<Identity>,
    /// Sent with every request, by a newer minor version.
    extensions: Vec<Extension>,
    live: Mutex<Option<Arc<Connection>>>,
    /// Closed for good: work that goes on in the background must not open a connection again.
    closed: AtomicBool,
    /// Bytes of updates and adapters, both ways.
    pub(crate) update_bytes: AtomicU64,
    /// Bytes of hidden states and gradients, both ways.
    pub(crate) activation_bytes: AtomicU64,
    /// Samples of the updates that were sent.
    pub(crate) samples: AtomicU64,
}

impl Session {
    pub(crate) fn new(
        addr: SocketAddr,
        authority: Vec<u8>,
        identity: Identity,
        extensions: Vec<Extension>,
    ) -> Self {
        Self {
            addr,
            authority,
            identity: std::sync::Mutex::new(identity),
            extensions,
            live: Mutex::new(None),
            closed: AtomicBool::new(false),
            update_bytes: AtomicU64::new(0),
            activation_bytes: AtomicU64::new(0),
            samples: AtomicU64::new(0),
        }
    }

    fn identity(&self) -> std::sync::MutexGuard<'_, Identity> {
        // A whole value is put there or none.
        self.identity
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A certificate for a new key, in exchange for the one of this connection.
    pub(crate) async fn renew(&self) -> Result<Identity, TransportError> {
        self.connection().await?.renew().await
    }

    /// Shows this identity from the next connection on.
    pub(crate) fn show(&self, identity: Identity) {
        *self.identity() = identity;
    }

    async fn connection(&self) -> Result<Arc<Connection>, TransportError> {
        let mut live = self.live.lock().await;
        if let Some(c) = live.as_ref().filter(|c| !c.is_closed()) {
            return Ok(c.clone());
        }
        if self.closed.load(Ordering::SeqCst) {
            return Err(TransportError::Lost("the client was closed".into()));
        }
        let identity = self.identity().clone();
        let fresh = Connection::open(self.addr, &self.authority, Some(&identity)).await?;
        let fresh = Arc::new(fresh.extended(self.extensions.clone()));
        *live = Some(fresh.clone());
        Ok(fresh)
    }

    /// One call. A lost connection is an error; the next call opens a new one.
    pub(crate) async fn call(&self, request: &Request) -> Result<Reply, TransportError> {
        self.connection().await?.call(request).await
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

    /// The device has another address: the connection goes on from there.
    pub(crate) async fn rebind(&self) -> Result<(), TransportError> {
        match self.live.lock().await.as_ref() {
            Some(c) => c.rebind(),
            None => Ok(()),
        }
    }

    /// Closes the connection, if there is one, and opens none again.
    pub(crate) async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        if let Some(c) = self.live.lock().await.take().and_then(Arc::into_inner) {
            c.close().await;
        }
    }

    pub(crate) fn count_update(&self, bytes: usize) {
        self.update_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_activations(&self, bytes: usize) {
        self.activation_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
