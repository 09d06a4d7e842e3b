//! `lethe bench leak`: attacks on what is published, kept and sent, and what helps against them.
//! `docs/leaks.md` has the results.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use lethe_benches::figures::{self, Row};
use lethe_benches::lab::eprint_line;

mod handles;
mod snapshots;
mod split;
mod updates;

#[derive(Parser)]
#[command(name = "bench-leak", about = "What leaks, and what helps against it")]
struct Args {
    /// Write the rows as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Some minutes: one seed, fewer people and settings.
    #[arg(long)]
    quick: bool,
    /// Only these.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Section>,
    /// Seeds.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    runs: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Section {
    /// Histories from two snapshots.
    Snapshots,
    /// People from what somebody knows of them.
    Handles,
    /// Texts and answers from what crosses the split.
    Split,
    /// Samples from updates and adapters.
    Updates,
}

impl Args {
    fn wants(&self, section: Section) -> bool {
        self.only.is_empty() || self.only.contains(&section)
    }

    fn runs(&self) -> &[u64] {
        if self.quick {
            &self.runs[..1.min(self.runs.len())]
        } else {
            &self.runs
        }
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut rows = vec![];
    let result = measure(&args, &mut rows);
    // What was measured before an error is not lost.
    writeln!(std::io::stdout(), "{}", figures::tables(&rows))?;
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&rows)?)
            .with_context(|| path.display().to_string())?;
    }
    result?;
    if args.quick {
        hold(&args, &rows)?;
    }
    Ok(())
}

/// The committed figures of the snapshots and the handles.
const DOCUMENTED: &str = include_str!("../../../docs/figures/leak.json");

/// The small form holds what is documented.
fn hold(args: &Args, rows: &[Row]) -> anyhow::Result<()> {
    if args.wants(Section::Snapshots) {
        figures::hold(rows, DOCUMENTED, &snapshots::BANDS)?;
    }
    if args.wants(Section::Handles) {
        figures::hold(rows, DOCUMENTED, &handles::BANDS)?;
    }
    Ok(())
}

fn measure(args: &Args, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let home = lethe_assets::default_home()?;
    let files = lethe_assets::fetch(&home, &mut eprint_line)?;
    for run in args.runs() {
        if args.wants(Section::Snapshots) {
            eprint_line(&format!("snapshots, seed {run}"));
            rows.extend(snapshots::measure(&files, *run, args.quick)?);
        }
        if args.wants(Section::Handles) {
            eprint_line(&format!("handles, seed {run}"));
            rows.extend(handles::measure(&files, *run, args.quick)?);
        }
        if args.wants(Section::Split) {
            eprint_line(&format!("the split, seed {run}"));
            rows.extend(split::measure(&files, *run, args.quick)?);
        }
        if args.wants(Section::Updates) {
            eprint_line(&format!("updates, seed {run}"));
            rows.extend(updates::measure(&files, *run, args.quick)?);
        }
    }
    Ok(())
}
