use super::*;
use crate::records::Records;
use crate::snapshot::SnapshotNoise;
use crate::statement::{
    AffectedShard, Cost, EpochStood, Removed, RolledBack, StatedEpoch, StatedLists, StatedSnapshot,
    TRAINING_VERSION,
};

fn training(generation: u32, records: &Records) -> Training {
    Training {
        version: TRAINING_VERSION,
        shard: 2,
        generation,
        root: hex(&records.root()),
        count: records.count(),
        recipe: "ff".into(),
        seed: 1,
        base_model: "00".into(),
        build: "test".into(),
    }
}

fn statement(kind: &str) -> Statement {
    Statement {
        version: VERSION_WITHOUT_LISTS,
        kind: kind.into(),
        deletion: 1,
        batch: 1,
        commitment: commitment(&[5; 32], "alice", &[], None),
        accepted_at: 1_700_000_000,
        exact_after_ms: 12,
        retrained_after_ms: 3400,
        keys_destroyed: 3,
        affected: vec![AffectedShard {
            shard: 2,
            from_stage: 1,
            before: "aa".into(),
            rolled_back_to: "bb".into(),
            after: "cc".into(),
            lineage: "dd".into(),
            rounds: 8,
        }],
        untouched: vec![(0, "ee".into())],
        release: 2,
        recipe: "ff".into(),
        base_model: "00".into(),
        build: "test".into(),
        recorded: true,
        forecast: Cost {
            rounds: 8,
            ..Cost::default()
        },
        actual: Cost {
            rounds: 8,
            client_rounds: 16,
            bytes: 5,
            milliseconds: 3388,
        },
        removed: None,
        lists: None,
        epochs: None,
    }
}

/// A receipt for alice, whose record is `fate` after: gone, the same, or with other data.
fn sample(kind: &str, after_data: Option<Hash>) -> (Vec<u8>, Signer) {
    let items: Vec<String> = if kind == "erase-items" {
        vec!["i1".into()]
    } else {
        vec![]
    };
    let removed = Removed {
        events: u64::from(after_data != Some([77; 32])),
        answered: 1,
        ..Removed::default()
    };
    let s = Statement {
        commitment: commitment(&[5; 32], "alice", &items, None),
        removed: (kind == "erase-items").then_some(removed),
        ..statement(kind)
    };
    receipt_of(s, items, after_data)
}

/// The receipt of this statement.
fn receipt_of(s: Statement, items: Vec<String>, after_data: Option<Hash>) -> (Vec<u8>, Signer) {
    let kind = s.kind.clone();
    let signer = Signer::from_seed("lethe-test", &[1; 32]).expect("a seed");
    let key = record_key(&[8; 32], "alice");
    let others: Vec<(Hash, Hash)> = (0..5)
        .map(|i| (record_key(&[i; 32], "somebody"), [i; 32]))
        .collect();
    let before = Records::new(others.iter().copied().chain([(key, [77; 32])]));
    let after = Records::new(others.iter().copied().chain(after_data.map(|d| (key, d))));
    let (t1, t2) = (training(1, &before), training(2, &after));
    let mut tree = Tree::default();
    tree.push(b"other");
    let i1 = tree.push(&entry(Kind::Training, &[2; 32], &canonical(&t1)));
    let i2 = tree.push(&entry(Kind::Training, &[3; 32], &canonical(&t2)));
    let index = tree.push(&entry(Kind::Deletion, &[5; 32], &canonical(&s)));
    tree.push(b"later");
    let fate = match after_data {
        None => Fate::Absent(after.absent(&key).expect("absent")),
        Some([77, ..]) if kind == "erase-items" => {
            Fate::Unchanged(after.member(&key).expect("there"))
        }
        Some(_) => Fate::Replaced(after.member(&key).expect("there")),
    };
    let records = RecordProof {
        salt: hex(&[8; 32]),
        before: logged(t1, &[2; 32], i1, &tree).expect("logged"),
        member: before.member(&key).expect("there"),
        after: logged(t2, &[3; 32], i2, &tree).expect("logged"),
        fate,
    };
    let opening = Opening {
        subject: "alice".into(),
        items,
        from: None,
        salt: [5; 32],
    };
    let none = SignedByTally::default();
    (
        issue(s, opening, index, Some(records), none, &tree, &signer).expect("issues"),
        signer,
    )
}

#[test]
fn verifies_as_issued() {
    let (bytes, signer) = sample("erase-subject", None);
    assert_eq!(
        verify(&bytes, signer.verifier()).expect("verifies").subject,
        "alice"
    );
    let (bytes, signer) = sample("erase-items", Some([78; 32]));
    assert!(verify(&bytes, signer.verifier()).is_ok());
    let (bytes, signer) = sample("unknown-kind", Some([78; 32]));
    assert!(verify(&bytes, signer.verifier()).is_err());
    let (bytes, signer) = sample("erase-items", Some([77; 32]));
    assert!(matches!(
        verify(&bytes, signer.verifier())
            .expect("verifies")
            .records
            .expect("has one")
            .fate,
        Fate::Unchanged(_)
    ));
}

#[test]
fn an_erasure_that_removed_nothing_says_so() {
    let key = |s: &Signer| s.verifier().clone();
    let (bytes, signer) = sample("erase-items", Some([77; 32]));
    let nothing = verify(&bytes, &key(&signer)).expect("a genuine receipt");
    assert_eq!(nothing.effect(), Effect::NothingRemoved);
    assert!(crate::report::text(&nothing).starts_with("NOTHING WAS REMOVED"));
    assert!(!crate::report::text(&nothing).contains("VERIFIED"));
    assert!(!crate::report::html(&nothing).contains("were deleted"));
    let (bytes, signer) = sample("erase-items", Some([78; 32]));
    let some = verify(&bytes, &key(&signer)).expect("a genuine receipt");
    assert_eq!(some.effect(), Effect::Done);
    assert!(crate::report::text(&some).starts_with("VERIFIED: items i1 of subject alice"));
    // A device that stays away: the person is left out altogether, and the receipt says that.
    let items = vec!["i1".to_owned()];
    let away = Statement {
        commitment: commitment(&[5; 32], "alice", &items, None),
        removed: Some(Removed {
            silent: 1,
            ..Removed::default()
        }),
        ..statement("erase-items")
    };
    let (bytes, signer) = receipt_of(away, items, None);
    let away = verify(&bytes, &key(&signer)).expect("a genuine receipt");
    assert_eq!(away.effect(), Effect::Done);
    assert!(crate::report::text(&away).contains("1 device(s) did not answer"));
}

#[test]
fn receipts_of_the_version_before_still_verify() {
    let items = vec!["i1".to_owned()];
    let old = Statement {
        version: VERSION_WITHOUT_REMOVED,
        commitment: commitment(&[5; 32], "alice", &items, None),
        ..statement("erase-items")
    };
    let (bytes, signer) = receipt_of(old.clone(), items.clone(), Some([78; 32]));
    assert!(!String::from_utf8_lossy(&bytes).contains("removed\""));
    assert!(verify(&bytes, signer.verifier()).is_ok());
    // This version has to say what was removed, that one could not.
    let newer = Statement {
        version: VERSION_WITHOUT_LISTS,
        ..old.clone()
    };
    let (bytes, signer) = receipt_of(newer, items.clone(), Some([78; 32]));
    assert!(verify(&bytes, signer.verifier()).is_err());
    let mixed = Statement {
        removed: Some(Removed::default()),
        ..old
    };
    let (bytes, signer) = receipt_of(mixed, items, Some([78; 32]));
    assert!(verify(&bytes, signer.verifier()).is_err());
}

#[test]
fn what_became_of_lists_fits_the_version() {
    let shown = |number| {
        Some(StatedSnapshot {
            number,
            sha256: "aa".into(),
            people: 16,
        })
    };
    let lists = |recalled, replaced_by| {
        Some(StatedLists {
            held: true,
            recalled,
            replaced_by,
            ..StatedLists::default()
        })
    };
    let verdict = |version, lists| {
        let stated = Statement {
            version,
            lists,
            epochs: (version == VERSION).then(|| vec![served()]),
            ..statement("erase-subject")
        };
        let (bytes, signer) = receipt_of(stated, vec![], None);
        verify(&bytes, signer.verifier()).is_ok()
    };
    for version in [VERSION, VERSION_WITHOUT_EPOCHS] {
        assert!(verdict(version, lists(shown(1), shown(2))));
        assert!(verdict(version, lists(None, None)));
        for wrong in [
            lists(shown(2), shown(2)),
            lists(shown(1), None),
            lists(None, shown(1)),
        ] {
            assert!(!verdict(version, wrong));
        }
    }
    assert!(verdict(VERSION, None), "there are none");
    assert!(!verdict(VERSION_WITHOUT_EPOCHS, None));
    assert!(!verdict(VERSION_WITHOUT_LISTS, lists(None, None)));
}

/// The epoch that the statement's shards are of.
fn served() -> StatedEpoch {
    StatedEpoch {
        epoch: 3,
        stood: EpochStood::Served,
        recipe: "ff".into(),
        base_model: "00".into(),
        catalogue: 1,
        catalogue_digest: String::new(),
        rolled_back: vec![],
    }
}

#[test]
fn epochs_are_stated_once_and_the_served_one_is_the_statements() {
    let other = |epoch, stood| StatedEpoch {
        epoch,
        stood,
        recipe: "another".into(),
        rolled_back: vec![RolledBack {
            shard: 1,
            from_stage: 2,
            rolled_back_to: "bb".into(),
        }],
        ..served()
    };
    let receipt = |version, epochs| {
        let stated = Statement {
            version,
            epochs,
            ..statement("erase-subject")
        };
        let (bytes, signer) = receipt_of(stated, vec![], None);
        verify(&bytes, signer.verifier())
    };
    let before = other(2, EpochStood::Ended);
    let after = other(4, EpochStood::Follows);
    let all = vec![before.clone(), served(), after.clone()];
    let good = receipt(VERSION, Some(all)).expect("verifies");
    let text = crate::report::text(&good);
    assert!(
        text.contains("epoch 4: was joined or trained, and not served yet"),
        "{text}"
    );
    assert!(
        text.contains("shard 1 rolled back to bb, from stage 2"),
        "{text}"
    );
    let changed = StatedEpoch {
        recipe: "another".into(),
        ..served()
    };
    for wrong in [
        None,
        Some(vec![]),
        Some(vec![served(), served()]),
        Some(vec![served(), before]),
        Some(vec![changed, after]),
    ] {
        assert!(receipt(VERSION, wrong.clone()).is_err(), "{wrong:?}");
    }
    assert!(receipt(VERSION_WITHOUT_LISTS, Some(vec![served()])).is_err());
    assert!(receipt(VERSION_WITHOUT_LISTS, None).is_ok());
}

#[test]
fn a_record_may_be_of_an_epoch_that_another_one_has_followed() {
    // The person's record was in epoch 2; epoch 3, with another recipe, is served in the end.
    let of_before = StatedEpoch {
        epoch: 2,
        stood: EpochStood::Ended,
        ..served()
    };
    let now = StatedEpoch {
        recipe: "another".into(),
        ..served()
    };
    let receipt = |version, epochs: Vec<StatedEpoch>| {
        let stated = Statement {
            version,
            recipe: "another".into(),
            affected: vec![],
            epochs: (version == VERSION).then_some(epochs),
            ..statement("erase-subject")
        };
        let (bytes, signer) = receipt_of(stated, vec![], None);
        verify(&bytes, signer.verifier()).map(drop)
    };
    assert!(receipt(VERSION, vec![of_before, now.clone()]).is_ok());
    // An epoch that the statement does not name is none that it is about.
    assert!(receipt(VERSION, vec![now]).is_err());
    assert!(receipt(VERSION_WITHOUT_LISTS, vec![]).is_err());
}

/// A statement with lists: snapshot 1 was recalled, and 2 is served.
fn with_lists_of(tally: &Signer) -> Statement {
    let shown = |number, byte: u8| StatedSnapshot {
        number,
        sha256: hex(&[byte; 32]),
        people: 16,
    };
    Statement {
        version: VERSION,
        lists: Some(StatedLists {
            held: true,
            recalled: Some(shown(1, 1)),
            replaced_by: Some(shown(2, 2)),
            key: tally.verifier().text(),
            ..StatedLists::default()
        }),
        epochs: Some(vec![served()]),
        ..statement("erase-subject")
    }
}

/// The receipt of a statement, with what `sign` adds.
fn verdict_of(stated: Statement, sign: impl FnOnce(&mut Receipt)) -> Result<Receipt, VerifyError> {
    let (bytes, signer) = receipt_of(stated, vec![], None);
    let mut receipt: Receipt = serde_json::from_slice(&bytes).expect("a receipt");
    sign(&mut receipt);
    let mut bytes = canonical(&receipt);
    bytes.push(b'\n');
    verify(&bytes, signer.verifier())
}

/// A receipt whose lists a tally of its own signed, as `change` makes it.
fn signed_by_tally(change: impl FnOnce(&mut VouchStatement)) -> Result<Receipt, VerifyError> {
    let tally = Signer::from_seed("tally", &[9; 32]).expect("a seed");
    let stated = with_lists_of(&tally);
    let mut vouched = VouchStatement {
        at: stated.accepted_at + 5,
        recalled: 1,
        serves: Some(SnapshotName {
            number: 2,
            digest: [2; 32],
        }),
        handles: vec![crate::vouch::Vouched {
            handle: crate::vouch::handle_hash(&[4; 16]),
            since: None,
        }],
    };
    change(&mut vouched);
    let note = vouched.sign(&tally).expect("signs");
    verdict_of(stated, |r| r.tally = Some(note))
}

#[test]
fn a_tallys_statement_has_to_fit_the_receipt() {
    let receipt = signed_by_tally(|_| {}).expect("fits");
    let text = crate::report::text(&receipt);
    assert!(
        text.contains("the tally vouches that: at 1700000005"),
        "{text}"
    );
    assert!(text.contains("the coordinator vouches for"), "{text}");
    let fits = |change: fn(&mut VouchStatement)| signed_by_tally(change).is_ok();
    assert!(fits(|v| v.serves.as_mut().expect("serves").number = 3));
    assert!(fits(|v| v.handles[0].since = Some(v.at)));
    assert!(fits(|v| {
        v.serves = None;
        v.recalled = 2;
    }));
    let wrong: [fn(&mut VouchStatement); 7] = [
        |v| v.handles[0].since = Some(1_600_000_000),
        |v| v.handles.clear(),
        |v| v.handles.push(v.handles[0]),
        |v| v.recalled = 0,
        |v| v.serves = None,
        |v| v.serves.as_mut().expect("serves").number = 1,
        |v| v.serves.as_mut().expect("serves").digest = [7; 32],
    ];
    for (n, change) in wrong.into_iter().enumerate() {
        let verdict = signed_by_tally(change);
        assert!(matches!(verdict, Err(VerifyError::Tally(_))), "{n}");
    }
    // A receipt without one says that nobody but the coordinator vouches.
    assert!(
        !crate::report::text(&Receipt {
            tally: None,
            ..receipt
        })
        .contains("the tally vouches")
    );
}

#[test]
fn a_statement_of_another_tally_is_refused() {
    let other = Signer::from_seed("tally", &[8; 32]).expect("a seed");
    let mut receipt = signed_by_tally(|_| {}).expect("fits");
    let note = receipt.tally.take().expect("is there");
    let lists = receipt.statement.lists.as_mut().expect("is there");
    let key = std::mem::replace(&mut lists.key, other.verifier().text());
    receipt.tally = Some(note);
    assert!(matches!(receipt.vouched(), Err(VerifyError::Tally(_))));
    assert_ne!(key, other.verifier().text());
}

#[test]
fn a_record_that_is_still_trained_on_is_refused() {
    for (kind, data) in [
        ("erase-subject", [77; 32]),
        ("restrict", [77; 32]),
        ("erase-subject", [78; 32]),
    ] {
        let (bytes, signer) = sample(kind, Some(data));
        assert!(
            matches!(
                verify(&bytes, signer.verifier()),
                Err(VerifyError::Records { shard: 2, .. })
            ),
            "{kind}"
        );
    }
}

#[test]
fn any_altered_byte_is_refused() {
    let (bytes, signer) = sample("erase-subject", None);
    for i in 0..bytes.len() {
        for flip in [0x01, 0x20, 0x80] {
            let mut b = bytes.clone();
            b[i] ^= flip;
            assert!(
                verify(&b, signer.verifier()).is_err(),
                "byte {i} xor {flip:#x}"
            );
        }
    }
    assert!(verify(&[&bytes[..], b" "].concat(), signer.verifier()).is_err());
    // Nor can fields be moved into each other, or proofs be left out.
    let r = verify(&bytes, signer.verifier()).expect("as issued");
    let again = |r: &Receipt| verify(&[canonical(r), b"\n".to_vec()].concat(), signer.verifier());
    assert!(again(&r).is_ok());
    assert!(
        again(&Receipt {
            records: None,
            ..r.clone()
        })
        .is_err()
    );
    assert!(
        again(&Receipt {
            from: Some(5),
            ..r.clone()
        })
        .is_err()
    );
    assert!(
        again(&Receipt {
            items: vec!["5".into()],
            ..r
        })
        .is_err()
    );
    assert_ne!(
        commitment(&[1; 32], "a", &["5".into()], None),
        commitment(&[1; 32], "a", &[], Some(5))
    );
}

/// A receipt with a note about noise, as `change` makes it.
fn with_noise(change: impl FnOnce(&mut SnapshotStatement)) -> Result<Receipt, VerifyError> {
    let tally = Signer::from_seed("tally", &[9; 32]).expect("a seed");
    let stated = with_lists_of(&tally);
    let mut served = SnapshotStatement {
        number: 2,
        day: 20_000,
        snapshot: [2; 32],
        sums: [3; 32],
        fold: [4; 32],
        people: 16,
        cell: 16,
        changed: 8,
        k: 3,
        noise: Some(SnapshotNoise {
            epsilon_millionths: 1_000_000,
            delta_trillionths: 1_000_000,
            spent_millionths: 2_500_000,
            releases: 4,
            clip: 50,
            repeats: 1,
        }),
    };
    change(&mut served);
    let note = served.sign(&tally).expect("signs");
    verdict_of(stated, |r| r.noise = Some(note))
}

#[test]
fn a_receipt_says_what_noise_has_cost_and_the_tally_has_signed_it() {
    let receipt = with_noise(|_| {}).expect("fits");
    let text = crate::report::text(&receipt);
    let says = "snapshot 2 has epsilon 1; 4 snapshots have spent 2.5 together, at delta 1e-6";
    assert!(text.contains(says), "{text}");
    assert!(with_noise(|s| s.number = 3).is_ok());
    let wrong: [fn(&mut SnapshotStatement); 3] = [
        |s| s.number = 1,
        |s| s.snapshot = [7; 32],
        |s| s.noise = None,
    ];
    for (n, change) in wrong.into_iter().enumerate() {
        let verdict = with_noise(change);
        assert!(matches!(verdict, Err(VerifyError::Tally(_))), "{n}");
    }
    let other = Signer::from_seed("tally", &[8; 32]).expect("a seed");
    let mut forged = receipt;
    let lists = forged.statement.lists.as_mut().expect("is there");
    lists.key = other.verifier().text();
    assert!(matches!(forged.noise_stated(), Err(VerifyError::Tally(_))));
}
