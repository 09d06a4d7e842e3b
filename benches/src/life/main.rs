//! `lethe bench life`: MovieLens-100K as it happened. Each event is predicted before it is seen,
//! with the product's own tally on disk and the code that ranks on devices, in the time of the
//! data.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use lethe_benches::lab::eprint_line;
use lethe_benches::lists::world::{World, vectors};
use lethe_recsys::data::DataSpec;
use lethe_recsys::histories::sentence;

mod data;
mod link;
mod people;
mod plot;
mod run;
mod server;
mod systems;
mod table;
#[cfg(feature = "year")]
mod whole;
mod year;

use data::Months;
use run::{Plan, live};

/// The system that is frozen has what was served on this morning: after month two.
const FREEZE: i32 = 60;
/// Days of `--quick`, and when the frozen system is taken then.
const QUICK: [i32; 2] = [28, 14];

#[derive(Parser)]
#[command(
    name = "bench-life",
    about = "Seven months of MovieLens-100K as they happened: each event predicted, then seen"
)]
struct Args {
    /// Write the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the weeks as a picture.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Four weeks; the frozen system is taken after two. With `--year`: four weeks of 150 people.
    #[arg(long)]
    quick: bool,
    /// Instead: a year of 1,000 made-up people, to see whether the coordinator stays as it is.
    /// Needs a build with `--features year`.
    #[arg(long)]
    year: bool,
    /// With `--year`: the tally alone, in a process of its own.
    #[arg(long, requires = "year")]
    tally: bool,
    /// Live through so many days; all without.
    #[arg(long)]
    days: Option<i32>,
    /// Who leaves, withdraws and comes back, when the server is killed, and how cells are drawn.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Order of events of the same second: 0 is that of the file.
    #[arg(long, default_value_t = 0)]
    order: u64,
    /// Do not use the sentence encoder.
    #[arg(long)]
    no_encoder: bool,
    /// Where the server's folder is made; the system's folder for temporary files when absent.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// A file of `--json` of before: its figures must be the same.
    #[arg(long)]
    expect: Option<PathBuf>,
    /// Be the server.
    #[arg(long, hide = true)]
    serve: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(place) = &args.serve {
        let place = serde_json::from_str(place)?;
        return server::serve(&place, std::io::stdin().lock(), std::io::stdout().lock());
    }
    let folder = match &args.folder {
        Some(path) => tempfile::tempdir_in(path)?,
        None => tempfile::tempdir()?,
    };
    let [quick_days, quick_freeze] = QUICK;
    let days = if args.quick { quick_days } else { i32::MAX };
    let plan = Plan {
        seed: args.seed,
        days: args.days.unwrap_or(days),
        freeze: if args.quick { quick_freeze } else { FREEZE },
        apart: true,
        steady: args.year,
        folder: folder.path().to_owned(),
    };
    match (args.year, args.tally) {
        (true, true) => year(&args, &plan),
        (true, false) => whole_year(&args, folder.path()),
        (false, _) => seven_months(&args, &plan),
    }
}

/// With the whole coordinator.
#[cfg(feature = "year")]
fn whole_year(args: &Args, folder: &std::path::Path) -> anyhow::Result<()> {
    let weeks = match (args.days, args.quick) {
        (Some(days), _) => days.max(7) as usize / 7,
        (None, true) => whole::QUICK,
        (None, false) => whole::WEEKS,
    };
    let say = &mut |line: &str| eprint_line(line);
    let figures = whole::figures(args.seed, weeks, args.quick, folder, say)?;
    write_json(args, &figures)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", whole::markdown(&figures))?;
    for name in ["targets", "growth_by_part"] {
        writeln!(out, "{name}: {}", serde_json::to_string(&figures[name])?)?;
    }
    let digest = figures["figures_sha256"].as_str().unwrap_or_default();
    writeln!(out, "figures: {digest}")?;
    match &args.expect {
        None => Ok(()),
        Some(path) => expect(path, digest),
    }
}

#[cfg(not(feature = "year"))]
fn whole_year(_: &Args, _: &std::path::Path) -> anyhow::Result<()> {
    anyhow::bail!(
        "this build has no coordinator in virtual time: build with `cargo build --release -p \
         lethe-benches --features year --bin bench-life`, or give --tally for the tally alone"
    )
}

fn year(args: &Args, plan: &Plan) -> anyhow::Result<()> {
    let months = year::months(plan.seed)?;
    let lived = live(&months, plan, &mut |line| eprint_line(line))?;
    let figures = year::figures(&lived, plan);
    write_json(args, &figures)?;
    let mut out = std::io::stdout().lock();
    for name in ["quarters", "targets", "deletions", "withdrawals", "starts"] {
        writeln!(out, "{name}: {}", serde_json::to_string(&figures[name])?)?;
    }
    Ok(())
}

fn write_json(args: &Args, figures: &serde_json::Value) -> anyhow::Result<()> {
    let Some(path) = &args.json else {
        return Ok(());
    };
    let text = serde_json::to_string_pretty(figures)? + "\n";
    std::fs::write(path, text).with_context(|| path.display().to_string())
}

fn seven_months(args: &Args, plan: &Plan) -> anyhow::Result<()> {
    let months = months(args)?;
    let lived = live(&months, plan, &mut |line| eprint_line(line))?;
    let figures = table::figures(&lived, plan)?;
    write_json(args, &figures.json)?;
    if let Some(path) = &args.svg {
        std::fs::write(path, plot::svg(&figures.weeks))
            .with_context(|| path.display().to_string())?;
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", table::markdown(&figures.weeks))?;
    for name in [
        "from_week_3",
        "targets",
        "deletions",
        "withdrawals",
        "server",
    ] {
        let text = serde_json::to_string(&figures.json[name])?;
        writeln!(out, "{name}: {text}")?;
    }
    writeln!(
        out,
        "equal to a system that never met those who left, byte for byte: {} times\nfigures: {}",
        lived.compared, figures.digest
    )?;
    match &args.expect {
        None => Ok(()),
        Some(path) => expect(path, &figures.digest),
    }
}

/// The same seed gives the same figures.
fn expect(path: &std::path::Path, got: &str) -> anyhow::Result<()> {
    let text = std::fs::read(path).with_context(|| path.display().to_string())?;
    let before: serde_json::Value = serde_json::from_slice(&text)?;
    let expected = before["figures_sha256"].as_str().unwrap_or("nothing");
    anyhow::ensure!(
        got == expected,
        "{} has figures {expected}, and these are {got}: the seed, the days, the order, the code, \
         or the processor's family is another one",
        path.display()
    );
    Ok(())
}

fn months(args: &Args) -> anyhow::Result<Months> {
    let home = lethe_assets::default_home()?;
    let files = lethe_assets::fetch(&home, &mut eprint_line)?;
    let mut world = World::open("movielens-100k", &files.movielens, "movie", None)?;
    world.set_order(args.order);
    let vectors = match args.no_encoder {
        true => None,
        false => {
            let encoder = lethe_assets::fetch_encoder(&home, &mut eprint_line)?;
            let items = &world.data.items;
            let texts: Vec<String> = items.iter().map(|i| sentence(i, "movie")).collect();
            Some(vectors(&texts, &encoder)?)
        }
    };
    Months::new(&world, DataSpec::movielens(), vectors.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lethe_parts::content::Content;
    use lethe_parts::event::Kind;
    use lethe_recsys::data::{Dataset, Event, Item};
    use lethe_recsys::histories::{descriptions, histories};

    const DAY: i64 = 86_400;

    /// People who come over three weeks, and now and then come back.
    fn made_up() -> World {
        let mut data = Dataset {
            users: (0..240).map(|u| format!("{u}")).collect(),
            items: (0u16..30)
                .map(|i| Item {
                    id: format!("i{i}"),
                    title: format!("Title {i}"),
                    year: Some(1960 + i),
                    tags: vec![format!("tag{}", i % 4)],
                })
                .collect(),
            ..Dataset::default()
        };
        for user in 0..240u32 {
            for n in 0..12u32 {
                let item = (user * 7 + n * (1 + user % 3)) % 30;
                // A few events of a later visit; two events of a second.
                let later = i64::from(n / 9) * 4 * DAY;
                let time = 15 * 366 * DAY + i64::from(user / 20) * DAY + later + i64::from(n / 2);
                let rating = (1 + (user + item) % 5) as f32;
                data.events.push(Event {
                    user,
                    item,
                    rating,
                    time,
                    liked: rating > 3.0,
                    kind: Kind::Rating,
                });
            }
        }
        data.events.sort_by_key(|e| e.time);
        let spec = DataSpec::movielens();
        World {
            name: "made up".into(),
            meaning: spec.meaning(&data).expect("a table"),
            content: Content::new(&descriptions(&data)),
            histories: histories(&data),
            data,
        }
    }

    fn lived(seed: u64) -> (run::Lived, table::Figures) {
        let months = Months::new(&made_up(), DataSpec::movielens(), None).expect("months");
        let folder = tempfile::tempdir().expect("a folder");
        let plan = Plan {
            seed,
            days: i32::MAX,
            freeze: 8,
            apart: false,
            steady: false,
            folder: folder.path().to_owned(),
        };
        let lived = live(&months, &plan, &mut |_| {}).expect("lives");
        let figures = table::figures(&lived, &plan).expect("figures");
        (lived, figures)
    }

    #[test]
    fn the_same_seed_gives_the_same_figures_and_forgets_byte_for_byte() {
        let (once, first) = lived(3);
        let (_, second) = lived(3);
        let (_, other) = lived(4);
        assert_eq!(first.digest, second.digest);
        assert_ne!(first.digest, other.digest);
        // At the beginning of each week, and at the end; nobody counts on the first day.
        assert_eq!(once.compared, once.days.len() / 7 + 1);
        assert!(once.kills > 0 && once.left.iter().any(|l| l.shown));
        let events: usize = once.days.iter().map(|d| d.events).sum();
        assert_eq!(events, once.predicted.len());
        let last = once.days.last().expect("days");
        assert!(last.counting > 100 && last.items == 30, "{last:?}");
        let before = once.predicted.iter().filter(|p| p.day < 8);
        assert!(before.clone().count() > 0);
        for one in before {
            let frozen = one.guesses[systems::System::Frozen as usize];
            assert!(frozen.hit.is_none() && frozen.like.is_none());
        }
    }

    #[test]
    fn a_picture_has_a_line_for_each_system_and_panel() {
        let (_, figures) = lived(3);
        assert_eq!(plot::svg(&figures.weeks).matches("<polyline").count(), 8);
        let table = table::markdown(&figures.weeks);
        assert_eq!(table.lines().count(), figures.weeks.len() + 2);
    }
}
