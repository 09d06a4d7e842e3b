//! Made-up people: who they are, what they record, when their devices are there.

use std::collections::VecDeque;

use lethe_learn::seed::{Seed, Stream};
use lethe_proto::ids::{Digest, EpochNo, SubjectId};
use lethe_proto::lists::{Contributed, LIKED, SEEN, SharedEvent};
use lethe_receipt::order::SeenHead;

use super::Year;

/// Recordings of a person a week, on average.
const A_WEEK: f32 = 2.0;
/// Of so many devices one is away for a day.
const AWAY: usize = 20;
/// Items that share a tag; somebody has three such groups.
const GROUP: usize = 40;

/// Whether somebody is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// They come on this day.
    Comes(u64),
    /// They have an app.
    There,
}

/// A person with one device.
pub(super) struct Person {
    pub(super) subject: SubjectId,
    /// How often this place was taken by somebody new.
    pub(super) turn: u32,
    /// How often the person enrolled or renewed.
    pub(super) certificates: u32,
    pub(super) certificate: Digest,
    /// Day of the certificate.
    pub(super) certified: u64,
    pub(super) standing: Standing,
    /// Nothing happens to somebody before this day.
    pub(super) settled: u64,
    /// They contribute to lists.
    pub(super) lists: bool,
    pub(super) restricted: bool,
    /// Something was recorded, or erased, since the last contribution.
    pub(super) changed: bool,
    /// Oldest first.
    pub(super) history: VecDeque<SharedEvent>,
    groups: [usize; 3],
    /// The newest epoch that the device joined.
    pub(super) joined: Option<EpochNo>,
    /// The release that it has.
    pub(super) holds: u64,
    /// The newest head of the log that it has seen.
    pub(super) seen: Option<SeenHead>,
    /// The newest order that it has carried out.
    pub(super) erased: u64,
    /// The hour of a day at which it asks whether there is anything new.
    pub(super) hour: u64,
    /// The day of a week on which it measures.
    pub(super) measures: u64,
    /// It is not there today.
    pub(super) away: bool,
}

fn group(rng: &mut Stream, items: usize) -> usize {
    rng.below(items.div_ceil(GROUP))
}

impl Person {
    /// Records something.
    fn record(&mut self, rng: &mut Stream, day: i32, items: usize, most: usize) {
        let item = match rng.below(4) {
            0 => rng.below(items),
            n => (self.groups[n - 1] * GROUP + rng.below(GROUP)).min(items - 1),
        };
        let half_stars = 2 + rng.below(9) as u8;
        self.history.push_back(SharedEvent {
            item: format!("i{item}"),
            day,
            half_stars,
            flags: SEEN | if half_stars > 6 { LIKED } else { 0 },
        });
        while self.history.len() > most {
            self.history.pop_front();
        }
        self.changed = true;
    }

    /// What the device contributes.
    pub(super) fn contributed(&self) -> Contributed {
        Contributed {
            source: [1; 16],
            whole: false,
            events: self.history.iter().cloned().collect(),
        }
    }

    pub(super) fn is_there(&self) -> bool {
        self.standing == Standing::There
    }
}

impl Year {
    fn of_person(&self, n: usize, label: &str, more: u64) -> Seed {
        let n = (n as u64).to_le_bytes();
        self.seed.derive(label, &[&n, &more.to_le_bytes()])
    }

    /// Somebody who comes in the first weeks.
    pub(super) fn drawn(&self, n: usize) -> anyhow::Result<Person> {
        let mut rng = self.of_person(n, "person", 0).rng();
        let comes = rng.below(self.plan.coming.max(1) as usize) as u64;
        let items = self.plan.items;
        Ok(Person {
            subject: name(n, 0)?,
            turn: 0,
            certificates: 0,
            certificate: Digest::default(),
            certified: 0,
            standing: Standing::Comes(comes),
            settled: 0,
            lists: true,
            restricted: false,
            changed: false,
            history: VecDeque::new(),
            groups: [0; 3].map(|_| group(&mut rng, items)),
            joined: None,
            holds: 0,
            seen: None,
            erased: 0,
            hour: rng.below(24) as u64,
            measures: rng.below(7) as u64,
            away: false,
        })
    }

    /// Events that count of one person.
    pub(super) fn most_events(&self) -> usize {
        self.config.lists.clip as usize
    }

    /// Somebody comes with a history that is as long as what counts: otherwise contributions grow
    /// all year, and with them what is stored.
    pub(super) fn brings(&mut self, n: usize) {
        let seed = self.of_person(n, "brings", self.day);
        let mut rng = seed.rng();
        let today = self.today();
        let most = self.most_events();
        let items = self.plan.items;
        let person = &mut self.people[n];
        person.history.clear();
        for at in 0..most {
            let before = (most - at) as i32 / 2;
            person.record(&mut rng, today - before, items, most);
        }
    }

    /// Who is away, and who records something today.
    pub(super) fn draw_day(&mut self) {
        let most = self.most_events();
        let today = (super::BEGIN / super::DAY + self.day) as i32;
        let items = self.plan.items;
        for n in 0..self.people.len() {
            let mut rng = self.of_person(n, "day", self.day).rng();
            let person = &mut self.people[n];
            person.away = rng.below(AWAY) == 0;
            if person.is_there() && rng.unit() < A_WEEK / 7.0 {
                person.record(&mut rng, today, items, most);
            }
        }
    }
}

/// Who is in this place.
pub(super) fn name(n: usize, turn: u32) -> anyhow::Result<SubjectId> {
    let text = match turn {
        0 => format!("p{n}"),
        turn => format!("p{n}-{turn}"),
    };
    Ok(SubjectId::new(text)?)
}
