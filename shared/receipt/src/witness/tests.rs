use super::*;
use crate::merkle::Tree;
use crate::note::Signer;

#[test]
fn cosigns_what_extends_and_refuses_a_split_view() {
    let log = Signer::from_seed("log.example", &[1; 32]).expect("a seed");
    let witness = Witness::from_seed("witness.example", &[2; 32]).expect("a seed");
    let (mut one, mut other) = (Tree::default(), Tree::default());
    one.push(b"a");
    other.push(b"x");
    let head = |t: &Tree| log.checkpoint(t.len(), &t.root());
    let (text, seen) = witness
        .cosign(&head(&one), log.verifier(), &Seen::default(), &[], 5)
        .expect("the first head");
    let key = VerifierKey::parse(&witness.verifier().text()).expect("own text");
    assert_eq!(verify_cosignature(&text, &key), Ok(5));
    assert!(
        open_checkpoint(&text, log.verifier()).is_ok(),
        "the log's own signature stays"
    );
    assert!(verify_cosignature(&text.replace("\n1\n", "\n2\n"), &key).is_err());

    one.push(b"b");
    other.push(b"b");
    let proof = one.consistency(seen.size).expect("inside");
    assert!(
        witness
            .cosign(&head(&one), log.verifier(), &seen, &proof, 6)
            .is_ok()
    );
    let proof = other.consistency(seen.size).expect("inside");
    let refused = witness.cosign(&head(&other), log.verifier(), &seen, &proof, 6);
    assert!(matches!(
        refused,
        Err(WitnessError::SplitView { old: 1, new: 2 })
    ));
    let back = witness.cosign(&head(&Tree::default()), log.verifier(), &seen, &[], 6);
    assert!(
        matches!(back, Err(WitnessError::SplitView { .. })),
        "a log that shrank"
    );
    let foreign = Signer::from_seed("log.example", &[9; 32]).expect("a seed");
    let forged = foreign.checkpoint(one.len(), &one.root());
    assert!(matches!(
        witness.cosign(&forged, log.verifier(), &seen, &[], 6),
        Err(WitnessError::Note(_))
    ));
}

fn add(
    witness: &Witness,
    log: &Signer,
    request: &AddCheckpoint,
    seen: &Seen,
) -> Result<(String, Seen), AddError> {
    let logs = [log.verifier().clone()];
    let read = AddCheckpoint::parse(request.text().as_bytes());
    assert_eq!(read.as_ref(), Ok(request));
    witness.add(request, &logs, |_| seen.clone(), 7)
}

#[test]
fn requests_are_answered_with_the_status_of_the_specification() {
    let log = Signer::from_seed("log.example", &[1; 32]).expect("a seed");
    let witness = Witness::from_seed("witness.example", &[2; 32]).expect("a seed");
    let mut tree = Tree::default();
    for i in 0..3u8 {
        tree.push(&[i]);
    }
    let head = |t: &Tree| log.checkpoint(t.len(), &t.root());
    let request = |old: u64, tree: &Tree| AddCheckpoint {
        old,
        consistency: tree.consistency(old).unwrap_or_default(),
        checkpoint: head(tree),
    };
    let first = request(0, &tree);
    let (lines, seen) = add(&witness, &log, &first, &Seen::default()).expect("signs");
    assert_eq!(seen.size, 3);
    let keys = [witness.verifier()];
    let (cosigned, by) = add_cosignatures(&first.checkpoint, &lines, &keys).expect("verifies");
    assert_eq!(by.len(), 1);
    assert_eq!(verify_cosignature(&cosigned, witness.verifier()), Ok(7));
    // The same head again is signed again.
    assert!(add(&witness, &log, &request(3, &tree), &seen).is_ok());

    let status = |refused: Result<(String, Seen), AddError>| refused.expect_err("no").status();
    let again = add(&witness, &log, &first, &seen);
    assert_eq!(again, Err(AddError::Conflict { size: 3 }));
    let mut other = Tree::default();
    for i in 10..13u8 {
        other.push(&[i]);
    }
    let rewritten = add(&witness, &log, &request(3, &other), &seen);
    assert_eq!(status(rewritten), 409, "another root at this size");
    tree.push(b"3");
    other.push(b"3");
    let split = add(&witness, &log, &request(3, &other), &seen);
    assert_eq!(status(split), 422);
    let mut bare = request(3, &tree);
    bare.consistency.clear();
    assert_eq!(status(add(&witness, &log, &bare, &seen)), 422);
    let mut ahead = request(3, &tree);
    ahead.old = 9;
    assert_eq!(status(add(&witness, &log, &ahead, &seen)), 400);
    let stranger = Signer::from_seed("other.example", &[3; 32]).expect("a seed");
    let unknown = AddCheckpoint {
        checkpoint: stranger.checkpoint(4, &tree.root()),
        ..request(3, &tree)
    };
    assert_eq!(status(add(&witness, &log, &unknown, &seen)), 404);
    let forger = Signer::from_seed("log.example", &[3; 32]).expect("a seed");
    let forged = AddCheckpoint {
        checkpoint: forger.checkpoint(4, &tree.root()),
        ..request(3, &tree)
    };
    assert_eq!(status(add(&witness, &log, &forged, &seen)), 403);
    let (_, seen) = add(&witness, &log, &request(3, &tree), &seen).expect("signs");
    assert_eq!(seen.size, 4);

    for bad in [
        "",
        "old 0",
        "old 00\n\n",
        "old +1\n\n",
        "new 0\n\n",
        "old 0\nAAAA\n\n",
        "old 0\r\n\r\n",
    ] {
        let read = AddCheckpoint::parse(bad.as_bytes());
        let refused = read.and_then(|r| witness.add(&r, &[], |_| Seen::default(), 1));
        assert_eq!(status(refused), 400, "{bad:?}");
    }
    let many = format!("old 0\n{}\n", format!("{}=\n", "A".repeat(43)).repeat(64));
    assert!(AddCheckpoint::parse(many.as_bytes()).is_err());
}

#[cfg(feature = "post-quantum")]
#[test]
fn a_witness_signs_with_ml_dsa_44_over_the_message_of_the_specification() {
    let log = Signer::from_seed("log.example", &[1; 32]).expect("a seed");
    let witness = Witness::from_seed("witness.example", &[2; 32]).expect("a seed");
    let witness = witness.with_ml_dsa(&[2; 32]).expect("a key");
    let keys = witness.verifiers();
    let [first, second] = keys[..] else {
        panic!("two keys");
    };
    assert_eq!(second.algorithm(), Algorithm::MlDsa44);
    let key = VerifierKey::parse(&second.text()).expect("own text");
    assert_eq!(key, *second);
    let tree = Tree::from_leaves(vec![[5; 32]; 3]);
    let head = log.checkpoint(3, &tree.root());
    let (text, _) = witness
        .cosign(&head, log.verifier(), &Seen::default(), &[], 5)
        .expect("signs");
    assert_eq!(verify_cosignature(&text, first), Ok(5));
    assert_eq!(verify_cosignature(&text, second), Ok(5));
    // Signing again replaces both.
    let seen = Seen {
        size: 3,
        root: hex(&tree.root()),
    };
    let (text, _) = witness
        .cosign(&text, log.verifier(), &seen, &[], 6)
        .expect("signs");
    assert_eq!(verify_cosignature(&text, second), Ok(6));
    assert_eq!(text.lines().count(), 3 + 1 + 3);
    for (from, to) in [("\n3\n", "\n4\n"), ("log.example\n3", "log.exampl\n3")] {
        assert!(verify_cosignature(&text.replace(from, to), second).is_err());
    }

    // Field by field, as tlog-cosignature has it.
    let parsed = SignedNote::parse(&text).expect("reads");
    let body = Head::parse(parsed.text).expect("reads");
    let message = cosigned_message("witness.example", 6, &body).expect("short names");
    let mut expected = b"subtree/v1\n\0".to_vec();
    expected.push(15);
    expected.extend(b"witness.example");
    expected.extend([0, 0, 0, 0, 0, 0, 0, 6]);
    expected.push(11);
    expected.extend(b"log.example");
    expected.extend([0; 8]);
    expected.extend([0, 0, 0, 0, 0, 0, 0, 3]);
    expected.extend(tree.root());
    assert_eq!(message, expected);
}
