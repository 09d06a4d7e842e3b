//! Certificates: the coordinator's authority, a client's key, invitations.

use std::io::Read;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use lethe_proto::ids::Digest;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use serde::{Deserialize, Serialize};

use crate::TransportError;

/// Name in the coordinator's certificate; clients trust the authority, not a host name.
pub(crate) const SERVER_NAME: &str = "lethe-coordinator";

fn failed(e: impl std::fmt::Display) -> TransportError {
    TransportError::Certificate(e.to_string())
}

/// Identifies a certificate: SHA-256 of its DER.
pub(crate) fn fingerprint(der: &[u8]) -> Digest {
    Digest::of(&[der])
}

/// When a certificate is valid, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub from: i64,
    /// Last second.
    pub until: i64,
}

impl Validity {
    /// Of a certificate (DER).
    pub fn of(der: &[u8]) -> Result<Self, TransportError> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).map_err(failed)?;
        let validity = certificate.validity();
        Ok(Self {
            from: validity.not_before.timestamp(),
            until: validity.not_after.timestamp(),
        })
    }

    /// Whether a holder should renew it: less than a third of its life is left.
    pub fn is_due(&self, now: i64) -> bool {
        self.until - now < (self.until - self.from) / 3
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs() as i64)
}

/// A certificate with its private key and the authority that it trusts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Vec<u8>,
}

impl Identity {
    /// SHA-256 of the certificate.
    pub fn fingerprint(&self) -> Digest {
        fingerprint(&self.certificate)
    }

    /// When the certificate is valid.
    pub fn validity(&self) -> Result<Validity, TransportError> {
        Validity::of(&self.certificate)
    }

    /// Whether it should be renewed now, by this machine's clock. One that has expired cannot be.
    pub fn is_due(&self) -> bool {
        let now = now();
        self.validity()
            .is_ok_and(|v| v.is_due(now) && now <= v.until)
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from(self.certificate.clone())]
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }
}

/// How long a certificate of the coordinator lives. It is renewed while the coordinator runs, after
/// a third: whenever somebody connects, more than a year is left.
pub(crate) const SERVER_LIFE: Duration = Duration::from_secs(800 * 86_400);

/// A device whose clock is behind by less than this connects all the same.
const SERVER_BACKDATED: Duration = Duration::from_secs(30 * 86_400);

/// Most authorities of before that are kept. `rustls` (webpki) follows six certificates from a
/// coordinator's own to the authority that a device trusts, and no more.
pub const MAX_PAST: usize = 6;

/// How long a certificate of an authority is valid.
const AUTHORITY_LIFE: Duration = Duration::from_secs(20 * 365 * 86_400);

/// The coordinator's certificate authority.
pub struct Authority {
    key: KeyPair,
    certificate: Vec<u8>,
    /// Newest first; at most [`MAX_PAST`].
    past: Vec<Past>,
}

/// What is kept of an authority whose private key is destroyed. Nothing of it is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// Its certificate, DER: certificates that it has signed are accepted on.
    pub certificate: Vec<u8>,
    /// A certificate of the authority after it that it has signed, DER: whoever trusts this one
    /// gets to the next by it (RFC 5280, 3.2: a cross-certificate).
    pub cross: Vec<u8>,
}

impl Past {
    /// When the authority was exchanged, in seconds since 1970: until then it has signed.
    ///
    /// # Errors
    /// The cross-certificate does not parse.
    pub fn exchanged_at(&self) -> Result<u64, TransportError> {
        let until = Validity::of(&self.cross)?.until;
        let life = AUTHORITY_LIFE.as_secs();
        Ok(u64::try_from(until).unwrap_or(0).saturating_sub(life))
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.fingerprint())
    }
}

/// What is stored of an authority.
#[derive(Clone, Serialize, Deserialize)]
pub struct AuthorityRecord {
    key: Vec<u8>,
    certificate: Vec<u8>,
}

/// What a certificate of the authority with this key says. Each authority has a name of its own,
/// so that a way from one to another is found by names, without trying signatures.
fn authority_params(key: &KeyPair) -> Result<CertificateParams, TransportError> {
    let mut params = CertificateParams::new(vec![]).map_err(failed)?;
    let mut name = DistinguishedName::new();
    let mut digits = Digest::of(&[key.public_key_raw()]).hex();
    digits.truncate(16);
    name.push(DnType::CommonName, format!("Lethe authority {digits}"));
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(MAX_PAST as u8));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params.not_after = after(AUTHORITY_LIFE);
    Ok(params)
}

fn after(lifetime: Duration) -> time::OffsetDateTime {
    (SystemTime::now() + lifetime).into()
}

fn leaf_params(
    backdated: Duration,
    lifetime: Duration,
    usage: ExtendedKeyUsagePurpose,
    names: Vec<String>,
) -> Result<CertificateParams, TransportError> {
    let mut params = CertificateParams::new(names).map_err(failed)?;
    params.distinguished_name = DistinguishedName::new();
    params.not_before = (SystemTime::now() - backdated).into();
    params.not_after = after(lifetime);
    params.extended_key_usages = vec![usage];
    Ok(params)
}

impl Authority {
    /// A new authority with a key of its own.
    pub fn create() -> Result<Self, TransportError> {
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = authority_params(&key)?
            .self_signed(&key)
            .map_err(failed)?
            .der()
            .to_vec();
        Ok(Self {
            key,
            certificate,
            past: vec![],
        })
    }

    /// A new authority to take the place of this one, which vouches for it. What is kept of this
    /// one is the first of [`Self::past`]; the oldest goes when there are more than [`MAX_PAST`].
    ///
    /// # Errors
    /// [`TransportError::Certificate`]: no key could be made, or this authority's certificate does
    /// not parse.
    pub fn succeed(&self) -> Result<Self, TransportError> {
        let mut next = Self::create()?;
        let cross = authority_params(&next.key)?
            .signed_by(&next.key, &self.issuer()?)
            .map_err(failed)?;
        next.past.push(Past {
            certificate: self.certificate.clone(),
            cross: cross.der().to_vec(),
        });
        next.past.extend(self.past.iter().cloned());
        next.past.truncate(MAX_PAST);
        Ok(next)
    }

    /// With what is kept of the authorities of before, newest first.
    pub fn with_past(mut self, past: Vec<Past>) -> Self {
        self.past = past;
        self.past.truncate(MAX_PAST);
        self
    }

    /// What is kept of the authorities of before, newest first.
    pub fn past(&self) -> &[Past] {
        &self.past
    }

    /// What its certificates are signed with: its key, and the name in its certificate.
    fn issuer(&self) -> Result<Issuer<'static, &KeyPair>, TransportError> {
        let certificate = CertificateDer::from(self.certificate.clone());
        Issuer::from_ca_cert_der(&certificate, &self.key).map_err(failed)
    }

    /// For storing.
    pub fn record(&self) -> AuthorityRecord {
        AuthorityRecord {
            key: self.key.serialize_der(),
            certificate: self.certificate.clone(),
        }
    }

    /// From what was stored.
    pub fn restore(record: AuthorityRecord) -> Result<Self, TransportError> {
        let key = KeyPair::try_from(record.key).map_err(failed)?;
        Ok(Self {
            key,
            certificate: record.certificate,
            past: vec![],
        })
    }

    /// The authority's certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// SHA-256 of the authority's certificate.
    pub fn fingerprint(&self) -> Digest {
        fingerprint(&self.certificate)
    }

    /// A certificate for the coordinator itself, valid for `lifetime` from now on.
    pub(crate) fn server_identity(&self, lifetime: Duration) -> Result<Identity, TransportError> {
        let key = KeyPair::generate().map_err(failed)?;
        let params = leaf_params(
            SERVER_BACKDATED,
            lifetime,
            ExtendedKeyUsagePurpose::ServerAuth,
            vec![SERVER_NAME.into()],
        )?;
        let certificate = params
            .signed_by(&key, &self.issuer()?)
            .map_err(failed)?
            .der()
            .to_vec();
        Ok(Identity {
            certificate,
            key: key.serialize_der(),
        })
    }

    /// Keys of stateless resets and connection ids. They outlive a restart, so that clients learn
    /// at once that their connection is gone instead of waiting for the idle time-out.
    pub(crate) fn endpoint_keys(&self) -> (ring::hmac::Key, u64) {
        let key = |label: &[u8]| Digest::of(&[label, self.key.serialized_der()]).0;
        let cid = key(b"lethe-connection-ids");
        let cid = u64::from_le_bytes([
            cid[0], cid[1], cid[2], cid[3], cid[4], cid[5], cid[6], cid[7],
        ]);
        (
            ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key(b"lethe-stateless-reset")),
            cid,
        )
    }

    /// Signs a client's request; the certificate names nobody. Names that the request asks for are
    /// ignored.
    pub fn sign(&self, csr: &[u8], lifetime: Duration) -> Result<Vec<u8>, TransportError> {
        let request = CertificateSigningRequestDer::from(csr.to_vec());
        let mut request = CertificateSigningRequestParams::from_der(&request).map_err(failed)?;
        // The coordinator's clock issues and checks it: it needs little slack.
        let backdated = (lifetime / 10).min(Duration::from_secs(3600));
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        request.params = leaf_params(backdated, lifetime, usage, vec![])?;
        let issuer = self.issuer()?;
        Ok(request.signed_by(&issuer).map_err(failed)?.der().to_vec())
    }
}

/// A client's private key; it never leaves the client.
pub struct ClientKey(KeyPair);

impl std::fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientKey")
    }
}

impl ClientKey {
    /// A new key.
    pub fn generate() -> Result<Self, TransportError> {
        KeyPair::generate().map(Self).map_err(failed)
    }

    /// The certificate signing request, DER.
    pub fn request(&self) -> Result<Vec<u8>, TransportError> {
        let params = CertificateParams::new(vec![]).map_err(failed)?;
        Ok(params
            .serialize_request(&self.0)
            .map_err(failed)?
            .der()
            .to_vec())
    }

    /// Joins the key with the certificate that was issued for it.
    pub fn with_certificate(self, certificate: Vec<u8>) -> Identity {
        Identity {
            certificate,
            key: self.0.serialize_der(),
        }
    }
}

/// How the text of an invitation begins.
const PREFIX: &str = "lethe1:";
/// The most of a file that is read for an invitation, in bytes. One is about a thousand long.
const MAX_FILE: u64 = 64 << 10;
/// Characters of a wrong argument that an error repeats.
const MAX_SHOWN: usize = 200;

/// A single-use invitation: a secret, and the authority to trust.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invitation {
    /// The secret that is exchanged for a certificate.
    pub secret: String,
    authority: String,
    /// Public key of the transparency log (verifier key text); absent in invitations of older
    /// coordinators.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub log_key: Option<String>,
}

impl Invitation {
    /// An invitation to `authority`'s coordinator.
    pub fn new(secret: String, authority: &Authority) -> Self {
        Self {
            secret,
            authority: BASE64.encode(&authority.certificate),
            log_key: None,
        }
    }

    /// Tells the log's public key, which the device holds the coordinator to from then on.
    pub fn with_log_key(mut self, key: String) -> Self {
        self.log_key = Some(key);
        self
    }

    /// As one line of text.
    pub fn text(&self) -> String {
        format!(
            "{PREFIX}{}",
            BASE64.encode(serde_json::to_vec(self).unwrap_or_default())
        )
    }

    /// As people give it on a command line: its text, or the path of a file that holds it.
    ///
    /// # Errors
    /// [`TransportError::InvitationFile`] if it is neither; [`TransportError::Invitation`] if it
    /// does not parse.
    pub fn given(what: &str) -> Result<Self, TransportError> {
        if what.trim_start().starts_with(PREFIX) {
            return Self::parse(what);
        }
        let unread = |source| TransportError::InvitationFile {
            given: what.chars().take(MAX_SHOWN).collect(),
            source,
        };
        let file = std::fs::File::open(what).map_err(unread)?;
        let mut text = String::new();
        file.take(MAX_FILE)
            .read_to_string(&mut text)
            .map_err(unread)?;
        Self::parse(&text)
    }

    /// From the text.
    pub fn parse(text: &str) -> Result<Self, TransportError> {
        let body = text
            .trim()
            .strip_prefix(PREFIX)
            .and_then(|b| BASE64.decode(b).ok());
        body.and_then(|b| serde_json::from_slice(&b).ok())
            .ok_or(TransportError::Invitation)
    }

    /// Certificate of the authority, DER.
    pub fn authority(&self) -> Result<Vec<u8>, TransportError> {
        BASE64
            .decode(&self.authority)
            .map_err(|_| TransportError::Invitation)
    }
}
