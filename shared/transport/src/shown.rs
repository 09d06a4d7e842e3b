//! What a coordinator shows of itself, and how a device follows when its authority is exchanged.
//!
//! A coordinator whose authority was exchanged shows its own certificate and, for each authority of
//! before, one of the next authority that the one before has signed ([`crate::identity::Past`]).
//! Whoever trusts one of them has a way to the present one. The certificate at its end names the
//! present authority and its key, which is all that counts of an authority that is trusted: a
//! device keeps that certificate in place of the one it had. No request is needed, and nothing is
//! believed that the authority trusted so far has not signed, directly or by its successors.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::parse_x509_certificate;

use crate::config;
use crate::identity::{MAX_PAST, SERVER_NAME};

/// Longest certificate of an authority that a device keeps, in bytes. One has about 400.
pub const LONGEST: usize = 4 << 10;

/// Certificates that a coordinator has shown: its own first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown(Vec<CertificateDer<'static>>);

impl Shown {
    /// By the other side of a connection.
    pub(crate) fn by(connection: &quinn::Connection) -> Self {
        let chain = connection.peer_identity();
        let chain = chain.and_then(|c| c.downcast::<Vec<CertificateDer<'static>>>().ok());
        Self(chain.map(|c| *c).unwrap_or_default())
    }

    /// Whether these certificates prove the coordinator to whoever trusts `authority` (DER) and
    /// nothing else.
    pub fn proves(&self, authority: &[u8]) -> bool {
        self.leads(authority, self.0.get(1..).unwrap_or_default())
    }

    /// The authority (DER) to trust from now on in place of the one that is `trusted` (DER).
    /// `None`: it is the present one, or it is none of this coordinator's.
    pub fn successor(&self, trusted: &[u8]) -> Option<Vec<u8>> {
        let own = parsed(self.0.first()?)?;
        if own.issuer().as_raw() == parsed(trusted)?.subject().as_raw() {
            return None;
        }
        if !self.proves(trusted) {
            return None;
        }
        let between = self.0.iter().skip(1).take(MAX_PAST);
        let next = between.filter(|c| c.len() <= LONGEST).find(|c| {
            let is_authority = parsed(c).is_some_and(|c| c.is_ca());
            is_authority && self.leads(c, &[])
        });
        next.map(|c| c.to_vec())
    }

    /// Whether a way leads from the coordinator's certificate over these to an authority.
    fn leads(&self, authority: &[u8], between: &[CertificateDer<'static>]) -> bool {
        let verified = || {
            let own = self.0.first()?;
            let trusted = config::roots([authority]).ok()?;
            let provider = Arc::new(default_provider());
            let verifier = WebPkiServerVerifier::builder_with_provider(trusted, provider);
            let verifier = verifier.build().ok()?;
            let name = ServerName::try_from(SERVER_NAME).ok()?;
            let verified = verifier.verify_server_cert(own, between, &name, &[], UnixTime::now());
            verified.ok()
        };
        verified().is_some()
    }
}

fn parsed(der: &[u8]) -> Option<X509Certificate<'_>> {
    parse_x509_certificate(der).ok().map(|(_, parsed)| parsed)
}
