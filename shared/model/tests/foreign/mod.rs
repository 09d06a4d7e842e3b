//! Fixtures that transformers, peft and gguf wrote (`fixtures/make.py`), copies of them that say
//! something else, and the logits of a model.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lethe_model::ModelError;
use lethe_model::kernels::panels::Compute;
use lethe_model::layout::Layout;
use lethe_model::lora::Adapter;
use lethe_model::source::{WeightSource, open};
use lethe_model::split::{DeviceModel, SplitSpec};
use serde_json::Value;

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

pub(crate) fn expected() -> Value {
    let text = std::fs::read_to_string(fixture("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Logits of the last token of `ids`, `[vocab]`.
pub(crate) fn logits(
    source: &dyn WeightSource,
    adapter: Option<&Adapter>,
    ids: &[u32],
) -> Result<Vec<f32>, ModelError> {
    let layers = source.config().layers;
    let spec = SplitSpec {
        k_in: 0,
        k_out: layers,
    };
    let device = DeviceModel::load(source, spec, Compute::F32)?;
    let middle = DeviceModel::load_middle(source, spec, Compute::F32)?;
    let (layout, ids) = Layout::pack(&[ids.to_vec()]);
    let mut x = device.embed(&ids)?;
    for part in [device.bottom(), &middle, device.top()] {
        x = part.run(&layout, x, adapter, |_, _| {})?;
    }
    let last = x.len() - device.config().hidden;
    device.logits(&device.final_norm(&x[last..]))
}

/// Reads all of a model: its shape, its tokenizer if it has one, its tables and layers.
pub(crate) fn read_all(path: &Path, tokens: bool) -> Result<(), ModelError> {
    let source = open(path)?;
    if tokens {
        source.tokenizer()?.prompt("a b")?;
    }
    logits(source.as_ref(), None, &[1, 2, 3]).map(|_| ())
}

/// A copy of a fixture folder in a folder of its own.
pub(crate) fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
    }
    dir
}

/// Sets keys of a JSON file; one that is `null` in `changes` is removed.
pub(crate) fn edit(file: &Path, changes: &Value) {
    let text = std::fs::read_to_string(file).unwrap();
    let mut value: Value = serde_json::from_str(&text).unwrap();
    for (key, new) in changes.as_object().unwrap() {
        match new {
            Value::Null => value.as_object_mut().unwrap().remove(key),
            new => value
                .as_object_mut()
                .unwrap()
                .insert(key.clone(), new.clone()),
        };
    }
    std::fs::write(file, value.to_string()).unwrap();
}

/// A safetensors file as parts: names with type, dimensions and bytes.
pub(crate) type Tensors = BTreeMap<String, (String, Vec<u64>, Vec<u8>)>;

pub(crate) fn read_tensors(file: &Path) -> Tensors {
    let bytes = std::fs::read(file).unwrap();
    let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + size]).unwrap();
    let mut out = Tensors::new();
    for (name, t) in header.as_object().unwrap() {
        if name == "__metadata__" {
            continue;
        }
        let numbers = |key: &str| -> Vec<u64> {
            let list = t[key].as_array().unwrap();
            list.iter().map(|n| n.as_u64().unwrap()).collect()
        };
        let at = numbers("data_offsets");
        let data = bytes[8 + size..][at[0] as usize..at[1] as usize].to_vec();
        let dtype = t["dtype"].as_str().unwrap().to_owned();
        out.insert(name.clone(), (dtype, numbers("shape"), data));
    }
    out
}

pub(crate) fn write_tensors(file: &Path, tensors: &Tensors) {
    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = vec![];
    for (name, (dtype, shape, bytes)) in tensors {
        let at = [data.len(), data.len() + bytes.len()];
        let entry = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": at });
        header.insert(name.clone(), entry);
        data.extend(bytes);
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    std::fs::write(file, bytes).unwrap();
}

/// A GGUF file as parts, to write it with something else in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gguf {
    /// Keys in order: name, type of the value, its bytes.
    pub(crate) keys: Vec<(String, u32, Vec<u8>)>,
    /// Tensors in order: name, dimensions (fastest first), type, bytes.
    pub(crate) tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(n);
        self.0 = tail;
        head
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn text(&mut self) -> String {
        let n = self.u64() as usize;
        String::from_utf8(self.take(n).to_vec()).unwrap()
    }

    fn value(&mut self, kind: u32) -> Vec<u8> {
        let before = self.0;
        match kind {
            0 | 1 | 7 => drop(self.take(1)),
            2 | 3 => drop(self.take(2)),
            4..=6 => drop(self.take(4)),
            8 => drop(self.text()),
            9 => {
                let kind = self.u32();
                let n = self.u64();
                (0..n).for_each(|_| drop(self.value(kind)));
            }
            _ => drop(self.take(8)),
        }
        before[..before.len() - self.0.len()].to_vec()
    }
}

impl Gguf {
    pub(crate) fn read(name: &str) -> Self {
        let bytes = std::fs::read(fixture(&format!("gguf/{name}.gguf"))).unwrap();
        let mut at = Cursor(&bytes);
        at.take(8);
        let (tensors, keys) = (at.u64(), at.u64());
        let mut out = Self::default();
        for _ in 0..keys {
            let name = at.text();
            let kind = at.u32();
            out.keys.push((name, kind, at.value(kind)));
        }
        let mut places = vec![];
        for _ in 0..tensors {
            let name = at.text();
            let dims = (0..at.u32()).map(|_| at.u64()).collect();
            let kind = at.u32();
            places.push((name, dims, kind, at.u64() as usize));
        }
        let data = (bytes.len() - at.0.len()).next_multiple_of(32);
        let mut ends: Vec<usize> = places.iter().map(|p| p.3).collect();
        ends.push(bytes.len() - data);
        ends.sort_unstable();
        for (name, dims, kind, offset) in places {
            let end = *ends.iter().find(|e| **e > offset).unwrap();
            let raw = bytes[data + offset..data + end].to_vec();
            out.tensors.push((name, dims, kind, raw));
        }
        out
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let text = |out: &mut Vec<u8>, text: &str| {
            out.extend((text.len() as u64).to_le_bytes());
            out.extend(text.as_bytes());
        };
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (name, kind, value) in &self.keys {
            text(&mut out, name);
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        let mut offset = 0;
        for (name, dims, kind, raw) in &self.tensors {
            text(&mut out, name);
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += raw.len().next_multiple_of(32);
        }
        for (_, _, _, raw) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(raw);
        }
        out
    }

    /// Adds or replaces a key.
    #[must_use]
    pub(crate) fn with(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.keys.retain(|(name, _, _)| name != key);
        self.keys.push((key.into(), kind, value.to_vec()));
        self
    }

    #[must_use]
    pub(crate) fn text(self, key: &str, text: &str) -> Self {
        let mut value = (text.len() as u64).to_le_bytes().to_vec();
        value.extend(text.as_bytes());
        self.with(key, 8, &value)
    }

    #[must_use]
    pub(crate) fn number(self, key: &str, n: u32) -> Self {
        self.with(key, 4, &n.to_le_bytes())
    }

    #[must_use]
    pub(crate) fn float(self, key: &str, f: f32) -> Self {
        self.with(key, 6, &f.to_le_bytes())
    }

    #[must_use]
    pub(crate) fn without(mut self, tensor: &str) -> Self {
        self.tensors.retain(|t| t.0 != tensor);
        self
    }

    /// Adds a tensor of ones, in f32.
    #[must_use]
    pub(crate) fn tensor(self, name: &str, dims: &[u64]) -> Self {
        self.filled(name, dims, 1.0)
    }

    #[must_use]
    pub(crate) fn filled(mut self, name: &str, dims: &[u64], value: f32) -> Self {
        let n = dims.iter().product::<u64>() as usize;
        let raw = value.to_le_bytes().repeat(n);
        self.tensors.push((name.into(), dims.to_vec(), 0, raw));
        self
    }

    /// Writes it into `dir`.
    pub(crate) fn write(&self, dir: &Path) -> PathBuf {
        let path = dir.join("model.gguf");
        std::fs::write(&path, self.bytes()).unwrap();
        path
    }
}

/// Bytes with some of them replaced, one cut away or repeated: what `bolero` gives, applied to a
/// valid file so that it reaches deep.
pub(crate) fn edited(valid: &[u8], edits: &[(u32, u8)]) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for (at, value) in edits {
        if bytes.is_empty() {
            break;
        }
        let i = *at as usize % bytes.len();
        match at >> 28 {
            0 => bytes.truncate(i),
            1 => bytes.insert(i, *value),
            2 => drop(bytes.remove(i)),
            _ => bytes[i] = *value,
        }
    }
    bytes
}
