//! Rows of [`super::titles`]: all layers adapted, the host knows nothing but what is public.

use std::collections::BTreeSet;

use lethe_assets::Files;
use lethe_benches::figures::Row;
use lethe_benches::lab::{Lab, eprint_line};
use lethe_learn::aggregate::{clip, norm};
use lethe_learn::seed::Seed;
use lethe_model::lora::Adapter;
use lethe_proto::packed::PackedFormat;

use super::people::People;
use super::rounds::{Rounds, federated, local, one_step, sent};
use super::stats::mean;
use super::titles::Catalogue;
use super::{DATA, lab};

/// How much is measured.
struct Size {
    /// People whose updates are attacked.
    people: usize,
    /// Samples of each.
    each: usize,
    /// Other people, who trained the adapter before.
    before: usize,
    rounds: Rounds,
    /// Numbers of samples of an update.
    samples: &'static [usize],
    /// Numbers of people whose updates are added up; one sample each.
    cohorts: &'static [usize],
    /// Attacks of one kind.
    most: usize,
    formats: &'static [PackedFormat],
}

const FORMATS: [PackedFormat; 4] = [
    PackedFormat::F32,
    PackedFormat::Int8,
    PackedFormat::Int4,
    PackedFormat::TopK(50),
];

impl Size {
    fn of(quick: bool) -> Self {
        let rounds = Rounds::default_recipe();
        if quick {
            return Self {
                people: 2,
                each: 2,
                before: 2,
                rounds: Rounds {
                    rounds: 1,
                    cohort: 2,
                    samples: 1,
                    ..rounds
                },
                samples: &[1, 2],
                cohorts: &[2],
                most: 4,
                formats: &FORMATS[..2],
            };
        }
        Self {
            people: 4,
            each: 16,
            before: 6,
            rounds: Rounds {
                rounds: 3,
                ..rounds
            },
            samples: &[1, 2, 4, 16],
            cohorts: &[4, 16],
            most: 8,
            formats: &FORMATS,
        }
    }
}

/// A format as tables name it.
pub(super) fn name(format: PackedFormat) -> String {
    match format {
        PackedFormat::F32 => "f32".into(),
        PackedFormat::Int8 => "int8".into(),
        PackedFormat::Int4 => "int4".into(),
        PackedFormat::TopK(n) => format!("top {} %", f64::from(n) / 10.0),
        PackedFormat::Masked => "masked".into(),
    }
}

/// So many samples, as tables name them.
pub(super) fn many(n: usize) -> String {
    format!("{n} sample{}", if n == 1 { "" } else { "s" })
}

/// What an attack found of the titles that were there.
#[derive(Default)]
struct Tally {
    recall: Vec<f64>,
    precision: Vec<f64>,
    /// All titles, and no other.
    whole: Vec<f64>,
}

impl Tally {
    fn add(&mut self, found: &[usize], there: &BTreeSet<u32>) {
        let right = found
            .iter()
            .filter(|t| there.contains(&(**t as u32)))
            .count() as f64;
        let (found, there) = (found.len() as f64, there.len() as f64);
        self.recall.push(right / there);
        if found > 0.0 {
            self.precision.push(right / found);
        }
        self.whole
            .push(f64::from(u8::from(right == there && right == found)));
    }

    fn row(&self, name: String, run: u64) -> Row {
        let [recall, error] = mean(&self.recall);
        let row = Row::new("titles from updates", DATA, name, run)
            .with("1 attacks", self.recall.len() as f64)
            .with("2 recall", recall)
            .with("3 s.e.", error)
            .with("5 all and no other", mean(&self.whole)[0]);
        if self.precision.is_empty() {
            return row;
        }
        row.with("4 precision", mean(&self.precision)[0])
    }
}

/// Titles that these samples name.
fn titles(lab: &Lab, samples: &[usize]) -> BTreeSet<u32> {
    samples
        .iter()
        .flat_map(|s| {
            let row = &lab.rows[*s];
            row.history.iter().map(|h| h.0).chain([row.item])
        })
        .collect()
}

struct World<'a> {
    lab: &'a mut Lab,
    catalogue: Catalogue,
    start: Adapter,
    edge: Adapter,
    /// Gradient of the device's part for every sample.
    gradients: Vec<Vec<f32>>,
}

impl World<'_> {
    /// The change by one step on these samples, as the trainer averages them.
    fn change(&self, samples: &[usize]) -> Vec<f32> {
        let mut sum = vec![0.0; self.edge.data.len()];
        for s in samples {
            let part = self.gradients[*s].iter();
            sum.iter_mut().zip(part).for_each(|(a, g)| *a += g);
        }
        sum.iter_mut().for_each(|v| *v /= samples.len() as f32);
        one_step(&self.edge.data, &sum)
    }

    /// Attacks the sum of these changes, each as it is sent.
    fn attack(
        &self,
        changes: &[Vec<f32>],
        format: PackedFormat,
        samples: &[usize],
        tally: &mut Tally,
    ) -> anyhow::Result<()> {
        let mut sum = vec![0.0; self.edge.data.len()];
        for change in changes {
            let part = sent(change, format)?;
            sum.iter_mut().zip(part).for_each(|(a, v)| *a += v);
        }
        let most = 11 * samples.len();
        let senders = changes.len();
        let found = self
            .catalogue
            .titles_in(&self.edge, &sum, format, senders, most)?;
        tally.add(&found, &titles(self.lab, samples));
        Ok(())
    }
}

/// All rows of this attack.
pub(super) fn measure(files: &Files, seed: u64, quick: bool) -> anyhow::Result<Vec<Row>> {
    let size = Size::of(quick);
    let seeds = Seed::from_u64(seed).derive("leak-titles", &[]);
    let data = lethe_recsys::data::load(
        &files.movielens,
        &lethe_recsys::data::DataSpec::of_folder(&files.movielens)?,
        false,
    )?;
    let people = People::draw(&data, size.people + size.before, size.each, &seeds)?;
    let mut lab = lab(files, data, people.rows.clone(), None)?;
    let fresh = Adapter::init(&lab.shape(8), &seeds);
    let before: Vec<usize> = (size.people..size.people + size.before).collect();
    eprint_line("updates: rounds before the attacked one, all layers");
    let start = federated(&mut lab, &fresh, &people.of, &before, size.rounds, &seeds)?;
    let catalogue = Catalogue::read(&mut lab, &start)?;
    let mut gradients = vec![];
    eprint_line("updates: gradients of the attacked people");
    for s in people.of[..size.people].iter().flatten() {
        let row = lab.sample(*s)?;
        let found = lab.gradient(&start, &[row], None, &mut BTreeSet::new())?;
        gradients.push(lab.edge(&found.grads).data);
    }
    let edge = lab.edge(&start);
    let world = World {
        lab: &mut lab,
        catalogue,
        start,
        edge,
        gradients,
    };
    rows(world, &people, &size, seed, &fresh)
}

fn rows(
    world: World<'_>,
    people: &People,
    size: &Size,
    run: u64,
    fresh: &Adapter,
) -> anyhow::Result<Vec<Row>> {
    let attacked = &people.of[..size.people];
    let mut out = vec![];
    for format in size.formats {
        for n in size.samples {
            let mut tally = Tally::default();
            for i in 0..size.most {
                let own = &attacked[i % attacked.len()];
                let from = i / attacked.len() * n;
                let Some(samples) = own.get(from..from + n) else {
                    continue;
                };
                let change = world.change(samples);
                world.attack(&[change], *format, samples, &mut tally)?;
            }
            out.push(tally.row(format!("{}, {}", many(*n), name(*format)), run));
        }
    }
    // Only the sum is seen: what secure aggregation leaves.
    for cohort in size.cohorts {
        let mut tally = Tally::default();
        for i in 0..size.most / 2 {
            // As different people as there are; their samples are of different times.
            let one = |k: usize| attacked[k % attacked.len()].get(k / attacked.len() + 4 * i);
            let samples: Vec<usize> = (0..*cohort).filter_map(one).copied().collect();
            if samples.len() < *cohort {
                continue;
            }
            let changes: Vec<Vec<f32>> = samples.iter().map(|s| world.change(&[*s])).collect();
            world.attack(&changes, PackedFormat::F32, &samples, &mut tally)?;
        }
        out.push(tally.row(format!("sum of {cohort} people, 1 sample each, f32"), run));
    }
    let mut tally = Tally::default();
    for own in attacked {
        let mut change = world.change(&own[..1]);
        let half = norm(&change) / 2.0;
        clip(&mut change, half);
        world.attack(&[change], PackedFormat::F32, &own[..1], &mut tally)?;
    }
    out.push(tally.row("1 sample, f32, clipped to half".into(), run));
    steps(world, attacked, &mut out, run, fresh)?;
    Ok(out)
}

/// Several local steps, and the very first round.
fn steps(
    world: World<'_>,
    attacked: &[Vec<usize>],
    out: &mut Vec<Row>,
    run: u64,
    fresh: &Adapter,
) -> anyhow::Result<()> {
    let most = attacked.len().min(2);
    let many = attacked[0].len().min(4);
    let mut tally = Tally::default();
    for own in &attacked[..most] {
        let samples = &own[..many];
        let whole = local(world.lab, &world.start, samples, 1)?;
        let whole = Adapter::from_data(world.start.shape(), whole)?;
        let change = world.lab.edge(&whole).data;
        world.attack(&[change], PackedFormat::F32, samples, &mut tally)?;
    }
    out.push(tally.row(format!("{many} samples in {many} steps, f32"), run));
    let mut tally = Tally::default();
    let begins = world.lab.edge(fresh);
    for own in &attacked[..most] {
        let whole = local(world.lab, fresh, &own[..1], 1)?;
        let whole = Adapter::from_data(fresh.shape(), whole)?;
        let change = world.lab.edge(&whole).data;
        let found = world
            .catalogue
            .titles_in(&begins, &change, PackedFormat::F32, 1, 11)?;
        tally.add(&found, &titles(world.lab, &own[..1]));
    }
    out.push(tally.row("1 sample, f32, first round of all".into(), run));
    Ok(())
}
