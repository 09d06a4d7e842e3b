//! States of frozen layers on disk: computed once per sample, also over interruptions and seeds.

use std::path::{Path, PathBuf};

use anyhow::Context;
use lethe_model::frozen::FrozenStates;
use lethe_proto::ids::Digest;

/// One file per sample. What cannot be read is computed again; what cannot be written is not kept.
#[derive(Debug)]
pub(super) struct OnDisk(PathBuf);

impl OnDisk {
    pub(super) fn open(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        Ok(Self(folder.to_owned()))
    }

    /// Whether a sample's states are there.
    pub(super) fn holds(&self, ids: &[u32]) -> bool {
        self.path(ids).exists()
    }

    fn path(&self, ids: &[u32]) -> PathBuf {
        let bytes: Vec<u8> = ids.iter().flat_map(|t| t.to_le_bytes()).collect();
        self.0.join(&Digest::of(&[&bytes]).hex()[..32])
    }
}

impl FrozenStates for OnDisk {
    fn get(&self, ids: &[u32]) -> Option<Vec<f32>> {
        let bytes = std::fs::read(self.path(ids)).ok()?;
        Some(
            bytes
                .chunks_exact(4)
                .map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]))
                .collect(),
        )
    }

    fn put(&self, ids: &[u32], states: &[f32]) {
        let bytes: Vec<u8> = states.iter().flat_map(|v| v.to_le_bytes()).collect();
        let (path, next) = (
            self.path(ids),
            self.path(ids)
                .with_extension(format!("next-{}", std::process::id())),
        );
        // Whole or not at all.
        let _ = std::fs::write(&next, bytes).and_then(|()| std::fs::rename(next, path));
    }
}
