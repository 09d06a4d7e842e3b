//! ML-DSA-44 (FIPS 204) in cosignatures of witnesses, where this build has it.

#[cfg(feature = "post-quantum")]
mod real {
    use ml_dsa::{EncodedVerifyingKey, MlDsa44, Signature, SigningKey, VerifyingKey};

    /// A signing key.
    pub(crate) type Key = SigningKey<MlDsa44>;

    /// Whether this is the key's signature of the message, with no context; none: this build has no
    /// ML-DSA.
    pub(crate) fn verify(public: &[u8], message: &[u8], signature: &[u8]) -> Option<bool> {
        let (Ok(public), Ok(signature)) = (
            EncodedVerifyingKey::<MlDsa44>::try_from(public),
            Signature::<MlDsa44>::try_from(signature),
        ) else {
            return Some(false);
        };
        let key = VerifyingKey::<MlDsa44>::decode(&public);
        Some(key.verify_with_context(message, &[], &signature))
    }

    /// The key of a seed.
    pub(crate) fn key(seed: &[u8; 32]) -> Key {
        Key::from_seed(&(*seed).into())
    }

    /// The public key, as FIPS 204 encodes it.
    pub(crate) fn public(key: &Key) -> Vec<u8> {
        let verifying: &VerifyingKey<MlDsa44> = key.as_ref();
        verifying.encode().to_vec()
    }

    /// The deterministic signature of a message, with no context.
    pub(crate) fn sign(key: &Key, message: &[u8]) -> Option<Vec<u8>> {
        let signature = key.expanded_key().sign_deterministic(message, &[]).ok()?;
        Some(signature.encode().to_vec())
    }
}

#[cfg(not(feature = "post-quantum"))]
mod real {
    pub(crate) fn verify(_public: &[u8], _message: &[u8], _signature: &[u8]) -> Option<bool> {
        None
    }
}

pub(crate) use real::*;
