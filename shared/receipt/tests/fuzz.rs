//! Readers take any bytes. Fuzz targets, too: `cargo bolero test -p lethe-receipt --test fuzz
//! mutated_receipts_are_refused`. The corpus is in `tests/corpus`; `LETHE_BLESS=1` writes it anew.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::World;
use lethe_receipt::audit::Bundle;
use lethe_receipt::lists_audit::ListsBundle;
use lethe_receipt::note::{SignedNote, VerifierKey, open_checkpoint};
use lethe_receipt::policy::Policy;
use lethe_receipt::proof::TlogProof;
use lethe_receipt::receipt::verify;
use lethe_receipt::served::Proven;
use lethe_receipt::witness::{AddCheckpoint, Seen};

type Edits = Vec<(u16, u8)>;

/// A valid file, which is in the repository, too.
fn corpus(name: &str, made: &[u8]) -> Vec<u8> {
    let at = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(name);
    if std::env::var_os("LETHE_BLESS").is_some() {
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::fs::write(&at, made).unwrap();
    }
    let kept = std::fs::read(&at).unwrap();
    // What was issued by builds of before is what is issued now.
    assert_eq!(kept, made, "{name}");
    kept
}

fn edited(valid: &[u8], edits: &Edits) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for (at, value) in edits {
        let at = usize::from(*at) % (bytes.len() + 1);
        match (value % 4, bytes.get_mut(at)) {
            (0, _) => bytes.insert(at, *value),
            (1, Some(_)) => drop(bytes.remove(at)),
            (_, Some(byte)) => *byte = *value,
            (_, None) => bytes.push(*value),
        }
    }
    bytes
}

fn refused(valid: &[u8], accepts: impl Fn(&[u8]) -> bool + std::panic::RefUnwindSafe) {
    assert!(accepts(valid));
    bolero::check!().with_type::<Edits>().for_each(|edits| {
        let bytes = edited(valid, edits);
        assert!(bytes == valid || !accepts(&bytes));
    });
}

#[test]
fn readers_never_panic() {
    let world = World::new();
    let key = world.key().clone();
    let policy = world.read_policy();
    bolero::check!().for_each(|bytes: &[u8]| {
        let _ = verify(bytes, &key);
        let _ = Bundle::verify(bytes, &key);
        let _ = ListsBundle::open(bytes, &key);
        let _ = Policy::parse(bytes);
        let _ = TlogProof::parse(bytes);
        let _ = AddCheckpoint::parse(bytes);
        let text = String::from_utf8_lossy(bytes);
        let _ = SignedNote::parse(&text);
        let _ = VerifierKey::parse(&text);
        let _ = open_checkpoint(&text, &key);
        let _ = policy.check(&text);
        let proven = Proven {
            statement: text.into_owned(),
            index: 0,
            proof: vec![],
            checkpoint: String::new(),
            consistency: vec![],
        };
        assert!(proven.release(&key, None).is_err());
    });
}

#[test]
fn mutated_receipts_are_refused() {
    let world = World::new();
    let valid = corpus("receipt.json", &world.cosigned_receipt());
    let key = world.key().clone();
    refused(&valid, move |bytes| verify(bytes, &key).is_ok());
}

#[test]
fn mutated_bundles_are_refused() {
    let world = World::new();
    let valid = corpus("bundle.json", &world.bundle());
    let key = world.key().clone();
    refused(&valid, move |bytes| Bundle::verify(bytes, &key).is_ok());
    corpus("lists.json", &world.lists_bundle());
}

#[test]
fn mutated_notes_are_refused() {
    let world = World::new();
    let valid = corpus("checkpoint", world.cosigned().checkpoint.as_bytes());
    let policy = world.read_policy();
    refused(&valid, move |bytes| {
        std::str::from_utf8(bytes).is_ok_and(|text| policy.check(text).is_ok())
    });
}

#[test]
fn mutated_proofs_are_refused() {
    let world = World::new();
    let valid = corpus("receipt.tlog-proof", world.proof().as_bytes());
    let policy = world.read_policy();
    refused(&valid, move |bytes| {
        let Ok(proof) = TlogProof::parse(bytes) else {
            return false;
        };
        let entry = proof.extra.clone().unwrap_or_default();
        proof.verify(&entry, &policy).is_ok()
    });
}

#[test]
fn mutated_requests_to_a_witness_are_refused_or_are_about_the_same_head() {
    let world = World::new();
    let valid = corpus("add-checkpoint", world.request().as_bytes());
    let logs = [world.key().clone()];
    let seen = Seen {
        size: 3,
        root: lethe_receipt::hex::hex(&world.tree.root_of(3).unwrap()),
    };
    let witness = std::panic::AssertUnwindSafe(world.witness);
    let accepts = |bytes: &[u8]| {
        let read = AddCheckpoint::parse(bytes);
        let answer = read.and_then(|r| witness.add(&r, &logs, |_| seen.clone(), 1));
        answer.ok().map(|(_, seen)| seen)
    };
    let now = accepts(&valid).unwrap();
    bolero::check!().with_type::<Edits>().for_each(|edits| {
        if let Some(seen) = accepts(&edited(&valid, edits)) {
            assert_eq!(seen, now);
        }
    });
}

#[test]
fn mutated_policies_never_panic() {
    let world = World::new();
    let valid = corpus("policy", world.policy().as_bytes());
    let head = world.cosigned().checkpoint;
    bolero::check!().with_type::<Edits>().for_each(|edits| {
        if let Ok(policy) = Policy::parse(&edited(&valid, edits)) {
            let _ = policy.check(&head);
        }
    });
}

/// Tiles are compared whole with what the entries give; here the bundle of entries is the input.
#[test]
fn mutated_tiles_are_refused() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let mut files = lethe_receipt::tiles::files(&world.entries, 0).unwrap();
    let (entries, valid) = files.pop().unwrap();
    for (path, bytes) in files {
        let at = folder.path().join(path);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::fs::write(at, bytes).unwrap();
    }
    std::fs::write(folder.path().join("checkpoint"), world.head()).unwrap();
    let at = folder.path().join(&entries);
    std::fs::create_dir_all(at.parent().unwrap()).unwrap();
    let valid = corpus("entries", &valid);
    let key = world.key().clone();
    refused(&valid, move |bytes| {
        std::fs::write(&at, bytes).unwrap();
        lethe_receipt::tiles::audit(folder.path(), &key).is_ok()
    });
}
