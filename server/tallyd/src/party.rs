//! The listener: who connects, and requests on their way to the service. What the service does is
//! done on threads where it may wait for the disk: the network waits for none of it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use lethe_proto::codec::{self, ENROL, RENEW, TALLY};
use lethe_proto::ids::Digest;
use lethe_proto::message::{Refusal, Reply, Request};
use lethe_proto::tally::{TallyRefusal, TallyReply, TallyRequest};
use lethe_transport::identity::{Authority, Validity};
use lethe_transport::server::{Handler, ReplyFuture, Server};

use crate::{Service, TallydError};

/// How often the listener's certificate is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often the service is told the time.
const TEND: u64 = 60;

/// A tally that listens. Cheap to clone.
#[derive(Clone)]
pub struct Party(Arc<Inner>);

struct Inner {
    service: Arc<Service>,
    authority: Authority,
    life: Duration,
    clock: fn() -> u64,
    server: OnceLock<Server>,
    /// Certificates whose connections were opened.
    opened: Mutex<BTreeSet<Digest>>,
}

impl std::fmt::Debug for Party {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Party({:?})", self.0.service)
    }
}

/// A certificate that was signed; nobody knows it before the service does.
struct Signed {
    certificate: Vec<u8>,
    fingerprint: Digest,
    /// In seconds since 1970.
    expires: u64,
}

fn refused(code: Refusal, message: impl Into<String>) -> Reply {
    let message = message.into();
    Reply::Refused { code, message }
}

fn forbidden() -> Reply {
    refused(
        Refusal::Forbidden,
        "this is a tally: it answers the coordinator that it invited",
    )
}

/// What whoever enrols or renews is told.
fn failed(why: &TallydError) -> Reply {
    match why {
        TallydError::NotInvited | TallydError::NotKnown => {
            refused(Refusal::Forbidden, why.to_string())
        }
        TallydError::Transport(_) => refused(Refusal::Invalid, why.to_string()),
        other => {
            tracing::error!("a certificate is not issued: {other}");
            refused(
                Refusal::Internal,
                "the tally failed: its operator finds why in its log",
            )
        }
    }
}

impl Party {
    /// A party of a service. Certificates live so long; `clock` tells seconds since 1970.
    ///
    /// # Errors
    /// [`TallydError`]: the authority cannot be read.
    pub fn new(
        service: Arc<Service>,
        life: Duration,
        clock: fn() -> u64,
    ) -> Result<Self, TallydError> {
        Ok(Self(Arc::new(Inner {
            authority: service.authority()?,
            service,
            life,
            clock,
            server: OnceLock::new(),
            opened: Mutex::default(),
        })))
    }

    /// Listens and serves in the background until [`Self::shutdown`]. Returns the bound address.
    /// Needs a runtime.
    ///
    /// # Errors
    /// [`TallydError::Transport`]: the address cannot be had.
    pub fn listen(&self, addr: SocketAddr) -> Result<SocketAddr, TallydError> {
        let server = Server::bind(addr, &self.0.authority)?;
        let bound = server.local_addr()?;
        let _ = self.0.server.set(server.clone());
        let handler: Arc<dyn Handler> = Arc::new(self.clone());
        tokio::spawn(async move { server.run(handler).await });
        let timer = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(LOOK);
            for n in 0u64.. {
                tick.tick().await;
                let Some(inner) = timer.upgrade() else {
                    return;
                };
                Self(inner).tick(n);
            }
        });
        Ok(bound)
    }

    /// What time asks for.
    fn tick(self, n: u64) {
        if let Some(server) = self.0.server.get() {
            match server.renew(&self.0.authority) {
                Ok(true) => tracing::info!("the listener's certificate was renewed"),
                Ok(false) => {}
                Err(e) => tracing::error!("the listener's certificate is not renewed: {e}"),
            }
        }
        if n.is_multiple_of(TEND) {
            tokio::task::spawn_blocking(move || {
                if let Err(e) = self.0.service.tend((self.0.clock)()) {
                    tracing::error!("sealing keys are not looked after: {e}");
                }
            });
        }
    }

    /// Stops listening, and ends all connections.
    pub fn shutdown(&self) {
        if let Some(server) = self.0.server.get() {
            server.close();
        }
    }

    fn opened(&self) -> MutexGuard<'_, BTreeSet<Digest>> {
        self.0.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sign(&self, csr: &[u8]) -> Result<Signed, TallydError> {
        let certificate = self.0.authority.sign(csr, self.0.life)?;
        let validity = Validity::of(&certificate)?;
        Ok(Signed {
            fingerprint: Digest::of(&[&certificate]),
            expires: u64::try_from(validity.until).unwrap_or(0),
            certificate,
        })
    }

    fn enrol(&self, token: &str, csr: &[u8]) -> Result<Reply, TallydError> {
        let signed = self.sign(csr)?;
        let service = &self.0.service;
        let gone = service.enrol(token, signed.fingerprint, signed.expires)?;
        for certificate in gone {
            self.opened().remove(&certificate);
            if let Some(server) = self.0.server.get() {
                server.disconnect(&certificate);
            }
        }
        tracing::info!("a coordinator has enrolled");
        Ok(enrolled(signed))
    }

    fn renew(&self, current: Digest, csr: &[u8]) -> Result<Reply, TallydError> {
        let signed = self.sign(csr)?;
        let service = &self.0.service;
        service.renew(current, signed.fingerprint, signed.expires)?;
        Ok(enrolled(signed))
    }

    fn tally(&self, certificate: Digest, request: TallyRequest) -> TallyReply {
        let opens = matches!(request, TallyRequest::Open { .. });
        // A tally that is behind is sent versions of the catalogue before it can be opened.
        let first = opens || matches!(request, TallyRequest::Catalogue { .. });
        if !first && !self.opened().contains(&certificate) {
            return TallyReply::Refused {
                code: TallyRefusal::NotOpen,
                message: "the first request of a connection says which catalogue it is about"
                    .into(),
            };
        }
        let reply = self.0.service.answer(request, (self.0.clock)());
        if opens && matches!(reply, TallyReply::Opened(_)) {
            self.opened().insert(certificate);
        }
        reply
    }

    fn answer(&self, certificate: Option<Digest>, request: Request) -> Reply {
        match (certificate, request) {
            (None, Request::Enrol { token, csr, .. }) => {
                self.enrol(&token, &csr).unwrap_or_else(|e| failed(&e))
            }
            // It may have been withdrawn since it connected.
            (Some(own), _) if !self.0.service.admits(&own) => failed(&TallydError::NotKnown),
            (Some(own), Request::Renew { csr }) => {
                self.renew(own, &csr).unwrap_or_else(|e| failed(&e))
            }
            (Some(own), Request::Tally(request)) => Reply::Tally(self.tally(own, request)),
            _ => forbidden(),
        }
    }
}

fn enrolled(signed: Signed) -> Reply {
    Reply::Enrolled {
        certificate: signed.certificate,
        subject: None,
    }
}

impl Handler for Party {
    fn admits(&self, certificate: &Digest) -> bool {
        self.0.service.admits(certificate)
    }

    fn longest(&self, kind: u16) -> usize {
        match kind {
            ENROL | RENEW | TALLY => codec::limit(kind).unwrap_or(0),
            _ => 0,
        }
    }

    fn handle(&self, certificate: Option<Digest>, request: Request, _bytes: usize) -> ReplyFuture {
        let this = self.clone();
        Box::pin(async move {
            let answered =
                tokio::task::spawn_blocking(move || this.answer(certificate, request)).await;
            answered.unwrap_or_else(|e| {
                tracing::error!("a request failed: {e}");
                refused(Refusal::Internal, "the tally failed: ask again")
            })
        })
    }

    fn disconnected(&self, certificate: &Digest) {
        self.opened().remove(certificate);
    }
}
