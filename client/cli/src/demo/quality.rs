//! How good lists are, beside references that are fitted in this process on everybody's events in
//! one place.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use lethe_parts::content::Content;
use lethe_parts::contribution::{Bounds, Contribution, MAX_CLIP};
use lethe_parts::history::{History, Interaction};
use lethe_parts::score::{Feature, Ranker, Request, Weights};
use lethe_parts::solve::{Settings, solve};
use lethe_parts::sums::Sums;
use lethe_recsys::data::{DataSpec, Dataset};
use lethe_recsys::evaluation::{Ranking, mid_rank};
use lethe_recsys::histories::{descriptions, histories};
use lethe_recsys::samples::{Part, Split, event_parts};
use serde_json::{Value, json};

/// Items up to which a dense matrix is made.
const DENSE: usize = 10_000;

/// HR@10 and NDCG@10 of a fleet's answer, without one person.
pub(crate) fn ranking(answer: &Value, without: &str) -> Ranking {
    let ranks = answer["ranks"].as_array().into_iter().flatten();
    let ranks = ranks.filter(|r| r[0].as_str() != Some(without));
    let ranks: Vec<Option<f64>> = ranks.map(|r| r[2].as_f64()).collect();
    Ranking::of(&ranks)
}

/// Everybody's events, divided.
struct Divided {
    histories: Vec<Vec<lethe_parts::event::Event>>,
    parts: Vec<Vec<Part>>,
}

impl Divided {
    fn new(data: &Dataset, split: Split) -> Self {
        let mut parts = vec![vec![]; data.users.len()];
        for (event, part) in data.events.iter().zip(event_parts(data, split)) {
            parts[event.user as usize].push(part);
        }
        Self {
            histories: histories(data),
            parts,
        }
    }

    /// Events of a person that are not held out.
    fn known(&self, user: usize) -> Vec<lethe_parts::event::Event> {
        let both = self.histories[user].iter().zip(&self.parts[user]);
        both.filter(|(_, p)| **p != Part::Test)
            .map(|(e, _)| *e)
            .collect()
    }

    /// The first one that is.
    fn target(&self, user: usize) -> Option<lethe_parts::event::Event> {
        let at = self.parts[user].iter().position(|p| *p == Part::Test)?;
        Some(self.histories[user][at])
    }
}

/// HR@10 and NDCG@10 of popularity, EASE (Steck, arXiv 1905.03375) and neighbours (Sarwar et al.,
/// WWW 2001) for the same people, next items and known events.
pub(crate) fn references(
    data: &Dataset,
    spec: &DataSpec,
    split: Split,
    without: &str,
) -> anyhow::Result<BTreeMap<String, Ranking>> {
    let meaning = spec.meaning(data)?;
    let divided = Divided::new(data, split);
    let items = data.items.len();
    let bounds = Bounds {
        items,
        clip: MAX_CLIP,
        first_day: i32::MIN,
        last_day: i32::MAX,
    };
    let mut sums = Sums::new(items);
    let mut met: Vec<BTreeSet<u32>> = vec![];
    for user in 0..data.users.len() {
        let known = divided.known(user);
        met.push(known.iter().map(|e| e.item).collect());
        let read = Interaction::read(&known, &meaning);
        sums.fold(&Contribution::newest(&read, &bounds)?)?;
    }
    let content = Content::new(&descriptions(data));
    // Without threshold: a reference that sees everything.
    let settings = Settings {
        k: 1,
        rank: 0,
        field_items: 0,
        unseen: 0,
        ..Settings::default()
    };
    let tables = solve(&sums, &content, &settings, 0)
        .map_err(|e| anyhow::anyhow!("the references cannot be solved: {e}"))?
        .tables;
    // A dense matrix: where that is too large, this reference is left out.
    let neighbours = (items <= DENSE).then(|| Neighbours::new(&met, items));
    let mut ranks: BTreeMap<&str, Vec<Option<f64>>> = BTreeMap::new();
    let mut ranker = Ranker::default();
    for (user, name) in data.users.iter().enumerate() {
        let Some(target) = divided.target(user).filter(|_| name != without) else {
            continue;
        };
        let history = History::of_events(&divided.known(user), &meaning);
        let request = Request {
            history: &history,
            today: lethe_parts::history::day_of(target.time),
        };
        for (name, feature) in [("popularity", Feature::Popularity), ("ease", Feature::Ease)] {
            let mut weights = [0.0; 9];
            weights[feature as usize] = 1.0;
            // A long history has nothing added for its beginning.
            let scores = ranker.scores(&tables, &content, &request, Weights(weights));
            let rank = mid_rank(scores, target.item);
            ranks.entry(name).or_default().push(rank);
        }
        if let Some(neighbours) = &neighbours {
            let rank = mid_rank(&neighbours.scores(&met[user]), target.item);
            ranks.entry("item_knn").or_default().push(rank);
        }
    }
    let of = |(name, ranks): (&str, Vec<Option<f64>>)| (name.to_owned(), Ranking::of(&ranks));
    Ok(ranks.into_iter().map(of).collect())
}

/// Item-based neighbours by cosine.
struct Neighbours {
    items: usize,
    /// People who met both, `[items][items]`.
    both: Vec<u32>,
}

impl Neighbours {
    fn new(met: &[BTreeSet<u32>], items: usize) -> Self {
        let mut both = vec![0; items * items];
        for own in met {
            for a in own {
                let row = *a as usize * items;
                for b in own {
                    both[row + *b as usize] += 1;
                }
            }
        }
        Self { items, both }
    }

    fn row(&self, item: u32) -> &[u32] {
        let start = item as usize * self.items;
        &self.both[start..start + self.items]
    }

    /// Sums of cosines with the items that were met; those are masked.
    fn scores(&self, met: &BTreeSet<u32>) -> Vec<f32> {
        let mut sums = vec![0.0f64; self.items];
        for item in met {
            let row = self.row(*item);
            let own = f64::from(row[*item as usize]);
            for (other, both) in (0..).zip(row) {
                let people = f64::from(self.row(other)[other as usize]);
                if *both > 0 {
                    sums[other as usize] += f64::from(*both) / (own * people).sqrt();
                }
            }
        }
        let mut scores: Vec<f32> = sums.iter().map(|s| *s as f32).collect();
        for item in met {
            scores[*item as usize] = f32::NEG_INFINITY;
        }
        scores
    }
}

/// Figures as JSON.
pub(crate) fn ranking_json(
    served: &Ranking,
    references: &BTreeMap<String, Ranking>,
    of: fn(&Ranking) -> f64,
) -> Value {
    let mut all = serde_json::Map::new();
    for (name, ranking) in references {
        all.insert(name.clone(), json!(of(ranking)));
    }
    json!({ "served": of(served), "references": all })
}

/// The day of the newest event: what an app would call now.
pub(crate) fn newest(data: &Dataset) -> anyhow::Result<i64> {
    let times = data.events.iter().map(|e| e.time);
    times.max().context("the data set has no events")
}
