//! `lethe bench recommend`: what the recommender's lists are worth, what they cost, and how that
//! compares.
//!
//! Every measurement runs here but the neural peers, which take hours: their table is committed
//! (`benches/recommend/peers.jsonl`, made by `benches/recommend/run.sh`) and printed beside ours.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use lethe_benches::figures::{self, Row};
use lethe_benches::lab::eprint_line;
// Modules of this program name them by `crate::`.
use lethe_benches::lists::{made_up, world};

mod cost;
mod like;
mod newcomers;
mod next;
mod noise;
mod shilling;
mod size;

use world::World;

#[derive(Parser)]
#[command(
    name = "bench-recommend",
    about = "Lists and likes beside references and peers, and their cost"
)]
struct Args {
    /// Write the rows as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// A folder with `dataset.toml`; without it MovieLens-100K and Book-Crossing, which are
    /// fetched. The constants are not fitted to it.
    #[arg(long)]
    data: Option<PathBuf>,
    /// What the items of `--data` are called in texts for the encoder.
    #[arg(long, default_value = "item")]
    noun: String,
    /// Some minutes: one order, MovieLens only, small costs.
    #[arg(long)]
    quick: bool,
    /// Only these.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Section>,
    /// Orders of ties in time, or seeds.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1, 2])]
    runs: Vec<u64>,
    /// With `--only noise`: instead, compare shares and cuts, on validation events.
    #[arg(long)]
    shapes: bool,
    /// Do not use the sentence encoder.
    #[arg(long)]
    no_encoder: bool,
    /// Refuse `--data` with malformed rows, or with something that has to be guessed.
    #[arg(long)]
    strict: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Section {
    /// Next item: composition, parts removed, references.
    Next,
    /// People who are not in the sums.
    Newcomers,
    /// Items that nobody has met.
    Unseen,
    /// Like or dislike, MovieLens.
    Like,
    /// Like or dislike, Book-Crossing.
    Books,
    /// People who are made up to push an item.
    Shilling,
    /// Noise on the sums.
    Noise,
    /// Size of snapshots against losses, and the served configuration.
    Size,
    /// Cost with people and with items.
    Cost,
    /// The committed table of peers.
    Peers,
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
    result
}

fn measure(args: &Args, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let home = lethe_assets::default_home()?;
    let encoder = if args.no_encoder {
        None
    } else {
        Some(lethe_assets::fetch_encoder(&home, &mut eprint_line)?)
    };
    let encoder = encoder.as_deref();
    let mut world = match &args.data {
        Some(folder) => World::open_with(
            &folder.display().to_string(),
            folder,
            &args.noun,
            encoder,
            args.strict,
        )?,
        None => {
            let files = lethe_assets::fetch(&home, &mut eprint_line)?;
            World::open("movielens-100k", &files.movielens, "movie", encoder)?
        }
    };
    rows.extend(read(&world));
    let most = world.histories.iter().map(Vec::len).max().unwrap_or(0);
    anyhow::ensure!(
        most >= 3,
        "nobody has a target: a person needs 3 events (the last two are held out); of {} people \
         the most that anybody has is {most}",
        world.histories.len()
    );
    for run in args.runs() {
        world.set_order(*run);
        if args.wants(Section::Next) {
            say(&format!("next item, order {run}"));
            rows.extend(next::measure(&world, *run, args.quick)?);
        }
        if args.wants(Section::Noise) {
            say(&format!("noise, order {run}"));
            if args.shapes {
                rows.extend(noise::shapes(&world, *run)?);
                continue;
            }
            rows.extend(noise::people(&world, *run)?);
        }
        if args.wants(Section::Newcomers) {
            say(&format!("newcomers, order {run}"));
            rows.extend(newcomers::people(&world, *run)?);
        }
        if args.wants(Section::Unseen) {
            say(&format!("unseen items, draw {run}"));
            rows.extend(newcomers::items(&world, *run)?);
        }
        if args.wants(Section::Like) {
            say(&format!("likes, order {run}"));
            rows.extend(like::per_person(&world, *run)?);
            if !args.quick {
                rows.extend(like::global(&world, *run)?);
            }
        }
    }
    world.set_order(0);
    if args.wants(Section::Shilling) {
        say("people who push an item");
        rows.extend(shilling::measure(&world, 0, args.quick)?);
    }
    if args.wants(Section::Size) {
        say("sizes");
        rows.extend(size::rows_of_tables(&world, args.quick)?);
        rows.extend(size::field(&world, args.quick)?);
        rows.extend(size::served(&world)?);
        if !args.quick {
            rows.extend(size::large(10_000, 10_000)?);
            rows.extend(size::large(100_000, 20_000)?);
        }
    }
    drop(world);
    if args.wants(Section::Noise) && !args.shapes {
        say("noise, made-up people");
        let people = args.quick.then_some(10_000);
        rows.extend(noise::made_up(people)?);
    }
    if args.wants(Section::Books) && args.data.is_none() && !args.quick {
        let folder = lethe_assets::fetch_books(&home, &mut eprint_line)?;
        for run in args.runs() {
            say(&format!("books, seed {run}"));
            let books = World::books(&folder, 5, *run + 1, encoder)?;
            rows.extend(like::per_person(&books, *run)?);
        }
    }
    if args.wants(Section::Cost) {
        costs(args, rows)?;
    }
    if args.wants(Section::Peers) {
        rows.extend(peers()?);
    }
    Ok(())
}

/// What became of the rows of the data.
fn read(world: &World) -> Vec<Row> {
    let readings = world.data.readings.iter();
    let row = |r: &lethe_recsys::data::FileReading| {
        let file = r.file.file_name().unwrap_or_default().to_string_lossy();
        Row::new("data", &world.name, file, 0)
            .with("rows", r.rows as f64)
            .with("read", r.read as f64)
            .with("left out", r.count_left_out() as f64)
    };
    readings.map(row).collect()
}

fn costs(args: &Args, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let mut people = vec![1_000, 10_000, 100_000, 1_000_000];
    let mut items = vec![1_000, 3_000, 10_000, 30_000, 100_000];
    if args.quick {
        people.truncate(1);
        items = vec![5_000];
    }
    for people in people {
        say(&format!("cost of {people} people"));
        rows.push(cost::measure(people, 1_682, "people")?);
    }
    let fleet = if args.quick { 1_000 } else { 10_000 };
    for items in items {
        say(&format!("cost of {items} items"));
        rows.push(cost::measure(fleet, items, "items")?);
    }
    Ok(())
}

/// One row of the committed table.
#[derive(serde::Deserialize)]
struct Peer {
    peer: String,
    package: String,
    order: u64,
    hr10: f64,
    ndcg10: f64,
    seconds: f64,
    device_bytes: f64,
    list_ms: f64,
    /// Other programs ran meanwhile: its times say nothing.
    #[serde(default)]
    contended: bool,
}

fn peers() -> anyhow::Result<Vec<Row>> {
    let lines = include_str!("../../recommend/peers.jsonl").lines();
    lines
        .map(|line| {
            let p: Peer = serde_json::from_str(line).context("benches/recommend/peers.jsonl")?;
            let name = format!("{} ({})", p.peer, p.package);
            let row = Row::new("peers (committed table)", "movielens-100k", name, p.order)
                .with("HR@10", p.hr10)
                .with("NDCG@10", p.ndcg10)
                .with("device, kB", p.device_bytes / 1e3);
            if p.contended {
                return Ok(row);
            }
            // None of them forgets: to forget one person is to train again.
            Ok(row
                .with("train, s", p.seconds)
                .with("forget one person, s", p.seconds)
                .with("list, ms", p.list_ms))
        })
        .collect()
}

fn say(line: &str) {
    eprint_line(line);
}
