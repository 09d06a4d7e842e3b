//! Says whether a key can be destroyed in the folders that are named: `disk FOLDER...`.

use std::io::Write;
use std::path::Path;

use lethe_seal::disk::Disk;

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for folder in std::env::args().skip(1) {
        let disk = Disk::of(Path::new(&folder));
        writeln!(out, "{:?}: {disk}", disk.verdict)?;
    }
    Ok(())
}
