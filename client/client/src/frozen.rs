//! States of this device's samples below the first trained layer, sealed, one file a sample.
//!
//! They say as much of the history as the history itself does: they are sealed with the vault's
//! key, named by keyed digests, and go when the data goes. What is missing or damaged is computed
//! again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use lethe_model::frozen::FrozenStates;
use lethe_proto::codec;
use lethe_proto::ids::Digest;
use lethe_proto::payload::{Payload, WireFormat};

use crate::ClientError;
use crate::vault::{Erasures, io, sync_folder, write_atomically};

/// Most bytes on the device; more is computed again in every round.
const MAX_BYTES: u64 = 256 << 20;

/// Largest file.
const MAX_FILE: usize = 64 << 20;

/// The states of one recipe and base model.
#[derive(Debug)]
pub(crate) struct FrozenStore {
    folder: PathBuf,
    key: [u8; 32],
    width: usize,
    format: WireFormat,
    bytes: AtomicU64,
    erasures: Erasures,
    opened: u64,
}

impl FrozenStore {
    /// Opens the states that belong to `under` (recipe and model) in `folder`, and removes all
    /// others.
    pub(crate) fn open(
        folder: &Path,
        key: [u8; 32],
        under: Digest,
        width: usize,
        format: WireFormat,
        erasures: Erasures,
    ) -> Result<Self, ClientError> {
        let opened = erasures.count();
        let own = folder.join(under.to_string());
        match fs::read_dir(folder) {
            Ok(entries) => {
                for entry in entries.filter_map(Result::ok).filter(|e| e.path() != own) {
                    remove(&entry.path())?;
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(io(folder)(e)),
        }
        let sizes = fs::read_dir(&own)
            .into_iter()
            .flatten()
            .filter_map(|e| Some(e.ok()?.metadata().ok()?.len()));
        Ok(Self {
            bytes: AtomicU64::new(sizes.sum()),
            folder: own,
            key,
            width,
            format,
            erasures,
            opened,
        })
    }

    /// Removes everything below `folder`.
    pub(crate) fn clear(folder: &Path) -> Result<(), ClientError> {
        if fs::symlink_metadata(folder).is_ok() {
            remove(folder)?;
            folder.parent().map_or(Ok(()), sync_folder)?;
        }
        Ok(())
    }

    fn path(&self, ids: &[u32]) -> PathBuf {
        let tokens: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        self.folder
            .join(Digest::of(&[b"lethe-frozen-states", &self.key, &tokens]).to_string())
    }

    fn aad(path: &Path) -> Vec<u8> {
        path.file_name()
            .map(|n| n.as_encoded_bytes().to_vec())
            .unwrap_or_default()
    }

    fn keep(&self, ids: &[u32], states: &[f32]) -> Result<(), ClientError> {
        let rows = states.len() / self.width.max(1);
        // What came over the wire fits its format without loss; what this device computed may not.
        let small = Payload::encode(states, self.width, self.format);
        let same = small
            .decode(rows, self.width)
            .is_ok_and(|v| bits(&v).eq(bits(states)));
        let payload = if same {
            small
        } else {
            Payload::encode(states, self.width, WireFormat::F32)
        };
        let internal = |e: &dyn std::fmt::Display| ClientError::Internal(e.to_string());
        let plain = codec::to_bytes(&payload).map_err(|e| internal(&e))?;
        let path = self.path(ids);
        let sealed =
            lethe_seal::seal(&self.key, &Self::aad(&path), &plain).map_err(|e| internal(&e))?;
        if self.bytes.fetch_add(sealed.len() as u64, Ordering::Relaxed) + sealed.len() as u64
            > MAX_BYTES
        {
            self.bytes.fetch_sub(sealed.len() as u64, Ordering::Relaxed);
            return Ok(());
        }
        let write = || {
            fs::create_dir_all(&self.folder).map_err(io(&self.folder))?;
            write_atomically(&path, &sealed)
        };
        // What was erased meanwhile must not come back from a pass that had begun before.
        self.erasures
            .unless_since(self.opened, write)
            .unwrap_or(Ok(()))
    }
}

/// Removes a file or a folder with all that it holds.
fn remove(path: &Path) -> Result<(), ClientError> {
    let folder = fs::symlink_metadata(path).is_ok_and(|m| m.is_dir());
    let gone = if folder {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match gone {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io(path)(e)),
        _ => Ok(()),
    }
}

fn bits(values: &[f32]) -> impl Iterator<Item = u32> {
    values.iter().map(|v| v.to_bits())
}

impl FrozenStates for FrozenStore {
    fn get(&self, ids: &[u32]) -> Option<Vec<f32>> {
        let path = self.path(ids);
        let plain = lethe_seal::unseal(&self.key, &Self::aad(&path), &fs::read(&path).ok()?)?;
        codec::from_bytes::<Payload>(&plain, MAX_FILE)
            .ok()?
            .decode(ids.len(), self.width)
            .ok()
    }

    fn put(&self, ids: &[u32], states: &[f32]) {
        if let Err(e) = self.keep(ids, states) {
            tracing::warn!("frozen states were not kept and will be computed again: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_come_back_bit_for_bit_and_are_sealed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let folder = dir.path().join("frozen");
        let open = |n: u8| {
            let (under, format) = (Digest([n; 32]), WireFormat::F16);
            FrozenStore::open(&folder, [7; 32], under, 2, format, Erasures::default())
                .expect("opens")
        };
        let store = open(1);
        let (halves, exact) = ([0.5f32, -0.0, 2.0, 1.0], [0.1f32, 0.2]);
        store.put(&[8, 9], &halves);
        store.put(&[5], &exact);
        assert!(bits(&open(1).get(&[8, 9]).expect("kept")).eq(bits(&halves)));
        assert!(bits(&open(1).get(&[5]).expect("kept")).eq(bits(&exact)));
        assert!(store.get(&[9, 8]).is_none());
        // A damaged file is as good as none.
        let path = store.path(&[5]);
        let mut bytes = fs::read(&path).expect("reads");
        *bytes.last_mut().expect("not empty") ^= 1;
        fs::write(&path, bytes).expect("writes");
        assert!(store.get(&[5]).is_none());
        // A stray file is in nobody's way; another recipe: the old states go.
        fs::write(folder.join(".DS_Store"), b"x").expect("writes");
        assert!(open(2).get(&[8, 9]).is_none());
        assert!(open(1).get(&[8, 9]).is_none());
    }
}
