//! The coordinator's state and every decision, under one lock. Written to the store before it is
//! acknowledged.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use lethe_learn::apa::ErrorRow;
use lethe_learn::partition::{anchors, centre};
use lethe_learn::seed::Seed;
use lethe_model::config::ModelConfig;
use lethe_model::lora::{Adapter, AdapterShape};
use lethe_plan::lineage::{Commitment, checkpoint_key};
use lethe_proto::ids::{Digest, EpochNo, RoundKey, ShardId, SubjectId};
use lethe_proto::limits::PAGE;
use lethe_proto::message::Role;
use lethe_proto::packed::Packed;
use lethe_receipt::merkle::{Tree, leaf_hash};
use lethe_receipt::note::Signer;
use lethe_recipe::{Recipe, model_digest};
use lethe_recsys::data::Item;
use lethe_recsys::features::item_features;
use lethe_store::StoreError;
use lethe_store::head::Floor;
use lethe_store::logfile::LogFile;
use lethe_store::reserve::Reserve;
use lethe_store::sealed::{Batch, Engine, KeyName, SealedStore};
use lethe_store::sled_backend::SledStorage;
use lethe_transport::identity::Authority;

use crate::CoordinatorError;
use crate::config::ServerConfig;
use crate::records::{
    AdminCert, Checkpoint, Counters, DeletionRecord, DeviceRecord, Epoch, ErrorRecord, Foundation,
    Generation, Kept, OperatorRecord, OrderRecord, RatesRecord, ReleaseRecord, RemovedRecord,
    Renewal, RunRecord, SubjectCert, SubjectRecord, TrainState,
};
use crate::run::{Run, initial};
use crate::waiters::Wake;

mod admin;
mod audit;
mod closing;
mod deletion;
mod enrol;
mod evidence;
mod execute;
mod journal;
mod lineage;
mod log;
mod meter;
mod observe;
mod operators;
mod orders;
mod personal;
mod policy;
mod replay;
mod serving;
#[cfg(test)]
mod simulation;
mod training;
pub(crate) mod updates;

pub(crate) use closing::{Closed, Job};
use journal::Journal;
use meter::Meter;
pub(crate) use observe::View;
pub(crate) use replay::Replay;
pub(crate) use serving::Parts;
pub(crate) use training::Work;

/// Everything the coordinator knows.
pub(crate) struct Core {
    pub(crate) config: ServerConfig,
    pub(crate) recipe: Arc<Recipe>,
    pub(crate) recipe_digest: Digest,
    pub(crate) model: Digest,
    hidden: usize,
    pub(crate) shape: Arc<AdapterShape>,
    whole: updates::Whole,
    pub(crate) anchors: Vec<Vec<f32>>,
    pub(crate) authority: Authority,
    store: Arc<SealedStore>,
    log: LogFile,
    journal: Journal,
    reserve: Reserve,
    tree: Tree,
    signer: Signer,
    /// Items of the catalogue: requests may name these.
    items: HashSet<String>,
    subjects: BTreeMap<SubjectId, SubjectRecord>,
    certificates: HashMap<Digest, Role>,
    /// Certificates that replace others when they are first used: new to old.
    renewals: HashMap<Digest, Digest>,
    operators: BTreeMap<Digest, OperatorRecord>,
    /// When each operator may next enter something into the log.
    pace: policy::Pace,
    errors: BTreeMap<SubjectId, ErrorRecord>,
    /// Releases up to this number are recalled.
    pub(crate) recalled: u64,
    /// The rows of `errors` that count now; rebuilt when something changes.
    table: Option<Arc<Vec<ErrorRow>>>,
    epoch: Option<Epoch>,
    counters: Counters,
    runs: Vec<Run>,
    served: Vec<Arc<Adapter>>,
    /// The device parts of `served`, as they are sent; empty until somebody asks.
    parts: Vec<Arc<Packed>>,
    replays: BTreeMap<ShardId, Replay>,
    deletions: BTreeMap<u64, DeletionRecord>,
    /// What devices removed so far, and where the log holds the orders, by deletion.
    removed: BTreeMap<u64, RemovedRecord>,
    orders: BTreeMap<u64, OrderRecord>,
    /// Whose devices wait for the person's consent to an order; they are not told again before they
    /// connect anew.
    unconsented: BTreeSet<SubjectId>,
    devices: BTreeMap<SubjectId, DeviceRecord>,
    releases: BTreeMap<u64, ReleaseRecord>,
    /// Shards whose members may differ from what the log says.
    dirty: BTreeSet<ShardId>,
    /// Accepted deletions that the store has not taken yet, with those who stay.
    unstored: BTreeMap<u64, Vec<Kept>>,
    /// An audit trains this and nothing else.
    audited: Option<audit::Schedule>,
    pub(crate) meter: Meter,
    /// The time, in milliseconds since 1970, that decisions go by: the shell sets it before each
    /// request, the simulation in virtual time. It never goes back.
    unix_ms: u64,
    /// Shards whose rollback has begun and not ended, with the first stage: only while the store
    /// fails.
    rolling: BTreeMap<ShardId, u16>,
    /// A rollback changed what is served, and no release says so yet: only while the store fails.
    unreleased: bool,
    /// Milliseconds since 1970: devices could not answer earlier.
    started_at: u64,
    /// The highest number that a release ever had; outside the data folder, which may come back
    /// from a backup.
    numbers: Floor,
    /// When space was last set aside, or tried to.
    space_checked: u64,
    /// Certificates whose live connections must be closed.
    pub(crate) to_disconnect: Vec<Digest>,
    /// Whose polls have something to find.
    pub(crate) wake: Wake,
    /// A round closed: sessions may be stale.
    pub(crate) closed: bool,
    /// What is to be done without the lock.
    jobs: Vec<Job>,
    /// Duties that failed since the start.
    failures: u64,
    /// When each of them last said why, in milliseconds since the start.
    said: BTreeMap<&'static str, u64>,
}

fn stage_key(shard: ShardId, stage: u16) -> KeyName {
    KeyName::shard(shard.0, &stage.to_string())
}

fn checkpoint_id(shard: ShardId, stage: u16) -> String {
    format!("{:05}/{stage:05}", shard.0)
}

/// What the listener is to do after the core has changed.
pub(crate) struct Effects {
    /// Certificates whose live connections must be closed.
    pub(crate) disconnect: Vec<Digest>,
    /// Whose polls have something to find.
    pub(crate) wake: Wake,
    /// A round closed: sessions may be stale.
    pub(crate) closed: bool,
    /// What is to be done without the lock.
    pub(crate) jobs: Vec<Job>,
}

impl Core {
    /// What is to be done since the last time.
    pub(crate) fn take_effects(&mut self) -> Effects {
        Effects {
            disconnect: std::mem::take(&mut self.to_disconnect),
            wake: std::mem::take(&mut self.wake),
            closed: std::mem::take(&mut self.closed),
            jobs: std::mem::take(&mut self.jobs),
        }
    }

    /// Opens a data folder, or starts an epoch in an empty one; `unix_ms` is the time now.
    pub(crate) fn open(
        config: ServerConfig,
        model: &ModelConfig,
        items: &[Item],
        unix_ms: u64,
    ) -> Result<Self, CoordinatorError> {
        Self::open_on(&SledStorage::engine, config, model, items, unix_ms)
    }

    /// Tells the time. A clock that was set back stands still here until it has caught up.
    pub(crate) fn set_clock(&mut self, unix_ms: u64) {
        self.unix_ms = self.unix_ms.max(unix_ms);
    }

    /// The same, on any database engine.
    fn open_on(
        engine: &Engine,
        config: ServerConfig,
        model: &ModelConfig,
        items: &[Item],
        unix_ms: u64,
    ) -> Result<Self, CoordinatorError> {
        let mut recipe = Recipe::from_toml(&toml::to_string(&config.recipe).unwrap_or_default())?;
        let digest = model_digest(&config.model).map_err(CoordinatorError::ModelFile)?;
        let store = SealedStore::open(engine, &config.data_dir, recipe.shards)?;
        if let Some(f) = store.get::<Foundation>("")? {
            // An epoch that an older version began goes on under that version's rules.
            recipe = recipe.as_stored(&f.recipe);
        }
        let foundation = foundation(&store, &recipe, digest)?;
        let evidence = config.evidence();
        std::fs::create_dir_all(&evidence).map_err(|source| StoreError::Io {
            path: evidence.clone(),
            source,
        })?;
        let log = LogFile::open(&evidence.join("log"))?;
        let (journal, accepted) = Journal::open(&evidence)?;
        let (numbers, used) = Floor::open(&evidence.join("releases"))?;
        let reserve = Reserve::new(&config.data_dir.join("reserve"), config.reserve_mib << 20);
        let tree = Tree::from_leaves(log.entries().iter().map(|e| leaf_hash(e)).collect());
        let signer = Signer::from_seed(&config.log_name, &foundation.log_seed)?;
        let mut features = item_features(items);
        centre(&mut features);
        let anchors = anchors(
            &features,
            recipe.anchors,
            &Seed::from_u64(recipe.seed).derive("anchors", &[]),
        )?;
        let shape = AdapterShape::new(model, &recipe.lora, |_| true);
        let counters = store.get::<Counters>("")?.unwrap_or_default();
        let epoch = store.get::<Epoch>("")?;
        let mut core = Self {
            recipe_digest: recipe.digest(),
            model: digest,
            hidden: model.hidden,
            authority: Authority::restore(foundation.authority)?,
            whole: updates::Whole::new(&recipe, &shape, model.layers),
            shape,
            anchors,
            log,
            journal,
            reserve,
            tree,
            signer,
            subjects: typed_keys(store.all::<SubjectRecord>()?),
            items: items.iter().map(|i| i.id.clone()).collect(),
            certificates: HashMap::new(),
            renewals: HashMap::new(),
            operators: digests(store.all::<OperatorRecord>()?).collect(),
            pace: policy::Pace::default(),
            errors: typed_keys(store.all::<ErrorRecord>()?),
            recalled: 0,
            table: None,
            dirty: (0..recipe.shards).map(|k| ShardId(k as u16)).collect(),
            meter: Meter::new(store.get::<RatesRecord>("")?.unwrap_or_default().0),
            removed: numbered(store.all::<RemovedRecord>()?),
            orders: numbered(store.all::<OrderRecord>()?),
            unconsented: BTreeSet::new(),
            devices: typed_keys(store.all::<DeviceRecord>()?),
            releases: numbered(store.all::<ReleaseRecord>()?),
            epoch,
            counters,
            unstored: BTreeMap::new(),
            audited: None,
            space_checked: 0,
            started_at: unix_ms,
            unix_ms,
            rolling: BTreeMap::new(),
            unreleased: false,
            numbers,
            runs: vec![],
            served: vec![],
            parts: vec![],
            replays: BTreeMap::new(),
            deletions: numbered(store.all::<DeletionRecord>()?),
            to_disconnect: vec![],
            wake: Wake::default(),
            closed: false,
            jobs: vec![],
            failures: 0,
            said: BTreeMap::new(),
            store: Arc::new(store),
            config,
            recipe: Arc::new(recipe),
        };
        core.load_certificates()?;
        core.recalled = core.newest_recalled();
        core.check_clock();
        for shard in 0..core.recipe.shards {
            let run = core.load_run(ShardId(shard as u16))?;
            core.runs.push(run);
            let served = core.newest_checkpoint(ShardId(shard as u16))?.1;
            core.served
                .push(Arc::new(Adapter::from_data(&core.shape, served.theta)?));
        }
        core.quarantine()?;
        core.check_log()?;
        let behind = used.filter(|n| *n > core.counters.release);
        core.counters.release = core.counters.release.max(used.unwrap_or(0));
        core.catch_up(accepted)?;
        core.resume()?;
        core.drop_strays()?;
        // A number that devices may hold already must not come to mean something else.
        if behind == Some(core.counters.release) {
            core.next_release(core.served.clone())?;
        }
        core.set_aside_space();
        if let Err(e) = core.publish_log(0) {
            tracing::error!("the log's files for auditors could not be written: {e}");
        }
        Ok(core)
    }

    /// Shards whose databases were damaged learn again from the beginning, in a new generation.
    fn quarantine(&mut self) -> Result<(), CoordinatorError> {
        let damaged = self.store.quarantined().to_vec();
        for q in &damaged {
            let (shard, why) = (ShardId(q.shard), &q.why);
            tracing::error!(%shard, "its database is damaged ({why}) and was set aside: the shard \
                is trained again from the beginning");
        }
        let shards: Vec<(ShardId, u16)> = damaged.iter().map(|q| (ShardId(q.shard), 1)).collect();
        if !shards.is_empty() {
            self.roll_back(&shards, &[])?;
            self.store.quarantine_handled()?;
        }
        Ok(())
    }

    fn load_certificates(&mut self) -> Result<(), CoordinatorError> {
        for (fingerprint, cert) in digests(self.store.all::<SubjectCert>()?) {
            self.certificates.insert(fingerprint, Role::Subject(cert.0));
        }
        for (new, renewal) in digests(self.store.all::<Renewal>()?) {
            self.renewals.insert(new, renewal.replaces);
        }
        for fingerprint in self.store.keys::<AdminCert>() {
            if let Some(d) = Digest::parse(&fingerprint) {
                self.certificates.insert(d, Role::Admin);
            }
        }
        Ok(())
    }

    /// Says so when this machine's clock is behind what was written by it: deadlines, releases and
    /// certificates go by it.
    fn check_clock(&self) {
        let releases = self.releases.values().map(|r| r.at);
        let deletions = self.deletions.values().map(|d| d.accepted_at / 1000);
        let operators = self.operators.values().map(|o| o.since);
        let newest = releases.chain(deletions).chain(operators).max();
        let now = self.unix_ms / 1000;
        if !self.operators.is_empty() && self.valid_operators().is_empty() {
            tracing::error!(
                "no operator's certificate is valid: `lethe-server recover-admin` invites one"
            );
        }
        if let Some(newest) = newest.filter(|n| *n > now + 3600) {
            tracing::error!(
                now,
                newest,
                "this machine's clock is behind what this data folder was written at: set it, \
                 certificates and deadlines go by it"
            );
        }
    }

    /// The role of a certificate, if it is known and not revoked.
    pub(crate) fn role(&self, certificate: &Digest) -> Option<Role> {
        self.certificates.get(certificate).cloned()
    }

    /// The last stage that is kept of a shard, 0 when none is.
    fn newest_checkpoint(&self, shard: ShardId) -> Result<(u16, TrainState), CoordinatorError> {
        for stage in (1..=self.recipe.slices as u16).rev() {
            if let Some(c) = self.store.get::<Checkpoint>(&checkpoint_id(shard, stage))? {
                return Ok((stage, c.state));
            }
        }
        Ok((0, initial(&self.recipe, &self.shape)))
    }

    /// The run as it was stored, or from the newest checkpoint.
    fn load_run(&mut self, shard: ShardId) -> Result<Run, CoordinatorError> {
        let generation = match self.store.get::<Generation>(&shard.0.to_string())? {
            Some(g) => g.0,
            None => self.next_generation(shard)?,
        };
        let (stage, round, state) = match self.store.get::<RunRecord>(&shard.0.to_string())? {
            Some(r) => (r.stage, r.round, r.state),
            None => {
                let (stage, state) = self.newest_checkpoint(shard)?;
                (stage + 1, 0, state)
            }
        };
        let mut counted = BTreeMap::new();
        if self.recipe.updates.feeds_back() {
            for (_, contributors) in self
                .recorded_rounds(shard)?
                .into_iter()
                .filter(|((s, _), _)| *s == stage)
            {
                counted.extend(contributors);
            }
        }
        let key = RoundKey {
            epoch: EpochNo::FIRST,
            shard,
            generation,
            stage,
            round,
        };
        Ok(Run {
            counted,
            norms: self.recorded_norms(shard)?,
            ..Run::at(key, true, state)
        })
    }

    /// Begins a new generation of a shard: sessions and updates of the old one are refused from now
    /// on.
    fn next_generation(&mut self, shard: ShardId) -> Result<u32, CoordinatorError> {
        let mut counters = self.counters.clone();
        counters.generation += 1;
        let generation = Generation(counters.generation);
        let batch = Batch::new().put(&KeyName::public(), "", &counters)?;
        self.store
            .write(batch.put(&KeyName::public(), &shard.0.to_string(), &generation)?)?;
        self.counters = counters;
        Ok(generation.0)
    }

    fn save_counters(&mut self) -> Result<(), CoordinatorError> {
        Ok(self
            .store
            .write(Batch::new().put(&KeyName::public(), "", &self.counters)?)?)
    }

    fn save_subject(
        &mut self,
        subject: &SubjectId,
        record: SubjectRecord,
    ) -> Result<(), CoordinatorError> {
        let key = KeyName::subject(subject.as_str());
        self.store
            .write(Batch::new().put(&key, subject.as_str(), &record)?)?;
        self.touched(record.shard);
        if let Some(old) = self.subjects.insert(subject.clone(), record) {
            self.touched(old.shard);
        }
        Ok(())
    }

    /// Subjects whose data a shard trains on, with their slices.
    fn members(&self, shard: ShardId) -> impl Iterator<Item = (&SubjectId, &SubjectRecord)> {
        self.subjects.iter().filter(move |(_, r)| {
            r.shard == Some(shard) && !r.idle && !r.restricted && r.samples > 0
        })
    }

    fn lineage(&self, shard: ShardId, stage: u16) -> Digest {
        let of = |(s, r): (&SubjectId, &SubjectRecord)| Commitment {
            slice: r.slice,
            subject: s.clone(),
            data: r.commitment,
        };
        let members: Vec<Commitment> = self.members(shard).map(of).collect();
        checkpoint_key(shard, stage, &members, &self.model, &self.recipe_digest)
    }

    fn served_hashes(&self) -> Vec<Digest> {
        self.served
            .iter()
            .map(|a| Digest::of_values(&a.data))
            .collect()
    }
}

/// Checks that the folder belongs to this recipe and model, or founds the epoch.
fn foundation(
    store: &SealedStore,
    recipe: &Recipe,
    model: Digest,
) -> Result<Foundation, CoordinatorError> {
    if let Some(f) = store.get::<Foundation>("")? {
        let differs = |what, stored: String, given: String| {
            Err(CoordinatorError::OtherEpoch {
                what,
                stored,
                given,
            })
        };
        if f.recipe != recipe.to_json() {
            return differs("recipe", f.recipe, recipe.to_json());
        }
        if f.model != model {
            return differs("base model", f.model.hex(), model.hex());
        }
        return Ok(f);
    }
    let log_seed = lethe_seal::random()?;
    let f = Foundation {
        authority: Authority::create()?.record(),
        log_seed,
        recipe: recipe.to_json(),
        model,
    };
    store.write(Batch::new().put(&KeyName::public(), "", &f)?)?;
    Ok(f)
}

fn typed_keys<T>(rows: Vec<(String, T)>) -> BTreeMap<SubjectId, T> {
    rows.into_iter()
        .filter_map(|(k, v)| Some((SubjectId::new(k).ok()?, v)))
        .collect()
}

fn digests<T>(rows: Vec<(String, T)>) -> impl Iterator<Item = (Digest, T)> {
    rows.into_iter()
        .filter_map(|(k, v)| Some((Digest::parse(&k)?, v)))
}

fn numbered<T>(rows: Vec<(String, T)>) -> BTreeMap<u64, T> {
    rows.into_iter()
        .filter_map(|(k, v)| Some((k.parse().ok()?, v)))
        .collect()
}

/// As many as make a page, at least one.
fn page<T: serde::Serialize>(all: impl Iterator<Item = T>) -> Vec<T> {
    let (mut out, mut bytes) = (vec![], 0);
    for item in all {
        bytes += lethe_proto::codec::to_bytes(&item).map_or(PAGE, |b| b.len());
        if bytes > PAGE && !out.is_empty() {
            break;
        }
        out.push(item);
    }
    out
}
