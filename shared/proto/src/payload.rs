//! Hidden states, gradients and updates on the wire: f32, f16, or int8 with one scale per row.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Number format of activations and their gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WireFormat {
    /// Exact: split and unsplit training agree bit for bit.
    F32,
    /// IEEE half precision, rounded to nearest even.
    F16,
    /// Eight bits with a scale per token.
    Int8,
}

/// Why a payload cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a payload of {got} bytes does not hold {rows} rows of {width} values in {format:?}")]
pub struct PayloadError {
    format: WireFormat,
    rows: usize,
    width: usize,
    got: usize,
}

/// `[rows, width]` values in a wire format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Payload {
    /// Number format.
    pub format: WireFormat,
    /// Values; for int8 each row is its f32 scale and then its bytes.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

impl Payload {
    /// Encodes rows of `width` values.
    pub fn encode(values: &[f32], width: usize, format: WireFormat) -> Self {
        let bytes = match format {
            WireFormat::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            WireFormat::F16 => values
                .iter()
                .flat_map(|v| to_half(*v).to_le_bytes())
                .collect(),
            WireFormat::Int8 => values.chunks(width.max(1)).flat_map(encode_row).collect(),
        };
        Self { format, bytes }
    }

    /// Decodes `rows * width` values; the length must fit exactly.
    pub fn decode(&self, rows: usize, width: usize) -> Result<Vec<f32>, PayloadError> {
        let n = rows.saturating_mul(width);
        let want = match self.format {
            WireFormat::F32 => n.saturating_mul(4),
            WireFormat::F16 => n.saturating_mul(2),
            WireFormat::Int8 => n.saturating_add(rows.saturating_mul(4)),
        };
        if self.bytes.len() != want {
            return Err(PayloadError {
                format: self.format,
                rows,
                width,
                got: self.bytes.len(),
            });
        }
        let b = &self.bytes;
        Ok(match self.format {
            WireFormat::F32 => b
                .chunks_exact(4)
                .map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]))
                .collect(),
            WireFormat::F16 => b
                .chunks_exact(2)
                .map(|c| from_half(u16::from_le_bytes([c[0], c[1]])))
                .collect(),
            WireFormat::Int8 => b.chunks_exact(width + 4).flat_map(decode_row).collect(),
        })
    }
}

fn encode_row(row: &[f32]) -> Vec<u8> {
    let max = row.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let scale = if max > 0.0 { max / 127.0 } else { 1.0 };
    let mut out = scale.to_le_bytes().to_vec();
    out.extend(
        row.iter()
            .map(|v| (v / scale).round_ties_even().clamp(-127.0, 127.0) as i8 as u8),
    );
    out
}

fn decode_row(row: &[u8]) -> impl Iterator<Item = f32> {
    let scale = f32::from_le_bytes([row[0], row[1], row[2], row[3]]);
    row[4..].iter().map(move |b| f32::from(*b as i8) * scale)
}

/// f32 to IEEE half bits: nearest even, overflow to infinity.
pub(crate) fn to_half(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return sign | 0x7e00;
    }
    if magnitude >= 0x4780_0000 {
        return sign | 0x7c00;
    }
    if magnitude < 0x3880_0000 {
        // Subnormal: let f32 addition round at the right bit.
        let shifted = f32::from_bits(magnitude) + 0.5;
        return sign | (shifted.to_bits() - 0x3f00_0000) as u16;
    }
    let odd = (magnitude >> 13) & 1;
    sign | ((magnitude - 0x3800_0000 + 0xfff + odd) >> 13) as u16
}

pub(crate) fn from_half(h: u16) -> f32 {
    let sign = f32::from_bits(0x3f80_0000 | (u32::from(h & 0x8000) << 16));
    let (exponent, fraction) = ((h >> 10) & 0x1f, u32::from(h & 0x3ff));
    sign * match exponent {
        0 => fraction as f32 * 2.0f32.powi(-24),
        31 => f32::from_bits(0x7f80_0000 | (fraction << 13)),
        e => f32::from_bits((u32::from(e) + 112) << 23 | fraction << 13),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f32_is_exact_and_lengths_are_checked() {
        let v = [1.5f32, -2.25, f32::MIN_POSITIVE, 3.0];
        let p = Payload::encode(&v, 2, WireFormat::F32);
        assert_eq!(p.decode(2, 2).expect("fits"), v);
        assert!(p.decode(3, 2).is_err());
        assert!(p.decode(usize::MAX, usize::MAX).is_err());
    }

    #[test]
    fn half_round_trips_every_finite_value_and_rounds() {
        for h in 0..=0xffffu16 {
            let x = from_half(h);
            if x.is_finite() {
                assert_eq!(to_half(x), h, "{x}");
            }
        }
        assert_eq!(
            from_half(to_half(1.0 + 2.0f32.powi(-11))),
            1.0,
            "ties go to even"
        );
        assert_eq!(from_half(to_half(1e6)), f32::INFINITY);
        assert_eq!(from_half(to_half(1e-9)), 0.0);
    }

    #[test]
    fn int8_is_within_half_a_step_per_row() {
        let v = [1.0f32, -0.5, 100.0, 3.0];
        let got = Payload::encode(&v, 2, WireFormat::Int8)
            .decode(2, 2)
            .expect("fits");
        for (row, (g, w)) in got.iter().zip(&v).enumerate() {
            let step = if row < 2 { 1.0 } else { 100.0 } / 127.0;
            assert!((g - w).abs() <= step / 2.0 + 1e-6);
        }
    }
}
