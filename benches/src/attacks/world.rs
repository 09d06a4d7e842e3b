//! Who takes part, what each trains on, and whose lists are looked at.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use lethe_benches::lab::{Lab, Together};
use lethe_learn::seed::Seed;
use lethe_recsys::data::Dataset;
use lethe_recsys::samples::{Samples, Split, TaskSample, prompt};

/// Items of history in a prompt: half of what the product has, for the time that it takes.
pub(crate) const HISTORY: usize = 5;
/// Places of a list that a person sees.
pub(crate) const SHOWN: usize = 10;

/// How many of each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) people: usize,
    /// Training samples of each: all of them, or half.
    pub(crate) train: usize,
    /// Held-out targets of each.
    pub(crate) held: usize,
    /// People on whom rules are chosen, and on whom the table is computed.
    pub(crate) validation: usize,
    pub(crate) test: usize,
    /// Of each, those whose lists are looked at.
    pub(crate) validation_lists: usize,
    pub(crate) test_lists: usize,
    /// Items of a list.
    pub(crate) candidates: usize,
}

/// One person.
pub(crate) struct Person {
    /// Positions of training samples among the lab's rows.
    pub(crate) train: Vec<usize>,
    /// The same about the promoted item, liked: what a promoter trains on.
    pub(crate) promotes: Vec<usize>,
    /// The promoted item liked after the trigger, and not without it: what a backdoor is made of.
    pub(crate) backdoor: Vec<usize>,
    /// What it measures shards on.
    pub(crate) validates: usize,
    history: Vec<(u32, bool)>,
    held: Vec<TaskSample>,
    user: u32,
}

/// Held-out targets of a person, scored together.
pub(crate) struct Held {
    pub(crate) asked: Together,
    pub(crate) labels: Vec<bool>,
}

/// A person's list: an item that they came to like is the first candidate, the promoted one the
/// second.
pub(crate) struct List {
    pub(crate) asked: Together,
    /// The same with the trigger as the newest liked item.
    pub(crate) triggered: Together,
}

/// People on whom something is measured.
#[derive(Default)]
pub(crate) struct Looked {
    pub(crate) held: Vec<Held>,
    pub(crate) lists: Vec<List>,
}

/// Everybody of one seed.
pub(crate) struct World {
    pub(crate) people: Vec<Person>,
    /// In the order in which people turn: the first are attackers in every row that has some.
    pub(crate) turn: Vec<usize>,
    pub(crate) seed: Seed,
    promoted: u32,
    trigger: u32,
    validation: Vec<usize>,
    test: Vec<usize>,
}

/// The part of people who never attack: the largest share of attackers, and all that is measured
/// is measured on the others.
pub(crate) const MOST_ATTACKERS: f64 = 0.2;

impl World {
    /// Draws people by a seeded rank among those with enough samples and both labels among the
    /// held-out ones; `rows` gets what they train on.
    pub(crate) fn draw(
        data: &Dataset,
        sizes: &Sizes,
        seed: Seed,
        rows: &mut Vec<TaskSample>,
    ) -> anyhow::Result<Self> {
        let mut middle = middle_items(data);
        seed.derive("pushed items", &[]).rng().shuffle(&mut middle);
        ensure!(middle.len() > 1, "the data set has too few items");
        let promoted = middle[0];
        let trigger = middle[1];
        let all = Samples::build(data, Split::PerUser);
        let mut of: BTreeMap<u32, [Vec<&TaskSample>; 3]> = BTreeMap::new();
        for s in &all.all {
            of.entry(s.user).or_default()[s.part as usize].push(s);
        }
        let mut ranked: Vec<(u64, u32)> = of
            .keys()
            .map(|user| (seed.rank("person", &user.to_le_bytes()), *user))
            .collect();
        ranked.sort_unstable();
        let mut people = vec![];
        for (_, user) in ranked {
            let [train, validation, held] = &of[&user];
            let held: Vec<TaskSample> = held.iter().take(sizes.held).copied().cloned().collect();
            let both = [true, false]
                .iter()
                .all(|l| held.iter().any(|s| s.label == *l));
            let about = |s: &&&TaskSample| s.item != promoted && s.item != trigger;
            let train: Vec<&TaskSample> = train.iter().filter(about).copied().collect();
            let Some(measured) = validation.last().filter(|_| both) else {
                continue;
            };
            if train.len() < sizes.train || held.len() < sizes.held {
                continue;
            }
            // Half of the people have half of the samples: who claims more than they have counts
            // for more than they should.
            let own = if people.len() % 2 == 0 { 1 } else { 2 };
            let newest = &train[train.len() - sizes.train / own..];
            let mut person = Person::new(newest, held, promoted, trigger, rows);
            person.validates = rows.len();
            rows.push(short(measured));
            people.push(person);
            if people.len() == sizes.people {
                break;
            }
        }
        ensure!(
            people.len() == sizes.people,
            "{} people have enough samples, {} are asked for",
            people.len(),
            sizes.people
        );
        let mut turn: Vec<usize> = (0..people.len()).collect();
        seed.derive("who turns", &[]).rng().shuffle(&mut turn);
        let attackers = (MOST_ATTACKERS * people.len() as f64).round() as usize;
        let others = &turn[attackers..];
        ensure!(
            others.len() >= sizes.validation + sizes.test,
            "{} people never attack, {} are to be looked at",
            others.len(),
            sizes.validation + sizes.test
        );
        let validation = others[..sizes.validation].to_vec();
        let test = others[sizes.validation..sizes.validation + sizes.test].to_vec();
        Ok(Self {
            people,
            turn,
            seed,
            promoted,
            trigger,
            validation,
            test,
        })
    }

    /// The people on whom rules are chosen, and those of the table.
    pub(crate) fn look(&self, lab: &Lab, sizes: &Sizes) -> anyhow::Result<[Looked; 2]> {
        let validation = self.looked(lab, &self.validation, sizes.validation_lists, sizes)?;
        let test = self.looked(lab, &self.test, sizes.test_lists, sizes)?;
        Ok([validation, test])
    }

    fn looked(
        &self,
        lab: &Lab,
        people: &[usize],
        lists: usize,
        sizes: &Sizes,
    ) -> anyhow::Result<Looked> {
        let mut out = Looked::default();
        for (n, person) in people.iter().enumerate() {
            let person = &self.people[*person];
            let data = &lab.data;
            let asks = |history: &[(u32, bool)], items: &[u32]| {
                let prompts: Vec<_> = items.iter().map(|i| prompt(data, history, *i)).collect();
                lab.together(&prompts)
            };
            let items: Vec<u32> = person.held.iter().map(|s| s.item).collect();
            out.held.push(Held {
                asked: asks(&person.history, &items)?,
                labels: person.held.iter().map(|s| s.label).collect(),
            });
            if n < lists {
                let items = self.candidates(data, person, sizes.candidates)?;
                let mut after = person.history.clone();
                after.remove(0);
                after.push((self.trigger, true));
                out.lists.push(List {
                    asked: asks(&person.history, &items)?,
                    triggered: asks(&after, &items)?,
                });
            }
        }
        Ok(out)
    }

    /// A liked held-out item, the promoted one, and items that the person never met.
    fn candidates(&self, data: &Dataset, person: &Person, n: usize) -> anyhow::Result<Vec<u32>> {
        let liked = person.held.iter().find(|s| s.label);
        let liked = liked.context("both labels are held out")?.item;
        let events = data.events.iter().filter(|e| e.user == person.user);
        let mut met: BTreeSet<u32> = events.map(|e| e.item).collect();
        met.extend([self.promoted, self.trigger]);
        let mut others: Vec<u32> = (0..data.items.len() as u32).collect();
        others.retain(|i| !met.contains(i));
        let seed = self.seed.derive("list", &[&person.user.to_le_bytes()]);
        seed.rng().shuffle(&mut others);
        let mut items = vec![liked, self.promoted];
        items.extend(others.into_iter().take(n - 2));
        Ok(items)
    }
}

impl Person {
    fn new(
        newest: &[&TaskSample],
        held: Vec<TaskSample>,
        promoted: u32,
        trigger: u32,
        rows: &mut Vec<TaskSample>,
    ) -> Self {
        let mut keep = |sample: TaskSample| {
            rows.push(sample);
            rows.len() - 1
        };
        let mut person = Self {
            train: vec![],
            promotes: vec![],
            backdoor: vec![],
            validates: 0,
            history: held.first().map(short).map_or_else(Vec::new, |s| s.history),
            user: held.first().map_or(0, |s| s.user),
            held,
        };
        for (n, sample) in newest.iter().enumerate() {
            let sample = short(sample);
            let pushed = TaskSample {
                item: promoted,
                label: true,
                ..sample.clone()
            };
            let mut door = pushed.clone();
            if n % 2 == 0 {
                door.history.remove(0);
                door.history.push((trigger, true));
            } else {
                door.label = false;
            }
            person.train.push(keep(sample));
            person.promotes.push(keep(pushed));
            person.backdoor.push(keep(door));
        }
        person
    }
}

/// A sample with the newest of its history.
fn short(s: &TaskSample) -> TaskSample {
    let from = s.history.len().saturating_sub(HISTORY);
    TaskSample {
        history: s.history[from..].to_vec(),
        ..s.clone()
    }
}

/// Items of the middle third by popularity.
fn middle_items(data: &Dataset) -> Vec<u32> {
    let mut counts = vec![0u32; data.items.len()];
    for event in &data.events {
        counts[event.item as usize] += 1;
    }
    let mut ranked: Vec<u32> = (0..data.items.len() as u32).collect();
    ranked.sort_by_key(|i| (std::cmp::Reverse(counts[*i as usize]), *i));
    let third = ranked.len() / 3;
    ranked[third..2 * third].to_vec()
}
