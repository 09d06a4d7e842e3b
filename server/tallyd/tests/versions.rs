//! Versions of the catalogue come from the coordinator, and are checked as if from anybody.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Asked, DAY, Disk, ITEMS, NOW, items, read, seal};
use lethe_proto::catalogue::{
    CatalogueChange, CatalogueEntry, TallyCatalogue, Versions, difference,
};
use lethe_proto::ids::Digest;
use lethe_proto::lists::{Contributed, LIKED, SEEN, SharedEvent, items_digest};
use lethe_proto::tally::{Confided, TallyRefusal, TallyReply, TallyRequest, padded};
use lethe_tallyd::Service;

/// item-0 is renamed, item-1 has left, and there is one more.
fn second() -> Versions {
    let mut versions = Versions::founded(items()).unwrap();
    let mut next = items();
    next[0].id = "other".into();
    next.remove(1);
    next.push(CatalogueEntry {
        id: "more".into(),
        title: Some("more".into()),
        ..CatalogueEntry::default()
    });
    let renamed = [("item-0".to_owned(), "other".to_owned())];
    let changes = difference(versions.entries(), 2, &next, &renamed).unwrap();
    assert_eq!(changes.len(), 3);
    versions.apply(changes).unwrap();
    versions
}

fn send(
    service: &Service,
    at: u64,
    changes: &[CatalogueChange],
    ends: Option<Digest>,
) -> Result<TallyCatalogue, TallyRefusal> {
    let changes = changes.to_vec();
    match service.answer(TallyRequest::Catalogue { at, changes, ends }, NOW) {
        TallyReply::Catalogue(has) => Ok(has),
        TallyReply::Refused { code, .. } => Err(code),
        other => panic!("{other:?}"),
    }
}

fn contribute(service: &Service, versions: &Versions, who: u8, names: &[&str]) -> Confided {
    let ids = versions.entries().iter().map(|e| e.id.as_str());
    let items = items_digest(ids);
    let opened = service.answer(TallyRequest::Open { items, floor: 0 }, NOW);
    let TallyReply::Opened(terms) = opened else {
        panic!("{opened:?}")
    };
    let event = |name: &&str| SharedEvent {
        item: (*name).into(),
        day: DAY - 5,
        half_stars: 8,
        flags: SEEN | LIKED,
    };
    let body = Contributed {
        source: [1; 16],
        whole: true,
        events: names.iter().map(event).collect(),
    };
    let plain = padded(&body).unwrap();
    let ticket = service.ticket(who, NOW);
    let sent = seal(&terms.note, &terms.key, who, ticket, &plain);
    read(&sent, &service.bring(&[&sent], NOW)[0])
}

#[test]
fn a_tally_that_is_behind_is_sent_what_it_lacks() {
    let disk = Disk::new();
    let service = disk.open(NOW);
    let first = Versions::founded(items()).unwrap();
    for who in 0..24 {
        assert_eq!(service.contribute(who, 5, NOW), Confided::Taken);
    }
    service.work(NOW);
    let has = send(&service, 0, &[], None).unwrap();
    assert_eq!((has.version, has.digest), (1, first.digest()));
    let next = second();
    let all = next.changes_of(2);
    // In two pages; what is there meanwhile is the version before.
    let half = send(&service, 0, &all[..1], None).unwrap();
    assert_eq!((half.version, half.staged), (1, 1));
    let has = send(&service, 1, &all[1..], Some(next.digest())).unwrap();
    assert_eq!((has.version, has.digest, has.staged), (2, next.digest(), 0));
    assert_eq!(service.tally().items(), ITEMS + 1);
    let known = ["other", "item-0", "item-1", "item-2", "more"];
    assert_eq!(contribute(&service, &next, 100, &known), Confided::Taken);
    let unknown = contribute(&service, &next, 101, &["nothing"]);
    assert!(matches!(unknown, Confided::Invalid(_)), "{unknown:?}");
    // Sums that were folded before and those that are folded again are the same bytes.
    let folded = service.tally().refold(NOW).unwrap().unwrap();
    assert_eq!(folded.memory, Some(true));
    // Tables have the new item from the next snapshot on.
    service.work(NOW + 2_000);
    let tables = service.tables().unwrap();
    let tables = lethe_parts::snapshot::decode(&tables.bytes).unwrap();
    assert_eq!(tables.items(), ITEMS + 1);
    // It is there after a start, with the configured items of before.
    drop(service);
    let service = disk.open(NOW + 3_000);
    let has = send(&service, 0, &[], None).unwrap();
    assert_eq!((has.version, has.digest), (2, next.digest()));
    assert_eq!(service.tally().items(), ITEMS + 1);
    assert_eq!(contribute(&service, &next, 102, &known), Confided::Taken);
}

#[test]
fn what_is_no_version_is_refused_and_changes_nothing() {
    let disk = Disk::new();
    let service = disk.open(NOW);
    let before = send(&service, 0, &[], None).unwrap();
    let next = second();
    let all = next.changes_of(2).to_vec();
    let ends = Some(next.digest());
    let mut other = all.clone();
    other[0].entry.title = Some("another title".into());
    let mut late = all.clone();
    late.iter_mut().for_each(|c| c.version = 3);
    let mut beyond = all.clone();
    beyond[2].place += 1;
    for (at, changes, ends) in [
        (1, &all, ends),
        (0, &other, ends),
        (0, &late, ends),
        (0, &beyond, ends),
        (0, &all, Some(Digest([7; 32]))),
        (0, &vec![], ends),
    ] {
        assert_eq!(
            send(&service, at, changes, ends),
            Err(TallyRefusal::Invalid)
        );
        assert_eq!(send(&service, 0, &[], None).unwrap(), before);
    }
    assert_eq!(service.tally().items(), ITEMS);
    // A write that fails: nothing is in force, or all of it is after the next start.
    for written in [false, true] {
        disk.fail_after(0, written);
        assert_eq!(send(&service, 0, &all, ends), Err(TallyRefusal::Internal));
        disk.mend();
        assert_eq!(send(&service, 0, &[], None).unwrap(), before);
    }
    assert_eq!(send(&service, 0, &all, ends).unwrap().version, 2);
}
