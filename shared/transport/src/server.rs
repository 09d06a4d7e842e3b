//! The coordinator's listener: accepts, bounds, authenticates, and hands each request to a handler.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use lethe_proto::ids::Digest;
use lethe_proto::limits;
use lethe_proto::message::{Reply, Request};
use quinn_proto::HashedConnectionIdGenerator;
use rustls::pki_types::CertificateDer;
use tokio::runtime::{Handle, Runtime};
use tokio::time::timeout;

use crate::crowd::{Crowd, network_of};
use crate::exchange::Desk;
use crate::identity::{Authority, SERVER_LIFE, fingerprint};
use crate::rate::Rates;
use crate::{TransportError, config};

/// Close codes that a client may see.
pub(crate) const REVOKED: u32 = 1;
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

/// Connections by certificate.
type Live = Crowd<Digest, quinn::Connection>;

/// Connections without a certificate, which may only enrol, by address.
type Doorstep = Crowd<IpAddr, quinn::Connection>;

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
    doorstep: Arc<Doorstep>,
    /// Handshakes in progress, by address.
    handshakes: Arc<Crowd<IpAddr, ()>>,
    /// How often an address may begin one.
    rates: Arc<Rates<IpAddr>>,
    own: Arc<Mutex<Own>>,
}

/// The listener's own certificate.
#[derive(Debug)]
struct Own {
    life: Duration,
    issued: SystemTime,
}

impl Own {
    /// Whether a third of its life has passed; also when the clock went back behind its beginning.
    fn is_due(&self) -> bool {
        self.issued
            .elapsed()
            .map_or(true, |age| age > self.life / 3)
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({:?})", self.endpoint.local_addr())
    }
}

impl Server {
    /// Listens on `addr` with a fresh certificate of `authority`.
    pub fn bind(addr: SocketAddr, authority: &Authority) -> Result<Self, TransportError> {
        Self::bind_for(addr, authority, SERVER_LIFE)
    }

    /// The same, with certificates that live so long.
    pub fn bind_for(
        addr: SocketAddr,
        authority: &Authority,
        life: Duration,
    ) -> Result<Self, TransportError> {
        let identity = authority.server_identity(life)?;
        let config = config::server(authority, &identity)?;
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
        let doorstep = Doorstep::new(
            limits::MAX_UNAUTHENTICATED_PER_ADDRESS,
            limits::MAX_UNAUTHENTICATED,
        );
        let handshakes = Crowd::new(limits::MAX_INCOMING_PER_ADDRESS, limits::MAX_INCOMING);
        let rates = Rates::new(
            limits::HANDSHAKES,
            limits::HANDSHAKE_PERIOD,
            limits::HANDSHAKE_WAIT,
        );
        let issued = SystemTime::now();
        Ok(Self {
            endpoint,
            network: Arc::new(network),
            live: Arc::new(Live::new(limits::MAX_CONNECTIONS_PER_PEER, usize::MAX)),
            doorstep: Arc::new(doorstep),
            handshakes: Arc::new(handshakes),
            rates: Arc::new(rates),
            own: Arc::new(Mutex::new(Own { life, issued })),
        })
    }

    /// Takes a fresh certificate of `authority` if a third of the life of the present one has
    /// passed. Connections that are open stay; returns whether it did.
    pub fn renew(&self, authority: &Authority) -> Result<bool, TransportError> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if !own.is_due() {
            return Ok(false);
        }
        self.take(&mut own, authority)?;
        Ok(true)
    }

    /// Goes over to another authority at once: with a fresh certificate of it, and the certificates
    /// by which those who trust one of before get to it. Connections that are open stay.
    ///
    /// # Errors
    /// [`TransportError::Certificate`]: none could be made; the listener goes on as it was.
    pub fn go_over(&self, authority: &Authority) -> Result<(), TransportError> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        self.take(&mut own, authority)
    }

    fn take(&self, own: &mut Own, authority: &Authority) -> Result<(), TransportError> {
        let identity = authority.server_identity(own.life)?;
        let config = config::server(authority, &identity)?;
        self.endpoint.set_server_config(Some(config));
        own.issued = SystemTime::now();
        Ok(())
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
            let address = network_of(incoming.remote_address().ip());
            let Some(place) = self.handshakes.enter_if_room(address, ()) else {
                incoming.refuse();
                continue;
            };
            // A signature and a key exchange for each: an address that begins one after the other
            // must not take the processor from those who train.
            let Ok(wait) = self.rates.wait(address, Instant::now()) else {
                incoming.refuse();
                continue;
            };
            let live = self.live.clone();
            let doorstep = self.doorstep.clone();
            let desk = desk.clone();
            tokio::spawn(async move {
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                let shaken = timeout(limits::HANDSHAKE_TIMEOUT, incoming).await;
                drop(place);
                match shaken {
                    Ok(Ok(connection)) => match peer(&connection) {
                        Some(p) => serve(connection, p, live, desk).await,
                        None => enrolment(connection, doorstep, desk).await,
                    },
                    Ok(Err(e)) => tracing::debug!("handshake refused: {e}"),
                    Err(_) => tracing::debug!("handshake timed out"),
                }
            });
        }
    }

    /// Closes the live connections of a certificate.
    pub fn disconnect(&self, certificate: &Digest) {
        for c in self.live.remove_group(*certificate) {
            c.close(REVOKED.into(), b"revoked");
        }
    }

    /// Closes all live connections.
    pub fn drop_connections(&self) {
        for c in self.live.remove_all() {
            c.close(0u32.into(), b"connect again");
        }
    }

    /// Connections with a certificate.
    pub fn connections(&self) -> usize {
        self.live.len()
    }

    /// Stops listening and closes all connections.
    pub fn close(&self) {
        self.endpoint.close(0u32.into(), b"shutting down");
    }
}

/// One enrolment, within a short time; few such connections at once, and few from one address.
async fn enrolment(connection: quinn::Connection, doorstep: Arc<Doorstep>, desk: Desk) {
    let address = network_of(connection.remote_address().ip());
    let (place, gone) = doorstep.enter(address, connection.clone());
    if let Some(gone) = gone {
        gone.close(TOO_MANY.into(), b"too many enrolments at once: try again");
    }
    let one = async {
        if let Ok((send, recv)) = connection.accept_bi().await {
            let _busy = place.busy();
            let line = Arc::new(desk.line(connection.clone(), None));
            desk.exchange(line, send, recv).await;
        }
    };
    let _ = timeout(limits::ENROL_TIMEOUT, one).await;
    connection.close(0u32.into(), b"enrolment is over");
}

async fn serve(connection: quinn::Connection, peer: Digest, live: Arc<Live>, desk: Desk) {
    if desk.work(move |h| h.admits(&peer)).await != Some(true) {
        connection.close(
            REVOKED.into(),
            b"this certificate is not known or was revoked: enrol again",
        );
        return;
    }
    let (place, gone) = live.enter(peer, connection.clone());
    if let Some(gone) = gone {
        // Often what is left of a connection that the device lost.
        gone.close(
            TOO_MANY.into(),
            b"too many connections with this certificate",
        );
    }
    let place = Arc::new(place);
    let line = Arc::new(desk.line(connection.clone(), Some(peer)));
    while let Ok((send, recv)) = connection.accept_bi().await {
        let (desk, line, place) = (desk.clone(), line.clone(), place.clone());
        tokio::spawn(async move {
            let _busy = place.busy();
            desk.exchange(line, send, recv).await;
        });
    }
    place.leave();
    if !live.has(peer) {
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
