//! Samples of the task and the chronological splits.

use lethe_learn::seed::Seed;
use serde::{Deserialize, Serialize};

use crate::data::{Dataset, Event};
use crate::prompt::Prompt;

/// Items of history in a prompt; an event with fewer predecessors is history, but no sample (as in
/// TALLRec's code).
pub const HISTORY: usize = 10;

/// Part of a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// First eight tenths.
    Train,
    /// Ninth tenth.
    Validation,
    /// Last tenth.
    Test,
}

/// How events are divided 8:1:1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// By time over all events: the test is the future of everybody.
    Global,
    /// By time within each user.
    PerUser,
}

/// One target event with the events of the same user just before it.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskSample {
    /// Index of the user.
    pub user: u32,
    /// Index of the target item.
    pub item: u32,
    /// Position of the target in [`Dataset::events`]: its identity.
    pub event: u32,
    /// `(item, liked)` of the last [`HISTORY`] events before the target, oldest first.
    pub history: Vec<(u32, bool)>,
    /// Whether the person liked the target.
    pub label: bool,
    /// Which part of the split it belongs to.
    pub part: Part,
}

impl TaskSample {
    /// The prompt that asks about the target.
    pub fn prompt(&self, data: &Dataset) -> Prompt {
        prompt(data, &self.history, self.item)
    }
}

/// The prompt that asks about `target` after `history` (`(item, liked)`, oldest first).
pub fn prompt(data: &Dataset, history: &[(u32, bool)], target: u32) -> Prompt {
    let side = |want: bool| {
        history
            .iter()
            .filter(|(_, l)| *l == want)
            .map(|(i, _)| data.items[*i as usize].label())
            .collect()
    };
    Prompt {
        liked: side(true),
        disliked: side(false),
        target: data.items[target as usize].label(),
    }
}

/// All samples of a data set, in chronological order.
#[derive(Clone, Debug)]
pub struct Samples {
    /// The samples.
    pub all: Vec<TaskSample>,
}

impl Samples {
    /// Every event with [`HISTORY`] predecessors by the same user becomes a sample. Order is time,
    /// then file order; a history holds only events before the target in that order, whatever part
    /// they belong to.
    pub fn build(data: &Dataset, split: Split) -> Self {
        let parts = event_parts(data, split);
        let mut seen: Vec<Vec<(u32, bool)>> = vec![vec![]; data.users.len()];
        let mut all = Vec::with_capacity(data.events.len());
        for (i, (e, part)) in data.events.iter().zip(parts).enumerate() {
            let past = &mut seen[e.user as usize];
            if past.len() >= HISTORY {
                let history = past[past.len() - HISTORY..].to_vec();
                all.push(TaskSample {
                    user: e.user,
                    item: e.item,
                    event: i as u32,
                    history,
                    label: e.liked,
                    part,
                });
            }
            past.push((e.item, e.liked));
        }
        Self { all }
    }

    /// Samples of one part, in chronological order.
    pub fn part(&self, part: Part) -> impl Iterator<Item = &TaskSample> {
        self.all.iter().filter(move |s| s.part == part)
    }

    /// `n` samples of a part, chosen by a seeded rank of their identity, in chronological order.
    pub fn choose(&self, part: Part, n: usize, seed: &Seed) -> Vec<TaskSample> {
        let mut ranked: Vec<(u64, &TaskSample)> = self
            .part(part)
            .map(|s| (seed.rank("choose", &s.event.to_le_bytes()), s))
            .collect();
        ranked.sort_by_key(|(r, s)| (*r, s.event));
        ranked.truncate(n);
        ranked.sort_by_key(|(_, s)| s.event);
        ranked.into_iter().map(|(_, s)| s.clone()).collect()
    }
}

/// Events of the training part: what the references may learn from.
pub fn training_events(data: &Dataset, split: Split) -> Vec<Event> {
    data.events
        .iter()
        .zip(event_parts(data, split))
        .filter(|(_, p)| *p == Part::Train)
        .map(|(e, _)| *e)
        .collect()
}

/// The part of every event, in the data set's order.
pub fn event_parts(data: &Dataset, split: Split) -> Vec<Part> {
    let of = |i: usize, n: usize| match (i * 10) / n.max(1) {
        0..=7 => Part::Train,
        8 => Part::Validation,
        _ => Part::Test,
    };
    match split {
        Split::Global => (0..data.events.len())
            .map(|i| of(i, data.events.len()))
            .collect(),
        Split::PerUser => {
            let mut counts = vec![0; data.users.len()];
            data.events
                .iter()
                .for_each(|e| counts[e.user as usize] += 1);
            let mut seen = vec![0; data.users.len()];
            data.events
                .iter()
                .map(|e| {
                    let u = e.user as usize;
                    seen[u] += 1;
                    of(seen[u] - 1, counts[u])
                })
                .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Item;

    fn data() -> Dataset {
        let items = (0..20)
            .map(|i| Item {
                id: i.to_string(),
                title: format!("t{i}"),
                year: None,
                tags: vec![],
            })
            .collect();
        let event = |i: i64| Event {
            user: (i % 2) as u32,
            item: (i % 20) as u32,
            rating: 4.0,
            time: i,
            liked: i % 3 == 0,
            kind: lethe_parts::event::Kind::Rating,
        };
        Dataset {
            users: vec!["a".into(), "b".into()],
            items,
            events: (0..80).map(event).collect(),
            readings: vec![],
        }
    }

    #[test]
    fn histories_are_strictly_earlier() {
        let d = data();
        for s in Samples::build(&d, Split::Global).all {
            let before = d.events[..s.event as usize]
                .iter()
                .filter(|e| e.user == s.user);
            let want: Vec<_> = before.map(|e| (e.item, e.liked)).collect();
            assert_eq!(s.history, want[want.len() - HISTORY..]);
        }
    }

    #[test]
    fn global_split_is_in_time_order() {
        let s = Samples::build(&data(), Split::Global);
        assert!(
            s.part(Part::Train).map(|s| s.event).max()
                < s.part(Part::Validation).map(|s| s.event).min()
        );
        assert_eq!(s.part(Part::Test).count(), 8);
    }

    #[test]
    fn choosing_does_not_depend_on_what_else_there_is() {
        let s = Samples::build(&data(), Split::PerUser);
        let seed = Seed::from_u64(1);
        let few = s.choose(Part::Train, 5, &seed);
        let more = s.choose(Part::Train, 9, &seed);
        assert!(few.iter().all(|x| more.contains(x)));
    }
}
