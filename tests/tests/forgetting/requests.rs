//! Every kind of request, one at a time and many at once; lineage, coverage, and what the log and
//! the receipts prove.
#![allow(missing_docs, clippy::unwrap_used)]

use lethe_client::{ClientError, LocalEvent};
use lethe_proto::admin::{AdminReply, AdminRequest, DeletionPhase};
use lethe_proto::deletion::DeletionRequest;
use lethe_receipt::note::VerifierKey;
use lethe_receipt::receipt::{Fate, Receipt, verify};
use lethe_receipt::tiles::audit;
use lethe_tests::tiny;
use lethe_tests::world::{Operator, World, id};

async fn receipt(op: &Operator, deletion: u64) -> Receipt {
    let key = VerifierKey::parse(&op.status().await.log_key).unwrap();
    verify(&op.receipt(deletion).await, &key).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_every_kind_is_one_plan_with_a_receipt_each() {
    let world = World::new(8);
    let (_c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    let first_release = op.trained().await.release;
    let restricted = op.lineage(3).await.unwrap();
    assert!(
        restricted.served && restricted.checkpoints.last() == Some(&2) && restricted.error_rows > 0
    );
    let from = tiny::history(2)[13].time;
    let requests = vec![
        DeletionRequest::Erase { subject: id(0) },
        DeletionRequest::EraseItems {
            subject: id(1),
            items: vec![tiny::history(1)[12].item.clone()],
        },
        DeletionRequest::Withdraw {
            subject: id(2),
            from,
        },
        DeletionRequest::Restrict { subject: id(3) },
    ];
    let before = op.status().await;
    let ids = op.ask_for(requests.clone()).await.unwrap();
    assert_eq!(ids, [1, 2, 3, 4]);
    let after = op.status().await;
    assert_eq!(
        after.release,
        before.release + 1,
        "one release for the whole batch"
    );
    for id in &ids {
        let d = op.deleted(*id).await;
        assert!(d.seconds_until_exact.unwrap() < 1.0);
    }
    op.trained().await;

    let proofs: Vec<Receipt> = {
        let mut all = vec![];
        for id in &ids {
            all.push(receipt(&op, *id).await);
        }
        all
    };
    let kinds: Vec<&str> = proofs.iter().map(|r| r.statement.kind.as_str()).collect();
    assert_eq!(
        kinds,
        [
            "erase-subject",
            "erase-items",
            "withdraw-consent",
            "restrict"
        ]
    );
    assert!(proofs.iter().all(|r| r.statement.batch == 4));
    let fates: Vec<&Fate> = proofs
        .iter()
        .map(|r| &r.records.as_ref().expect("was trained on").fate)
        .collect();
    assert!(
        matches!(fates[0], Fate::Absent(_)) && matches!(fates[3], Fate::Absent(_)),
        "{fates:?}"
    );
    assert!(
        matches!(fates[1], Fate::Replaced(_)) && matches!(fates[2], Fate::Replaced(_)),
        "{fates:?}"
    );
    assert_eq!(proofs[2].from, Some(from));

    // Forecast and actual speak of the same work.
    for r in &proofs {
        assert_eq!(
            r.statement.forecast.rounds, r.statement.actual.rounds,
            "{:?}",
            r.statement
        );
        assert!(r.statement.actual.client_rounds > 0 && r.statement.actual.bytes > 0);
    }

    // Restricted: kept, and used for nothing.
    let kept = op.lineage(3).await.unwrap();
    assert!(kept.idle.starts_with("restricted") && kept.samples == restricted.samples);
    assert!(!kept.served && kept.checkpoints.is_empty() && kept.error_rows == 0);
    assert!(op.lineage(0).await.is_err(), "forgotten");
    let AdminReply::Release(old) = op
        .ask(AdminRequest::LineageOfRelease {
            release: first_release,
        })
        .await
        .unwrap()
    else {
        panic!()
    };
    assert!(
        old.recalled && old.deleted == 1 && old.subjects.iter().any(|(s, _)| *s == id(3)),
        "{old:?}"
    );

    op.replays_equal().await;
    let clients = fleet.stop_but(0).await;
    let withdrawn = clients.into_iter().nth(1).unwrap();
    assert!(withdrawn.history().iter().all(|e| e.time < from));
    assert_eq!(withdrawn.consent_until(), Some(from));
    assert!(matches!(
        withdrawn.record(LocalEvent::liked("i1", from)),
        Err(ClientError::ConsentWithdrawn { .. })
    ));
    withdrawn.consent().unwrap();
    withdrawn.record(LocalEvent::liked("i1", from)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takedown_erases_on_every_device_and_retrains_everything() {
    let world = World::new(6);
    let (_c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let item = tiny::history(1)[12].item.clone();
    let ids = op
        .ask_for(vec![DeletionRequest::Takedown {
            items: vec![item.clone()],
        }])
        .await
        .unwrap();
    let d = op.deleted(ids[0]).await;
    assert_eq!(d.affected.len(), 2, "both shards");
    op.trained().await;
    op.replays_equal().await;
    let r = receipt(&op, ids[0]).await;
    assert_eq!(
        (r.subject.as_str(), r.items, r.records),
        ("", vec![item.clone()], None)
    );
    for c in fleet.stop().await {
        assert!(c.history().iter().all(|e| e.item != item));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn coverage_counts_devices_that_dropped_what_was_recalled() {
    let world = World::new(6);
    let (_c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let coverage = async || match op.ask(AdminRequest::Coverage { release: None }).await {
        Ok(AdminReply::Coverage(c)) => Some(c),
        _ => None,
    };
    assert!(coverage().await.is_none(), "nothing was recalled");
    // All have measured the release, so all have fetched it. They go away, one is deleted, one
    // comes back.
    let clients = fleet.stop().await;
    op.ask_to_forget(5, &[]).await.unwrap();
    let c = coverage().await.unwrap();
    assert_eq!(
        (c.recalled, c.dropped, c.holding, c.never),
        (true, 0, 5, 0),
        "{c:?}"
    );
    let items = [
        "i1", "i2", "i3", "i4", "i5", "i6", "i7", "i8", "i9", "i10", "i11", "i12",
    ];
    clients[0].recommend(&items, 3).await.unwrap();
    let c = coverage().await.unwrap();
    assert_eq!((c.dropped, c.holding), (1, 4), "{c:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_audited_from_its_files_and_deletions_are_listed() {
    let world = World::new(6);
    let (coordinator, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    op.forget(2, &[]).await;
    let key = VerifierKey::parse(&op.status().await.log_key).unwrap();
    let log = audit(&world.dir.path().join("server-evidence/tiles"), &key).unwrap();
    let text: Vec<String> = log
        .entries
        .iter()
        .map(|e| String::from_utf8(e.clone()).unwrap())
        .collect();
    // Two shards before training, one again after the rollback, the deletion.
    let kinds: Vec<&str> = text.iter().map(|e| e.split(' ').nth(1).unwrap()).collect();
    let of = |kind: &str| kinds.iter().filter(|k| **k == kind).count();
    assert_eq!((of("training"), of("deletion")), (3, 1), "{kinds:?}");
    assert_eq!(kinds.last(), Some(&"deletion"));
    // People were invited, and a deletion was asked for.
    assert!(of("action") >= 2, "{kinds:?}");
    let AdminReply::Log {
        entries,
        checkpoint,
    } = op.ask(AdminRequest::Log { from: 1 }).await.unwrap()
    else {
        panic!()
    };
    assert_eq!(
        (entries, checkpoint),
        (log.entries[1..].to_vec(), log.checkpoint)
    );
    let AdminReply::Deletions(all) = op.ask(AdminRequest::Deletions { after: 0 }).await.unwrap()
    else {
        panic!()
    };
    assert_eq!(
        (all.len(), all[0].phase, all[0].due_at - all[0].accepted_at),
        (1, DeletionPhase::Done, 30 * 86_400)
    );

    // After a restart the log goes on where it was, and nothing is entered twice.
    fleet.abort();
    coordinator.shutdown();
    drop(coordinator);
    let again = audit(&world.dir.path().join("server-evidence/tiles"), &key).unwrap();
    assert_eq!(again.entries, log.entries);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_have_to_agree_when_the_policy_says_so() {
    let world = World::new(6);
    let (_c, addr) = world.start("").await;
    let one = world.operator(addr).await;
    let fleet = world.fleet(addr, &one).await;
    one.trained().await;
    let set = |approvals| AdminRequest::Policy {
        approvals: Some(approvals),
    };
    assert!(
        one.ask(set(2)).await.is_err(),
        "there is one operator only: nobody could agree"
    );
    let two = one.colleague(addr).await;
    assert_eq!(
        one.ask(set(2)).await.unwrap(),
        AdminReply::Policy { approvals: 2 }
    );

    let forget = |s| AdminRequest::Forget {
        requests: vec![DeletionRequest::Erase { subject: id(s) }],
        dry_run: false,
        asked: 0,
        reference: String::new(),
        confirmed: false,
    };
    let AdminReply::Proposed(p) = one.ask(forget(1)).await.unwrap() else {
        panic!()
    };
    assert_eq!((p.id, p.missing), (1, 1));
    assert!(one.lineage(1).await.is_ok(), "nothing has happened");
    assert!(
        one.ask(AdminRequest::Approve { proposal: 1 })
            .await
            .is_err(),
        "the same operator"
    );
    let AdminReply::Planned { ids, .. } = two
        .ask(AdminRequest::Approve { proposal: 1 })
        .await
        .unwrap()
    else {
        panic!()
    };
    one.deleted(ids[0]).await;
    assert!(one.lineage(1).await.is_err());
    assert!(
        two.ask(AdminRequest::Approve { proposal: 1 })
            .await
            .is_err(),
        "carried out"
    );

    let AdminReply::Proposed(p) = two.ask(forget(2)).await.unwrap() else {
        panic!()
    };
    // Whose proposal it is withdraws it alone; anybody else needs them to agree.
    let cancel = AdminRequest::Cancel { proposal: p.id };
    let waits = one.ask(cancel.clone()).await.unwrap();
    assert!(matches!(waits, AdminReply::Proposed(_)), "{waits:?}");
    assert_eq!(two.ask(cancel).await.unwrap(), AdminReply::Done);
    assert!(
        one.ask(AdminRequest::Approve { proposal: p.id })
            .await
            .is_err()
            && one.lineage(2).await.is_ok()
    );

    // One operator alone cannot lift the policy.
    let AdminReply::Proposed(p) = one.ask(set(1)).await.unwrap() else {
        panic!()
    };
    let AdminReply::Proposals(waiting) =
        two.ask(AdminRequest::Proposals { after: 0 }).await.unwrap()
    else {
        panic!()
    };
    assert!(waiting.contains(&p), "{waiting:?}");
    // Nor invite somebody to agree with.
    let invite = AdminRequest::Invite { subject: None };
    let AdminReply::Proposed(invited) = one.ask(invite).await.unwrap() else {
        panic!()
    };
    assert!(matches!(
        two.ask(AdminRequest::Approve {
            proposal: invited.id
        })
        .await
        .unwrap(),
        AdminReply::Invited { .. }
    ));
    assert_eq!(
        two.ask(AdminRequest::Approve { proposal: p.id })
            .await
            .unwrap(),
        AdminReply::Policy { approvals: 1 }
    );

    let AdminReply::Actions(done) = one.ask(AdminRequest::Actions).await.unwrap() else {
        panic!()
    };
    let what: Vec<&str> = done.iter().map(|a| a.what.as_str()).collect();
    assert!(
        what.contains(&"invite an operator") && what.contains(&"withdraw proposal 2"),
        "{what:?}"
    );
    let key = VerifierKey::parse(&one.status().await.log_key).unwrap();
    let log = audit(&world.dir.path().join("server-evidence/tiles"), &key).unwrap();
    for a in &done {
        assert!(log.entries[a.entry as usize].starts_with(b"lethe-log/2 action "));
    }
    fleet.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_again_gets_around_nothing() {
    let world = World::new(6);
    let (_c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    let mut clients = vec![];
    for s in 0..5 {
        let c = world.client(addr, &op, s).await;
        c.join().await.unwrap();
        clients.push(c);
    }
    // Before the epoch starts.
    let item = tiny::history(1)[12].item.clone();
    let requests = vec![
        DeletionRequest::Restrict { subject: id(0) },
        DeletionRequest::EraseItems {
            subject: id(1),
            items: vec![item.clone()],
        },
    ];
    let ids = op.ask_for(requests).await.unwrap();
    for c in &clients[..2] {
        c.join().await.unwrap();
    }
    let last = world.client(addr, &op, 5).await;
    last.join().await.unwrap();
    let mut fleet = lethe_tests::world::Fleet::default();
    clients.into_iter().chain([last]).for_each(|c| fleet.add(c));
    op.trained().await;
    op.deleted(ids[1]).await;
    let kept = op.lineage(0).await.unwrap();
    assert!(
        kept.idle.starts_with("restricted") && !kept.served,
        "{kept:?}"
    );
    assert!(
        op.lineage(1).await.unwrap().served,
        "what remains is trained on"
    );
    let clients = fleet.stop().await;
    assert!(
        clients[1].history().iter().all(|e| e.item != item),
        "the device was told, and has erased"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_later_inherits_what_was_asked_before() {
    let world = World::new(4);
    let (_c, addr) = world.start("").await;
    let op = world.operator(addr).await;
    // Enrolled, but not joined: there is nothing to set aside yet, and it still holds.
    let mut clients = vec![];
    for s in 0..4 {
        clients.push(world.client(addr, &op, s).await);
    }
    let item = tiny::history(2)[12].item.clone();
    let requests = vec![
        DeletionRequest::Restrict { subject: id(1) },
        DeletionRequest::Takedown {
            items: vec![item.clone()],
        },
    ];
    let ids = op.ask_for(requests).await.unwrap();
    for i in ids {
        op.deleted(i).await;
    }
    let mut fleet = lethe_tests::world::Fleet::default();
    for c in clients {
        c.join().await.unwrap();
        fleet.add(c);
    }
    op.trained().await;
    assert!(op.lineage(1).await.unwrap().idle.starts_with("restricted"));
    assert!(op.lineage(2).await.unwrap().served);
    for c in fleet.stop().await {
        assert!(
            c.history().iter().all(|e| e.item != item),
            "the takedown holds for those who came after it"
        );
    }
    // Asked again after an erasure, somebody starts anew.
    op.forget(1, &[]).await;
    let again = World::client(&world, addr, &op, 9).await;
    again.join().await.unwrap();
    assert!(!op.lineage(9).await.unwrap().idle.starts_with("restricted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offline_list_expires() {
    let world = World::new(6);
    let mut config = world.config("");
    config.release_hours = 0;
    let (coordinator, addr) = world.start_with(config).await;
    let op = world.operator(addr).await;
    let fleet = world.fleet(addr, &op).await;
    op.trained().await;
    let clients = fleet.stop().await;
    let items: Vec<String> = (0..tiny::ITEMS).map(|i| format!("i{i}")).collect();
    let items: Vec<&str> = items.iter().map(String::as_str).collect();
    clients[0].recommend(&items, 3).await.unwrap();
    coordinator.shutdown();
    let shown = clients[0].recommend(&items, 3).await.unwrap();
    assert!(
        matches!(shown.source, lethe_client::Source::OnDevice(_)),
        "{shown:?}"
    );
    assert_eq!(shown.items.len(), 3);
    let met: Vec<String> = clients[0].history().into_iter().map(|e| e.item).collect();
    assert!(shown.items.iter().all(|r| !met.contains(&r.item)));
}
