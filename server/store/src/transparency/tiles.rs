//! The log's files for auditors, in the layout of [`lethe_receipt::tiles`]: anybody may copy them.

use std::io::{Error, ErrorKind, Result};
use std::path::Path;

use lethe_receipt::merkle::Tree;

/// Hashes or entries of a full tile.
const WIDTH: usize = 256;

/// What is published: a log and its signed head.
#[derive(Debug)]
pub struct Published<'a> {
    /// All entries.
    pub entries: &'a [Vec<u8>],
    /// Their tree.
    pub tree: &'a Tree,
    /// The signed head.
    pub checkpoint: &'a str,
}

impl Published<'_> {
    /// Writes the files that changed since the log had `from` entries, the head last. Then the last
    /// tile's older files go, but for the newest one: whoever read the head before this one finds
    /// what that names.
    pub(super) fn write(&self, folder: &Path, from: u64) -> Result<()> {
        let files = self.files(usize::try_from(from).unwrap_or(usize::MAX))?;
        for (path, bytes) in &files {
            replace(&folder.join(path), bytes)?;
        }
        replace(&folder.join("checkpoint"), self.checkpoint.as_bytes())?;
        for (path, _) in &files {
            remove_older(folder, path)?;
        }
        Ok(())
    }

    /// The same files as [`lethe_receipt::tiles::files`], without hashing the log anew.
    ///
    /// # Errors
    /// An entry has 64 KiB or more.
    pub fn files(&self, from: usize) -> Result<Vec<(String, Vec<u8>)>> {
        let mut out = vec![];
        let mut first = from / WIDTH;
        for level in 0.. {
            let hashes = self.tree.nodes(8 * level);
            if hashes.is_empty() {
                break;
            }
            for (i, tile) in hashes.chunks(WIDTH).enumerate().skip(first) {
                out.push((name(&level.to_string(), i, tile.len()), tile.concat()));
            }
            first /= WIDTH;
        }
        let bundles = self.entries.chunks(WIDTH).enumerate();
        for (i, bundle) in bundles.skip(from / WIDTH) {
            let mut bytes = vec![];
            for entry in bundle {
                bytes.extend(length(entry)?);
                bytes.extend(entry);
            }
            out.push((name("entries", i, bundle.len()), bytes));
        }
        Ok(out)
    }
}

fn length(entry: &[u8]) -> Result<[u8; 2]> {
    let too_long = |_| {
        let why = format!("an entry of {} bytes cannot be published", entry.len());
        Error::new(ErrorKind::InvalidData, why)
    };
    let length = u16::try_from(entry.len()).map_err(too_long)?;
    Ok(length.to_be_bytes())
}

/// Path of a tile: its number in groups of three digits, all but the last with an `x` in front; and
/// its width, if it is not full.
fn name(folder: &str, index: usize, width: usize) -> String {
    let mut number = format!("{:03}", index % 1000);
    let mut rest = index / 1000;
    while rest > 0 {
        number = format!("x{:03}/{number}", rest % 1000);
        rest /= 1000;
    }
    let tail = match width {
        WIDTH => String::new(),
        part => format!(".p/{part}"),
    };
    format!("tile/{folder}/{number}{tail}")
}

/// Writes a file so that a reader finds the old or the new content, nothing between.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let next = path.with_extension("next");
    std::fs::write(&next, bytes)?;
    std::fs::rename(next, path)
}

/// Removes files of the same tile with fewer entries, but for the one with the most of those. A
/// whole tile that is not the last of its level needs none of them.
fn remove_older(folder: &Path, path: &str) -> Result<()> {
    let (tile, width) = match path.split_once(".p/") {
        Some((tile, width)) => (tile, width.parse().unwrap_or(usize::MAX)),
        None => (path, usize::MAX),
    };
    let parts = folder.join(format!("{tile}.p"));
    let names = match std::fs::read_dir(&parts) {
        Ok(names) => names,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let widths = names.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<usize>().ok());
    let mut older: Vec<usize> = widths.filter(|w| *w < width).collect();
    older.sort_unstable();
    older.pop();
    for w in older {
        std::fs::remove_file(parts.join(w.to_string()))?;
    }
    Ok(())
}
