//! Bit streams, highest bit first, and Rice codes (Rice and Plaunt, IEEE Transactions on
//! Communications 1971).

/// Writes bits.
#[derive(Default)]
pub(crate) struct BitWriter {
    bytes: Vec<u8>,
    free: u32,
}

impl BitWriter {
    /// The lowest `count` bits of `value`.
    pub(crate) fn bits(&mut self, value: u32, count: u32) {
        for at in (0..count).rev() {
            if self.free == 0 {
                self.bytes.push(0);
                self.free = 8;
            }
            self.free -= 1;
            if let Some(last) = self.bytes.last_mut() {
                *last |= ((value >> at & 1) as u8) << self.free;
            }
        }
    }

    /// `value >> low` ones and a zero, then the low bits.
    pub(crate) fn rice(&mut self, value: u32, low: u32) {
        for _ in 0..value >> low {
            self.bits(1, 1);
        }
        self.bits(0, 1);
        self.bits(value, low);
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads bits; behind the end there are zeros, which [`BitReader::ended`] tells.
pub(crate) struct BitReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> BitReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(crate) fn bits(&mut self, count: u32) -> u32 {
        let mut value = 0;
        for _ in 0..count {
            let byte = self.bytes.get(self.at / 8).copied().unwrap_or(0);
            value = value << 1 | u32::from(byte >> (7 - self.at % 8) & 1);
            self.at += 1;
        }
        value
    }

    pub(crate) fn rice(&mut self, low: u32) -> u32 {
        let mut high = 0;
        while self.bits(1) == 1 {
            high += 1;
        }
        high << low | self.bits(low)
    }

    /// More was read than there is.
    pub(crate) fn ended(&self) -> bool {
        self.at > self.bytes.len() * 8
    }

    /// What is left is the padding of the last byte, and it is zero.
    pub(crate) fn at_end(&self) -> bool {
        let left = (self.bytes.len() * 8).saturating_sub(self.at);
        if self.ended() || left >= 8 {
            return false;
        }
        let padding = |last: &u8| *last & ((1u16 << left) - 1) as u8;
        self.bytes.last().map_or(0, padding) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let mut out = BitWriter::default();
        for (value, low) in [(0, 0), (5, 1), (1000, 6), (3, 7)] {
            out.rice(value, low);
        }
        out.bits(0b101, 3);
        let bytes = out.into_bytes();
        let mut from = BitReader::new(&bytes);
        for (value, low) in [(0, 0), (5, 1), (1000, 6), (3, 7)] {
            assert_eq!(from.rice(low), value);
        }
        assert_eq!(from.bits(3), 0b101);
        assert!(from.at_end());
        from.bits(9);
        assert!(from.ended());
    }
}
