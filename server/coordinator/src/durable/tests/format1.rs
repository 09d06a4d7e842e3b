//! What the kept folder has not: a round in the middle of a stage, a deletion that was interrupted,
//! renewals, mode `personalized`.

use lethe_ledger::*;
use lethe_plan::{Cost, Forecast, Plan};
use lethe_proto::admin::DeletionPhase;
use lethe_proto::deletion::{DeletionRequest, Proposal};
use lethe_proto::ids::{Digest, ShardId};
use lethe_recipe::Recipe;

use super::super::format1 as old;
use super::super::migrate::{Base, migrate};
use super::super::*;
use super::disk::Disk;
use super::{foundation, person, shard};

const INITIAL: Digest = Digest([7; 32]);

fn key(n: u8) -> String {
    Digest([n; 32]).hex()
}

fn subject_record(number: u32) -> old::SubjectRecord {
    old::SubjectRecord {
        anchor: 1,
        samples: 5,
        commitment: Digest([3; 32]),
        shard: Some(ShardId(0)),
        slice: 0,
        idle: false,
        restricted: false,
        erase: Some(old::PendingErase {
            task: 4,
            items: vec!["heat".into()],
            from: None,
            confirmed: true,
        }),
        number,
        salt: [number as u8; 32],
        since: 77,
    }
}

fn state(step: u32) -> old::TrainState {
    old::TrainState {
        theta: vec![0.5; 3],
        first: vec![0.0; 3],
        second: vec![0.0; 3],
        step,
        losses: vec![0.25],
    }
}

fn takedown() -> old::DeletionRecord {
    let request = DeletionRequest::Takedown {
        items: vec!["heat".into()],
    };
    old::DeletionRecord {
        request: request.clone(),
        batch: 1,
        plan: Plan {
            requests: vec![request],
            steps: vec![],
            untouched: vec![],
            forecast: Forecast {
                shards: vec![],
                cost: Cost::default(),
                everything: Cost::default(),
                degraded: vec![],
            },
        },
        phase: DeletionPhase::Planned,
        requested_at: 1,
        accepted_at: 2,
        exact_after_ms: None,
        retrained_after_ms: None,
        before: vec![],
        rolled_back: vec![],
        keys_destroyed: 0,
        salt: [8; 32],
        task: Some(5),
        proof: None,
        bytes_before: 0,
        statement: None,
        reference: "case 1".into(),
    }
}

fn put<T: lethe_store::Persisted>(batch: Batch, owner: &KeyName, key: &str, row: &T) -> Batch {
    batch.put(owner, key, row).unwrap()
}

/// People: Ada with two certificates of one device, Bob who was only invited, and Eve whose key an
/// interrupted takedown has destroyed.
fn people(batch: Batch) -> Batch {
    let ada = KeyName::subject("ada");
    let mut b = put(batch, &ada, "ada", &subject_record(2));
    b = put(b, &ada, &key(1), &old::SubjectCert(person("ada")));
    b = put(b, &ada, &key(2), &old::SubjectCert(person("ada")));
    b = put(b, &ada, "ada", &old::DeviceRecord { release: 3 });
    let replaces = Digest([1; 32]);
    b = put(b, &KeyName::public(), &key(2), &old::Renewal { replaces });
    let bob = KeyName::subject("bob");
    b = put(b, &bob, &key(9), &old::Invite(person("bob")));
    let kept = old::Kept {
        subject: person("eve"),
        record: subject_record(1),
        certificates: vec![Digest([4; 32])],
    };
    let owner = KeyName::evidence_of("kept/1");
    b = put(b, &owner, "1", &old::KeptRecord(vec![kept]));
    put(b, &KeyName::evidence(1), "1", &takedown())
}

/// Shard 0 after the first round of its first stage, with an update that waits for the second.
fn shard_0(batch: Batch) -> Batch {
    let stage = KeyName::stage("0", "1");
    let run = old::RunRecord {
        stage: 1,
        round: 1,
        state: state(1),
    };
    let mut b = put(batch, &stage, "0", &run);
    let contributors = vec![person("ada"), person("bob")];
    let id = "00000/00001/00000";
    b = put(b, &stage, id, &old::RoundRecord { contributors });
    b = put(b, &stage, id, &old::BegunRecord(vec![0, 0]));
    b = put(b, &stage, id, &old::NormRecord(1.5));
    b = put(b, &stage, "00000/00001", &old::UpdateKey([6; 32]));
    let own = old::PersonalRecord(vec![0.75]);
    b = put(b, &stage, "live/0/1/ada", &own);
    b = put(b, &stage, "replay-9/0/1/ada", &own);
    b = put(b, &KeyName::public(), "0", &old::Generation(11));
    for (id, waits) in [("0/11/1/0/ada", false), ("0/11/1/1/ada", true)] {
        let plain: &[u8] = if waits { b"waits" } else { b"counted" };
        let sealed = lethe_seal::seal(&[6; 32], id.as_bytes(), plain).unwrap();
        b = put(b, &KeyName::subject("ada"), id, &old::UpdateRecord(sealed));
    }
    b
}

fn operators(batch: Batch) -> Batch {
    let public = KeyName::public();
    let mut b = put(batch, &public, &key(5), &old::AdminCert);
    b = put(b, &public, &key(6), &old::AdminCert);
    let record = old::OperatorRecord {
        root: Digest([5; 32]),
        since: 10,
        expires: 20,
    };
    b = put(b, &public, &key(6), &record);
    let replaces = Digest([5; 32]);
    b = put(b, &public, &key(6), &old::Renewal { replaces });
    b = put(b, &public, &key(8), &old::AdminInvite);
    b = put(b, &public, "", &old::Policy { approvals: 2 });
    let proposal = old::ProposalRecord {
        what: Proposal::Approvals(1),
        at: 3,
        approved: vec![Digest([5; 32])],
    };
    b = put(b, &KeyName::evidence_of("proposal/7"), "7", &proposal);
    let action = old::ActionRecord {
        salt: [2; 32],
        action: old::Action {
            at: 1,
            by: Digest([5; 32]),
            what: "export".into(),
        },
    };
    put(b, &public, "40", &action)
}

fn old_folder(disk: &Disk) {
    let store =
        SealedStore::open(&disk.engine(), disk.folder(), &["0".into(), "1".into()]).unwrap();
    let recipe = Recipe {
        shards: 2,
        aggregation: lethe_recipe::Aggregation::Personalized,
        ..Recipe::default()
    };
    let public = KeyName::public();
    let record = old::Foundation {
        authority: foundation().authority,
        log_seed: [3; 32],
        recipe: recipe.to_json(),
        model: Digest([1; 32]),
    };
    let counters = old::Counters {
        release: 3,
        served: vec![Digest([90; 32]), INITIAL],
        generation: 12,
        deletion: 1,
        task: 5,
        subject: 2,
        proposal: 7,
    };
    // What it served was destroyed by a rollback that was interrupted before its own release.
    let release = old::ReleaseRecord {
        at: 5,
        shards: counters
            .served
            .iter()
            .map(|d| (*d, [2u32].into_iter().collect()))
            .collect(),
        validation: [2u32].into_iter().collect(),
        recalled: false,
    };
    let mut b = put(Batch::new(), &public, "", &record);
    b = put(b, &public, "", &counters);
    b = put(b, &public, "3", &release);
    store.write(operators(shard_0(people(b)))).unwrap();
}

fn migrated(disk: &Disk) -> Opened {
    let base = Base {
        initial: INITIAL,
        anchors: 4,
        hidden: 8,
    };
    assert!(migrate(&disk.engine(), disk.folder(), |_, _| Ok(base)).unwrap());
    disk.open()
}

#[test]
fn people_of_an_interrupted_deletion_come_back_and_devices_keep_their_certificates() {
    let disk = Disk::new();
    old_folder(&disk);
    let opened = migrated(&disk);
    let state = &opened.state;
    let ada = state.person(&person("ada")).unwrap();
    let certificates = [
        (Digest([1; 32]), None),
        (Digest([2; 32]), Some(Digest([1; 32]))),
    ];
    assert_eq!(ada.devices.len(), 1);
    let device = &ada.devices[&Digest([1; 32])];
    assert_eq!(device.certificates, certificates.into_iter().collect());
    assert_eq!((device.release, device.confirmed), (3, Some(4)));
    assert!(ada.all_confirmed(4));
    let bob = state.person(&person("bob")).unwrap();
    assert_eq!(bob.number, PersonNo(3), "the next");
    assert!(bob.profile.is_none() && bob.invitations.contains(&Digest([9; 32])));
    let eve = state.person(&person("eve")).unwrap();
    assert_eq!(eve.number, PersonNo(1));
    assert!(state.holder(&Digest([4; 32])).is_some());
    assert_eq!(state.core().numbers.person, 3);
    let kept = [KeyName::evidence_of("kept/1")];
    assert_eq!(opened.durable.store.existing(&kept), 0);
    assert!(state.unexecuted(), "it is executed again");
    assert_eq!(state.deletions()[&1].reference, "case 1");
}

#[test]
fn a_stage_goes_on_in_its_middle_under_a_fresh_key() {
    let disk = Disk::new();
    old_folder(&disk);
    let opened = migrated(&disk);
    let (state, values) = (&opened.state, opened.durable.values());
    let run = &state.shard(shard(1, 0)).unwrap().run;
    assert_eq!((run.generation, run.stage, run.round), (11, 1, 1));
    let sum = RoundSum {
        loss: Some(0.25),
        norm: Some(1.5),
        clients: 2,
    };
    assert_eq!(run.rounds, [sum]);
    let content = values.get(run.state.as_ref().unwrap()).unwrap().unwrap();
    assert!(content == lethe_proto::codec::to_bytes(&self::state(1)).unwrap());
    let stage = run.stage_key(shard(1, 0), 1).unwrap();
    let held = state.stage(&stage).unwrap();
    let waits = &held.stored[&(person("ada"), 1)];
    assert_eq!(held.stored.len(), 1, "what has counted is gone");
    assert_eq!(values.get(waits).unwrap().as_deref(), Some(&b"waits"[..]));
    let own = &held.personal[&person("ada")];
    assert!(values.get(own).unwrap().is_some());
    let mut durable = opened.durable;
    assert_eq!(durable.destroy(&[Owner::Stage(stage)], &[]).unwrap(), 1);
    assert_eq!(values.get(waits).unwrap(), None);
    assert_eq!(values.get(own).unwrap(), None);
}

#[test]
fn what_is_public_is_the_same_and_a_release_without_its_adapters_is_withdrawn() {
    let disk = Disk::new();
    old_folder(&disk);
    let opened = migrated(&disk);
    let state = &opened.state;
    let core = state.core();
    assert_eq!(core.approvals, 2);
    assert!(core.operator_invitations.contains(&Digest([8; 32])));
    let [old, new] = [5, 6].map(|n| core.operators[&Digest([n; 32])]);
    assert_eq!(
        (old.root, old.since, old.replaces),
        (Digest([5; 32]), None, None)
    );
    assert_eq!((new.root, new.since), (Digest([5; 32]), Some(10)));
    assert_eq!(new.replaces, Some(Digest([5; 32])));
    assert_eq!(state.proposals()[&7].what, Proposal::Approvals(1));
    assert_eq!(state.actions()[&1].index, Some(40));
    assert_eq!(core.numbers.generation, 14, "shard 1 had none yet");
    assert!(state.releases()[&3].recalled && core.numbers.release == 3);
    let terms = &state.epoch(EpochNo::FIRST).unwrap().terms;
    assert_eq!((terms.shards, terms.hidden), (2, 8));
    assert_eq!(terms.aggregation, Aggregation::Personalized);
}
