//! Tables and contributions, against a coordinator over real connections.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{block_on, catalogue, ids, likes, note, start, time};
use lethe_client::{
    Client, ClientError, Done, Fallback, ListSource, LocalEvent, Options, Query, Refreshed,
    TimeGranularity, TrainingData,
};
use lethe_proto::ids::Digest;
use lethe_proto::lists::{HIDDEN, LIKED, SEEN};
use lethe_proto::message::Refusal;
use lethe_receipt::note::Signer;

const FETCHED: Refreshed = Refreshed {
    fetched: true,
    contributed: false,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_chain_of_sources_is_walked() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(ids(0..60)).await;
    server.publish(1, 0);
    let client = server.client(dir.path(), &catalogue(0..60));
    let source = |at: i64| {
        let query = Query {
            at: Some(time(at)),
            ..Query::first(10)
        };
        client.top(&query).unwrap().source
    };
    assert_eq!(source(0), ListSource::Catalogue(Fallback::NoSnapshot));
    assert_eq!(client.refresh().await.unwrap(), FETCHED);
    assert_eq!(source(0), ListSource::PopularNow);
    assert_eq!(client.popular(5).unwrap().items.len(), 5);
    client.record_all(likes(1, 3)).unwrap();
    assert_eq!(source(9), ListSource::FewEvents);
    let page = client.top(&Query::first(6)).unwrap();
    assert!(page.items.iter().all(|i| i.like.is_some() && !i.unseen));
    let comedies = page.items.iter().filter(|i| {
        let number: usize = i.item.trim_start_matches("item-").parse().unwrap();
        number % 4 == 1
    });
    assert!(comedies.count() >= 5, "{page:?}");
    let why = &page.items[0].reasons;
    assert!(
        !why.is_empty() && why[0].title.starts_with("Title "),
        "{why:?}"
    );
    client.record_all(likes(1, 12)).unwrap();
    assert_eq!(source(20), ListSource::OwnHistory);
    let explained = client.explain("item-5").unwrap();
    assert!(explained.met && explained.mean_stars.is_some());
    let similar = client.similar("item-2", 4).unwrap();
    assert_eq!(similar.items.len(), 4);
    assert_eq!(similar.source, ListSource::Similar);
    assert!(similar.items.iter().all(|i| i.item != "item-2"));
    // The coordinator is not needed for any of it, nor after a start.
    server.stop();
    drop(client);
    let client = Client::open(dir.path(), Options::new(catalogue(0..60))).unwrap();
    let page = client.top(&Query::first(6)).unwrap();
    assert_eq!(page.source, ListSource::OwnHistory);
    assert!(page.items.iter().all(|i| i.like.is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_and_catalogue_need_not_be_about_the_same_items() {
    let dir = tempfile::tempdir().unwrap();
    let mut other = ids(0..50);
    other.reverse();
    let server = start(other).await;
    server.publish(4, 0);
    // It lacks the first ten, and has ten that the tables do not know.
    let client = server.client(dir.path(), &catalogue(10..60));
    client.refresh().await.unwrap();
    client.record_all(likes(13, 3)).unwrap();
    client
        .record(LocalEvent::liked("item-55", time(9)))
        .unwrap();
    let page = client.top(&Query::first(100)).unwrap();
    assert_eq!(
        page.items.len(),
        46,
        "all of the catalogue but what was met"
    );
    let (known, new) = page.items.split_at(37);
    assert!(known.iter().all(|i| i.like.is_some()));
    assert!(new.iter().all(|i| i.unseen && i.like.is_none()));
    assert!(new.iter().all(|i| i.item.as_str() >= "item-50"));
    assert_eq!(new.len(), 9);
    assert!(client.explain("item-58").unwrap().unseen);
    assert_eq!(client.similar("item-58", 3).unwrap().items.len(), 3);
    assert_eq!(client.status().snapshot.unwrap().items, 50);
    // The next one is a difference.
    server.publish(5, 1);
    assert!(client.refresh().await.unwrap().fetched);
    assert_eq!(server.state().deltas, 1);
    assert_eq!(client.status().snapshot.unwrap().number, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_recalled_disappears_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(ids(0..40)).await;
    server.publish(1, 0);
    let client = server.client(dir.path(), &catalogue(0..40));
    assert_eq!(client.step().await.unwrap(), Done::Refreshed);
    assert!(dir.path().join("snapshot").exists());
    let first = client.top(&Query::first(2)).unwrap();
    assert_eq!(first.source, ListSource::PopularNow);
    {
        let mut state = server.state();
        state.lists.recalled = 1;
        state.lists.served = None;
    }
    assert_eq!(client.step().await.unwrap(), Done::Refreshed);
    assert!(!dir.path().join("snapshot").exists());
    assert!(client.status().snapshot.is_none());
    let recalled = ListSource::Catalogue(Fallback::Recalled);
    assert_eq!(client.top(&Query::first(2)).unwrap().source, recalled);
    let gone = client.top(&Query::next(2, first.next.unwrap()));
    assert!(matches!(gone, Err(ClientError::ListGone)));
    server.publish(2, 1);
    client.step().await.unwrap();
    assert_eq!(client.status().snapshot.unwrap().number, 2);
    // A device that was off, with the file of before in a backup, hears of it when it is back.
    let old = std::fs::read(dir.path().join("snapshot")).unwrap();
    server.state().lists.recalled = 2;
    server.publish(3, 2);
    client.step().await.unwrap();
    drop(client);
    std::fs::write(dir.path().join("snapshot"), old).unwrap();
    let client = Client::open(dir.path(), Options::new(catalogue(0..40))).unwrap();
    assert!(client.status().snapshot.is_none());
    assert!(!dir.path().join("snapshot").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_expire_and_a_damaged_file_costs_a_fetch() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(ids(0..40)).await;
    server.publish(1, 0);
    let client = server.client(dir.path(), &catalogue(0..40));
    client.refresh().await.unwrap();
    client.record_all(likes(0, 2)).unwrap();
    drop(client);
    let path = dir.path().join("snapshot");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let client = server.client(dir.path(), &catalogue(0..40));
    assert!(client.status().snapshot.is_none());
    assert_eq!(client.history().len(), 2);
    assert!(client.refresh().await.unwrap().fetched);
    assert_eq!(
        client.top(&Query::first(1)).unwrap().source,
        ListSource::FewEvents
    );
    server.state().terms.as_mut().unwrap().valid_s = 0;
    assert!(!client.refresh().await.unwrap().fetched, "the same");
    let expired = ListSource::Catalogue(Fallback::Expired);
    assert_eq!(client.top(&Query::first(1)).unwrap().source, expired);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_not_what_was_signed_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(ids(0..40)).await;
    server.publish(5, 0);
    let client = server.client(dir.path(), &catalogue(0..40));
    let (right, other) = {
        let state = server.state();
        let bytes = state.snapshots[0].1.clone();
        let wrong = [&bytes[..], &[0]].concat();
        (bytes, wrong)
    };
    let stranger = Signer::from_seed("tally", &[4; 32]).unwrap();
    let about_others = note(&server.state().signer, 5, &other);
    for forged in [note(&stranger, 5, &right), about_others, "no note".into()] {
        server.state().forged_note = Some(forged);
        let refused = client.refresh().await;
        assert!(
            matches!(refused, Err(ClientError::BadSnapshot(_))),
            "{refused:?}"
        );
        assert!(client.status().snapshot.is_none());
    }
    server.state().forged_note = None;
    client.refresh().await.unwrap();
    // Older ones, also under the right key.
    server.publish(4, 1);
    let old = client.refresh().await;
    assert!(
        matches!(
            old,
            Err(ClientError::OldSnapshot {
                got: 4,
                known: 5,
                ..
            })
        ),
        "{old:?}"
    );
    assert_eq!(client.status().snapshot.unwrap().number, 5);
    // Another key.
    server.state().signer = stranger;
    server.publish(6, 1);
    let other = client.refresh().await.unwrap_err();
    assert!(
        matches!(other, ClientError::OtherListKey { .. }),
        "{other:?}"
    );
    assert!(!other.is_offline());
    assert_eq!(client.status().snapshot.unwrap().number, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_events_are_contributed_when_they_have_changed() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(ids(0..40)).await;
    let client = server.client(dir.path(), &catalogue(0..40));
    assert!(
        !client.refresh().await.unwrap().contributed,
        "nothing to say"
    );
    client.record_all(likes(0, 4)).unwrap();
    client
        .record(LocalEvent::rating("item-1", 2.0, time(90_000)))
        .unwrap();
    assert!(client.refresh().await.unwrap().contributed);
    assert!(!client.refresh().await.unwrap().contributed, "the same");
    let last = client
        .record(LocalEvent::hidden("item-2", time(90_001)))
        .unwrap();
    assert!(client.refresh().await.unwrap().contributed);
    client.undo(last).unwrap().unwrap();
    client.undo_last().unwrap().unwrap();
    client.step().await.unwrap();
    let contributed = server.state().contributed.clone();
    assert_eq!(contributed.len(), 3);
    assert!(contributed[0].whole && !contributed[1].whole && contributed[2].whole);
    let lengths: Vec<usize> = contributed.iter().map(|c| c.events.len()).collect();
    assert_eq!(lengths, [5, 5, 4], "at most five; fewer after an undo");
    assert!(
        contributed
            .iter()
            .all(|c| c.source == contributed[0].source)
    );
    let [.., rated] = &contributed[0].events[..] else {
        panic!("{contributed:?}")
    };
    assert_eq!(
        (rated.item.as_str(), rated.day),
        ("item-1", common::DAY + 1)
    );
    assert_eq!((rated.half_stars, rated.flags), (4, SEEN));
    assert_eq!(contributed[0].events[0].flags, SEEN | LIKED);
    assert_eq!(contributed[1].events[4].flags, HIDDEN);
    // What was sent is kept for an audit, also for whoever reads the folder while it is in use.
    let exported: serde_json::Value = serde_json::from_slice(&client.export().unwrap()).unwrap();
    let data = TrainingData::of_folder(dir.path(), None).unwrap();
    let sent = serde_json::to_value(&data.contributed).unwrap();
    assert_eq!(exported["contributed"], sent);
    let kept: Vec<_> = data.contributed.iter().map(|s| s.events.clone()).collect();
    let accepted: Vec<_> = contributed.iter().map(|c| c.events.clone()).collect();
    assert_eq!(kept, accepted);
    // Another device takes the history, and has contributed nothing itself.
    let other = tempfile::tempdir().unwrap();
    let device = Client::open(other.path(), Options::new(catalogue(0..40))).unwrap();
    assert_eq!(device.import(&client.export().unwrap()).unwrap(), 4);
    let plain: serde_json::Value = serde_json::from_slice(&device.export().unwrap()).unwrap();
    assert!(plain.get("contributed").is_none());
    // An export of before has no contributions.
    let third = tempfile::tempdir().unwrap();
    let device = Client::open(third.path(), Options::new(catalogue(0..40))).unwrap();
    assert_eq!(device.import(plain.to_string().as_bytes()).unwrap(), 4);
    // Taken back altogether.
    while client.undo_last().unwrap().is_some() {}
    client.refresh().await.unwrap();
    assert_eq!(server.state().withdrawn, 1);
    assert!(!dir.path().join("contributed").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn contributions_say_no_more_of_times_than_the_app_lets_them() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(ids(0..40)).await;
    let open = |times| {
        let options = server.options(&catalogue(0..40)).contribution_times(times);
        Client::open(dir.path(), options).unwrap()
    };
    let client = open(TimeGranularity::Month);
    let day = |n: i64| time(n * 86_400);
    for (item, n) in [("item-1", 0), ("item-2", 11), ("item-3", 13)] {
        client.record(LocalEvent::liked(item, day(n))).unwrap();
    }
    assert!(client.refresh().await.unwrap().contributed);
    assert!(!client.refresh().await.unwrap().contributed, "the same");
    drop(client);
    let client = open(TimeGranularity::Week);
    assert!(client.refresh().await.unwrap().contributed);
    drop(client);
    let client = open(TimeGranularity::Day);
    assert!(client.refresh().await.unwrap().contributed);
    let days: Vec<Vec<i32>> = {
        let state = server.state();
        let of = |c: &lethe_proto::lists::Contributed| c.events.iter().map(|e| e.day).collect();
        state.contributed.iter().map(of).collect()
    };
    // 19,700 is day 20 of a month of thirty days, and day 2 of a week.
    let of = |from: i32, later: [i32; 3]| later.map(|n| from + n).to_vec();
    assert_eq!(days[0], of(common::DAY - 20, [0, 30, 30]));
    assert_eq!(days[1], of(common::DAY - 2, [0, 7, 14]));
    assert_eq!(days[2], of(common::DAY, [0, 11, 13]));
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_wait_or_name_an_item() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(ids(0..40)).await;
    let client = server.client(dir.path(), &catalogue(0..40));
    client.record_all(likes(0, 3)).unwrap();
    let unknown = |item: &str| {
        let message = format!("item {item:?} is not in the catalogue");
        (Refusal::Invalid, message)
    };
    server.state().refusals = vec![unknown("item-4"), unknown("item-0")];
    assert!(client.refresh().await.unwrap().contributed);
    assert_eq!(client.status().refused_items, ["item-0", "item-4"]);
    let sent = server.state().contributed[0].clone();
    assert_eq!(sent.events.len(), 1);
    client.record_all(likes(1, 2)).unwrap();
    server.state().refusals = vec![(Refusal::Busy, "too soon".into())];
    assert!(!client.refresh().await.unwrap().contributed);
    assert!(!client.refresh().await.unwrap().contributed, "it waits");
    assert_eq!(server.state().contributed.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_contribute_gets_lists_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(ids(0..40)).await;
    server.publish(1, 0);
    let client = server.client(dir.path(), &catalogue(0..40));
    client.record_all(likes(0, 3)).unwrap();
    assert!(client.refresh().await.unwrap().contributed);
    assert!(dir.path().join("contributed").exists());
    client.set_contributing(false).await.unwrap();
    assert!(!dir.path().join("contributed").exists());
    assert_eq!(server.state().withdrawn, 1);
    client.record_all(likes(1, 3)).unwrap();
    server.publish(2, 1);
    let refreshed = client.refresh().await.unwrap();
    assert_eq!(refreshed, FETCHED);
    assert!(!client.status().contributing);
    drop(client);
    // It is kept; the coordinator is told once.
    let client = server.client(dir.path(), &catalogue(0..40));
    client.step().await.unwrap();
    assert_eq!(server.state().withdrawn, 1);
    client.set_contributing(true).await.unwrap();
    assert!(client.refresh().await.unwrap().contributed);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_model_a_client_takes_part_in_sums_only() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(ids(0..40)).await;
    let client = server.client(dir.path(), &catalogue(0..40));
    client.record_all(likes(0, 3)).unwrap();
    client.join().await.unwrap();
    assert_eq!(server.state().hellos, [Digest::default()]);
    assert_eq!(server.state().joined, [0]);
    let ranked = client.recommend(["item-1"], 1).await;
    assert!(matches!(ranked, Err(ClientError::NoModel)));
    server.state().terms = None;
    assert!(matches!(client.refresh().await, Err(ClientError::NoLists)));
    assert_eq!(client.step().await.unwrap(), Done::Nothing);
}

#[test]
fn any_executor_will_do() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(start(ids(0..40)));
    server.publish(1, 0);
    let client = server.client(dir.path(), &catalogue(0..40));
    assert!(block_on(client.refresh()).unwrap().fetched);
    let clone = client.clone();
    let other = std::thread::spawn(move || block_on(clone.step()).unwrap());
    block_on(client.step()).unwrap();
    other.join().unwrap();
    client.network().changed().unwrap();
    block_on(client.connect()).unwrap();
    block_on(client.close());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_person_was_deleted_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(ids(0..40)).await;
    server.publish(1, 0);
    let client = server.client(dir.path(), &catalogue(0..40));
    assert!(client.refresh().await.unwrap().fetched);
    let source = || client.top(&Query::first(3)).unwrap().source;
    assert_eq!(source(), ListSource::PopularNow);
    client.clone().close().await;
    server.state().admits = false;
    let told = client.step().await.unwrap_err();
    assert!(matches!(told, ClientError::Deleted), "{told:?}");
    assert!(!told.is_offline());
    // Nobody will say any more whether the tables may be used.
    assert_eq!(source(), ListSource::Catalogue(Fallback::Recalled));
    client.record(LocalEvent::liked("item-1", 1)).unwrap();
    client.erase().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_is_kept_until_it_can_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(ids(0..40)).await;
    let options = Options::new(catalogue(0..40)).invitation(server.invitation());
    drop(Client::open(dir.path(), options).unwrap());
    let options = Options::new(catalogue(0..40)).server(server.addr);
    let client = Client::open(dir.path(), options).unwrap();
    assert!(client.status().invited && !client.status().enrolled);
    client.connect().await.unwrap();
    let status = client.status();
    assert!(status.enrolled && !status.invited);
    assert_eq!(status.subject.as_deref(), Some("anna"));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_coordinators_lists_begin_from_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let items = catalogue(0..40);
    let first = start(ids(0..40)).await;
    first.publish(7, 0);
    first.state().lists.recalled = 6;
    let client = first.client(dir.path(), &items);
    client.record_all(likes(1, 3)).unwrap();
    assert!(client.refresh().await.unwrap().contributed);
    drop(client);
    first.stop();
    // Its numbers begin at 1, under another key; this person has contributed nothing to it.
    let second = start(ids(0..40)).await;
    second.state().signer = Signer::from_seed("other", &[4; 32]).unwrap();
    second.publish(1, 1);
    let client = second.client(dir.path(), &items);
    let refreshed = client.refresh().await.unwrap();
    assert!(refreshed.fetched && refreshed.contributed, "{refreshed:?}");
    let page = client.top(&Query::first(3)).unwrap();
    assert_eq!(page.source, ListSource::FewEvents);
    assert_eq!(second.state().contributed.len(), 1);
}

/// A place that takes datagrams, and answers each with `answer`, if at all.
fn place(answer: Option<&'static [u8]>) -> std::net::SocketAddr {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok((_, from)) = socket.recv_from(&mut bytes) {
            if let Some(answer) = answer {
                let _ = socket.send_to(answer, from);
            }
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread")]
async fn case_07_local_functions_answer_whatever_the_coordinator_does() {
    let real = start(ids(0..40)).await;
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let refuses = nobody.local_addr().unwrap();
    drop(nobody);
    let garbage: &[u8] = &[0xc3; 900];
    for (what, addr) in [
        ("refuses", refuses),
        ("hangs", place(None)),
        ("answers garbage", place(Some(garbage))),
        ("answers nothing", place(Some(b""))),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new(catalogue(0..40))
            .server(addr)
            .invitation(real.invitation());
        let client = Client::open(dir.path(), options).unwrap();
        let online = client.clone();
        let asked = tokio::spawn(async move { online.connect().await });
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let begun = std::time::Instant::now();
        client.record_all(likes(0, 3)).unwrap();
        let id = client.record(LocalEvent::liked("item-5", 9)).unwrap();
        let page = client.top(&Query::first(5)).unwrap();
        assert_eq!(page.items.len(), 5);
        client.popular(3).unwrap();
        client.similar("item-5", 3).unwrap();
        client.explain("item-7").unwrap();
        client.undo(id).unwrap();
        let export = client.export().unwrap();
        assert_eq!(client.import(&export).unwrap(), 0);
        assert_eq!(client.status().events, 3);
        client.erase().unwrap();
        let took = begun.elapsed();
        assert!(took.as_secs() < 2, "it {what}: {took:?}");
        assert!(!dir.path().join("history").exists());
        asked.abort();
    }
}
