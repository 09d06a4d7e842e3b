//! Histories from two published snapshots: the one before a person leaves, and the one after.
//!
//! The cell that loses somebody is dissolved, so the difference is of all its members. The attacker
//! decodes both snapshots as a device does. A history counts as recovered when the attacker ranks
//! items so that at least half of the person's items (without those that were known) stand in a
//! beginning of the ranking of which nine of ten are right. The attacker gets the best beginning.

use std::collections::BTreeSet;

use lethe_assets::Files;
use lethe_benches::figures::{Band, Row};
use lethe_benches::lists::world::World;
use lethe_learn::seed::Seed;
use lethe_parts::contribution::Contribution;
use lethe_parts::snapshot::{Packing, RowPacking, decode, encode};
use lethe_parts::solve::{Settings, solve};
use lethe_parts::sums::Sums;
use lethe_parts::tables::Tables;

mod attack;
mod days;
mod evidence;
mod fleet;
mod price;
mod view;

use attack::{Case, Trust, of_sums, without_others};
use days::{AGES, Ages, Days, normalised};
use evidence::{Counts, Evidence, Ratios, candidates};
use fleet::{Fleet, known};
use view::{Change, View};

/// Precision that a recovered history has.
const PRECISION: f64 = 0.9;
/// Share of a history that must be named.
const RECALL: f64 = 0.5;
/// Numbers of items with days that the attacker knows.
const KNOWN: [usize; 3] = [2, 4, 8];
/// Members of a cell that are attacked, at most.
const TARGETS: usize = 32;
/// Items that guesses of anybody's history grow out of, at most.
const GROWN: usize = 150;

/// What the small form must find again. It attacks 48 people: a standard error is up to .07.
pub(crate) const BANDS: [Band; 4] = [
    // Two and a half standard errors of the small form's 48 people.
    band("03 four", 0.13),
    band("04 eight", 0.13),
    band("05 all others", 0.02),
    band("09 sums: has met an item alone", 0.05),
];

const fn band(figure: &'static str, width: f64) -> Band {
    Band {
        section: "snapshots: histories recovered",
        name: "n 16, k 3, 5 bits",
        figure,
        width,
    }
}

/// How tables reach the attacker.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// In a snapshot, with so many bits a value.
    Packed(u32),
    /// Whole: every entry, single precision.
    Exact,
}

/// One setting that is attacked.
#[derive(Clone, Copy)]
struct Setting {
    size: usize,
    k: u64,
    form: Form,
    /// Cells that are attacked.
    cells: usize,
    /// Cells that the attacker learns from.
    learnt: usize,
}

impl Setting {
    fn name(&self) -> String {
        let form = match self.form {
            Form::Packed(bits) => format!("{bits} bits"),
            Form::Exact => "whole tables".to_owned(),
        };
        format!("n {}, k {}, {form}", self.size, self.k)
    }
}

fn setting(size: usize, k: u64, form: Form) -> Setting {
    let cells = match size {
        0..=16 => 6,
        17..=32 => 4,
        33..=64 => 3,
        _ => 1,
    };
    Setting {
        size,
        k,
        form,
        cells,
        learnt: if size > 64 { 2 } else { 3 },
    }
}

/// All rows of one seed.
///
/// # Errors
/// Data that cannot be read, or sums that cannot be solved.
pub(crate) fn measure(files: &Files, seed: u64, quick: bool) -> anyhow::Result<Vec<Row>> {
    let world = World::open("movielens-100k", &files.movielens, "movie", None)?;
    let fleet = Fleet::of_world(&world)?;
    let mut rows = vec![];
    if quick {
        let small = Setting {
            cells: 3,
            learnt: 2,
            ..setting(16, 3, Form::Packed(5))
        };
        rows.extend(attacked(&fleet, small, seed)?);
        rows.push(price::measure(&world, &fleet, 16, 3, seed)?);
        return Ok(rows);
    }
    for size in [16, 32, 64, 128] {
        for k in [1, 3, 10] {
            rows.extend(attacked(&fleet, setting(size, k, Form::Packed(5)), seed)?);
        }
    }
    for size in [16, 64] {
        for form in [Form::Packed(8), Form::Exact] {
            rows.extend(attacked(&fleet, setting(size, 3, form), seed)?);
        }
    }
    for size in [16, 32, 64, 128] {
        for k in [1, 3, 10] {
            rows.push(price::measure(&world, &fleet, size, k, seed)?);
        }
    }
    drop(world);
    let larger = Fleet::made_up(10_000, 1_682)?;
    // The default of so many people: one of 64.
    for size in [16, 156] {
        let mut one = setting(size, 3, Form::Packed(5));
        one.cells = 3;
        rows.extend(attacked(&larger, one, seed)?);
    }
    Ok(rows)
}

/// What the attacker cannot learn from, and does not read: the item field, weights of unmet items.
fn settings(k: u64) -> Settings {
    Settings {
        k,
        rank: 0,
        field_items: 0,
        unseen: 0,
        ..Settings::default()
    }
}

fn published(sums: &Sums, fleet: &Fleet, setting: Setting) -> anyhow::Result<Tables> {
    let tables = solve(sums, &fleet.content, &settings(setting.k), fleet.day)?.tables;
    let Form::Packed(bits) = setting.form else {
        return Ok(tables);
    };
    let packing = Packing {
        rows: RowPacking {
            bits,
            ..Packing::default().rows
        },
        rank: 0,
        ..Packing::default()
    };
    Ok(decode(&encode(&tables, &packing)?)?)
}

/// A cell that is gone.
struct Gone {
    members: Vec<usize>,
    change: Change,
}

/// Everybody is folded; then one cell after the other is taken out, and put back.
fn dissolved(
    fleet: &Fleet,
    setting: Setting,
    cells: &[Vec<usize>],
    count: usize,
) -> anyhow::Result<Vec<Gone>> {
    let mut sums = Sums::new(fleet.items());
    for cell in cells {
        sums.fold_all(&fleet.of(cell))?;
    }
    let before = View::of(&published(&sums, fleet, setting)?);
    let exact = setting.form == Form::Exact;
    let mut out = vec![];
    for cell in &cells[..count] {
        let members = fleet.of(cell);
        sums.unfold_all(&members)?;
        let after = View::of(&published(&sums, fleet, setting)?);
        sums.fold_all(&members)?;
        out.push(Gone {
            members: cell.clone(),
            change: Change::new(&before, &after, setting.k, exact),
        });
    }
    Ok(out)
}

/// Ages of everybody's encounters, on the day of the snapshots.
fn ages(fleet: &Fleet) -> Ages {
    let mut out = vec![0.0; AGES];
    for person in &fleet.people {
        for day in person.days() {
            let age = (fleet.day - 1 - day.0).max(0) as usize;
            out[age.min(AGES - 1)] += 1.0;
        }
    }
    normalised(out)
}

/// What came of attacks on several people.
#[derive(Clone, Default)]
struct Outcomes {
    recovered: Vec<f64>,
    recall: Vec<f64>,
}

impl Outcomes {
    fn add(&mut self, recall: f64) {
        self.recall.push(recall);
        self.recovered.push(f64::from(u8::from(recall >= RECALL)));
    }

    fn share(&self) -> f64 {
        mean(&self.recovered)
    }

    fn error(&self) -> f64 {
        let share = self.share();
        (share * (1.0 - share) / self.recovered.len().max(1) as f64).sqrt()
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The largest share of a history that stands in a beginning of the ranking of enough precision.
/// What was known counts neither as found nor as missed.
fn recall(ranking: impl Iterator<Item = u32>, history: &[u32], known: &[u32]) -> f64 {
    let wanted: BTreeSet<u32> = history.iter().copied().collect();
    let wanted: BTreeSet<u32> = wanted
        .difference(&known.iter().copied().collect())
        .copied()
        .collect();
    let mut right = 0usize;
    let mut best = 0usize;
    for (at, item) in ranking.filter(|i| !known.contains(i)).enumerate() {
        right += usize::from(wanted.contains(&item));
        if right as f64 >= PRECISION * (at + 1) as f64 {
            best = right;
        }
    }
    best as f64 / wanted.len().max(1) as f64
}

/// Targets of a cell: every member, or the first of them. The difference is the same whoever left.
fn targets(members: &[usize]) -> &[usize] {
    &members[..members.len().min(TARGETS)]
}

/// What the attacker has learnt from cells that it knows.
struct Learnt {
    ratios: Ratios,
    trust: Trust,
    ages: Ages,
}

/// Likelihood ratios from all cells but the last, which decides how far they are trusted.
fn learn(fleet: &Fleet, setting: Setting, gone: &[Gone], seed: &Seed) -> Learnt {
    let ages = ages(fleet);
    let mut counts = Counts::new();
    let (last, others) = match gone.split_last() {
        Some(both) => both,
        None => {
            return Learnt {
                ratios: counts.ratios(),
                trust: Trust::GRID[0],
                ages,
            };
        }
    };
    for one in others {
        let members = fleet.of(targets(&one.members));
        counts.add(&one.change, &candidates(&one.change), &members);
    }
    let ratios = counts.ratios();
    let evidence = Evidence::new(&last.change, &ratios);
    let days = Days::new(&last.change, &evidence.candidates, &ages);
    let case = Case {
        change: &last.change,
        evidence: &evidence,
        days: &days,
        size: setting.size,
        today: fleet.day,
    };
    let found = |trust: Trust| -> f64 {
        let of = |person: &usize| {
            let history = &fleet.people[*person];
            with_known(&case, history, 4, trust, &person_seed(seed, *person))
        };
        let all: Vec<f64> = targets(&last.members).iter().map(of).collect();
        mean(&all)
    };
    let mut best = (f64::NEG_INFINITY, Trust::GRID[0]);
    for trust in Trust::GRID {
        let value = found(trust);
        if value > best.0 {
            best = (value, trust);
        }
    }
    Learnt {
        ratios,
        trust: best.1,
        ages,
    }
}

fn person_seed(seed: &Seed, person: usize) -> Seed {
    seed.derive("known", &[&(person as u64).to_le_bytes()])
}

/// Recall of somebody who knows `count` items and days of a person.
fn with_known(
    case: &Case<'_>,
    person: &Contribution,
    count: usize,
    trust: Trust,
    seed: &Seed,
) -> f64 {
    let known = known(person, count, seed);
    let guess = case.expand(&known, trust);
    let items: Vec<u32> = known.iter().map(|k| k.item).collect();
    let candidates = &case.evidence.candidates;
    let ranking = guess.ranking.iter().map(|p| candidates[*p] as u32);
    recall(ranking, person.distinct(), &items)
}

/// Every attack on one setting.
fn attacked(fleet: &Fleet, setting: Setting, seed: u64) -> anyhow::Result<Vec<Row>> {
    let cells = fleet.cells(setting.size, seed);
    // The attacker learns from one cell at least, and one decides how far to trust that.
    let learnt = (setting.learnt + 1).min(cells.len().saturating_sub(1));
    let count = (learnt + setting.cells).min(cells.len());
    anyhow::ensure!(
        learnt >= 2,
        "{}: {} cells, expected 3 at least; choose smaller cells",
        setting.name(),
        cells.len()
    );
    let gone = dissolved(fleet, setting, &cells, count)?;
    let (known_cells, attacked) = gone.split_at(learnt);
    let seed_known = Seed::from_u64(seed);
    let knowledge = learn(fleet, setting, known_cells, &seed_known);
    let mut found = Found::default();
    for one in attacked {
        found.cell(fleet, setting, one, &knowledge, &seed_known);
    }
    Ok(found.rows(fleet, setting, seed))
}

/// Outcomes of all attacks.
#[derive(Default)]
struct Found {
    nothing: Outcomes,
    known: [Outcomes; KNOWN.len()],
    others: Outcomes,
    anybody: Outcomes,
    members: Outcomes,
    sums: Outcomes,
    alone: Outcomes,
    candidates: Vec<f64>,
}

impl Found {
    fn cell(&mut self, fleet: &Fleet, setting: Setting, gone: &Gone, learnt: &Learnt, seed: &Seed) {
        let evidence = Evidence::new(&gone.change, &learnt.ratios);
        let days = Days::new(&gone.change, &evidence.candidates, &learnt.ages);
        let case = Case {
            change: &gone.change,
            evidence: &evidence,
            days: &days,
            size: setting.size,
            today: fleet.day,
        };
        self.candidates.push(evidence.candidates.len() as f64);
        let everybody = fleet.of(&gone.members);
        for person in targets(&gone.members) {
            let own = &fleet.people[*person];
            let seed = person_seed(seed, *person);
            for (outcome, count) in self.known.iter_mut().zip(KNOWN) {
                outcome.add(with_known(&case, own, count, learnt.trust, &seed));
            }
            let others = gone.members.iter().filter(|m| *m != person);
            let others = fleet.of(&others.copied().collect::<Vec<_>>());
            let ranking = without_others(&gone.change, &others, setting.k);
            self.others
                .add(recall(ranking.into_iter(), own.distinct(), &[]));
            let four = known(own, 4, &seed);
            let items: Vec<u32> = four.iter().map(|k| k.item).collect();
            let ranking = of_sums(&everybody, fleet.items(), &four);
            self.sums
                .add(recall(ranking.into_iter(), own.distinct(), &items));
            let elsewhere: BTreeSet<u32> = others
                .iter()
                .flat_map(|c| c.distinct().iter().copied())
                .collect();
            let is_alone = own.distinct().iter().any(|i| !elsewhere.contains(i));
            self.alone.add(f64::from(u8::from(is_alone)));
        }
        self.anybodys(&case, &everybody, learnt.trust);
    }

    /// Guesses of histories of whoever is in the cell.
    fn anybodys(&mut self, case: &Case<'_>, members: &[Contribution], trust: Trust) {
        let candidates = &case.evidence.candidates;
        let all = case.anybody(trust, GROWN);
        let mut best = vec![0.0f64; members.len()];
        for (at, grown) in all.iter().enumerate() {
            let first = candidates[grown.place] as u32;
            for (member, best) in members.iter().zip(&mut best) {
                let rest = grown.ranking.iter().map(|p| candidates[*p] as u32);
                let ranking = std::iter::once(first).chain(rest);
                let recall = recall(ranking, member.distinct(), &[]);
                *best = best.max(recall);
                if at == 0 {
                    // Whoever of the cell has left: it is each of them with the same chance.
                    self.nothing.add(recall);
                }
            }
            if at == 0 {
                self.anybody.add(best.iter().copied().fold(0.0, f64::max));
            }
        }
        if all.is_empty() {
            self.anybody.add(0.0);
            members.iter().for_each(|_| self.nothing.add(0.0));
        }
        best.into_iter().for_each(|b| self.members.add(b));
    }

    fn rows(&self, fleet: &Fleet, setting: Setting, seed: u64) -> Vec<Row> {
        let [two, four, eight] = &self.known;
        let all = [
            ("01 nothing", &self.nothing),
            ("02 two", two),
            ("03 four", four),
            ("04 eight", eight),
            ("05 all others", &self.others),
            ("06 anybody", &self.anybody),
            ("07 members that a guess recovers", &self.members),
            ("08 sums, four", &self.sums),
        ];
        let name = setting.name();
        let mut recovered = Row::new("snapshots: histories recovered", &fleet.name, &name, seed);
        let mut recall = Row::new(
            "snapshots: recall at precision .9",
            &fleet.name,
            &name,
            seed,
        );
        for (figure, outcomes) in all {
            recovered = recovered.with(figure, outcomes.share());
            recall = recall.with(figure, mean(&outcomes.recall));
        }
        let recovered = recovered
            .with("09 sums: has met an item alone", self.alone.share())
            .with("10 standard error, four", four.error())
            .with("11 people", four.recovered.len() as f64);
        let recall = recall.with("09 items in the difference", mean(&self.candidates));
        vec![recovered, recall]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recall_is_that_of_the_best_beginning_and_ignores_what_was_known() {
        let history: Vec<u32> = (0..20).collect();
        let right = (0..10).chain(100..140);
        assert_eq!(recall(right, &history, &[]), 0.5);
        let wrong = (100..140).chain(0..20);
        assert_eq!(recall(wrong, &history, &[]), 0.0);
        // One of eleven may be wrong, not two of eleven.
        let mixed = (0..5).chain([100]).chain(5..10);
        assert_eq!(recall(mixed, &history, &[]), 0.5);
        let mixed = (0..5).chain([100, 101]).chain(5..10);
        assert_eq!(recall(mixed, &history, &[]), 0.25);
        assert_eq!(recall(0..10, &history, &[0, 1]), 8.0 / 18.0);
    }

    /// Thirty-two made-up people in two cells: who knows all others of a cell knows the person.
    #[test]
    fn who_knows_all_others_recovers_what_counts() {
        let fleet = Fleet::made_up(200, 120).expect("a fleet");
        let one = Setting {
            cells: 1,
            learnt: 2,
            ..setting(16, 1, Form::Packed(5))
        };
        let cells = fleet.cells(16, 1);
        assert_eq!(cells.len(), 9, "200 people: 56 wait");
        let gone = dissolved(&fleet, one, &cells, 1).expect("solved");
        let person = gone[0].members[3];
        let others: Vec<usize> = gone[0]
            .members
            .iter()
            .copied()
            .filter(|m| *m != person)
            .collect();
        let own = &fleet.people[person];
        let found = without_others(&gone[0].change, &fleet.of(&others), 1);
        assert_eq!(found, own.distinct());
        let rows = attacked(&fleet, one, 1).expect("attacked");
        let figures = &rows[0].figures;
        assert_eq!(figures["05 all others"], 1.0);
        assert!(
            figures["08 sums, four"] >= figures["03 four"],
            "sums say more than tables"
        );
    }
}
