//! The same recipe and the same people give the same bytes, whatever order they come in: also where
//! a history names no direction.
#![allow(missing_docs, clippy::unwrap_used)]

use lethe_client::{Client, LocalEvent};
use lethe_proto::ids::Digest;
use lethe_tests::tiny;
use lethe_tests::world::{Fleet, World};

/// Adapters after training, with people who join in this order; some of them liked nothing.
async fn adapters(order: &[u32]) -> (Vec<Digest>, Vec<String>) {
    let extra = "shards = 3\nanchors = 2\ncohort = 3\n";
    let world = World::with_recipe(order.len() as u32, extra);
    let (_c, addr) = world.start(extra).await;
    let op = world.operator(addr).await;
    let mut fleet = Fleet::default();
    for s in order {
        let folder = world.client_folder(*s);
        let options = world.options(addr).invitation(op.invite(*s).await);
        let client = Client::open(folder, options).unwrap();
        let likes_nothing = s % 2 == 0;
        let history = tiny::history(*s).into_iter().map(|e| match likes_nothing {
            true => LocalEvent::disliked(e.item, e.time),
            false => e,
        });
        client.record_all(history).unwrap();
        client.join().await.unwrap();
        fleet.add(client);
    }
    let hashes = op
        .trained()
        .await
        .shards
        .iter()
        .map(|k| k.adapter)
        .collect();
    let mut places = vec![];
    for s in 0..order.len() as u32 {
        places.push(format!("{:?}", op.lineage(s).await.unwrap().place));
    }
    fleet.abort();
    (hashes, places)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_people_give_the_same_bytes_in_any_order() {
    let first = adapters(&[0, 1, 2, 3, 4, 5, 6, 7]).await;
    for order in [[7, 6, 5, 4, 3, 2, 1, 0], [3, 0, 6, 2, 7, 5, 1, 4]] {
        assert_eq!(adapters(&order).await, first, "{order:?}");
    }
}
