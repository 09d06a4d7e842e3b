//! The log as static files, in the layout of C2SP tlog-tiles: anybody can mirror and audit it with
//! standard tools.
//!
//! `checkpoint`; `tile/L/N` with 256 hashes of level `8 * L`; `tile/entries/N` with 256 entries,
//! each after its length as two bytes, big-endian; a last tile that is not full has `.p/W` behind
//! its name, `W` its width. `N` is written in groups of three digits, all but the last with an `x`
//! in front.

use std::path::Path;

use thiserror::Error;

use crate::merkle::{Hash, Tree, leaf_hash};
use crate::note::{NoteError, VerifierKey, open_checkpoint};

/// Hashes or entries of a full tile.
const WIDTH: u64 = 256;

/// Largest tile that is read: 256 entries of 64 KiB.
const MAX_TILE: u64 = 256 * (65_535 + 2);

/// Why a published log is not accepted.
#[derive(Debug, Error)]
pub enum TileError {
    /// A file that must be there cannot be read.
    #[error("{path}: {why}")]
    File {
        /// Path in the layout.
        path: String,
        /// What went wrong.
        why: String,
    },
    /// The signed head is not accepted.
    #[error(transparent)]
    Checkpoint(#[from] NoteError),
    /// The files do not hash to the signed head.
    #[error(
        "the {size} entries do not hash to the root that the checkpoint signs: the log was altered"
    )]
    Root {
        /// Entries that the checkpoint claims.
        size: u64,
    },
    /// A tile does not follow from the entries.
    #[error("{path} does not follow from the entries")]
    Tile {
        /// Path in the layout.
        path: String,
    },
}

fn name(folder: &str, index: u64, width: u64) -> String {
    let mut groups = vec![format!("{:03}", index % 1000)];
    let mut rest = index / 1000;
    while rest > 0 {
        groups.insert(0, format!("x{:03}", rest % 1000));
        rest /= 1000;
    }
    let tail = if width < WIDTH {
        format!(".p/{width}")
    } else {
        String::new()
    };
    format!("tile/{folder}/{}{tail}", groups.join("/"))
}

/// Files that a log of these entries has beyond those that it had with `from` entries: `(path,
/// content)`. Entries longer than 65,535 bytes cannot be published and are refused by `None`.
pub fn files(entries: &[Vec<u8>], from: u64) -> Option<Vec<(String, Vec<u8>)>> {
    let size = entries.len() as u64;
    let mut out = vec![];
    let (mut hashes, mut level, mut before): (Vec<Hash>, u32, u64) =
        (entries.iter().map(|e| leaf_hash(e)).collect(), 0, from);
    while !hashes.is_empty() {
        for (i, tile) in hashes
            .chunks(WIDTH as usize)
            .enumerate()
            .skip((before / WIDTH) as usize)
        {
            out.push((
                name(&level.to_string(), i as u64, tile.len() as u64),
                tile.concat(),
            ));
        }
        hashes = hashes
            .chunks_exact(WIDTH as usize)
            .map(|t| Tree::from_leaves(t.to_vec()).root())
            .collect();
        before /= WIDTH;
        level += 1;
    }
    for i in from / WIDTH..size.div_ceil(WIDTH) {
        let bundle = &entries[(i * WIDTH) as usize..((i + 1) * WIDTH).min(size) as usize];
        let mut bytes = vec![];
        for e in bundle {
            bytes.extend(u16::try_from(e.len()).ok()?.to_be_bytes());
            bytes.extend(e);
        }
        out.push((name("entries", i, bundle.len() as u64), bytes));
    }
    Some(out)
}

fn read(folder: &Path, path: &str) -> Result<Vec<u8>, TileError> {
    let at = folder.join(path);
    let file = |why: String| TileError::File {
        path: path.to_owned(),
        why,
    };
    let len = std::fs::metadata(&at)
        .map_err(|e| file(e.to_string()))?
        .len();
    if len > MAX_TILE {
        return Err(file(format!("{len} bytes, at most {MAX_TILE}")));
    }
    std::fs::read(&at).map_err(|e| file(e.to_string()))
}

/// A published log that was checked: its entries and signed head.
#[derive(Debug)]
pub struct Audited {
    /// Entries in order.
    pub entries: Vec<Vec<u8>>,
    /// Merkle tree over them.
    pub tree: Tree,
    /// The signed head, as published.
    pub checkpoint: String,
}

/// Reads a published log and checks all of it: signature, root, every tile.
pub fn audit(folder: &Path, key: &VerifierKey) -> Result<Audited, TileError> {
    let bytes = read(folder, "checkpoint")?;
    let text = String::from_utf8(bytes);
    let checkpoint = text.map_err(|_| NoteError::Format("it is not UTF-8"))?;
    let (size, root) = open_checkpoint(&checkpoint, key)?;
    let mut entries: Vec<Vec<u8>> = vec![];
    for i in 0..size.div_ceil(WIDTH) {
        let width = WIDTH.min(size - i * WIDTH);
        let path = name("entries", i, width);
        let bytes = read(folder, &path)?;
        let mut rest = &bytes[..];
        for _ in 0..width {
            let (len, tail) = rest
                .split_at_checked(2)
                .ok_or_else(|| TileError::Tile { path: path.clone() })?;
            let len = usize::from(u16::from_be_bytes([len[0], len[1]]));
            let (entry, tail) = tail
                .split_at_checked(len)
                .ok_or_else(|| TileError::Tile { path: path.clone() })?;
            entries.push(entry.to_vec());
            rest = tail;
        }
        if !rest.is_empty() {
            return Err(TileError::Tile { path });
        }
    }
    let tree = Tree::from_leaves(entries.iter().map(|e| leaf_hash(e)).collect());
    if tree.root() != root {
        return Err(TileError::Root { size });
    }
    for (path, want) in files(&entries, 0).unwrap_or_default() {
        if read(folder, &path)? != want {
            return Err(TileError::Tile { path });
        }
    }
    Ok(Audited {
        entries,
        tree,
        checkpoint,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::note::Signer;

    fn write(folder: &Path, files: Vec<(String, Vec<u8>)>) {
        for (path, bytes) in files {
            let at = folder.join(path);
            std::fs::create_dir_all(at.parent().expect("has one")).expect("creates");
            std::fs::write(at, bytes).expect("writes");
        }
    }

    #[test]
    fn names_are_as_specified() {
        assert_eq!(name("0", 5, 256), "tile/0/005");
        assert_eq!(name("1", 1_234_067, 256), "tile/1/x001/x234/067");
        assert_eq!(name("entries", 0, 7), "tile/entries/000.p/7");
    }

    #[test]
    fn a_log_that_grows_is_audited_and_alterations_are_found() {
        let dir = tempfile::tempdir().expect("tempdir");
        let signer = Signer::from_seed("log.example", &[7; 32]).expect("a seed");
        let entries: Vec<Vec<u8>> = (0..600u32)
            .map(|i| format!("entry {i}").into_bytes())
            .collect();
        let mut from = 0;
        for size in [1usize, 255, 256, 257, 600] {
            write(
                dir.path(),
                files(&entries[..size], from).expect("short entries"),
            );
            let tree = Tree::from_leaves(entries[..size].iter().map(|e| leaf_hash(e)).collect());
            std::fs::write(
                dir.path().join("checkpoint"),
                signer.checkpoint(tree.len(), &tree.root()),
            )
            .expect("writes");
            let read = audit(dir.path(), signer.verifier()).expect("a good log");
            assert_eq!(read.entries, entries[..size]);
            from = size as u64;
        }
        let bundle = dir.path().join("tile/entries/001");
        let good = std::fs::read(&bundle).expect("reads");
        let mut bad = good.clone();
        bad[40] ^= 1;
        std::fs::write(&bundle, bad).expect("writes");
        assert!(matches!(
            audit(dir.path(), signer.verifier()),
            Err(TileError::Root { size: 600 })
        ));
        std::fs::write(&bundle, good).expect("writes");
        let tile = dir.path().join("tile/1/000.p/2");
        std::fs::write(&tile, [0; 64]).expect("writes");
        assert!(matches!(
            audit(dir.path(), signer.verifier()),
            Err(TileError::Tile { .. })
        ));
        std::fs::remove_file(&tile).expect("there");
        assert!(matches!(
            audit(dir.path(), signer.verifier()),
            Err(TileError::File { .. })
        ));
        assert!(files(&[vec![0; 70_000]], 0).is_none());
    }
}
