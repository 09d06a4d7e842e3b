//! Variable-length numbers: the encoding of states and snapshots.

use crate::part::Refused;

/// Writes numbers in LEB128: seven bits a byte, lowest first.
#[derive(Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub(crate) fn signed(&mut self, value: i64) {
        self.number(((value << 1) ^ (value >> 63)) as u64);
    }

    pub(crate) fn f32(&mut self, value: f32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Reads what [`Writer`] wrote; every error names its place.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(crate) fn bad(&self, why: String) -> Refused {
        Refused::Encoding { at: self.at, why }
    }

    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], Refused> {
        let left = self.bytes.len() - self.at;
        if n > left {
            return Err(self.bad(format!("{n} bytes expected, {left} left")));
        }
        let out = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(out)
    }

    pub(crate) fn number(&mut self) -> Result<u64, Refused> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                // One number has one encoding.
                if byte == 0 && shift > 0 {
                    return Err(self.bad("a number with leading zeros".into()));
                }
                return Ok(value);
            }
        }
        Err(self.bad("a number above 64 bits".into()))
    }

    pub(crate) fn signed(&mut self) -> Result<i64, Refused> {
        let value = self.number()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A number that may not exceed `most`.
    pub(crate) fn count(&mut self, most: usize, what: &str) -> Result<usize, Refused> {
        let value = self.number()?;
        if value > most as u64 {
            return Err(self.bad(format!("{value} {what}, expected at most {most}")));
        }
        Ok(value as usize)
    }

    /// A 64-bit number that may not exceed `most`.
    pub(crate) fn bounded(&mut self, most: u64, what: &str) -> Result<u64, Refused> {
        let value = self.number()?;
        if value > most {
            return Err(self.bad(format!("{value} {what}, expected at most {most}")));
        }
        Ok(value)
    }

    pub(crate) fn f32(&mut self) -> Result<f32, Refused> {
        let bytes = self.take(4)?;
        let value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if value.is_finite() {
            Ok(value)
        } else {
            Err(self.bad(format!("{value}, expected a finite number")))
        }
    }

    pub(crate) fn end(&self) -> Result<(), Refused> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            left => Err(self.bad(format!("{left} bytes after the end"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_and_have_one_encoding() {
        let mut out = Writer::default();
        let all = [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX];
        for n in all {
            out.number(n);
        }
        for n in [-1, 0, i64::MIN, i64::MAX] {
            out.signed(n);
        }
        let bytes = out.into_bytes();
        let mut from = Reader::new(&bytes);
        for n in all {
            assert_eq!(from.number().expect("written"), n);
        }
        for n in [-1, 0, i64::MIN, i64::MAX] {
            assert_eq!(from.signed().expect("written"), n);
        }
        from.end().expect("all was read");
        assert!(Reader::new(&[0x80, 0]).number().is_err());
        assert!(Reader::new(&[0xff; 11]).number().is_err());
    }
}
