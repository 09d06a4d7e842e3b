//! `lethe-verify` as people use it: policies, published logs, tlog-proofs.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::World;
use lethe_receipt::merkle::{Tree, leaf_hash};
use lethe_receipt::tiles;

fn run(folder: &Path, args: &[&str]) -> (i32, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_lethe-verify"))
        .current_dir(folder)
        .args(args)
        .output()
        .unwrap();
    let said = [stdout, stderr].concat();
    (status.code().unwrap(), String::from_utf8(said).unwrap())
}

fn publish(world: &World, entries: &[Vec<u8>], folder: &Path) {
    for (path, bytes) in tiles::files(entries, 0).unwrap() {
        let at = folder.join(path);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::fs::write(at, bytes).unwrap();
    }
    let tree = Tree::from_leaves(entries.iter().map(|e| leaf_hash(e)).collect());
    let head = world.log.checkpoint(tree.len(), &tree.root());
    std::fs::write(folder.join("checkpoint"), head).unwrap();
}

#[test]
fn a_policy_says_how_many_witnesses_signed_and_fails_below_the_quorum() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    std::fs::write(at.join("cosigned.json"), world.cosigned_receipt()).unwrap();
    std::fs::write(at.join("plain.json"), world.receipt()).unwrap();
    std::fs::write(at.join("policy"), world.policy()).unwrap();
    let (code, said) = run(at, &["receipt", "cosigned.json", "--policy", "policy"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("1 of the policy's 1 witnesses"), "{said}");
    assert!(said.contains("also signed by: witness.example"), "{said}");
    let (code, said) = run(at, &["receipt", "plain.json", "--policy", "policy"]);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("the quorum `G` is not reached"), "{said}");
    let key = world.key().text();
    let (code, said) = run(at, &["receipt", "plain.json", "--log-key", &key]);
    assert_eq!(code, 0, "{said}");
    std::fs::write(at.join("policy"), "quorum none\r\n").unwrap();
    let (code, said) = run(at, &["receipt", "plain.json", "--policy", "policy"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("line 1"), "{said}");
}

#[test]
fn a_receipt_is_compared_with_the_published_log() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    std::fs::write(at.join("r.json"), world.receipt()).unwrap();
    let key = world.key().text();
    let check = || {
        run(
            at,
            &["receipt", "r.json", "--log-key", &key, "--log", "log"],
        )
    };
    let mut entries = world.entries.clone();
    entries.push(b"since then".to_vec());
    publish(&world, &entries, &at.join("log"));
    let (code, said) = check();
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("published log of 6 entries"), "{said}");
    // The log that the operator shows to everybody else lacks the deletion.
    std::fs::remove_dir_all(at.join("log")).unwrap();
    entries[3] = b"something else".to_vec();
    publish(&world, &entries, &at.join("log"));
    let (code, said) = check();
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("SPLIT VIEW"), "{said}");
    std::fs::remove_dir_all(at.join("log")).unwrap();
    publish(&world, &world.entries[..4], &at.join("log"));
    let (code, said) = check();
    assert_eq!(code, 3, "{said}");
    assert!(
        said.contains("has 4 entries, the receipt's head 5"),
        "{said}"
    );
}

#[test]
fn a_receipt_is_exported_as_a_tlog_proof() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    std::fs::write(at.join("r.json"), world.cosigned_receipt()).unwrap();
    std::fs::write(at.join("policy"), world.policy()).unwrap();
    let key = world.key().text();
    let export = [
        "proof",
        "r.json",
        "--log-key",
        &key,
        "--out",
        "r.tlog-proof",
    ];
    assert_eq!(run(at, &export), (0, String::new()));
    let text = std::fs::read_to_string(at.join("r.tlog-proof")).unwrap();
    assert!(!text.contains("alice"), "{text}");
    let check = ["tlog-proof", "r.tlog-proof", "--policy", "policy"];
    let (code, said) = run(at, &check);
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("VERIFIED: entry 3 of the log log.example"),
        "{said}"
    );
    let with = [&check[..], &["--receipt", "r.json"]].concat();
    assert_eq!(run(at, &with).0, 0);
    std::fs::write(at.join("r.tlog-proof"), text.replace("index 3", "index 2")).unwrap();
    assert_eq!(run(at, &check).0, 3);
}
