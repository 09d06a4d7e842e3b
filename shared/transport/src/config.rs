//! TLS and QUIC settings, all bounds in one place.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use lethe_proto::limits;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{IdleTimeout, TransportConfig, VarInt};
use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};

use crate::TransportError;
use crate::identity::{Authority, Identity};

/// What the kernel holds for a socket between two looks at it, in bytes; a full buffer drops
/// packets. Linux gives at most `net.core.rmem_max` and `wmem_max`.
const SOCKET_BUFFER: usize = 4 << 20;

/// A UDP socket with room for what arrives while others are served.
pub(crate) fn socket(addr: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(addr)?;
    let options = socket2::SockRef::from(&socket);
    for size in [
        options.set_recv_buffer_size(SOCKET_BUFFER),
        options.set_send_buffer_size(SOCKET_BUFFER),
    ] {
        if let Err(e) = size {
            tracing::debug!("a socket buffer of {SOCKET_BUFFER} bytes was refused: {e}");
        }
    }
    Ok(socket)
}

fn failed(e: impl std::fmt::Display) -> TransportError {
    TransportError::Certificate(e.to_string())
}

/// Who is trusted: these authorities (DER).
pub(crate) fn roots<'a>(
    authorities: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Arc<RootCertStore>, TransportError> {
    let mut store = RootCertStore::empty();
    for authority in authorities {
        let certificate = CertificateDer::from(authority.to_vec());
        store.add(certificate).map_err(failed)?;
    }
    Ok(Arc::new(store))
}

fn transport(receive: u64, send: u64) -> Arc<TransportConfig> {
    let mut t = TransportConfig::default();
    t.max_concurrent_bidi_streams(VarInt::from_u32(limits::MAX_STREAMS));
    t.max_concurrent_uni_streams(VarInt::from_u32(0));
    t.receive_window(VarInt::from_u64(receive).unwrap_or(VarInt::MAX));
    t.stream_receive_window(VarInt::from_u32(4 << 20));
    t.send_window(send);
    t.datagram_receive_buffer_size(None);
    t.keep_alive_interval(Some(Duration::from_secs(10)));
    t.max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(30_000))));
    Arc::new(t)
}

pub(crate) fn server(
    authority: &Authority,
    identity: &Identity,
) -> Result<quinn::ServerConfig, TransportError> {
    let provider = Arc::new(default_provider());
    // Only enrolment is allowed without a certificate; a certificate that is presented must be
    // valid. Those that authorities of before have signed are: the handler knows every certificate
    // that may connect by itself.
    let past = authority.past();
    let before = past.iter().map(|p| &p.certificate[..]);
    let trusted = roots(std::iter::once(authority.certificate()).chain(before))?;
    // For those who trust an authority of before.
    let mut chain = identity.chain();
    let crosses = past.iter().map(|p| CertificateDer::from(p.cross.clone()));
    chain.extend(crosses);
    let verifier = WebPkiClientVerifier::builder_with_provider(trusted, provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(failed)?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, identity.private_key())
        .map_err(failed)?;
    tls.alpn_protocols = vec![limits::ALPN.to_vec()];
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(
        QuicServerConfig::try_from(tls).map_err(failed)?,
    ));
    config.transport_config(transport(limits::UNASKED, limits::AHEAD));
    config.max_incoming(limits::MAX_INCOMING);
    Ok(config)
}

pub(crate) fn client(
    authority: &[u8],
    identity: Option<&Identity>,
) -> Result<quinn::ClientConfig, TransportError> {
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .with_root_certificates(roots([authority])?);
    let mut tls = match identity {
        Some(i) => builder
            .with_client_auth_cert(i.chain(), i.private_key())
            .map_err(failed)?,
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![limits::ALPN.to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    let mut config =
        quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).map_err(failed)?));
    config.transport_config(transport(4 << 20, 8 << 20));
    Ok(config)
}
