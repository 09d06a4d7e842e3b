//! How large this computer's caches are, as far as the system says so.

use std::path::Path;
use std::sync::OnceLock;

/// What is taken where nothing is known: few cores of today have less.
const USUAL: usize = 512 << 10;

/// Sizes that are believed.
const LEAST: usize = 128 << 10;
const MOST: usize = 8 << 20;

/// Bytes of the second-level cache of the first core; all of it, also where cores share it. Only
/// speed depends on it.
pub(crate) fn second_level() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    let read = || in_folder(Path::new("/sys/devices/system/cpu/cpu0/cache"));
    *SIZE.get_or_init(|| read().map_or(USUAL, |bytes| bytes.clamp(LEAST, MOST)))
}

/// As Linux describes them: a folder for each cache, with a file for each property.
fn in_folder(folder: &Path) -> Option<usize> {
    let caches = std::fs::read_dir(folder).ok()?;
    caches
        .filter_map(|c| of_second_level(&c.ok()?.path()))
        .next()
}

fn of_second_level(cache: &Path) -> Option<usize> {
    let read = |name| std::fs::read_to_string(cache.join(name)).ok();
    let is_second = read("level")?.trim() == "2";
    let has_data = read("type")?.trim() != "Instruction";
    match is_second && has_data {
        true => bytes(read("size")?.trim()),
        false => None,
    }
}

/// Of a size like `512K`.
fn bytes(size: &str) -> Option<usize> {
    let (number, unit) = match size.strip_suffix('K') {
        Some(number) => (number, 1 << 10),
        None => (size.strip_suffix('M')?, 1 << 20),
    };
    number.parse::<usize>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(bytes("512K"), Some(512 << 10));
        assert_eq!(bytes("2M"), Some(2 << 20));
        for odd in ["", "K", "512", "-1K", "99999999999999999999K"] {
            assert_eq!(bytes(odd), None, "{odd}");
        }
        assert!((LEAST..=MOST).contains(&second_level()));
    }

    #[test]
    fn the_second_level_is_found_among_others() {
        let dir = tempfile::tempdir().expect("a folder");
        let caches = [
            ("index0", "1", "Data", "32K"),
            ("index1", "2", "Instruction", "64K"),
            ("index2", "2", "Unified", "1024K"),
            ("index3", "3", "Unified", "32768K"),
        ];
        for (name, level, kind, size) in caches {
            let cache = dir.path().join(name);
            std::fs::create_dir(&cache).expect("a folder");
            for (file, text) in [("level", level), ("type", kind), ("size", size)] {
                std::fs::write(cache.join(file), format!("{text}\n")).expect("written");
            }
        }
        assert_eq!(in_folder(dir.path()), Some(1024 << 10));
        assert_eq!(in_folder(&dir.path().join("none")), None);
    }
}
