//! Folders of earlier builds, kept as fixtures: packed by `keep-folder`, opened by
//! `tests/old_folders.rs`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// Folders of a [`crate::world::World`] that are kept.
pub const FOLDERS: [&str; 8] = [
    "server",
    "server-keys",
    "server-evidence",
    "client-0",
    "client-1",
    "client-2",
    "client-3",
    "client-4",
];

/// Packs [`FOLDERS`] of `dir` into `out`.
///
/// # Errors
/// Whatever reading or writing meets.
pub fn pack(dir: &Path, out: &Path) -> io::Result<()> {
    let mut zip = ZipWriter::new(File::create(out)?);
    for folder in FOLDERS {
        add(dir, &dir.join(folder), &mut zip)?;
    }
    zip.finish()?;
    Ok(())
}

fn add(dir: &Path, folder: &Path, zip: &mut ZipWriter<File>) -> io::Result<()> {
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    let mut entries: Vec<_> = std::fs::read_dir(folder)?.collect::<io::Result<_>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if path.is_dir() {
            add(dir, &path, zip)?;
            continue;
        }
        let name = path.strip_prefix(dir).map_err(io::Error::other)?;
        zip.start_file(name.to_string_lossy(), options)?;
        let mut bytes = vec![];
        File::open(&path)?.read_to_end(&mut bytes)?;
        io::Write::write_all(zip, &bytes)?;
    }
    Ok(())
}

/// Unpacks what [`pack`] wrote into `dir`.
///
/// # Errors
/// Whatever reading or writing meets.
pub fn unpack(packed: &Path, dir: &Path) -> io::Result<()> {
    ZipArchive::new(File::open(packed)?)?.extract(dir)?;
    Ok(())
}
