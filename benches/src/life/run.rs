//! Day after day: predict, record, contribute, fold, release; people come, leave, withdraw and come
//! back; the server is killed.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lethe_benches::cpu_seconds;
use lethe_client::{Catalogue, Shelf};
use lethe_parts::content::Content;
use lethe_parts::history::day_of;
use lethe_parts::snapshot::decode;
use lethe_proto::lists::Placed;
use lethe_store::sled_backend::SledStorage;
use lethe_tally::cells::CellSettings;
use lethe_tally::{Handle, Offer, Options, Served, Tally};
use serde::Serialize;

use super::adapters::Adapters;
use super::crowd::{Came, Crowd, DAY_S, Fate, WEEK};
use super::data::Months;
use super::link::Link;
use super::people::{Person, Standing};
use super::server::{Answered, Ask, Asked, Place, Sent, folder_bytes, interactions, options};
use super::systems::{Basis, Predicted, Refitted, System, Systems};

/// Kills of a week, besides those in the middle of a deletion.
const KILLS: usize = 2;

/// How a life is run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Days that are lived; all of the data at most.
    pub(crate) days: i32,
    /// The system that is frozen has what was served on the morning of this day.
    pub(crate) freeze: i32,
    /// The server is a process of its own.
    pub(crate) apart: bool,
    /// Nothing is predicted and nobody kills the server: what is asked is whether it needs to be
    /// started again. Whoever was deleted is followed by a newcomer.
    pub(crate) steady: bool,
    pub(crate) folder: PathBuf,
}

/// What one day has cost, and how things stood in its evening.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Day {
    pub(crate) day: i32,
    pub(crate) events: usize,
    pub(crate) items: usize,
    /// People with a history on their device.
    pub(crate) people: usize,
    pub(crate) counting: usize,
    pub(crate) waiting: usize,
    pub(crate) contributions: usize,
    pub(crate) releases: usize,
    /// Of the server.
    pub(crate) cpu_s: f64,
    /// Of a refit from nothing, whole tables, in its place.
    pub(crate) refit_cpu_s: f64,
    pub(crate) up_bytes: usize,
    pub(crate) down_bytes: usize,
    pub(crate) snapshot_bytes: usize,
    pub(crate) folder_bytes: u64,
    pub(crate) memory_bytes: u64,
    /// By adapters: lists train nothing.
    pub(crate) samples_trained: usize,
}

/// Somebody who left the sums.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Left {
    pub(crate) day: i32,
    /// Everything was deleted; otherwise the contribution was withdrawn.
    pub(crate) deleted: bool,
    /// They were in what was served.
    pub(crate) shown: bool,
    /// The server was killed meanwhile.
    pub(crate) killed: bool,
    pub(crate) exact_s: f64,
    /// Until the next snapshot is served; none: what is served stays.
    pub(crate) whole_s: Option<f64>,
}

/// What came of it.
pub(crate) struct Lived {
    pub(crate) days: Vec<Day>,
    pub(crate) predicted: Vec<Predicted>,
    pub(crate) left: Vec<Left>,
    pub(crate) back: usize,
    pub(crate) starts: u32,
    pub(crate) kills: u32,
    pub(crate) cut: u32,
    /// Comparisons with a system that never met the leavers, all of them equal.
    pub(crate) compared: usize,
    /// SHA-256 of the last snapshot.
    pub(crate) last: String,
    /// What came of adapters.
    pub(crate) adapters: Option<super::adapters::Rolled>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Op {
    Publish,
    Contribute,
    OpenCells,
    Leave,
}

struct Life<'a> {
    months: &'a Months,
    plan: &'a Plan,
    link: Link,
    crowd: Crowd<'a>,
    /// None: they are left out.
    adapters: Option<Adapters<'a>>,
    catalogue: Arc<Catalogue>,
    content: Content,
    ids: Vec<String>,
    served: Shelf,
    /// The bytes and the number of what is served; none: nothing is.
    snapshot: Option<Newest>,
    frozen: Option<Shelf>,
    /// The bytes of what the frozen system has; none: nothing was served then.
    of_frozen: Option<Vec<u8>>,
    /// Kills of this week, by day.
    doom: Vec<Doom>,
    /// How long each operation took last.
    took: BTreeMap<Op, f64>,
    today: Day,
    lived: Lived,
}

/// A kill that is to come.
struct Doom {
    day: i32,
    op: Op,
}

struct Newest {
    number: u64,
    day: i32,
    bytes: Vec<u8>,
    deltas: BTreeMap<u64, usize>,
}

/// Lives through the data; `adapters` roll beside.
pub(crate) fn live<'a>(
    months: &'a Months,
    plan: &'a Plan,
    adapters: Option<Adapters<'a>>,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Lived> {
    let mut life = Life::new(months, plan, adapters)?;
    let days = plan.days.min(months.days);
    for day in 0..days {
        life.day(day).with_context(|| format!("day {day}"))?;
        if (day + 1) % WEEK == 0 || day + 1 == days {
            let Day {
                people, counting, ..
            } = life.today;
            say(&format!(
                "day {}: {people} people, {counting} count",
                day + 1
            ));
        }
    }
    life.end()
}

impl<'a> Life<'a> {
    fn new(
        months: &'a Months,
        plan: &'a Plan,
        adapters: Option<Adapters<'a>>,
    ) -> anyhow::Result<Self> {
        let count = months.items_on(0);
        let folder = plan.folder.join("catalogue");
        let content = months.write_catalogue(&folder, count)?;
        let catalogue = Catalogue::load(&folder)?;
        let place = Place {
            folder: plan.folder.join("server"),
            catalogue: folder,
            seed: plan.seed,
            now: months.first_day as u64 * DAY_S,
        };
        Ok(Self {
            link: Link::new(place, plan.apart)?,
            crowd: Crowd::new(months, plan.seed, plan.steady),
            adapters,
            served: Shelf::empty(catalogue.clone()),
            ids: months.ids(count),
            catalogue,
            content,
            snapshot: None,
            frozen: None,
            of_frozen: None,
            doom: vec![],
            took: BTreeMap::new(),
            today: Day::default(),
            lived: Lived {
                days: vec![],
                predicted: vec![],
                left: vec![],
                back: 0,
                starts: 0,
                kills: 0,
                cut: 0,
                compared: 0,
                last: String::new(),
                adapters: None,
            },
            months,
            plan,
        })
    }

    fn morning(&self, day: i32) -> u64 {
        self.crowd.morning(day)
    }

    fn day(&mut self, day: i32) -> anyhow::Result<()> {
        let cpu = self.link.cpu();
        self.today = Day {
            day,
            ..Day::default()
        };
        if day % WEEK == 0 {
            self.draw_week(day / WEEK);
        }
        self.grow(day)?;
        self.release(day, self.morning(day), day)?;
        if day % WEEK == 0 {
            self.compare(self.morning(day))?;
        }
        if day == self.plan.freeze {
            self.frozen = Some(self.served.clone());
            self.of_frozen = self.snapshot.as_ref().map(|s| s.bytes.clone());
        }
        let refitted = match self.plan.steady {
            true => None,
            false => Some(self.refit(day)?),
        };
        let refitted = refitted.as_ref();
        if let Some(adapters) = &mut self.adapters {
            adapters.morning(day, &self.crowd)?;
        }
        let evening = self.morning(day + 1) as i64;
        for fate in self.crowd.fates_until(evening) {
            self.predict_until(fate.at, day, refitted)?;
            self.happen(fate, day)?;
        }
        self.predict_until(evening, day, refitted)?;
        self.contribute(day)?;
        self.close(cpu)
    }

    /// Who will leave, withdraw or come back in a week, and what will be killed in it.
    fn draw_week(&mut self, week: i32) {
        self.crowd.draw_week(week);
        let seed = self.crowd.week(week);
        let mut rng = seed.derive("kills", &[]).rng();
        self.doom.clear();
        let kills = if self.plan.steady { 0 } else { KILLS };
        for _ in 0..kills {
            let ops = [Op::Publish, Op::Contribute, Op::OpenCells];
            self.doom.push(Doom {
                day: week * WEEK + rng.below(WEEK as usize) as i32,
                op: ops[rng.below(ops.len())],
            });
        }
    }

    /// New items come at the end of the catalogue; the server is started again with it.
    fn grow(&mut self, day: i32) -> anyhow::Result<()> {
        let count = self.months.items_on(day);
        self.today.items = count;
        if count == self.ids.len() {
            return Ok(());
        }
        let folder = self.link.place.catalogue.clone();
        self.content = self.months.write_catalogue(&folder, count)?;
        self.catalogue = Catalogue::load(&folder)?;
        self.ids = self.months.ids(count);
        self.link.place.now = self.morning(day);
        self.link.restart()?;
        // Devices have the new catalogue, and tables of before until the next come.
        self.put_on_devices()
    }

    /// Devices with the catalogue of today, whatever they have of tables.
    fn put_on_devices(&mut self) -> anyhow::Result<()> {
        let newest = self.snapshot.as_ref().map(|s| s.bytes.as_slice());
        self.served = self.shelf(newest)?;
        if self.frozen.is_some() {
            self.frozen = Some(self.shelf(self.of_frozen.as_deref())?);
        }
        Ok(())
    }

    fn shelf(&self, bytes: Option<&[u8]>) -> anyhow::Result<Shelf> {
        let Some(bytes) = bytes else {
            return Ok(Shelf::empty(self.catalogue.clone()));
        };
        let tables = decode(bytes)?;
        let items = &self.ids[..tables.items()];
        Shelf::new(self.catalogue.clone(), items, tables).context("tables of other items")
    }

    fn ask(&mut self, op: Op, day: i32, asked: &Asked, kill: bool) -> anyhow::Result<Answered> {
        let doomed = self.doom.iter().position(|d| d.day == day && d.op == op);
        if let Some(at) = doomed {
            self.doom.remove(at);
        }
        let began = Instant::now();
        if kill || doomed.is_some() {
            let starts = self.link.starts.to_le_bytes();
            let mut rng = self.crowd.seed.derive("moment", &[&starts]).rng();
            let usual = self.took.get(&op).copied().unwrap_or(0.05);
            let after = Duration::from_secs_f64(usual * f64::from(rng.unit()));
            return self.link.ask_and_kill(asked, after);
        }
        let answered = self.link.ask(asked)?;
        self.took.insert(op, began.elapsed().as_secs_f64());
        Ok(answered)
    }

    /// The next snapshot, if people count or one was recalled.
    fn release(&mut self, day: i32, now: u64, of: i32) -> anyhow::Result<()> {
        let status = self.link.ask(&Asked {
            now,
            ask: Ask::Status,
        })?;
        let nothing = status.answer.served.is_none() && !status.answer.out;
        if nothing && status.answer.counting == 0 {
            return Ok(());
        }
        let asked = Asked {
            now,
            ask: Ask::Publish(self.months.first_day + of),
        };
        let published = self.ask(Op::Publish, day, &asked, false)?;
        let number = published.answer.served.context("it was published")?;
        self.today.releases += 1;
        self.today.snapshot_bytes = published.snapshot.len();
        self.snapshot = Some(Newest {
            number,
            day: self.months.first_day + of,
            bytes: published.snapshot,
            deltas: published.answer.deltas,
        });
        self.put_on_devices()
    }

    fn refit(&mut self, day: i32) -> anyhow::Result<Refitted> {
        let contributes = |p: &&Person| p.standing == Standing::In;
        let histories = self.crowd.people.iter().filter(contributes);
        let basis = Basis {
            catalogue: &self.catalogue,
            ids: &self.ids,
            content: &self.content,
            meaning: &self.months.meaning,
            histories: histories.map(|p| p.events.as_slice()).collect(),
            day: self.months.first_day + day,
        };
        let cpu = cpu_seconds();
        let refit = basis.refit()?;
        self.today.refit_cpu_s = cpu_seconds() - cpu;
        let same = basis.same()?;
        basis.refitted(refit, same)
    }

    /// Events before a time: predicted with what devices have now, then recorded.
    fn predict_until(
        &mut self,
        end: i64,
        day: i32,
        refitted: Option<&Refitted>,
    ) -> anyhow::Result<()> {
        let came = self.crowd.record_until(end, day);
        for one in &came {
            self.come(one);
        }
        let Some(refitted) = refitted else {
            return Ok(());
        };
        let asks = self.crowd.asks(&came, day);
        let systems = Systems {
            served: &self.served,
            frozen: self.frozen.as_ref(),
            refitted,
            meaning: &self.months.meaning,
        };
        let predicted = systems.predict(day, &asks)?;
        if let Some(adapters) = &mut self.adapters {
            let served = |at: usize| predicted.get(at)?.guesses[System::Served as usize].like;
            adapters.ask(day, &asks, &served)?;
        }
        self.lived.predicted.extend(predicted);
        Ok(())
    }

    /// Somebody has recorded something, with what is served.
    fn come(&mut self, came: &Came) {
        let person = &mut self.crowd.people[came.person as usize];
        if let Some(newest) = &self.snapshot
            && person.have != Some(newest.number)
        {
            let delta = person.have.and_then(|n| newest.deltas.get(&n).copied());
            self.today.down_bytes += delta.unwrap_or(newest.bytes.len());
            person.have = Some(newest.number);
        }
        self.today.events += person.events.len() - came.known;
    }

    /// Somebody leaves, withdraws or comes back.
    fn happen(&mut self, fate: Fate, day: i32) -> anyhow::Result<()> {
        let Some(leaves) = self.crowd.meet(fate) else {
            return Ok(());
        };
        if let Some(adapters) = &mut self.adapters {
            adapters.left(day, &leaves)?;
        }
        let now = fate.at as u64;
        let began = Instant::now();
        let leave = Asked {
            now,
            ask: Ask::Leave(leaves.handle),
        };
        let answered = self.ask(Op::Leave, day, &leave, leaves.killed)?;
        let exact_s = began.elapsed().as_secs_f64();
        let shown = answered.answer.out;
        if shown {
            self.snapshot = None;
            self.release(day, now, day)?;
        }
        self.lived.left.push(Left {
            day,
            deleted: leaves.deleted,
            shown,
            killed: leaves.killed,
            exact_s,
            whole_s: shown.then(|| began.elapsed().as_secs_f64()),
        });
        Ok(())
    }

    /// Devices with something new contribute in the evening, and cells open.
    fn contribute(&mut self, day: i32) -> anyhow::Result<()> {
        let now = self.morning(day + 1) - 600;
        let mut sent = vec![];
        let mut whose = vec![];
        for (who, person) in (0u32..).zip(&self.crowd.people) {
            if person.standing == Standing::In && person.changed {
                let due = person.due(&self.months.meaning, options().clip, &self.ids)?;
                self.today.up_bytes += due.wire;
                sent.push(Sent {
                    handle: person.handle(&self.crowd.seed, who),
                    bytes: due.bytes,
                });
                whose.push(who);
            }
        }
        self.today.contributions = sent.len();
        if !sent.is_empty() {
            let asked = Asked {
                now,
                ask: Ask::Contribute(sent.clone()),
            };
            let answered = self.ask(Op::Contribute, day, &asked, false)?;
            if let Some(why) = answered.answer.refused.first() {
                bail!("a contribution was not taken: {why}");
            }
            for (who, sent) in whose.into_iter().zip(sent) {
                self.crowd.people[who as usize].taken(sent.bytes);
            }
        }
        let asked = Asked {
            now: now + 300,
            ask: Ask::OpenCells,
        };
        self.ask(Op::OpenCells, day, &asked, false)?;
        Ok(())
    }

    /// Notes what the day has cost.
    fn close(&mut self, cpu_before: f64) -> anyhow::Result<()> {
        let now = self.morning(self.today.day + 1) - 1;
        let status = self.link.ask(&Asked {
            now,
            ask: Ask::Status,
        })?;
        self.today.counting = status.answer.counting;
        self.today.waiting = status.answer.waiting;
        let here = |p: &&Person| !p.events.is_empty();
        self.today.people = self.crowd.people.iter().filter(here).count();
        if let Some(adapters) = &self.adapters {
            self.today.samples_trained = adapters.trained_on(self.today.day);
        }
        self.today.cpu_s = self.link.cpu() - cpu_before;
        self.today.folder_bytes = folder_bytes(&self.link.place.folder);
        self.today.memory_bytes = self.link.memory();
        self.lived.days.push(self.today.clone());
        Ok(())
    }

    /// A fresh system that never met those who left, with what devices have sent and the same
    /// people counting, gives the bytes that are served.
    fn compare(&mut self, now: u64) -> anyhow::Result<()> {
        let Some(newest) = &self.snapshot else {
            return Ok(());
        };
        let refolded = self.link.ask(&Asked {
            now,
            ask: Ask::Refold,
        })?;
        let answer = refolded.answer;
        ensure!(answer.equal, "the server's own copies of the sums differ");
        let here = |p: &(u32, &Person)| p.1.standing == Standing::In;
        let people = (0u32..).zip(&self.crowd.people).filter(here);
        let seed = &self.crowd.seed;
        let of_handle: HashMap<[u8; 16], &Person> =
            people.map(|p| (p.1.handle(seed, p.0), p.1)).collect();
        let mut placed = vec![];
        for one in &answer.counts {
            let person = of_handle.get(&one.handle);
            let person = person.context("somebody counts who has left")?;
            let sent = person.sent.get(one.version as usize - 1);
            placed.push(Placed::from_bytes(sent.context("nobody has sent that")?)?);
        }
        let folder = tempfile::tempdir_in(&self.plan.folder)?;
        let fresh = Tally::open(
            &SledStorage::engine,
            folder.path(),
            Arc::new(self.content.clone()),
            Options {
                cells: CellSettings::off(),
                ..options()
            },
            now,
        )?;
        let events: Vec<_> = placed.iter().map(interactions).collect();
        let offers =
            (answer.counts.iter().zip(&placed).zip(&events)).map(|((one, p), events)| Offer {
                handle: Handle(one.handle),
                source: [1; 16],
                whole: p.whole,
                events,
            });
        for taken in fresh.contribute_all(&offers.collect::<Vec<_>>(), now)? {
            taken?;
        }
        fresh.open_cells(now)?;
        fresh.publish(newest.day, now)?;
        let Served::Snapshot(served) = fresh.served() else {
            bail!("the fresh system serves nothing");
        };
        let digest = fresh.refold(now)?.map(|r| r.digest);
        ensure!(digest == answer.digest, "the sums of a fresh system differ");
        ensure!(
            *served.bytes == newest.bytes,
            "what is served differs from what a fresh system computes"
        );
        self.lived.compared += 1;
        Ok(())
    }

    /// The last snapshot, and the last comparison.
    fn end(mut self) -> anyhow::Result<Lived> {
        let days = self.lived.days.len() as i32;
        let now = self.morning(days);
        self.release(days, now, days)?;
        self.compare(now)?;
        let newest = self.snapshot.as_ref().context("nothing is served")?;
        let digest = lethe_parts::snapshot::digest(&newest.bytes);
        self.lived.last = digest.iter().map(|b| format!("{b:02x}")).collect();
        self.lived.back = self.crowd.back;
        self.lived.adapters = self.adapters.take().map(|a| a.end(days)).transpose()?;
        self.lived.starts = self.link.starts;
        self.lived.kills = self.link.kills;
        self.lived.cut = self.link.cut;
        debug_assert_eq!(day_of(now as i64), self.months.first_day + days);
        Ok(self.lived)
    }
}
