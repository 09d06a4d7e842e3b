//! How long a deletion takes in the tally: until it is exact (keys destroyed, nothing that can be
//! read or is served has the person in it), until it is whole (the next snapshot is solved, packed,
//! signed and served), and until the sums without the person are on disk. On MovieLens-100K, then
//! on made-up people with many items. A real folder on a real disk.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Parser;
use lethe_benches::lab::eprint_line;
use lethe_learn::seed::Seed;
use lethe_parts::content::Content;
use lethe_parts::history::{Interaction, day_of};
use lethe_parts::score::Weights;
use lethe_parts::snapshot::decode;
use lethe_parts::sums::Sums;
use lethe_recsys::evaluation::Ranking;
use lethe_store::sled_backend::SledStorage;
use lethe_tally::{Finished, Handle, Offer, Options, Served, Tally};
use serde_json::{Value, json};

use lethe_benches::lists::made_up::MadeUp;
use lethe_benches::lists::next::{Event, Fleet, Target, Variant, ranks, targets, training};
use lethe_benches::lists::world::{World, sum};

const CLIP: usize = 200;
const DAY_S: u64 = 86_400;

/// Measures deletions in the tally.
#[derive(Parser)]
#[command(
    name = "bench-tally",
    about = "Deletions in the tally: until exact, until whole"
)]
struct Args {
    /// Write the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Deletions on MovieLens-100K; 0 leaves it out.
    #[arg(long, default_value_t = 200)]
    deletions: usize,
    /// Deletions with made-up people; 0 leaves them out.
    #[arg(long, default_value_t = 50)]
    made_up: usize,
    /// Made-up people.
    #[arg(long, default_value_t = 5_000)]
    people: u32,
    /// Their items.
    #[arg(long, default_value_t = 20_000)]
    items: usize,
    /// Do not use the sentence encoder.
    #[arg(long)]
    no_encoder: bool,
    /// Where the tally's folder is made; the system's folder for temporary files when absent.
    #[arg(long)]
    folder: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut out = serde_json::Map::new();
    if args.deletions > 0 {
        out.insert("movielens-100k".into(), movielens(&args)?);
    }
    if args.made_up > 0 {
        let name = format!("made-up, {} people, {} items", args.people, args.items);
        out.insert(name, many_items(&args)?);
    }
    let text = serde_json::to_string_pretty(&Value::Object(out))? + "\n";
    if let Some(path) = &args.json {
        std::fs::write(path, &text).with_context(|| path.display().to_string())?;
    }
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// A tally in a folder that is removed with it.
struct Bench {
    tally: Tally,
    now: u64,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new(args: &Args, content: Content, last_day: i32) -> anyhow::Result<Self> {
        let folder = match &args.folder {
            Some(path) => tempfile::tempdir_in(path)?,
            None => tempfile::tempdir()?,
        };
        let now = (last_day as u64 + 1) * DAY_S;
        let tally = Tally::open(
            &SledStorage::engine,
            folder.path(),
            Arc::new(content),
            Options::default(),
            now,
        )?;
        Ok(Self {
            tally,
            now,
            _folder: folder,
        })
    }

    fn day(&self) -> i32 {
        (self.now / DAY_S) as i32
    }

    /// Everybody contributes; many come together.
    fn fill(&self, all: &[Vec<Interaction>]) -> anyhow::Result<()> {
        let mut offers = vec![];
        for (person, events) in (0u32..).zip(all) {
            offers.push(Offer {
                handle: handle(person),
                source: [1; 16],
                whole: events.len() < CLIP,
                events,
            });
        }
        for chunk in offers.chunks(500) {
            for answer in self.tally.contribute_all(chunk, self.now)? {
                answer?;
            }
        }
        self.tally.open_cells(self.now)?;
        Ok(())
    }

    /// These people leave, one after another.
    fn delete(&self, leavers: &[u32]) -> anyhow::Result<Times> {
        let mut times = Times::default();
        for who in leavers {
            let began = Instant::now();
            self.tally.leave(&[handle(*who)], self.now)?;
            times.exact.push(began.elapsed().as_secs_f64());
            if let Served::Out { .. } = self.tally.served() {
                let done = self.tally.job(self.day(), self.now)?.run()?;
                let finished = self.tally.finish(&done, self.now)?;
                ensure!(finished != Finished::TooLate, "nobody else is here");
                times.whole.push(began.elapsed().as_secs_f64());
                ensure!(self.tally.keep_sums(&done)?, "nothing was recalled");
                times.kept.push(began.elapsed().as_secs_f64());
            }
            // Whoever may count again does; the next deletion finds it published.
            if self.tally.open_cells(self.now)? > 0 {
                self.tally.publish(self.day(), self.now)?;
            }
        }
        Ok(times)
    }

    fn figures(&self, times: Times) -> anyhow::Result<Value> {
        let began = Instant::now();
        let refolded = self
            .tally
            .refold(self.now)?
            .context("nobody else is here")?;
        let refold = began.elapsed().as_secs_f64();
        ensure!(
            refolded.memory == Some(true),
            "the sums are not those of who is left"
        );
        let status = self.tally.status(self.now)?;
        let Served::Snapshot(snapshot) = self.tally.served() else {
            anyhow::bail!("nothing is served");
        };
        Ok(json!({
            "exact_s": spread(times.exact),
            "whole_s": spread(times.whole),
            "sums_on_disk_s": spread(times.kept),
            "refold_s": refold,
            "snapshot_bytes": snapshot.bytes.len(),
            "people_left": status.people,
            "counting_left": status.counting,
            "waiting": status.waiting,
        }))
    }
}

#[derive(Default)]
struct Times {
    exact: Vec<f64>,
    whole: Vec<f64>,
    kept: Vec<f64>,
}

fn spread(mut all: Vec<f64>) -> Value {
    all.sort_by(f64::total_cmp);
    let at = |p: f64| all.get(((all.len().max(1) - 1) as f64 * p).round() as usize);
    json!({ "n": all.len(), "p50": at(0.5), "p99": at(0.99), "max": all.last() })
}

fn handle(person: u32) -> Handle {
    let seed = Seed::from_u64(1).derive("handle", &[&person.to_le_bytes()]);
    let mut out = [0; 16];
    out.copy_from_slice(&seed.0[..16]);
    Handle(out)
}

fn drawn(people: u32, count: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..people).collect();
    let seed = Seed::from_u64(1).derive("leavers", &[]);
    seed.rng().shuffle(&mut order);
    order.truncate(count);
    order
}

fn movielens(args: &Args) -> anyhow::Result<Value> {
    let home = lethe_assets::default_home()?;
    let files = lethe_assets::fetch(&home, &mut eprint_line)?;
    let encoder = match args.no_encoder {
        true => None,
        false => Some(lethe_assets::fetch_encoder(&home, &mut eprint_line)?),
    };
    let world = World::open(
        "movielens-100k",
        &files.movielens,
        "movie",
        encoder.as_deref(),
    )?;
    // The last two events of everybody are for HR@10.
    let newest = |events: &Vec<lethe_parts::event::Event>| {
        let seen = &events[..events.len().saturating_sub(2)];
        let read = Interaction::read(seen, &world.meaning);
        read[read.len().saturating_sub(CLIP)..].to_vec()
    };
    let all: Vec<Vec<Interaction>> = world.histories.iter().map(newest).collect();
    let times = world.histories.iter().flatten().map(|e| e.time);
    let last_day = day_of(times.max().context("no event")?);
    let bench = Bench::new(args, world.content.clone(), last_day)?;
    let began = Instant::now();
    bench.fill(&all)?;
    let filled = began.elapsed().as_secs_f64();
    bench.tally.publish(bench.day(), bench.now)?;
    let leavers = drawn(all.len() as u32, args.deletions);
    let staying = Staying::new(&world, &leavers)?;
    let before = staying.hits(&world, &bench.tally)?;
    eprint_line(&format!("{} people, {} leave", all.len(), leavers.len()));
    let times = bench.delete(&leavers)?;
    let mut out = bench.figures(times)?;
    out["contribute_all_s"] = json!(filled);
    out["hr10_before"] = json!(before);
    out["hr10_after"] = json!(staying.hits(&world, &bench.tally)?);
    Ok(out)
}

/// Next items of those who stay. What was met lately on their days is counted over all of them:
/// the tally tells nobody its sums.
struct Staying {
    targets: Vec<Target>,
    sums: Sums,
}

impl Staying {
    fn new(world: &World, leavers: &[u32]) -> anyhow::Result<Self> {
        let stays = |person: &usize| !leavers.contains(&(*person as u32));
        let of_all = targets(world, Event::Test);
        ensure!(
            of_all.len() == world.histories.len(),
            "somebody has too few events"
        );
        let all = training(world, CLIP)?;
        let people = 0..all.len();
        let kept: Vec<_> = people.filter(stays).map(|p| all[p].clone()).collect();
        let targets = (0..).zip(of_all).filter(|t| stays(&t.0)).map(|t| t.1);
        Ok(Self {
            targets: targets.collect(),
            sums: sum(world.items(), &kept)?,
        })
    }

    /// HR@10 with what is served now.
    fn hits(&self, world: &World, tally: &Tally) -> anyhow::Result<f64> {
        let Served::Snapshot(snapshot) = tally.served() else {
            anyhow::bail!("nothing is served");
        };
        let mut fleet = Fleet {
            tables: decode(&snapshot.bytes)?,
            sums: &self.sums,
            content: &world.content,
            k: 3,
        };
        let variants = [Variant::composition("composition", Weights::PUBLIC)];
        let ranks = ranks(&mut fleet, &self.targets, &variants).remove(0);
        Ok(Ranking::of(&ranks).hr)
    }
}

fn many_items(args: &Args) -> anyhow::Result<Value> {
    let fleet = MadeUp::new(args.items);
    let meaning = lethe_parts::event::Meaning::default();
    let newest = |person: u32| {
        let read = Interaction::read(&fleet.events(person), &meaning);
        read[read.len().saturating_sub(CLIP)..].to_vec()
    };
    let all: Vec<Vec<Interaction>> = (0..args.people).map(newest).collect();
    let bench = Bench::new(args, fleet.content(), 1_000)?;
    let began = Instant::now();
    bench.fill(&all)?;
    let filled = began.elapsed().as_secs_f64();
    eprint_line(&format!("{} made-up people: {filled:.1} s", all.len()));
    bench.tally.publish(bench.day(), bench.now)?;
    let times = bench.delete(&drawn(args.people, args.made_up))?;
    let mut out = bench.figures(times)?;
    out["contribute_all_s"] = json!(filled);
    Ok(out)
}
