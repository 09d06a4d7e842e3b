//! How files store values, and how they become f32: plain numbers, and the blocks of GGUF (ggml of
//! ggml-org/ggml, `ggml-common.h` and `ggml-quants.c`). Every stored value has one f32 that it
//! stands for: the operations below are in ggml's order, so that all readers get the same bits.

use crate::ModelError;

/// Values of a block with one scale.
const SMALL: usize = 32;
/// Values of a block of the K types, which has scales of scales.
const LARGE: usize = 256;

/// How a tensor's values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dtype {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl Dtype {
    /// Values that are stored together.
    pub(crate) const fn block_values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => SMALL,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => LARGE,
        }
    }

    /// Bytes that these take.
    pub(crate) const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }
}

/// `n` stored values as f32; those of 16 bits and the quantised ones without rounding beyond that
/// of their formula.
///
/// # Errors
/// [`ModelError::Shape`] if `bytes` are not those of `n` values.
pub(crate) fn dequantise(dtype: Dtype, bytes: &[u8], n: usize) -> Result<Vec<f32>, ModelError> {
    let blocks = n / dtype.block_values();
    if !n.is_multiple_of(dtype.block_values()) || bytes.len() != blocks * dtype.block_bytes() {
        return Err(ModelError::Shape(format!(
            "{} bytes are not those of {n} values of type {dtype:?}",
            bytes.len()
        )));
    }
    let mut out = vec![0.0; n];
    let values = out.chunks_exact_mut(dtype.block_values());
    let blocks = bytes.chunks_exact(dtype.block_bytes()).zip(values);
    match dtype {
        Dtype::F32 => blocks.for_each(|(b, y)| y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        Dtype::F16 => blocks.for_each(|(b, y)| y[0] = half_at(b, 0)),
        Dtype::Bf16 => {
            blocks.for_each(|(b, y)| y[0] = half::bf16::from_le_bytes([b[0], b[1]]).to_f32());
        }
        Dtype::Q4_0 => blocks.for_each(|(b, y)| q4_0(b, y)),
        Dtype::Q4_1 => blocks.for_each(|(b, y)| q4_1(b, y)),
        Dtype::Q5_0 => blocks.for_each(|(b, y)| q5_0(b, y)),
        Dtype::Q5_1 => blocks.for_each(|(b, y)| q5_1(b, y)),
        Dtype::Q8_0 => blocks.for_each(|(b, y)| q8_0(b, y)),
        Dtype::Q2K => blocks.for_each(|(b, y)| q2_k(b, y)),
        Dtype::Q3K => blocks.for_each(|(b, y)| q3_k(b, y)),
        Dtype::Q4K => blocks.for_each(|(b, y)| q4_k(b, y)),
        Dtype::Q5K => blocks.for_each(|(b, y)| q5_k(b, y)),
        Dtype::Q6K => blocks.for_each(|(b, y)| q6_k(b, y)),
    }
    Ok(out)
}

/// 32 stored values as f32, the same bits as [`dequantise`] gives.
///
/// # Panics
/// If values are stored in larger blocks, or `bytes` are not those of 32: a programming error.
// Inlined, as what it calls, so that it is compiled for the vector units of its caller.
#[inline(always)]
pub(crate) fn decode(dtype: Dtype, bytes: &[u8], y: &mut [f32; SMALL]) {
    debug_assert_eq!(
        bytes.len(),
        SMALL / dtype.block_values() * dtype.block_bytes()
    );
    match dtype {
        Dtype::F16 => {
            for (b, y) in bytes.chunks_exact(2).zip(y) {
                *y = half_at(b, 0);
            }
        }
        Dtype::Bf16 => {
            for (b, y) in bytes.chunks_exact(2).zip(y) {
                *y = half::bf16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        Dtype::Q4_0 => q4_0(bytes, y),
        Dtype::Q4_1 => q4_1(bytes, y),
        Dtype::Q5_0 => q5_0(bytes, y),
        Dtype::Q5_1 => q5_1(bytes, y),
        Dtype::Q8_0 => q8_0(bytes, y),
        Dtype::F32 | Dtype::Q2K | Dtype::Q3K | Dtype::Q4K | Dtype::Q5K | Dtype::Q6K => {
            unreachable!("{dtype:?} is not decoded in blocks of 32")
        }
    }
}

#[inline(always)]
fn half_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// d (f16), 16 bytes: the lower halves are the first 16 values, the upper ones the others.
#[inline(always)]
fn q4_0(block: &[u8], y: &mut [f32]) {
    let d = half_at(block, 0);
    let (low, high) = y.split_at_mut(SMALL / 2);
    for (j, q) in block[2..].iter().enumerate() {
        low[j] = f32::from(i16::from(q & 15) - 8) * d;
        high[j] = f32::from(i16::from(q >> 4) - 8) * d;
    }
}

/// d, m (f16), 16 bytes.
#[inline(always)]
fn q4_1(block: &[u8], y: &mut [f32]) {
    let d = half_at(block, 0);
    let m = half_at(block, 2);
    let (low, high) = y.split_at_mut(SMALL / 2);
    for (j, q) in block[4..].iter().enumerate() {
        low[j] = f32::from(q & 15) * d + m;
        high[j] = f32::from(q >> 4) * d + m;
    }
}

/// The fifth bits of values `j` and `j + 16`.
#[inline(always)]
fn fifth_bits(bytes: &[u8], j: usize) -> [u8; 2] {
    let all = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    [
        ((all >> j & 1) << 4) as u8,
        ((all >> (j + SMALL / 2) & 1) << 4) as u8,
    ]
}

/// d (f16), 32 fifth bits, 16 bytes.
#[inline(always)]
fn q5_0(block: &[u8], y: &mut [f32]) {
    let d = half_at(block, 0);
    let (low, high) = y.split_at_mut(SMALL / 2);
    for (j, q) in block[6..].iter().enumerate() {
        let fifth = fifth_bits(&block[2..6], j);
        low[j] = f32::from(i16::from(q & 15 | fifth[0]) - 16) * d;
        high[j] = f32::from(i16::from(q >> 4 | fifth[1]) - 16) * d;
    }
}

/// d, m (f16), 32 fifth bits, 16 bytes.
#[inline(always)]
fn q5_1(block: &[u8], y: &mut [f32]) {
    let d = half_at(block, 0);
    let m = half_at(block, 2);
    let (low, high) = y.split_at_mut(SMALL / 2);
    for (j, q) in block[8..].iter().enumerate() {
        let fifth = fifth_bits(&block[4..8], j);
        low[j] = f32::from(q & 15 | fifth[0]) * d + m;
        high[j] = f32::from(q >> 4 | fifth[1]) * d + m;
    }
}

/// d (f16), 32 signed bytes.
#[inline(always)]
fn q8_0(block: &[u8], y: &mut [f32]) {
    let d = half_at(block, 0);
    for (y, q) in y.iter_mut().zip(&block[2..]) {
        *y = f32::from(*q as i8) * d;
    }
}

/// Where value `i` of a block of [`LARGE`] lies when two bits of each value are in one byte with
/// those of three others: half of the block, pair of bits, byte of the half.
struct TwoBits {
    half: usize,
    pair: usize,
    byte: usize,
}

impl TwoBits {
    fn of(i: usize) -> Self {
        Self {
            half: i / 128,
            pair: i % 128 / 32,
            byte: i % 32,
        }
    }

    /// The two bits.
    fn read(&self, bytes: &[u8]) -> u8 {
        bytes[self.half * 32 + self.byte] >> (2 * self.pair) & 3
    }

    /// Which scale of 16 values.
    fn scale(&self) -> usize {
        self.half * 8 + self.pair * 2 + self.byte / 16
    }
}

/// 16 scales (4 bits, and 4 of minima), 64 bytes of two bits, d, dmin (f16).
fn q2_k(block: &[u8], y: &mut [f32]) {
    let d = half_at(block, 80);
    let min = half_at(block, 82);
    for (i, y) in y.iter_mut().enumerate() {
        let at = TwoBits::of(i);
        let scale = block[at.scale()];
        let q = f32::from(at.read(&block[16..80]));
        *y = d * f32::from(scale & 15) * q - min * f32::from(scale >> 4);
    }
}

/// 32 bytes of third bits, 64 of two bits, 12 of 6-bit scales, d (f16).
fn q3_k(block: &[u8], y: &mut [f32]) {
    let d = half_at(block, 108);
    let scales = &block[96..108];
    for (i, y) in y.iter_mut().enumerate() {
        let at = TwoBits::of(i);
        let s = at.scale();
        let low = scales[s % 8] >> (4 * (s / 8)) & 15;
        let high = scales[8 + s % 4] >> (2 * (s / 4)) & 3;
        let scale = f32::from(low | high << 4) - 32.0;
        let third = block[at.byte] >> (at.half * 4 + at.pair) & 1;
        let q = i8::try_from(at.read(&block[32..96]) | third << 2).unwrap_or(0) - 4;
        *y = d * scale * f32::from(q);
    }
}

/// Scale and minimum of 32 values, 6 bits each of the 12 bytes.
fn six_bits(bytes: &[u8], i: usize) -> [f32; 2] {
    let (scale, min) = match i {
        0..4 => (bytes[i] & 63, bytes[i + 4] & 63),
        _ => (
            bytes[i + 4] & 15 | bytes[i - 4] >> 6 << 4,
            bytes[i + 4] >> 4 | bytes[i] >> 6 << 4,
        ),
    };
    [f32::from(scale), f32::from(min)]
}

/// Four bits of value `i`: 32 bytes have the lower halves of 32 values, then the upper ones.
fn four_bits(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 64 * 32 + i % 32] >> (4 * (i / 32 % 2)) & 15
}

/// d, dmin (f16), 12 bytes of scales and minima, 128 of four bits.
fn q4_k(block: &[u8], y: &mut [f32]) {
    let d = half_at(block, 0);
    let min = half_at(block, 2);
    for (i, y) in y.iter_mut().enumerate() {
        let [scale, m] = six_bits(&block[4..16], i / 32);
        *y = d * scale * f32::from(four_bits(&block[16..], i)) - min * m;
    }
}

/// d, dmin (f16), 12 bytes of scales and minima, 32 of fifth bits, 128 of four bits.
fn q5_k(block: &[u8], y: &mut [f32]) {
    let d = half_at(block, 0);
    let min = half_at(block, 2);
    for (i, y) in y.iter_mut().enumerate() {
        let [scale, m] = six_bits(&block[4..16], i / 32);
        let fifth = block[16 + i % 32] >> (i / 32) & 1;
        let q = four_bits(&block[48..], i) | fifth << 4;
        *y = d * scale * f32::from(q) - min * m;
    }
}

/// 128 bytes of four bits, 64 of two bits, 16 signed scales, d (f16).
fn q6_k(block: &[u8], y: &mut [f32]) {
    let d = half_at(block, 208);
    for (i, y) in y.iter_mut().enumerate() {
        let at = TwoBits::of(i);
        let byte = block[at.half * 64 + at.pair % 2 * 32 + at.byte];
        let low = byte >> (4 * (at.pair / 2)) & 15;
        let q = i16::from(low | at.read(&block[128..192]) << 4) - 32;
        let scale = block[192 + at.half * 8 + at.pair * 2 + at.byte / 16] as i8;
        *y = d * f32::from(scale) * f32::from(q);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Dtype; 13] = [
        Dtype::F32,
        Dtype::F16,
        Dtype::Bf16,
        Dtype::Q4_0,
        Dtype::Q4_1,
        Dtype::Q5_0,
        Dtype::Q5_1,
        Dtype::Q8_0,
        Dtype::Q2K,
        Dtype::Q3K,
        Dtype::Q4K,
        Dtype::Q5K,
        Dtype::Q6K,
    ];

    #[test]
    fn bytes_that_are_not_those_of_the_values_are_refused() {
        for dtype in ALL {
            let values = dtype.block_values();
            let bytes = vec![0; dtype.block_bytes()];
            assert!(dequantise(dtype, &bytes, values).is_ok());
            assert!(dequantise(dtype, &bytes[1..], values).is_err());
            assert!(dequantise(dtype, &bytes, values * 2).is_err());
            if values > 1 {
                assert!(dequantise(dtype, &bytes, values - 1).is_err());
            }
        }
    }

    /// Another implementation gives the same bits for every type.
    #[cfg(feature = "candle")]
    #[test]
    fn values_are_those_of_candle() {
        use candle_core::Device;
        use candle_core::quantized::GgmlDType as Theirs;
        use candle_core::quantized::ggml_file::qtensor_from_ggml;

        let theirs = |dtype| match dtype {
            Dtype::F32 => Theirs::F32,
            Dtype::F16 => Theirs::F16,
            Dtype::Bf16 => Theirs::BF16,
            Dtype::Q4_0 => Theirs::Q4_0,
            Dtype::Q4_1 => Theirs::Q4_1,
            Dtype::Q5_0 => Theirs::Q5_0,
            Dtype::Q5_1 => Theirs::Q5_1,
            Dtype::Q8_0 => Theirs::Q8_0,
            Dtype::Q2K => Theirs::Q2K,
            Dtype::Q3K => Theirs::Q3K,
            Dtype::Q4K => Theirs::Q4K,
            Dtype::Q5K => Theirs::Q5K,
            Dtype::Q6K => Theirs::Q6K,
        };
        for dtype in ALL {
            let blocks = 64;
            let n = blocks * dtype.block_values();
            let mut rng = lethe_learn::seed::Seed::from_u64(3).rng();
            let mut byte = |_| (rng.uniform(0.0, 256.0)) as u8;
            let bytes: Vec<u8> = (0..blocks * dtype.block_bytes()).map(&mut byte).collect();
            let ours = dequantise(dtype, &bytes, n).expect("whole blocks");
            let want: Vec<f32> = qtensor_from_ggml(theirs(dtype), &bytes, vec![n], &Device::Cpu)
                .and_then(|t| t.dequantize(&Device::Cpu)?.to_vec1())
                .expect("candle reads it");
            for (i, (a, b)) in ours.iter().zip(&want).enumerate() {
                let same = a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
                assert!(same, "{dtype:?}: value {i} is {a}, candle's {b}");
            }
        }
    }
}
