//! Authenticated encryption of records at rest (AES-256-GCM), envelopes that one key opens
//! ([`envelope`]), masks ([`mask`]), random bytes, and whether a key can be destroyed where it lies
//! ([`disk`]): shared by client and servers.
//!
//! ```
//! let key = lethe_seal::random()?;
//! let sealed = lethe_seal::seal(&key, b"where it belongs", b"secret")?;
//! let opened = lethe_seal::unseal(&key, b"where it belongs", &sealed);
//! assert_eq!(opened.as_deref(), Some(&b"secret"[..]));
//! assert_eq!(lethe_seal::unseal(&key, b"elsewhere", &sealed), None);
//! # Ok::<(), lethe_seal::SealError>(())
//! ```

pub mod disk;
pub mod envelope;
pub mod mask;
pub mod process;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;

/// The system gave no random numbers, or a record is too long to encrypt.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("encryption failed: {0}")]
pub struct SealError(&'static str);

/// Random bytes from the operating system.
pub fn random<const N: usize>() -> Result<[u8; N], SealError> {
    let mut out = [0; N];
    SystemRandom::new()
        .fill(&mut out)
        .map_err(|_| SealError("no random numbers from the system"))?;
    Ok(out)
}

/// A key that follows from another one and a secret: HMAC-SHA-256 of `label`, a zero byte, and the
/// secret. Without either nothing is known of it.
pub fn derive(key: &[u8; 32], label: &[u8], secret: &[u8; 32]) -> [u8; 32] {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key);
    let mut context = ring::hmac::Context::with_key(&key);
    context.update(label);
    context.update(&[0]);
    context.update(secret);
    let mut out = [0; 32];
    out.copy_from_slice(context.sign().as_ref());
    out
}

/// Encrypts `plain`, bound to `aad`, with a fresh nonce in front.
pub fn seal(secret: &[u8; 32], aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealError> {
    let key = LessSafeKey::new(
        UnboundKey::new(&AES_256_GCM, secret).map_err(|_| SealError("the key does not fit"))?,
    );
    let nonce: [u8; NONCE_LEN] = random()?;
    let mut body = plain.to_vec();
    key.seal_in_place_append_tag(
        Nonce::assume_unique_for_key(nonce),
        Aad::from(aad),
        &mut body,
    )
    .map_err(|_| SealError("the record is too long"))?;
    Ok([&nonce[..], &body].concat())
}

/// Decrypts; `None` if the bytes, the key or `aad` are not those of the sealing.
pub fn unseal(secret: &[u8; 32], aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, body) = sealed.split_at_checked(NONCE_LEN)?;
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, secret).ok()?);
    let mut body = body.to_vec();
    let n = key
        .open_in_place(
            Nonce::try_assume_unique_for_key(nonce).ok()?,
            Aad::from(aad),
            &mut body,
        )
        .ok()?
        .len();
    body.truncate(n);
    Some(body)
}
