//! Samples that somebody suspects, in updates and in released adapters, before and after people
//! leave. The last layer alone is adapted: states below it are computed once per sample.

use std::collections::BTreeSet;

use anyhow::Context;
use lethe_assets::Files;
use lethe_benches::figures::Row;
use lethe_benches::lab::{Lab, eprint_line};
use lethe_learn::seed::Seed;
use lethe_model::lora::{Adapter, Projection};
use lethe_model::train::Sample;
use lethe_proto::packed::PackedFormat;

use super::blind::{many, name};
use super::people::People;
use super::pool::{Inputs, Likes, Pool, Suspicion, draw};
use super::rounds::{Rounds, central, federated, local, sent};
use super::stats::{Scores, apart, mean, whole_people};
use super::{DATA, lab};

/// How much is measured.
struct Size {
    /// People of the shard; as many never were in it, and as many are the attacker's own.
    people: usize,
    each: usize,
    /// People who leave together.
    gone: usize,
    /// People who leave one at a time.
    leavers: usize,
    /// Attacks of one kind on updates.
    attacks: usize,
    samples: &'static [usize],
    /// People and samples of each, of sums.
    cohorts: &'static [[usize; 2]],
    regimes: Vec<Regime>,
}

/// How an adapter was trained.
#[derive(Clone, Copy, Debug)]
enum Regime {
    Rounds(Rounds, &'static str),
    Passes(usize),
}

impl Regime {
    fn name(self) -> String {
        match self {
            Self::Rounds(_, name) => name.into(),
            Self::Passes(n) => format!("{n} passes of AdamW"),
        }
    }
}

const FORMATS: [PackedFormat; 4] = [
    PackedFormat::F32,
    PackedFormat::Int8,
    PackedFormat::Int4,
    PackedFormat::TopK(50),
];

impl Size {
    fn of(quick: bool) -> Self {
        let default = Regime::Rounds(Rounds::default_recipe(), "default recipe");
        if quick {
            return Self {
                people: 6,
                each: 4,
                gone: 2,
                leavers: 2,
                attacks: 6,
                samples: &[1, 4],
                cohorts: &[[4, 1]],
                regimes: vec![default, Regime::Passes(8)],
            };
        }
        let long = Rounds {
            rounds: 24,
            cohort: 8,
            samples: 8,
            batch: 2,
        };
        Self {
            people: 20,
            each: 10,
            gone: 5,
            leavers: 4,
            attacks: 20,
            samples: &[1, 2, 4, 10],
            cohorts: &[[4, 1], [16, 1], [4, 4], [16, 4]],
            regimes: vec![
                default,
                Regime::Rounds(long, "24 rounds of 8 by 8"),
                Regime::Passes(8),
            ],
        }
    }
}

struct World {
    lab: Lab,
    people: Vec<Vec<usize>>,
    base: Adapter,
    /// Numbers of people.
    members: Vec<usize>,
    outsiders: Vec<usize>,
    own: Vec<usize>,
    seed: Seed,
    run: u64,
}

impl World {
    fn train(&mut self, regime: Regime, present: &[usize]) -> anyhow::Result<Adapter> {
        let (lab, seed) = (&mut self.lab, self.seed);
        match regime {
            Regime::Rounds(rounds, _) => {
                federated(lab, &self.base, &self.people, present, rounds, &seed)
            }
            Regime::Passes(n) => central(lab, &self.base, &self.people, present, n, &seed),
        }
    }

    /// Losses of people's samples.
    fn losses(&mut self, adapter: &Adapter, of: &[usize]) -> anyhow::Result<Vec<Scores>> {
        let mut out = vec![];
        for person in of {
            let samples = self.lab.samples(&self.people[*person])?;
            let logits = self.lab.score(adapter, &samples)?;
            let loss = |(l, s): (&[f32; 2], &Sample)| {
                let toward = if s.label { l[1] - l[0] } else { l[0] - l[1] };
                (1.0 + f64::from(-toward).exp()).ln() as f32
            };
            out.push(logits.iter().zip(&samples).map(loss).collect());
        }
        Ok(out)
    }

    /// Gradients towards a label of these samples.
    fn gradients(
        &mut self,
        adapter: &Adapter,
        samples: &[usize],
        label: bool,
    ) -> anyhow::Result<Vec<Vec<f32>>> {
        let mut out = vec![];
        for s in samples {
            let row = Sample {
                label,
                ..self.lab.sample(*s)?
            };
            let found = self
                .lab
                .gradient(adapter, &[row], None, &mut BTreeSet::new())?;
            out.push(found.grads.data);
        }
        Ok(out)
    }
}

/// `a - b` of every sample.
fn less(a: &[Scores], b: &[Scores]) -> Vec<Scores> {
    let one = |(x, y): (&Scores, &Scores)| x.iter().zip(y).map(|(p, q)| p - q).collect();
    a.iter().zip(b).map(one).collect()
}

/// All rows of these attacks.
pub(super) fn measure(files: &Files, run: u64, quick: bool) -> anyhow::Result<Vec<Row>> {
    let size = Size::of(quick);
    let seed = Seed::from_u64(run).derive("leak-members", &[]);
    let data = lethe_recsys::data::load(
        &files.movielens,
        &lethe_recsys::data::DataSpec::of_folder(&files.movielens)?,
        false,
    )?;
    let people = People::draw(&data, 3 * size.people, size.each, &seed)?;
    let mut lab = lab(files, data, people.rows, Some(1))?;
    lab.prepare(usize::MAX)?;
    let base = Adapter::init(&lab.shape(8), &seed);
    let group = |k: usize| (k * size.people..(k + 1) * size.people).collect::<Vec<usize>>();
    let mut world = World {
        lab,
        people: people.of,
        base,
        members: group(0),
        outsiders: group(1),
        own: group(2),
        seed,
        run,
    };
    eprint_line("updates: suspected samples");
    let mut rows = confirm(&mut world, &size)?;
    for regime in &size.regimes {
        eprint_line(&format!("updates: members, {}", regime.name()));
        rows.extend(membership(&mut world, &size, *regime)?);
    }
    Ok(rows)
}

/// What a kind of attack on updates found.
#[derive(Default)]
struct Tally {
    named: Vec<f64>,
    labels: Vec<f64>,
    likes: Vec<f64>,
    guessed: Vec<f64>,
}

impl Tally {
    fn row(&self, name: String, run: u64) -> Row {
        let [named, error] = mean(&self.named);
        let mut row = Row::new("suspected samples in updates", DATA, name, run)
            .with("1 attacks", self.named.len() as f64)
            .with("2 named", named)
            .with("3 s.e.", error);
        for (figure, values) in [
            ("4 answers right", &self.labels),
            ("5 likes counted", &self.likes),
            ("6 likes guessed", &self.guessed),
        ] {
            if !values.is_empty() {
                row = row.with(figure, mean(values)[0]);
            }
        }
        row
    }
}

struct Attacker {
    pool: Pool,
    likes: Likes,
    /// Share of liked targets among the attacker's own.
    rate: f64,
    /// Samples of the pool, and where each stands in it: the same position.
    samples: Vec<usize>,
}

impl Attacker {
    /// How many of those who were there are the first suspects.
    fn names(&self, suspects: &[Suspicion], there: &[usize], tally: &mut Tally) {
        let n = there.len();
        let first: BTreeSet<usize> = suspects[..n.min(suspects.len())]
            .iter()
            .map(|s| self.samples[s.sample])
            .collect();
        let right = there.iter().filter(|s| first.contains(s)).count();
        tally.named.push(right as f64 / n as f64);
    }

    fn attack(&self, world: &World, update: &[f32], there: &[usize], tally: &mut Tally) {
        let n = there.len();
        let suspects = self.pool.suspects(update);
        self.names(&suspects, there, tally);
        let label = |s: usize| world.lab.rows[s].label;
        for s in &suspects[..n.min(suspects.len())] {
            let sample = self.samples[s.sample];
            if there.contains(&sample) {
                let same = (s.weight > 0.0) == label(sample);
                tally.labels.push(f64::from(u8::from(same)));
            }
        }
        let liked = there.iter().filter(|s| label(**s)).count();
        let exact = |count: usize| f64::from(u8::from(count == liked));
        tally.likes.push(exact(self.likes.count(update, n)));
        tally
            .guessed
            .push(exact((self.rate * n as f64).round() as usize));
    }
}

/// Samples of a pool in updates.
fn confirm(world: &mut World, size: &Size) -> anyhow::Result<Vec<Row>> {
    let members = world.members.clone();
    let default = Regime::Rounds(Rounds::default_recipe(), "");
    let start = world.train(default, &members)?;
    let of = |people: &[usize], world: &World| -> Vec<usize> {
        let own = people.iter().flat_map(|p| world.people[*p].clone());
        own.collect()
    };
    let mut samples = of(&world.members, world);
    samples.extend(of(&world.outsiders, world));
    let mut own = of(&world.own, world);
    own.truncate(100);
    let towards = world.gradients(&start, &samples, true)?;
    let yes = world.gradients(&start, &own, true)?;
    let no = world.gradients(&start, &own, false)?;
    let liked = own.iter().filter(|s| world.lab.rows[**s].label).count();
    let mut out = vec![];
    let mut sharp = None;
    for format in FORMATS {
        let lossy = format.lossy();
        let ridge = if lossy { 1e-2 } else { 1e-6 };
        let attacker = Attacker {
            pool: Pool::new(&towards, ridge)?,
            likes: Likes::new(&yes, &no),
            rate: liked as f64 / own.len().max(1) as f64,
            samples: samples.clone(),
        };
        for n in size.samples {
            let mut tally = Tally::default();
            for i in 0..size.attacks {
                let there = chosen(world, i, 1, *n);
                let update = local(&mut world.lab, &start, &there, *n)?;
                attacker.attack(world, &sent(&update, format)?, &there, &mut tally);
            }
            out.push(tally.row(format!("{}, {}", many(*n), name(format)), world.run));
        }
        if !lossy {
            sharp = Some(attacker);
        }
    }
    let attacker = sharp.context("f32 is a format")?;
    out.extend(steps(world, size, &attacker, &start, &towards)?);
    for [people, each] in size.cohorts {
        let mut tally = Tally::default();
        for i in 0..size.attacks {
            let there = chosen(world, i, *people, *each);
            let mut sum = vec![0.0; start.data.len()];
            for own in there.chunks(*each) {
                let update = local(&mut world.lab, &start, own, *each)?;
                sum.iter_mut().zip(&update).for_each(|(s, u)| *s += u);
            }
            // The fit does not care for the scale, the count of likes does.
            sum.iter_mut().for_each(|v| *v /= *people as f32);
            attacker.attack(world, &sum, &there, &mut tally);
        }
        let what = format!("sum of {people} people, {} each, f32", many(*each));
        out.push(tally.row(what, world.run));
    }
    Ok(out)
}

/// Several local steps: by least squares, and by the inputs of the layer.
fn steps(
    world: &mut World,
    size: &Size,
    attacker: &Attacker,
    start: &Adapter,
    towards: &[Vec<f32>],
) -> anyhow::Result<Vec<Row>> {
    let shape = start.shape().clone();
    let last = shape
        .entries()
        .iter()
        .find(|e| e.proj == Projection::Q)
        .context("query is not adapted")?;
    let a = shape.ranges(last).0;
    let rows: Vec<&[f32]> = towards.iter().map(|g| &g[a.clone()]).collect();
    let inputs = Inputs::new(&rows, last.fan_in);
    let mut fit = Tally::default();
    let mut spans = FORMATS.map(|f| (f, Tally::default()));
    for i in 0..size.attacks {
        let there = chosen(world, i, 1, 4);
        let update = local(&mut world.lab, start, &there, 1)?;
        attacker.attack(world, &update, &there, &mut fit);
        for (format, tally) in &mut spans {
            let seen = sent(&update, *format)?;
            let suspects = inputs.suspects(&seen[a.clone()], there.len());
            attacker.names(&suspects, &there, tally);
        }
    }
    let mut out = vec![fit.row("4 samples in 4 steps, f32".into(), world.run)];
    for (format, tally) in spans {
        let what = format!("4 samples in 4 steps, {}, by inputs", name(format));
        out.push(tally.row(what, world.run));
    }
    Ok(out)
}

/// Samples of members, person by person.
fn chosen(world: &World, attack: usize, people: usize, each: usize) -> Vec<usize> {
    let seed = world
        .seed
        .derive("attack", &[&(attack as u64).to_le_bytes()]);
    draw(world.members.len(), people, &seed)
        .into_iter()
        .flat_map(|p| {
            let own = &world.people[world.members[p]];
            draw(own.len(), each, &seed)
                .into_iter()
                .map(|i| own[i])
                .collect::<Vec<usize>>()
        })
        .collect()
}

/// Members of a shard by its released adapter, and who left by two of them.
fn membership(world: &mut World, size: &Size, regime: Regime) -> anyhow::Result<Vec<Row>> {
    let (members, outsiders, own) = (
        world.members.clone(),
        world.outsiders.clone(),
        world.own.clone(),
    );
    let base = world.base.clone();
    let whole = world.train(regime, &members)?;
    let shadow = world.train(regime, &own)?;
    let kept: Vec<usize> = members[..members.len() - size.gone].to_vec();
    let after = world.train(regime, &kept)?;
    let gone: Vec<usize> = members[kept.len()..].to_vec();
    let mut out = vec![];
    let views = [
        ("members", &members, &whole),
        ("leavers before", &gone, &whole),
        ("leavers after", &gone, &after),
    ];
    for (what, of, adapter) in views {
        let ins = world.losses(adapter, of)?;
        let outs = world.losses(adapter, &outsiders)?;
        for (how, reference) in [
            ("loss", None),
            ("base", Some(&base)),
            ("shadow", Some(&shadow)),
        ] {
            let [inside, outside] = match reference {
                None => {
                    let zero = |of: &[Scores]| -> Vec<Scores> {
                        of.iter().map(|o| vec![0.0; o.len()]).collect()
                    };
                    [less(&zero(&ins), &ins), less(&zero(&outs), &outs)]
                }
                Some(r) => [
                    less(&world.losses(r, of)?, &ins),
                    less(&world.losses(r, &outsiders)?, &outs),
                ],
            };
            let name = format!("{}, {what}, by {how}", regime.name());
            let [auc, error] = apart(&inside, &outside, &world.seed);
            let people = [whole_people(&inside), whole_people(&outside)];
            let [auc_people, error_people] = apart(&people[0], &people[1], &world.seed);
            out.push(
                Row::new("members of a released adapter", DATA, name, world.run)
                    .with("1 AUC of samples", auc)
                    .with("2 s.e.", error)
                    .with("3 AUC of people", auc_people)
                    .with("4 s.e. of people", error_people),
            );
        }
    }
    out.push(differences(world, size, regime, &whole)?);
    let rise = less(
        &world.losses(&after, &members)?,
        &world.losses(&whole, &members)?,
    );
    let [stayed, left] = [&rise[..kept.len()], &rise[kept.len()..]];
    let [auc, error] = apart(left, stayed, &world.seed);
    let people = [whole_people(left), whole_people(stayed)];
    let [auc_people, error_people] = apart(&people[0], &people[1], &world.seed);
    let name = format!("{}, {} leave together", regime.name(), left.len());
    out.push(
        Row::new("two adapters side by side", DATA, name, world.run)
            .with("1 leavers", left.len() as f64)
            .with("2 AUC of samples", auc)
            .with("3 s.e.", error)
            .with("6 of people", members.len() as f64)
            .with("8 AUC of people", auc_people)
            .with("9 s.e. of people", error_people),
    );
    Ok(out)
}

/// Two adapters side by side: whose losses rose most when one person left.
fn differences(
    world: &mut World,
    size: &Size,
    regime: Regime,
    whole: &Adapter,
) -> anyhow::Result<Row> {
    let members = world.members.clone();
    let before = world.losses(whole, &members)?;
    let (mut aucs, mut ranks, mut first) = (vec![], vec![], vec![]);
    for leaver in draw(members.len(), size.leavers, &world.seed) {
        let stay: Vec<usize> = members
            .iter()
            .copied()
            .filter(|p| *p != members[leaver])
            .collect();
        let after = world.train(regime, &stay)?;
        let rise = less(&world.losses(&after, &members)?, &before);
        let others: Vec<Scores> = (0..rise.len())
            .filter(|p| *p != leaver)
            .map(|p| rise[p].clone())
            .collect();
        aucs.push(apart(&rise[leaver..=leaver], &others, &world.seed)[0]);
        let people = whole_people(&rise);
        let own = people[leaver][0];
        let above = people.iter().filter(|p| p[0] > own).count();
        let same = people.iter().filter(|p| p[0] == own).count() - 1;
        ranks.push(1.0 + above as f64 + same as f64 / 2.0);
        first.push(f64::from(u8::from(above + same == 0)));
    }
    let name = format!("{}, one leaves", regime.name());
    let [auc, error] = mean(&aucs);
    let [rank, rank_error] = mean(&ranks);
    Ok(Row::new("two adapters side by side", DATA, name, world.run)
        .with("1 leavers", aucs.len() as f64)
        .with("2 AUC of samples", auc)
        .with("3 s.e.", error)
        .with("4 rank of the leaver", rank)
        .with("5 s.e. of the rank", rank_error)
        .with("6 of people", members.len() as f64)
        .with("7 named first", mean(&first)[0]))
}
