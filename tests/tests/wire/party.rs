//! The messages of a tally of its own.

use lethe_proto::ids::{EpochNo, RoundKey, ShardId};
use lethe_proto::masked::{ENVELOPE, Masked, MasksAsked, MasksSummed, SealedSeed};
use lethe_proto::packed::Packed;

use super::*;

pub(super) fn sealed() -> SealedContribution {
    SealedContribution {
        ticket: [1; 32],
        envelope: vec![2, 3],
    }
}

fn round() -> RoundKey {
    RoundKey {
        epoch: EpochNo::FIRST,
        shard: ShardId(2),
        generation: 3,
        stage: 1,
        round: 300,
    }
}

fn masked() -> Packed {
    let update = Masked {
        values: vec![1, u32::MAX],
        seed: vec![9; ENVELOPE],
    };
    update.pack()
}

/// From minor version 3 on.
pub(super) fn tally_requests() -> Vec<Request> {
    let ask = Request::Tally;
    let handles = || vec![[4; 16]];
    vec![
        Request::Terms,
        Request::ContributeSealed(sealed()),
        ask(TallyRequest::Open {
            items: Digest([5; 32]),
            floor: 300,
        }),
        ask(TallyRequest::Tickets { handles: handles() }),
        ask(TallyRequest::Bring {
            sealed: vec![Brought {
                handle: [4; 16],
                sealed: sealed(),
            }],
        }),
        ask(TallyRequest::Leave { handles: handles() }),
        ask(TallyRequest::LeaveOlder {
            leavers: vec![([4; 16], 1_700_000_000)],
        }),
        ask(TallyRequest::TakeDown { items: vec![300] }),
        ask(TallyRequest::Held {
            of: vec![HeldOf::Handle([4; 16]), HeldOf::Items(vec![1, 300])],
        }),
        ask(TallyRequest::Work),
        ask(TallyRequest::State),
        ask(TallyRequest::Tables { number: 3 }),
        ask(TallyRequest::Status),
        ask(TallyRequest::Refold),
        ask(TallyRequest::Search { handles: handles() }),
        ask(TallyRequest::Audited),
        ask(TallyRequest::AuditedPeople {
            number: 3,
            salt: [6; 32],
            from: 70_000,
        }),
        ask(TallyRequest::Vouch { handles: handles() }),
        // From minor version 4 on.
        ask(TallyRequest::Masks(MasksAsked {
            lineage: [5; 8],
            round: round(),
            left: 7,
            values: 30_721,
            seeds: vec![SealedSeed {
                handle: [4; 16],
                envelope: vec![2, 3],
            }],
        })),
        ask(TallyRequest::LeaveSums {
            lineage: [5; 8],
            leavers: vec![([4; 16], 8)],
            left: 8,
        }),
        Request::Update {
            round: round(),
            delta: masked(),
            loss: 0.0,
            samples: 4,
        },
    ]
}

fn tally_state() -> TallyState {
    TallyState {
        served: Some(SnapshotHead {
            number: 3,
            digest: Digest([7; 32]),
            bytes: 660_000,
            people: 928,
        }),
        recalled: 2,
    }
}

pub(super) fn tally_replies() -> Vec<Reply> {
    let says = Reply::Tally;
    let terms = TallyTerms {
        key: "k".into(),
        note: "n".into(),
        clip: 200,
        refresh_s: 86_400,
        k: 3,
        state: tally_state(),
    };
    let status = TallyStatus {
        people: 943,
        counting: 880,
        waiting: 63,
        cells: 55,
        cells_out: 1,
        out_s: Some(2),
        n: 16,
        smallest: Some(16),
        m: 8,
        k: 3,
        taken_down: 1,
        gives_away: "g".into(),
        noise: "n".into(),
        state: TallyState::default(),
    };
    let refolded = TallyRefolded {
        people: 928,
        digest: Digest([8; 32]),
        stated: Some(true),
        memory: Some(true),
        folder: None,
        snapshot: Some(3),
    };
    let audited = TallyAudited {
        number: 3,
        note: "n".into(),
        salt: [6; 32],
        method: "{}".into(),
        content: Digest([9; 32]),
        taken_down: vec![300],
        people: 928,
    };
    let held = HeldShown {
        held: true,
        cell: 16,
        shown: false,
        was_shown: Some(WasShownIn {
            number: 2,
            digest: Digest([7; 32]),
            people: 928,
            at: 1_700_000_000,
        }),
    };
    let tables = TallyTables {
        note: "n".into(),
        bytes: vec![1, 2, 3],
        deltas: vec![TallyDelta {
            from: 2,
            bytes: vec![4],
        }],
    };
    let refused = [
        TallyRefusal::Invalid,
        TallyRefusal::NotOpen,
        TallyRefusal::OtherCatalogue,
        TallyRefusal::Forbidden,
        TallyRefusal::Busy,
        TallyRefusal::Internal,
    ];
    let refused = refused.map(|code| {
        says(TallyReply::Refused {
            code,
            message: "m".into(),
        })
    });
    let mut all = vec![
        Reply::Terms(None),
        Reply::Terms(Some(SealingTerms {
            key: "k".into(),
            note: "n".into(),
            handle: [4; 16],
            ticket: [1; 32],
        })),
        Reply::Confided(vec![1, 2]),
        says(TallyReply::Opened(terms)),
        says(TallyReply::Tickets(vec![[1; 32]])),
        says(TallyReply::Answers(vec![
            BringAnswer::Sealed(vec![1, 2]),
            BringAnswer::Unreadable,
        ])),
        says(TallyReply::Done(tally_state())),
        says(TallyReply::Held(vec![held, HeldShown::default()])),
        says(TallyReply::State(tally_state())),
        says(TallyReply::Tables(Some(tables))),
        says(TallyReply::Tables(None)),
        says(TallyReply::Status(status)),
        says(TallyReply::Refolded(Some(refolded))),
        says(TallyReply::Searched {
            records: 300,
            hits: vec![("t".into(), 2)],
        }),
        says(TallyReply::Audited(Some(audited))),
        says(TallyReply::AuditedPeople(Some(vec![Digest([3; 32])]))),
        says(TallyReply::Vouched("n".into())),
    ];
    all.extend(refused);
    all.push(says(TallyReply::Masks(MasksSummed {
        counted: vec![0, 300],
        least: 16,
        missing: 2,
        why: "w".into(),
        sum: vec![1, 2, 3, 4],
    })));
    all
}
