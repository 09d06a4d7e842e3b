//! Audit M5 and L: no byte of a file may differ from what was issued. Each byte of a small valid
//! file of each kind is changed in several ways, taken out and doubled; and what people and tools
//! do to files by mistake is refused, too.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::World;
use lethe_receipt::audit::Bundle;
use lethe_receipt::lists_audit::ListsBundle;
use lethe_receipt::manifest::Manifest;
use lethe_receipt::note::{VerifierKey, open_checkpoint};
use lethe_receipt::policy::Policy;
use lethe_receipt::proof::TlogProof;
use lethe_receipt::receipt::{Receipt, verify};
use lethe_receipt::snapshot::SnapshotStatement;
use lethe_receipt::tiles;

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or("")
}

/// What is done to a file that no reader may overlook.
fn edits(file: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut out = vec![];
    for at in 0..file.len() {
        for flip in [0x01, 0x02, 0x20, 0x80] {
            let mut edited = file.to_vec();
            edited[at] ^= flip;
            out.push((format!("byte {at} ^ {flip:#x}"), edited));
        }
        let mut edited = file.to_vec();
        edited.remove(at);
        out.push((format!("without byte {at}"), edited));
        let mut edited = file.to_vec();
        edited.insert(at, file[at]);
        out.push((format!("byte {at} twice"), edited));
    }
    for end in ["\n", "\r\n", " ", "\0", "x", "\n\n", "\n{}"] {
        out.push((
            format!("{end:?} behind it"),
            [file, end.as_bytes()].concat(),
        ));
    }
    let crlf = text(file).replace('\n', "\r\n").into_bytes();
    out.push(("CRLF".into(), crlf));
    let bom = ["\u{feff}".as_bytes(), file].concat();
    out.push(("a byte order mark".into(), bom));
    // Its last line once more: a signature, where it has some.
    let last = file[..file.len().saturating_sub(1)]
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |at| at + 1);
    out.push(("its last line twice".into(), [file, &file[last..]].concat()));
    out.retain(|(_, edited)| edited != file);
    out
}

fn every_edit_is_refused(kind: &str, file: &[u8], accepts: impl Fn(&[u8]) -> bool) {
    assert!(accepts(file), "{kind}: as issued");
    for (what, edited) in edits(file) {
        assert!(!accepts(&edited), "{kind}: {what} is accepted");
    }
}

#[test]
fn no_byte_of_a_receipt_may_change() {
    let world = World::new();
    every_edit_is_refused("receipt", &world.receipt(), |b| {
        verify(b, world.key()).is_ok()
    });
}

/// Also those of witnesses' signatures, whether or not anybody asks for them.
#[test]
fn no_byte_of_a_cosigned_receipt_may_change() {
    let world = World::new();
    let receipt = world.cosigned_receipt();
    every_edit_is_refused("receipt", &receipt, |b| verify(b, world.key()).is_ok());
    let read: Receipt = verify(&receipt, world.key()).unwrap();
    assert_eq!(read.witnesses.len(), 1);
    // The witness's key and signature cannot be left out for one another.
    let mut without = read.clone();
    without.witnesses.clear();
    assert!(verify(&without.bytes(), world.key()).is_err());
    let mut bare = read;
    bare.checkpoint = world.head();
    assert!(verify(&bare.bytes(), world.key()).is_err());
}

/// Rounds, adapter and engine among them, which neither records nor the log's entry fix.
#[test]
fn no_byte_of_an_audit_bundle_may_change() {
    let world = World::new();
    every_edit_is_refused("bundle", &world.bundle(), |b| {
        Bundle::verify(b, world.key()).is_ok()
    });
}

#[test]
fn no_byte_of_a_bundle_of_lists_may_change_without_changing_what_is_folded() {
    let world = World::new();
    let file = world.lists_bundle();
    let key = world.tally.verifier();
    let good = ListsBundle::open(&file, key).unwrap();
    for (what, edited) in edits(&file) {
        if let Ok(read) = ListsBundle::open(&edited, key) {
            // What it says differs, and is compared with the sums of the note.
            assert_ne!(read, good, "{what} is overlooked");
            assert_eq!(read.statement, good.statement, "{what}");
        }
    }
}

#[test]
fn no_byte_of_a_checkpoint_may_change() {
    let world = World::new();
    let head = world.head();
    every_edit_is_refused("checkpoint", head.as_bytes(), |b| {
        open_checkpoint(text(b), world.key()).is_ok()
    });
    // With a witness's signature: under a policy that names it, none of its bytes either.
    let policy = world.read_policy();
    every_edit_is_refused("cosigned", world.cosigned().checkpoint.as_bytes(), |b| {
        policy.check(text(b)).is_ok()
    });
}

#[test]
fn no_byte_of_a_note_may_change() {
    let world = World::new();
    every_edit_is_refused("snapshot", world.note().as_bytes(), |b| {
        SnapshotStatement::open(text(b), world.tally.verifier()).is_ok()
    });
    every_edit_is_refused("manifest", world.manifest().as_bytes(), |b| {
        Manifest::open(text(b), world.key()).is_ok()
    });
}

#[test]
fn no_byte_of_a_tlog_proof_may_change() {
    let world = World::new();
    let policy = world.read_policy();
    every_edit_is_refused("proof", world.proof().as_bytes(), |b| {
        let Ok(proof) = TlogProof::parse(b) else {
            return false;
        };
        let entry = proof.extra.clone().unwrap_or_default();
        proof.verify(&entry, &policy).is_ok()
    });
}

#[test]
fn no_byte_of_a_key_may_change() {
    let world = World::new();
    let key = world.key().text();
    assert!(VerifierKey::parse(&key).is_ok());
    for (what, edited) in edits(key.as_bytes()) {
        let known = VerifierKey::parse(text(&edited));
        // Blanks around a key are those of whoever copied it.
        let around = text(&edited).trim() == key;
        assert_eq!(known.is_ok(), around, "{what}");
    }
}

#[test]
fn no_byte_of_a_policy_changes_what_it_says_unnoticed() {
    let world = World::new();
    let good = world.read_policy();
    for (what, edited) in edits(world.policy().as_bytes()) {
        let Ok(read) = Policy::parse(&edited) else {
            continue;
        };
        // Comments, blanks, names and addresses are free; keys and rules are not.
        let keys = |p: &Policy| -> Vec<String> {
            let logs = p.logs.iter().map(|l| l.key.text());
            logs.chain(p.witnesses.iter().map(|w| w.key.text()))
                .collect()
        };
        assert_eq!(keys(&read), keys(&good), "{what}");
        assert!(read.check(&world.cosigned().checkpoint).is_ok(), "{what}");
        assert!(read.check(&world.head()).is_err(), "{what}");
    }
}

#[test]
fn no_byte_of_a_published_log_may_change() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let mut files = tiles::files(&world.entries, 0).unwrap();
    files.push(("checkpoint".into(), world.head().into_bytes()));
    for (path, bytes) in &files {
        let at = folder.path().join(path);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::fs::write(at, bytes).unwrap();
    }
    for (path, bytes) in &files {
        let at = folder.path().join(path);
        every_edit_is_refused(path, bytes, |edited| {
            std::fs::write(&at, edited).unwrap();
            let read = tiles::audit(folder.path(), world.key());
            std::fs::write(&at, bytes).unwrap();
            read.is_ok()
        });
    }
}
