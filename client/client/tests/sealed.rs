//! Contributions to a tally of its own, over real connections, with real envelopes.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Running, Tally, catalogue, ids, likes, start, start_sealed, time};
use lethe_client::{Client, ClientError, Contributes, LocalEvent, Options, TrainingData};
use lethe_proto::codec::encode_request;
use lethe_proto::message::{Refusal, Request};
use lethe_proto::tally::{ANSWER, CONTRIBUTION, Confided, PADDED, bound_to};
use lethe_receipt::note::Signer;
use lethe_seal::envelope::SecretKey;
use tempfile::TempDir;

struct Device {
    folder: TempDir,
    client: Client,
}

/// A new device with a history.
fn device(server: &Running, events: usize) -> Device {
    let folder = tempfile::tempdir().unwrap();
    let client = server.client(folder.path(), &catalogue(0..60));
    client.record_all(likes(0, events)).unwrap();
    Device { folder, client }
}

impl Device {
    async fn contributes(&self) -> Result<bool, ClientError> {
        self.client.refresh().await.map(|r| r.contributed)
    }

    /// The folder is opened again.
    fn again(self, options: Options) -> Self {
        let Self { folder, client } = self;
        drop(client);
        let client = Client::open(folder.path(), options).unwrap();
        Self { folder, client }
    }
}

fn in_clear(server: &Running) -> usize {
    server.state().contributed.len()
}

fn tally_key(server: &Running) -> String {
    server.state().signer.verifier().text()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_tally_reads_a_contribution() {
    let server = start_sealed(ids(0..60)).await;
    let of_four = device(&server, 4);
    assert_eq!(of_four.client.status().contributes, Contributes::NotYet);
    assert!(of_four.contributes().await.unwrap());
    assert!(!of_four.contributes().await.unwrap(), "the same");
    let of_one = device(&server, 1);
    assert!(of_one.contributes().await.unwrap());
    assert_eq!(in_clear(&server), 0);
    // It holds what a coordinator without a tally would get.
    let embedded = start(ids(0..60)).await;
    let other = device(&embedded, 4);
    assert!(other.contributes().await.unwrap());
    assert_eq!(other.client.status().contributes, Contributes::InClear);
    check_what_was_sent(&server, &embedded);
    // The device says to whom, and keeps what it sent for an audit.
    let tally = Some(tally_key(&server));
    assert_eq!(
        of_four.client.status().contributes,
        Contributes::Sealed { tally }
    );
    let data = TrainingData::of_folder(of_four.folder.path(), None).unwrap();
    assert_eq!(data.contributed[0].events, expected_events(&server));
    // Taking everything back carries nothing.
    while of_one.client.undo_last().unwrap().is_some() {}
    assert!(of_one.contributes().await.unwrap());
    assert_eq!(server.state().withdrawn, 1);
    assert_eq!(server.state().sealed.len(), 2);
}

fn check_what_was_sent(server: &Running, embedded: &Running) {
    let state = server.state();
    let tally = state.tally.as_ref().unwrap();
    assert_eq!(tally.opened.len(), 2);
    let expected = embedded.state().contributed[0].clone();
    assert_eq!(tally.opened[0].events, expected.events);
    assert!(tally.opened[0].whole && expected.whole);
    // Nobody else opens it, nor the tally for anybody else.
    let one = &state.sealed[0];
    let opens = |key: &SecretKey, handle: [u8; 16], ticket: [u8; 32]| {
        let bound = bound_to(&handle, &ticket);
        let opened = key.open(CONTRIBUTION, &bound, &one.envelope, ANSWER);
        opened.is_some()
    };
    assert!(opens(&tally.key, tally.handle, one.ticket));
    assert!(!opens(&tally.key, [6; 16], one.ticket));
    assert!(!opens(&tally.key, tally.handle, [9; 32]));
    let stranger = SecretKey::from_seed(&[8; 32]);
    assert!(!opens(&stranger, tally.handle, one.ticket));
    // Nothing of it is in the bytes that were sent, and their length says nothing.
    for sealed in &state.sealed {
        let bytes = encode_request(&Request::ContributeSealed(sealed.clone())).unwrap();
        assert!(!bytes.windows(5).any(|w| w == b"item-"));
        let source = tally.opened.iter().map(|o| o.source);
        assert!(
            source
                .into_iter()
                .all(|s| !bytes.windows(16).any(|w| w == s))
        );
        assert_eq!(sealed.envelope.len(), PADDED + 48);
    }
}

fn expected_events(server: &Running) -> Vec<lethe_proto::lists::SharedEvent> {
    server.state().tally.as_ref().unwrap().opened[0]
        .events
        .clone()
}

/// What the tally says to one contribution after the other, and what becomes of it.
async fn told(server: &Running, says: Vec<Confided>) -> (Device, Result<bool, ClientError>) {
    let one = device(server, 3);
    {
        let mut state = server.state();
        state.sealed.clear();
        state.terms_asked = 0;
        state.tally.as_mut().unwrap().says = says;
    }
    let done = one.contributes().await;
    (one, done)
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_a_tally_may_say_is_understood() {
    let server = start_sealed(ids(0..60)).await;
    let asked = || (server.state().terms_asked, server.state().sealed.len());
    let (one, done) = told(&server, vec![Confided::Smaller]).await;
    assert!(done.unwrap());
    assert_eq!(one.client.status().contributed.unwrap().1, 3);
    for later in [
        Confided::TooSoon { wait_s: 0 },
        Confided::TooSoon { wait_s: u64::MAX },
        Confided::Full,
        Confided::Busy,
    ] {
        let (one, done) = told(&server, vec![later]).await;
        assert!(!done.unwrap());
        assert_eq!(one.client.status().contributed, None);
        assert!(!one.contributes().await.unwrap(), "it waits");
        assert_eq!(asked(), (1, 1));
    }
    // A ticket that is gone: others are asked for, once.
    let (_one, done) = told(&server, vec![Confided::Stale]).await;
    assert!(done.unwrap());
    assert_eq!(asked(), (2, 2));
    let tickets: Vec<[u8; 32]> = server.state().sealed.iter().map(|s| s.ticket).collect();
    assert_ne!(tickets[0], tickets[1]);
    let (one, done) = told(&server, vec![Confided::Stale, Confided::Stale]).await;
    assert!(!done.unwrap());
    assert!(!one.contributes().await.unwrap(), "it waits");
    assert_eq!(asked(), (2, 2));
    // It would be refused again.
    let why = Confided::Invalid("event 2 of the contribution".into());
    let (one, done) = told(&server, vec![why]).await;
    let refused = done.unwrap_err();
    assert!(matches!(refused, ClientError::ContributionRefused(_)));
    assert!(refused.to_string().contains("event 2"));
    assert!(!one.contributes().await.unwrap(), "it waits");
    // An answer that the tally did not seal for this envelope.
    server.state().tally.as_mut().unwrap().wrong_answer = true;
    let (one, done) = told(&server, vec![]).await;
    assert!(matches!(done, Err(ClientError::BadAnswer)));
    assert_eq!(one.client.status().contributed, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_sealed_never_contributes_in_clear() {
    let server = start_sealed(ids(0..60)).await;
    server.publish(1, 0);
    let one = device(&server, 3);
    assert!(one.contributes().await.unwrap());
    let refused = |done: Result<bool, ClientError>| {
        let e = done.unwrap_err();
        assert!(
            matches!(e, ClientError::WouldContributeInClear { .. }),
            "{e}"
        );
        assert!(e.to_string().contains("accept_embedded") && !e.is_offline());
    };
    let more = |one: &Device| one.client.record_all(likes(1, 2)).unwrap();
    // The coordinator says that it holds the sums itself.
    let tally = server.state().tally.take();
    more(&one);
    server.publish(2, 1);
    refused(one.contributes().await);
    assert_eq!(
        one.client.status().snapshot.unwrap().number,
        2,
        "lists go on"
    );
    let one = one.again(server.options(&catalogue(0..60)));
    refused(one.contributes().await);
    // Or that it is older.
    server.state().minor = 2;
    let one = one.again(server.options(&catalogue(0..60)));
    refused(one.contributes().await);
    // A step goes on with other work, and does not send it either.
    let one = one.again(server.options(&catalogue(0..60)));
    one.client.step().await.unwrap();
    assert_eq!(in_clear(&server), 0);
    // Another coordinator that the person is invited to.
    let second = start(ids(0..60)).await;
    second.state().signer = Signer::from_seed("other", &[4; 32]).unwrap();
    let one = one.again(second.options(&catalogue(0..60)));
    refused(one.contributes().await);
    assert_eq!(in_clear(&second), 0);
    assert_eq!(
        one.client.status().contributes,
        Contributes::Sealed { tally: None }
    );
    // Its tally is sealed to, if it has one.
    {
        let mut state = second.state();
        state.minor = 3;
        state.tally = Some(Tally {
            handle: [6; 16],
            ..Tally::new()
        });
    }
    let one = one.again(second.options(&catalogue(0..60)));
    assert!(one.contributes().await.unwrap());
    let tally_of_second = Some(tally_key(&second));
    assert_eq!(
        one.client.status().contributes,
        Contributes::Sealed {
            tally: tally_of_second
        }
    );
    // The app allows it.
    second.state().tally = None;
    more(&one);
    let one = one.again(second.options(&catalogue(0..60)));
    refused(one.contributes().await);
    one.client.accept_embedded().unwrap();
    assert!(!one.folder.path().join("sealing").exists());
    let one = one.again(second.options(&catalogue(0..60)));
    assert!(one.contributes().await.unwrap());
    assert_eq!(in_clear(&second), 1);
    assert_eq!(one.client.status().contributes, Contributes::InClear);
    drop(tally);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_app_pins_counts_alone() {
    let server = start_sealed(ids(0..60)).await;
    server.publish(1, 0);
    let key = tally_key(&server);
    let options = || server.options(&catalogue(0..60));
    let stranger = Signer::from_seed("tally", &[4; 32]).unwrap();
    // A new device, and a coordinator that has put itself in the tally's place.
    let one = device(&server, 3).again(options().tally_key(stranger.verifier().text()));
    let other = one.contributes().await.unwrap_err();
    assert!(
        matches!(other, ClientError::OtherListKey { .. }),
        "{other:?}"
    );
    assert!(one.client.status().snapshot.is_none());
    // Or that says that there is no tally.
    let tally = server.state().tally.take();
    let one = device(&server, 3).again(options().tally_key(format!("{key}\n")));
    let clear = one.contributes().await.unwrap_err();
    assert!(
        matches!(clear, ClientError::WouldContributeInClear { .. }),
        "{clear:?}"
    );
    assert!(clear.to_string().contains(&key));
    // Consent of the app does not end the pin.
    one.client.accept_embedded().unwrap();
    let one = one.again(options().tally_key(&key));
    assert!(one.contributes().await.is_err());
    assert_eq!(in_clear(&server), 0);
    server.state().tally = tally;
    let one = one.again(options().tally_key(&key));
    assert!(one.contributes().await.unwrap());
    // A pin that replaces a key that was kept: what that one signed is not used.
    assert!(one.client.status().snapshot.is_some());
    let text = stranger.verifier().text();
    let one = one.again(options().tally_key(&text));
    assert!(one.client.status().snapshot.is_none());
    assert!(one.contributes().await.is_err());
    server.state().signer = stranger;
    let one = one.again(options().tally_key(&text));
    let done = one.client.refresh().await.unwrap();
    assert!(done.fetched && done.contributed);
    assert_eq!(in_clear(&server), 0);
    // No key at all.
    let Device { folder, client } = one;
    drop(client);
    let opened = Client::open(folder.path(), options().tally_key("k"));
    assert!(matches!(opened, Err(ClientError::TallyKey { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sealed_with_terms_that_are_not_the_tallys() {
    let server = start_sealed(ids(0..60)).await;
    let refused = async |change: &dyn Fn(&mut Tally)| {
        let before = server.state().sealed.len();
        let one = device(&server, 3);
        change(server.state().tally.as_mut().unwrap());
        let e = one.contributes().await.unwrap_err();
        server.state().tally = Some(Tally::new());
        assert_eq!(server.state().sealed.len(), before, "{e}");
        // Nothing was sealed yet: the device keeps nothing of it.
        assert_eq!(one.client.status().contributes, Contributes::NotYet);
        e
    };
    let expired = refused(&|t| t.times = [-100_000, -7_200]).await;
    assert!(matches!(expired, ClientError::BadSealing(_)), "{expired}");
    let early = refused(&|t| t.times = [7_200, 100_000]).await;
    assert!(matches!(early, ClientError::BadSealing(_)), "{early}");
    let other = refused(&|t| t.signer = Signer::from_seed("tally", &[4; 32]).ok()).await;
    assert!(matches!(other, ClientError::OtherListKey { .. }), "{other}");
    // An hour is no reason.
    server.state().tally.as_mut().unwrap().times = [-100_000, -1_800];
    let one = device(&server, 3);
    assert!(one.contributes().await.unwrap());
    // Another handle would make one person two.
    one.client.record_all(likes(1, 2)).unwrap();
    server.state().tally.as_mut().unwrap().handle = [6; 16];
    let two = one.contributes().await.unwrap_err();
    assert!(matches!(two, ClientError::OtherHandle { .. }), "{two}");
    let text = two.to_string();
    assert!(!text.contains("0505") && !text.contains("0606"), "{text}");
    let one = one.again(server.options(&catalogue(0..60)));
    assert!(matches!(
        one.contributes().await,
        Err(ClientError::OtherHandle { .. })
    ));
    assert_eq!(server.state().sealed.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_blocks_contributions_until_the_app_decides() {
    let server = start_sealed(ids(0..60)).await;
    let one = device(&server, 3);
    assert!(one.contributes().await.unwrap());
    one.client.record_all(likes(1, 2)).unwrap();
    let path = one.folder.path().join("sealing");
    let mut bytes = std::fs::read(&path).unwrap();
    assert!(!bytes.windows(5).any(|w| w == b"tally"), "it is sealed");
    bytes[20] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let one = one.again(server.options(&catalogue(0..60)));
    assert_eq!(one.client.status().contributes, Contributes::Blocked);
    let blocked = one.contributes().await.unwrap_err();
    assert!(
        matches!(blocked, ClientError::SealingDamaged { .. }),
        "{blocked}"
    );
    assert_eq!(server.state().terms_asked, 1, "nobody is asked");
    one.client.accept_embedded().unwrap();
    assert!(!path.exists());
    let one = one.again(server.options(&catalogue(0..60)));
    assert!(one.contributes().await.unwrap());
    assert_eq!((in_clear(&server), server.state().sealed.len()), (0, 2));
    one.client.erase().unwrap();
    assert_eq!(std::fs::read_dir(one.folder.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn items_that_the_tables_do_not_name_are_left_out_before_sealing() {
    let server = start_sealed(ids(0..40)).await;
    let one = device(&server, 2);
    let unknown = || LocalEvent::liked("item-45", time(7));
    one.client.record(unknown()).unwrap();
    // Nothing is served yet: the coordinator says which items there will be.
    assert!(one.contributes().await.unwrap());
    let last = || {
        let state = server.state();
        let opened = state.tally.as_ref().unwrap().opened.last().unwrap();
        let items: Vec<String> = opened.events.iter().map(|e| e.item.clone()).collect();
        items
    };
    assert_eq!(last(), ["item-0", "item-4"]);
    assert_eq!(one.client.status().left_out, 1);
    assert!(one.client.status().refused_items.is_empty());
    assert!(!one.contributes().await.unwrap(), "the same");
    // The tables are here, and the device was off.
    server.publish(1, 0);
    one.client.refresh().await.unwrap();
    let one = one.again(server.options(&catalogue(0..60)));
    one.client.record(unknown()).unwrap();
    one.client.record_all(likes(1, 1)).unwrap();
    one.client.step().await.unwrap();
    assert_eq!(last(), ["item-0", "item-1", "item-4"]);
    assert_eq!(one.client.status().left_out, 2);
    // What was served is recalled, and the device was off again.
    {
        let mut state = server.state();
        state.lists.recalled = 1;
        state.lists.served = None;
    }
    one.client.step().await.unwrap();
    let one = one.again(server.options(&catalogue(0..60)));
    one.client.record_all(likes(2, 1)).unwrap();
    one.client.step().await.unwrap();
    assert_eq!(last(), ["item-0", "item-1", "item-2", "item-4"]);
    assert!(last().iter().all(|i| i != "item-45"));
    // Nothing is left of a history of unknown items: nothing is sent.
    let before = server.state().sealed.len();
    let two = device(&server, 0);
    two.client.record(unknown()).unwrap();
    assert!(!two.contributes().await.unwrap());
    assert_eq!(server.state().sealed.len(), before);
}

/// A coordinator that refuses a contribution "because of" an item must not learn from what the
/// device does next whether the item is in it.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_that_name_an_item_tell_nothing_about_the_history() {
    let server = start_sealed(ids(0..60)).await;
    let mut seen = vec![];
    for item in ["item-4", "item-33"] {
        let one = device(&server, 3);
        let named = (Refusal::Invalid, format!("item {item:?} is not known"));
        server.state().refusals = vec![named; 5];
        let before = (server.state().sealed.len(), server.state().joined.len());
        assert!(one.contributes().await.is_err());
        assert!(one.client.status().refused_items.is_empty());
        let state = server.state();
        seen.push((state.sealed.len() - before.0, state.joined.len() - before.1));
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(in_clear(&server), 0);
}
