//! Envelopes that one key opens, and the answer that only whoever sealed the envelope can read.
//!
//! HPKE (RFC 9180) in base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305, one
//! message a context. An envelope says nothing of who sealed it. Its answer is sealed with a key
//! that both sides derive from the envelope (RFC 9180, section 9.8, with the exporter of section
//! 5.3).
//!
//! ```
//! use lethe_seal::envelope::{SecretKey, seal_to};
//!
//! let secret = SecretKey::from_seed(&lethe_seal::random()?);
//! let sealed = seal_to(&secret.public(), b"its use", b"where it belongs", b"hello", b"answer")?;
//! let opened = secret
//!     .open(b"its use", b"where it belongs", &sealed.envelope, b"answer")
//!     .ok_or("it does not open")?;
//! assert_eq!(opened.plain, b"hello");
//! let reply = opened.answer.seal(b"thank you")?;
//! assert_eq!(sealed.answer.open(&reply).as_deref(), Some(&b"thank you"[..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;

use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::rand_core::{Infallible, TryCryptoRng, TryRng};
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use ring::rand::{SecureRandom, SystemRandom};

use crate::SealError;

type Suite = X25519HkdfSha256;

/// Bytes of the sender's ephemeral public key, in front of the ciphertext.
const ENC: usize = 32;

/// What an answer is bound to besides its key.
const ANSWER: &[u8] = b"lethe answer 1";

/// The longest `info` and `answer`, in bytes. The key derivation takes no more than 64 KiB.
pub const MOST_CONTEXT: usize = 32 << 10;

/// An X25519 public key: whoever has it can seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(pub [u8; 32]);

/// Opens envelopes. Its memory is overwritten when it is dropped.
#[derive(Clone)]
pub struct SecretKey(<Suite as Kem>::PrivateKey);

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey")
    }
}

/// What an envelope held.
#[derive(Debug)]
pub struct Opened {
    /// What was sealed.
    pub plain: Vec<u8>,
    /// Seals the answer.
    pub answer: AnswerKey,
}

/// An envelope, and what opens its answer.
#[derive(Debug)]
pub struct Sealed {
    /// An ephemeral public key (32 bytes) and the ciphertext with its tag (16 bytes more than the
    /// plain text).
    pub envelope: Vec<u8>,
    /// Opens the answer.
    pub answer: AnswerKey,
}

/// The key of the answers to one envelope: AES-256-GCM, a random nonce in front of each.
///
/// The nonce is random, not fixed: an envelope that somebody brings twice is answered twice (the
/// second time: its ticket is used), and both answers have this key. Whoever seals under one key
/// less than 2^32 times repeats a nonce with a probability below 2^-32; a tally answers an envelope
/// as often as it is brought, which its tickets and the coordinator's pace bound far below that.
///
/// An answer says which envelope it is for, not which of several answers is the newest.
pub struct AnswerKey([u8; 32]);

impl fmt::Debug for AnswerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnswerKey")
    }
}

impl SecretKey {
    /// The key of a seed (`DeriveKeyPair` of RFC 9180, section 7.1.3): as secret as the key.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let (secret, _) = Suite::derive_keypair(seed);
        Self(secret)
    }

    /// What others seal with.
    pub fn public(&self) -> PublicKey {
        PublicKey(Suite::sk_to_pk(&self.0).to_bytes().into())
    }

    /// Opens an envelope; `None` if the bytes, the key, `info` or `aad` are not those of the
    /// sealing. `answer` names the use of the answer's key: both sides have to give the same.
    pub fn open(&self, info: &[u8], aad: &[u8], envelope: &[u8], answer: &[u8]) -> Option<Opened> {
        if info.len() > MOST_CONTEXT || answer.len() > MOST_CONTEXT {
            return None;
        }
        let (enc, ciphertext) = envelope.split_at_checked(ENC)?;
        let enc = <Suite as Kem>::EncappedKey::from_bytes(enc).ok()?;
        let base = OpModeR::Base;
        let mut context =
            hpke::setup_receiver::<ChaCha20Poly1305, HkdfSha256, Suite>(&base, &self.0, &enc, info)
                .ok()?;
        let plain = context.open(ciphertext, aad).ok()?;
        let mut key = [0; 32];
        context.export(answer, &mut key).ok()?;
        Some(Opened {
            plain,
            answer: AnswerKey(key),
        })
    }
}

/// Seals `plain` so that only the owner of `key` reads it, for one use (`info`), bound to `aad`.
/// `answer` names the use of the answer's key.
///
/// # Errors
/// [`SealError`]: the system has no random numbers, the key is none that anything can be sealed to
/// (a point of small order), or something is too long.
pub fn seal_to(
    key: &PublicKey,
    info: &[u8],
    aad: &[u8],
    plain: &[u8],
    answer: &[u8],
) -> Result<Sealed, SealError> {
    if info.len() > MOST_CONTEXT || answer.len() > MOST_CONTEXT {
        return Err(SealError("the context is longer than 32 KiB"));
    }
    let public = <Suite as Kem>::PublicKey::from_bytes(&key.0)
        .map_err(|_| SealError("the public key does not fit"))?;
    let mut random = System::default();
    let base = OpModeS::Base;
    let set_up = hpke::setup_sender_with_rng::<ChaCha20Poly1305, HkdfSha256, Suite>(
        &base,
        &public,
        info,
        &mut random,
    );
    // Asked before anything is used: without random numbers the ephemeral key is no secret.
    if random.failed {
        return Err(SealError("no random numbers from the system"));
    }
    let (enc, mut context) =
        set_up.map_err(|_| SealError("nothing can be sealed to this public key"))?;
    let ciphertext = context
        .seal(plain, aad)
        .map_err(|_| SealError("the plain text is too long"))?;
    let mut key = [0; 32];
    context
        .export(answer, &mut key)
        .map_err(|_| SealError("the answer's key does not fit"))?;
    Ok(Sealed {
        envelope: [&enc.to_bytes()[..], &ciphertext].concat(),
        answer: AnswerKey(key),
    })
}

impl AnswerKey {
    /// Seals an answer.
    ///
    /// # Errors
    /// [`SealError`]: no random numbers, or too long.
    pub fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        crate::seal(&self.0, ANSWER, plain)
    }

    /// Opens an answer; `None` if it is not one to this envelope.
    pub fn open(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        crate::unseal(&self.0, ANSWER, sealed)
    }
}

/// Random numbers of the system, for an interface that knows no failure: it is noted, and asked for
/// afterwards.
#[derive(Default)]
struct System {
    failed: bool,
}

impl System {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.fill(&mut out);
        out
    }

    fn fill(&mut self, out: &mut [u8]) {
        self.failed |= SystemRandom::new().fill(out).is_err();
    }
}

impl TryRng for System {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from_le_bytes(self.array()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from_le_bytes(self.array()))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        self.fill(out);
        Ok(())
    }
}

impl TryCryptoRng for System {}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn unhex(text: &str) -> Vec<u8> {
        assert!(text.len().is_multiple_of(2));
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    fn seed(text: &str) -> [u8; 32] {
        unhex(text).try_into().unwrap()
    }

    /// `fixtures/envelopes.py` made them with another implementation.
    #[test]
    fn envelopes_of_another_implementation_open() {
        let text = include_str!("../fixtures/envelopes.txt");
        let cases: Vec<&str> = text.split("\n\n").filter(|c| !c.is_empty()).collect();
        assert_eq!(cases.len(), 4);
        for case in cases {
            let values: BTreeMap<&str, &str> = case
                .lines()
                .map(|l| l.split_once(' ').unwrap_or((l, "")))
                .collect();
            let value = |name: &str| unhex(values[name]);
            let secret = SecretKey::from_seed(&seed(values["seed"]));
            assert_eq!(secret.public().0[..], value("public"));
            let opened = secret
                .open(
                    &value("info"),
                    &value("aad"),
                    &value("envelope"),
                    &value("context"),
                )
                .unwrap();
            assert_eq!(opened.plain, value("plain"));
            assert_eq!(opened.answer.0[..], value("exported"));
            let reply = opened.answer.open(&value("reply"));
            assert_eq!(reply.as_deref(), Some(&b"taken"[..]));
        }
    }

    /// RFC 9180, appendix A.2.1: this suite in base mode.
    #[test]
    fn the_test_vector_of_the_rfc_opens() {
        let secret = SecretKey::from_seed(&seed(
            "1ac01f181fdf9f352797655161c58b75c656a6cc2716dcb66372da835542e1df",
        ));
        assert_eq!(
            secret.public().0[..],
            unhex("4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a")
        );
        let envelope = unhex(concat!(
            "1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a",
            "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db",
            "21993c62ce81883d2dd1b51a28",
        ));
        let info = unhex("4f6465206f6e2061204772656369616e2055726e");
        let opened = secret.open(&info, b"Count-0", &envelope, b"TestContext");
        let opened = opened.unwrap();
        assert_eq!(opened.plain, b"Beauty is truth, truth beauty");
        assert_eq!(
            opened.answer.0[..],
            unhex("5acb09211139c43b3090489a9da433e8a30ee7188ba8b0a9a1ccf0c229283e53")
        );
    }

    fn example() -> (SecretKey, Sealed) {
        let secret = SecretKey::from_seed(&[5; 32]);
        let sealed = seal_to(&secret.public(), b"info", b"aad", b"a secret", b"answer").unwrap();
        (secret, sealed)
    }

    #[test]
    fn it_opens_for_one_key_one_use_and_one_place_only() {
        let (secret, sealed) = example();
        let envelope = &sealed.envelope;
        assert_eq!(envelope.len(), 32 + 8 + 16);
        let opened = secret.open(b"info", b"aad", envelope, b"answer").unwrap();
        assert_eq!(opened.plain, b"a secret");
        assert!(secret.open(b"other", b"aad", envelope, b"answer").is_none());
        assert!(
            secret
                .open(b"info", b"other", envelope, b"answer")
                .is_none()
        );
        assert!(secret.open(b"", b"aad", envelope, b"answer").is_none());
        let other = SecretKey::from_seed(&[6; 32]);
        assert!(other.open(b"info", b"aad", envelope, b"answer").is_none());
        // Nothing of it can be read without the key, and no two envelopes are alike.
        assert!(!envelope.windows(8).any(|w| w == b"a secret"));
        assert_ne!(*envelope, example().1.envelope);
    }

    #[test]
    fn altered_and_cut_envelopes_are_refused() {
        let (secret, sealed) = example();
        let open = |bytes: &[u8]| secret.open(b"info", b"aad", bytes, b"answer");
        for at in 0..sealed.envelope.len() {
            assert!(open(&sealed.envelope[..at]).is_none(), "cut at {at}");
            for bit in [1, 128] {
                let mut altered = sealed.envelope.clone();
                altered[at] ^= bit;
                let opened = open(&altered);
                // X25519 ignores the highest bit of a public key, but the key schedule does not.
                assert!(opened.is_none(), "bit {bit} of byte {at}");
            }
        }
        let longer = [&sealed.envelope[..], &[0]].concat();
        assert!(open(&longer).is_none());
    }

    #[test]
    fn keys_of_small_order_are_refused() {
        // All points of order 1, 2, 4 and 8 of the curve and of its twist, with the encodings that
        // exceed the field: RFC 7748, section 6.1, asks for a check of the result.
        let points = [
            "0000000000000000000000000000000000000000000000000000000000000000",
            "0100000000000000000000000000000000000000000000000000000000000000",
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        ];
        let (secret, sealed) = example();
        for point in points.map(seed) {
            let to = seal_to(&PublicKey(point), b"info", b"aad", b"a secret", b"answer");
            assert_eq!(
                to.err(),
                Some(SealError("nothing can be sealed to this public key"))
            );
            let from = [&point[..], &sealed.envelope[32..]].concat();
            assert!(secret.open(b"info", b"aad", &from, b"answer").is_none());
        }
    }

    #[test]
    fn only_who_sealed_reads_the_answer() {
        let (secret, sealed) = example();
        let opened = secret
            .open(b"info", b"aad", &sealed.envelope, b"answer")
            .unwrap();
        let reply = opened.answer.seal(b"taken").unwrap();
        assert_eq!(sealed.answer.open(&reply).as_deref(), Some(&b"taken"[..]));
        assert!(example().1.answer.open(&reply).is_none());
        for at in 0..reply.len() {
            let mut altered = reply.clone();
            altered[at] ^= 1;
            assert!(sealed.answer.open(&altered).is_none());
            assert!(sealed.answer.open(&reply[..at]).is_none());
        }
        // A second answer to the same envelope has another nonce.
        assert_ne!(reply, opened.answer.seal(b"taken").unwrap());
        // The key for another use is another one.
        let other = secret.open(b"info", b"aad", &sealed.envelope, b"other");
        assert!(other.unwrap().answer.open(&reply).is_none());
    }

    #[test]
    fn contexts_have_a_bound() {
        let (secret, sealed) = example();
        let long = vec![0; MOST_CONTEXT + 1];
        let key = secret.public();
        assert!(seal_to(&key, &long, b"", b"", b"").is_err());
        assert!(seal_to(&key, b"", b"", b"", &long).is_err());
        assert!(secret.open(&long, b"", &sealed.envelope, b"").is_none());
        assert!(secret.open(b"", b"", &sealed.envelope, &long).is_none());
        assert!(seal_to(&key, &long[1..], b"", b"", &long[1..]).is_ok());
    }
}
