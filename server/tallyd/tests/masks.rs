//! Sums of masks: what they are, what is refused, and that nothing is kept of who left.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Asked, Disk, NOW, handle};
use lethe_proto::ids::{EpochNo, RoundKey, ShardId};
use lethe_proto::masked::{MASK, MOST_VALUES, MasksAsked, MasksSummed, SealedSeed, bound_to};
use lethe_proto::tally::{ANSWER, TallyRefusal, TallyReply, TallyRequest, TallyTerms};
use lethe_receipt::note::VerifierKey;
use lethe_receipt::sealing::SealingStatement;
use lethe_seal::envelope::{PublicKey, seal_to};
use lethe_seal::mask;
use lethe_tallyd::Service;

const VALUES: u32 = 50;

fn round(generation: u32, number: u16) -> RoundKey {
    RoundKey {
        epoch: EpochNo::FIRST,
        shard: ShardId(2),
        generation,
        stage: 1,
        round: number,
    }
}

/// The seed of a device's mask in a generation.
fn seed(who: u8, at: &RoundKey) -> [u8; 32] {
    let mut seed = [who; 32];
    seed[0] = at.generation as u8;
    seed[1] = at.round as u8;
    seed
}

fn sealed(terms: &TallyTerms, who: u8, at: &RoundKey) -> SealedSeed {
    let key = VerifierKey::parse(&terms.key).unwrap();
    let key = PublicKey(SealingStatement::open(&terms.note, &key).unwrap().key);
    let bound = bound_to(&handle(who), at, VALUES);
    let envelope = seal_to(&key, MASK, &bound, &seed(who, at), ANSWER).unwrap();
    SealedSeed {
        handle: handle(who),
        envelope: envelope.envelope,
    }
}

fn asked(terms: &TallyTerms, who: &[u8], at: RoundKey) -> MasksAsked {
    MasksAsked {
        lineage: [3; 8],
        round: at,
        left: 0,
        values: VALUES,
        seeds: who.iter().map(|w| sealed(terms, *w, &at)).collect(),
    }
}

fn answer(service: &Service, asked: MasksAsked) -> Result<MasksSummed, TallyRefusal> {
    match service.answer(TallyRequest::Masks(asked), NOW) {
        TallyReply::Masks(summed) => Ok(summed),
        TallyReply::Refused { code, .. } => Err(code),
        other => panic!("{other:?}"),
    }
}

fn ask(service: &Service, who: &[u8], at: RoundKey) -> MasksSummed {
    answer(service, asked(&service.terms(NOW), who, at)).unwrap()
}

fn sum(who: &[u8], at: &RoundKey) -> Vec<u8> {
    let mut values = vec![0; VALUES as usize];
    for w in who {
        mask::add(&seed(*w, at), &mut values).unwrap();
    }
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// These leave by a deletion of this number.
fn leave(service: &Service, who: &[u8], left: u64) {
    let leavers = who.iter().map(|w| (handle(*w), left)).collect();
    let lineage = [3; 8];
    let said = service.answer(
        TallyRequest::LeaveSums {
            lineage,
            leavers,
            left,
        },
        NOW,
    );
    assert!(matches!(said, TallyReply::Done(_)), "{said:?}");
}

fn hits(service: &Service, who: u8) -> u64 {
    let handles = vec![handle(who)];
    match service.answer(TallyRequest::Search { handles }, NOW) {
        TallyReply::Searched { hits, .. } => hits.iter().map(|(_, n)| n).sum(),
        other => panic!("{other:?}"),
    }
}

const ALL: [u8; 6] = [1, 2, 3, 4, 5, 6];

#[test]
fn a_sum_is_that_of_its_masks_and_may_be_asked_for_again() {
    let disk = Disk::new();
    let service = disk.open(NOW);
    let first = ask(&service, &ALL, round(1, 0));
    assert_eq!(first.counted, [0, 1, 2, 3, 4, 5]);
    assert_eq!(first.sum, sum(&ALL, &round(1, 0)));
    assert_eq!(ask(&service, &ALL, round(1, 0)), first);
    drop(service);
    let service = disk.open(NOW + 5);
    // In another order, after a restart, and in another generation.
    assert_eq!(
        ask(&service, &[6, 5, 4, 3, 2, 1], round(1, 0)).sum,
        first.sum
    );
    let again = ask(&service, &ALL, round(2, 0));
    assert_eq!(again.sum, sum(&ALL, &round(2, 0)));
    assert_ne!(again.sum, first.sum, "devices draw other masks");
}

#[test]
fn no_two_sums_of_a_round_differ_by_somebody_who_is_there() {
    let disk = Disk::new();
    let service = disk.open(NOW);
    ask(&service, &ALL, round(1, 0));
    for generation in [1, 2] {
        let at = round(generation, 0);
        let fewer = ask(&service, &ALL[1..], at);
        assert!(fewer.counted.is_empty() && fewer.sum.is_empty());
        assert!(fewer.why.contains("1 of 6 people"), "{}", fewer.why);
        let more = ask(&service, &[9, 1, 2, 3, 4, 5, 6], at);
        assert_eq!(more.counted, [1, 2, 3, 4, 5, 6]);
        assert_eq!(more.sum, sum(&ALL, &at));
        let swapped = ask(&service, &[9, 2, 3, 4, 5, 6], at);
        assert!(swapped.counted.is_empty());
    }
    let few = ask(&service, &ALL[..3], round(1, 1));
    assert!(few.counted.is_empty(), "fewer than n = 4");
    assert!(few.why.contains("expected at least 4"), "{}", few.why);
    // Nothing was decided: who comes next is the first.
    assert_eq!(ask(&service, &ALL[1..], round(1, 1)).counted.len(), 5);
}

#[test]
fn who_has_left_is_left_out_of_what_comes_and_of_what_is_kept() {
    let disk = Disk::new();
    let service = disk.open(NOW);
    ask(&service, &ALL, round(1, 0));
    ask(&service, &ALL, round(1, 1));
    assert_eq!(hits(&service, 2), 2);
    // Leaving the lists is no deletion.
    service.leave(&[2], NOW);
    assert_eq!(hits(&service, 2), 2);
    leave(&service, &[2], 1);
    assert_eq!(hits(&service, 2), 0);
    let late = asked(&service.terms(NOW), &ALL, round(1, 0));
    leave(&service, &[], 1);
    assert_eq!(
        answer(&service, late),
        Err(TallyRefusal::Busy),
        "asked for before they left"
    );
    drop(service);
    let service = disk.open(NOW);
    assert_eq!(hits(&service, 2), 0);
    let rest = ask(&service, &[1, 3, 4, 5, 6], round(2, 0));
    assert_eq!(rest.counted.len(), 5);
    // Who joins again is somebody else.
    let joined = ask(&service, &ALL, round(2, 0));
    assert_eq!(joined.counted, [0, 2, 3, 4, 5]);
    // A coordinator that was away tells of all who ever left: who is in a sum that was asked for
    // later has come back.
    leave(&service, &[2], 1);
    assert_eq!(hits(&service, 2), 0);
    let mut later = asked(&service.terms(NOW), &ALL, round(1, 2));
    later.left = 1;
    assert_eq!(answer(&service, later).unwrap().counted.len(), 6);
    leave(&service, &[2], 1);
    assert_eq!(hits(&service, 2), 1);
    leave(&service, &[2], 7);
    assert_eq!(hits(&service, 2), 0);
}

#[test]
fn another_data_folder_of_the_coordinator_begins_anew() {
    let disk = Disk::new();
    let service = disk.open(NOW);
    ask(&service, &ALL, round(1, 0));
    leave(&service, &[], 9);
    let mut other = asked(&service.terms(NOW), &[11, 12, 13, 14], round(1, 0));
    other.lineage = [4; 8];
    assert_eq!(answer(&service, other).unwrap().counted.len(), 4);
    assert_eq!((hits(&service, 1), hits(&service, 11)), (0, 1));
    drop(service);
    let service = disk.open(NOW);
    assert_eq!((hits(&service, 1), hits(&service, 11)), (0, 1));
}

#[test]
fn without_cells_nobody_is_told_one_mask() {
    let mut disk = Disk::new();
    disk.lists.cells = lethe_tally::settings::CellsConfig::Off;
    let service = disk.open(NOW);
    let alone = ask(&service, &[1], round(1, 0));
    assert_eq!((alone.counted.len(), alone.least), (0, 2));
    assert_eq!(ask(&service, &[1, 2], round(1, 0)).counted.len(), 2);
}

#[test]
fn what_does_not_open_is_not_counted() {
    let disk = Disk::new();
    let service = disk.open(NOW);
    let terms = service.terms(NOW);
    let at = round(1, 0);
    let good = asked(&terms, &ALL, at);
    // Another round's, somebody else's, a longer mask's, damaged, cut.
    let mut other_round = good.clone();
    other_round.seeds[1] = sealed(&terms, 2, &round(1, 1));
    let mut of_another = good.clone();
    of_another.seeds[1].envelope = good.seeds[2].envelope.clone();
    let mut damaged = good.clone();
    damaged.seeds[1].envelope[40] ^= 1;
    let mut cut = good.clone();
    cut.seeds[1].envelope.pop();
    for (number, bad) in [other_round, of_another, damaged, cut]
        .into_iter()
        .enumerate()
    {
        let summed = answer(&service, bad).unwrap();
        assert_eq!(summed.counted, [0, 2, 3, 4, 5], "{number}");
        assert!(
            summed.why.contains("1 envelopes do not open"),
            "{}",
            summed.why
        );
    }
    let longer = MasksAsked {
        values: VALUES + 1,
        ..good.clone()
    };
    assert!(answer(&service, longer).unwrap().counted.is_empty());
}

#[test]
fn requests_out_of_bounds_are_refused() {
    let disk = Disk::new();
    let service = disk.open(NOW);
    let terms = service.terms(NOW);
    let good = asked(&terms, &ALL, round(1, 0));
    let none = MasksAsked {
        values: 0,
        ..good.clone()
    };
    let long = MasksAsked {
        values: MOST_VALUES as u32 + 1,
        ..good.clone()
    };
    let mut twice = good.clone();
    twice.seeds.push(good.seeds[0].clone());
    let empty = |n: u32| SealedSeed {
        handle: std::array::from_fn(|i| n.to_le_bytes().get(i).copied().unwrap_or(0)),
        envelope: vec![],
    };
    let work = MasksAsked {
        values: MOST_VALUES as u32,
        seeds: (0..4_000).map(empty).collect(),
        ..good.clone()
    };
    let many = MasksAsked {
        seeds: (0..70_000).map(empty).collect(),
        ..good
    };
    for bad in [none, long, twice, work, many] {
        assert_eq!(answer(&service, bad), Err(TallyRefusal::Invalid));
    }
    let nobody = ask(&service, &[], round(1, 0));
    assert!(nobody.counted.is_empty());
}

/// A leaving one of whose writes is said to have failed and is there, another sum, and two starts:
/// both rows are there.
#[test]
fn rows_under_two_keys_are_kept() {
    for (later, after) in [
        (0, 0),
        (2, 0),
        (0, 1),
        (2, 1),
        (0, 2),
        (2, 2),
        (0, 3),
        (2, 3),
    ] {
        let disk = Disk::new();
        let service = disk.open(NOW);
        ask(&service, &ALL, round(1, 1));
        disk.fail_after(after, true);
        let leavers = vec![(handle(2), 1)];
        let request = TallyRequest::LeaveSums {
            lineage: [3; 8],
            leavers,
            left: 1,
        };
        service.answer(request, NOW);
        disk.mend();
        let mut asked = asked(&service.terms(NOW), &ALL, round(1, later));
        asked.left = 1;
        assert_eq!(answer(&service, asked).unwrap().counted.len(), 6);
        drop(service);
        // What a start destroys, the next one does not read.
        drop(disk.open(NOW));
        let service = disk.open(NOW);
        assert_eq!(hits(&service, 1), 2, "round {later} after {after}");
        leave(&service, &[2], 2);
        drop(service);
        let service = disk.open(NOW);
        assert_eq!((hits(&service, 1), hits(&service, 2)), (2, 0));
    }
}

/// A kill at every write of a script: what was answered holds afterwards, and whoever left is gone
/// with the keys, once the same is said again.
#[test]
fn kills_at_every_write() {
    let script = |disk: &Disk| {
        let service = disk.try_open(NOW).ok()?;
        let terms = service.terms(NOW);
        answer(&service, asked(&terms, &ALL, round(1, 0))).ok()?;
        answer(&service, asked(&terms, &ALL, round(1, 1))).ok()?;
        for who in [2, 6] {
            let request = TallyRequest::LeaveSums {
                lineage: [3; 8],
                leavers: vec![(handle(who), 1)],
                left: 1,
            };
            let said = service.answer(request, NOW);
            if !matches!(said, TallyReply::Done(_)) {
                return None;
            }
        }
        Some(())
    };
    let quiet = Disk::new();
    drop(quiet.open(NOW));
    let before = quiet.writes();
    script(&quiet).unwrap();
    let writes = quiet.writes() - before;
    assert!(writes > 4, "{writes}");
    for after in 0..writes {
        for written in [false, true] {
            let disk = Disk::new();
            drop(disk.open(NOW));
            disk.fail_after(after, written);
            let _ = script(&disk);
            disk.mend();
            let service = disk.open(NOW);
            // What was answered once, is answered again, or was never answered.
            let kept = hits(&service, 1);
            leave(&service, &[2, 6], 1);
            assert_eq!(hits(&service, 2), 0, "{after} {written}");
            assert_eq!(hits(&service, 1), kept, "{after} {written}");
            drop(service);
            let service = disk.open(NOW);
            assert_eq!((hits(&service, 1), hits(&service, 2)), (kept, 0));
            for number in 0..kept as u16 {
                let rest = ask(&service, &[1, 3, 4, 5], round(2, number));
                assert_eq!(rest.counted.len(), 4, "{after} {written}");
                let fewer = ask(&service, &[1, 3, 4], round(2, number));
                assert_eq!(fewer.missing, 1, "{after} {written}");
            }
        }
    }
}
