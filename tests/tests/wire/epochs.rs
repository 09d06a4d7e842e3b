//! The messages about epochs that follow one another, from minor version 5 on.

use lethe_proto::epochs::{
    Awaited, EpochCost, EpochInfo, EpochPhase, EpochPlan, EpochState, EpochStates, JoinedEpoch,
    Lacks, RecipeChange, ServedRelease, TrainsFrom,
};

use super::*;

const SECOND: EpochNo = EpochNo(2);

pub(super) fn requests() -> Vec<Request> {
    let admin = Request::Admin;
    let lacks = |lacks| Request::Lacks {
        epoch: SECOND,
        lacks,
    };
    vec![
        Request::Epochs,
        Request::JoinEpoch {
            epoch: SECOND,
            anchor: Some(1),
            samples: 300,
            commitment: Digest([1; 32]),
        },
        Request::Await {
            lists: ListState::default(),
            newest: SECOND,
        },
        lacks(Lacks::Model),
        lacks(Lacks::Layers),
        lacks(Lacks::Arithmetic),
        lacks(Lacks::Recipe),
        Request::Served {
            have: Some(7),
            adapters: vec![Digest([2; 32])],
        },
        admin(AdminRequest::EpochStart {
            recipe: Some("rounds = 2".into()),
            model: Some("/models/m".into()),
            dry_run: true,
        }),
        admin(AdminRequest::EpochCancel { epoch: SECOND }),
        admin(AdminRequest::Epochs),
    ]
}

fn state() -> EpochState {
    EpochState {
        no: SECOND,
        phase: EpochPhase::Joining,
        recipe: Digest([3; 32]),
        model: Digest([4; 32]),
        founded: 300,
        began: None,
        served: Some(301),
        ended: None,
        joined: 5,
        trains: 4,
        enough: 9,
        joins_until: Some(400),
        rounds: (1, 8),
        lacks: vec![(Lacks::Layers, 2)],
    }
}

pub(super) fn replies() -> Vec<Reply> {
    let trains = [
        TrainsFrom::Now { epoch: SECOND },
        TrainsFrom::WithEpoch {
            epoch: SECOND,
            at_latest: Some(400),
        },
        TrainsFrom::NextEpoch { at: None },
        TrainsFrom::Restricted,
        TrainsFrom::NoSamples,
    ];
    let joined = trains.map(|trains| {
        Reply::JoinedEpoch(JoinedEpoch {
            shard: Some(ShardId(1)),
            commitment: Digest([1; 32]),
            trains,
        })
    });
    let mut all = vec![
        Reply::Epochs(vec![EpochInfo {
            no: SECOND,
            recipe: "{}".into(),
            anchors: vec![vec![0.5, -1.0]],
            model: Digest([4; 32]),
            begun: true,
            serving: false,
        }]),
        Reply::Awaited(Awaited {
            watched: Watched {
                task: Task::Wait,
                recalled: 3,
                lists: ListState::default(),
            },
            newest: SECOND,
        }),
        Reply::Served(ServedRelease {
            epoch: SECOND,
            release: ReleaseInfo {
                release: 7,
                lineage: 1,
                valid_s: 60,
                adapters: vec![ServedAdapter::Same(Digest([2; 32]))],
            },
        }),
        Reply::Admin(AdminReply::EpochPlanned(EpochPlan {
            founded: Some(SECOND),
            changes: vec![RecipeChange {
                key: "split.k_in".into(),
                from: "1".into(),
                to: "2".into(),
                device: true,
            }],
            model: Some(Digest([4; 32])),
            cost: EpochCost {
                rounds: 8,
                client_rounds: 24,
                samples: 48,
                bytes: Some(1000),
                seconds: None,
            },
            joins_until: 400,
        })),
        Reply::Admin(AdminReply::Epochs(EpochStates {
            epochs: vec![state()],
            newcomers: 1,
            people: 6,
            next: Some(500),
            new_people: Some(0.25),
        })),
    ];
    all.extend(joined);
    all
}
