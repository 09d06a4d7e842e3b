//! What operators read and ask.

use lethe_ledger::{Command, Event};
use lethe_proto::admin::{AdminReply, AdminRequest, DeletionPhase};
use lethe_proto::deletion::Proposal;
use lethe_proto::ids::{Digest, ShardId};

use super::driver::{Driver, PEOPLE, digest, erase, erase_item, subject};
use crate::CoordinatorError;
use crate::evidence::admin::{self, Asked, Facts, Made};

fn facts(d: &Driver) -> Facts {
    Facts {
        connections: 3,
        update_bytes: 10,
        activation_bytes: 20,
        log_key: d.evidence.log_key(),
    }
}

fn ask(d: &Driver, request: AdminRequest) -> Result<AdminReply, String> {
    let by = digest("operator");
    let reply = admin::read(&d.state, &request, by, d.now(), &facts(d));
    reply.unwrap().map_err(|e| e.to_string())
}

fn plan(requests: Vec<lethe_proto::deletion::DeletionRequest>) -> AdminRequest {
    AdminRequest::Forget {
        requests,
        dry_run: true,
        asked: 0,
        reference: String::new(),
        confirmed: false,
    }
}

#[test]
fn the_status_is_that_of_the_epoch_that_is_served() {
    let mut d = Driver::new();
    let before = admin::status(&d.state, &facts(&d));
    assert!(!before.started && before.release == 0 && before.shards.len() == 2);
    d.until(|s| s.served_release().is_some());
    // The next epoch is founded; nobody has joined it.
    d.found("another recipe");
    let status = admin::status(&d.state, &facts(&d));
    assert_eq!(status.build, "lethe test");
    assert_eq!(status.subjects as usize, PEOPLE.len());
    assert!(status.started && !status.validated);
    assert_eq!((status.release, status.connections), (1, 3));
    assert_eq!(status.bytes, (10, 20));
    assert_eq!(status.log_key, d.evidence.log_key());
    assert_eq!(status.shards.len(), 2);
    for shard in &status.shards {
        assert!(shard.done && !shard.quarantined);
        assert_eq!(shard.rounds, (4, 4));
        assert_eq!(shard.losses, [Some(0.5); 4]);
    }
    let people: u32 = status.shards.iter().map(|s| s.subjects).sum();
    assert_eq!(people as usize, PEOPLE.len());
    assert_eq!(
        ask(&d, AdminRequest::Status),
        Ok(AdminReply::Status(status))
    );
}

#[test]
fn a_dry_run_says_what_would_be_done_and_does_nothing() {
    let d = Driver::trained();
    let requests = vec![erase("ada"), erase_item("ben", "5")];
    let Ok(AdminReply::Planned { text, json, ids }) = ask(&d, plan(requests.clone())) else {
        panic!("a plan");
    };
    let plans = d.state.dry_run(&requests, false, d.now()).unwrap();
    assert_eq!(text, plans[0].1.to_string());
    assert_eq!(json, serde_json::to_string(&plans[0].1).unwrap());
    assert!(ids.is_empty() && d.state.deletions().is_empty());
    assert_eq!(
        ask(&d, plan(vec![erase("nobody")])),
        Err("subject nobody is not known: it was never invited, or was deleted already".into())
    );
    let unknown = ask(&d, plan(vec![erase_item("ben", "77")])).unwrap_err();
    assert!(unknown.contains("is not in the catalogue"), "{unknown}");
}

#[test]
fn what_is_not_there_is_said_in_todays_words() {
    let d = Driver::trained();
    let missing = |request, text: &str| assert_eq!(ask(&d, request), Err(text.to_owned()));
    missing(AdminRequest::Deletion { id: 4 }, "there is no deletion 4");
    missing(
        AdminRequest::LineageOfRelease { release: 9 },
        "there is no release 9; the current one is 1",
    );
    missing(
        AdminRequest::Coverage { release: None },
        "no such release, or none was recalled so far",
    );
    for shard in [0, 7] {
        let shard = ShardId(shard);
        let text = format!("no replay of {shard} was asked for");
        missing(AdminRequest::ReplayStatus { shard }, &text);
    }
    missing(
        AdminRequest::LineageOfSubject {
            subject: subject("nobody"),
        },
        "nobody has not joined, or was deleted: `lethe-admin list` shows the deletions",
    );
    let why = admin::receipt(4, None).unwrap_err();
    assert_eq!(
        why.to_string(),
        "deletion 4 has no receipt (yet): `lethe-admin status --deletion 4` tells"
    );
    let reply = admin::receipt(4, Some(b"{}\n")).unwrap();
    assert_eq!(reply, AdminReply::Receipt("{}\n".into()));
    let why = admin::shard(&d.state, ShardId(7)).unwrap_err();
    assert!(matches!(why, CoordinatorError::Refused { .. }));
    let line = admin::export_line(ShardId(1));
    assert_eq!(line, format!("export {} for an audit", ShardId(1)));
}

#[test]
fn what_needs_more_than_the_state_is_not_answered_here() {
    let d = Driver::trained();
    let by = digest("operator");
    for request in [
        AdminRequest::Scan { texts: vec![] },
        AdminRequest::Log { from: 0 },
        AdminRequest::Receipt { id: 1 },
        AdminRequest::Policy { approvals: Some(2) },
        AdminRequest::Approve { proposal: 1 },
        AdminRequest::Invite { subject: None },
    ] {
        assert!(admin::read(&d.state, &request, by, d.now(), &facts(&d)).is_none());
    }
}

#[test]
fn requests_become_proposals_with_the_lines_of_the_log() {
    let noted = |request, what: Proposal, line: &str| {
        let note = Some(line.to_owned());
        let confirmed = true;
        let expected = Asked {
            what,
            confirmed,
            note,
        };
        assert_eq!(admin::asked(request), Some(expected));
    };
    noted(
        AdminRequest::Policy { approvals: Some(2) },
        Proposal::Approvals(2),
        "policy: 2 approvals",
    );
    noted(
        AdminRequest::Invite { subject: None },
        Proposal::InviteOperator,
        "invite an operator",
    );
    let fingerprint = digest("x");
    noted(
        AdminRequest::RemoveOperator { fingerprint },
        Proposal::RemoveOperator(fingerprint),
        &format!("remove operator {fingerprint}"),
    );
    // The ledger writes the lines of these.
    let ada = subject("ada");
    let texts = vec!["ada".to_owned()];
    for (request, what) in [
        (
            AdminRequest::Invite {
                subject: Some(ada.clone()),
            },
            Proposal::InviteDevice(ada.clone()),
        ),
        (
            AdminRequest::Revoke {
                subject: ada.clone(),
            },
            Proposal::Revoke(ada),
        ),
        (
            AdminRequest::Cancel { proposal: 4 },
            Proposal::CancelProposal(4),
        ),
        (
            AdminRequest::Scan {
                texts: texts.clone(),
            },
            Proposal::Scan { texts },
        ),
    ] {
        let asked = admin::asked(request).unwrap();
        assert!(asked.note.is_none() && asked.confirmed);
        assert_eq!(asked.what, what);
    }
    let asked = admin::asked(AdminRequest::Forget {
        requests: vec![erase("ada")],
        dry_run: false,
        asked: 5,
        reference: "case".into(),
        confirmed: false,
    });
    let asked = asked.unwrap();
    assert!(asked.note.is_none() && !asked.confirmed);
    assert_eq!(admin::asked(plan(vec![])), None);
    assert_eq!(admin::asked(AdminRequest::Status), None);
}

/// Proposes; the answer, and what was decided.
fn propose(d: &mut Driver, what: Proposal) -> (AdminReply, Vec<Event>) {
    let command = Command::Propose {
        what,
        confirmed: true,
        note: None,
        by: digest("operator"),
        secret: digest("secret"),
        plans: vec![],
        fresh: d.fresh(),
    };
    decided(d, command)
}

fn decided(d: &mut Driver, command: Command) -> (AdminReply, Vec<Event>) {
    let requests = [erase("ada")];
    let plans = d.state.dry_run(&requests, true, d.now()).unwrap();
    let events = d.run(command).unwrap();
    let made = Made {
        plans: &plans,
        token: "token",
    };
    (admin::decided(&d.state, &events, made), events)
}

#[test]
fn what_was_decided_is_answered() {
    let mut d = Driver::trained();
    let (reply, _) = propose(&mut d, Proposal::InviteOperator);
    let token = "token".to_owned();
    assert_eq!(reply, AdminReply::Invited { token });
    let (reply, _) = propose(&mut d, Proposal::Approvals(2));
    assert_eq!(reply, AdminReply::Policy { approvals: 2 });
    let forget = Proposal::Forget {
        requests: vec![erase("ada")],
        asked: 0,
        reference: String::new(),
    };
    let (reply, _) = propose(&mut d, forget.clone());
    let AdminReply::Proposed(proposal) = reply else {
        panic!("a proposal");
    };
    assert_eq!((proposal.id, proposal.missing), (1, 1));
    assert_eq!(proposal.what, forget);
    let listed = ask(&d, AdminRequest::Proposals { after: 0 });
    assert_eq!(listed, Ok(AdminReply::Proposals(vec![proposal])));
    let approve = Command::Approve {
        id: 1,
        by: digest("second operator"),
        secret: Digest::default(),
        plans: vec![],
        fresh: d.fresh(),
    };
    let (reply, _) = decided(&mut d, approve);
    let AdminReply::Planned { ids, text, .. } = reply else {
        panic!("it is carried out");
    };
    assert_eq!(ids, [1]);
    assert!(text.contains("ada"));
    let cancelled = decided(&mut d, Command::GiveUpWaiting).0;
    assert_eq!(cancelled, AdminReply::Done);
}

#[test]
fn lists_are_those_of_the_ledger() {
    let mut d = Driver::trained();
    d.forget(vec![erase("ada")]);
    d.until(|s| s.deletions()[&1].phase == DeletionPhase::Done);
    let Ok(AdminReply::Operators(operators)) = ask(&d, AdminRequest::Operators) else {
        panic!("operators");
    };
    let you: Vec<bool> = operators.iter().map(|o| o.you).collect();
    assert_eq!(you.iter().filter(|y| **y).count(), 1);
    let Ok(AdminReply::Actions(actions)) = ask(&d, AdminRequest::Actions) else {
        panic!("actions");
    };
    let lines: Vec<&str> = actions.iter().map(|a| a.what.as_str()).collect();
    let invited = lines.iter().filter(|l| l.starts_with("invite"));
    assert_eq!(invited.count(), 2, "two operators were invited: {lines:?}");
    assert!(lines.contains(&"ask for a deletion"), "{lines:?}");
    let Ok(AdminReply::Deletion(deletion)) = ask(&d, AdminRequest::Deletion { id: 1 }) else {
        panic!("a deletion");
    };
    assert_eq!(deletion.phase, DeletionPhase::Done);
    let Ok(AdminReply::Deletions(all)) = ask(&d, AdminRequest::Deletions { after: 0 }) else {
        panic!("deletions");
    };
    assert_eq!(all[0].reference, "case 7");
    let policy = ask(&d, AdminRequest::Policy { approvals: None });
    assert_eq!(policy, Ok(AdminReply::Policy { approvals: 1 }));
    let Ok(AdminReply::Coverage(coverage)) = ask(&d, AdminRequest::Coverage { release: Some(1) })
    else {
        panic!("coverage");
    };
    assert!(coverage.recalled);
    let AdminReply::Log { entries, .. } = admin::log(d.evidence.page(0)) else {
        panic!("a page");
    };
    assert_eq!(entries.len() as u64, d.state.core().log.entries);
}
