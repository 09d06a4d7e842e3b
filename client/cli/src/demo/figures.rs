//! Figures of an evaluation.

use std::collections::BTreeMap;

use lethe_learn::metrics::{Spread, auc, uauc, user_aucs};
use lethe_learn::seed::Seed;
use lethe_recsys::data::{Dataset, Event};
use lethe_recsys::references::{NAMES, References};
use lethe_recsys::samples::{Part, Samples, Split, TaskSample, event_parts, training_events};
use serde_json::{Value, json};

/// One scored test sample.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) user: String,
    pub(crate) item: String,
    pub(crate) time: i64,
    pub(crate) score: f32,
    pub(crate) label: bool,
}

/// Rows of a fleet's answer.
pub(crate) fn rows(answer: &Value) -> Vec<Row> {
    let row = |v: &Value| {
        Some(Row {
            user: v[0].as_str()?.to_owned(),
            item: v[1].as_str()?.to_owned(),
            time: v[2].as_i64()?,
            score: v[3].as_f64()? as f32,
            label: v[4].as_bool()?,
        })
    };
    answer["rows"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(row)
        .collect()
}

/// Mean log loss of rows whose scores are log-odds, in nats.
pub(crate) fn log_loss(rows: &[Row], without: &str) -> Option<f64> {
    let kept: Vec<f64> = rows
        .iter()
        .filter(|r| r.user != without)
        .map(|r| {
            let toward = f64::from(if r.label { r.score } else { -r.score });
            (-toward).exp().ln_1p()
        })
        .collect();
    (!kept.is_empty()).then(|| kept.iter().sum::<f64>() / kept.len() as f64)
}

/// AUC, UAUC and the spread over clients of one evaluation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) auc: Option<f64>,
    pub(crate) uauc: Option<f64>,
    pub(crate) spread: Option<Spread>,
    pub(crate) samples: usize,
}

/// Figures of rows; with `without`, as if that user had never been tested, so that before and after
/// compare.
pub(crate) fn figures(rows: &[Row], without: Option<&str>) -> Figures {
    let kept: Vec<&Row> = rows
        .iter()
        .filter(|r| Some(r.user.as_str()) != without)
        .collect();
    let scores: Vec<f32> = kept.iter().map(|r| r.score).collect();
    let labels: Vec<bool> = kept.iter().map(|r| r.label).collect();
    let users: Vec<&str> = kept.iter().map(|r| r.user.as_str()).collect();
    let per_user: Vec<f64> = user_aucs(&users, &scores, &labels).into_values().collect();
    Figures {
        auc: auc(&scores, &labels),
        uauc: uauc(&users, &scores, &labels),
        spread: Spread::of(&per_user),
        samples: kept.len(),
    }
}

/// Which events references are fitted on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// Those that adapters are trained on.
    Train,
    /// All that are not tested, as the sums of lists.
    TrainAndValidation,
}

fn known_events(data: &Dataset, split: Split, known: Known) -> Vec<Event> {
    if known == Known::Train {
        return training_events(data, split);
    }
    let parts = event_parts(data, split);
    let both = data.events.iter().zip(parts);
    both.filter(|(_, part)| *part != Part::Test)
        .map(|(event, _)| *event)
        .collect()
}

/// The cheap references on exactly these test samples, fitted on what is known of all users of the
/// data set.
pub(crate) fn references(
    data: &Dataset,
    split: Split,
    known: Known,
    tested: &[Row],
    without: &str,
) -> BTreeMap<String, Figures> {
    let models = References::fit(
        &known_events(data, split, known),
        data.users.len(),
        data.items.len(),
        &Seed::from_u64(1),
    );
    let all = Samples::build(data, split);
    let key = |s: &TaskSample| {
        (
            data.users[s.user as usize].clone(),
            data.items[s.item as usize].id.clone(),
            data.events[s.event as usize].time,
        )
    };
    let index: BTreeMap<_, &TaskSample> = all.part(Part::Test).map(|s| (key(s), s)).collect();
    let found: Vec<(&Row, [f32; 4])> = tested
        .iter()
        .filter_map(|r| {
            Some((
                r,
                models.scores(index.get(&(r.user.clone(), r.item.clone(), r.time))?),
            ))
        })
        .collect();
    NAMES
        .iter()
        .enumerate()
        .map(|(k, name)| {
            let rows: Vec<Row> = found
                .iter()
                .map(|(r, s)| Row {
                    score: s[k],
                    ..(*r).clone()
                })
                .collect();
            ((*name).to_owned(), figures(&rows, Some(without)))
        })
        .collect()
}

impl Figures {
    /// `{mean, std, worst_decile}` of client AUCs.
    pub(crate) fn spread_json(&self) -> Value {
        self.spread.map_or(
            Value::Null,
            |s| json!({ "mean": s.mean, "std": s.std, "worst_decile": s.worst_decile }),
        )
    }
}
