//! Helpers that the end-to-end tests share.

pub mod canary;
pub mod corruption;
pub mod desk;
pub mod files;
pub mod kept;
pub mod lists;
pub mod party;
pub mod programs;
pub mod proxy;
pub mod tiny;
pub mod world;

use std::sync::OnceLock;

use lethe_assets::Files;

/// The real model and data, fetched once into the cache.
///
/// # Panics
/// If they cannot be fetched: the tests that need them cannot run without, and must not pass
/// without.
pub fn assets() -> &'static Files {
    static FILES: OnceLock<Files> = OnceLock::new();
    FILES.get_or_init(|| {
        let home = lethe_assets::default_home().unwrap_or_else(|e| panic!("{e}"));
        lethe_assets::fetch(&home, &mut |_| {}).unwrap_or_else(|e| panic!("{e}"))
    })
}
