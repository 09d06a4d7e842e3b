//! What a host learns from the updates and adapters of federated rounds. `docs/leaks.md` has the
//! results.

use std::path::Path;

use lethe_assets::Files;
use lethe_benches::figures::Row;
use lethe_benches::lab::{Lab, QV, Setting};
use lethe_model::kernels::panels::Compute;
use lethe_model::split::SplitSpec;
use lethe_proto::payload::WireFormat;
use lethe_recsys::data::Dataset;
use lethe_recsys::prompt::Template;
use lethe_recsys::samples::TaskSample;

mod bands;
mod blind;
mod members;
mod people;
mod pool;
mod rounds;
mod sparse;
mod stats;
mod titles;

const DATA: &str = "movielens-100k";

/// The product's split and adapter (rank 8 on query and value), with the base model as it was
/// published.
fn lab(
    files: &Files,
    data: Dataset,
    rows: Vec<TaskSample>,
    last_layers: Option<usize>,
) -> anyhow::Result<Lab> {
    let layers = lethe_model::source::open(Path::new(&files.model))?
        .config()
        .layers;
    let setting = Setting {
        split: SplitSpec { k_in: 4, k_out: 1 },
        last_layers: last_layers.unwrap_or(layers),
        wire: WireFormat::F32,
        compute: Compute::F32,
        people: 0,
        targets: QV,
    };
    let states = lethe_assets::default_home()?.join("states");
    Lab::load(
        &files.model,
        data,
        Template::movie(),
        rows,
        setting,
        &states,
    )
}

/// All rows of this section.
///
/// # Errors
/// In the quick form also where a figure leaves the band that `docs/leaks.md` documents.
pub(crate) fn measure(files: &Files, seed: u64, quick: bool) -> anyhow::Result<Vec<Row>> {
    let mut rows = blind::measure(files, seed, quick)?;
    rows.extend(members::measure(files, seed, quick)?);
    if quick {
        bands::check(&rows)?;
    }
    Ok(rows)
}
