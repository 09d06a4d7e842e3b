//! Golden plans, and plans that the lint must refuse.
#![allow(missing_docs, clippy::unwrap_used)]

use lethe_plan::{Inventory, Member, PlanError, Rates, Request, ShardInventory, Step, plan};
use lethe_proto::ids::{ShardId, SubjectId};

fn id(s: &str) -> SubjectId {
    SubjectId::new(s).unwrap()
}

fn inventory() -> Inventory {
    let shard = |n: u16, names: [&str; 3]| ShardInventory {
        id: ShardId(n),
        members: names
            .iter()
            .enumerate()
            .map(|(i, n)| Member {
                subject: id(n),
                slice: i as u16,
                samples: 10,
                idle: false,
            })
            .collect(),
        trained_stage: 3,
        losses: vec![Some(0.7), Some(0.6), Some(0.5)],
    };
    Inventory {
        shards: vec![shard(0, ["a", "b", "c"]), shard(1, ["d", "e", "f"])],
        unplaced: vec![id("x")],
        stages: 3,
        rounds_per_stage: 2,
        cohort: 2,
        samples_per_round: 4,
        rates: Rates {
            client_rounds: 10,
            busy_ms: 5_000,
            client_ms: 20_000,
            bytes: 1_000,
        },
    }
}

fn erase(s: &str) -> Request {
    Request::Erase { subject: id(s) }
}

fn items(s: &str) -> Request {
    Request::EraseItems {
        subject: id(s),
        items: vec!["i1".into(), "i2".into()],
    }
}

#[test]
fn golden_plan_of_a_person() {
    let p = plan(&inventory(), &[erase("e")]).unwrap();
    assert_eq!(p.lint(&inventory()), Ok(()));
    assert_eq!(
        p.to_string(),
        "forget all data of subject e\n  1. refuse the devices of subject e\n  2. destroy the \
         encryption keys of subject e\n  3. shard 1: destroy stages 2 and later, serve checkpoint \
         1\n  4. drop what was measured on the data and on what was destroyed\n  5. publish a \
         release\n  6. recall earlier releases\n  7. shard 1: retrain stages 2 to 3 with the 2 \
         subjects that remain\n  8. publish a release\n  9. enter 1 statement(s) into the log, \
         issue the receipt(s)\nuntouched shards: 0\ncost: 4 rounds with 24 samples; \
         retraining everything: 12 rounds with 72\nexpected, at the rates measured so far: 3.0 s, \
         0.2 minutes of work on devices, 0.0 MB\nmeanwhile: shard 1 serves an earlier checkpoint \
         (training loss 0.700; now training loss 0.500)"
    );
}

#[test]
fn golden_plan_of_a_batch_replays_each_shard_once() {
    let requests = [
        erase("c"),
        items("b"),
        Request::Restrict { subject: id("f") },
    ];
    let p = plan(&inventory(), &requests).unwrap();
    assert_eq!(p.lint(&inventory()), Ok(()));
    assert_eq!(
        p.to_string(),
        "forget all data of subject c\nforget items i1, i2 of subject b\nstop using the data of \
         subject f, but keep it\n  1. refuse the devices of subject c\n  2. destroy the encryption \
         keys of subject c\n  3. destroy the encryption keys of subject b\n  4. set subject f \
         aside\n  5. shard 0: destroy stages 2 and later, serve checkpoint 1\n  6. shard 1: \
         destroy stages 3 and later, serve checkpoint 2\n  7. drop what was measured on the data \
         and on what was destroyed\n  8. publish a release\n  9. recall earlier releases\n  10. \
         have 1 device(s) erase; their shards wait for them\n  11. shard 0: retrain stages 2 to 3 \
         with the 2 subjects that remain\n  12. shard 1: retrain stages 3 to 3 with the 2 subjects \
         that remain\n  13. publish a release\n  14. enter 3 statement(s) into the log, issue the \
         receipt(s)\nuntouched shards: none\ncost: 6 rounds with 48 samples; \
         retraining everything: 12 rounds with 80\nexpected, at the rates measured so far: 6.0 s, \
         0.4 minutes of work on devices, 0.0 MB\nmeanwhile: shard 0 serves an earlier checkpoint \
         (training loss 0.700; now training loss 0.500)\nmeanwhile: shard 1 serves an earlier \
         checkpoint (training loss 0.600; now training loss 0.500)"
    );
}

#[test]
fn forecast_at_measured_rates() {
    let f = plan(&inventory(), &[erase("e")]).unwrap().forecast;
    // Stage 2: one subject remains of two, stage 3: two of three; two rounds each.
    assert_eq!(
        (f.cost.rounds, f.cost.client_rounds, f.cost.samples),
        (4, 6, 24)
    );
    assert_eq!((f.cost.seconds, f.cost.bytes), (3.0, 600));
    assert!((f.cost.client_minutes - 0.2).abs() < 1e-9);
    assert_eq!(f.degraded, [(ShardId(1), Some(0.7), Some(0.5))]);
    let first = plan(&inventory(), &[erase("d")]).unwrap().forecast;
    assert_eq!(
        first.degraded,
        [(ShardId(1), None, Some(0.5))],
        "the untrained adapter serves meanwhile"
    );
}

#[test]
fn a_takedown_concerns_everybody_and_withdrawing_asks_the_device() {
    let p = plan(
        &inventory(),
        &[Request::Takedown {
            items: vec!["i9".into()],
        }],
    )
    .unwrap();
    assert_eq!(p.lint(&inventory()), Ok(()));
    assert_eq!(p.affected(), [(ShardId(0), 1), (ShardId(1), 1)]);
    assert!(p.steps.contains(&Step::EraseOnDevices { subjects: 6 }));
    let p = plan(
        &inventory(),
        &[Request::Withdraw {
            subject: id("f"),
            from: 1_700_000_000,
        }],
    )
    .unwrap();
    assert_eq!(p.lint(&inventory()), Ok(()));
    assert!(p.steps.contains(&Step::EraseOnDevices { subjects: 1 }));
    assert!(
        !p.steps.contains(&Step::Withdraw { subject: id("f") }),
        "the person stays"
    );
}

#[test]
fn who_was_never_trained_on_costs_nothing() {
    let mut inv = inventory();
    inv.shards[1].trained_stage = 1;
    let p = plan(&inv, &[erase("f"), erase("x")]).unwrap();
    assert_eq!(
        (p.lint(&inv), p.forecast.cost.rounds, p.untouched.len()),
        (Ok(()), 0, 2)
    );
    // Came after the epoch started, or was restricted: no stage holds the data.
    let mut inv = inventory();
    inv.shards[0].members[1].idle = true;
    let p = plan(&inv, &[erase("b")]).unwrap();
    assert_eq!((p.lint(&inv), p.affected()), (Ok(()), vec![]));
    assert!(p.steps.contains(&Step::DestroyKeys { subject: id("b") }));
}

#[test]
fn requests_that_cannot_be_planned() {
    let inv = inventory();
    assert_eq!(
        plan(&inv, &[erase("nobody")]),
        Err(PlanError::UnknownSubject(id("nobody")))
    );
    assert_eq!(
        plan(&inv, &[erase("a"), items("a")]),
        Err(PlanError::Twice(id("a")))
    );
    assert_eq!(
        plan(&inv, &[Request::Takedown { items: vec![] }]),
        Err(PlanError::Empty("item"))
    );
    assert_eq!(plan(&inv, &[]), Err(PlanError::Empty("request")));
}

#[test]
fn lint_catches_every_step_that_is_missing_added_or_moved() {
    let inv = inventory();
    let good = plan(&inv, &[erase("e"), Request::Restrict { subject: id("b") }]).unwrap();
    assert_eq!(good.lint(&inv), Ok(()));
    for i in 0..good.steps.len() {
        let mut p = good.clone();
        let gone = p.steps.remove(i);
        // The second release only announces what is retrained; without it the first remains, and
        // the executor adds it.
        if gone != Step::Release || i < 6 {
            assert!(p.lint(&inv).is_err(), "without {gone:?}");
        }
    }
    let mut late = good.clone();
    late.steps.iter_mut().for_each(|s| {
        if let Step::RollBack { from_stage, .. } = s {
            *from_stage += 1;
        }
    });
    assert!(
        late.lint(&inv).is_err(),
        "a later checkpoint has seen the data"
    );
    let mut wide = good.clone();
    wide.steps.insert(
        0,
        Step::RollBack {
            shard: ShardId(0),
            from_stage: 1,
        },
    );
    assert!(wide.lint(&inv).is_err(), "twice, and too far");
    let mut other = good.clone();
    other
        .steps
        .insert(0, Step::DestroyKeys { subject: id("a") });
    assert!(other.lint(&inv).is_err(), "somebody else's keys");
    let mut kept = good;
    kept.steps.insert(0, Step::DestroyKeys { subject: id("b") });
    assert!(kept.lint(&inv).is_err(), "restricted data is kept");
}
