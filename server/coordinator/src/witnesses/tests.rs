//! Real witnesses, over HTTP on this machine.

use lethe_receipt::policy::Policy;
use lethe_receipt::witness::Witness;
use lethe_witness::{Service, State, bind, serve};

use super::*;
use crate::evidence::Evidence;

struct Running {
    _dir: tempfile::TempDir,
    line: String,
}

/// Starts a witness of the log; its line in a policy.
async fn witness(n: u8, log: &str, name: &str) -> Running {
    let dir = tempfile::tempdir().expect("tempdir");
    let logs = vec![VerifierKey::parse(log).expect("a key")];
    let state = State::open(dir.path(), &logs).expect("opens");
    let witness = Witness::from_seed(&format!("{name}.example"), &[n; 32]).expect("a seed");
    let key = witness.verifier().text();
    let listener = bind("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("binds");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(serve(
        listener,
        Arc::new(Service::new(witness, logs, state)),
    ));
    Running {
        _dir: dir,
        line: format!("witness {name} {key} http://{addr}/\n"),
    }
}

fn asks(config: &LogConfig, text: &str) -> (Witnesses, Policy) {
    let policy = Policy::parse(text.as_bytes()).expect("reads");
    (Witnesses::new(config, &policy).expect("addresses"), policy)
}

#[tokio::test(flavor = "multi_thread")]
async fn witnesses_sign_each_new_head_and_receipts_and_tiles_have_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut evidence, _) = Evidence::open(dir.path(), "log.example", &[1; 32]).expect("opens");
    let log = evidence.log_key();
    let one = witness(11, &log, "one").await;
    let two = witness(12, &log, "two").await;
    // The third is away.
    let away = Witness::from_seed("away.example", &[13; 32]).expect("a seed");
    let away = away.verifier().text();
    let group = "group G 2 one two away\nquorum G\n";
    let text = format!(
        "log {log}\n{}{}witness away {away} http://127.0.0.1:1/\n{group}",
        one.line, two.line
    );
    let config = LogConfig::default();
    let (witnesses, policy) = asks(&config, &text);
    let cosign = move |mut evidence: Evidence, witnesses: Witnesses| {
        tokio::task::spawn_blocking(move || {
            let head = evidence.to_cosign(3, false).expect("a new head");
            let signed = witnesses.ask(&head, &|old| evidence.extends(old, head.size));
            evidence.take_cosigned(signed.expect("two")).expect("keeps");
            (evidence, witnesses)
        })
    };
    evidence.enter(b"an entry\n").expect("enters");
    let (mut evidence, witnesses) = cosign(evidence, witnesses).await.expect("runs");
    assert!(evidence.to_cosign(3, false).is_none(), "it was signed");
    assert!(evidence.to_cosign(3, true).is_some(), "by two of three");
    let published = || {
        let bytes = std::fs::read_to_string(dir.path().join("tiles/checkpoint"));
        policy.check(&bytes.expect("published"))
    };
    let accepted = published().expect("the quorum");
    assert_eq!((accepted.size, accepted.witnessed.len()), (1, 2));
    // The log grows: the witnesses know the head before.
    for i in 0..300u32 {
        let entry = format!("entry {i}\n");
        evidence.enter(entry.as_bytes()).expect("enters");
    }
    assert!(published().is_err(), "nobody has signed the new one yet");
    let (evidence, _) = cosign(evidence, witnesses).await.expect("runs");
    assert_eq!(published().expect("the quorum").size, 301);
    // Whoever asks has been started anew, and is told what each has signed.
    let (fresh, policy) = asks(&config, &text);
    drop(evidence);
    let (mut evidence, _) = Evidence::open(dir.path(), "log.example", &[1; 32]).expect("opens");
    evidence.recall_cosigned(&policy).expect("reads");
    assert!(evidence.to_cosign(2, true).is_none(), "it is known");
    evidence.enter(b"one more\n").expect("enters");
    let (evidence, _) = cosign(evidence, fresh).await.expect("runs");
    assert_eq!(evidence.cosigned.as_ref().map(|c| c.size), Some(302));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_rewritten_or_put_back_is_signed_by_nobody() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut evidence, _) = Evidence::open(dir.path(), "log.example", &[1; 32]).expect("opens");
    let log = evidence.log_key();
    let one = witness(11, &log, "one").await;
    let text = format!("{}quorum one\n", one.line);
    let config = LogConfig::default();
    let ask = |evidence: Evidence| {
        let (witnesses, _) = asks(&config, &text);
        tokio::task::spawn_blocking(move || {
            let head = evidence.to_cosign(1, false).expect("a head");
            witnesses.ask(&head, &|old| evidence.extends(old, head.size))
        })
    };
    for entry in ["a\n", "b\n", "c\n"] {
        evidence.enter(entry.as_bytes()).expect("enters");
    }
    assert!(ask(evidence).await.expect("runs").is_some());
    for entries in [&["x\n", "b\n", "c\n", "d\n"][..], &["a\n", "b\n"]] {
        let other = tempfile::tempdir().expect("tempdir");
        let (mut evidence, _) =
            Evidence::open(other.path(), "log.example", &[1; 32]).expect("opens");
        for entry in entries {
            evidence.enter(entry.as_bytes()).expect("enters");
        }
        assert!(ask(evidence).await.expect("runs").is_none(), "{entries:?}");
    }
}

#[test]
fn a_policy_that_does_not_name_the_log_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (evidence, _) = Evidence::open(dir.path(), "log.example", &[1; 32]).expect("opens");
    let other = lethe_receipt::note::Signer::from_seed("x", &[2; 32]).expect("a seed");
    let path = dir.path().join("policy");
    let config = LogConfig {
        policy: Some(path.clone()),
        ..LogConfig::default()
    };
    let text = format!("log {}\nquorum none\n", other.verifier().text());
    std::fs::write(&path, text).expect("writes");
    let refused = policy(&config, &evidence.own_keys()).expect_err("another log");
    assert!(refused.to_string().contains("not among them"), "{refused}");
    std::fs::write(&path, "quorum nobody\n").expect("writes");
    let refused = policy(&config, &evidence.own_keys()).expect_err("no quorum");
    assert!(refused.to_string().contains("line 1"), "{refused}");
}
