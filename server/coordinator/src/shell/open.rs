//! From folders and a configuration to a shell.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use lethe_ledger::{CatalogueVersion, Command, EpochNo, Mode, Rules, State};
use lethe_model::config::ModelConfig;
use lethe_proto::ids::Digest;
use lethe_recipe::Recipe;
use lethe_recsys::data::{Item, content_of};
use lethe_store::StoreError;
use lethe_store::reserve::Reserve;
use lethe_store::sealed::Engine;

use super::{Clock, Kit, Kits, Parts, Shell};
use crate::CoordinatorError;
use crate::config::ServerConfig;
use crate::durable::{Base, Durable, Foundation, ListsFoundation, Opened, migrate};
use crate::evidence::{BUILD, Evidence};
use crate::lists::{Catalogue, Line, Link, Lists, Sums, TallyConfig, check_mode};
use crate::terms::terms;

/// What a shell is opened with.
pub(crate) struct Opening<'a> {
    pub(crate) config: &'a ServerConfig,
    pub(crate) recipe: Recipe,
    /// The base model that is loaded.
    pub(crate) model: Digest,
    pub(crate) model_config: &'a ModelConfig,
    pub(crate) items: &'a [Item],
    /// How a tally of its own is reached.
    pub(crate) line: &'a LineOf,
}

/// Makes the way to a tally of its own, from its configuration and the data folder.
pub(crate) type LineOf = dyn Fn(&TallyConfig, &Path) -> Result<Box<dyn Line>, CoordinatorError>;

/// The way over QUIC.
pub(crate) fn over_quic(
    config: &TallyConfig,
    data_dir: &Path,
) -> Result<Box<dyn Line>, CoordinatorError> {
    Ok(Box::new(Link::open(config, data_dir)?))
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
    fn rules(&self) -> Rules {
        Rules {
            min_subjects: self.config.min_subjects,
            erase_wait_s: self.config.erase_wait_s,
            deadline_days: self.config.deadline_days,
            release_hours: self.config.release_hours,
            mode: Mode::Serve,
            build: BUILD.into(),
            quarantine_ms: self.config.quarantine_hours.saturating_mul(3_600_000),
            erase_window_ms: self.config.erase_window_s.saturating_mul(1000),
            items: Arc::new(self.items.iter().map(|i| i.id.clone()).collect()),
            ..Rules::default()
        }
    }

    /// What is in the folder; a folder of format 1 is migrated first.
    fn durable(&self, engine: &Engine) -> Result<Opened, CoordinatorError> {
        let folder = &self.config.data_dir;
        let opened = match Durable::open(engine, folder) {
            Err(CoordinatorError::Store(StoreError::Format { found: 1, .. })) => {
                migrate(engine, folder, |recipe, model| self.base(recipe, model))?;
                Durable::open(engine, folder)?
            }
            opened => opened?,
        };
        match opened {
            Some(opened) => Ok(opened),
            None => {
                let foundation = Foundation::create()?;
                Durable::found(engine, folder, foundation, self.recipe.shards)
            }
        }
    }

    /// What a folder of format 1 does not say of the model that it is about.
    fn base(&self, recipe: &Recipe, model: Digest) -> Result<Base, CoordinatorError> {
        self.check_model(EpochNo::FIRST, model)?;
        let kit = Kit::new(recipe.clone(), self.model_config, self.items)?;
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

    /// The kits of the epochs that are there. An epoch goes on under the recipe that it was founded
    /// with, whatever the configuration says now.
    fn kits(&self, state: &State) -> Result<Kits, CoordinatorError> {
        let mut kits = BTreeMap::new();
        for (no, epoch) in state.epochs() {
            self.check_model(*no, epoch.model)?;
            let recipe = Recipe::from_json(&epoch.recipe)?;
            if recipe.digest() != self.recipe.digest() {
                tracing::warn!(
                    "the recipe in the configuration is not that of {no}, which goes on as it was \
                     founded"
                );
            }
            let kit = Kit::new(recipe, self.model_config, self.items)?;
            kits.insert(*no, Arc::new(kit));
        }
        Ok(kits)
    }

    /// Opens the folders, founding the first epoch where there is none. The clock is what decisions
    /// go by.
    pub(crate) fn open(
        &self,
        engine: &Engine,
        clock: Clock,
    ) -> Result<(Arc<Shell>, Foundation), CoordinatorError> {
        // Before anything is read: keys are written when a folder is opened.
        let evidence = self.config.evidence();
        let locks = vec![
            lock(&self.config.data_dir, "lock")?,
            lock(&evidence, "lock-evidence")?,
        ];
        let reserve = self.config.data_dir.join("reserve");
        let reserve = Reserve::new(&reserve, self.config.reserve_mib << 20);
        let Opened {
            durable,
            state,
            foundation,
            lost,
            ..
        } = match self.durable(engine) {
            Err(e) if is_full(&e) && reserve.release() => {
                tracing::warn!(
                    "{e}; the space that was set aside for deletions is used now: make room"
                );
                self.durable(engine)?
            }
            opened => opened?,
        };
        let folder = self.config.evidence();
        let (evidence, outside) =
            Evidence::open(&folder, &self.config.log_name, &foundation.log_seed)?;
        evidence.check(&state.core().log, &folder)?;
        let mut kits = self.kits(&state)?;
        let founds = kits.is_empty();
        if founds {
            let kit = Kit::new(self.recipe.clone(), self.model_config, self.items)?;
            kits.insert(EpochNo::FIRST, Arc::new(kit));
        }
        let masked = kits.iter().find(|(_, kit)| kit.recipe.grid().is_some());
        let lists = self.lists(engine, &durable, &clock, masked.is_some())?;
        if let Some(masked) = masked
            && !lists.as_ref().is_some_and(Lists::is_sealed)
        {
            return Err(CoordinatorError::MasksNeedTally { epoch: *masked.0 });
        }
        let mut rules = self.rules();
        rules.lists_key = lists.as_ref().map(|l| l.key()).unwrap_or_default();
        let shell = Shell::start(Parts {
            lists,
            durable,
            state,
            evidence,
            reserve,
            rules,
            kits,
            outside,
            lost,
            clock,
            locks,
        })?;
        if founds {
            self.found(&shell)?;
        }
        shell.set_aside_space();
        Ok((shell, foundation))
    }

    /// The tally of the lists: where the configuration asks for it, or people contributed before.
    fn lists(
        &self,
        engine: &Engine,
        durable: &Durable,
        clock: &Clock,
        masks: bool,
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
        let catalogue = Catalogue::new(self.items.iter().map(|i| i.id.as_str()));
        if let Some(known) = &known {
            catalogue.follows(known.items as usize, known.catalogue)?;
        }
        let handles = match &known {
            Some(known) => known.handles,
            None => lethe_seal::random()?,
        };
        let foundation = ListsFoundation {
            handles,
            items: self.items.len() as u64,
            catalogue: catalogue.digest(),
        };
        durable.keep_lists(&foundation, party.is_some())?;
        let content = content_of(&self.config.catalogue, self.items)?;
        let lists = Lists::open(crate::lists::Opening {
            engine,
            data_dir: &self.config.data_dir,
            evidence: &self.config.evidence(),
            config: self.config.lists.clone(),
            serves,
            release_hours: self.config.release_hours,
            line: match party {
                Some(party) => Some((self.line)(party, &self.config.data_dir)?),
                None => None,
            },
            masks,
            foundation,
            catalogue,
            content: Arc::new(content),
            now: clock.now().unix_ms / 1000,
        })?;
        Ok(Some(lists))
    }

    /// The first epoch of a folder.
    fn found(&self, shell: &Shell) -> Result<(), CoordinatorError> {
        let kit = shell.kit(EpochNo::FIRST)?;
        let command = Command::FoundEpoch {
            terms: terms(&self.recipe, kit.anchors.len(), self.model_config.hidden),
            recipe: self.recipe.to_json(),
            recipe_digest: self.recipe.digest(),
            model: self.model,
            initial: Digest::of_values(&kit.initial.theta),
            catalogue: CatalogueVersion(1),
        };
        shell.execute(command, vec![]).map(drop)
    }
}
