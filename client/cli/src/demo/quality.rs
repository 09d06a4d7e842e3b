//! How good lists are, beside references that are fitted in this process on everybody's events in
//! one place.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use lethe_parts::content::Content;
use lethe_parts::contribution::{Bounds, Contribution, MAX_CLIP};
use lethe_parts::event::{Event, Meaning};
use lethe_parts::history::{History, Interaction, day_of};
use lethe_parts::score::{BLOCK, Composition, Feature, Request, Weights};
use lethe_parts::solve::{Settings, solve};
use lethe_parts::sums::Sums;
use lethe_parts::tables::Tables;
use lethe_recsys::data::{DataSpec, Dataset};
use lethe_recsys::evaluation::{Ranking, mid_rank};
use lethe_recsys::histories::{descriptions, histories};
use lethe_recsys::samples::{Part, Split, event_parts};
use rayon::prelude::*;
use serde_json::{Value, json};

/// Items up to which a dense matrix is made.
const DENSE: usize = 10_000;

/// HR@10 and NDCG@10 of a fleet's answer, for some people.
pub(crate) fn ranking(answer: &Value, wanted: impl Fn(&str) -> bool) -> Ranking {
    let ranks = answer["ranks"].as_array().into_iter().flatten();
    let ranks = ranks.filter(|r| r[0].as_str().is_some_and(&wanted));
    let ranks: Vec<Option<f64>> = ranks.map(|r| r[2].as_f64()).collect();
    Ranking::of(&ranks)
}

/// Everybody's events, divided.
struct Divided {
    histories: Vec<Vec<Event>>,
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
    fn known(&self, user: usize) -> Vec<Event> {
        let both = self.histories[user].iter().zip(&self.parts[user]);
        both.filter(|(_, p)| **p != Part::Test)
            .map(|(e, _)| *e)
            .collect()
    }

    /// The first one that is.
    fn target(&self, user: usize) -> Option<Event> {
        let at = self.parts[user].iter().position(|p| *p == Part::Test)?;
        Some(self.histories[user][at])
    }
}

/// A way to score that is not served.
struct Variant {
    name: &'static str,
    weights: Weights,
}

impl Variant {
    fn only(name: &'static str, feature: Feature) -> Self {
        let mut weights = [0.0; 9];
        weights[feature as usize] = 1.0;
        Self {
            name,
            weights: Weights(weights),
        }
    }

    fn without(name: &'static str, features: &[Feature]) -> Self {
        Self {
            name,
            weights: Weights::PUBLIC.without(features),
        }
    }
}

/// References, and the served score with a part taken away.
fn variants() -> Vec<Variant> {
    use Feature::{Ease, EaseDecay5, EaseDecay15, Far, Near, NearShort, Popularity, Recent, Terms};
    vec![
        Variant::only("popularity", Popularity),
        Variant::only("ease", Ease),
        Variant::without("without_transitions", &[Far, Near, NearShort]),
        Variant::without("without_ease", &[Ease, EaseDecay15, EaseDecay5]),
        Variant::without("without_popularity", &[Popularity, Recent]),
        Variant::without("without_content", &[Terms]),
    ]
}

/// What is known of everybody in one place.
struct Everything {
    tables: Tables,
    content: Content,
    divided: Divided,
    meaning: Meaning,
    met: Vec<BTreeSet<u32>>,
}

impl Everything {
    fn new(data: &Dataset, spec: &DataSpec, split: Split) -> anyhow::Result<Self> {
        let meaning = spec.meaning(data)?;
        let divided = Divided::new(data, split);
        let bounds = Bounds {
            items: data.items.len(),
            clip: MAX_CLIP,
            first_day: i32::MIN,
            last_day: i32::MAX,
        };
        let mut sums = Sums::new(data.items.len());
        let mut met = vec![];
        for user in 0..data.users.len() {
            let known = divided.known(user);
            met.push(known.iter().map(|e| e.item).collect());
            let read = Interaction::read(&known, &meaning);
            sums.fold(&Contribution::newest(&read, &bounds)?)?;
        }
        let content = Content::new(&descriptions(data));
        // Without threshold: what sees everything needs none.
        let settings = Settings {
            k: 1,
            rank: 0,
            field_items: 0,
            unseen: 0,
            ..Settings::default()
        };
        let solved = solve(&sums, &content, &settings, 0);
        let solved = solved.map_err(|e| anyhow::anyhow!("references cannot be solved: {e}"))?;
        Ok(Self {
            tables: solved.tables,
            content,
            divided,
            meaning,
            met,
        })
    }

    /// Ranks of a person's next item by each variant.
    fn ranks(&self, user: usize, target: &Event, variants: &[Variant]) -> Vec<Option<f64>> {
        let history = History::of_events(&self.divided.known(user), &self.meaning);
        let request = Request {
            history: &history,
            today: day_of(target.time),
        };
        let mut composition =
            Composition::new(&self.tables, &self.content, &request, Weights::PUBLIC);
        let items = self.tables.items();
        let mut scores = vec![vec![0.0f32; items]; variants.len()];
        for first in (0..items).step_by(BLOCK) {
            let len = BLOCK.min(items - first);
            let features = composition.features(first as u32, len);
            for (variant, scores) in variants.iter().zip(&mut scores) {
                for (feature, weight) in Feature::ALL.into_iter().zip(variant.weights.0) {
                    let values = features.values(feature);
                    for (score, x) in scores[first..first + len].iter_mut().zip(values) {
                        *score += (weight * x) as f32;
                    }
                }
            }
        }
        for scores in &mut scores {
            for item in history.met() {
                scores[*item as usize] = f32::NEG_INFINITY;
            }
        }
        scores.iter().map(|s| mid_rank(s, target.item)).collect()
    }
}

/// HR@10 and NDCG@10 for the same people, next items and known events: popularity, EASE (Steck,
/// arXiv 1905.03375), item neighbours (Sarwar et al., WWW 2001), and the served score with a part
/// taken away. All of them see everybody's events, in one place and without threshold or cells.
pub(crate) fn references(
    data: &Dataset,
    spec: &DataSpec,
    split: Split,
    without: &str,
) -> anyhow::Result<BTreeMap<String, Ranking>> {
    let all = Everything::new(data, spec, split)?;
    // A dense matrix: where that is too large, this reference is left out.
    let items = data.items.len();
    let neighbours = (items <= DENSE).then(|| Neighbours::new(&all.met, items));
    let variants = variants();
    let of_person = |user: usize| {
        let target = all.divided.target(user);
        let target = target.filter(|_| data.users[user] != without)?;
        let mut ranks = all.ranks(user, &target, &variants);
        let near = neighbours.as_ref().map(|n| n.scores(&all.met[user]));
        ranks.push(near.and_then(|scores| mid_rank(&scores, target.item)));
        Some(ranks)
    };
    let people = (0..data.users.len()).into_par_iter().filter_map(of_person);
    let people: Vec<Vec<Option<f64>>> = people.collect();
    let mut names: Vec<&str> = variants.iter().map(|v| v.name).collect();
    names.extend(neighbours.as_ref().map(|_| "item_knn"));
    let of = |(at, name): (usize, &&str)| {
        let ranks: Vec<Option<f64>> = people.iter().map(|p| p[at]).collect();
        ((*name).to_owned(), Ranking::of(&ranks))
    };
    Ok(names.iter().enumerate().map(of).collect())
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
