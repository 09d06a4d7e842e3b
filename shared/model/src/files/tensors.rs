//! safetensors files (format of huggingface/safetensors): a header in JSON, then the tensors'
//! bytes without a gap.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::quoted;
use crate::ModelError;
use crate::dtype::Dtype;

/// Longest header, in bytes, as the format's own reader has it.
const LONGEST: u64 = 100_000_000;
/// Most dimensions of a tensor.
const DIMENSIONS: usize = 8;

/// Where one tensor lies.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stored {
    /// As the file calls it.
    pub(crate) dtype: String,
    /// Its dimensions, slowest first.
    pub(crate) shape: Vec<u64>,
    /// First byte, counted from the beginning of the file.
    pub(crate) start: u64,
    /// Bytes.
    pub(crate) bytes: u64,
}

impl Stored {
    /// How the values are stored; other types than these are refused by name.
    ///
    /// # Errors
    /// [`ModelError::Refused`].
    pub(crate) fn dtype(&self, path: &Path, name: &str) -> Result<Dtype, ModelError> {
        match self.dtype.as_str() {
            "F32" => Ok(Dtype::F32),
            "F16" => Ok(Dtype::F16),
            "BF16" => Ok(Dtype::Bf16),
            other => Err(ModelError::refused(
                path,
                format!("tensor {} is of type {}", quoted(name), quoted(other)),
                "supported: F32, F16, BF16 (a quantised model is read from a GGUF file)",
            )),
        }
    }
}

/// The header of a file.
#[derive(Debug, PartialEq)]
pub(crate) struct Header {
    /// The tensors by name.
    pub(crate) tensors: BTreeMap<String, Stored>,
    /// What `__metadata__` says.
    pub(crate) metadata: BTreeMap<String, String>,
}

/// Reads the header of a file of `length` bytes.
///
/// # Errors
/// [`ModelError::Refused`] if it is longer than the file, names a tensor twice, leaves a gap, lets
/// tensors overlap or end outside the file, or if a tensor's bytes do not fit its shape.
pub(crate) fn header(path: &Path, file: &mut impl Read, length: u64) -> Result<Header, ModelError> {
    let damaged = |what: String| {
        ModelError::refused(
            path,
            what,
            "expected a whole safetensors file: fetch it again, it is damaged or cut short",
        )
    };
    let mut first = [0; 8];
    file.read_exact(&mut first)
        .map_err(|_| damaged(format!("{length} bytes have no room for a header")))?;
    let size = u64::from_le_bytes(first);
    if size > length.saturating_sub(8) || size > LONGEST {
        let what = format!("its header claims {size} bytes, the file has {length}");
        return Err(damaged(what));
    }
    let mut text = vec![0; usize::try_from(size).unwrap_or(0)];
    file.read_exact(&mut text).map_err(ModelError::io(path))?;
    let raw: Raw = serde_json::from_slice(&text)
        .map_err(|e| damaged(format!("its header cannot be read ({e})")))?;
    drop(text);
    let data = 8 + size;
    let mut tensors = BTreeMap::new();
    for (name, raw) in raw.tensors {
        let stored = raw
            .place(data, length)
            .map_err(|why| damaged(format!("tensor {}: {why}", quoted(&name))))?;
        tensors.insert(name, stored);
    }
    let mut places: Vec<(&String, &Stored)> = tensors.iter().collect();
    places.sort_by_key(|(_, s)| (s.start, s.bytes));
    let mut at = data;
    for (name, stored) in places {
        if stored.start != at {
            let what = format!(
                "tensor {} begins at byte {}, expected {at}: tensors overlap or leave a gap",
                quoted(name),
                stored.start
            );
            return Err(damaged(what));
        }
        at = stored.start + stored.bytes;
    }
    if at != length {
        let what = format!("its tensors end at byte {at}, the file has {length}");
        return Err(damaged(what));
    }
    Ok(Header {
        tensors,
        metadata: raw.metadata,
    })
}

struct Raw {
    tensors: BTreeMap<String, RawTensor>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl RawTensor {
    fn place(self, data: u64, length: u64) -> Result<Stored, String> {
        let [start, end] = self.data_offsets;
        let bytes = end
            .checked_sub(start)
            .filter(|_| end <= length - data)
            .ok_or_else(|| format!("bytes {start} to {end} are not in the file"))?;
        if self.shape.len() > DIMENSIONS {
            return Err(format!("{} dimensions", self.shape.len()));
        }
        let values = self
            .shape
            .iter()
            .try_fold(1u64, |n, d| n.checked_mul(*d))
            .ok_or("its dimensions overflow")?;
        let width = match self.dtype.as_str() {
            "F64" | "I64" | "U64" => Some(8),
            "F32" | "I32" | "U32" => Some(4),
            "F16" | "BF16" | "I16" | "U16" => Some(2),
            "BOOL" | "I8" | "U8" => Some(1),
            // Other types are refused by name, where the tensor is asked for.
            _ => None,
        };
        if width.is_some_and(|w| values.checked_mul(w) != Some(bytes)) {
            return Err(format!(
                "{bytes} bytes for shape {:?} of {}",
                self.shape, self.dtype
            ));
        }
        Ok(Stored {
            dtype: self.dtype,
            shape: self.shape,
            start: data + start,
            bytes,
        })
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Raw;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut raw = Raw {
                    tensors: BTreeMap::new(),
                    metadata: BTreeMap::new(),
                };
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        raw.metadata = map.next_value()?;
                        continue;
                    }
                    let tensor = map.next_value()?;
                    if raw.tensors.insert(name.clone(), tensor).is_some() {
                        let what = format!("tensor {} is there twice", quoted(&name));
                        return Err(serde::de::Error::custom(what));
                    }
                }
                Ok(raw)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Header, String> {
        header(Path::new("x"), &mut &bytes[..], bytes.len() as u64).map_err(|e| e.to_string())
    }

    #[test]
    fn tensors_fill_the_file_and_nothing_else_does() {
        let a = r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
        let b = r#""b":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[8,11]}"#;
        let good = read(&file(&format!("{{{a},{b}}}"), 11)).expect("reads");
        assert_eq!(good.tensors["b"].bytes, 3);
        let kind = good.tensors["b"].dtype(Path::new("x"), "b");
        assert!(kind.is_err_and(|e| e.to_string().contains("F8_E4M3")));
        for (header, data, why) in [
            (format!("{{{a},{b}}}"), 12, "the file has"),
            (format!("{{{a},{b}}}"), 10, "not in the file"),
            (format!("{{{b}}}"), 11, "leave a gap"),
            (format!("{{{a},{a}}}"), 8, "twice"),
            (
                format!("{{{}}}", a.replace("[2]", "[3]")),
                8,
                "8 bytes for shape",
            ),
            (
                format!("{{{}}}", a.replace("[2]", "[4294967296,4294967296,2]")),
                8,
                "overflow",
            ),
            (
                format!("{{{}}}", a.replace("[0,8]", "[8,0]")),
                8,
                "not in the file",
            ),
        ] {
            let got = read(&file(&header, data)).expect_err("refused");
            assert!(got.contains(why), "{got}");
        }
        let mut long = file("{}", 0);
        long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(read(&long).expect_err("refused").contains("header claims"));
        assert!(read(&[]).expect_err("refused").contains("no room"));
    }
}
