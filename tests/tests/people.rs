//! People who come back: restrictions that are lifted, devices that were away or restored.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::people::RestrictionState;
use lethe_tests::world::{Operator, World, id};

/// Waits until so many people contribute to lists.
async fn contribute(op: &Operator, people: u64) {
    for _ in 0..2000 {
        if op.lists().await.people == people {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    }
    panic!("{people} people never contribute: {:?}", op.lists().await);
}

async fn restrictions(op: &Operator) -> Vec<RestrictionState> {
    match op.ask(AdminRequest::Restrictions { after: 0 }).await {
        Ok(AdminReply::Restrictions(all)) => all,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lifted_restriction_is_over_for_lists_and_the_device_contributes_by_itself() {
    let world = World::new(8);
    let (coordinator, addr) = world.start_with(world.config_with_lists("")).await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    contribute(&op, 8).await;
    let restrict = DeletionRequest::Restrict { subject: id(3) };
    let deletion = op.ask_for(vec![restrict]).await.unwrap()[0];
    op.deleted(deletion).await;
    contribute(&op, 7).await;
    let clients = fleet.stop().await;

    let client = &clients[3];
    client.refresh().await.unwrap();
    let status = client.status();
    assert!(
        status.restricted && status.contributed.is_none(),
        "{status:?}"
    );
    assert!(status.not_trained.starts_with("restricted"), "{status:?}");
    assert_eq!(op.lists().await.people, 7);
    let [one] = &restrictions(&op).await[..] else {
        panic!("one restriction")
    };
    assert!(one.done && one.lifted.is_none() && one.subject == id(3));

    let lift = || AdminRequest::LiftRestriction { subject: id(3) };
    assert_eq!(op.ask(lift()).await.unwrap(), AdminReply::Done);
    assert!(restrictions(&op).await[0].lifted.is_some());
    assert!(client.refresh().await.unwrap().contributed);
    let status = client.status();
    assert!(
        !status.restricted && status.contributed.is_some(),
        "{status:?}"
    );
    assert!(
        status.not_trained.starts_with("the restriction is lifted"),
        "{status:?}"
    );
    assert_eq!(op.lineage(3).await.unwrap().idle, status.not_trained);
    contribute(&op, 8).await;
    // What was trained stays what the receipt says.
    assert!(!op.lineage(3).await.unwrap().served);
    // The log has it, and it names nobody.
    let AdminReply::Actions(actions) = op.ask(AdminRequest::Actions).await.unwrap() else {
        panic!("actions")
    };
    let what: Vec<&str> = actions.iter().map(|a| a.what.as_str()).collect();
    assert!(
        what.contains(&"lift the restriction of deletion 1"),
        "{what:?}"
    );
    let again = op.ask(lift()).await.unwrap_err().to_string();
    assert!(again.contains("is not restricted"), "{again}");
    coordinator.shutdown();
}
