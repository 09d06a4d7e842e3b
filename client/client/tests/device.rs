//! What a client does on the device alone: no network, no runtime, no model.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{catalogue, likes, time};
use lethe_client::{
    Catalogue, Client, ClientError, Fallback, Filter, ListId, ListSource, LocalEvent, Options,
    Outcome, Query,
};

fn open(folder: &std::path::Path, catalogue: &Arc<Catalogue>) -> Client {
    Client::open(folder, Options::new(catalogue.clone())).unwrap()
}

#[test]
fn lists_from_the_first_moment_on() {
    let dir = tempfile::tempdir().unwrap();
    let client = open(dir.path(), &catalogue(0..40));
    let none = client.top(&Query::first(3)).unwrap();
    assert_eq!(none.source, ListSource::Catalogue(Fallback::NoSnapshot));
    let names = |page: &lethe_client::Page| -> Vec<String> {
        page.items.iter().map(|i| i.item.clone()).collect()
    };
    assert_eq!(names(&none), ["item-0", "item-1", "item-2"]);
    client.record_all(likes(1, 2)).unwrap();
    let page = client.top(&Query::first(8)).unwrap();
    assert_eq!(page.items.len(), 8);
    assert!(
        page.items
            .iter()
            .all(|i| i.item != "item-1" && i.item != "item-5"),
        "not what was met"
    );
    assert_eq!(
        names(&page)[..2],
        ["item-9", "item-13"],
        "like what was liked"
    );
    client
        .record(LocalEvent::hidden("item-9", time(9)))
        .unwrap();
    let page = client.top(&Query::first(1)).unwrap();
    assert_eq!(names(&page), ["item-13"], "not what was hidden");
    assert_eq!(client.similar("item-2", 3).unwrap().items[0].item, "item-6");
    assert_eq!(client.popular(4).unwrap().items.len(), 4);
    let known = client.explain("item-9").unwrap();
    assert!(known.met && known.like.is_none());
    assert!(matches!(
        client.explain("nope"),
        Err(ClientError::UnknownItem(_))
    ));
    assert!(matches!(
        client.record(LocalEvent::liked("nope", 1)),
        Err(ClientError::UnknownItem(_))
    ));
    assert!(matches!(
        client.record(LocalEvent::rating("item-1", f32::NAN, 1)),
        Err(ClientError::BadEvent { .. })
    ));
}

#[test]
fn page_after_page_is_one_long_page() {
    let dir = tempfile::tempdir().unwrap();
    let client = open(dir.path(), &catalogue(0..40));
    client.record_all(likes(2, 3)).unwrap();
    for diversity in [0.0, 0.7] {
        let query = Query {
            diversity,
            exclude: vec!["item-3".into()],
            ..Query::first(40)
        };
        let long = client.top(&query).unwrap();
        assert_eq!((long.items.len(), long.next), (36, None));
        let mut page = client.top(&Query { n: 7, ..query }).unwrap();
        let mut all = page.items.clone();
        while let Some(after) = page.next {
            // What is recorded meanwhile counts for the next list.
            client
                .record(LocalEvent::viewed("item-30", 1.0, time(99)))
                .unwrap();
            client.undo_last().unwrap();
            page = client.top(&Query::next(7, after)).unwrap();
            assert_eq!(page.id, after_id(&page));
            all.extend(page.items.clone());
        }
        assert_eq!(all, long.items, "diversity {diversity}");
    }
    let first = client.top(&Query::first(1)).unwrap();
    for _ in 0..8 {
        client.top(&Query::first(1)).unwrap();
    }
    let forgotten = client.top(&Query::next(1, first.next.unwrap()));
    assert!(matches!(forgotten, Err(ClientError::ListGone)));
}

fn after_id(page: &lethe_client::Page) -> ListId {
    ListId::from_number(page.id.number())
}

#[test]
fn filters_candidates_and_boosts_hold() {
    let dir = tempfile::tempdir().unwrap();
    let client = open(dir.path(), &catalogue(0..40));
    client.record_all(likes(0, 2)).unwrap();
    let items = |query: Query| -> Vec<String> {
        let page = client.top(&query).unwrap();
        page.items.into_iter().map(|i| i.item).collect()
    };
    let comedies = items(Query {
        filter: Filter::tag("comedy"),
        ..Query::first(40)
    });
    assert_eq!(comedies.len(), 10);
    let even = |item: &lethe_client::Item| item.id.ends_with(['0', '2', '4', '6', '8']);
    let own = items(Query {
        filter: Filter {
            tags: vec![],
            allows: Some(Arc::new(even)),
        },
        ..Query::first(40)
    });
    assert_eq!(own.len(), 18, "20 less the two that were met");
    let among = items(Query {
        candidates: Some(vec!["item-7".into(), "item-4".into(), "item-8".into()]),
        ..Query::first(40)
    });
    assert_eq!(among, ["item-8", "item-7"]);
    let boosted = items(Query {
        boost: Some(Arc::new(|item| match item.id.as_str() {
            "item-11" => 100.0,
            "item-12" => f64::NAN,
            _ => 0.0,
        })),
        ..Query::first(40)
    });
    assert_eq!(boosted[0], "item-11");
    assert!(!boosted.contains(&"item-12".to_owned()));
    let unknown = client.top(&Query {
        candidates: Some(vec!["nope".into()]),
        ..Query::first(1)
    });
    assert!(matches!(unknown, Err(ClientError::UnknownItem(_))));
}

#[test]
fn a_folder_belongs_to_one_client_until_its_last_handle_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let catalogue = catalogue(0..10);
    let client = open(dir.path(), &catalogue);
    let clone = client.clone();
    client.record(LocalEvent::liked("item-1", 1)).unwrap();
    drop(client);
    let second = Client::open(dir.path(), Options::new(catalogue.clone()));
    assert!(matches!(second, Err(ClientError::InUse { .. })));
    assert!(matches!(
        Client::erase_folder(dir.path()),
        Err(ClientError::InUse { .. })
    ));
    clone.record(LocalEvent::liked("item-2", 2)).unwrap();
    drop(clone);
    assert_eq!(open(dir.path(), &catalogue).history().len(), 2);
}

#[test]
fn threads_share_a_client() {
    let dir = tempfile::tempdir().unwrap();
    let catalogue = catalogue(0..10);
    let client = open(dir.path(), &catalogue);
    std::thread::scope(|threads| {
        for t in 0..4 {
            let client = client.clone();
            threads.spawn(move || {
                for n in 0..25 {
                    let item = format!("item-{}", n % 10);
                    client.record(LocalEvent::liked(item, t * 100 + n)).unwrap();
                    client.top(&Query::first(3)).unwrap();
                }
            });
        }
    });
    let mut names: Vec<_> = client.named_history().into_iter().map(|e| e.0).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 100);
    let before = client.history();
    drop(client);
    assert_eq!(open(dir.path(), &catalogue).history(), before);
}

#[test]
fn histories_move_between_devices() {
    let one = tempfile::tempdir().unwrap();
    let two = tempfile::tempdir().unwrap();
    let catalogue = catalogue(0..20);
    let first = open(one.path(), &catalogue);
    let second = open(two.path(), &catalogue);
    first.record_all(likes(0, 4)).unwrap();
    first
        .record(LocalEvent::rating("item-7", 3.5, time(50)))
        .unwrap();
    second.record_all(likes(0, 2)).unwrap();
    second.record(LocalEvent::hidden("item-9", 3)).unwrap();
    let export = first.export().unwrap();
    assert_eq!(second.import(&export).unwrap(), 3, "two were there");
    assert_eq!(second.import(&export).unwrap(), 0, "the same again");
    assert_eq!(second.history().len(), 6);
    assert_eq!(first.import(&second.export().unwrap()).unwrap(), 1);
    assert_eq!(first.history(), second.history());
    let text = String::from_utf8(export).unwrap();
    for bad in [
        String::new(),
        text.replace("\"version\": 1", "\"version\": 9"),
        text.replace("\"source\"", "\"sauce\""),
    ] {
        let refused = second.import(bad.as_bytes());
        assert!(
            matches!(refused, Err(ClientError::Export(_))),
            "{refused:?}"
        );
    }
}

#[test]
fn what_people_do_with_lists_is_counted_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let catalogue = catalogue(0..10);
    let client = open(dir.path(), &catalogue);
    let page = client.top(&Query::first(3)).unwrap();
    client
        .feedback(page.id, "item-0", Outcome::Clicked)
        .unwrap();
    client
        .feedback(page.id, "item-1", Outcome::Dismissed)
        .unwrap();
    assert!(client.feedback(page.id, "nope", Outcome::Liked).is_err());
    drop(client);
    let client = open(dir.path(), &catalogue);
    let status = client.status();
    assert_eq!(status.feedback.len(), 1);
    assert_eq!(status.feedback[0].source, page.source);
    assert_eq!(status.feedback[0].outcomes, [1, 0, 1, 0]);
    assert_eq!(status.feedback[0].hits, 1);
    assert!(client.history().is_empty(), "it is no event");
}

#[test]
fn erasing_leaves_nothing_and_needs_no_key() {
    let dir = tempfile::tempdir().unwrap();
    let catalogue = catalogue(0..10);
    let client = open(dir.path(), &catalogue);
    client.record_all(likes(0, 2)).unwrap();
    client.erase().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let again = client.record(LocalEvent::liked("item-1", 1));
    assert!(matches!(again, Err(ClientError::Erased)));
    assert!(client.history().is_empty());
    client.erase().unwrap();
    drop(client);
    let client = open(dir.path(), &catalogue);
    assert!(client.history().is_empty());
    client.record_all(likes(0, 2)).unwrap();
    drop(client);
    // The key is lost.
    std::fs::remove_file(dir.path().join("device.key")).unwrap();
    let lost = Client::open(dir.path(), Options::new(catalogue.clone()));
    assert!(matches!(lost, Err(ClientError::KeyLost { .. })));
    assert!(
        !dir.path().join("device.key").exists(),
        "no other key is made"
    );
    std::fs::write(dir.path().join("mine.txt"), b"the app's own").unwrap();
    Client::erase_folder(dir.path()).unwrap();
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    Client::erase_folder(dir.path().join("never")).unwrap();
}

#[test]
fn an_erasure_that_was_cut_short_ends_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let catalogue = catalogue(0..10);
    let client = open(dir.path(), &catalogue);
    client.record_all(likes(0, 2)).unwrap();
    drop(client);
    std::fs::write(dir.path().join("erasing"), b"").unwrap();
    std::fs::remove_file(dir.path().join("device.key")).unwrap();
    assert!(open(dir.path(), &catalogue).history().is_empty());
}

#[test]
fn what_leaves_the_catalogue_stays_in_the_history() {
    let dir = tempfile::tempdir().unwrap();
    let client = open(dir.path(), &catalogue(0..10));
    client.record_all(likes(0, 3)).unwrap();
    drop(client);
    let client = open(dir.path(), &catalogue(1..10));
    assert_eq!(client.history().len(), 3);
    let page = client.top(&Query::first(10)).unwrap();
    assert_eq!(page.items.len(), 7, "nine less the two that are known");
}

#[test]
fn network_functions_say_what_they_lack() {
    let dir = tempfile::tempdir().unwrap();
    let client = open(dir.path(), &catalogue(0..10));
    let asked = common::block_on(client.step());
    assert!(matches!(asked, Err(ClientError::NoServer)), "{asked:?}");
    drop(client);
    let options = Options::new(catalogue(0..10))
        .server("127.0.0.1:9".parse::<lethe_client::Place>().unwrap());
    let client = Client::open(dir.path(), options).unwrap();
    let asked = common::block_on(client.connect());
    assert!(matches!(asked, Err(ClientError::NotEnrolled)), "{asked:?}");
    let ranked = common::block_on(client.recommend(["item-1"], 1));
    assert!(matches!(ranked, Err(ClientError::NoModel)), "{ranked:?}");
}
