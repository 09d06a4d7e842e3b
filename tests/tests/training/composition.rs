//! The recommender against reference values of an independent implementation, on MovieLens-100K,
//! without threshold and clip.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::OnceLock;

use lethe_learn::metrics::{auc, uauc};
use lethe_parts::content::Content;
use lethe_parts::contribution::{Bounds, Contribution, MAX_CLIP};
use lethe_parts::event::{Event, Meaning};
use lethe_parts::history::{History, Interaction, day_of};
use lethe_parts::score::{Like, Ranker, Request, SEVEN, TWELVE, Weights, features_of};
use lethe_parts::solve::{Settings, recent, solve};
use lethe_parts::sums::Sums;
use lethe_parts::tables::Tables;
use lethe_recsys::data::{DataSpec, Dataset, load};
use lethe_recsys::evaluation::{Ranking, mid_rank};
use lethe_recsys::histories::{descriptions, histories, sentence};
use serde_json::Value;

const WHOLE: Settings = Settings {
    k: 1,
    rank: 150,
    field_items: usize::MAX,
    form: lethe_parts::solve::Form::Dense,
    content_in_field: true,
    unseen: usize::MAX,
    like_boundary: lethe_parts::event::LIKE_BOUNDARY,
};

struct World {
    data: Dataset,
    histories: Vec<Vec<Event>>,
    content: Content,
    golden: Value,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let folder = &lethe_tests::assets().movielens;
        let data = load(folder, &DataSpec::movielens(), true).unwrap();
        World {
            histories: histories(&data),
            content: Content::new(&descriptions(&data)),
            golden: serde_json::from_str(include_str!("../../fixtures/composition.json")).unwrap(),
            data,
        }
    })
}

impl World {
    fn item(&self, id: &str) -> u32 {
        self.data.items.iter().position(|i| i.id == id).unwrap() as u32
    }

    fn user(&self, id: &str) -> usize {
        self.data.users.iter().position(|u| u == id).unwrap()
    }

    fn sums(&self, cut: impl Fn(&[Event]) -> &[Event]) -> Sums {
        let bounds = Bounds {
            items: self.data.items.len(),
            clip: MAX_CLIP,
            first_day: 0,
            last_day: 20_000,
        };
        let all: Vec<Contribution> = self
            .histories
            .iter()
            .map(|h| Interaction::read(cut(h), &Meaning::default()))
            .map(|read| Contribution::new(&read, &bounds).unwrap())
            .collect();
        let mut sums = Sums::new(self.data.items.len());
        sums.fold_all(&all).unwrap();
        sums
    }

    /// Sums over all but the last two events.
    fn next_sums(&self) -> Sums {
        self.sums(|h| &h[..h.len() - 2])
    }

    /// Sums over the first nine tenths.
    fn like_sums(&self) -> Sums {
        self.sums(|h| &h[..h.len() * 9 / 10])
    }
}

fn near(what: &str, got: f64, wanted: &Value, tolerance: f64) {
    let wanted = wanted.as_f64().unwrap();
    assert!(
        (got - wanted).abs() <= tolerance,
        "{what}: {got}, expected {wanted} within {tolerance}"
    );
}

fn object(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().unwrap().iter()
}

#[test]
fn sums_and_solved_tables() {
    let w = world();
    let sums = w.next_sums();
    let golden = &w.golden["sums"];
    let total = |name: &str| u128::from(golden[name].as_u64().unwrap());
    assert_eq!(sums.pairs().met.total(), total("G_total"));
    assert_eq!(sums.transitions().near.total(), total("C10_total"));
    assert_eq!(sums.transitions().far.total(), total("C40_total"));
    let settings = Settings { rank: 0, ..WHOLE };
    let tables = solve(&sums, &w.content, &settings, 0).unwrap().tables;
    let mut row = lethe_parts::rows::Row::default();
    for (pair, wanted) in object(&golden["pairs"]) {
        let (a, b) = pair.split_once(',').unwrap();
        let (a, b) = (w.item(a), w.item(b));
        let exact = |name: &str| wanted[name].as_u64().unwrap();
        assert_eq!(sums.pairs().met.get(a, b), exact("G"), "{pair}");
        assert_eq!(sums.transitions().near.get(a, b), exact("C10"), "{pair}");
        assert_eq!(sums.transitions().far.get(a, b), exact("C40"), "{pair}");
        let (ease, background) = tables.ease().entry(a, b, &mut row);
        near(pair, f64::from(ease + background), &wanted["B"], 1e-6);
        let (far, background) = tables.next().entry(a, b, &mut row);
        let far = f64::from(background) * tables.share(b) + f64::from(far);
        near(pair, far, &wanted["P40"], 1e-6);
        let (log, background) = tables.near().entry(a, b, &mut row);
        near(pair, f64::from(log + background), &wanted["L10"], 1e-6);
    }
}

#[test]
fn features_lists_and_ranks_of_the_next_item() {
    let w = world();
    let sums = w.next_sums();
    let settings = Settings { rank: 0, ..WHOLE };
    let mut tables = solve(&sums, &w.content, &settings, 0).unwrap().tables;
    // By day, so that what was met lately is computed once a day.
    let mut by_day: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
    for (user, history) in w.histories.iter().enumerate() {
        let day = day_of(history.last().unwrap().time);
        by_day.entry(day).or_default().push(user);
    }
    let mut ranker = Ranker::default();
    let mut ranks = vec![];
    let mut checked = 0;
    for (day, users) in by_day {
        tables.set_day(recent(&sums, 1, day));
        for user in users {
            let (target, past) = w.histories[user].split_last().unwrap();
            let history = History::of_events(past, &Meaning::default());
            let request = Request {
                history: &history,
                today: day,
            };
            let scores = ranker.scores(&tables, &w.content, &request, Weights::PUBLIC);
            ranks.push(mid_rank(scores, target.item));
            if let Some(wanted) = w.golden["people"].get(&w.data.users[user]) {
                one_person(w, &tables, &request, scores, target.item, wanted);
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 5);
    let found = Ranking::of(&ranks);
    assert_eq!(
        ranks.len() as u64,
        w.golden["test"]["people"].as_u64().unwrap()
    );
    near("HR@10", found.hr, &w.golden["test"]["hr10"], 0.002);
    near("NDCG@10", found.ndcg, &w.golden["test"]["ndcg10"], 0.002);
}

fn one_person(
    w: &World,
    tables: &Tables,
    request: &Request<'_>,
    scores: &[f32],
    target: u32,
    wanted: &Value,
) {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]));
    for (item, listed) in order.iter().zip(wanted["top10"].as_array().unwrap()) {
        assert_eq!(*item, w.item(listed[0].as_str().unwrap()));
        near("score", f64::from(scores[*item as usize]), &listed[1], 1e-3);
    }
    assert_eq!(target, w.item(wanted["test_item"].as_str().unwrap()));
    let better = scores
        .iter()
        .filter(|s| **s > scores[target as usize])
        .count();
    assert_eq!(better as u64, wanted["rank_of_test"].as_u64().unwrap());
    for (item, name) in [(order[0], "features_of_top1"), (target, "features_of_test")] {
        let features = features_of(tables, &w.content, request, item);
        let names = [
            "pop", "rec30", "mk40", "ease", "genre", "nb10", "nb10s", "lease15", "lease5",
        ];
        for (got, feature) in features.into_iter().zip(names) {
            near(feature, got, &wanted[name][feature], 1e-3);
        }
    }
}

/// A test row: user, event.
fn test_rows(w: &World) -> Vec<(usize, Event)> {
    let rows = w.histories.iter().enumerate().flat_map(|(user, h)| {
        h[h.len() * 9 / 10..]
            .iter()
            .map(move |event| (user, *event))
    });
    rows.collect()
}

fn like_tables(sums: &Sums, content: &Content, with_content: bool) -> Tables {
    let settings = Settings {
        content_in_field: with_content,
        ..WHOLE
    };
    solve(sums, content, &settings, 0).unwrap().tables
}

#[test]
fn likes() {
    let w = world();
    let home = lethe_assets::default_home().unwrap();
    let folder = lethe_assets::fetch_encoder(&home, &mut |_| {}).unwrap();
    let texts: Vec<String> = w.data.items.iter().map(|i| sentence(i, "movie")).collect();
    let encoder = lethe_model::encoder::Encoder::open(&folder).unwrap();
    let text = w
        .content
        .clone()
        .with_text(&encoder.encode(&texts).unwrap());
    let text = text.unwrap();
    let sums = w.like_sums();
    let golden = &w.golden["like"];
    let both = like_tables(&sums, &text, true);
    let terms = like_tables(&sums, &w.content, true);
    let neither = like_tables(&sums, &w.content, false);
    for (item, mean) in object(&golden["krige"]["mu"]) {
        near("mu", both.mean(w.item(item)), mean, 1e-5);
    }
    for (name, tables, content) in [
        ("genre_and_text", &both, &text),
        ("genre_only", &terms, &w.content),
        ("none", &neither, &w.content),
    ] {
        field_alone(w, tables, content, &golden["krige"][name]);
    }
    composed(w, &both, &neither, &text);
}

fn field_alone(w: &World, tables: &Tables, content: &Content, golden: &Value) {
    let prepare = |user| Like::new(tables, content, &like_history(w, user));
    let score = |like: &Like<'_>, user: usize, event: &Event| {
        let predicted = like.features(event.item).field;
        let wanted = golden["predictions"].get(&w.data.users[user]);
        let wanted = wanted.and_then(|rows| {
            let id = &w.data.items[event.item as usize].id;
            rows.as_array().unwrap().iter().find(|r| r[0] == **id)
        });
        if let Some(row) = wanted {
            assert_eq!(row[1].as_f64().unwrap(), f64::from(event.value));
            near("predicted rating", predicted, &row[2], 1e-3);
        }
        predicted
    };
    let rows = judge("field alone", w, golden, prepare, score);
    assert_eq!(rows as u64, golden["rows"].as_u64().unwrap());
}

/// Compares AUC and UAUC of the test rows with the golden ones; `prepare` is called once a person.
/// Returns the number of rows.
fn judge<'a>(
    name: &str,
    w: &World,
    golden: &Value,
    prepare: impl Fn(usize) -> Like<'a>,
    score: impl Fn(&Like<'a>, usize, &Event) -> f64,
) -> usize {
    let mut scores = vec![];
    let mut labels = vec![];
    let mut users = vec![];
    let mut like = None;
    for (user, event) in test_rows(w) {
        if users.last() != Some(&(user as u32)) {
            like = None;
        }
        let like = like.get_or_insert_with(|| prepare(user));
        scores.push(score(like, user, &event) as f32);
        labels.push(event.value > 3.0);
        users.push(user as u32);
    }
    let area = auc(&scores, &labels).unwrap();
    near(name, area, &golden["auc"], 0.002);
    let by_person = uauc(&users, &scores, &labels).unwrap();
    near(name, by_person, &golden["uauc"], 0.002);
    scores.len()
}

fn like_history(w: &World, user: usize) -> History {
    let h = &w.histories[user];
    History::of_events(&h[..h.len() * 9 / 10], &Meaning::default())
}

fn composed(w: &World, both: &Tables, neither: &Tables, content: &Content) {
    let golden = &w.golden["like"];
    for row in golden["rows"].as_array().unwrap() {
        let user = w.user(row["user"].as_str().unwrap());
        let item = w.item(row["item"].as_str().unwrap());
        let history = like_history(w, user);
        let like = Like::new(both, content, &history).with_plain_field(neither.field());
        let f = like.features(item);
        let named = [
            ("krige", f.field),
            ("krige_nocontent", f.field_without_content),
            ("krige_var", f.variance),
            ("item_logit", f.item_log_odds),
            ("user_rate", f.rate_log_odds),
            ("user_recent", f.recent_log_odds),
            ("ease", f.ease),
            ("ease_signed", f.signed_ease),
            ("logn", f.log_people),
            ("lognu", f.log_events),
            ("genre_aff", f.term_affinity),
            ("text_aff", f.text_affinity),
        ];
        for (name, got) in named {
            near(name, got, &row["features"][name], 1e-3);
        }
        near("seven", f.log_odds(&SEVEN), &row["log_odds_compact"], 2e-3);
        near("twelve", f.log_odds(&TWELVE), &row["log_odds_twelve"], 2e-3);
    }
    for (name, weights) in [("compact", &SEVEN), ("twelve", &TWELVE)] {
        let prepare = |user| {
            let prepared = Like::new(both, content, &like_history(w, user));
            prepared.with_plain_field(neither.field())
        };
        let score =
            |like: &Like<'_>, _: usize, event: &Event| like.features(event.item).log_odds(weights);
        judge(name, w, &golden[name], prepare, score);
    }
}
