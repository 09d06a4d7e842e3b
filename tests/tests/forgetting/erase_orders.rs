//! A device erases only what the log holds an order for, not (almost) everything without consent,
//! and shows no list of a recalled release.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use lethe_client::{Client, ClientError, Done, Source};
use lethe_proto::admin::AdminRequest;
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::Digest;
use lethe_proto::message::{EraseOrder, Orders, Refusal, Reply, Request, Task};
use lethe_receipt::merkle::Tree;
use lethe_receipt::note::Signer;
use lethe_receipt::order::Order;
use lethe_tests::tiny;
use lethe_tests::world::{Fleet, Operator, World, id};
use lethe_transport::identity::{Authority, Invitation};
use lethe_transport::server::{Handler, ReplyFuture, Server};

fn everything(subject: u32) -> DeletionRequest {
    DeletionRequest::Withdraw {
        subject: id(subject),
        from: tiny::time(0),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn erasing_everything_needs_consent() {
    let world = World::new(6);
    let (_c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let mut clients = fleet.stop().await;
    let asked = clients.remove(3);
    let mut fleet = Fleet::default();
    clients.into_iter().for_each(|c| fleet.add(c));

    let deletion = op.ask_for(vec![everything(3)]).await.unwrap()[0];
    assert_eq!(until_told(&asked).await, Done::ConsentNeeded);
    assert_eq!(asked.history().len(), 16, "not obeyed");
    let pending = asked.pending_erasure().unwrap();
    assert_eq!((pending.events, pending.of), (16, 16));
    assert_eq!(pending.deletions, [deletion]);
    // Nobody waits for the person: what was learned from them is gone, and the receipt says why.
    let done = op.deleted(deletion).await;
    let removed = done.removed.unwrap();
    assert_eq!(
        (removed.events, removed.silent, removed.unconsented),
        (0, 0, 1)
    );
    op.receipt(deletion).await;
    op.replays_equal().await;
    // Not asked again and again.
    let next = tokio::time::timeout(Duration::from_secs(2), asked.step()).await;
    assert!(!matches!(next, Ok(Ok(Done::ConsentNeeded))), "{next:?}");
    assert!(asked.consent_to_erasure().await.unwrap());
    assert!(asked.history().is_empty());
    fleet.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_may_consent_in_advance_and_small_orders_need_none() {
    let world = World::new(6);
    let (_c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let mut clients = fleet.stop().await;
    drop(clients.remove(3));
    let mut fleet = Fleet::default();
    clients.into_iter().for_each(|c| fleet.add(c));
    let consents = |p: &lethe_client::PendingErasure| p.from.is_some();
    let options = world.options(addr).erasure_consent(consents);
    let willing = Client::open(world.client_folder(3), options).unwrap();
    let item = tiny::history(3)[2].item.clone();
    let small = op.ask_to_forget(3, &[&item]).await.unwrap();
    assert_eq!(until_told(&willing).await, Done::Erased);
    assert_eq!(willing.history().len(), 15);
    fleet.add(willing);
    assert_eq!(op.deleted(small).await.removed.unwrap().events, 1);
    let all = op.ask_for(vec![everything(3)]).await.unwrap()[0];
    assert_eq!(op.deleted(all).await.removed.unwrap().events, 15);
    fleet.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_orders_are_as_good_as_a_large_one() {
    let world = World::new(6);
    let (_c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let mut clients = fleet.stop().await;
    let client = clients.remove(3);
    let mut fleet = Fleet::default();
    clients.into_iter().for_each(|c| fleet.add(c));
    let history = tiny::history(3);
    let items: Vec<&str> = history.iter().map(|e| e.item.as_str()).collect();
    op.ask_to_forget(3, &items[..8]).await.unwrap();
    assert_eq!(until_told(&client).await, Done::Erased);
    // More than a tenth of what is left would stay, and less than a tenth of what there was.
    op.ask_to_forget(3, &items[8..15]).await.unwrap();
    assert_eq!(until_told(&client).await, Done::ConsentNeeded);
    assert_eq!(client.history().len(), 8);
    assert!(client.consent_to_erasure().await.unwrap());
    assert_eq!(client.history().len(), 1);
    fleet.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_who_is_not_trained_on_is_asked_before_the_receipt_is_issued() {
    let world = World::new(6);
    let (_c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let mut fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let late = world.client(addr, &op, 7).await;
    late.join().await.unwrap();
    let deletion = op
        .ask_to_forget(7, &[&tiny::history(7)[4].item])
        .await
        .unwrap();
    assert!(
        op.ask(AdminRequest::Receipt { id: deletion })
            .await
            .is_err(),
        "not asked yet"
    );
    fleet.add(late);
    let removed = op.deleted(deletion).await.removed.unwrap();
    assert_eq!(
        (removed.events, removed.answered, removed.silent),
        (1, 1, 0)
    );
    fleet.abort();
}

/// Steps until a device is told to erase.
async fn until_told(client: &Client) -> Done {
    loop {
        let done = client.step().await.unwrap();
        if matches!(done, Done::Erased | Done::ConsentNeeded) {
            return done;
        }
    }
}

/// Somebody with a coordinator's authority, and not its log.
struct Thief {
    authority: Authority,
    genuine: Orders,
    welcome: Reply,
    forged: Mutex<Orders>,
}

impl Handler for Thief {
    fn admits(&self, _: &Digest) -> bool {
        true
    }
    fn longest(&self, kind: u16) -> usize {
        lethe_proto::codec::limit(kind).unwrap_or(0)
    }
    fn handle(&self, _: Option<Digest>, request: Request, _: usize) -> ReplyFuture {
        let reply = match request {
            Request::Enrol { csr, .. } => Reply::Enrolled {
                certificate: self.authority.sign(&csr, Duration::from_secs(600)).unwrap(),
                subject: Some(id(1)),
            },
            Request::Hello { .. } => self.welcome.clone(),
            Request::Poll => Reply::Task {
                task: Task::Erase { task: 1 },
                recalled: 0,
            },
            Request::Orders { .. } => Reply::Orders(self.forged.lock().unwrap().clone()),
            Request::Erased { .. } => Reply::Ack,
            _ => Reply::Refused {
                code: Refusal::RoundClosed,
                message: "no".into(),
            },
        };
        Box::pin(async move { reply })
    }
    fn disconnected(&self, _: &Digest) {}
}

/// A log with one order, about two items of person 1.
fn log() -> (Signer, Tree, Orders) {
    let signer = Signer::from_seed("lethe-log", &[9; 32]).unwrap();
    let history = tiny::history(1);
    let items = vec![history[1].item.clone(), history[2].item.clone()];
    let mut tree = Tree::default();
    tree.push(b"first");
    let order = Order::new(4, "erase-items", &[5; 32], "person-1", &items, None);
    let index = tree.push(&order.entry(&[5; 32]));
    let genuine = Orders {
        orders: vec![EraseOrder {
            deletion: 4,
            kind: "erase-items".into(),
            subject: "person-1".into(),
            items,
            from: None,
            salt: [5; 32],
            index,
            proof: tree.inclusion(index).unwrap(),
        }],
        checkpoint: signer.checkpoint(tree.len(), &tree.root()),
        consistency: vec![],
    };
    (signer, tree, genuine)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_the_log_does_not_hold_is_not_obeyed() {
    let world = World::new(1);
    let (signer, tree, genuine) = log();
    let recipe = lethe_recipe::Recipe::from_toml(&lethe_tests::world::recipe("").to_string());
    let thief = Arc::new(Thief {
        authority: Authority::create().unwrap(),
        welcome: Reply::Welcome {
            recipe: recipe.unwrap().to_json(),
            anchors: vec![vec![1.0; 8]],
            engine: "e".into(),
            minor: 1,
            log_key: signer.verifier().text(),
            recalled: 0,
        },
        forged: Mutex::new(genuine.clone()),
        genuine,
    });
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), &thief.authority).unwrap();
    let addr = server.local_addr().unwrap();
    let (listener, handler) = (server.clone(), thief.clone());
    tokio::spawn(async move { listener.run(handler).await });
    let invitation = Invitation::new("any".into(), &thief.authority)
        .with_log_key(signer.verifier().text())
        .text();
    let options = world.options(addr).invitation(invitation);
    let client = Client::open(world.client_folder(1), options).unwrap();
    client.record_all(tiny::history(1)).unwrap();

    let more = |f: &dyn Fn(&mut Orders)| {
        let mut forged = thief.genuine.clone();
        f(&mut forged);
        forged
    };
    let other_key = Signer::from_seed("lethe-log", &[8; 32]).unwrap();
    let forgeries = [
        more(&|o| o.orders[0].items.push(tiny::history(1)[5].item.clone())),
        more(&|o| o.orders[0].deletion = 5),
        more(&|o| o.orders[0].subject = "person-2".into()),
        more(&|o| {
            o.orders[0].kind = "withdraw-consent".into();
            o.orders[0].items.clear();
            o.orders[0].from = Some(i64::MIN);
        }),
        more(&|o| {
            o.orders[0].kind = "takedown".into();
            o.orders[0].subject.clear();
        }),
        more(&|o| o.checkpoint = other_key.checkpoint(tree.len(), &tree.root())),
    ];
    for (i, forged) in forgeries.into_iter().enumerate() {
        *thief.forged.lock().unwrap() = forged;
        let refused = client.step().await;
        assert!(
            matches!(refused, Err(ClientError::Order(_))),
            "{i}: {refused:?}"
        );
        assert_eq!(client.history(), tiny::history(1), "{i}");
    }
    // The order that the log holds is obeyed, and nothing beyond it.
    *thief.forged.lock().unwrap() = thief.genuine.clone();
    let _ = client.step().await;
    let left: Vec<_> = tiny::history(1)
        .into_iter()
        .filter(|e| !thief.genuine.orders[0].items.contains(&e.item))
        .collect();
    assert_eq!(client.history(), left);
    // A log that was put back, or went another way, is not the one that the device has seen.
    let forked = Tree::default();
    *thief.forged.lock().unwrap() = Orders {
        orders: vec![],
        checkpoint: signer.checkpoint(forked.len(), &forked.root()),
        consistency: vec![],
    };
    assert!(matches!(client.step().await, Err(ClientError::Order(_))));
    server.close();
}

async fn list(client: &Client) -> Result<Source, ClientError> {
    let items: Vec<String> = (0..tiny::ITEMS).map(|i| format!("i{i}")).collect();
    let items: Vec<&str> = items.iter().map(String::as_str).collect();
    Ok(client.recommend(&items, 3).await?.source)
}

/// A second device of a person, with its own copy of the history.
async fn second_device(
    world: &World,
    op: &Operator,
    subject: u32,
    addr: std::net::SocketAddr,
) -> Client {
    let folder = world.dir.path().join(format!("second-{subject}"));
    let options = world.options(addr).invitation(op.invite(subject).await);
    let client = Client::open(folder, options).unwrap();
    client.record_all(tiny::history(subject)).unwrap();
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_lists_die_with_their_release_on_every_device() {
    let world = World::new(6);
    let (coordinator, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let clients = fleet.stop().await;
    let second = second_device(&world, &op, 1, addr).await;
    let away = second_device(&world, &op, 2, addr).await;
    for client in [&clients[1], &second, &away] {
        assert!(matches!(list(client).await, Ok(Source::Live { .. })));
    }
    op.ask_to_forget(5, &[]).await.unwrap();
    // Both devices are online, and neither asks for a list.
    for client in [&clients[1], &second] {
        let _ = tokio::time::timeout(Duration::from_secs(12), client.step()).await;
    }
    coordinator.shutdown();
    for client in [&clients[1], &second] {
        let shown = list(client).await;
        assert!(
            matches!(shown, Ok(Source::OnDevice(_))),
            "a recalled release's list: {shown:?}"
        );
    }
    // One that could not be told shows its list until it expires, and says where it comes from.
    assert!(matches!(list(&away).await, Ok(Source::Cached)));
}
