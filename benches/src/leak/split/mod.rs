//! To be written.

use lethe_assets::Files;
use lethe_benches::figures::Row;

pub(crate) fn measure(_files: &Files, _seed: u64, _quick: bool) -> anyhow::Result<Vec<Row>> {
    anyhow::bail!("split: not measured yet")
}
