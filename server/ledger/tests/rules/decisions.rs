//! Single decisions: operators, approvals, pace, joins, results that come too late.
#![allow(missing_docs, clippy::unwrap_used)]

use lethe_ledger::*;
use lethe_proto::deletion::{DeletionRequest, Proposal};
use lethe_proto::ids::{Digest, SubjectId};
use lethe_proto::message::{Refusal, Role};

fn now() -> Now {
    Now {
        unix_ms: 1_800_000_000_000,
        uptime_ms: 5,
    }
}

fn digest(name: &str) -> Digest {
    Digest::of(&[name.as_bytes()])
}

fn run(state: &mut State, command: Command) -> Result<Vec<Event>, Refused> {
    let events = decide(state, command, now())?;
    events.iter().for_each(|e| apply(state, e));
    Ok(events)
}

fn operator(state: &mut State, name: &str) -> Digest {
    let secret = digest(&format!("secret of {name}"));
    let invite = Command::RecoverOperator {
        secret,
        fresh: Fresh::default(),
    };
    run(state, invite).unwrap();
    let certificate = digest(name);
    let enrol = Command::Enrol {
        secret,
        certificate,
        expires: u64::MAX,
        device_of: None,
    };
    run(state, enrol).unwrap();
    certificate
}

fn device(state: &mut State, name: &str) -> Digest {
    let secret = digest(&format!("secret of {name}"));
    let subject = SubjectId::new(name).unwrap();
    run(state, Command::Invite { subject, secret }).unwrap();
    let certificate = digest(name);
    let enrol = Command::Enrol {
        secret,
        certificate,
        expires: 0,
        device_of: None,
    };
    run(state, enrol).unwrap();
    certificate
}

fn propose(what: Proposal, by: Digest) -> Command {
    Command::Propose {
        what,
        confirmed: true,
        note: None,
        by,
        secret: digest("invitation"),
        plans: vec![],
        fresh: Fresh::default(),
    }
}

#[test]
fn an_invitation_is_spent_once_and_for_its_person() {
    let mut state = State::default();
    let certificate = device(&mut state, "ada");
    let ada = SubjectId::new("ada").unwrap();
    assert_eq!(state.role(&certificate), Some(Role::Subject(ada)));
    let again = Command::Enrol {
        secret: digest("secret of ada"),
        certificate: digest("other"),
        expires: 0,
        device_of: None,
    };
    let refused = run(&mut state, again).unwrap_err();
    assert_eq!(
        refused.message,
        "this invitation is not known or was used already: ask for a new one"
    );
}

#[test]
fn a_renewed_certificate_replaces_the_old_one_when_it_is_used() {
    let mut state = State::default();
    let old = device(&mut state, "ada");
    for name in ["lost", "new"] {
        let renew = Command::Renew {
            current: old,
            certificate: digest(name),
            expires: 0,
        };
        run(&mut state, renew).unwrap();
    }
    assert_eq!(state.role(&digest("lost")), None, "never used: replaced");
    assert!(state.role(&old).is_some());
    let used = Command::CertificateUsed {
        certificate: digest("new"),
    };
    let events = decide(&state, used.clone(), now()).unwrap();
    assert_eq!(withdrawn(&state, &events[0]), [old]);
    run(&mut state, used).unwrap();
    assert_eq!(state.role(&old), None);
    let holder = state.holder(&digest("new")).unwrap();
    assert_eq!(holder.device, old, "the same device");
}

#[test]
fn two_operators_agree_and_a_proposal_is_carried_out_and_gone_in_one_list() {
    let mut state = State::default();
    let a = operator(&mut state, "a");
    let b = operator(&mut state, "b");
    let refused = run(&mut state, propose(Proposal::Approvals(3), a)).unwrap_err();
    assert_eq!(
        refused.message,
        "3 approvals: expected 1 to 2, the number of operators"
    );
    run(&mut state, propose(Proposal::Approvals(2), a)).unwrap();
    device(&mut state, "ada");
    let subject = SubjectId::new("ada").unwrap();
    let what = Proposal::Forget {
        requests: vec![DeletionRequest::Erase { subject }],
        asked: 0,
        reference: "case 7".into(),
    };
    run(&mut state, propose(what, a)).unwrap();
    assert!(state.deletions().is_empty());
    let approve = |by| Command::Approve {
        id: 1,
        by,
        secret: Digest::default(),
        plans: vec![],
        fresh: Fresh::default(),
    };
    let refused = run(&mut state, approve(a)).unwrap_err();
    assert_eq!(
        refused.message,
        "another operator has to agree: this one did already"
    );
    let events = run(&mut state, approve(b)).unwrap();
    let closed = events.contains(&Event::ProposalClosed { id: 1 });
    assert!(closed && state.proposals().is_empty() && state.unexecuted());
    assert!(state.may_serve().is_err());
    run(&mut state, Command::BeginExecution { lists: None }).unwrap();
    let keys = state.keys_to_destroy();
    assert_eq!(keys, [Owner::Person(SubjectId::new("ada").unwrap())]);
    assert!(!run(&mut state, Command::KeysDestroyed).unwrap().is_empty());
    let twice = run(&mut state, Command::KeysDestroyed).unwrap();
    assert!(twice.is_empty() && state.people().is_empty());
    assert_eq!(state.deletions()[&1].keys_destroyed, 1);
}

#[test]
fn a_proposal_that_the_journal_has_carried_out_cannot_be_approved_again() {
    let mut state = State::default();
    let a = operator(&mut state, "a");
    let b = operator(&mut state, "b");
    run(&mut state, propose(Proposal::Approvals(2), a)).unwrap();
    device(&mut state, "ada");
    let subject = SubjectId::new("ada").unwrap();
    let forget = |reference: &str| Proposal::Forget {
        requests: vec![DeletionRequest::Erase {
            subject: subject.clone(),
        }],
        asked: 0,
        reference: reference.into(),
    };
    run(&mut state, propose(forget("case 7"), a)).unwrap();
    run(&mut state, propose(forget("case 8"), a)).unwrap();
    let approve = Command::Approve {
        id: 1,
        by: b,
        secret: Digest::default(),
        plans: vec![],
        fresh: Fresh::default(),
    };
    // The journal has it, and then the write fails.
    let lost = decide(&state, approve, now()).unwrap();
    let accepted = lost.iter().filter_map(|e| match e {
        Event::DeletionAccepted { id, deletion } => Some(Accepted::of(*id, deletion)),
        _ => None,
    });
    let started = Command::Started {
        floor: 0,
        journal: accepted.collect(),
        lost: vec![],
        stayed: vec![],
        fresh: Fresh::default(),
    };
    run(&mut state, started).unwrap();
    assert_eq!(state.deletions().len(), 1);
    let left: Vec<u64> = state.proposals().keys().copied().collect();
    assert_eq!(left, [2], "the other one still waits");
}

#[test]
fn a_batch_is_accepted_as_a_whole_or_not_at_all() {
    let mut state = State::default();
    device(&mut state, "ada");
    let erase = |name: &str| DeletionRequest::Erase {
        subject: SubjectId::new(name).unwrap(),
    };
    let forget = |requests| Command::Forget {
        requests,
        reference: String::new(),
        asked: 0,
        confirmed: false,
        plans: vec![],
        fresh: Fresh::default(),
    };
    let batch = forget(vec![erase("ada"), erase("nobody")]);
    let refused = run(&mut state, batch).unwrap_err();
    assert_eq!(refused.code, Refusal::NotFound);
    assert!(state.deletions().is_empty());
    let events = run(&mut state, forget(vec![erase("ada")])).unwrap();
    let journal = events.iter().filter_map(Event::before);
    assert_eq!(journal.collect::<Vec<_>>(), [Before::Journal(1)]);
}

#[test]
fn an_operator_enters_sixty_actions_at_once_and_then_one_a_second() {
    let mut state = State::default();
    let by = operator(&mut state, "a");
    let note = || Command::Note {
        by,
        line: "export".into(),
        fresh: Fresh::default(),
    };
    let taken = (0..100).filter(|_| run(&mut state, note()).is_ok()).count();
    assert_eq!(taken, 60);
    let later = Now {
        uptime_ms: now().uptime_ms + 1000,
        ..now()
    };
    assert!(decide(&state, note(), later).is_ok());
}

#[test]
fn who_was_withdrawn_does_not_join() {
    let mut state = State::default();
    let by = operator(&mut state, "a");
    let certificate = device(&mut state, "ada");
    let revoke = Command::Propose {
        what: Proposal::Revoke(SubjectId::new("ada").unwrap()),
        confirmed: true,
        note: None,
        by,
        secret: Digest::default(),
        plans: vec![],
        fresh: Fresh::default(),
    };
    run(&mut state, revoke).unwrap();
    let join = Command::Join {
        device: certificate,
        epoch: EpochNo(1),
        anchor: None,
        samples: 1,
        commitment: Digest::default(),
        fresh: Fresh::default(),
    };
    let refused = run(&mut state, join).unwrap_err();
    assert_eq!(
        refused.message,
        "this subject's certificates were withdrawn"
    );
}

/// Two people have joined, and what they are trained on is in the log: a round may be opened.
fn trained(state: &mut State) -> [Digest; 2] {
    state.set_rules(Rules {
        min_subjects: 2,
        ..Rules::default()
    });
    let found = Command::FoundEpoch {
        terms: Terms {
            shards: 1,
            anchors: 1,
            slices: 1,
            placement: Placement::Hash,
            rounds: 1,
            cohort: 2,
            goal: None,
            staleness: None,
            quorum: 1,
            deadline_s: 60,
            validation: 1,
            samples: 8,
            hidden: 4,
            seed: 1,
            aggregation: Aggregation::Fedavg,
            feeds_back: false,
        },
        recipe: String::new(),
        recipe_digest: Digest::default(),
        model: Digest::default(),
        initial: Digest::default(),
        catalogue: CatalogueVersion(1),
        base: None,
        asked: None,
    };
    run(state, found).unwrap();
    let people = ["ada", "ben"].map(|name| {
        let device = device(state, name);
        let join = Command::Join {
            device,
            epoch: EpochNo::FIRST,
            anchor: None,
            samples: 8,
            commitment: digest(name),
            fresh: Fresh(digest(name).0),
        };
        run(state, join).unwrap();
        device
    });
    for duty in ["hash", "log"] {
        let all = due(state, now());
        let command = all.into_iter().find_map(|d| match d {
            Duty::HashMembers(shard) if duty == "hash" => Some(Command::MembersHashed {
                shard,
                version: state.members_of_tree(shard).version,
                root: [1; 32],
                count: 2,
                fresh: Fresh::default(),
            }),
            Duty::Log { about, .. } if duty == "log" => Some(Command::Logged {
                about,
                index: 0,
                head: LogHead::default(),
            }),
            _ => None,
        });
        run(state, command.unwrap()).unwrap();
    }
    let shard = state.shards().next().unwrap().0;
    let tree = state.members_of_tree(shard);
    let again = Command::MembersHashed {
        shard,
        version: tree.version,
        root: [1; 32],
        count: 2,
        fresh: Fresh::default(),
    };
    run(state, again).unwrap();
    people
}

#[test]
fn a_round_that_nobody_answers_is_abandoned_for_an_hour_and_tried_again() {
    let mut state = State::default();
    trained(&mut state);
    let mut time = now();
    let mut abandoned = None;
    let mut deadlines = 0;
    while abandoned.is_none() {
        for duty in due(&state, time) {
            let command = match duty {
                Duty::OpenRound(run) => Command::OpenRound { run },
                Duty::Deadline(run) => {
                    deadlines += 1;
                    Command::Deadline { run }
                }
                other => unreachable!("{other:?}"),
            };
            let events = decide(&state, command, time).unwrap();
            for event in &events {
                apply(&mut state, event);
                if let Event::RoundAbandoned { until, .. } = event {
                    abandoned = Some(*until);
                }
            }
        }
        time.uptime_ms += 61_000;
        assert!(deadlines < 2000, "never abandoned");
    }
    assert!(deadlines > 100, "not at the first deadline");
    let until = abandoned.unwrap();
    let at = |uptime_ms| Now { uptime_ms, ..time };
    assert!(due(&state, at(until - 1)).is_empty());
    assert!(matches!(
        due(&state, at(until + 1))[..],
        [Duty::OpenRound(_)]
    ));
    let shard = state.shards().next().unwrap().0;
    assert!(state.shard_view(shard).unwrap().abandoned);
}

#[test]
fn where_there_are_lists_a_deletion_without_a_record_of_them_waits_for_the_next_execution() {
    let mut state = State::default();
    let a = operator(&mut state, "a");
    for name in ["ada", "bob"] {
        device(&mut state, name);
        let subject = SubjectId::new(name).unwrap();
        let what = Proposal::Forget {
            requests: vec![DeletionRequest::Erase { subject }],
            asked: 0,
            reference: name.into(),
        };
        run(&mut state, propose(what, a)).unwrap();
    }
    let ids: Vec<u64> = state.to_execute().iter().map(|(id, _)| *id).collect();
    let begin = |ids: &[u64]| {
        let left = ListsLeft {
            held: true,
            recalled: None,
            devices: 0,
            held_until: 0,
        };
        let lists = Some(ids.iter().map(|id| (*id, left)).collect());
        Command::BeginExecution { lists }
    };
    assert!(run(&mut state, begin(&[])).unwrap().is_empty());
    for (at, name) in ["ada", "bob"].into_iter().enumerate() {
        run(&mut state, begin(&ids[at..=at])).unwrap();
        let of = Owner::Person(SubjectId::new(name).unwrap());
        assert_eq!(state.keys_to_destroy(), [of], "nobody else");
        run(&mut state, Command::KeysDestroyed).unwrap();
        assert_eq!(state.deletions()[&ids[at]].keys_destroyed, 1);
    }
    assert!(state.people().is_empty());
}

fn version(no: u32, before: Digest) -> NewCatalogue {
    NewCatalogue {
        version: CatalogueVersion(no),
        digest: digest(&format!("version {no}")),
        before,
        places: 3,
        changes: ValueRef {
            table: Table::Catalogue,
            id: no.to_string(),
            digest: Digest::default(),
        },
    }
}

fn apply_version(no: u32, before: Digest, by: Digest) -> Command {
    Command::ApplyCatalogue {
        founded: version(1, Digest::default()),
        next: version(no, before),
        by,
        line: format!("catalogue version {no}"),
        fresh: Fresh::default(),
    }
}

fn log_all(state: &mut State) -> usize {
    let mut entered = 0;
    for duty in due(state, now()) {
        if let Duty::Log { about, .. } = duty {
            let logged = Command::Logged {
                about,
                index: entered,
                head: LogHead::default(),
            };
            run(state, logged).unwrap();
            entered += 1;
        }
    }
    entered as usize
}

#[test]
fn versions_of_the_catalogue_follow_each_other_and_the_log_has_them() {
    let mut state = State::default();
    let ada = operator(&mut state, "ada");
    log_all(&mut state);
    let first = digest("version 1");
    let refused = [
        apply_version(3, first, ada),
        apply_version(1, first, ada),
        apply_version(2, digest("another"), ada),
    ];
    for command in refused {
        let refused = run(&mut state, command).unwrap_err();
        assert_eq!(refused.code, Refusal::Busy, "{refused}");
    }
    assert_eq!(state.newest_catalogue(), None);
    run(&mut state, apply_version(2, first, ada)).unwrap();
    let all: Vec<u32> = state.catalogues().map(|(no, _)| no.0).collect();
    assert_eq!(all, [1, 2], "the log has where the chain begins");
    // Not before the log has the one before.
    let second = digest("version 2");
    assert!(run(&mut state, apply_version(3, second, ada)).is_err());
    assert_eq!(
        log_all(&mut state),
        3,
        "both manifests, and what the operator did"
    );
    assert!(state.catalogues().all(|(_, r)| r.index.is_some()));
    run(&mut state, apply_version(3, second, ada)).unwrap();
    // All of it is in the slices, and its values are named.
    let mut again = State::default();
    for id in state.slices() {
        again
            .insert(id.clone(), &state.slice(&id).unwrap())
            .unwrap();
    }
    again.finish();
    let records = |s: &State| {
        s.catalogues()
            .map(|(n, r)| (n, r.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(records(&again), records(&state));
    let named = again.values().into_iter();
    assert_eq!(
        named.filter(|(v, _)| v.table == Table::Catalogue).count(),
        3
    );
}
