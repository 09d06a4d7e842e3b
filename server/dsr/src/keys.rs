//! Keys that sign answers and verify requests: RSA, P-256 and Ed25519, as PEM on disk and as JSON
//! Web Keys (RFC 7517) in public.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair,
    Ed25519KeyPair, KeyPair, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair,
    RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};

use crate::DsrError;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The salted digest of a text, hexadecimal: SHA-256 of salt and text. Whoever has the salt can try
/// texts, so it is kept under a key only ([`keyed`]).
pub fn salted(salt: &str, text: &str) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(salt.as_bytes());
    context.update(text.as_bytes());
    hex(context.finish().as_ref())
}

/// What a text is known by to whoever has the key, hexadecimal, and to nobody else: HMAC-SHA-256 of
/// what it is (`label`, without zero bytes), a zero byte, and the text.
pub fn keyed(key: &[u8; 32], label: &str, text: &str) -> String {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key);
    let mut context = ring::hmac::Context::with_key(&key);
    context.update(label.as_bytes());
    context.update(&[0]);
    context.update(text.as_bytes());
    hex(context.sign().as_ref())
}

/// Base64url without padding.
pub(crate) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()
}

/// A private key.
#[derive(Debug)]
pub struct SigningKey(Pair);

#[derive(Debug)]
enum Pair {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// A public key as a JSON Web Key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jwk {
    /// `RSA`, `EC` or `OKP`.
    pub kty: String,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// `RS256`, `ES256` or `EdDSA`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alg: Option<String>,
    /// `P-256` or `Ed25519`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crv: Option<String>,
    /// Modulus, base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<String>,
    /// Exponent, base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e: Option<String>,
    /// Coordinate, base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
    /// Coordinate, base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub y: Option<String>,
}

impl SigningKey {
    /// Reads a PEM file: PKCS#8 (`PRIVATE KEY`) of any of the three kinds, or PKCS#1 (`RSA PRIVATE
    /// KEY`).
    pub fn from_pem(text: &str) -> Result<Self, DsrError> {
        let bad = |why: &str| DsrError::Key(why.to_owned());
        let pem = pem::parse(text).map_err(|e| DsrError::Key(e.to_string()))?;
        let der = pem.contents();
        let pair = match pem.tag() {
            "PRIVATE KEY" => {
                let rsa = || RsaKeyPair::from_pkcs8(der).ok().map(Pair::Rsa);
                let p256 = || {
                    let rng = SystemRandom::new();
                    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &rng)
                        .ok()
                        .map(Pair::P256)
                };
                let ed25519 = || {
                    Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
                        .ok()
                        .map(Pair::Ed25519)
                };
                rsa().or_else(p256).or_else(ed25519)
            }
            "RSA PRIVATE KEY" => RsaKeyPair::from_der(der).ok().map(Pair::Rsa),
            _ => None,
        };
        let why = "expected a PEM private key: RSA of 2048 bits or more, P-256, or Ed25519 \
                   (`openssl genpkey`)";
        pair.map(Self).ok_or_else(|| bad(why))
    }

    /// The JWS algorithm: `RS256`, `ES256` or `EdDSA`.
    pub fn alg(&self) -> &'static str {
        match self.0 {
            Pair::Rsa(_) => "RS256",
            Pair::P256(_) => "ES256",
            Pair::Ed25519(_) => "EdDSA",
        }
    }

    /// Signs bytes.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, DsrError> {
        let failed = |_| DsrError::Key("the key could not sign".into());
        let rng = SystemRandom::new();
        match &self.0 {
            Pair::Rsa(key) => {
                let mut out = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &rng, message, &mut out)
                    .map_err(failed)?;
                Ok(out)
            }
            Pair::P256(key) => Ok(key.sign(&rng, message).map_err(failed)?.as_ref().to_vec()),
            Pair::Ed25519(key) => Ok(key.sign(message).as_ref().to_vec()),
        }
    }

    /// The public half, under this name.
    pub fn jwk(&self, kid: &str) -> Jwk {
        let mut out = Jwk {
            kty: String::new(),
            kid: Some(kid.to_owned()),
            alg: Some(self.alg().to_owned()),
            crv: None,
            n: None,
            e: None,
            x: None,
            y: None,
        };
        match &self.0 {
            Pair::Rsa(key) => {
                let public = RsaPublicKeyComponents::<Vec<u8>>::from(key.public());
                out.kty = "RSA".into();
                (out.n, out.e) = (Some(encode(&public.n)), Some(encode(&public.e)));
            }
            Pair::P256(key) => {
                // An uncompressed point: 4, x, y.
                let point = key.public_key().as_ref();
                (out.kty, out.crv) = ("EC".into(), Some("P-256".into()));
                (out.x, out.y) = (Some(encode(&point[1..33])), Some(encode(&point[33..])));
            }
            Pair::Ed25519(key) => {
                (out.kty, out.crv) = ("OKP".into(), Some("Ed25519".into()));
                out.x = Some(encode(key.public_key().as_ref()));
            }
        }
        out
    }
}

impl Jwk {
    /// The algorithm that this key is for, by its kind: what a message claims does not count.
    pub fn algorithm(&self) -> Result<&'static str, DsrError> {
        let by_kind = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => "RS256",
            ("EC", Some("P-256")) => "ES256",
            ("OKP", Some("Ed25519")) => "EdDSA",
            (kty, crv) => {
                return Err(DsrError::Key(format!(
                    "{kty} {crv:?}: expected RSA, EC P-256 or OKP Ed25519"
                )));
            }
        };
        match self.alg.as_deref() {
            Some(alg) if alg != by_kind => {
                Err(DsrError::Key(format!("{alg} with a {} key", self.kty)))
            }
            _ => Ok(by_kind),
        }
    }

    /// Whether `signature` is this key's over `message`.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<bool, DsrError> {
        let part = |v: &Option<String>, name: &str| {
            let bytes = v.as_deref().and_then(decode);
            bytes.ok_or_else(|| {
                DsrError::Key(format!("the key's {name} is missing or not base64url"))
            })
        };
        Ok(match self.algorithm()? {
            "RS256" => {
                let public = RsaPublicKeyComponents {
                    n: part(&self.n, "n")?,
                    e: part(&self.e, "e")?,
                };
                public
                    .verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
                    .is_ok()
            }
            "ES256" => {
                let point = [vec![4], part(&self.x, "x")?, part(&self.y, "y")?].concat();
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                    .verify(message, signature)
                    .is_ok()
            }
            _ => UnparsedPublicKey::new(&ED25519, part(&self.x, "x")?)
                .verify(message, signature)
                .is_ok(),
        })
    }
}
