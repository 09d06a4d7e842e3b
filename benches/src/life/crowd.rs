//! Who comes, what is recorded, and who leaves: the same whatever serves them.

use std::collections::BTreeMap;

use lethe_learn::seed::Seed;

use super::data::{Happened, Months};
use super::people::{Person, Standing};
use super::systems::Asks;

pub(crate) const DAY_S: u64 = 86_400;
pub(crate) const WEEK: i32 = 7;
/// Part of the people to whom something happens in a week.
const SHARE: f32 = 0.01;
/// Of so many deletions and withdrawals one is cut short by a kill.
const CUT: usize = 10;

/// Everybody.
pub(crate) struct Crowd<'a> {
    months: &'a Months,
    pub(crate) seed: Seed,
    /// Whoever was deleted is followed by a newcomer, and nobody kills the server.
    steady: bool,
    pub(crate) people: Vec<Person>,
    /// Index of the next event.
    next: usize,
    fates: Vec<Fate>,
    /// How many came back.
    pub(crate) back: usize,
}

/// Something happens to somebody.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fate {
    /// Seconds since 1970.
    pub(crate) at: i64,
    pub(crate) person: u32,
}

/// Somebody has recorded something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Came {
    pub(crate) person: u32,
    /// Events that were known before.
    pub(crate) known: usize,
}

/// Somebody leaves what is served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaves {
    /// What they were known by.
    pub(crate) handle: [u8; 16],
    /// Everything is deleted; otherwise they withdraw.
    pub(crate) deleted: bool,
    /// The server is killed meanwhile.
    pub(crate) killed: bool,
}

impl<'a> Crowd<'a> {
    /// Nobody has come yet.
    pub(crate) fn new(months: &'a Months, seed: u64, steady: bool) -> Self {
        Self {
            months,
            seed: Seed::from_u64(seed).derive("people", &[]),
            steady,
            people: vec![Person::default(); months.people],
            next: 0,
            fates: vec![],
            back: 0,
        }
    }

    /// The beginning of a day, in seconds since 1970.
    pub(crate) fn morning(&self, day: i32) -> u64 {
        (self.months.first_day + day) as u64 * DAY_S
    }

    /// Who will leave, withdraw or come back in a week.
    pub(crate) fn draw_week(&mut self, week: i32) {
        let first = self.morning(week * WEEK) as i64;
        let seed = self.week(week);
        for (person, one) in (0u32..).zip(&self.people) {
            let known = one.standing != Standing::Outside;
            let mut rng = seed.derive("fate", &[&person.to_le_bytes()]).rng();
            if known && rng.unit() < SHARE {
                let second = rng.below(WEEK as usize * DAY_S as usize) as i64;
                self.fates.push(Fate {
                    at: first + second,
                    person,
                });
            }
        }
        self.fates.sort_by_key(|f| (f.at, f.person));
    }

    /// Seed of a week.
    pub(crate) fn week(&self, week: i32) -> Seed {
        self.seed.derive("week", &[&week.to_le_bytes()])
    }

    /// What happens before a time, in order.
    pub(crate) fn fates_until(&mut self, end: i64) -> Vec<Fate> {
        let all = std::mem::take(&mut self.fates);
        let (today, later): (Vec<Fate>, Vec<Fate>) = all.into_iter().partition(|f| f.at < end);
        self.fates = later;
        today
    }

    /// Records events before a time. By person; who was deleted records nothing.
    pub(crate) fn record_until(&mut self, end: i64, day: i32) -> Vec<Came> {
        let rest = &self.months.events[self.next..];
        let count = rest.partition_point(|h| h.event.time < end);
        let now = &rest[..count];
        self.next += count;
        // By person, in the order in which they happened.
        let mut of_person: BTreeMap<u32, Vec<Happened>> = BTreeMap::new();
        for one in now {
            if self.people[one.person as usize].standing != Standing::Gone {
                of_person.entry(one.person).or_default().push(*one);
            }
        }
        let mut came = vec![];
        for (who, happened) in &of_person {
            let person = &mut self.people[*who as usize];
            if person.standing == Standing::Outside {
                person.standing = Standing::In;
                person.since = day;
            }
            came.push(Came {
                person: *who,
                known: person.events.len(),
            });
            person.events.extend(happened.iter().map(|h| h.event));
            person.changed = true;
        }
        came
    }

    /// What devices were asked before they recorded it: events of one second together.
    pub(crate) fn asks(&self, came: &[Came], day: i32) -> Vec<Asks<'_>> {
        let mut asks = vec![];
        for one in came {
            let person = &self.people[one.person as usize];
            let mut from = one.known;
            while let Some(first) = person.events.get(from) {
                let to = person.events.partition_point(|e| e.time <= first.time);
                asks.push(Asks {
                    person: one.person,
                    begins: person.since == day,
                    history: &person.events[..from],
                    events: &person.events[from..to],
                });
                from = to;
            }
        }
        asks
    }

    /// Somebody leaves, withdraws or comes back. None: nobody leaves.
    pub(crate) fn meet(&mut self, fate: Fate) -> Option<Leaves> {
        let parts = [fate.at.to_le_bytes(), u64::from(fate.person).to_le_bytes()];
        let drawn = self.seed.derive("way", &[&parts[0], &parts[1]]);
        let mut rng = drawn.rng();
        let person = &mut self.people[fate.person as usize];
        match person.standing {
            Standing::Outside => return None,
            Standing::Gone => {
                person.standing = Standing::Outside;
                self.back += 1;
                return None;
            }
            Standing::Withdrawn => {
                person.contribute_again();
                self.back += 1;
                return None;
            }
            Standing::In => {}
        }
        let deleted = rng.below(2) == 0;
        let killed = rng.below(CUT) == 0 && !self.steady;
        let handle = person.handle(&self.seed, fate.person);
        match deleted {
            true => person.delete(),
            false => person.withdraw(),
        }
        if deleted && self.steady {
            person.standing = Standing::Outside;
        }
        Some(Leaves {
            handle,
            deleted,
            killed,
        })
    }
}
