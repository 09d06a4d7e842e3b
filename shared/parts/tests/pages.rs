//! Pages, reasons and snapshots as a device uses them.
#![allow(missing_docs, clippy::unwrap_used)]

mod people;

use lethe_parts::content::Content;
use lethe_parts::event::{Event, Kind, Meaning};
use lethe_parts::history::History;
use lethe_parts::score::{Options, Ranker, Request, Weights, reasons};
use lethe_parts::snapshot::{self, Packing, RowPacking, SnapshotError};
use lethe_parts::solve::{Settings, solve};
use lethe_parts::sums::Sums;
use lethe_parts::tables::Tables;
use people::{TAGS, all_events, content, contributions};

const ITEMS: usize = 1_200;

struct Device {
    tables: Tables,
    content: Content,
    history: History,
}

impl Device {
    fn new() -> Self {
        let content = content(ITEMS);
        let mut sums = Sums::new(ITEMS);
        sums.fold_all(&contributions(800, ITEMS, 1)).unwrap();
        // Nobody has met the last items.
        sums.clear_items(&[ITEMS as u32 - 1, ITEMS as u32 - 2])
            .unwrap();
        let settings = Settings {
            rank: 20,
            ..Settings::default()
        };
        let events = &all_events(5, ITEMS, 2)[1];
        Self {
            tables: solve(&sums, &content, &settings, 400).unwrap().tables,
            history: History::of_events(events, &Meaning::default()),
            content,
        }
    }

    fn request(&self) -> Request<'_> {
        Request {
            history: &self.history,
            today: 401,
        }
    }
}

#[test]
fn filters_boosts_and_history_hold() {
    let d = Device::new();
    let mut ranker = Ranker::default();
    let even = |item: u32| item.is_multiple_of(2);
    let options = Options {
        allow: Some(&even),
        size: 50,
        ..Options::default()
    };
    let page = ranker.page(&d.tables, &d.content, &d.request(), &options);
    assert_eq!(page.items.len(), 50);
    assert!(page.items.iter().all(|i| even(i.item)));
    assert!(page.items.iter().all(|i| !d.history.has_met(i.item)));
    assert!(page.items.iter().all(|i| (0.0..=1.0).contains(&i.like)));
    assert!(page.items.windows(2).all(|w| w[0].score >= w[1].score));
    let last = page.items[49].item;
    let lift = |item: u32| {
        if item == last {
            100.0
        } else {
            f64::NAN * f64::from(item % 7 / 6)
        }
    };
    let options = Options {
        boost: Some(&lift),
        ..options
    };
    let boosted = ranker.page(&d.tables, &d.content, &d.request(), &options);
    assert_eq!(boosted.items[0].item, last);
    assert!(boosted.items.iter().all(|i| i.score.is_finite()));
}

#[test]
fn taste_is_met_and_diversity_mixes() {
    let d = Device::new();
    let mut ranker = Ranker::default();
    let tags = |options: &Options<'_>, ranker: &mut Ranker| -> usize {
        let page = ranker.page(&d.tables, &d.content, &d.request(), options);
        let mut tags: Vec<u32> = page.items.iter().map(|i| i.item % 5).collect();
        tags.sort_unstable();
        tags.dedup();
        tags.len()
    };
    let plain = Options::default();
    assert!(tags(&plain, &mut ranker) <= 2, "one taste, one tag");
    let diverse = Options {
        diversity: 50.0,
        ..plain
    };
    assert!(tags(&diverse, &mut ranker) > tags(&plain, &mut ranker));
}

#[test]
fn popular_similar_and_unseen() {
    let d = Device::new();
    let mut ranker = Ranker::default();
    let war = d.content.term("war");
    let popular = ranker.popular(&d.tables, &d.content, 401, war, 10);
    assert_eq!(popular.items.len(), 10);
    assert!(
        popular
            .items
            .iter()
            .all(|i| TAGS[i.item as usize % 5] == "War")
    );
    let similar = ranker.similar(&d.tables, &d.content, 7, 5);
    assert_eq!(similar.len(), 5);
    assert!(
        similar.iter().filter(|(i, _)| i % 5 == 2).count() >= 4,
        "{similar:?}"
    );
    assert!(similar.iter().all(|(i, _)| *i != 7));
    let options = Options {
        unseen: 2,
        ..Options::default()
    };
    let page = ranker.page(&d.tables, &d.content, &d.request(), &options);
    let unseen: Vec<u32> = page
        .items
        .iter()
        .filter(|i| i.unseen)
        .map(|i| i.item)
        .collect();
    assert_eq!(page.items.len(), 10);
    assert_eq!(unseen.len(), 2);
    assert!(unseen.iter().all(|i| *i >= ITEMS as u32 - 2));
    // Their tag is the fifth and the fourth; the person's is the second.
    let newcomer = History::default();
    let request = Request {
        history: &newcomer,
        today: 401,
    };
    let first = ranker.page(&d.tables, &d.content, &request, &Options::default());
    assert_eq!(first.items.len(), 10);
    let listed: f64 = first.items.iter().map(|i| d.tables.start(i.item)).sum();
    let average = 1.0 / ITEMS as f64;
    assert!(
        listed / 10.0 > 2.0 * average,
        "newcomers see what people meet first"
    );
}

#[test]
fn reasons_are_what_leaving_an_event_out_costs() {
    let d = Device::new();
    // Longer than every window of the features, and shorter than all of them.
    let mut long: Vec<Event> = all_events(6, ITEMS, 2).concat();
    long.sort_by_key(|e| e.time);
    assert!(long.len() > 100);
    for seen in [long.clone(), long[..4].to_vec(), long[..1].to_vec()] {
        leave_each_out(&d, &seen);
    }
}

fn leave_each_out(d: &Device, seen: &[Event]) {
    let mut ranker = Ranker::default();
    let history = History::of_events(seen, &Meaning::default());
    let request = Request {
        history: &history,
        today: 401,
    };
    let page = ranker.page(&d.tables, &d.content, &request, &Options::default());
    let item = page.items[0].item;
    let weights = Weights::PUBLIC;
    let all = reasons(&d.tables, &d.content, &request, &weights, item, usize::MAX);
    assert_eq!(page.items[0].reasons[..], all[..1.min(all.len())]);
    let score = |history: &History, ranker: &mut Ranker| {
        let request = Request {
            history,
            today: 401,
        };
        let scores = ranker.scores(&d.tables, &d.content, &request, Weights::PUBLIC);
        f64::from(scores[item as usize])
    };
    let whole = score(&history, &mut ranker);
    let mut falls = vec![];
    for age in 0..seen.len() {
        let mut without = seen.to_vec();
        without.remove(seen.len() - 1 - age);
        let history = History::of_events(&without, &Meaning::default());
        let fall = whole - score(&history, &mut ranker);
        // An item that was met twice is still met when one of the two is left out; `item` is not.
        falls.push(fall);
    }
    for reason in &all {
        let fall = falls[reason.age];
        assert!((fall - reason.amount).abs() < 1e-4, "{fall} {reason:?}");
    }
    let expected = falls.iter().filter(|f| **f > 1e-4).count();
    assert!(all.len() >= expected, "{} of {expected} reasons", all.len());
}

#[test]
fn snapshots_rank_nearly_alike_and_deltas_give_the_same_bytes() {
    let d = Device::new();
    let packing = Packing {
        rows: RowPacking { keep: 100, bits: 6 },
        ..Packing::default()
    };
    let bytes = snapshot::encode(&d.tables, &packing).unwrap();
    let device = snapshot::decode(&bytes).unwrap();
    let mut ranker = Ranker::default();
    let exact = ranker.page(&d.tables, &d.content, &d.request(), &Options::default());
    let packed = ranker.page(&device, &d.content, &d.request(), &Options::default());
    let kept = packed
        .items
        .iter()
        .filter(|i| exact.items.iter().any(|e| e.item == i.item))
        .count();
    assert!(kept >= 7, "{kept} of 10 items");
    let smaller = snapshot::encode(&d.tables, &Packing::default()).unwrap();
    let delta = snapshot::delta(&bytes, &smaller);
    let delta = delta.unwrap();
    assert_eq!(snapshot::apply(&bytes, &delta).unwrap(), smaller);
    assert!(matches!(
        snapshot::apply(&smaller, &delta),
        Err(SnapshotError::OtherBase { .. })
    ));
    let same = snapshot::delta(&bytes, &bytes).unwrap();
    assert!(same.len() < 200);
    let mut broken = delta.clone();
    *broken.last_mut().unwrap() ^= 1;
    assert!(snapshot::apply(&bytes, &broken).is_err());
}

#[test]
fn damaged_snapshots_are_refused_or_safe() {
    let d = Device::new();
    let bytes = snapshot::encode(&d.tables, &Packing::default()).unwrap();
    for cut in (0..bytes.len()).step_by(bytes.len() / 60) {
        assert!(snapshot::decode(&bytes[..cut]).is_err());
    }
    let mut ranker = Ranker::default();
    for at in (0..bytes.len()).step_by(bytes.len() / 60) {
        let mut other = bytes.clone();
        other[at] ^= 0x10;
        if let Ok(tables) = snapshot::decode(&other)
            && tables.items() == ITEMS
        {
            ranker.page(&tables, &d.content, &d.request(), &Options::default());
        }
    }
}

#[test]
fn hidden_items_are_never_listed() {
    let d = Device::new();
    let mut ranker = Ranker::default();
    let page = ranker.page(&d.tables, &d.content, &d.request(), &Options::default());
    let hidden = page.items[0].item;
    let mut events = all_events(5, ITEMS, 2)[1].clone();
    events.push(Event {
        item: hidden,
        time: i64::from(i32::MAX),
        kind: Kind::Hide,
        value: 0.0,
    });
    let history = History::of_events(&events, &Meaning::default());
    let request = Request {
        history: &history,
        today: 401,
    };
    let page = ranker.page(&d.tables, &d.content, &request, &Options::default());
    assert!(page.items.iter().all(|i| i.item != hidden));
}

#[test]
fn items_that_are_newer_than_the_snapshot_say_nothing() {
    let d = Device::new();
    let mut events = all_events(5, ITEMS, 2)[1].clone();
    events.push(Event {
        item: ITEMS as u32 + 7,
        time: i64::from(i32::MAX),
        kind: Kind::Rating,
        value: 5.0,
    });
    let history = History::of_events(&events, &Meaning::default());
    let request = Request {
        history: &history,
        today: 401,
    };
    let packed =
        snapshot::decode(&snapshot::encode(&d.tables, &Packing::default()).unwrap()).unwrap();
    for tables in [&d.tables, &packed] {
        let options = Options {
            unseen: 1,
            ..Options::default()
        };
        let page = Ranker::default().page(tables, &d.content, &request, &options);
        assert_eq!(page.items.len(), 10);
        assert!(page.items.iter().all(|i| i.like.is_finite()));
        Ranker::default().similar(tables, &d.content, ITEMS as u32 + 7, 5);
    }
}

#[test]
fn a_row_of_very_many_unmet_items_can_be_read_back() {
    // One item speaks for more unmet items than a row can hold.
    const MANY: usize = 120_000;
    let mut sums = Sums::new(MANY);
    let events: Vec<Event> = (0..4)
        .map(|item| Event {
            item,
            time: 0,
            kind: Kind::Rating,
            value: 4.0,
        })
        .collect();
    let read = lethe_parts::history::Interaction::read(&events, &Meaning::default());
    let one = lethe_parts::contribution::Contribution::new(&read, &people::bounds(MANY)).unwrap();
    sums.fold_all(&vec![one; 4]).unwrap();
    let solved = solve(&sums, &content(MANY), &Settings::default(), 400).unwrap();
    let bytes = snapshot::encode(&solved.tables, &Packing::default()).unwrap();
    assert_eq!(snapshot::decode(&bytes).unwrap().items(), MANY);
}
