//! Epochs as devices and operators meet them: which are alive, joining one, starting the next.

use std::path::PathBuf;

use lethe_ledger::{AskedBy, Command, Step};
use lethe_model::source::open;
use lethe_model::split::DeviceModel;
use lethe_proto::admin::AdminReply;
use lethe_proto::epochs::{Awaited, EpochInfo, JoinedEpoch, Lacks, ServedRelease};
use lethe_proto::ids::{Digest, EpochNo};
use lethe_proto::limits::MAX_RECIPE;
use lethe_proto::lists::ListState;
use lethe_proto::message::{Refusal, Reply};
use lethe_recipe::Recipe;

use crate::CoordinatorError;
use crate::coordinator::Coordinator;
use crate::handlers::Device;
use crate::shell::{BaseModel, Kit, Wanted, fresh};

/// Longest path of a base model that an operator names, in bytes.
const MAX_PATH: usize = 4096;

/// What a device asks that takes part in an epoch.
pub(crate) struct Joining {
    pub(crate) anchor: Option<u16>,
    pub(crate) samples: u32,
    pub(crate) commitment: Digest,
}

/// What an operator asks of the next epoch.
pub(crate) struct Starting {
    pub(crate) recipe: Option<String>,
    pub(crate) model: Option<String>,
    pub(crate) dry_run: bool,
}

impl Coordinator {
    /// The epochs that are alive, oldest first.
    pub(crate) fn epochs(&self) -> Result<Reply, CoordinatorError> {
        let shell = self.shell();
        let living: Vec<(EpochNo, bool)> = {
            let state = shell.state();
            let all = state.living();
            all.map(|(no, epoch)| (no, epoch.partition.is_some()))
                .collect()
        };
        let serving = shell.state().core().serving;
        let mut out = vec![];
        for (no, begun) in living {
            // It may have ended since.
            let Ok(kit) = shell.kit(no) else {
                continue;
            };
            out.push(EpochInfo {
                no,
                recipe: kit.recipe.to_json(),
                anchors: kit.anchors.clone(),
                model: kit.base.digest,
                begun,
                serving: serving == Some(no),
            });
        }
        Ok(Reply::Epochs(out))
    }

    /// Joins an epoch by its number.
    pub(crate) async fn join_epoch(
        &self,
        device: &Device,
        epoch: EpochNo,
        asks: Joining,
    ) -> Result<Reply, CoordinatorError> {
        let commitment = asks.commitment;
        let command = Command::Join {
            device: device.certificate,
            epoch,
            anchor: asks.anchor,
            samples: asks.samples,
            commitment,
            fresh: fresh()?,
        };
        self.decide(command, vec![]).await?;
        let state = self.shell().state();
        let (shard, commitment) = state.joined(&device.certificate, epoch, commitment)?;
        Ok(Reply::JoinedEpoch(JoinedEpoch {
            shard,
            commitment,
            trains: state.trains_from(&device.subject),
        }))
    }

    /// Work, news of lists, or of a newer epoch: whatever comes first.
    pub(crate) async fn await_news(
        &self,
        device: &Device,
        lists: ListState,
        newest: EpochNo,
    ) -> Result<Reply, CoordinatorError> {
        let watched = self.wait(device, Some(lists), Some(newest)).await?;
        let newest = self.shell().joining()?;
        Ok(Reply::Awaited(Awaited { watched, newest }))
    }

    /// A device cannot follow.
    pub(crate) async fn lacks(
        &self,
        device: &Device,
        epoch: EpochNo,
        lacks: Lacks,
    ) -> Result<Reply, CoordinatorError> {
        let command = Command::Lacks {
            device: device.certificate,
            epoch,
            lacks,
        };
        self.decide(command, vec![]).await?;
        Ok(Reply::Ack)
    }

    /// The release, with the epoch whose recipe it was made with.
    pub(crate) async fn served_release(
        &self,
        device: &Device,
        have: Option<u64>,
        known: &[Digest],
    ) -> Result<Reply, CoordinatorError> {
        let release = self.release(device, have, known).await?;
        let epoch = {
            let state = self.shell().state();
            let made = state.releases().get(&release.release);
            made.map(|r| r.epoch)
        };
        let epoch = epoch.ok_or_else(|| {
            CoordinatorError::refuse(Refusal::StaleRelease, "the release is gone: ask again")
        })?;
        Ok(Reply::Served(ServedRelease { epoch, release }))
    }

    /// Whether clients that know one recipe only can be served with it: all epochs of the folder
    /// have the same.
    pub(crate) fn one_recipe(&self) -> bool {
        let state = self.shell().state();
        let mut all = state.epochs().values();
        let Some(first) = all.next() else {
            return true;
        };
        let same = |e: &lethe_ledger::Epoch| {
            e.recipe_digest == first.recipe_digest && e.model == first.model
        };
        all.all(same)
    }

    /// Refuses a client that takes all epochs for one, where that is wrong.
    pub(crate) fn one_recipe_only(&self) -> Result<(), CoordinatorError> {
        if self.one_recipe() {
            return Ok(());
        }
        Err(CoordinatorError::refuse(
            Refusal::WrongModel,
            "the epochs here have different recipes, and this client knows one: expected protocol \
             minor version 5 or newer; update the app. Lists go on",
        ))
    }

    /// What an operator asks of the next epoch: shows it, or founds it.
    pub(crate) fn start_epoch(
        &self,
        starting: Starting,
        by: Digest,
    ) -> Result<AdminReply, CoordinatorError> {
        let shell = self.shell();
        let wanted = Wanted {
            recipe: starting.recipe.as_deref().map(recipe_of).transpose()?,
            base: starting.model.as_deref().map(base_of).transpose()?,
        };
        let kit = shell.next_kit(wanted)?;
        let mut plan = shell.plan_of(&kit)?;
        if starting.dry_run {
            return Ok(AdminReply::EpochPlanned(plan));
        }
        let asked = AskedBy {
            by,
            fresh: fresh()?,
        };
        let founded = shell.start_epoch(kit, asked, |no, kit| self.load_layers(no, kit));
        if founded.is_err() {
            let state = shell.state();
            self.middle().keep(|no| state.epoch(no).is_some());
        }
        plan.founded = Some(founded?);
        Ok(AdminReply::EpochPlanned(plan))
    }

    /// Gives up the epoch that follows the one which is served.
    pub(crate) fn cancel_epoch(
        &self,
        epoch: EpochNo,
        by: Digest,
    ) -> Result<AdminReply, CoordinatorError> {
        let asked = Some(AskedBy {
            by,
            fresh: fresh()?,
        });
        let events = self
            .shell()
            .execute(Command::DropEpoch { epoch, asked }, vec![])?;
        let dropped = |e: &lethe_ledger::Event| {
            matches!(
                e,
                lethe_ledger::Event::EpochReached {
                    step: Step::Dropped,
                    ..
                }
            )
        };
        if events.iter().any(dropped) {
            tracing::info!("{epoch} is given up: an operator asked for it");
        }
        self.let_go();
        Ok(AdminReply::Done)
    }

    /// The middle layers of an epoch: loaded, unless another epoch has the same.
    pub(crate) fn load_layers(&self, no: EpochNo, kit: &Kit) -> Result<(), CoordinatorError> {
        let path = kit.base.path.as_ref().unwrap_or(&self.config().model);
        let recipe = &kit.recipe;
        self.middle().host(no, kit.layers_key(), || {
            let source = open(path)?;
            let segment = DeviceModel::load_middle(source.as_ref(), recipe.split, recipe.compute)?;
            tracing::info!(
                mib = segment.weight_bytes() >> 20,
                layers = segment.range().len(),
                "middle layers loaded for {no}"
            );
            Ok(segment)
        })?;
        self.make_bounds(kit);
        Ok(())
    }

    /// Lets go of what epochs needed that have ended.
    pub(crate) fn let_go(&self) {
        self.shell().let_go();
        let state = self.shell().state();
        self.middle().keep(|no| !state.ended(no));
    }

    /// The layers of an epoch that the rule has founded are those of the one before it.
    pub(crate) fn share_layers(&self) {
        let living: Vec<EpochNo> = {
            let state = self.shell().state();
            state.living().map(|(no, _)| no).collect()
        };
        for no in living {
            let Ok(kit) = self.shell().kit(no) else {
                continue;
            };
            if self.middle().hosts(no) || !self.middle().may_load(no) {
                continue;
            }
            if let Err(e) = self.load_layers(no, &kit) {
                tracing::error!("the layers of {no} cannot be loaded, tried again soon: {e}");
                self.middle().load_failed(no);
            }
        }
    }
}

fn recipe_of(text: &str) -> Result<Recipe, CoordinatorError> {
    if text.len() > MAX_RECIPE {
        return Err(CoordinatorError::invalid(format!(
            "a recipe of {} bytes, at most {MAX_RECIPE}",
            text.len()
        )));
    }
    let invalid = |e: String| CoordinatorError::invalid(e);
    let table: toml::Table = text
        .parse()
        .map_err(|e: toml::de::Error| invalid(format!("the recipe: {e}")))?;
    // A path would be one of the coordinator's machine, and its text would go to every device.
    let prompt = table.get("prompt").and_then(toml::Value::as_str);
    if prompt.is_some_and(|p| !p.contains("{target}")) {
        return Err(invalid(
            "prompt in a recipe that is sent is a path, expected the text of a template, with \
             {target}: `lethe-admin epoch start` reads the file and sends its text"
                .into(),
        ));
    }
    Recipe::from_toml(text).map_err(|e| invalid(e.to_string()))
}

fn base_of(path: &str) -> Result<BaseModel, CoordinatorError> {
    if path.len() > MAX_PATH {
        let message = format!("a path of {} bytes, at most {MAX_PATH}", path.len());
        return Err(CoordinatorError::invalid(message));
    }
    let path = PathBuf::from(path);
    if !path.is_absolute() {
        return Err(CoordinatorError::invalid(format!(
            "the base model is {}, expected an absolute path on the coordinator's machine",
            path.display()
        )));
    }
    BaseModel::read(&path)
        .map_err(|e| CoordinatorError::invalid(format!("the base model {}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_that_is_sent_names_no_file() {
        assert!(recipe_of("rounds = 2").is_ok());
        let path = recipe_of("prompt = \"/etc/passwd\"").expect_err("refused");
        assert!(path.to_string().contains("is a path"), "{path}");
        let unknown = recipe_of("round = 2").expect_err("refused");
        assert!(unknown.to_string().contains("round"), "{unknown}");
        assert!(recipe_of(&" ".repeat(MAX_RECIPE + 1)).is_err());
        let relative = base_of("model.gguf").expect_err("refused");
        assert!(relative.to_string().contains("absolute"), "{relative}");
    }
}
