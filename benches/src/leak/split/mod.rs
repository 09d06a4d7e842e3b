//! What the host of the middle layers learns from what crosses the split, and what helps.
//! `docs/leaks-split.md` has the results.

use std::time::Instant;

use anyhow::Context;
use lethe_assets::Files;
use lethe_benches::figures::{Row, tables};
use lethe_benches::lab::{self, eprint_line};
use lethe_learn::seed::Seed;
use lethe_model::kernels::panels::Compute;
use lethe_model::layout::Layout;
use lethe_model::lora::Adapter;
use lethe_model::segment::Segment;
use lethe_model::source::{Merged, WeightSource, open};
use lethe_model::split::{DeviceModel, SplitSpec};
use lethe_proto::payload::WireFormat;
use lethe_recsys::prompt::Template;

mod answers;
mod bands;
mod host;
mod private;
mod probe;
mod school;
mod tap;
mod world;

use host::{Host, Lessons};
use school::School;
use tap::{Crossing, Echo, Noise, Tap};
use world::{Text, World};

const DATA: &str = "MovieLens-100K";
/// The product's split.
const SPLIT: SplitSpec = SplitSpec { k_in: 4, k_out: 1 };
const FORMATS: [WireFormat; 3] = [WireFormat::F32, WireFormat::F16, WireFormat::Int8];
const DELTA: f64 = 1e-5;
/// Made-up people that have taught the base, as in the other benches.
const PEOPLE: usize = 64;

pub(crate) fn measure(files: &Files, seed: u64, quick: bool) -> anyhow::Result<Vec<Row>> {
    let source = match quick {
        true => open(&files.model)?,
        false => taught(files)?,
    };
    let world = World::load(files, source, &Seed::from_u64(seed))?;
    let bench = Bench {
        files,
        world,
        run: seed,
        quick,
    };
    let mut rows = vec![];
    bench.all(&mut rows)?;
    bands::check(&rows)?;
    Ok(rows)
}

fn taught(files: &Files) -> anyhow::Result<Box<dyn WeightSource>> {
    let states = lethe_assets::default_home()?.join("unlearn").join("states");
    let data = lethe_recsys::data::load(
        &files.movielens,
        &lethe_recsys::data::DataSpec::of_folder(&files.movielens)?,
        false,
    )?;
    let template = Template::movie();
    lab::taught(
        &files.model,
        &data,
        template,
        PEOPLE,
        Compute::Bf16,
        &states,
    )
}

fn name(format: WireFormat) -> &'static str {
    match format {
        WireFormat::F32 => "f32",
        WireFormat::F16 => "f16",
        WireFormat::Int8 => "int8",
    }
}

/// Shares of what an attack finds.
#[derive(Default)]
struct Found {
    /// In how many prompts tokens and titles were looked for.
    prompts: [usize; 2],
    tokens: f64,
    guessed: f64,
    titles: f64,
}

struct Bench<'a> {
    files: &'a Files,
    world: World,
    run: u64,
    quick: bool,
}

impl Bench<'_> {
    fn all(&self, rows: &mut Vec<Row>) -> anyhow::Result<()> {
        let started = Instant::now();
        let mut shown = 0;
        // Long runs may be cut off: what is measured is on standard error at once.
        let mut done = |rows: &[Row]| {
            eprint_line(&tables(&rows[shown..]));
            eprint_line(&format!("{:.0} s", started.elapsed().as_secs_f64()));
            shown = rows.len();
        };
        self.states(rows)?;
        done(rows);
        self.answers(rows)?;
        done(rows);
        self.relay(rows)?;
        self.local(rows)?;
        done(rows);
        let clip = self.noise(rows)?;
        done(rows);
        if !self.quick {
            self.school(rows, clip)?;
            done(rows);
            self.private(rows)?;
            done(rows);
        }
        Ok(())
    }

    fn row(&self, what: &str, name: impl Into<String>) -> Row {
        Row::new("split", &format!("{DATA}: {what}"), name, self.run)
    }

    fn bottom(&self, k_in: usize) -> anyhow::Result<Segment> {
        let source = self.world.source.as_ref();
        Ok(Segment::load(source, 0..k_in, Compute::F32)?)
    }

    /// What arrives when a device scores these prompts, each in a pass of its own.
    fn arrived(
        &self,
        texts: &[Text],
        crossing: Crossing,
        k_in: usize,
        own: Option<&Adapter>,
    ) -> anyhow::Result<Vec<Vec<f32>>> {
        let split = SplitSpec { k_in, ..SPLIT };
        let device = DeviceModel::load(self.world.source.as_ref(), split, Compute::F32)?;
        let width = self.world.hidden();
        let seed = self.world.seed.derive("device", &[]);
        let mut tap = Tap::new(Echo, crossing, width, &seed);
        for text in texts {
            let (layout, ids) = Layout::pack(std::slice::from_ref(&text.ids));
            device.score(&layout, &ids, self.world.encoder.answers, own, &mut tap)?;
        }
        Ok(tap.states.into_iter().map(|s| s.values).collect())
    }

    /// What an attacker finds in it: tokens in so many prompts, titles in so many.
    fn attack(
        &self,
        host: &Host<'_>,
        texts: &[Text],
        arrived: &[Vec<f32>],
        prompts: [usize; 2],
    ) -> anyhow::Result<Found> {
        let [tokens, titles] = prompts;
        let mut found = Found {
            prompts,
            ..Found::default()
        };
        for (text, seen) in texts.iter().zip(arrived).take(tokens) {
            let ids = host.tokens(seen, text.ids[0])?;
            let right = ids.iter().zip(&text.ids).skip(1).filter(|(a, b)| a == b);
            found.tokens += right.count() as f64 / (text.ids.len() - 1) as f64 / tokens as f64;
            found.guessed += host.guessed(seen, &text.ids) / tokens as f64;
        }
        for (text, seen) in texts.iter().zip(arrived).take(titles) {
            let named = host.titles(seen)?;
            // No prompt has a title twice.
            let right = text.titles.iter().filter(|t| named.contains(t));
            found.titles += right.count() as f64 / text.titles.len() as f64 / titles as f64;
        }
        Ok(found)
    }

    fn shown(&self, mut row: Row, found: &Found) -> Row {
        let [tokens, titles] = found.prompts;
        if tokens > 0 {
            row = row
                .with("1 tokens", found.tokens)
                .with("3 tokens, no layer run", found.guessed);
        }
        if titles > 0 {
            row = row.with("2 titles", found.titles);
        }
        row
    }

    /// Tokens and titles from states, by depth and number format.
    fn states(&self, rows: &mut Vec<Row>) -> anyhow::Result<()> {
        let (depths, n, titles): (&[usize], usize, usize) = match self.quick {
            true => (&[0, 4], 1, 1),
            false => (&[0, 1, 2, 4, 8], 4, 2),
        };
        let texts = self.world.victims(n)?;
        for k_in in depths {
            let bottom = self.bottom(*k_in)?;
            let lessons = Lessons::learn(&self.world, &bottom, None)?;
            for format in FORMATS {
                let crossing = Crossing::plain(format);
                let host = Host::new(&self.world, bottom.clone(), crossing, None, &lessons)?;
                let arrived = self.arrived(&texts, crossing, *k_in, None)?;
                let found = self.attack(&host, &texts, &arrived, [n, titles])?;
                let row = self.row("states", format!("k_in {k_in}, {}", name(format)));
                rows.push(self.shown(row, &found));
                eprint_line(&format!(
                    "k_in {k_in}, {}: {:.3}",
                    name(format),
                    found.tokens
                ));
            }
        }
        Ok(())
    }

    /// Answers from gradients.
    fn answers(&self, rows: &mut Vec<Row>) -> anyhow::Result<()> {
        let n = if self.quick { 6 } else { 24 };
        let texts = self.world.victims(n)?;
        let mut one = |k_out: usize, format| {
            let split = SplitSpec { k_out, ..SPLIT };
            let found = answers::measure(&self.world, &texts, split, format, None)?;
            let row = self.row("answers", format!("k_out {k_out}, {}", name(format)));
            rows.push(
                row.with("1 answers", found.right)
                    .with("2 smallest cosine", found.cosine)
                    .with("3 guessing", found.frequent),
            );
            anyhow::Ok(())
        };
        match self.quick {
            true => one(1, WireFormat::Int8)?,
            false => {
                for format in FORMATS {
                    one(1, format)?;
                }
                one(4, WireFormat::Int8)?;
            }
        }
        Ok(())
    }

    /// Prompts of several people in one pass, as a relay would mix them.
    fn relay(&self, rows: &mut Vec<Row>) -> anyhow::Result<()> {
        let people = if self.quick { 2 } else { 4 };
        let pairs = self.world.pairs(people)?;
        let sequences: Vec<Vec<u32>> = pairs.iter().map(|(_, t)| t.ids.clone()).collect();
        let device = DeviceModel::load(self.world.source.as_ref(), SPLIT, Compute::F32)?;
        let crossing = Crossing::plain(WireFormat::Int8);
        let width = self.world.hidden();
        let mut tap = Tap::new(Echo, crossing, width, &self.world.seed);
        let (layout, ids) = Layout::pack(&sequences);
        device.score(&layout, &ids, self.world.encoder.answers, None, &mut tap)?;
        let seen = tap.states.pop().context("nothing crossed")?;
        let bottom = self.bottom(SPLIT.k_in)?;
        let lessons = Lessons::learn(&self.world, &bottom, None)?;
        let host = Host::new(&self.world, bottom, crossing, None, &lessons)?;
        let shared = seen.layout.prefix as usize * width;
        let mut texts = vec![];
        let mut right = 0.0;
        for (run, ids) in seen
            .layout
            .runs()
            .iter()
            .filter(|r| r.context > 0)
            .zip(&sequences)
        {
            let own = &seen.values[run.start * width..(run.start + run.len) * width];
            let whole = [&seen.values[..shared], own].concat();
            let read = host.tokens(&whole, ids[0])?;
            let same = read.iter().zip(ids).skip(1).filter(|(a, b)| a == b);
            right += same.count() as f64 / (ids.len() - 1) as f64;
            texts.push(read);
        }
        let linked = (0..texts.len()).filter(|i| {
            let others = (0..texts.len()).filter(|j| j != i);
            let like = |j: &usize| overlap(&texts[*i], &texts[*j]);
            let nearest = others.max_by(|a, b| like(a).total_cmp(&like(b)));
            nearest.is_some_and(|j| pairs[j].0 == pairs[*i].0)
        });
        let n = texts.len() as f64;
        let row = self.row(
            "mixed batches",
            format!("{people} people, two prompts each, int8"),
        );
        rows.push(
            row.with("1 tokens", right / n)
                .with("2 prompts linked by their texts", linked.count() as f64 / n)
                .with("3 linked by chance", 1.0 / (n - 1.0)),
        );
        Ok(())
    }

    /// All layers on the device: what crosses, and what it takes.
    fn local(&self, rows: &mut Vec<Row>) -> anyhow::Result<()> {
        let layers = self.world.source.config().layers;
        let whole = SplitSpec {
            k_in: layers - SPLIT.k_out,
            k_out: SPLIT.k_out,
        };
        let all: &[(&str, SplitSpec, Compute)] = &[
            ("split 4 + 1, f32", SPLIT, Compute::F32),
            ("local, f32", whole, Compute::F32),
            ("local, bf16", whole, Compute::Bf16),
            ("local, int8", whole, Compute::Int8),
        ];
        let texts = self.world.victims(if self.quick { 1 } else { 4 })?;
        for (what, split, compute) in all {
            if self.quick && *compute == Compute::Bf16 {
                continue;
            }
            let device = DeviceModel::load(self.world.source.as_ref(), *split, *compute)?;
            let crossing = Crossing::plain(WireFormat::F32);
            let width = self.world.hidden();
            let mut tap = Tap::new(Echo, crossing, width, &self.world.seed);
            let mut times = vec![];
            for text in &texts {
                let (layout, ids) = Layout::pack(std::slice::from_ref(&text.ids));
                let started = Instant::now();
                let answers = self.world.encoder.answers;
                device.score(&layout, &ids, answers, None, &mut tap)?;
                times.push(started.elapsed().as_secs_f64());
            }
            times.sort_by(f64::total_cmp);
            let crossed = tap.bytes as f64 / texts.len() as f64;
            rows.push(
                self.row("local", *what)
                    .with("1 bytes over the split, a prompt", crossed)
                    .with("2 MB of weights", device.weight_bytes() as f64 / 1e6)
                    .with("3 ms on the device, a prompt", 1e3 * times[times.len() / 2]),
            );
        }
        Ok(())
    }

    /// Noise on states, in multiples of their root mean square; the length to which rows are
    /// clipped.
    fn noise(&self, rows: &mut Vec<Row>) -> anyhow::Result<f32> {
        let (tokens, titles, factors): (usize, usize, &[f32]) = match self.quick {
            true => (0, 1, &[3.0]),
            false => (1, 2, &[0.3, 1.0, 3.0, 10.0, 30.0]),
        };
        let texts = self.world.victims(titles)?;
        let bottom = self.bottom(SPLIT.k_in)?;
        let lessons = Lessons::learn(&self.world, &bottom, None)?;
        for factor in factors {
            let crossing = noisy(lessons.norm, *factor, self.world.hidden());
            let host = Host::new(&self.world, bottom.clone(), crossing, None, &lessons)?;
            let arrived = self.arrived(&texts, crossing, SPLIT.k_in, None)?;
            let found = self.attack(&host, &texts, &arrived, [tokens, titles])?;
            let length = texts.iter().map(|t| t.ids.len()).sum::<usize>() / texts.len();
            let epsilon = crossing
                .noise
                .map_or(f64::INFINITY, |n| n.epsilon(length, DELTA));
            let row = self.row("noise", format!("{factor} times the states"));
            rows.push(
                self.shown(row, &found)
                    .with("4 epsilon of a prompt", epsilon),
            );
        }
        Ok(lessons.norm)
    }

    /// What defences cost in AUC.
    fn school(&self, rows: &mut Vec<Row>, clip: f32) -> anyhow::Result<()> {
        let school = School::new(&self.world, self.world.source.as_ref(), SPLIT)?;
        let plain = Crossing::plain(WireFormat::F32);
        let mut one = |name: String, crossing: Crossing, last_layers| {
            let auc = school.auc(crossing, last_layers)?;
            eprint_line(&format!("{name}: AUC {auc:.3}"));
            rows.push(self.row("cost", name).with("1 AUC", auc));
            anyhow::Ok(())
        };
        one(
            "the last two layers trained, one of the middle's".into(),
            plain,
            2,
        )?;
        one("the device's last layer only trained".into(), plain, 1)?;
        one(
            "the same, int8".into(),
            Crossing::plain(WireFormat::Int8),
            1,
        )?;
        let width = self.world.hidden();
        for factor in [1.0, 3.0, 10.0] {
            let name = format!("the same, f32, noise {factor} times the states");
            one(name, noisy(clip, factor, width), 1)?;
        }
        let strong = Noise::of_epsilon(clip, 8.0, 285, DELTA);
        // In multiples of the states, too.
        let factor = strong.sigma / (clip / (width as f32).sqrt());
        let crossing = Crossing {
            noise: Some(strong),
            ..plain
        };
        let name = format!("the same, noise of epsilon 8 ({factor:.0} times the states)");
        one(name, crossing, 1)
    }

    /// Layers of the device's own, public weights against them, and weights that were fitted.
    fn private(&self, rows: &mut Vec<Row>) -> anyhow::Result<()> {
        let k_in = SPLIT.k_in;
        let crossing = Crossing::plain(WireFormat::F16);
        let school = School::new(&self.world, self.world.source.as_ref(), SPLIT)?;
        let own = school.private(crossing)?;
        drop(school);
        let texts = self.world.victims(2)?;
        let bottom = self.bottom(k_in)?;
        let lessons = Lessons::learn(&self.world, &bottom, None)?;
        let public = Host::new(&self.world, bottom.clone(), crossing, None, &lessons)?;
        let untouched = self.arrived(&texts, crossing, k_in, None)?;
        for strength in [1.0, 30.0] {
            let mine = private::amplified(&own, k_in, strength);
            let arrived = self.arrived(&texts, crossing, k_in, Some(&mine))?;
            let found = self.attack(&public, &texts, &arrived, [2, 2])?;
            let fitting = self.fitted_attack(&bottom, &texts, &arrived)?;
            let changed = Box::new(Merged::new(taught(self.files)?, mine)?);
            let auc = School::new(&self.world, changed.as_ref(), SPLIT)?
                .auc(Crossing::plain(WireFormat::F32), 1)?;
            let row = self.row("private layers", format!("strength {strength}"));
            rows.push(
                self.shown(row, &found)
                    .with("0 change of the states", change(&arrived, &untouched))
                    .with("4 tokens, fitted", fitting.tokens)
                    .with("5 titles, fitted", fitting.titles)
                    .with("6 AUC", auc),
            );
            eprint_line(&format!("strength {strength}: AUC {auc:.3}"));
        }
        let split = SPLIT;
        let texts = self.world.victims(24)?;
        let found = answers::measure(&self.world, &texts, split, WireFormat::F16, Some(&own))?;
        rows.push(
            self.row("answers", "k_out 1, f16, last layer trained in private")
                .with("1 answers", found.right)
                .with("2 smallest cosine", found.cosine)
                .with("3 guessing", found.frequent),
        );
        Ok(())
    }

    /// The attack with an adapter fitted to the template's states, and then to what that gave.
    fn fitted_attack(
        &self,
        bottom: &Segment,
        texts: &[Text],
        arrived: &[Vec<f32>],
    ) -> anyhow::Result<Found> {
        let width = self.world.hidden();
        let crossing = Crossing::plain(WireFormat::F16);
        let head = self
            .world
            .tokenizer
            .encode(self.world.frame.head.trim_end())?;
        let mut known: Vec<(Vec<u32>, Vec<f32>)> = arrived
            .iter()
            .map(|seen| (head.clone(), seen[..head.len() * width].to_vec()))
            .collect();
        for last in [false, true] {
            let adapter = private::fitted(&self.world, bottom, &known)?;
            let lessons = Lessons::learn(&self.world, bottom, Some(&adapter))?;
            let host = Host::new(
                &self.world,
                bottom.clone(),
                crossing,
                Some(adapter),
                &lessons,
            )?;
            if last {
                return self.attack(&host, texts, arrived, [texts.len(); 2]);
            }
            known = texts
                .iter()
                .zip(arrived)
                .map(|(text, seen)| Ok((host.tokens(seen, text.ids[0])?, seen.clone())))
                .collect::<anyhow::Result<_>>()?;
        }
        Ok(Found::default())
    }
}

fn noisy(clip: f32, factor: f32, width: usize) -> Crossing {
    Crossing {
        format: WireFormat::F32,
        noise: Some(Noise {
            clip,
            sigma: factor * clip / (width as f32).sqrt(),
        }),
    }
}

/// How far states moved, relative to their size; first rows left out.
fn change(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let mut moved = 0.0;
    let mut size = 0.0;
    for (x, y) in a.iter().flatten().zip(b.iter().flatten()) {
        moved += f64::from((x - y) * (x - y));
        size += f64::from(y * y);
    }
    (moved / size).sqrt()
}

/// Share of neighbouring pairs of tokens that two texts have in common.
fn overlap(a: &[u32], b: &[u32]) -> f64 {
    let pairs = |ids: &[u32]| {
        ids.windows(2)
            .map(|w| (w[0], w[1]))
            .collect::<std::collections::BTreeSet<_>>()
    };
    let (a, b) = (pairs(a), pairs(b));
    a.intersection(&b).count() as f64 / a.union(&b).count().max(1) as f64
}
