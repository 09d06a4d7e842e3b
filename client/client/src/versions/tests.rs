use lethe_proto::catalogue::{CatalogueEntry, MAX_TITLE, difference};
use lethe_receipt::note::Signer;

use super::*;
use crate::{EventTable, Item};

fn item(id: &str, title: &str) -> Item {
    Item {
        id: id.into(),
        title: title.into(),
        year: None,
        tags: vec![],
    }
}

fn shipped() -> Arc<Catalogue> {
    let items = vec![item("a", "Anna"), item("b", "Ben"), item("c", "Carl")];
    let vectors = vec![1.0, 0.0, 0.0, 1.0, 0.5, 0.5];
    Catalogue::new(items, &EventTable::default(), Some(vectors)).expect("a catalogue")
}

fn entry(id: &str, title: &str) -> CatalogueEntry {
    CatalogueEntry {
        id: id.into(),
        title: Some(title.into()),
        ..CatalogueEntry::default()
    }
}

/// a is e now, b has left, c has another title, d is new.
fn second() -> Versions {
    let mut versions = (*shipped().as_version_one()).clone();
    let items = [entry("e", "Anna"), entry("c", "Carla"), entry("d", "Dora")];
    let renamed = [("a".to_owned(), "e".to_owned())];
    let changes = difference(versions.entries(), 2, &items, &renamed).expect("differs");
    versions.apply(changes).expect("applies");
    versions
}

fn signer() -> Signer {
    Signer::from_seed("log", &[1; 32]).expect("a seed")
}

fn answer(of: &Versions, from: u32) -> Answer {
    let number = of.newest();
    let manifest = Manifest {
        number,
        digest: of.digest().0,
        before: of.digest_of(number - 1).unwrap_or_default().0,
        places: of.entries().len() as u64,
        at: 1_700_000_000,
    };
    Answer {
        version: number,
        note: manifest.sign(&signer()).expect("signs"),
        whole: from == 0,
        changes: of.since(from).to_vec(),
        epochs: vec![],
    }
}

fn check(known: u32, answer: &Answer) -> Result<Option<Versions>, ClientError> {
    let here = match known {
        0 => (*shipped().as_version_one()).clone(),
        _ => second(),
    };
    checked(&here, known, answer, signer().verifier())
}

#[test]
fn a_version_is_taken_as_a_difference_or_as_a_whole() {
    let next = second();
    assert_eq!(
        check(0, &answer(&next, 1)).expect("is good"),
        Some(next.clone())
    );
    assert_eq!(
        check(0, &answer(&next, 0)).expect("is good"),
        Some(next.clone())
    );
    assert_eq!(check(2, &answer(&next, 2)).expect("is good"), None);
}

#[test]
fn what_the_log_has_not_signed_is_not_taken() {
    let next = second();
    let bad = |change: &dyn Fn(&mut Answer)| {
        let mut answer = answer(&next, 1);
        change(&mut answer);
        let refused = check(0, &answer).expect_err("hostile");
        assert!(matches!(refused, ClientError::BadCatalogue(_)), "{refused}");
    };
    bad(&|a| a.note = a.note.replace("number 2", "number 3"));
    bad(&|a| a.note.clear());
    bad(&|a| a.version = 3);
    bad(&|a| a.changes[0].entry.title = Some("Other".into()));
    bad(&|a| drop(a.changes.pop()));
    bad(&|a| a.changes.reverse());
    bad(&|a| a.changes.iter_mut().for_each(|c| c.version = 3));
    bad(&|a| a.changes[0].entry.title = Some("x".repeat(MAX_TITLE + 1)));
    bad(&|a| a.whole = true);
    let other = Signer::from_seed("log", &[2; 32]).expect("a seed");
    let refused = checked(&next, 0, &answer(&next, 1), other.verifier());
    assert!(matches!(refused, Err(ClientError::BadCatalogue(_))));
}

#[test]
fn a_device_does_not_go_back_nor_take_another_version_of_the_same_number() {
    let first = (*shipped().as_version_one()).clone();
    let old = check(2, &answer(&first, 0)).expect_err("is older");
    assert!(
        matches!(old, ClientError::OldCatalogue { got: 1, known: 2 }),
        "{old}"
    );
    let mut fork = first;
    let items = [entry("a", "Anna"), entry("b", "Ben"), entry("c", "Carlo")];
    let changes = difference(fork.entries(), 2, &items, &[]).expect("differs");
    fork.apply(changes).expect("applies");
    let forked = check(2, &answer(&fork, 0)).expect_err("is another");
    assert!(forked.to_string().contains("signed both"), "{forked}");
}

#[test]
fn names_of_before_and_of_what_has_left_are_known() {
    let shipped = shipped();
    let versions = second();
    let now = shipped.of_version(&versions, 2).expect("is made");
    let ids: Vec<&str> = now.items().iter().map(|i| i.id.as_str()).collect();
    assert_eq!(ids, ["e", "c", "d"]);
    assert_eq!(now.find("a"), now.find("e"));
    assert_eq!(now.find("b"), None);
    assert!(now.had("b").is_ok() && now.had("never").is_err());
    assert_eq!(now.content().text_width(), 2, "with the vectors of the app");
    // As the epoch of before has it: titles of then, under all names.
    let then = shipped.of_version(&versions, 1).expect("is made");
    let title = |id: &str| then.item(id).map(|i| i.title.clone());
    assert_eq!(title("c").as_deref(), Some("Carl"));
    assert_eq!(title("b").as_deref(), Some("Ben"));
    assert_eq!(title("e").as_deref(), Some("Anna"));
    assert_eq!(title("d"), None, "it was not there");
    assert_eq!(
        then.features(),
        shipped.features(),
        "the anchors' features, too"
    );
    let again = shipped.of_version(&versions, 2).expect("is made");
    assert!(Arc::ptr_eq(&now, &again), "clients of a process share it");
}
