//! Orders, receipts and bundles of a driven history, checked as devices, people and auditors do.

use lethe_ledger::ShardKey;
use lethe_proto::admin::DeletionPhase;
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::{EpochNo, ShardId};
use lethe_proto::message::Refusal;
use lethe_receipt::audit::Bundle;
use lethe_receipt::note::VerifierKey;
use lethe_receipt::order;
use lethe_receipt::policy::Policy;
use lethe_receipt::receipt::{Cosigned, Effect, Fate, Receipt, SignedByTally, VerifyError, verify};
use lethe_receipt::witness::{Seen, Witness};

use super::driver::{Driver, PEOPLE, digest, erase, erase_item, subject};
use crate::CoordinatorError;

fn key(d: &Driver) -> VerifierKey {
    VerifierKey::parse(&d.evidence.log_key()).unwrap()
}

fn finish(d: &mut Driver) -> Vec<Receipt> {
    d.until(|s| {
        s.deletions()
            .values()
            .all(|d| d.phase == DeletionPhase::Done)
    });
    let key = key(d);
    let receipts = d.receipts.values();
    receipts.map(|r| verify(r, &key).unwrap()).collect()
}

#[test]
fn receipts_of_a_driven_history_verify_offline() {
    let mut d = Driver::trained();
    let takedown = DeletionRequest::Takedown {
        items: vec!["6".into()],
    };
    d.forget(vec![erase("ada"), erase_item("ben", "5"), takedown]);
    let receipts = finish(&mut d);
    assert_eq!(receipts.len(), 3);
    let [ada, ben, all] = receipts.as_slice() else {
        panic!("three receipts");
    };
    assert_eq!((ada.subject.as_str(), ada.statement.batch), ("ada", 3));
    let fate = |r: &Receipt| r.records.clone().unwrap().fate;
    assert!(matches!(fate(ada), Fate::Absent(_)));
    assert!(matches!(fate(ben), Fate::Replaced(_)));
    assert_eq!(ben.statement.removed.unwrap().events, 3);
    assert!(all.subject.is_empty() && all.records.is_none());
    assert!(receipts.iter().all(|r| r.effect() == Effect::Done));
    // Altered, or under another log's key, it does not.
    let mut altered = d.receipts[&1].clone();
    altered[100] ^= 1;
    assert!(verify(&altered, &key(&d)).is_err());
    // A later one, about a log that has grown.
    d.forget(vec![erase("cleo")]);
    assert_eq!(finish(&mut d).len(), 4);
}

#[test]
fn receipts_that_are_handed_out_later_carry_what_witnesses_have_signed() {
    let mut d = Driver::trained();
    d.forget(vec![erase("ada")]);
    finish(&mut d);
    let issued = d.receipts[&1].clone();
    assert_eq!(d.evidence.with_witnesses(issued.clone()), issued);
    let witness = Witness::from_seed("witness.example", &[9; 32]).unwrap();
    let (log, signs) = (d.evidence.log_key(), witness.verifier().text());
    let policy = format!("log {log}\nwitness W {signs}\nquorum W\n");
    let policy = Policy::parse(policy.as_bytes()).unwrap();
    let sign = |d: &Driver| {
        let head = d.evidence.to_cosign(1, false).unwrap();
        let signed = witness.cosign(&head.checkpoint, &key(d), &Seen::default(), &[], 5);
        Cosigned {
            size: head.size,
            checkpoint: signed.unwrap().0,
            witnesses: vec![signs.clone()],
        }
    };
    let signed = sign(&d);
    d.evidence.take_cosigned(signed).unwrap();
    let given = d.evidence.with_witnesses(issued.clone());
    let read = verify(&given, &key(&d)).unwrap();
    assert_eq!(policy.check(&read.checkpoint).unwrap().witnessed.len(), 1);
    // The log has grown since: the head that was signed stays good, also after a restart.
    d.evidence.enter(b"later\n").unwrap();
    assert_eq!(d.evidence.with_witnesses(issued.clone()), given);
    d.reopen();
    d.evidence.recall_cosigned(&policy).unwrap();
    assert_eq!(d.evidence.with_witnesses(issued.clone()), given);
    // One that the head does not hold is given out as it was issued.
    d.forget(vec![erase("ben")]);
    finish(&mut d);
    let newer = d.receipts[&2].clone();
    assert_eq!(d.evidence.with_witnesses(newer.clone()), newer);
    // The policy names another witness now.
    let other = format!("log {log}\nquorum none\n");
    let other = Policy::parse(other.as_bytes()).unwrap();
    d.evidence.recall_cosigned(&other).unwrap();
    assert_eq!(d.evidence.with_witnesses(issued.clone()), issued);
}

#[test]
fn a_receipt_is_about_the_log_after_a_restart_too() {
    let mut d = Driver::trained();
    d.forget(vec![erase("ada")]);
    d.until(|s| s.receipt_parts(1).is_some());
    let parts = d.state.receipt_parts(1).unwrap();
    let before = d
        .evidence
        .receipt(parts.clone(), SignedByTally::default())
        .unwrap();
    d.reopen();
    let known = d.state.core().log;
    d.evidence.check(&known, d.folder.path()).unwrap();
    assert_eq!(
        d.evidence.receipt(parts, SignedByTally::default()).unwrap(),
        before
    );
}

#[test]
fn a_receipt_that_would_not_verify_is_not_given() {
    let mut d = Driver::trained();
    d.forget(vec![erase("ada")]);
    d.until(|s| s.receipt_parts(1).is_some());
    let parts = d.state.receipt_parts(1).unwrap();
    let mut other = parts.clone();
    other.statement.keys_destroyed += 1;
    let why = d
        .evidence
        .receipt(other, SignedByTally::default())
        .unwrap_err();
    let not_included = VerifyError::NotIncluded { index: parts.index };
    assert_eq!(why.to_string(), format!("receipt: {not_included}"));
    let mut other = parts.clone();
    other.deletion.request = erase("ben");
    let why = d
        .evidence
        .receipt(other, SignedByTally::default())
        .unwrap_err();
    let subject = VerifyError::Subject;
    assert_eq!(why.to_string(), format!("receipt: {subject}"));
    let mut other = parts;
    other.index = 1000;
    assert!(d.evidence.receipt(other, SignedByTally::default()).is_err());
}

#[test]
fn a_device_obeys_orders_that_are_all_about_one_head() {
    let mut d = Driver::trained();
    let device = digest("ben");
    d.forget(vec![erase_item("ben", "5")]);
    d.forget(vec![erase_item("ben", "6")]);
    let task = d.state.core().numbers.task;
    // Executed at once, and logged a moment later.
    let mut orders = None;
    for _ in 0..50 {
        for duty in lethe_ledger::due(&d.state, d.now()) {
            d.duty(duty);
        }
        orders = d.evidence.orders(&d.state, &device, task, 0).ok();
        if orders.is_some() {
            break;
        }
    }
    let orders = orders.unwrap();
    assert_eq!(orders.orders.len(), 2);
    let key = key(&d);
    let head = orders.checkpoint.as_str();
    let check = |seen, proof: &[_]| order::check(&orders.orders, "ben", head, &key, seen, proof);
    let seen = check(None, &orders.consistency).unwrap();
    assert_eq!(seen.size, d.evidence.head().entries);
    // The same device again, when the log has grown.
    d.evidence.enter(b"something else").unwrap();
    let later = d
        .evidence
        .orders(&d.state, &device, task, seen.size)
        .unwrap();
    let head = later.checkpoint.as_str();
    let proof = &later.consistency;
    let grown = order::check(&later.orders, "ben", head, &key, Some(seen), proof).unwrap();
    assert_eq!(grown.size, seen.size + 1);
    // Another person's device is told nothing of it.
    let refused = d.evidence.orders(&d.state, &digest("cleo"), task, 0);
    let expected = "there is no such order now: ask for work again";
    assert_refused(refused.map(drop), Refusal::RoundClosed, expected);
    let refused = d.evidence.orders(&d.state, &device, task + 1, 0);
    assert_refused(refused.map(drop), Refusal::RoundClosed, expected);
}

#[test]
fn an_order_that_is_not_logged_yet_is_not_given() {
    let mut d = Driver::trained();
    d.forget(vec![erase_item("ben", "5")]);
    for command in [
        lethe_ledger::Command::BeginExecution { lists: None },
        lethe_ledger::Command::KeysDestroyed,
    ] {
        d.run(command).unwrap();
    }
    let refused = d.evidence.orders(&d.state, &digest("ben"), 1, 0);
    assert_refused(
        refused.map(drop),
        Refusal::Busy,
        "the order is being entered into the log: try again in a moment",
    );
}

#[test]
fn an_auditor_accepts_the_bundle_of_a_trained_shard() {
    let mut d = Driver::new();
    let at = |shard: u16| ShardKey {
        epoch: EpochNo::FIRST,
        shard: ShardId(shard),
    };
    let training =
        "the shard is being trained: export it when `lethe-admin status` says it is done";
    assert_refused(bundle(&d, at(0)), Refusal::Invalid, training);
    let missing = "there is no such shard: `lethe-admin status` lists them";
    assert_refused(bundle(&d, at(2)), Refusal::Invalid, missing);
    d.until(|s| s.releases().len() == 1);
    let key = key(&d);
    let mut members = 0;
    for shard in 0..2 {
        let text = d.evidence.bundle(&d.state, at(shard)).unwrap();
        let bundle = Bundle::verify(text.as_bytes(), &key).unwrap();
        assert_eq!(bundle.recipe, "{}");
        members += bundle.members.len();
        assert_eq!(bundle.rounds.len(), 4);
        assert!(bundle.rounds.iter().all(|r| r.begun.is_empty()));
        let run = &d.state.shard(at(shard)).unwrap().run;
        assert_eq!(bundle.adapter, run.hash.hex());
    }
    assert_eq!(members, PEOPLE.len());
    // Somebody has something to erase: what was said is not what the shard holds any more.
    let ben = d.state.profile(&subject("ben")).unwrap();
    let shard = ben.places[&EpochNo::FIRST].shard.unwrap();
    d.forget(vec![erase_item("ben", "5")]);
    d.run(lethe_ledger::Command::BeginExecution { lists: None })
        .unwrap();
    d.run(lethe_ledger::Command::KeysDestroyed).unwrap();
    assert_refused(bundle(&d, at(shard.0)), Refusal::Invalid, training);
}

fn bundle(d: &Driver, shard: ShardKey) -> Result<(), CoordinatorError> {
    d.evidence.bundle(&d.state, shard).map(drop)
}

fn assert_refused(result: Result<(), CoordinatorError>, want: Refusal, text: &str) {
    match result {
        Err(CoordinatorError::Refused { code, message }) => {
            assert_eq!((code, message.as_str()), (want, text));
        }
        other => panic!("{other:?}"),
    }
}
