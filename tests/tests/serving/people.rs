//! People who come back: restrictions that are lifted, devices that were away or restored.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use lethe_client::{Client, ClientError};
use lethe_proto::admin::{AdminReply, AdminRequest};
use lethe_proto::deletion::DeletionRequest;
use lethe_proto::ids::ShardId;
use lethe_proto::people::{ReplayProgress, ReplayVerdict, RestrictionState, StageOutcome};
use lethe_tests::tiny;
use lethe_tests::world::{Fleet, Operator, World, copy_folder, id};

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

/// A replay, as far as it got.
async fn replay(op: &Operator, request: AdminRequest) -> ReplayProgress {
    match op.ask(request).await {
        Ok(AdminReply::ReplayProgress(progress)) => progress,
        other => panic!("{other:?}"),
    }
}

/// Replays a shard to its end.
async fn replayed(op: &Operator, shard: ShardId, without_missing: bool) -> ReplayProgress {
    let start = AdminRequest::StartReplay {
        shard,
        without_missing,
    };
    let mut progress = replay(op, start).await;
    for _ in 0..4000 {
        if progress.verdict != ReplayVerdict::Running {
            return progress;
        }
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        progress = replay(op, AdminRequest::ReplayProgress { shard }).await;
    }
    panic!("it never ends: {progress:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_that_was_installed_anew_stalls_no_replay() {
    let world = World::new(8);
    let (coordinator, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    // Somebody who enters with the last stage, and was trained on.
    let mut found = None;
    for subject in 0..8 {
        let lineage = op.lineage(subject).await.unwrap();
        let (shard, slice) = lineage.place.unwrap();
        if slice == 1 && lineage.rounds > 0 {
            found = Some((subject, shard));
        }
    }
    let (subject, shard) = found.expect("somebody is in the second slice");
    let mut clients = fleet.stop().await;
    drop(clients.remove(subject as usize));
    std::fs::remove_dir_all(world.client_folder(subject)).unwrap();
    let anew = world.client(addr, &op, subject).await;
    assert!(anew.join().await.is_err(), "it has other data");
    let mut fleet = Fleet::default();
    clients.into_iter().for_each(|c| fleet.add(c));
    fleet.add(anew);

    let given_up = replayed(&op, shard, false).await;
    assert_eq!(given_up.verdict, ReplayVerdict::GivenUp, "{given_up:?}");
    let names: Vec<_> = given_up.missing.iter().map(|m| &m.subject).collect();
    assert_eq!(names, [&Some(id(subject))], "{given_up:?}");
    let partial = replayed(&op, shard, true).await;
    assert_eq!(partial.verdict, ReplayVerdict::Partial, "{partial:?}");
    let stages: Vec<_> = partial.stages.iter().map(|s| s.outcome).collect();
    assert_eq!(
        stages,
        [StageOutcome::Equal, StageOutcome::Unproven { missing: 1 }]
    );
    // The other shard needs nobody who is missing.
    let other = ShardId(1 - shard.0);
    let equal = replayed(&op, other, true).await;
    assert_eq!(equal.verdict, ReplayVerdict::Equal, "{equal:?}");
    fleet.abort();
    coordinator.shutdown();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_was_restored_from_a_backup_erases_before_anything_else() {
    let world = World::new(8);
    let (coordinator, addr) = world.start_with(world.config_with_lists("")).await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    contribute(&op, 8).await;
    let mut clients = fleet.stop().await;
    drop(clients.remove(3));
    let folder = world.client_folder(3);
    let backup = world.dir.path().join("backup of a phone");
    copy_folder(&folder, &backup);
    // The phone erases what was ordered, and everybody knows that it has.
    let item = tiny::history(3)[2].item.clone();
    let mut fleet = Fleet::default();
    clients.into_iter().for_each(|c| fleet.add(c));
    fleet.add(world.client(addr, &op, 3).await);
    let deletion = op.ask_to_forget(3, &[&item]).await.unwrap();
    op.deleted(deletion).await;
    contribute(&op, 8).await;
    let mut clients = fleet.stop().await;
    let phone = clients.pop().unwrap();
    let has = |client: &Client| client.history().iter().any(|e| e.item == item);
    assert!(!has(&phone));
    drop(phone);
    // Then its folder is put back from the backup.
    std::fs::remove_dir_all(&folder).unwrap();
    copy_folder(&backup, &folder);
    let restored = Client::open(&folder, world.options(addr)).unwrap();
    assert!(has(&restored), "the backup has what was erased");
    restored.connect().await.unwrap();
    assert!(
        !has(&restored),
        "it erases when it hears of the coordinator"
    );
    // What it joined with is what counts, without the item: it trains and contributes as before.
    restored.join().await.unwrap();
    restored.refresh().await.unwrap();
    assert!(restored.status().contributed.is_some());
    let mut fleet = Fleet::default();
    clients.into_iter().for_each(|c| fleet.add(c));
    fleet.add(restored);
    contribute(&op, 8).await;
    op.replays_equal().await;
    fleet.abort();
    coordinator.shutdown();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_folder_asks_before_it_erases_almost_everything() {
    let world = World::new(6);
    let (coordinator, addr) = world.start_with(world.config_with_lists("")).await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    contribute(&op, 6).await;
    let mut clients = fleet.stop().await;
    drop(clients.remove(3));
    let folder = world.client_folder(3);
    let backup = world.dir.path().join("backup of a phone");
    copy_folder(&folder, &backup);
    let mut fleet = Fleet::default();
    clients.into_iter().for_each(|c| fleet.add(c));
    let options = world.options(addr).erasure_consent(|_| true);
    fleet.add(Client::open(&folder, options).unwrap());
    let withdraw = DeletionRequest::Withdraw {
        subject: id(3),
        from: tiny::time(0),
    };
    let deletion = op.ask_for(vec![withdraw]).await.unwrap()[0];
    op.deleted(deletion).await;
    let mut clients = fleet.stop().await;
    drop(clients.pop());
    std::fs::remove_dir_all(&folder).unwrap();
    copy_folder(&backup, &folder);
    let restored = Client::open(&folder, world.options(addr)).unwrap();
    restored.connect().await.unwrap();
    let pending = restored.pending_erasure().expect("the person is asked");
    assert_eq!(
        (pending.deletions, pending.events),
        (vec![deletion], pending.of)
    );
    // Until they have said so, nothing of it is used.
    let before = restored.status().contributed;
    assert!(!restored.refresh().await.unwrap().contributed, "{before:?}");
    assert!(matches!(restored.join().await, Err(ClientError::OtherData)));
    assert!(restored.consent_to_erasure().await.unwrap());
    assert!(restored.history().is_empty() && restored.pending_erasure().is_none());
    coordinator.shutdown();
}
