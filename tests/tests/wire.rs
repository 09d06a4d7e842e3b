//! The bytes of every message are pinned, and no bytes at all can make the decoders panic.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "wire/catalogue.rs"]
mod catalogue;
#[path = "wire/epochs.rs"]
mod epochs;
#[path = "wire/logged.rs"]
mod logged;
#[path = "wire/party.rs"]
mod party;

use std::fmt::Write;

use lethe_proto::admin::{
    ActionState, AdminReply, AdminRequest, AuditedItem, CoordinatorStatus, Coverage, DeletionLists,
    DeletionPhase, DeletionState, DeletionSummary, ListsAuditPage, ListsAuditPlace, ListsLineage,
    ListsReplayed, ListsStatus, OperatorState, ProposalState, ReleaseLineage, Removed, ReplayState,
    Scanned, ShardStatus, SnapshotShown, SubjectLineage,
};
use lethe_proto::codec::{decode_reply, decode_request, encode_reply, encode_request};
use lethe_proto::deletion::{DeletionRequest, Proposal};
use lethe_proto::disks::{KeyDisk, KeyFate};
use lethe_proto::ids::{Digest, EpochNo, RoundKey, ShardId, SubjectId};
use lethe_proto::lists::{
    Contributed, LIKED, ListState, ListTerms, SEEN, ServedTables, SharedEvent, SnapshotReply,
    Watched,
};
use lethe_proto::message::{
    BatchShape, Declined, EraseOrder, Erased, ErrorReport, Orders, Purpose, Refusal, ReleaseInfo,
    Reply, Request, RoundStart, ServedAdapter, Task,
};
use lethe_proto::packed::{Packed, PackedFormat};
use lethe_proto::payload::{Payload, WireFormat};
use lethe_proto::people::{
    HeldShard, MissingPerson, ReplayProgress, ReplayVerdict, RestrictionState, StageOutcome,
    StageProof, Standing,
};
use lethe_proto::tally::{
    self, BringAnswer, Brought, Confided, HeldOf, HeldShown, SealedContribution, SealingTerms,
    SnapshotHead, TallyAudited, TallyDelta, TallyRefolded, TallyRefusal, TallyReply, TallyRequest,
    TallyState, TallyStatus, TallyTables, TallyTerms, WasShownIn,
};

const ROUND: RoundKey = RoundKey {
    epoch: EpochNo(5),
    shard: ShardId(2),
    generation: 3,
    stage: 1,
    round: 4,
};

fn payload(format: WireFormat) -> Payload {
    Payload::encode(&[0.5, -1.0, 2.0, 0.0], 2, format)
}

fn packed(format: PackedFormat) -> Packed {
    Packed::encode(&[0.5, -1.0, 2.0, 0.0], format).unwrap()
}

fn subject() -> SubjectId {
    SubjectId::new("person-1").unwrap()
}

fn audit_place() -> ListsAuditPlace {
    ListsAuditPlace {
        snapshot: 3,
        salt: Digest([1; 32]),
        items: 300,
        people: 70_000,
    }
}

fn deletions() -> Vec<DeletionRequest> {
    vec![
        DeletionRequest::Erase { subject: subject() },
        DeletionRequest::EraseItems {
            subject: subject(),
            items: vec!["i1".into()],
        },
        DeletionRequest::Withdraw {
            subject: subject(),
            from: 1_700_000_000,
        },
        DeletionRequest::Restrict { subject: subject() },
        DeletionRequest::Takedown {
            items: vec!["i2".into()],
        },
    ]
}

fn requests() -> Vec<Request> {
    let shape = || BatchShape {
        prefix: 1,
        lens: vec![1, 300],
    };
    let admin = |r| Request::Admin(r);
    vec![
        Request::Enrol {
            token: "t".into(),
            csr: vec![1, 2],
            subject: Some(subject()),
        },
        Request::Hello {
            build: "b".into(),
            model: Digest([1; 32]),
            minor: 1,
        },
        Request::Join {
            anchor: Some(1),
            samples: 70_000,
            commitment: Digest([2; 32]),
        },
        Request::Poll,
        Request::Forward {
            purpose: Purpose::Train {
                round: ROUND,
                pass: 1,
            },
            shape: shape(),
            hidden: payload(WireFormat::F32),
        },
        Request::Forward {
            purpose: Purpose::Score {
                release: 7,
                omega: vec![0.25, 0.75],
            },
            shape: shape(),
            hidden: payload(WireFormat::F16),
        },
        Request::Backward {
            round: ROUND,
            pass: 2,
            grad: payload(WireFormat::Int8),
            step: true,
        },
        Request::Update {
            round: ROUND,
            delta: packed(PackedFormat::F32),
            loss: 0.5,
            samples: 4,
        },
        Request::Release {
            have: Some(2),
            adapters: vec![Digest([6; 32])],
        },
        Request::Weigh {
            embedding: vec![1.0],
        },
        Request::Errors {
            release: 1,
            rows: vec![ErrorReport {
                sample: 0,
                embedding: vec![0.5],
                errors: vec![(ShardId(1), 0.25)],
            }],
        },
        Request::Erased {
            task: 9,
            outcome: Erased::Done {
                removed: vec![(3, 2)],
            },
        },
        Request::Erased {
            task: 9,
            outcome: Erased::WaitsForConsent,
        },
        Request::Renew { csr: vec![3] },
        Request::Orders { task: 9, seen: 300 },
        Request::Decline {
            round: ROUND,
            why: Declined::Memory,
        },
        Request::Forward {
            purpose: Purpose::Frozen { round: ROUND },
            shape: shape(),
            hidden: payload(WireFormat::F16),
        },
        admin(AdminRequest::Forget {
            requests: deletions(),
            dry_run: true,
            asked: 7,
            reference: "r".into(),
            confirmed: true,
        }),
        admin(AdminRequest::Policy { approvals: Some(2) }),
        admin(AdminRequest::Proposals { after: 1 }),
        admin(AdminRequest::Approve { proposal: 1 }),
        admin(AdminRequest::Cancel { proposal: 1 }),
        admin(AdminRequest::Actions),
        admin(AdminRequest::Deletions { after: 300 }),
        admin(AdminRequest::Audit { shard: ShardId(1) }),
        admin(AdminRequest::LineageOfSubject { subject: subject() }),
        admin(AdminRequest::LineageOfRelease { release: 3 }),
        admin(AdminRequest::Coverage { release: Some(2) }),
        admin(AdminRequest::Scan {
            texts: vec!["t".into()],
        }),
        admin(AdminRequest::Log { from: 300 }),
        admin(AdminRequest::Deletion { id: 1 }),
        admin(AdminRequest::Receipt { id: 1 }),
        admin(AdminRequest::Replay { shard: ShardId(1) }),
        admin(AdminRequest::ReplayStatus { shard: ShardId(1) }),
        admin(AdminRequest::Status),
        admin(AdminRequest::Invite { subject: None }),
        admin(AdminRequest::Revoke { subject: subject() }),
        admin(AdminRequest::Operators),
        admin(AdminRequest::RemoveOperator {
            fingerprint: Digest([5; 32]),
        }),
    ]
}

fn replies() -> Vec<Reply> {
    let task = |task| Reply::Task { task, recalled: 4 };
    let start = RoundStart {
        round: ROUND,
        adapter: packed(PackedFormat::Int8),
        counted: Some(3),
        seed: [5; 32],
        deadline_ms: 1000,
    };
    let deletion = DeletionState {
        id: 1,
        request: deletions().remove(1),
        batch: 2,
        plan: "p".into(),
        waits_for: "w".into(),
        phase: DeletionPhase::Retraining,
        seconds_until_exact: Some(0.5),
        seconds_until_retrained: None,
        removed: Some(Removed {
            events: 3,
            answered: 2,
            silent: 1,
            unconsented: 1,
        }),
        before: vec![Digest([3; 32])],
        now: vec![Digest([4; 32])],
        affected: vec![ShardId(0)],
    };
    let proposal = |what| ProposalState {
        id: 1,
        what,
        at: 2,
        approved: vec![Digest([1; 32])],
        missing: 1,
    };
    let action = ActionState {
        entry: 1,
        at: 2,
        by: Digest([3; 32]),
        what: "w".into(),
    };
    let summary = DeletionSummary {
        id: 1,
        request: deletions().remove(0),
        reference: "r".into(),
        phase: DeletionPhase::Done,
        accepted_at: 5,
        due_at: 6,
        seconds_until_exact: Some(0.5),
        seconds_until_retrained: Some(1.5),
    };
    let lineage = SubjectLineage {
        number: 7,
        place: Some((ShardId(1), 2)),
        idle: "why".into(),
        samples: 8,
        checkpoints: vec![3],
        served: true,
        rounds: 2,
        error_rows: 1,
        open_updates: 0,
        releases: vec![(1, true)],
        deletions: vec![4],
    };
    let release = ReleaseLineage {
        release: 2,
        at: 9,
        recalled: false,
        shards: vec![(Digest([3; 32]), 4)],
        subjects: vec![(subject(), ShardId(0))],
        deleted: 1,
        validation: 2,
    };
    let coverage = Coverage {
        release: 2,
        recalled: true,
        dropped: 1,
        holding: 2,
        never: 3,
    };
    let shard = ShardStatus {
        subjects: 1,
        rounds: (2, 3),
        adapter: Digest([6; 32]),
        done: false,
        quarantined: true,
        losses: vec![Some(0.5), None],
    };
    let status = CoordinatorStatus {
        build: "b".into(),
        subjects: 2,
        started: true,
        release: 1,
        validated: false,
        shards: vec![shard],
        connections: 3,
        bytes: (4, 5),
        log_key: "k".into(),
    };
    let replay = ReplayState {
        shard: ShardId(1),
        rounds: (1, 2),
        hashes: Some((Digest([7; 32]), Digest([8; 32]))),
        seconds: 1.5,
    };
    vec![
        Reply::Enrolled {
            certificate: vec![1],
            subject: Some(subject()),
        },
        Reply::Welcome {
            recipe: "{}".into(),
            anchors: vec![vec![1.0]],
            engine: "e".into(),
            minor: 1,
            log_key: "k".into(),
            recalled: 2,
        },
        Reply::Joined {
            shard: Some(ShardId(1)),
            commitment: Digest([9; 32]),
        },
        task(Task::Wait),
        task(Task::Train(start)),
        task(Task::Validate {
            release: 1,
            shards: vec![ShardId(0)],
        }),
        task(Task::Erase { task: 1 }),
        Reply::Orders(Orders {
            orders: vec![EraseOrder {
                deletion: 3,
                kind: "erase-items".into(),
                subject: "person-1".into(),
                items: vec!["i".into()],
                from: Some(-5),
                salt: [4; 32],
                index: 7,
                proof: vec![[5; 32]],
            }],
            checkpoint: "c".into(),
            consistency: vec![[6; 32]],
        }),
        Reply::Hidden(payload(WireFormat::F16)),
        Reply::Ack,
        Reply::Release(ReleaseInfo {
            release: 1,
            lineage: 2,
            valid_s: 3,
            adapters: vec![
                ServedAdapter::Same(Digest([6; 32])),
                ServedAdapter::New(packed(PackedFormat::Int4)),
            ],
        }),
        Reply::Omega(vec![1.0]),
        Reply::Admin(AdminReply::Planned {
            text: "t".into(),
            json: "{}".into(),
            ids: vec![1, 2],
        }),
        Reply::Admin(AdminReply::Proposed(proposal(Proposal::Forget {
            requests: deletions(),
            asked: 8,
            reference: "r".into(),
        }))),
        Reply::Admin(AdminReply::Proposals(vec![
            proposal(Proposal::Approvals(2)),
            proposal(Proposal::InviteOperator),
            proposal(Proposal::RemoveOperator(Digest([2; 32]))),
        ])),
        Reply::Admin(AdminReply::Policy { approvals: 2 }),
        Reply::Admin(AdminReply::Actions(vec![action])),
        Reply::Admin(AdminReply::Deletion(deletion)),
        Reply::Admin(AdminReply::Deletions(vec![summary])),
        Reply::Admin(AdminReply::Subject(lineage)),
        Reply::Admin(AdminReply::Release(release)),
        Reply::Admin(AdminReply::Coverage(coverage)),
        Reply::Admin(AdminReply::Scanned(Scanned {
            records: 1,
            hits: vec![("t".into(), 2)],
            evidence: 3,
        })),
        Reply::Admin(AdminReply::Log {
            entries: vec![vec![1, 2]],
            checkpoint: "c".into(),
        }),
        Reply::Admin(AdminReply::Receipt("{}".into())),
        Reply::Admin(AdminReply::Audit("{}".into())),
        Reply::Admin(AdminReply::Replay(replay)),
        Reply::Admin(AdminReply::Status(status)),
        Reply::Admin(AdminReply::Invited { token: "t".into() }),
        Reply::Admin(AdminReply::Done),
        Reply::Admin(AdminReply::Operators(vec![OperatorState {
            fingerprint: Digest([1; 32]),
            since: Some(1),
            expires: None,
            you: true,
        }])),
        Reply::Refused {
            code: Refusal::Busy,
            message: "m".into(),
        },
    ]
}

/// From minor version 2 on.
fn list_requests() -> Vec<Request> {
    let event = SharedEvent {
        item: "i1".into(),
        day: 19_000,
        half_stars: 8,
        flags: SEEN | LIKED,
    };
    let admin = Request::Admin;
    vec![
        Request::Contribute(Contributed {
            source: [7; 16],
            whole: true,
            events: vec![event],
        }),
        Request::Uncontribute,
        Request::Snapshot {
            have: 300,
            items: Digest([8; 32]),
        },
        Request::Watch {
            lists: ListState {
                served: Some(3),
                recalled: 2,
            },
        },
        admin(AdminRequest::Lists),
        admin(AdminRequest::ListsOf { deletion: 300 }),
        admin(AdminRequest::ListsLineage { subject: subject() }),
        admin(AdminRequest::ListsReplay),
        admin(AdminRequest::ListsForecast {
            requests: deletions(),
        }),
        admin(AdminRequest::ListsAudit { at: None }),
        admin(AdminRequest::ListsAudit {
            at: Some(audit_place()),
        }),
        admin(AdminRequest::MiddleLearns),
    ]
}

fn served(tables: ServedTables) -> Reply {
    Reply::Snapshot(SnapshotReply {
        terms: Some(ListTerms {
            clip: 200,
            refresh_s: 86_400,
            valid_s: 300,
        }),
        state: ListState {
            served: Some(3),
            recalled: 2,
        },
        key: "k".into(),
        items: vec!["i1".into()],
        tables,
    })
}

fn list_replies() -> Vec<Reply> {
    let shown = |number| SnapshotShown {
        number,
        digest: Digest([number as u8; 32]),
        people: 928,
        bytes: 660_000,
    };
    let status = ListsStatus {
        sums: "embedded".into(),
        people: 943,
        counting: 880,
        waiting: 63,
        cells: 55,
        cells_out: 1,
        out_s: Some(2),
        cell: 16,
        smallest_cell: Some(16),
        changed: 8,
        k: 3,
        served: Some(3),
        snapshot_people: 880,
        recalled: 2,
        snapshot_bytes: 660_000,
        devices: 943,
        valid_s: 300,
        taken_down: 1,
        gives_away: String::new(),
        key: "k".into(),
    };
    let (note, bytes) = ("n".to_owned(), vec![1, 2, 3]);
    let whole = ServedTables::Whole {
        note: note.clone(),
        bytes: bytes.clone(),
    };
    vec![
        served(ServedTables::None),
        served(ServedTables::Same),
        served(whole),
        served(ServedTables::Delta { note, bytes }),
        Reply::Watched(Watched {
            task: Task::Wait,
            recalled: 4,
            lists: ListState::default(),
        }),
        Reply::Admin(AdminReply::Lists(Some(status))),
        Reply::Admin(AdminReply::ListsOf(Some(DeletionLists {
            held: true,
            recalled: Some(shown(2)),
            replaced_by: Some(shown(3)),
            seconds_until_whole: Some(0.5),
            devices: 943,
            bytes: 1 << 40,
            held_until: 1_700_000_000,
        }))),
        Reply::Admin(AdminReply::ListsLineage(ListsLineage {
            contributes: true,
            counts: true,
            cell: 16,
            snapshot: Some(3),
        })),
        Reply::Admin(AdminReply::ListsReplayed(ListsReplayed {
            people: 928,
            digest: Digest([4; 32]),
            memory: Some(true),
            folder: None,
            stated: Some(true),
            snapshot: Some(3),
        })),
        Reply::Admin(AdminReply::ListsForecast("t".into())),
        Reply::Admin(AdminReply::ListsAudit(ListsAuditPage {
            note: "n".into(),
            key: "k".into(),
            salt: Digest([1; 32]),
            sums_salt: Digest([2; 32]),
            content: Digest([3; 32]),
            method: "{}".into(),
            items: vec![AuditedItem {
                id: "i1".into(),
                taken_down: true,
            }],
            people: vec![Digest([4; 32])],
            next: Some(audit_place()),
        })),
        Reply::Admin(AdminReply::MiddleLearns("m".into())),
    ]
}

fn people_requests() -> Vec<Request> {
    vec![
        Request::Standing,
        Request::OrdersSince {
            deletion: 3,
            seen: 9,
        },
        Request::Admin(AdminRequest::LiftRestriction { subject: subject() }),
        Request::Admin(AdminRequest::Restrictions { after: 3 }),
        Request::Admin(AdminRequest::StartReplay {
            shard: ShardId(2),
            without_missing: true,
        }),
        Request::Admin(AdminRequest::ReplayProgress { shard: ShardId(2) }),
        Request::Admin(AdminRequest::HeldShards),
        Request::Admin(AdminRequest::HoldShard { shard: ShardId(2) }),
        Request::Admin(AdminRequest::ReleaseShard { shard: ShardId(2) }),
        Request::Admin(AdminRequest::KeyDisks),
    ]
}

fn replayed() -> ReplayProgress {
    let stage = |stage, outcome| StageProof { stage, outcome };
    ReplayProgress {
        shard: ShardId(2),
        without_missing: true,
        verdict: ReplayVerdict::Partial,
        rounds: (6, 6),
        stages: vec![
            stage(1, StageOutcome::Equal),
            stage(
                2,
                StageOutcome::Different {
                    replayed: Digest([1; 32]),
                    recorded: Digest([2; 32]),
                },
            ),
            stage(3, StageOutcome::Unproven { missing: 1 }),
        ],
        waiting: vec![subject()],
        waiting_in_all: 1,
        missing: vec![MissingPerson {
            number: 7,
            subject: Some(subject()),
            why: "w".into(),
        }],
        missing_in_all: 1,
        hashes: None,
        why: "w".into(),
        seconds: 1.5,
    }
}

fn people_replies() -> Vec<Reply> {
    let proposed = ProposalState {
        id: 2,
        what: Proposal::LiftRestriction(subject()),
        at: 1,
        approved: vec![],
        missing: 1,
    };
    vec![
        Reply::Standing(Standing {
            restricted: true,
            left: 7,
            ordered: 6,
            not_trained: "w".into(),
        }),
        Reply::Admin(AdminReply::Restrictions(vec![RestrictionState {
            deletion: 7,
            subject: subject(),
            since: 1_700_000_000,
            done: true,
            lifted: Some(1_700_000_001),
        }])),
        Reply::Admin(AdminReply::Proposed(proposed.clone())),
        Reply::Admin(AdminReply::Proposals(
            [
                Proposal::CancelProposal(7),
                Proposal::InviteDevice(subject()),
                Proposal::Revoke(subject()),
                Proposal::Scan {
                    texts: vec!["t".into()],
                },
            ]
            .map(|what| ProposalState {
                what,
                ..proposed.clone()
            })
            .to_vec(),
        )),
        Reply::Admin(AdminReply::ReplayProgress(replayed())),
        Reply::Admin(AdminReply::HeldShards(vec![HeldShard {
            epoch: EpochNo(5),
            shard: ShardId(2),
            damaged: true,
            since: 1_700_000_000,
            until: Some(1_700_086_400),
        }])),
        Reply::Admin(AdminReply::KeyDisks(vec![KeyDisk {
            kind: "k".into(),
            fate: KeyFate::Recoverable,
            text: "t".into(),
        }])),
    ]
}

/// What is sealed has bytes that two versions have to agree on, too: a padded contribution, and the
/// tally's answers.
fn sealed_bytes(out: &mut String) {
    let event = SharedEvent {
        item: "i1".into(),
        day: 19_000,
        half_stars: 8,
        flags: SEEN | LIKED,
    };
    let body = Contributed {
        source: [7; 16],
        whole: true,
        events: vec![event],
    };
    let plain = tally::padded(&body).unwrap();
    assert_eq!(tally::unpadded(&plain).unwrap(), body);
    let answers = [
        Confided::Taken,
        Confided::Smaller,
        Confided::TooSoon { wait_s: 300 },
        Confided::Full,
        Confided::Stale,
        Confided::Invalid("w".into()),
        Confided::Busy,
    ];
    let answers = answers.map(|answer| {
        let bytes = answer.to_bytes().unwrap();
        assert_eq!(Confided::from_bytes(&bytes).unwrap(), answer);
        bytes
    });
    for bytes in [plain].into_iter().chain(answers) {
        // Zeros follow, up to the padded length.
        let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
        writeln!(out, "{} {}", bytes.len(), hex(&bytes[..end])).unwrap();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Each message as a line of hexadecimal, after it was read again.
fn all_bytes(out: &mut String, requests: Vec<Request>, replies: Vec<Reply>) {
    for r in requests {
        let bytes = encode_request(&r).unwrap();
        assert_eq!(decode_request(&bytes).unwrap(), r);
        writeln!(out, "{}", hex(&bytes)).unwrap();
    }
    for r in replies {
        let bytes = encode_reply(&r).unwrap();
        assert_eq!(decode_reply(&bytes).unwrap(), r);
        writeln!(out, "{}", hex(&bytes)).unwrap();
    }
}

#[test]
fn golden_bytes_of_every_message() {
    let mut now = String::new();
    all_bytes(&mut now, requests(), replies());
    all_bytes(&mut now, list_requests(), list_replies());
    all_bytes(&mut now, party::tally_requests(), party::tally_replies());
    sealed_bytes(&mut now);
    all_bytes(&mut now, catalogue::requests(), catalogue::replies());
    all_bytes(&mut now, people_requests(), people_replies());
    all_bytes(&mut now, epochs::requests(), epochs::replies());
    all_bytes(&mut now, logged::requests(), logged::replies());
    all_bytes(&mut now, logged::key_requests(), logged::key_replies());
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/golden-bytes.txt");
    if std::env::var_os("LETHE_BLESS").is_some() {
        std::fs::write(file, &now).unwrap();
    }
    let pinned = std::fs::read_to_string(file).unwrap();
    for (i, (got, want)) in now.lines().zip(pinned.lines()).enumerate() {
        assert_eq!(
            got, want,
            "message {i} changed on the wire: raise the protocol version, or undo"
        );
    }
    assert_eq!(now.lines().count(), pinned.lines().count());
}

/// Also a fuzz target: `cargo bolero test -p lethe-tests --test wire decoders_never_panic`.
#[test]
fn decoders_never_panic() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let _ = decode_request(bytes);
        let _ = decode_reply(bytes);
    });
}

/// Starts from valid messages, so that mutations reach deep into the bodies.
#[test]
fn mutated_messages_never_panic() {
    let all = [
        requests(),
        list_requests(),
        party::tally_requests(),
        catalogue::requests(),
        people_requests(),
        epochs::requests(),
        logged::requests(),
    ];
    let valid: Vec<Vec<u8>> = all
        .iter()
        .flatten()
        .map(|r| encode_request(r).unwrap())
        .collect();
    bolero::check!()
        .with_type::<(u8, Vec<(u16, u8)>)>()
        .for_each(|(which, edits)| {
            let mut bytes = valid[*which as usize % valid.len()].clone();
            for (at, value) in edits {
                let i = *at as usize % bytes.len();
                bytes[i] = *value;
            }
            let _ = decode_request(&bytes);
            let _ = decode_reply(&bytes);
        });
}
