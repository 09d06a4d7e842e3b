//! Masks: a seed of 32 bytes expanded to values that are uniform to whoever lacks it.
//!
//! What is masked is added up modulo 2^32 by one party, the masks by another; only the difference
//! of both sums says anything (`docs/secure-sums.md`). A mask is the ChaCha20 key stream: the
//! ciphertext of zeros under ChaCha20-Poly1305 (RFC 8439), a nonce for each [`PIECE`] values, and
//! no tag. A seed is used for one mask.
//!
//! ```
//! let seed = lethe_seal::random()?;
//! let mut values = vec![1, 2, 3];
//! lethe_seal::mask::add(&seed, &mut values)?;
//! lethe_seal::mask::subtract(&seed, &mut values)?;
//! assert_eq!(values, [1, 2, 3]);
//! # Ok::<(), lethe_seal::SealError>(())
//! ```

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::SealError;

/// Values under one nonce.
pub const PIECE: usize = 16_384;

/// Adds the mask of a seed, modulo 2^32.
///
/// # Errors
/// [`SealError`]: none for a seed of 32 bytes.
pub fn add(seed: &[u8; 32], values: &mut [u32]) -> Result<(), SealError> {
    each(seed, values, |value, mask| value.wrapping_add(mask))
}

/// Subtracts the mask of a seed, modulo 2^32.
///
/// # Errors
/// As [`add`].
pub fn subtract(seed: &[u8; 32], values: &mut [u32]) -> Result<(), SealError> {
    each(seed, values, |value, mask| value.wrapping_sub(mask))
}

fn each(
    seed: &[u8; 32],
    values: &mut [u32],
    with: impl Fn(u32, u32) -> u32,
) -> Result<(), SealError> {
    let key = UnboundKey::new(&CHACHA20_POLY1305, seed)
        .map_err(|_| SealError("the seed of a mask does not fit"))?;
    let key = LessSafeKey::new(key);
    let mut bytes = vec![0; 4 * PIECE.min(values.len())];
    for (number, piece) in values.chunks_mut(PIECE).enumerate() {
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&(number as u64).to_le_bytes());
        let stream = &mut bytes[..4 * piece.len()];
        stream.fill(0);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), stream);
        let _tag = tag.map_err(|_| SealError("a mask is too long"))?;
        for (value, mask) in piece.iter_mut().zip(stream.chunks_exact(4)) {
            let mask = u32::from_le_bytes([mask[0], mask[1], mask[2], mask[3]]);
            *value = with(*value, mask);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(seed: u8, values: usize) -> Vec<u32> {
        let mut out = vec![0; values];
        add(&[seed; 32], &mut out).expect("a seed");
        out
    }

    #[test]
    fn masks_are_those_of_the_format() {
        // From another implementation: `ChaCha20Poly1305` of Python's `cryptography` 48.
        let first = [204_047_415, 4_244_925_280, 291_520, 1_726_177_737];
        let second = [2_256_896_715, 2_045_673_776];
        let third = 2_883_341_512;
        assert_eq!(mask(7, 4), first);
        let long = mask(7, 2 * PIECE + 1);
        assert_eq!(long[PIECE..PIECE + 2], second);
        assert_eq!(long[2 * PIECE], third);
    }

    #[test]
    fn a_mask_goes_as_it_came_and_depends_on_its_seed_alone() {
        for values in [0, 1, PIECE - 1, PIECE, PIECE + 1] {
            let own: Vec<u32> = (0..values as u32).collect();
            let mut masked = own.clone();
            add(&[1; 32], &mut masked).expect("a seed");
            assert!(values == 0 || masked != own);
            subtract(&[1; 32], &mut masked).expect("a seed");
            assert_eq!(masked, own);
        }
        assert_eq!(mask(3, 100), mask(3, 200)[..100]);
        assert_ne!(mask(3, 100), mask(4, 100));
    }

    #[test]
    fn bits_of_a_mask_are_even() {
        let values = mask(9, 20_000);
        for bit in 0..32 {
            let ones = values.iter().filter(|v| *v >> bit & 1 == 1).count();
            assert!(ones.abs_diff(10_000) < 400, "bit {bit}: {ones}");
        }
    }
}
