//! The container: metadata and where each tensor lies (ggml-org/ggml, docs/gguf.md, versions 2 and
//! 3, little-endian). Every count and length is compared with what is left of the file before
//! anything is allocated.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use super::types::{SUPPORTED, kind};
use crate::ModelError;
use crate::dtype::Dtype;
use crate::files::quoted;

/// Longest name of a key or a tensor, in bytes, as the format has it.
const NAME: u64 = 65_535;
/// Bytes that a key, its type and its value take at least.
const KEY: u64 = 8 + 4 + 1;
/// Bytes that a tensor's name, dimensions, type and place take at least.
const TENSOR: u64 = 8 + 4 + 8 + 4 + 8;
/// Most dimensions of a tensor.
const DIMENSIONS: u32 = 4;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// Unsigned, of any width.
    Unsigned(u64),
    /// Signed, of any width.
    Signed(i64),
    /// Of 32 or 64 bits.
    Float(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    /// Signed or unsigned numbers of at most 32 bits.
    Numbers(Vec<i64>),
    /// Any other list: how long it is.
    List(u64),
}

/// Where one tensor lies.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    pub(super) dtype: Dtype,
    /// Its dimensions, slowest first.
    pub(super) shape: Vec<u64>,
    /// First byte, counted from the beginning of the file.
    pub(super) start: u64,
    pub(super) bytes: u64,
}

/// All but the tensors' values.
#[derive(Debug, PartialEq)]
pub(super) struct Content {
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: BTreeMap<String, Stored>,
}

/// What is left of the file.
struct Reader<'a, R> {
    inner: R,
    path: &'a Path,
    left: u64,
    length: u64,
}

/// Reads a file of `length` bytes.
///
/// # Errors
/// [`ModelError::Refused`] if it is no such file, is damaged, or has a tensor of a type that is not
/// read.
pub(super) fn content(path: &Path, file: impl Read, length: u64) -> Result<Content, ModelError> {
    let mut reader = Reader {
        inner: file,
        path,
        left: length,
        length,
    };
    reader.magic()?;
    let tensors = reader.u64()?;
    let keys = reader.u64()?;
    reader.room("tensors", tensors, TENSOR)?;
    reader.room("metadata keys", keys, KEY)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..keys {
        let key = reader.text("the name of a metadata key", NAME)?;
        let value = reader.value(&key)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(reader.damaged(format!("metadata {} is there twice", quoted(&key))));
        }
    }
    // A part has some of the tensors only: what is missing is not what is wrong with it.
    unsplit(path, &metadata)?;
    let alignment = alignment(&reader, &metadata)?;
    let mut found = BTreeMap::new();
    for _ in 0..tensors {
        let name = reader.text("the name of a tensor", NAME)?;
        let stored = reader.tensor(&name)?;
        if found.insert(name.clone(), stored).is_some() {
            return Err(reader.damaged(format!("tensor {} is there twice", quoted(&name))));
        }
    }
    let header = length - reader.left;
    let data = header.next_multiple_of(alignment);
    place(&reader, &mut found, data, alignment)?;
    Ok(Content {
        metadata,
        tensors: found,
    })
}

/// Refuses a part of a split file.
fn unsplit(path: &Path, metadata: &BTreeMap<String, Value>) -> Result<(), ModelError> {
    let number = |key: &str| match metadata.get(key) {
        Some(Value::Unsigned(n)) => Some(*n),
        Some(Value::Signed(n)) => u64::try_from(*n).ok(),
        _ => None,
    };
    match number("split.count") {
        Some(count) if count > 1 => {
            let part =
                number("split.no").map_or("?".to_owned(), |n| n.saturating_add(1).to_string());
            Err(ModelError::refused(
                path,
                format!("part {part} of {count} of a split file"),
                "supported is one file: merge the parts (llama-gguf-split --merge)",
            ))
        }
        _ => Ok(()),
    }
}

fn alignment<R: Read>(
    reader: &Reader<'_, R>,
    metadata: &BTreeMap<String, Value>,
) -> Result<u64, ModelError> {
    match metadata.get("general.alignment") {
        None => Ok(32),
        Some(Value::Unsigned(n)) if n.is_power_of_two() && (8..=1 << 16).contains(n) => Ok(*n),
        Some(other) => Err(reader.damaged(format!(
            "general.alignment is {other:?}, expected a power of two from 8 to 65536"
        ))),
    }
}

/// Turns offsets into places in the file. Tensors fill what follows the header, but for padding.
fn place<R: Read>(
    reader: &Reader<'_, R>,
    tensors: &mut BTreeMap<String, Stored>,
    data: u64,
    alignment: u64,
) -> Result<(), ModelError> {
    for (name, stored) in tensors.iter_mut() {
        let start = data.checked_add(stored.start);
        let end = start.and_then(|s| s.checked_add(stored.bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= reader.length => stored.start = start,
            _ => {
                return Err(reader.damaged(format!(
                    "tensor {}: {} bytes at {} of the data are not in the file of {} bytes",
                    quoted(name),
                    stored.bytes,
                    stored.start,
                    reader.length
                )));
            }
        }
    }
    let mut order: Vec<(&String, &Stored)> = tensors.iter().collect();
    order.sort_by_key(|(_, s)| s.start);
    let mut at = data;
    for (name, stored) in order {
        if stored.start != at {
            return Err(reader.damaged(format!(
                "tensor {} begins at byte {}, expected {at}: tensors overlap or leave a gap",
                quoted(name),
                stored.start
            )));
        }
        at = (stored.start + stored.bytes).next_multiple_of(alignment);
    }
    match reader.length > at {
        true => Err(reader.damaged(format!(
            "its tensors end at byte {at}, the file has {}",
            reader.length
        ))),
        false => Ok(()),
    }
}

impl<R: Read> Reader<'_, R> {
    fn damaged(&self, what: String) -> ModelError {
        ModelError::refused(
            self.path,
            what,
            "expected a whole GGUF file: fetch it again, it is damaged or cut short",
        )
    }

    fn magic(&mut self) -> Result<(), ModelError> {
        let mut first = [0; 8];
        let mut got = 0;
        while let Some(rest) = first.get_mut(got..).filter(|r| !r.is_empty()) {
            match self.inner.read(rest).map_err(ModelError::io(self.path))? {
                0 => break,
                n => got += n,
            }
        }
        self.left = self.left.saturating_sub(got as u64);
        let version = u32::from_le_bytes([first[4], first[5], first[6], first[7]]);
        let refuse =
            |what: String, supported: &str| Err(ModelError::refused(self.path, what, supported));
        match (&first[..4], version) {
            (b"GGUF", 2 | 3) => Ok(()),
            (b"GGUF", v) if v & 0xffff == 0 && v > 0 => {
                refuse("a big-endian GGUF file".into(), "supported: little-endian")
            }
            (b"GGUF", v) => refuse(
                format!("GGUF version {v}"),
                "supported: versions 2 and 3: convert the model again",
            ),
            (b"vers", _) => refuse(
                "not a GGUF file but a pointer of Git LFS".into(),
                "fetch the file itself (git lfs pull)",
            ),
            _ => {
                let begins = String::from_utf8_lossy(first.get(..got).unwrap_or(&[]));
                refuse(
                    format!("not a GGUF file: it begins with {}", quoted(&begins)),
                    "supported: a GGUF file of architecture llama, or a folder with config.json \
                     (Llama or Qwen2), tokenizer.json and *.safetensors",
                )
            }
        }
    }

    /// Refuses a count of things that the rest of the file has no room for.
    fn room(&self, what: &str, count: u64, each: u64) -> Result<(), ModelError> {
        match count.checked_mul(each) {
            Some(bytes) if bytes <= self.left => Ok(()),
            _ => Err(self.damaged(format!(
                "it claims {count} {what}, {} bytes are left",
                self.left
            ))),
        }
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], ModelError> {
        self.room("bytes", N as u64, 1)?;
        let mut bytes = [0; N];
        self.inner
            .read_exact(&mut bytes)
            .map_err(ModelError::io(self.path))?;
        self.left -= N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, ModelError> {
        Ok(u32::from_le_bytes(self.fixed()?))
    }

    fn u64(&mut self) -> Result<u64, ModelError> {
        Ok(u64::from_le_bytes(self.fixed()?))
    }

    fn text(&mut self, what: &str, most: u64) -> Result<String, ModelError> {
        let length = self.u64()?;
        self.room("bytes of a text", length, 1)?;
        if length > most {
            return Err(self.damaged(format!("{what} has {length} bytes, at most {most}")));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        self.inner
            .read_exact(&mut bytes)
            .map_err(ModelError::io(self.path))?;
        self.left -= length;
        String::from_utf8(bytes).map_err(|_| self.damaged(format!("{what} is not UTF-8")))
    }

    fn value(&mut self, key: &str) -> Result<Value, ModelError> {
        let kind = self.u32()?;
        self.scalar(key, kind)
    }

    fn scalar(&mut self, key: &str, kind: u32) -> Result<Value, ModelError> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(u8::from_le_bytes(self.fixed()?))),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.fixed()?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.fixed()?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.fixed()?))),
            4 => Value::Unsigned(u64::from(self.u32()?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.fixed()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.fixed()?))),
            7 => match self.fixed()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => {
                    let what = format!("metadata {}: {other} is no bool", quoted(key));
                    return Err(self.damaged(what));
                }
            },
            8 => Value::Text(self.text(&format!("metadata {}", quoted(key)), u64::MAX)?),
            9 => self.list(key)?,
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.fixed()?)),
            12 => Value::Float(f64::from_le_bytes(self.fixed()?)),
            other => {
                let what = format!("metadata {}: values of type {other}", quoted(key));
                return Err(self.damaged(what));
            }
        })
    }

    fn list(&mut self, key: &str) -> Result<Value, ModelError> {
        let kind = self.u32()?;
        let count = self.u64()?;
        let each = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            _ => {
                let what = format!("metadata {}: a list of type {kind}", quoted(key));
                return Err(self.damaged(what));
            }
        };
        self.room("values in a list", count, each)?;
        let capacity = usize::try_from(count).unwrap_or(0);
        match kind {
            8 => {
                let mut texts = Vec::with_capacity(capacity);
                let what = format!("a text in metadata {}", quoted(key));
                for _ in 0..count {
                    texts.push(self.text(&what, u64::MAX)?);
                }
                Ok(Value::Texts(texts))
            }
            4 | 5 => {
                let mut numbers = Vec::with_capacity(capacity);
                for _ in 0..count {
                    match self.scalar(key, kind)? {
                        Value::Unsigned(n) => numbers.push(i64::try_from(n).unwrap_or(i64::MAX)),
                        Value::Signed(n) => numbers.push(n),
                        _ => {}
                    }
                }
                Ok(Value::Numbers(numbers))
            }
            _ => {
                self.skip(count * each)?;
                Ok(Value::List(count))
            }
        }
    }

    fn skip(&mut self, mut bytes: u64) -> Result<(), ModelError> {
        let mut buffer = [0; 512];
        while bytes > 0 {
            let n = bytes.min(buffer.len() as u64);
            let part = buffer.get_mut(..n as usize).unwrap_or_default();
            self.inner
                .read_exact(part)
                .map_err(ModelError::io(self.path))?;
            self.left -= n;
            bytes -= n;
        }
        Ok(())
    }

    /// The entry of a tensor; its place is its offset in the data for now.
    fn tensor(&mut self, name: &str) -> Result<Stored, ModelError> {
        let dimensions = self.u32()?;
        if !(1..=DIMENSIONS).contains(&dimensions) {
            let what = format!("tensor {} has {dimensions} dimensions", quoted(name));
            return Err(self.damaged(what));
        }
        let mut shape = vec![];
        for _ in 0..dimensions {
            shape.push(self.u64()?);
        }
        let id = self.u32()?;
        let offset = self.u64()?;
        let known = kind(id);
        let dtype = known.and_then(|k| k.read).ok_or_else(|| {
            let name = quoted(name);
            let what = match known {
                Some(k) => format!("quantisation {} is not supported (tensor {name})", k.name),
                None => format!("values of type {id} are not known (tensor {name})"),
            };
            ModelError::refused(self.path, what, format!("{SUPPORTED}: convert the model"))
        })?;
        let block = dtype.block_values() as u64;
        let row = shape.first().copied().unwrap_or(0);
        let values = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let bytes = values.and_then(|v| (v / block).checked_mul(dtype.block_bytes() as u64));
        match bytes {
            Some(bytes) if bytes > 0 && row.is_multiple_of(block) => {
                shape.reverse();
                Ok(Stored {
                    dtype,
                    shape,
                    start: offset,
                    bytes,
                })
            }
            _ => Err(self.damaged(format!(
                "tensor {} has dimensions {shape:?} in blocks of {block}",
                quoted(name)
            ))),
        }
    }
}
