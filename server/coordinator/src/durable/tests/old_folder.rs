//! The folder of the last build of format 1, migrated.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use lethe_ledger::*;
use lethe_model::config::ModelConfig;
use lethe_model::lora::AdapterShape;
use lethe_proto::admin::DeletionPhase;
use lethe_proto::ids::{Digest, SubjectId};
use lethe_recipe::Recipe;
use lethe_store::sled_backend::SledStorage;
use lethe_store::{Persisted, Record, Storage, StoreError, Write};

use super::super::format1 as old;
use super::super::migrate::{Base, migrate};
use super::super::*;

/// Of the tiny model that the folder was trained with (`tests/src/tiny.rs`).
fn base(recipe: &Recipe, _model: Digest) -> Result<Base, CoordinatorError> {
    let model = ModelConfig {
        layers: 4,
        vocab: 258,
        ..ModelConfig::tiny()
    };
    let shape = AdapterShape::new(&model, &recipe.lora, |_| true);
    Ok(Base {
        initial: Digest::of_values(&recipe.initial(&shape).data),
        anchors: recipe.anchors,
        hidden: model.hidden,
    })
}

fn unpacked() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let zip = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/folder-1.zip");
    zip::ZipArchive::new(File::open(zip).unwrap())
        .unwrap()
        .extract(dir.path())
        .unwrap();
    let folder = dir.path().join("server");
    (dir, folder)
}

fn migrated(folder: &Path) -> bool {
    migrate(&SledStorage::engine, folder, base).unwrap()
}

fn open(folder: &Path) -> Opened {
    Durable::open(&SledStorage::engine, folder)
        .unwrap()
        .unwrap()
}

/// What the old records say, before they go.
struct Before {
    subjects: BTreeMap<String, old::SubjectRecord>,
    certificates: BTreeMap<String, BTreeSet<Digest>>,
    deletions: BTreeMap<u64, old::DeletionRecord>,
    receipts: BTreeMap<u64, Vec<u8>>,
    orders: BTreeMap<u64, u64>,
    releases: BTreeMap<u64, old::ReleaseRecord>,
    counters: old::Counters,
    rounds: BTreeMap<(u16, u16, u16), Vec<SubjectId>>,
    checkpoints: BTreeMap<(u16, u16), old::Checkpoint>,
    trainings: Vec<(String, old::TrainingRecord)>,
    operators: Vec<String>,
    actions: usize,
    proposals: usize,
    errors: BTreeMap<String, old::ErrorRecord>,
    log: Option<old::LogHead>,
    recipe: String,
}

fn all<T: Persisted>(store: &SealedStore) -> BTreeMap<String, T> {
    store.all::<T>().unwrap().into_iter().collect()
}

fn numbered<T: Persisted>(store: &SealedStore) -> BTreeMap<u64, T> {
    let rows = all::<T>(store).into_iter();
    rows.map(|(k, v)| (k.parse().unwrap(), v)).collect()
}

fn numbers(id: &str) -> Vec<u16> {
    id.split('/').map(|n| n.parse().unwrap()).collect()
}

impl Before {
    fn read(folder: &Path) -> Self {
        let store =
            SealedStore::open(&SledStorage::engine, folder, &["0".into(), "1".into()]).unwrap();
        let mut certificates: BTreeMap<String, BTreeSet<Digest>> = BTreeMap::new();
        for (certificate, old::SubjectCert(subject)) in all(&store) {
            let own = certificates.entry(subject.to_string()).or_default();
            own.insert(Digest::parse(&certificate).unwrap());
        }
        let rounds = all::<old::RoundRecord>(&store).into_iter();
        let rounds = rounds.map(|(id, r)| {
            let n = numbers(&id);
            ((n[0], n[1], n[2]), r.contributors)
        });
        let checkpoints = all::<old::Checkpoint>(&store).into_iter();
        let checkpoints = checkpoints.map(|(id, c)| {
            let n = numbers(&id);
            ((n[0], n[1]), c)
        });
        let receipts = numbered::<old::ReceiptRecord>(&store).into_iter();
        let orders = numbered::<old::OrderRecord>(&store).into_iter();
        Self {
            subjects: all(&store),
            certificates,
            deletions: numbered(&store),
            receipts: receipts.map(|(id, r)| (id, r.0)).collect(),
            orders: orders.map(|(id, o)| (id, o.index)).collect(),
            releases: numbered(&store),
            counters: store.get("").unwrap().unwrap(),
            rounds: rounds.collect(),
            checkpoints: checkpoints.collect(),
            trainings: store.all().unwrap(),
            operators: store.keys::<old::AdminCert>(),
            actions: store.keys::<old::ActionRecord>().len(),
            proposals: store.keys::<old::ProposalRecord>().len(),
            errors: all(&store),
            log: store.get("").unwrap(),
            recipe: store.get::<old::Foundation>("").unwrap().unwrap().recipe,
        }
    }

    fn compare(&self, opened: &Opened) {
        let state = &opened.state;
        self.people(opened);
        self.deletions(opened);
        self.shards(opened);
        let core = state.core();
        assert_eq!(core.numbers.release, self.counters.release);
        assert_eq!(core.numbers.deletion, self.counters.deletion);
        assert_eq!(core.numbers.task, self.counters.task);
        assert!(core.numbers.person >= self.counters.subject);
        let operators = core.operators.keys().map(Digest::hex);
        assert_eq!(operators.collect::<Vec<_>>(), self.operators);
        assert!(!self.operators.is_empty());
        assert_eq!(core.serving, Some(EpochNo::FIRST));
        assert_eq!(core.log.entries, self.log.unwrap().entries);
        assert_eq!(core.log.root, self.log.unwrap().root);
        assert_eq!(state.actions().len(), self.actions);
        assert_eq!(state.proposals().len(), self.proposals);
        assert_eq!(state.epoch(EpochNo::FIRST).unwrap().recipe, self.recipe);
        let releases = state.releases().iter().map(|(no, r)| {
            let digests = r.digests();
            let census: Vec<_> = r.shards.iter().map(|s| s.census.clone()).collect();
            (*no, (r.at, digests, census, r.recalled))
        });
        let before = self.releases.iter().map(|(no, r)| {
            let digests = r.shards.iter().map(|s| s.0).collect();
            let census = r.shards.iter().map(|s| s.1.clone()).collect();
            (*no, (r.at, digests, census, r.recalled))
        });
        assert!(releases.eq(before));
        let (no, current) = state.current_release().unwrap();
        assert_eq!(
            (no, current.digests()),
            (self.counters.release, self.counters.served.clone())
        );
    }

    fn people(&self, opened: &Opened) {
        let state = &opened.state;
        let names: BTreeSet<String> = state.people().keys().map(ToString::to_string).collect();
        let known = self.subjects.keys().chain(self.certificates.keys());
        assert_eq!(names, known.cloned().collect());
        assert!(!names.contains("person-5") && !names.is_empty());
        for (subject, person) in state.people() {
            let name = subject.to_string();
            let certificates: BTreeSet<Digest> = person.certificates().copied().collect();
            assert_eq!(Some(&certificates), self.certificates.get(&name));
            for certificate in &certificates {
                assert_eq!(&state.holder(certificate).unwrap().subject, subject);
            }
            let old = &self.subjects[&name];
            let profile = person.profile.as_ref().unwrap();
            let place = &profile.places[&EpochNo::FIRST];
            assert_eq!(person.number.0, old.number);
            assert_eq!((place.shard, place.slice), (old.shard, old.slice));
            assert_eq!(place.commitment, old.commitment);
            assert_eq!((place.samples, place.excluded), (old.samples, old.idle));
            assert_eq!((profile.salt, profile.since), (old.salt, old.since));
            let erase = profile.erase.as_ref().map(|e| (e.task, e.items.clone()));
            let waits = old.erase.as_ref().map(|e| (e.task, e.items.clone()));
            assert_eq!(erase, waits);
            let rows = self.errors.get(&name).map_or(0, |e| e.rows.len());
            let samples = person.errors.as_ref().map_or(0, |e| e.samples.len());
            assert_eq!(samples, rows);
            self.errors_of(opened, &name, person);
        }
        let erases = state.people().values().filter_map(|p| p.profile.as_ref());
        assert_eq!(erases.filter(|p| p.erase.is_some()).count(), 1);
    }

    fn errors_of(&self, opened: &Opened, name: &str, person: &Person) {
        let measured = person.errors.iter().flat_map(|e| &e.shards);
        for (shard, measured) in measured {
            let content = opened.durable.values().get(&measured.value).unwrap();
            let rows: crate::content::ErrorRows =
                lethe_proto::codec::from_bytes(&content.unwrap(), 1 << 20).unwrap();
            for row in rows.0 {
                let old = self.errors[name]
                    .rows
                    .iter()
                    .find(|r| r.sample == row.sample);
                let (adapter, error) = old.unwrap().errors[usize::from(shard.shard.0)].unwrap();
                assert_eq!(measured.samples[&row.sample], adapter);
                assert_eq!(row.error, error);
            }
        }
    }

    fn deletions(&self, opened: &Opened) {
        let state = &opened.state;
        assert_eq!(state.deletions().len(), self.deletions.len());
        for (id, d) in state.deletions() {
            let old = &self.deletions[id];
            assert_eq!((&d.request, d.phase), (&old.request, old.phase));
            assert_eq!(
                (d.salt, d.accepted_at, d.task),
                (old.salt, old.accepted_at, old.task)
            );
            assert_eq!(d.plans, [(EpochNo::FIRST, old.plan.clone())]);
            assert_eq!(d.order_index, self.orders.get(id).copied());
            assert_eq!(d.keys_destroyed, old.keys_destroyed);
            assert_eq!(d.rolled_back.len(), old.rolled_back.len());
            let receipt = d.receipt.as_ref();
            let receipt = receipt.map(|r| opened.durable.values().get(r).unwrap().unwrap());
            assert_eq!(receipt.as_ref(), self.receipts.get(id));
        }
        let phase = |id: u64| state.deletions()[&id].phase;
        assert_eq!(phase(1), DeletionPhase::Done);
        assert_eq!(phase(2), DeletionPhase::WaitingForDevice);
        assert!(self.receipts.contains_key(&1));
    }

    fn shards(&self, opened: &Opened) {
        let state = &opened.state;
        let mut rounds = 0;
        for (key, epoch, shard) in state.shards() {
            assert!(epoch.partition.is_some());
            let run = &shard.run;
            for ((stage, round), contributors) in state.recorded_rounds(key) {
                rounds += 1;
                let names: Vec<SubjectId> = contributors.into_iter().map(|(s, _)| s).collect();
                assert_eq!(names, self.rounds[&(key.shard.0, stage, round)]);
            }
            let (done, _) = run.progress(&epoch.terms);
            assert_eq!(run.rounds.len(), done as usize);
            for (stage, sum) in &run.stages {
                let checkpoint = sum.checkpoint.as_ref().unwrap();
                let old = &self.checkpoints[&(key.shard.0, *stage)];
                assert_eq!(checkpoint.hash, Digest::of_values(&old.state.theta));
                assert_eq!(checkpoint.lineage, old.lineage);
                let content = opened.durable.values().get(&checkpoint.value).unwrap();
                // As bytes: a round in which nobody could take part has no loss.
                let old = lethe_proto::codec::to_bytes(&old.state).unwrap();
                assert!(content.unwrap() == old, "another state");
            }
            let id = key.shard.0.to_string();
            let training = self.trainings.iter().find(|(k, _)| *k == id);
            let logged = shard.logged.as_ref();
            assert_eq!(logged.map(|l| l.index), training.map(|(_, t)| t.index));
            assert_eq!(
                logged.map(|l| &l.training),
                training.map(|(_, t)| &t.training)
            );
        }
        assert_eq!(rounds, self.rounds.len());
        assert!(rounds > 0 && !self.checkpoints.is_empty());
    }
}

fn content(folder: &Path) -> [u8; 32] {
    let opened = open(folder);
    opened.durable.store().content().unwrap()
}

#[test]
fn a_migration_that_is_refused_changes_nothing() {
    let (_dir, folder) = unpacked();
    let mut asked = None;
    let refused = migrate(&SledStorage::engine, &folder, |_, model| {
        asked = Some(model);
        Err(CoordinatorError::invalid("another model"))
    });
    assert!(refused.unwrap_err().to_string().contains("another model"));
    let before = Before::read(&folder);
    assert!(asked.is_some());
    assert!(migrated(&folder));
    before.compare(&open(&folder));
}

#[test]
fn a_folder_of_format_1_says_the_same_in_format_2() {
    let (_dir, folder) = unpacked();
    let before = Before::read(&folder);
    let refused = Durable::open(&SledStorage::engine, &folder).err().unwrap();
    assert!(refused.to_string().contains("format 1"), "{refused}");
    assert!(migrated(&folder));
    let opened = open(&folder);
    assert!(!opened.state.epochs().is_empty() && opened.lost.is_empty());
    before.compare(&opened);
    let store = opened.durable.store();
    assert!(store.keys::<old::SubjectRecord>().is_empty());
    assert!(store.keys::<old::Checkpoint>().is_empty());
    let stages = ["0", "1"].map(|k| KeyName::stage(k, "1"));
    assert_eq!(store.existing(&stages), 0, "the old keys are destroyed");
    drop(opened);
    let now = content(&folder);
    assert!(!migrated(&folder), "once");
    assert_eq!(content(&folder), now);
    goes_on(&folder);
}

/// The ledger takes it over: it writes, takes snapshots, and finds everything again.
fn goes_on(folder: &Path) {
    let mut opened = open(folder);
    let started = Command::Started {
        floor: 0,
        journal: vec![],
        lost: vec![],
        stayed: vec![],
        fresh: Fresh([1; 32]),
    };
    let now = Now {
        unix_ms: 1_900_000_000_000,
        uptime_ms: 0,
    };
    let secret = Digest([4; 32]);
    let subject = SubjectId::new("somebody-new").unwrap();
    for command in [started, Command::Invite { subject, secret }] {
        let events = decide(&opened.state, command, now).unwrap();
        opened.durable.write(&events, vec![]).unwrap();
        events.iter().for_each(|e| apply(&mut opened.state, e));
    }
    let written = opened.durable.rebuild().unwrap();
    assert_eq!(super::difference(&written, &opened.state), None);
    let values = opened.state.values().into_iter();
    for (value, _) in values {
        assert!(opened.durable.values().get(&value).unwrap().is_some());
    }
    // All that a deletion of a whole stage takes along is under that stage's key.
    let (key, _, shard) = opened.state.shards().next().unwrap();
    let owners: Vec<Owner> = shard.run.stage_keys(key, 1).map(Owner::Stage).collect();
    let values: Vec<ValueRef> = shard
        .run
        .values(key, 1)
        .into_iter()
        .map(|v| v.0.clone())
        .collect();
    assert!(!values.is_empty());
    assert_eq!(opened.durable.destroy(&owners, &[]).unwrap(), owners.len());
    for value in values {
        assert_eq!(opened.durable.values().get(&value).unwrap(), None);
    }
}

/// Fails at the n-th write to any database, and at all that come after it, as if the process ended
/// there.
struct Failing(Box<dyn Storage>, Arc<AtomicU32>);

impl Storage for Failing {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.0.get(key)
    }

    fn apply(&self, writes: &[Write]) -> Result<(), StoreError> {
        match self.1.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)) {
            Ok(_) => self.0.apply(writes),
            Err(_) => Err(StoreError::Backend("a crash".into())),
        }
    }

    fn scan(&self) -> Result<Vec<Record>, StoreError> {
        self.0.scan()
    }
}

#[test]
fn a_migration_that_is_cut_off_anywhere_is_finished_by_the_next() {
    let (_dir, folder) = unpacked();
    let before = Before::read(&folder);
    for at in 1.. {
        let (_dir, folder) = unpacked();
        let left = Arc::new(AtomicU32::new(at));
        let counted = left.clone();
        let engine = move |path: &Path| -> Result<Box<dyn Storage>, StoreError> {
            let inner = SledStorage::engine(path)?;
            Ok(Box::new(Failing(inner, counted.clone())))
        };
        if migrate(&engine, &folder, base).is_ok() {
            assert!(at > 20, "so many writes at least");
            break;
        }
        // Unless it was the second copy that missed the very last write.
        migrated(&folder);
        let opened = open(&folder);
        before.compare(&opened);
        let stages = ["0", "1"].map(|k| KeyName::stage(k, "1"));
        assert_eq!(opened.durable.store().existing(&stages), 0, "at {at}");
    }
}
