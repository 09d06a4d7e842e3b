//! Epochs of adapters that roll while people come, leave and come back: each is trained on what
//! devices hold when it begins, and asked until the next is served.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context;
use lethe_benches::cpu_seconds;
use lethe_client::{Cutoffs, TrainingEvent};
use lethe_learn::seed::Seed;
use lethe_parts::event::Event;
use lethe_proto::ids::SubjectId;
use lethe_recipe::Recipe;
use lethe_recsys::prompt::Prompt;
use lethe_recsys::samples::HISTORY;
use rayon::prelude::*;
use serde::Serialize;

use super::crowd::{Crowd, Leaves, WEEK};
use super::data::Months;
use super::people::{Person, Standing};
use super::systems::Asks;

mod engine;
mod epoch;
mod figures;

pub(crate) use engine::Engine;
use engine::Prompted;
use epoch::{Epoch, Joins, Spent, Weighed};
pub(crate) use figures::{Weekly, json, weekly};

/// How adapters roll.
#[derive(Clone, Debug)]
pub(crate) struct Rolling {
    pub(crate) recipe: Recipe,
    /// `[roll] every_days` of the product's configuration.
    pub(crate) every_days: i32,
    /// The first epoch waits for so many people with samples.
    pub(crate) min_people: usize,
    /// One of so many people has a device that trains.
    pub(crate) one_in: u64,
    /// A device joins with so many of its newest likes and dislikes.
    pub(crate) newest: usize,
    /// Requests of a week that are asked.
    pub(crate) requests: usize,
}

/// Made-up people who taught the base model: as in `docs/federated.md`.
pub(crate) const TAUGHT: usize = 64;
/// The same of `--quick`, as in `lethe bench unlearn --quick`.
pub(crate) const TAUGHT_QUICK: usize = 16;

impl Rolling {
    /// Chosen by what they cost, before any AUC was looked at.
    ///
    /// # Errors
    /// None, but for a recipe that the product refuses.
    pub(crate) fn seven_months() -> anyhow::Result<Self> {
        Ok(Self {
            recipe: Recipe::from_toml(
                "rounds = 12\n[lora]\nrank = 8\nalpha = 16.0\ntargets = [\"q\", \
                 \"v\"]\nlast_layers = 1\n",
            )?,
            every_days: 30,
            min_people: 8,
            one_in: 10,
            newest: 15,
            requests: 24,
        })
    }

    /// A small run, as a test of the program.
    ///
    /// # Errors
    /// As [`Self::seven_months`].
    pub(crate) fn quick() -> anyhow::Result<Self> {
        let mut rolling = Self::seven_months()?;
        rolling.recipe.rounds = 1;
        rolling.requests = 6;
        // One training sample and one validation sample of each.
        rolling.newest = 12;
        rolling.every_days = 10;
        Ok(rolling)
    }
}

/// An epoch that was served, as it ended.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Ended {
    /// From 1.
    pub(crate) epoch: usize,
    /// The day on which it was trained, and from which it was served.
    pub(crate) day: i32,
    /// The first day on which it was not served any more.
    pub(crate) until: i32,
    /// Who joined.
    pub(crate) joined: usize,
    /// Who remained.
    pub(crate) remained: usize,
    /// Of each shard, when it began.
    pub(crate) shards: Vec<usize>,
    pub(crate) training: Spent,
    pub(crate) left: Vec<LeftIt>,
    /// Mean training loss of the last round of each shard, nats.
    pub(crate) losses: Vec<Option<f32>>,
    /// Of all checkpoints and the error table when it ended; a fresh system has the same.
    pub(crate) sha256: String,
    /// What the fresh system took.
    pub(crate) compared: Spent,
    /// The fresh system had nothing of this one, not even states below the trained layer.
    pub(crate) compared_anew: bool,
}

/// Somebody left an epoch.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LeftIt {
    pub(crate) day: i32,
    pub(crate) deleted: bool,
    pub(crate) again: Spent,
}

/// A like or dislike that was asked before it was seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Judged {
    pub(crate) day: i32,
    pub(crate) person: u32,
    pub(crate) liked: bool,
    /// Log-odds by the untrained base.
    pub(crate) base: f32,
    /// By what the epoch serves.
    pub(crate) adapters: f32,
    /// By the sums; none: they were not run.
    pub(crate) served: Option<f32>,
}

/// Samples that were trained on a day.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct TrainedDay {
    pub(crate) day: i32,
    pub(crate) samples: usize,
    /// Of the processor.
    pub(crate) cpu_s: f64,
}

/// What came of it.
pub(crate) struct Rolled {
    pub(crate) rolling: Rolling,
    pub(crate) epochs: Vec<Ended>,
    pub(crate) judged: Vec<Judged>,
    pub(crate) days: Vec<TrainedDay>,
    /// Of the processor, for what was asked.
    pub(crate) asking_cpu_s: f64,
    /// And to load and teach the base model.
    pub(crate) loading_cpu_s: f64,
}

/// Adapters, day after day.
pub(crate) struct Adapters<'a> {
    months: &'a Months,
    engine: Engine,
    rolling: Rolling,
    /// Who trains.
    seed: Seed,
    /// Requests that are asked: person and second.
    drawn: BTreeSet<(u32, i64)>,
    /// The epoch that is served, and what is said of it when it ends.
    serving: Option<Serving>,
    rolled: Rolled,
}

struct Serving {
    epoch: Epoch,
    told: Ended,
}

/// The base model of measurements, with what it has learned from made-up people.
///
/// # Errors
/// Files that cannot be read.
pub(crate) fn engine(
    model: &Path,
    data: &lethe_recsys::data::Dataset,
    rolling: &Rolling,
    people: usize,
    home: &Path,
) -> anyhow::Result<Engine> {
    let states: PathBuf = home.join("unlearn").join("states");
    let template = rolling.recipe.template()?;
    let compute = rolling.recipe.compute;
    let source = lethe_benches::lab::taught(model, data, template, people, compute, &states)?;
    Engine::load(source.as_ref(), rolling.recipe.clone())
}

impl<'a> Adapters<'a> {
    /// Nothing is trained yet.
    pub(crate) fn new(
        months: &'a Months,
        engine: Engine,
        rolling: Rolling,
        seed: u64,
        loading_cpu_s: f64,
    ) -> Self {
        let seed = Seed::from_u64(seed).derive("adapters", &[]);
        Self {
            drawn: drawn(months, &seed, rolling.requests),
            rolled: Rolled {
                rolling: rolling.clone(),
                epochs: vec![],
                judged: vec![],
                days: vec![],
                asking_cpu_s: 0.0,
                loading_cpu_s,
            },
            months,
            engine,
            rolling,
            seed,
            serving: None,
        }
    }

    /// An epoch begins, if one is due: devices join, it is trained, and is served from now on.
    pub(crate) fn morning(&mut self, day: i32, crowd: &Crowd<'_>) -> anyhow::Result<()> {
        let every = self.rolling.every_days;
        let served = self.serving.as_ref();
        if served.is_some_and(|s| day - s.told.day < every) {
            return Ok(());
        }
        let joins = self.join(crowd)?;
        if joins.len() < self.rolling.min_people {
            return Ok(());
        }
        let joined = joins.len();
        self.ends(day, false)?;
        let items = self.months.items(self.months.items_on(day));
        let begun = Epoch::begin(&self.engine, items, joins)?;
        let epoch = begun.0;
        let training = begun.1;
        self.note(day, training);
        self.serving = Some(Serving {
            told: Ended {
                epoch: self.rolled.epochs.len() + 1,
                day,
                until: day,
                joined,
                remained: joined,
                shards: epoch.shards(),
                training,
                left: vec![],
                losses: vec![],
                sha256: String::new(),
                compared: Spent::default(),
                compared_anew: false,
            },
            epoch,
        });
        Ok(())
    }

    fn note(&mut self, day: i32, spent: Spent) {
        match self.rolled.days.last_mut().filter(|d| d.day == day) {
            Some(today) => {
                today.samples += spent.samples;
                today.cpu_s += spent.cpu_s;
            }
            None => self.rolled.days.push(TrainedDay {
                day,
                samples: spent.samples,
                cpu_s: spent.cpu_s,
            }),
        }
    }

    /// Samples that were trained on a day.
    pub(crate) fn trained_on(&self, day: i32) -> usize {
        let today = self.rolled.days.iter().filter(|d| d.day == day);
        today.map(|d| d.samples).sum()
    }

    /// The epoch that is served ends, and is compared.
    fn ends(&mut self, day: i32, anew: bool) -> anyhow::Result<()> {
        let Some(mut serving) = self.serving.take() else {
            return Ok(());
        };
        let told = &mut serving.told;
        told.until = day;
        told.remained = serving.epoch.people();
        told.losses = serving.epoch.losses();
        told.sha256 = serving.epoch.digest().hex();
        told.compared = serving.epoch.compare(&self.engine, anew)?;
        told.compared_anew = anew;
        self.rolled.epochs.push(serving.told);
        Ok(())
    }

    /// What the devices that train hold now.
    fn join(&self, crowd: &Crowd<'_>) -> anyhow::Result<Vec<Joins>> {
        let people = (0u32..).zip(&crowd.people);
        let trains = |p: &(u32, &Person)| {
            let rank = self.seed.rank("trains", &p.0.to_le_bytes());
            p.1.standing == Standing::In && rank.is_multiple_of(self.rolling.one_in)
        };
        let mut joins = vec![];
        for one in people.filter(trains) {
            let subject = subject(&one.1.handle(&crowd.seed, one.0))?;
            joins.extend(self.joins(subject, &one.1.events)?);
        }
        Ok(joins)
    }

    /// The newest likes and dislikes of a device, as samples; none: too few.
    fn joins(&self, subject: SubjectId, events: &[Event]) -> anyhow::Result<Option<Joins>> {
        let mut liked = self.opinions(events);
        liked.drain(..liked.len().saturating_sub(self.rolling.newest));
        let events: Vec<TrainingEvent> = liked
            .iter()
            .map(|o| TrainingEvent {
                item: self.months.id(o.item).to_owned(),
                liked: o.liked,
                time: o.time,
            })
            .collect();
        let cutoffs = Cutoffs::of(events.len());
        if cutoffs.train <= HISTORY {
            return Ok(None);
        }
        let mut train = vec![];
        let mut validation = None;
        for at in HISTORY..events.len() {
            let target = &events[at];
            let sample = lethe_model::train::Sample {
                ids: self.prompt(&liked[at - HISTORY..at], liked[at].item)?,
                label: target.liked,
            };
            match at < cutoffs.train {
                true => train.push(Prompted {
                    id: [target.item.as_bytes(), &target.time.to_le_bytes()].concat(),
                    time: target.time,
                    sample,
                }),
                // The newest one stays.
                false => validation = Some(sample),
            }
        }
        let trains = liked.iter().take(cutoffs.train);
        Ok(Some(Joins {
            subject,
            liked: trains.filter(|o| o.liked).map(|o| o.item).collect(),
            train,
            validation,
        }))
    }

    fn opinions(&self, events: &[Event]) -> Vec<Opinion> {
        let one = |event: &Event| {
            Some(Opinion {
                item: event.item,
                liked: self.months.meaning.read(event).liked?,
                time: event.time,
            })
        };
        events.iter().filter_map(one).collect()
    }

    fn prompt(&self, history: &[Opinion], target: u32) -> anyhow::Result<Vec<u32>> {
        let side = |want: bool| {
            let some = history.iter().filter(|o| o.liked == want);
            some.map(|o| self.months.label(o.item)).collect()
        };
        self.engine.tokens(&Prompt {
            liked: side(true),
            disliked: side(false),
            target: self.months.label(target),
        })
    }

    /// Asks those of a day's requests that were drawn. `served` is what the sums say of an event,
    /// by its place among all events of these requests.
    pub(crate) fn ask(
        &mut self,
        day: i32,
        asks: &[Asks<'_>],
        served: &dyn Fn(usize) -> Option<f32>,
    ) -> anyhow::Result<()> {
        let Some(serving) = &self.serving else {
            return Ok(());
        };
        let cpu = cpu_seconds();
        let mut chosen = vec![];
        let mut place = 0;
        for asked in asks {
            let at = asked.events.first().map_or(0, |e| e.time);
            if self.drawn.contains(&(asked.person, at)) {
                chosen.push((place, asked));
            }
            place += asked.events.len();
        }
        let mix = Weighed {
            epoch: &serving.epoch,
            engine: &self.engine,
        };
        let one = |chosen: &(usize, &Asks<'_>)| self.request(day, chosen.1, &mix);
        let all: anyhow::Result<Vec<Vec<Answer>>> = chosen.par_iter().map(one).collect();
        let mut judged = vec![];
        for (at, answers) in chosen.iter().zip(all?) {
            for answer in answers {
                judged.push(Judged {
                    served: served(at.0 + answer.event),
                    ..answer.judged
                });
            }
        }
        self.rolled.judged.extend(judged);
        self.rolled.asking_cpu_s += cpu_seconds() - cpu;
        Ok(())
    }

    fn request(&self, day: i32, asks: &Asks<'_>, mix: &Weighed<'_>) -> anyhow::Result<Vec<Answer>> {
        let known = self.opinions(asks.history);
        let Some(from) = known.len().checked_sub(HISTORY) else {
            return Ok(vec![]);
        };
        let mut targets = vec![];
        let mut prompts = vec![];
        for (at, event) in asks.events.iter().enumerate() {
            if let Some(liked) = self.months.meaning.read(event).liked {
                targets.push((at, liked));
                prompts.push(self.prompt(&known[from..], event.item)?);
            }
        }
        let odds = self.engine.odds(&prompts, mix)?;
        let answers = targets.into_iter().zip(odds.base).zip(odds.adapters);
        let answer = |((target, base), adapters): (((usize, bool), f32), f32)| Answer {
            event: target.0,
            judged: Judged {
                day,
                person: asks.person,
                liked: target.1,
                base,
                adapters,
                served: None,
            },
        };
        Ok(answers.map(answer).collect())
    }

    /// Somebody leaves: what they were in is trained anew.
    pub(crate) fn left(&mut self, day: i32, leaves: &Leaves) -> anyhow::Result<()> {
        let Some(serving) = &mut self.serving else {
            return Ok(());
        };
        let subject = subject(&leaves.handle)?;
        let again = serving
            .epoch
            .leave(&self.engine, &subject, leaves.deleted)?;
        let Some(again) = again else {
            return Ok(());
        };
        serving.told.left.push(LeftIt {
            day,
            deleted: leaves.deleted,
            again,
        });
        self.note(day, again);
        Ok(())
    }

    /// The last epoch ends, and is compared with one that has nothing of it.
    pub(crate) fn end(mut self, day: i32) -> anyhow::Result<Rolled> {
        self.ends(day, true)?;
        Ok(self.rolled)
    }
}

/// A like or dislike on a device.
#[derive(Clone, Copy, Debug)]
struct Opinion {
    item: u32,
    liked: bool,
    time: i64,
}

/// What was said of an event, by its place in the request.
struct Answer {
    event: usize,
    judged: Judged,
}

fn subject(handle: &[u8; 16]) -> anyhow::Result<SubjectId> {
    let hex: String = handle.iter().map(|b| format!("{b:02x}")).collect();
    SubjectId::new(hex).context("a handle in hexadecimal")
}

/// So many requests of each week, among those with enough of a history: what is not recorded in the
/// end, since somebody has left, is not asked.
fn drawn(months: &Months, seed: &Seed, requests: usize) -> BTreeSet<(u32, i64)> {
    let mut known = vec![0usize; months.people];
    // The second that somebody's events are of, and how much was known before it.
    let mut second: Vec<Option<(i64, usize)>> = vec![None; months.people];
    let mut weeks: Vec<BTreeSet<(u64, u32, i64)>> = vec![];
    for one in &months.events {
        if months.meaning.read(&one.event).liked.is_none() {
            continue;
        }
        let person = one.person as usize;
        let time = one.event.time;
        let at = second[person].filter(|s| s.0 == time);
        let before = at.map_or(known[person], |s| s.1);
        second[person] = Some((time, before));
        known[person] += 1;
        if before < HISTORY {
            continue;
        }
        let day = lethe_parts::history::day_of(time) - months.first_day;
        let week = (day / WEEK).max(0) as usize;
        if weeks.len() <= week {
            weeks.resize(week + 1, BTreeSet::new());
        }
        let key = [&one.person.to_le_bytes()[..], &time.to_le_bytes()].concat();
        weeks[week].insert((seed.rank("asked", &key), one.person, time));
    }
    let some = weeks.iter().flat_map(|w| w.iter().take(requests));
    some.map(|r| (r.1, r.2)).collect()
}

/// People live through the data without a tally: adapters alone.
pub(crate) fn alone(
    months: &Months,
    seed: u64,
    days: i32,
    mut adapters: Adapters<'_>,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Rolled> {
    let mut crowd = Crowd::new(months, seed, false);
    let days = days.min(months.days);
    for day in 0..days {
        if day % WEEK == 0 {
            crowd.draw_week(day / WEEK);
        }
        adapters.morning(day, &crowd)?;
        let evening = crowd.morning(day + 1) as i64;
        for fate in crowd.fates_until(evening) {
            let came = crowd.record_until(fate.at, day);
            adapters.ask(day, &crowd.asks(&came, day), &|_| None)?;
            if let Some(leaves) = crowd.meet(fate) {
                adapters.left(day, &leaves)?;
            }
        }
        let came = crowd.record_until(evening, day);
        adapters.ask(day, &crowd.asks(&came, day), &|_| None)?;
        if (day + 1) % WEEK == 0 || day + 1 == days {
            let rolled = &adapters.rolled;
            say(&format!(
                "day {}: {} epochs ended, {} events asked",
                day + 1,
                rolled.epochs.len(),
                rolled.judged.len()
            ));
        }
    }
    adapters.end(days)
}
