//! The coordinator's listener: accepts, bounds, authenticates, and hands each request to a handler.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use lethe_proto::ids::Digest;
use lethe_proto::limits;
use lethe_proto::message::{Reply, Request};
use quinn_proto::HashedConnectionIdGenerator;
use rustls::pki_types::CertificateDer;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::exchange::Desk;
use crate::identity::{Authority, fingerprint};
use crate::{TransportError, config};

/// Close codes that a client may see.
const REVOKED: u32 = 1;
const TOO_MANY: u32 = 2;

/// A reply in the making.
pub type ReplyFuture = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    /// Whether a certificate may connect now: known and not revoked. Asked after every handshake.
    fn admits(&self, certificate: &Digest) -> bool;
    /// Longest body of a message type that makes sense here; what a peer claims beyond it is
    /// refused by its header.
    fn longest(&self, kind: u16) -> usize;
    /// Answers one request; `certificate` is `None` for a peer without one. `bytes` is the
    /// request's frame length.
    fn handle(&self, certificate: Option<Digest>, request: Request, bytes: usize) -> ReplyFuture;
    /// The last connection of this certificate ended.
    fn disconnected(&self, certificate: &Digest);
}

/// Connections without a certificate, which may only enrol.
#[derive(Clone)]
struct Doorstep(Arc<Semaphore>);

#[derive(Default)]
struct Live(Mutex<HashMap<Digest, Vec<quinn::Connection>>>);

impl Live {
    fn with<T>(&self, f: impl FnOnce(&mut HashMap<Digest, Vec<quinn::Connection>>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Threads that do nothing but move packets: a handler that thinks for long must not let
/// connections die.
struct Network(Option<Runtime>);

impl Network {
    fn start() -> std::io::Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        Ok(Self(Some(
            builder
                .worker_threads(threads)
                .thread_name("lethe-quic")
                .enable_all()
                .build()?,
        )))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A running listener.
#[derive(Clone)]
pub struct Server {
    endpoint: quinn::Endpoint,
    network: Arc<Network>,
    live: Arc<Live>,
    doorstep: Doorstep,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({:?})", self.endpoint.local_addr())
    }
}

impl Server {
    /// Listens on `addr` with a fresh certificate of `authority`.
    pub fn bind(addr: SocketAddr, authority: &Authority) -> Result<Self, TransportError> {
        let config = config::server(authority.certificate(), &authority.server_identity()?)?;
        let bind = |source| TransportError::Bind { addr, source };
        let socket = config::socket(addr).map_err(bind)?;
        let (reset_key, cid_key) = authority.endpoint_keys();
        let mut endpoint = quinn::EndpointConfig::new(Arc::new(reset_key));
        endpoint.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(cid_key)));
        let network = Network::start().map_err(bind)?;
        let endpoint = {
            let _on = network.0.as_ref().map(Runtime::enter);
            quinn::Endpoint::new(
                endpoint,
                Some(config),
                socket,
                Arc::new(quinn::TokioRuntime),
            )
            .map_err(bind)?
        };
        let doorstep = Doorstep(Arc::new(Semaphore::new(limits::MAX_UNAUTHENTICATED)));
        Ok(Self {
            endpoint,
            network: Arc::new(network),
            live: Arc::default(),
            doorstep,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> Result<SocketAddr, TransportError> {
        self.endpoint
            .local_addr()
            .map_err(|e| TransportError::Lost(e.to_string()))
    }

    /// Accepts connections until [`Self::close`]. The handler runs on the caller's runtime.
    pub async fn run(&self, handler: Arc<dyn Handler>) {
        let desk = Desk::new(handler, Handle::current());
        let (this, network) = (
            self.clone(),
            self.network.0.as_ref().map(|r| r.handle().clone()),
        );
        if let Some(network) = network {
            let _ = network.spawn(async move { this.accept(desk).await }).await;
        }
    }

    async fn accept(&self, desk: Desk) {
        while let Some(incoming) = self.endpoint.accept().await {
            // Under load an unvalidated address must answer a Retry first, so that spoofed packets
            // cost little.
            if !incoming.remote_address_validated()
                && self.endpoint.open_connections() > limits::MAX_INCOMING / 2
            {
                let _ = incoming.retry();
                continue;
            }
            let (live, desk, doorstep) = (self.live.clone(), desk.clone(), self.doorstep.clone());
            tokio::spawn(async move {
                match timeout(limits::HANDSHAKE_TIMEOUT, incoming).await {
                    Ok(Ok(connection)) => match peer(&connection) {
                        Some(p) => serve(connection, p, live, desk).await,
                        None => doorstep.serve(connection, desk).await,
                    },
                    Ok(Err(e)) => tracing::debug!("handshake refused: {e}"),
                    Err(_) => tracing::debug!("handshake timed out"),
                }
            });
        }
    }

    /// Closes the live connections of a certificate.
    pub fn disconnect(&self, certificate: &Digest) {
        for c in self
            .live
            .with(|l| l.remove(certificate))
            .unwrap_or_default()
        {
            c.close(REVOKED.into(), b"revoked");
        }
    }

    /// Closes all live connections.
    pub fn drop_connections(&self) {
        for c in self.live.with(std::mem::take).into_values().flatten() {
            c.close(0u32.into(), b"connect again");
        }
    }

    /// Connections with a certificate.
    pub fn connections(&self) -> usize {
        self.live.with(|l| l.values().map(Vec::len).sum())
    }

    /// Stops listening and closes all connections.
    pub fn close(&self) {
        self.endpoint.close(0u32.into(), b"shutting down");
    }
}

impl Doorstep {
    /// One enrolment, within a short time; few such connections at once.
    async fn serve(&self, connection: quinn::Connection, desk: Desk) {
        let Ok(_place) = self.0.try_acquire() else {
            connection.close(TOO_MANY.into(), b"too many enrolments at once: try again");
            return;
        };
        let one = async {
            if let Ok(stream) = connection.accept_bi().await {
                desk.exchange(Arc::new(desk.line(connection.clone(), None)), stream)
                    .await;
            }
        };
        let _ = timeout(limits::ENROL_TIMEOUT, one).await;
        connection.close(0u32.into(), b"enrolment is over");
    }
}

async fn serve(connection: quinn::Connection, peer: Digest, live: Arc<Live>, desk: Desk) {
    if desk.work(move |h| h.admits(&peer)).await != Some(true) {
        connection.close(
            REVOKED.into(),
            b"this certificate is not known or was revoked: enrol again",
        );
        return;
    }
    let admitted = live.with(|l| {
        let of_peer = l.entry(peer).or_default();
        of_peer.retain(|c| c.close_reason().is_none());
        let room = of_peer.len() < limits::MAX_CONNECTIONS_PER_PEER;
        if room {
            of_peer.push(connection.clone());
        }
        room
    });
    if !admitted {
        connection.close(
            TOO_MANY.into(),
            b"too many connections with this certificate",
        );
        return;
    }
    let line = Arc::new(desk.line(connection.clone(), Some(peer)));
    while let Ok(stream) = connection.accept_bi().await {
        let (desk, line) = (desk.clone(), line.clone());
        tokio::spawn(async move { desk.exchange(line, stream).await });
    }
    let last = live.with(|l| {
        let Some(of_peer) = l.get_mut(&peer) else {
            return true;
        };
        of_peer.retain(|c| c.stable_id() != connection.stable_id());
        let last = of_peer.is_empty();
        if last {
            l.remove(&peer);
        }
        last
    });
    if last {
        desk.work(move |h| h.disconnected(&peer)).await;
    }
}

fn peer(connection: &quinn::Connection) -> Option<Digest> {
    let chain = connection
        .peer_identity()?
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()?;
    chain.first().map(|c| fingerprint(c))
}
