//! Adapters and their changes on the wire: exact, or in few bits.
//!
//! Values are quantised in blocks of [`BLOCK`] against the block's largest magnitude, and the codes
//! are deflated when that makes them shorter. Everything is a function of the values alone, so that
//! a replay sends the same bytes. Error of a value: half a step, `max / 254` of its block at eight
//! bits and `max / 14` at four.

use std::io::{Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::Digest;
use crate::payload::{from_half, to_half};

/// Values that share a scale.
pub const BLOCK: usize = 256;

/// Number format of adapters and of their changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PackedFormat {
    /// Exact.
    #[default]
    F32,
    /// Eight bits and a scale per block.
    Int8,
    /// Four bits and a scale per block.
    Int4,
    /// The largest values in eight bits, this many of a thousand; the rest is zero (Aji and
    /// Heafield, EMNLP 2017). Whoever sends changes keeps what was left out and adds it to the next
    /// (error feedback; Stich et al., NeurIPS 2018).
    TopK(u16),
    /// In fixed point under a mask: only the sum of a round is ever read ([`crate::masked`]).
    Masked,
}

/// Why packed values cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PackedError {
    /// Another number of values, or damage.
    #[error("{got} packed bytes do not hold {expected} values in {format:?}: {why}")]
    Malformed {
        /// Format.
        format: PackedFormat,
        /// Values expected.
        expected: usize,
        /// Bytes.
        got: usize,
        /// What does not fit.
        why: &'static str,
    },
    /// Infinite or not a number: nothing can be quantised against it.
    #[error("value {0} is not finite and cannot be packed: the training diverged")]
    NotFinite(usize),
    /// Nobody can read it alone.
    #[error(
        "one masked update is no values: only the sum of a round can be read, once the tally has \
         given the sum of its masks"
    )]
    Masked,
}

/// Values in a format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// Number format.
    pub format: PackedFormat,
    /// The codes are deflated.
    pub deflated: bool,
    /// Scales and codes.
    ///
    /// Copies share them: a coordinator sends the same to thousands of clients at the same time.
    pub bytes: Bytes,
}

impl PackedFormat {
    /// Whether values change on the way.
    pub fn lossy(self) -> bool {
        self != Self::F32
    }

    /// Whether the sender is to keep what is lost.
    pub fn feeds_back(self) -> bool {
        matches!(self, Self::TopK(_))
    }

    /// Longest raw form of `n` values.
    fn bound(self, n: usize) -> usize {
        let scales = 2 * n.div_ceil(BLOCK);
        match self {
            Self::F32 => n.saturating_mul(4),
            Self::Int8 => n + scales,
            Self::Int4 => n.div_ceil(2) + scales,
            // A gap has at most five bytes.
            Self::TopK(_) => self.kept(n).saturating_mul(6) + scales + 8,
            Self::Masked => crate::masked::length(n),
        }
    }

    /// How many of `n` values are sent.
    fn kept(self, n: usize) -> usize {
        match self {
            Self::TopK(per_mille) => (n * usize::from(per_mille))
                .div_ceil(1000)
                .clamp(1.min(n), n),
            _ => n,
        }
    }
}

impl Packed {
    /// Name of the bytes.
    pub fn digest(&self) -> Digest {
        Digest::of(&[b"packed", &self.bytes])
    }

    /// Packs values.
    pub fn encode(values: &[f32], format: PackedFormat) -> Result<Self, PackedError> {
        if let Some(i) = first_not_finite(values) {
            return Err(PackedError::NotFinite(i));
        }
        let raw = match format {
            PackedFormat::F32 => {
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                let bytes = bytes.into();
                return Ok(Self {
                    format,
                    deflated: false,
                    bytes,
                });
            }
            PackedFormat::Int8 => quantise(values, 127),
            PackedFormat::Int4 => halve(values),
            PackedFormat::TopK(_) => top(values, format.kept(values.len())),
            PackedFormat::Masked => return Err(PackedError::Masked),
        };
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
        let short = encoder
            .write_all(&raw)
            .and_then(|()| encoder.finish())
            .ok()
            .filter(|d| d.len() < raw.len());
        Ok(match short {
            Some(bytes) => Self {
                format,
                deflated: true,
                bytes: bytes.into(),
            },
            None => Self {
                format,
                deflated: false,
                bytes: raw.into(),
            },
        })
    }

    fn malformed(&self, n: usize, why: &'static str) -> PackedError {
        PackedError::Malformed {
            format: self.format,
            expected: n,
            got: self.bytes.len(),
            why,
        }
    }

    /// The same values with their codes inflated: longer, and quicker to decode. For whoever
    /// decodes them more than once. Never more memory than `n` values need, whatever the bytes
    /// claim.
    pub fn inflated(&self, n: usize) -> Result<Self, PackedError> {
        if !self.deflated {
            return Ok(self.clone());
        }
        let bound = self.format.bound(n) + 1;
        let mut raw = Vec::with_capacity(bound);
        DeflateDecoder::new(&self.bytes[..])
            .take(bound as u64)
            .read_to_end(&mut raw)
            .map_err(|_| self.malformed(n, "the codes cannot be inflated"))?;
        Ok(Self {
            format: self.format,
            deflated: false,
            bytes: raw.into(),
        })
    }

    /// The `n` values; never more memory than they need, whatever the bytes claim.
    pub fn decode(&self, n: usize) -> Result<Vec<f32>, PackedError> {
        let flat = self.inflated(n)?;
        let raw = &flat.bytes[..];
        let values = match self.format {
            PackedFormat::F32 if raw.len() == n.saturating_mul(4) => Some(
                raw.chunks_exact(4)
                    .map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]))
                    .collect(),
            ),
            PackedFormat::F32 => None,
            PackedFormat::Int8 => restore(raw, n),
            PackedFormat::Int4 => double(raw, n),
            PackedFormat::TopK(_) => spread(raw, n, self.format.kept(n)),
            PackedFormat::Masked => return Err(PackedError::Masked),
        };
        let values: Vec<f32> = values.ok_or_else(|| self.malformed(n, "another length"))?;
        match first_not_finite(&values) {
            Some(i) => Err(PackedError::NotFinite(i)),
            None => Ok(values),
        }
    }
}

/// Where the first value is infinite or not a number. Blocks without a way out inside become vector
/// instructions; a search does not.
fn first_not_finite(values: &[f32]) -> Option<usize> {
    let bad = |block: &[f32]| block.iter().fold(false, |bad, v| bad | !v.is_finite());
    let start = values.chunks(BLOCK).position(bad)? * BLOCK;
    let within = values[start..].iter().position(|v| !v.is_finite())?;
    Some(start + within)
}

/// A block's step for codes up to `top`, as it will be read; 0 for a block of zeros (or of nothing
/// that half precision holds).
fn step(block: &[f32], top: i32) -> f32 {
    let max = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    from_half(to_half((max / top as f32).min(65504.0)))
}

fn codes(block: &[f32], step: f32, top: i32) -> impl Iterator<Item = i32> {
    let code = move |v: &f32| {
        if step == 0.0 {
            0
        } else {
            (v / step).round_ties_even() as i32
        }
    };
    block.iter().map(move |v| code(v).clamp(-top, top))
}

/// Scale and codes of every block: all scales first, so that codes lie together.
fn quantise(values: &[f32], top: i32) -> Vec<u8> {
    let mut out: Vec<u8> = values
        .chunks(BLOCK)
        .flat_map(|b| to_half(step(b, top).min(65504.0)).to_le_bytes())
        .collect();
    out.extend(
        values
            .chunks(BLOCK)
            .flat_map(|b| codes(b, step(b, top), top).map(|c| c as i8 as u8)),
    );
    out
}

fn scales(raw: &[u8], n: usize) -> Option<(Vec<f32>, &[u8])> {
    let (scales, codes) = raw.split_at_checked(2 * n.div_ceil(BLOCK))?;
    Some((
        scales
            .chunks_exact(2)
            .map(|c| from_half(u16::from_le_bytes([c[0], c[1]])))
            .collect(),
        codes,
    ))
}

fn restore(raw: &[u8], n: usize) -> Option<Vec<f32>> {
    let (scales, codes) = scales(raw, n)?;
    if codes.len() != n {
        return None;
    }
    let mut out = Vec::with_capacity(n);
    for (block, scale) in codes.chunks(BLOCK).zip(scales) {
        out.extend(block.iter().map(|c| f32::from(*c as i8) * scale));
    }
    Some(out)
}

/// Four bits: two codes a byte, each with 7 added.
fn halve(values: &[f32]) -> Vec<u8> {
    let mut out: Vec<u8> = values
        .chunks(BLOCK)
        .flat_map(|b| to_half(step(b, 7)).to_le_bytes())
        .collect();
    let all: Vec<u8> = values
        .chunks(BLOCK)
        .flat_map(|b| codes(b, step(b, 7), 7).map(|c| (c + 7) as u8))
        .collect();
    out.extend(
        all.chunks(2)
            .map(|p| p[0] | p.get(1).copied().unwrap_or(7) << 4),
    );
    out
}

fn double(raw: &[u8], n: usize) -> Option<Vec<f32>> {
    let (scales, codes) = scales(raw, n)?;
    let code = |i: usize| i32::from(codes[i / 2] >> (4 * (i % 2)) & 15) - 7;
    (codes.len() == n.div_ceil(2))
        .then(|| (0..n).map(|i| code(i) as f32 * scales[i / BLOCK]).collect())
}

/// The `kept` largest: their number (u32), gaps between their places (LEB128), then the values.
fn top(values: &[f32], kept: usize) -> Vec<u8> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    // Ties by place: the same values give the same choice.
    order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()).then(a.cmp(b)));
    order.truncate(kept);
    order.sort_unstable();
    let mut out = (kept as u32).to_le_bytes().to_vec();
    let mut next = 0;
    for i in &order {
        let mut gap = i - next;
        while gap >= 128 {
            out.push(gap as u8 | 128);
            gap >>= 7;
        }
        out.push(gap as u8);
        next = i + 1;
    }
    let chosen: Vec<f32> = order.iter().map(|i| values[*i]).collect();
    out.extend(quantise(&chosen, 127));
    out
}

fn spread(raw: &[u8], n: usize, kept: usize) -> Option<Vec<f32>> {
    let (count, mut rest) = raw.split_at_checked(4)?;
    if u32::from_le_bytes(count.try_into().ok()?) as usize != kept {
        return None;
    }
    let (mut places, mut next) = (Vec::with_capacity(kept), 0usize);
    for _ in 0..kept {
        let mut gap = 0usize;
        for shift in (0..35).step_by(7) {
            let (byte, more) = rest.split_first()?;
            rest = more;
            gap |= usize::from(byte & 127) << shift;
            if byte & 128 == 0 {
                break;
            }
            if shift == 28 {
                return None;
            }
        }
        let place = next.checked_add(gap).filter(|p| *p < n)?;
        places.push(place);
        next = place + 1;
    }
    let mut out = vec![0.0; n];
    for (place, v) in places.into_iter().zip(restore(rest, kept)?) {
        out[place] = v;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values as updates have them: near zero, with a few large ones.
    fn values(n: usize) -> Vec<f32> {
        let unit = |i: usize, salt: u64| {
            let x = (i as u64 + 1)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .wrapping_add(salt.wrapping_mul(0xd134_2543_de82_ef95));
            ((x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f32 / (1u64 << 24) as f32
                - 0.5
        };
        (0..n)
            .map(|i| (0..6).map(|s| unit(i, s)).sum::<f32>() * 1e-3)
            .collect()
    }

    const ALL: [PackedFormat; 4] = [
        PackedFormat::F32,
        PackedFormat::Int8,
        PackedFormat::Int4,
        PackedFormat::TopK(50),
    ];

    #[test]
    fn errors_are_within_half_a_step() {
        let v = values(3000);
        for (format, top) in [(PackedFormat::Int8, 127.0), (PackedFormat::Int4, 7.0)] {
            let got = Packed::encode(&v, format)
                .expect("finite")
                .decode(v.len())
                .expect("fits");
            for (g, w) in got.chunks(BLOCK).zip(v.chunks(BLOCK)) {
                let max = w.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                let worst = g
                    .iter()
                    .zip(w)
                    .fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(worst <= max / top * 0.51, "{format:?}: {worst} of {max}");
            }
        }
        assert_eq!(
            Packed::encode(&v, PackedFormat::F32)
                .expect("finite")
                .decode(3000)
                .expect("fits"),
            v
        );
    }

    #[test]
    fn sizes_are_what_they_promise() {
        let v = values(20_000);
        let ratio =
            |f| (4 * v.len()) as f64 / Packed::encode(&v, f).expect("finite").bytes.len() as f64;
        assert!(
            ratio(PackedFormat::Int8) > 3.9,
            "{}",
            ratio(PackedFormat::Int8)
        );
        assert!(
            ratio(PackedFormat::Int4) > 8.0,
            "{}",
            ratio(PackedFormat::Int4)
        );
        assert!(
            ratio(PackedFormat::TopK(50)) > 30.0,
            "{}",
            ratio(PackedFormat::TopK(50))
        );
    }

    #[test]
    fn the_largest_are_kept() {
        let mut v = values(1000);
        (v[3], v[997]) = (5.0, -4.0);
        let got = Packed::encode(&v, PackedFormat::TopK(2))
            .expect("finite")
            .decode(1000)
            .expect("fits");
        assert!((got[3] - 5.0).abs() < 0.03 && (got[997] + 4.0).abs() < 0.03);
        assert_eq!(got.iter().filter(|x| **x != 0.0).count(), 2);
    }

    #[test]
    fn odd_lengths_and_zeros() {
        for format in ALL {
            for n in [0, 1, 2, 255, 256, 257] {
                let zeros = vec![0.0; n];
                let p = Packed::encode(&zeros, format).expect("finite");
                assert_eq!(p.decode(n).expect("fits"), zeros, "{format:?} {n}");
                assert!(p.decode(n + 513).is_err(), "{format:?} {n}");
            }
        }
        assert_eq!(
            Packed::encode(&[1.0, f32::NAN], PackedFormat::Int4),
            Err(PackedError::NotFinite(1))
        );
    }

    #[test]
    fn damage_is_an_error_or_values_never_a_panic() {
        let v = values(700);
        for format in ALL {
            let good = Packed::encode(&v, format).expect("finite");
            for at in 0..good.bytes.len() {
                for bit in 0..8 {
                    let mut bad = good.bytes.to_vec();
                    bad[at] ^= 1 << bit;
                    let flipped = Packed {
                        bytes: bad.clone().into(),
                        ..good.clone()
                    };
                    if let Ok(values) = flipped.decode(v.len()) {
                        assert!(values.len() == v.len() && values.iter().all(|x| x.is_finite()));
                    }
                    let cut = Packed {
                        bytes: bad[..at].to_vec().into(),
                        ..good.clone()
                    };
                    let _ = cut.decode(v.len());
                }
            }
        }
        // A bomb: what inflates to more than the values need is cut off.
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&vec![0; 1 << 22]).expect("in memory");
        let bytes = encoder.finish().expect("in memory").into();
        assert!(
            Packed {
                format: PackedFormat::Int8,
                deflated: true,
                bytes
            }
            .decode(700)
            .is_err()
        );
    }
}
