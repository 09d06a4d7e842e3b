//! From folders and a configuration to a shell.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use lethe_learn::seed::Seed;
use lethe_ledger::{CatalogueVersion, EpochNo, Mode, Rules, State};
use lethe_model::config::ModelConfig;
use lethe_proto::ids::Digest;
use lethe_recipe::Recipe;
use lethe_recsys::data::Item;
use lethe_store::StoreError;
use lethe_store::keys::{Folders, Keys, make_private};
use lethe_store::reserve::Reserve;
use lethe_store::sealed::{Engine, SharedEngine};

use super::{BaseModel, Clock, Kit, Kits, Materials, Parts, Shell};
use crate::CoordinatorError;
use crate::catalogue::Catalogues;
use crate::config::ServerConfig;
use crate::durable::{Base, Durable, Foundation, ListsFoundation, Opened, migrate};
use crate::evidence::{BUILD, Evidence, succession};
use crate::lists::{Catalogue, Line, Link, Lists, Sums, TallyConfig, check_mode};

/// What a shell is opened with.
pub(crate) struct Opening<'a> {
    pub(crate) config: &'a ServerConfig,
    pub(crate) recipe: Recipe,
    /// The base model that is configured.
    pub(crate) model: Digest,
    pub(crate) model_config: &'a ModelConfig,
    pub(crate) items: &'a [Item],
    /// Reads another base model, which an epoch was started with.
    pub(crate) other_model: &'a ModelOf,
    /// How a tally of its own is reached.
    pub(crate) line: &'a LineOf,
    /// What people are known by in the lists, and cells, follow from it; none: they are drawn.
    pub(crate) seed: Option<Seed>,
}

/// Reads a base model from a file or folder.
pub(crate) type ModelOf = dyn Fn(&Path) -> Result<BaseModel, CoordinatorError>;

/// Makes the way to a tally of its own, from its configuration, the data folder and its keys.
pub(crate) type LineOf =
    dyn Fn(&TallyConfig, &Path, &Keys) -> Result<Box<dyn Line>, CoordinatorError>;

/// The way over QUIC.
pub(crate) fn over_quic(
    config: &TallyConfig,
    data_dir: &Path,
    keys: &Keys,
) -> Result<Box<dyn Line>, CoordinatorError> {
    Ok(Box::new(Link::open(config, data_dir, keys)?))
}

/// Holds a folder, which is made if it is not there.
fn lock(folder: &Path, name: &str) -> Result<File, CoordinatorError> {
    let held = lethe_store::hold(folder, name, "coordinator")?;
    held.ok_or_else(|| CoordinatorError::InUse {
        folder: folder.to_owned(),
    })
}

/// The disk has no room.
fn is_full(why: &CoordinatorError) -> bool {
    why.to_string().contains("No space left")
}

impl Opening<'_> {
    fn rules(&self, catalogue: &Catalogues) -> Rules {
        Rules {
            min_subjects: self.config.min_subjects,
            erase_wait_s: self.config.erase_wait_s,
            deadline_days: self.config.deadline_days,
            release_hours: self.config.release_hours,
            mode: Mode::Serve,
            build: BUILD.into(),
            quarantine_ms: self.config.quarantine_hours.saturating_mul(3_600_000),
            erase_window_ms: self.config.erase_window_s.saturating_mul(1000),
            items: catalogue.names(),
            roll: self.config.roll.rule(),
            ..Rules::default()
        }
    }

    /// What is in the folder; a folder of format 1 is migrated first.
    fn durable(&self, engine: &Engine, keys: &Keys) -> Result<Opened, CoordinatorError> {
        let folders = Folders {
            records: self.config.data_dir.clone(),
            keys: keys.clone(),
        };
        let opened = match Durable::open(engine, folders.clone()) {
            Err(CoordinatorError::Store(StoreError::Format { found: 1, .. })) => {
                migrate(engine, folders.clone(), |recipe, model| {
                    self.base(recipe, model)
                })?;
                Durable::open(engine, folders.clone())?
            }
            opened => opened?,
        };
        match opened {
            Some(opened) => Ok(opened),
            None => {
                // A first start that was cut off has made it.
                let foundation = match Foundation::of(keys)? {
                    Some(known) => known,
                    None => Foundation::create()?,
                };
                Durable::found(engine, folders, foundation, self.recipe.shards)
            }
        }
    }

    /// What a folder of format 1 does not say of the model that it is about.
    fn base(&self, recipe: &Recipe, model: Digest) -> Result<Base, CoordinatorError> {
        self.check_model(EpochNo::FIRST, model)?;
        let version = CatalogueVersion(1);
        let kit = Kit::new(recipe.clone(), self.configured(), self.items, version)?;
        Ok(Base {
            initial: Digest::of_values(&kit.initial.theta),
            anchors: kit.anchors.len(),
            hidden: self.model_config.hidden,
        })
    }

    fn check_model(&self, epoch: EpochNo, stored: Digest) -> Result<(), CoordinatorError> {
        if stored == self.model {
            return Ok(());
        }
        Err(CoordinatorError::OtherModel {
            epoch: epoch.0,
            stored: stored.hex(),
            given: self.model.hex(),
        })
    }

    fn configured(&self) -> BaseModel {
        BaseModel {
            digest: self.model,
            config: self.model_config.clone(),
            path: None,
        }
    }

    /// The base model of an epoch: the configured one, or the one that the epoch was started with.
    fn base_of(&self, no: EpochNo, state: &State) -> Result<BaseModel, CoordinatorError> {
        let stored = state.epoch(no).map_or(self.model, |e| e.model);
        let given = state.life(no).and_then(|l| l.base.as_ref());
        let Some(path) = given.filter(|_| stored != self.model) else {
            self.check_model(no, stored)?;
            return Ok(self.configured());
        };
        let base = (self.other_model)(Path::new(path))?;
        if base.digest != stored {
            return Err(CoordinatorError::OtherModel {
                epoch: no.0,
                stored: stored.hex(),
                given: format!("{} (in {path})", base.digest.hex()),
            });
        }
        Ok(base)
    }

    /// The kits of the epochs that are alive. An epoch goes on under the recipe that it was founded
    /// with, whatever the configuration says now.
    fn kits(&self, state: &State, catalogue: &Catalogues) -> Result<Kits, CoordinatorError> {
        let mut kits = BTreeMap::new();
        for (no, epoch) in state.living() {
            let base = self.base_of(no, state)?;
            let recipe = Recipe::from_json(&epoch.recipe)?;
            if recipe.digest() != self.recipe.digest() {
                tracing::warn!(
                    "the recipe in the configuration is not that of {no}, which goes on as it was \
                     founded; `lethe-admin epoch start --recipe FILE` starts one with another"
                );
            }
            let items = catalogue.items_at(epoch.catalogue);
            let kit = Kit::new(recipe, base, &items, epoch.catalogue)?;
            kits.insert(no, Arc::new(kit));
        }
        Ok(kits)
    }

    /// Opens the folders, founding the first epoch where there is none. The clock is what decisions
    /// go by.
    pub(crate) fn open(
        &self,
        shared: &SharedEngine,
        clock: Clock,
    ) -> Result<Arc<Shell>, CoordinatorError> {
        let engine: &Engine = shared.as_ref();
        // Before anything is read: keys are written when a folder is opened.
        let evidence = self.config.evidence();
        make_private(&self.config.keys_dir())?;
        let locks = vec![
            lock(&self.config.data_dir, "lock")?,
            lock(&evidence, "lock-evidence")?,
            lock(&self.config.keys_dir(), "lock-keys")?,
        ];
        let keys = Keys::open(&self.config.keys, &self.config.data_dir)?;
        let reserve = self.config.data_dir.join("reserve");
        let reserve = Reserve::new(&reserve, self.config.reserve_mib << 20);
        let Opened {
            durable,
            state,
            foundation,
            lost,
            ..
        } = match self.durable(engine, &keys) {
            Err(e) if is_full(&e) && reserve.release() => {
                tracing::warn!(
                    "{e}; the space that was set aside for deletions is used now: make room"
                );
                self.durable(engine, &keys)?
            }
            opened => opened?,
        };
        let folder = self.config.evidence();
        let (mut evidence, outside) =
            Evidence::open(&folder, &self.config.log_name, &foundation.log_seed)?;
        evidence.remember(succession::changes(&keys)?)?;
        evidence.check(&state.core().log, &folder)?;
        let folder = &self.config.catalogue;
        let catalogue = Catalogues::open(&durable.values(), &state, folder, self.items)?;
        let mut kits = self.kits(&state, &catalogue)?;
        let founds = kits.is_empty();
        if founds {
            let version = catalogue.newest();
            let items = catalogue.items_at(version);
            let kit = Kit::new(self.recipe.clone(), self.configured(), &items, version)?;
            kits.insert(EpochNo::FIRST, Arc::new(kit));
        }
        let masked = kits.iter().find(|(_, kit)| kit.recipe.grid().is_some());
        // The configured recipe may be that of an epoch which is started later.
        let masks = masked.is_some() || self.recipe.grid().is_some();
        let lists = self.lists(engine, &keys, &durable, &clock, masks, &catalogue)?;
        if let Some(masked) = masked
            && !lists.as_ref().is_some_and(Lists::is_sealed)
        {
            return Err(CoordinatorError::MasksNeedTally { epoch: *masked.0 });
        }
        let mut rules = self.rules(&catalogue);
        rules.lists_key = lists.as_ref().map(|l| l.key()).unwrap_or_default();
        let shell = Shell::start(Parts {
            lists,
            durable,
            state,
            evidence,
            keys,
            reserve,
            rules,
            kits,
            materials: Materials {
                configured: self.configured(),
                masks,
                engine: shared.clone(),
            },
            catalogue,
            outside,
            lost,
            clock,
            locks,
        })?;
        if founds {
            self.found(&shell)?;
        }
        shell.set_aside_space();
        if let Err(e) = shell.remove_databases() {
            tracing::warn!("databases of epochs that have ended stay for now: {e}");
        }
        Ok(shell)
    }

    /// The tally of the lists: where the configuration asks for it, or people contributed before.
    fn lists(
        &self,
        engine: &Engine,
        keys: &Keys,
        durable: &Durable,
        clock: &Clock,
        masks: bool,
        catalogues: &Catalogues,
    ) -> Result<Option<Lists>, CoordinatorError> {
        let serves = self.config.sums != Sums::Off;
        let known = durable.lists()?;
        let party = self.config.party()?;
        if known.is_some() {
            check_mode(
                &self.config.data_dir,
                self.config.sums,
                durable.lists_apart()?,
            )?;
        }
        if known.is_none() && !serves {
            return Ok(None);
        }
        let versions = catalogues.versions();
        let catalogue = Catalogue::of_entries(versions.entries());
        // Versions that were applied follow each other: their digests say so.
        let configured = versions.newest() == 1;
        if let Some(known) = known.as_ref().filter(|_| configured) {
            catalogue.follows(known.items as usize, known.catalogue)?;
        }
        let handles = match &known {
            Some(known) => known.handles,
            None => match &self.seed {
                Some(seed) => seed.derive("handles", &[]).0,
                None => lethe_seal::random()?,
            },
        };
        let foundation = ListsFoundation {
            handles,
            items: catalogue.ids().len() as u64,
            catalogue: catalogue.digest(),
        };
        durable.keep_lists(&foundation, party.is_some())?;
        let content = catalogues.content(&versions);
        let lists = Lists::open(crate::lists::Opening {
            engine,
            data_dir: &self.config.data_dir,
            keys,
            evidence: &self.config.evidence(),
            config: self.config.lists.clone(),
            serves,
            release_hours: self.config.release_hours,
            line: match party {
                Some(party) => Some((self.line)(party, &self.config.data_dir, keys)?),
                None => None,
            },
            masks,
            foundation,
            versions,
            content,
            now: clock.now().unix_ms / 1000,
            seed: self.seed.as_ref().map(|seed| seed.derive("tally", &[])),
        })?;
        Ok(Some(lists))
    }

    /// The first epoch of a folder.
    fn found(&self, shell: &Shell) -> Result<(), CoordinatorError> {
        let command = shell.kit(EpochNo::FIRST)?.founds(None);
        shell.execute(command, vec![]).map(drop)
    }
}
