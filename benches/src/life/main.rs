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

mod adapters;
mod crowd;
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

use adapters::{Adapters, Rolling};
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
    /// Leave adapters out: no model is loaded.
    #[arg(long)]
    no_adapters: bool,
    /// Adapters alone, without the tally: nothing is said of lists.
    #[arg(long, conflicts_with_all = ["no_adapters", "year"])]
    only_adapters: bool,
    /// With --only-adapters: a file of --json of the same seed and days, whose figures of the sums
    /// are taken as they are.
    #[arg(long, requires = "only_adapters")]
    sums: Option<PathBuf>,
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
    if args.only_adapters {
        return only_adapters(&args, &plan);
    }
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
    let lived = live(&months, plan, None, &mut |line| eprint_line(line))?;
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

/// The figures, and their picture.
fn write_files(args: &Args, figures: &serde_json::Value) -> anyhow::Result<()> {
    write_json(args, figures)?;
    let Some(path) = &args.svg else {
        return Ok(());
    };
    std::fs::write(path, plot::svg(figures)).with_context(|| path.display().to_string())
}

fn seven_months(args: &Args, plan: &Plan) -> anyhow::Result<()> {
    let loaded = load(args)?;
    let months = loaded.months;
    let adapters = match &loaded.world {
        Some(world) => Some(open(args, &months, world)?),
        None => None,
    };
    let lived = live(&months, plan, adapters, &mut |line| eprint_line(line))?;
    let figures = table::figures(&lived, plan)?;
    write_files(args, &figures.json)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", table::markdown(&figures.weeks))?;
    writeln!(out, "{}", table::of_adapters(&figures.adapters))?;
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

/// The data, and what the base model learns from; none: adapters are left out.
struct Loaded {
    months: Months,
    world: Option<World>,
}

fn load(args: &Args) -> anyhow::Result<Loaded> {
    let home = lethe_assets::default_home()?;
    let files = lethe_assets::fetch(&home, &mut eprint_line)?;
    let mut world = World::open("movielens-100k", &files.movielens, "movie", None)?;
    world.set_order(args.order);
    // Adapters alone have no use for what items' texts say to lists.
    let vectors = match args.no_encoder || args.only_adapters {
        true => None,
        false => {
            let encoder = lethe_assets::fetch_encoder(&home, &mut eprint_line)?;
            let items = &world.data.items;
            let texts: Vec<String> = items.iter().map(|i| sentence(i, "movie")).collect();
            Some(vectors(&texts, &encoder)?)
        }
    };
    let months = Months::new(&world, DataSpec::movielens(), vectors.as_deref())?;
    Ok(Loaded {
        months,
        world: (!args.no_adapters).then_some(world),
    })
}

/// Adapters on the base model of measurements.
fn open<'a>(args: &Args, months: &'a Months, world: &World) -> anyhow::Result<Adapters<'a>> {
    let cpu = lethe_benches::cpu_seconds();
    let home = lethe_assets::default_home()?;
    let model = lethe_assets::fetch(&home, &mut |_| {})?.model;
    let rolling = match args.quick {
        true => Rolling::quick()?,
        false => Rolling::seven_months()?,
    };
    let people = match args.quick {
        true => adapters::TAUGHT_QUICK,
        false => adapters::TAUGHT,
    };
    let engine = adapters::engine(&model, &world.data, &rolling, people, &home)?;
    let took = lethe_benches::cpu_seconds() - cpu;
    Ok(Adapters::new(months, engine, rolling, args.seed, took))
}

/// Adapters without the tally; with `--sums` beside the figures of an earlier run.
fn only_adapters(args: &Args, plan: &Plan) -> anyhow::Result<()> {
    let loaded = load(args)?;
    let world = loaded.world.context("adapters were left out")?;
    let opened = open(args, &loaded.months, &world)?;
    let mut say = |line: &str| eprint_line(line);
    let rolled = adapters::alone(&loaded.months, plan.seed, plan.days, opened, &mut say)?;
    let of = adapters::json(&rolled)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", table::of_adapters(&adapters::weekly(&rolled)))?;
    for name in ["all", "left", "cpu_s", "sha256"] {
        writeln!(out, "{name}: {}", serde_json::to_string(&of[name])?)?;
    }
    let mut figures = match &args.sums {
        None => serde_json::json!({ "seed": plan.seed, "adapters": of.clone() }),
        Some(path) => beside(path, plan.seed, &of)?,
    };
    figures["adapters"] = of;
    write_files(args, &figures)
}

/// Figures of an earlier run of the same seed, with adapters beside them. The last digit of a
/// number that was read may be another one.
fn beside(
    path: &std::path::Path,
    seed: u64,
    adapters: &serde_json::Value,
) -> anyhow::Result<serde_json::Value> {
    let text = std::fs::read(path).with_context(|| path.display().to_string())?;
    let mut figures: serde_json::Value = serde_json::from_slice(&text)?;
    let had = figures["seed"].as_u64();
    anyhow::ensure!(
        had == Some(seed),
        "{} has seed {had:?}, and adapters were run with {seed}: expected the same",
        path.display()
    );
    let name = match figures["sums_sha256"].is_string() {
        true => "sums_sha256",
        false => "figures_sha256",
    };
    let sums = figures[name].as_str().unwrap_or_default().to_owned();
    figures["figures_sha256"] = table::whole(&sums, Some(adapters)).into();
    figures["sums_sha256"] = sums.into();
    // What an earlier version said in the place of adapters.
    if let Some(all) = figures.as_object_mut() {
        all.remove("adapters_why");
    }
    for trained in adapters["days"].as_array().into_iter().flatten() {
        let samples = trained["samples"].as_u64().unwrap_or(0);
        let day = trained["day"].as_u64();
        let days = figures["days"].as_array_mut().into_iter().flatten();
        for one in days.filter(|d| d["day"].as_u64() == day) {
            one["samples_trained"] = samples.into();
        }
        let week = day.unwrap_or(0) / crowd::WEEK as u64 + 1;
        let weeks = figures["weeks"].as_array_mut().into_iter().flatten();
        for one in weeks.filter(|w| w["week"].as_u64() == Some(week)) {
            let had = one["cost"]["samples_trained"].as_u64().unwrap_or(0);
            one["cost"]["samples_trained"] = (had + samples).into();
        }
    }
    Ok(figures)
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

    /// A tiny model whose epochs roll every five days; everybody trains.
    fn rolling<'a>(folder: &std::path::Path, months: &'a Months, seed: u64) -> Adapters<'a> {
        let model = folder.join("model");
        lethe_tests::tiny::write_model(&model).expect("writes");
        let recipe = "prompt = \"+ {liked} - {disliked}: {target}?\"\nshards = 2\nanchors = 2\n\
                      rounds = 2\ncohort = 3\nserver_lr = 0.01\n\
                      split = { k_in = 1, k_out = 1 }\n[lora]\nrank = 2\nalpha = 4.0\n\
                      targets = [\"q\", \"v\"]\nlast_layers = 1\n";
        let rolling = Rolling {
            recipe: lethe_recipe::Recipe::from_toml(recipe).expect("valid"),
            every_days: 5,
            min_people: 8,
            one_in: 1,
            newest: 12,
            requests: 40,
        };
        let source = lethe_model::source::open(&model).expect("a model");
        let engine = adapters::Engine::load(source.as_ref(), rolling.recipe.clone());
        Adapters::new(months, engine.expect("loads"), rolling, seed, 0.0)
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
        let adapters = rolling(folder.path(), &months, seed);
        let lived = live(&months, &plan, Some(adapters), &mut |_| {}).expect("lives");
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
    fn epochs_of_adapters_roll_and_forget_byte_for_byte() {
        let months = Months::new(&made_up(), DataSpec::movielens(), None).expect("months");
        let mut deleted = 0;
        let mut withdrawn = 0;
        let mut again = 0;
        for seed in 1..=3 {
            let rolled = alone(&months, seed);
            // Each was compared with a fresh system when it ended: otherwise there are no figures.
            let epochs = &rolled.epochs;
            assert!(epochs.len() > 2, "{epochs:?}");
            assert!(epochs.last().is_some_and(|e| e.compared_anew));
            for pair in epochs.windows(2) {
                assert_eq!(pair[0].until, pair[1].day);
                assert!(pair[1].day - pair[0].day >= 5);
                assert_ne!(pair[0].sha256, pair[1].sha256);
            }
            for e in epochs {
                assert_eq!(e.remained, e.joined - e.left.len());
                deleted += e.left.iter().filter(|l| l.deleted).count();
                withdrawn += e.left.iter().filter(|l| !l.deleted).count();
                again += e.left.iter().map(|l| l.again.samples).sum::<usize>();
            }
            assert!(rolled.judged.len() > 100);
            assert!(rolled.judged.iter().any(|j| j.base != j.adapters));
        }
        assert!(deleted > 0 && withdrawn > 0, "{deleted}, {withdrawn}");
        assert!(again > 0);
    }

    fn alone(months: &Months, seed: u64) -> adapters::Rolled {
        let folder = tempfile::tempdir().expect("a folder");
        let opened = rolling(folder.path(), months, seed);
        adapters::alone(months, seed, i32::MAX, opened, &mut |_| {}).expect("rolls")
    }

    #[test]
    fn adapters_alone_are_those_beside_the_tally() {
        let (once, both) = lived(3);
        let rolled = once.adapters.expect("adapters");
        // What was asked has what the sums say of the same events.
        assert!(rolled.judged.iter().all(|j| j.served.is_some()));
        let trained: usize = rolled.days.iter().map(|d| d.samples).sum();
        let of_days: usize = once.days.iter().map(|d| d.samples_trained).sum();
        assert_eq!(trained, of_days);
        let months = Months::new(&made_up(), DataSpec::movielens(), None).expect("months");
        let of = |seed: u64| adapters::json(&alone(&months, seed)).expect("figures");
        let figures = of(3);
        assert_eq!(figures["sha256"], both.json["adapters"]["sha256"]);
        assert_eq!(figures["sha256"], of(3)["sha256"]);
        assert_ne!(figures["sha256"], of(4)["sha256"]);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("sums.json");
        let mut sums = both.json.clone();
        let none = |rows: &mut serde_json::Value, place: &str| {
            for row in rows.as_array_mut().expect("rows") {
                *row.pointer_mut(place).expect("a count") = 0.into();
            }
        };
        none(&mut sums["days"], "/samples_trained");
        none(&mut sums["weeks"], "/cost/samples_trained");
        std::fs::write(&path, sums.to_string()).expect("writes");
        let beside = beside(&path, 3, &figures).expect("the same seed");
        let counts = |f: &serde_json::Value, rows: &str, place: &str| {
            let rows = f[rows].as_array().expect("rows").iter();
            let count = |r: &serde_json::Value| r.pointer(place).cloned().expect("a count");
            rows.map(count).collect::<Vec<_>>()
        };
        for (rows, place) in [
            ("days", "/samples_trained"),
            ("weeks", "/cost/samples_trained"),
        ] {
            let trained = counts(&beside, rows, place);
            assert_eq!(trained, counts(&both.json, rows, place));
            assert!(trained.iter().any(|n| *n != 0));
        }
        assert_eq!(beside["figures_sha256"], both.json["figures_sha256"]);
        assert!(super::beside(&path, 4, &figures).is_err());
    }

    #[test]
    fn a_picture_has_a_line_for_each_system_and_panel() {
        let (_, figures) = lived(3);
        assert_eq!(plot::svg(&figures.json).matches("<polyline").count(), 11);
        let table = table::markdown(&figures.weeks);
        assert_eq!(table.lines().count(), figures.weeks.len() + 2);
    }
}
