//! A small valid file of each kind.
#![allow(missing_docs, dead_code, clippy::unwrap_used)]

use lethe_receipt::audit::{self, Bundle, Member, Round};
use lethe_receipt::hex::hex;
use lethe_receipt::lists_audit::ListsBundle;
use lethe_receipt::manifest::Manifest;
use lethe_receipt::merkle::Tree;
use lethe_receipt::note::{Signer, VerifierKey};
use lethe_receipt::policy::Policy;
use lethe_receipt::proof::TlogProof;
use lethe_receipt::receipt::{
    Cosigned, Fate, Opening, Receipt, RecordProof, SignedByTally, issue, logged, verify,
};
use lethe_receipt::records::{Records, record_key};
use lethe_receipt::snapshot::SnapshotStatement;
use lethe_receipt::statement::{
    Cost, Kind, Statement, TRAINING_VERSION, Training, VERSION_WITHOUT_LISTS, canonical,
    commitment, entry,
};
use lethe_receipt::witness::{AddCheckpoint, Seen, Witness};

pub(crate) struct World {
    pub(crate) log: Signer,
    pub(crate) tally: Signer,
    pub(crate) witness: Witness,
    pub(crate) tree: Tree,
    pub(crate) entries: Vec<Vec<u8>>,
    receipt: Receipt,
}

fn training(generation: u32, records: &Records) -> Training {
    Training {
        version: TRAINING_VERSION,
        shard: 2,
        generation,
        root: hex(&records.root()),
        count: records.count(),
        recipe: "ff".into(),
        seed: 1,
        base_model: "00".into(),
        build: "test".into(),
    }
}

fn statement() -> Statement {
    Statement {
        version: VERSION_WITHOUT_LISTS,
        kind: "erase-subject".into(),
        deletion: 1,
        batch: 1,
        commitment: commitment(&[5; 32], "alice", &[], None),
        accepted_at: 1_700_000_000,
        exact_after_ms: 12,
        retrained_after_ms: 3400,
        keys_destroyed: 3,
        affected: vec![],
        untouched: vec![(0, "ee".into())],
        release: 2,
        recipe: "ff".into(),
        base_model: "00".into(),
        build: "test".into(),
        recorded: true,
        forecast: Cost::default(),
        actual: Cost::default(),
        removed: None,
        lists: None,
        epochs: None,
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let log = Signer::from_seed("log.example", &[1; 32]).unwrap();
        let key = record_key(&[8; 32], "alice");
        let others = (0..3).map(|i| (record_key(&[i; 32], "somebody"), [i; 32]));
        let before = Records::new(others.clone().chain([(key, [77; 32])]));
        let after = Records::new(others);
        let was = training(1, &before);
        let is = training(2, &after);
        let s = statement();
        let entries = vec![
            b"other".to_vec(),
            entry(Kind::Training, &[2; 32], &canonical(&was)),
            entry(Kind::Training, &[3; 32], &canonical(&is)),
            entry(Kind::Deletion, &[5; 32], &canonical(&s)),
            b"later".to_vec(),
        ];
        let mut tree = Tree::default();
        for e in &entries {
            tree.push(e);
        }
        let records = RecordProof {
            salt: hex(&[8; 32]),
            before: logged(was, &[2; 32], 1, &tree).unwrap(),
            member: before.member(&key).unwrap(),
            after: logged(is, &[3; 32], 2, &tree).unwrap(),
            fate: Fate::Absent(after.absent(&key).unwrap()),
        };
        let opening = Opening {
            subject: "alice".into(),
            items: vec![],
            from: None,
            salt: [5; 32],
        };
        let none = SignedByTally::default();
        let bytes = issue(s, opening, 3, Some(records), none, &tree, &log).unwrap();
        let receipt = verify(&bytes, log.verifier()).unwrap();
        Self {
            tally: Signer::from_seed("tally.example", &[7; 32]).unwrap(),
            witness: Witness::from_seed("witness.example", &[2; 32]).unwrap(),
            log,
            tree,
            entries,
            receipt,
        }
    }

    pub(crate) fn head(&self) -> String {
        self.log.checkpoint(self.tree.len(), &self.tree.root())
    }

    pub(crate) fn cosigned(&self) -> Cosigned {
        let log = self.log.verifier();
        let signed = self
            .witness
            .cosign(&self.head(), log, &Seen::default(), &[], 5);
        Cosigned {
            size: self.tree.len(),
            checkpoint: signed.unwrap().0,
            witnesses: vec![self.witness.verifier().text()],
        }
    }

    pub(crate) fn receipt(&self) -> Vec<u8> {
        self.receipt.bytes()
    }

    /// The same under a head that a witness has signed.
    pub(crate) fn cosigned_receipt(&self) -> Vec<u8> {
        let under = self.receipt.under(&self.cosigned(), &self.tree);
        under.unwrap().bytes()
    }

    pub(crate) fn bundle(&self) -> Vec<u8> {
        let member = |i: u8| Member {
            key: hex(&[i; 32]),
            data: hex(&[i + 100; 32]),
            slice: 0,
        };
        let records = Records::new((1..3).map(|i| ([i; 32], [i + 100; 32])));
        let training = training(1, &records);
        let mut tree = Tree::default();
        tree.push(b"another");
        tree.push(&entry(Kind::Training, &[9; 32], &canonical(&training)));
        let bundle = Bundle {
            version: audit::VERSION,
            recipe: "{}".into(),
            training: logged(training, &[9; 32], 1, &tree).unwrap(),
            members: vec![member(1), member(2)],
            rounds: vec![Round {
                stage: 1,
                round: 0,
                members: vec![0, 1],
                begun: vec![],
            }],
            adapter: hex(&[5; 32]),
            engine: "e".into(),
            checkpoint: self.log.checkpoint(tree.len(), &tree.root()),
            catalogue: None,
            signed: String::new(),
        };
        canonical(&bundle.signed_by(&self.log).unwrap())
    }

    pub(crate) fn snapshot(&self) -> SnapshotStatement {
        SnapshotStatement {
            number: 7,
            day: 20_000,
            snapshot: [1; 32],
            sums: [2; 32],
            fold: [3; 32],
            people: 2,
            cell: 2,
            changed: 2,
            k: 3,
            noise: None,
        }
    }

    pub(crate) fn note(&self) -> String {
        self.snapshot().sign(&self.tally).unwrap()
    }

    pub(crate) fn lists_bundle(&self) -> Vec<u8> {
        let bundle = ListsBundle {
            version: lethe_receipt::lists_audit::VERSION,
            note: self.note(),
            key: self.tally.verifier().text(),
            salt: hex(&[4; 32]),
            sums_salt: hex(&[5; 32]),
            content: hex(&[6; 32]),
            method: "{}".into(),
            items: vec!["a".into()],
            taken_down: vec![],
            people: ListsBundle::sorted(vec![[9; 32], [8; 32]]),
        };
        bundle.bytes()
    }

    pub(crate) fn manifest(&self) -> String {
        let manifest = Manifest {
            number: 2,
            digest: [7; 32],
            before: [6; 32],
            places: 10,
            at: 1_700_000_000,
        };
        manifest.sign(&self.log).unwrap()
    }

    pub(crate) fn proof(&self) -> String {
        let receipt = self.receipt.under(&self.cosigned(), &self.tree).unwrap();
        TlogProof::of_receipt(&receipt).unwrap().text()
    }

    pub(crate) fn policy(&self) -> String {
        format!(
            "log {}\nwitness W {} https://witness.example/\ngroup G any W\nquorum G\n# trusted\n",
            self.log.verifier().text(),
            self.witness.verifier().text()
        )
    }

    pub(crate) fn read_policy(&self) -> Policy {
        Policy::parse(self.policy().as_bytes()).unwrap()
    }

    pub(crate) fn request(&self) -> String {
        let request = AddCheckpoint {
            old: 3,
            consistency: self.tree.consistency(3).unwrap(),
            checkpoint: self.head(),
        };
        request.text()
    }

    pub(crate) fn key(&self) -> &VerifierKey {
        self.log.verifier()
    }
}
