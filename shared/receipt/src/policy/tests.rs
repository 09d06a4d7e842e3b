use super::*;
use crate::merkle::Tree;
use crate::note::Signer;
use crate::witness::{Seen, Witness};

fn log() -> Signer {
    Signer::from_seed("log.example", &[1; 32]).expect("a seed")
}

fn witness(n: u8) -> Witness {
    Witness::from_seed(&format!("witness{n}.example"), &[n; 32]).expect("a seed")
}

fn head(by: &[u8]) -> String {
    let log = log();
    let mut tree = Tree::default();
    tree.push(b"entry");
    let mut text = log.checkpoint(tree.len(), &tree.root());
    for n in by {
        let seen = Seen::default();
        let signed = witness(*n).cosign(&text, log.verifier(), &seen, &[], u64::from(*n));
        text = signed.expect("signs").0;
    }
    text
}

fn lines() -> String {
    let mut out = format!("# who is trusted\n\nlog {}\n", log().verifier().text());
    for n in 11..16 {
        out += &format!(
            "witness W{n} {} https://w{n}.example/\n",
            witness(n).verifier().text()
        );
    }
    out
}

fn policy(more: &str) -> Result<Policy, PolicyError> {
    Policy::parse(format!("{}{more}", lines()).as_bytes())
}

#[test]
fn the_quorum_counts_as_the_specification_says() {
    let two_levels = "group X 2 W11 W12 W13\ngroup Y any W14 W15\n  group  both\tall X Y\n\
                      quorum both\n";
    let policy = policy(two_levels).expect("reads");
    for (by, reached) in [
        (&[11u8, 12, 14][..], true),
        (&[11, 12, 13, 14, 15], true),
        (&[12, 13, 15], true),
        (&[11, 12], false),
        (&[11, 14, 15], false),
        (&[], false),
    ] {
        let checked = policy.check(&head(by));
        match reached {
            true => {
                let accepted = checked.expect("enough");
                assert_eq!(accepted.witnessed.len(), by.len());
                assert_eq!((accepted.of, accepted.size), (5, 1));
            }
            false => {
                let quorum = Unaccepted::Quorum {
                    signed: by.len(),
                    of: 5,
                    quorum: "both".into(),
                };
                assert_eq!(checked, Err(quorum), "{by:?}");
            }
        }
    }
}

#[test]
fn a_policy_without_witnesses_and_one_of_a_single_one() {
    let none = policy("quorum none\n").expect("reads");
    assert_eq!(none.check(&head(&[])).expect("enough").witnessed, []);
    let one = policy("quorum W12\n").expect("reads");
    assert!(one.check(&head(&[11])).is_err());
    let accepted = one.check(&head(&[12])).expect("enough");
    assert_eq!(accepted.witnessed, [("W12".to_owned(), 12)]);
}

#[test]
fn a_signature_that_does_not_verify_is_an_error_and_unknown_ones_are_skipped() {
    let policy = policy("quorum W11\n").expect("reads");
    assert!(policy.check(&head(&[11, 99])).is_ok(), "99 is nobody's");
    let good = head(&[11, 12]);
    let other = good.replace("witness12.example", "witness13.example");
    assert!(policy.check(&other).is_ok(), "another key's identifier");
    // The last bytes of the signature of W12, which the quorum does not need.
    let at = good.len() - 10;
    let mut bytes = good.into_bytes();
    bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
    let bad = String::from_utf8(bytes).expect("text");
    assert!(matches!(policy.check(&bad), Err(Unaccepted::Note(_))));
    let stranger = Signer::from_seed("log.example", &[9; 32]).expect("a seed");
    let forged = stranger.checkpoint(1, &[0; 32]);
    assert_eq!(policy.check(&forged), Err(Unaccepted::Log));
}

#[test]
fn what_is_not_of_the_format_is_refused_with_its_line() {
    let bad = [
        "",
        "quorum none",
        "quorum none\nquorum none\n",
        "quorum none\r\n",
        "quorum W99\n",
        "quorum\n",
        "quorum none more\n",
        "group G 3 W11 W12\nquorum G\n",
        "group G 0 W11 W12\nquorum G\n",
        "group G 01 W11 W12\nquorum G\n",
        "group G any\nquorum G\n",
        "group G any W11 W11\nquorum G\n",
        "group G any W11\ngroup H any W11\nquorum G\n",
        "group G any H\ngroup H any W11\nquorum G\n",
        "group none any W11\nquorum none\n",
        "group W11 any W12\nquorum none\n",
        "group G any none\nquorum none\n",
        "something else\nquorum none\n",
        "log x\nquorum none\n",
    ];
    for more in bad {
        assert!(policy(more).is_err(), "{more:?}");
    }
    let duplicate = format!(
        "witness again {}\nquorum none\n",
        witness(11).verifier().text()
    );
    let refused = policy(&duplicate).expect_err("the same key");
    assert_eq!(refused.line, 9);
    let no_witness = format!("witness x {}\nquorum none\n", log().verifier().text());
    assert!(policy(&no_witness).is_err(), "a log's key");
    let no_log = format!("log {}\nquorum none\n", witness(90).verifier().text());
    assert!(policy(&no_log).is_err(), "a witness's key");
}
