//! Epochs that follow one another (`docs/life.md`): founding at run time, and letting go.

use std::sync::Arc;

use lethe_ledger::{AskedBy, Command, EpochNo, Event, ShardKey};
use lethe_proto::epochs::{EpochPlan, RecipeChange};
use lethe_proto::ids::{Digest, ShardId};
use lethe_recipe::Recipe;
use lethe_store::sealed::SharedEngine;

use super::{BaseModel, Kit, Shell, fresh};
use crate::terms::terms;
use crate::{CoordinatorError, fatal};

/// What epochs are made of besides their recipe.
pub(crate) struct Materials {
    /// The base model of the configuration.
    pub(crate) configured: BaseModel,
    /// A tally of its own sums masks.
    pub(crate) masks: bool,
    /// Opens databases of shards.
    pub(crate) engine: SharedEngine,
}

/// What an operator wants of the next epoch; where nothing is given it is as the one that serves.
pub(crate) struct Wanted {
    pub(crate) recipe: Option<Recipe>,
    pub(crate) base: Option<BaseModel>,
}

/// Keys of a recipe for which devices need something: layers, or arithmetic.
const OF_DEVICES: [&str; 2] = ["split", "compute"];

impl Shell {
    /// What the next epoch would be made of.
    ///
    /// # Errors
    /// A refusal, if no epoch is served yet, one is under way, or the recipe does not fit.
    pub(crate) fn next_kit(&self, wanted: Wanted) -> Result<Kit, CoordinatorError> {
        self.state().may_found()?;
        let serving = self.kit(self.serving()?)?;
        let recipe = match wanted.recipe {
            Some(recipe) => recipe,
            None => Recipe::clone(&serving.recipe),
        };
        let base = match wanted.base {
            // Where the configured model is meant, the configuration says where it is.
            Some(base) if base.digest == self.materials.configured.digest => {
                self.materials.configured.clone()
            }
            Some(base) => base,
            None => serving.base.clone(),
        };
        if recipe.grid().is_some() && !self.materials.masks {
            return Err(CoordinatorError::invalid(
                "updates = \"masked\" needs a tally of its own that was asked for masks when the \
                 coordinator started: set `updates = \"masked\"` in the configuration's `[recipe]` \
                 and restart it once; epochs that are there go on as they were founded",
            ));
        }
        let version = self.catalogue.newest();
        Kit::new(recipe, base, &self.catalogue.items_at(version), version)
    }

    /// What changes with an epoch, and what it costs.
    pub(crate) fn plan_of(&self, kit: &Kit) -> Result<EpochPlan, CoordinatorError> {
        let serving = self.kit(self.serving()?)?;
        let terms = terms(&kit.recipe, kit.anchors.len(), kit.base.config.hidden);
        let state = self.state();
        Ok(EpochPlan {
            founded: None,
            changes: changes(&serving.recipe, &kit.recipe),
            model: (kit.base.digest != serving.base.digest).then_some(kit.base.digest),
            cost: state.cost_of(&terms),
            joins_until: state.joins_until_from(self.clock.now()),
        })
    }

    /// Founds the next epoch. `prepare` gets what it needs before anybody hears of it.
    pub(crate) fn start_epoch(
        &self,
        kit: Kit,
        asked: AskedBy,
        prepare: impl FnOnce(EpochNo, &Kit) -> Result<(), CoordinatorError>,
    ) -> Result<EpochNo, CoordinatorError> {
        let _one = fatal::lock(&self.founding);
        let no = EpochNo(self.state().core().numbers.epoch + 1);
        prepare(no, &kit)?;
        let shards = (0..kit.recipe.shards).map(|k| ShardKey {
            epoch: no,
            shard: ShardId(k as u16),
        });
        let engine = self.materials.engine.as_ref();
        let writer = fatal::lock(&self.writer);
        writer.durable.add_databases(engine, shards)?;
        drop(writer);
        let founds = kit.founds(Some(asked));
        // Devices ask for it as soon as it is there.
        self.kits_alone().insert(no, Arc::new(kit));
        let founded = self.execute(founds, vec![]);
        if founded.is_err() {
            // The write may have happened all the same: what is durable is read again.
            let known = self.settle_doubt().is_err() || self.state().epoch(no).is_some();
            if !known {
                self.kits_alone().remove(&no);
            }
        }
        founded?;
        tracing::info!("{no} is founded: devices join it with what they hold now");
        Ok(no)
    }

    /// Founds the next epoch if the rule says so: as the one that is served.
    pub(super) fn roll_by_rule(&self) -> Result<(), CoordinatorError> {
        if !self.state().roll_is_due(self.clock.now()) {
            return Ok(());
        }
        let kit = self.next_kit(Wanted {
            recipe: None,
            base: None,
        })?;
        let asked = AskedBy {
            by: Digest::default(),
            fresh: fresh()?,
        };
        // It shares the layers of the one that is served.
        self.start_epoch(kit, asked, |_, _| Ok(())).map(drop)
    }

    /// What an epoch learned goes; so does what this process keeps of it.
    pub(super) fn retire(&self, epoch: EpochNo) -> Result<bool, CoordinatorError> {
        let events = self.execute(Command::Retire { epoch }, vec![])?;
        self.let_go();
        if events
            .iter()
            .any(|e| matches!(e, Event::EpochRetired { .. }))
        {
            tracing::info!("{epoch} is retired: what it learned is destroyed");
        }
        Ok(!events.is_empty())
    }

    /// Nobody has joined it in time.
    pub(super) fn drop_for_want(&self, epoch: EpochNo) -> Result<bool, CoordinatorError> {
        let command = Command::DropEpoch { epoch, asked: None };
        let events = self.execute(command, vec![])?;
        self.let_go();
        if !events.is_empty() {
            tracing::warn!(
                "{epoch} is given up: fewer people than `min_subjects` have joined it within \
                 `roll.join_hours`; what is served stays"
            );
        }
        Ok(!events.is_empty())
    }

    /// Removes the databases of epochs that have ended.
    pub(super) fn remove_databases(&self) -> Result<(), CoordinatorError> {
        let writer = fatal::lock(&self.writer);
        if writer.doubt {
            return Ok(());
        }
        // Whoever holds the state waits for no disk.
        let names = writer.durable.databases_of_ended(&self.state());
        writer.durable.remove_databases(&names)?;
        if !names.is_empty() {
            let removed = names.len();
            tracing::info!("{removed} databases of epochs that have ended are removed");
        }
        Ok(())
    }

    /// Lets go of the kits of epochs that have ended.
    pub(crate) fn let_go(&self) {
        let state = self.state();
        let ended = |no: &EpochNo| state.ended(*no);
        self.kits_alone().retain(|no, _| !ended(no));
    }
}

/// Values of two recipes that differ, by their key.
fn changes(from: &Recipe, to: &Recipe) -> Vec<RecipeChange> {
    let flat = |recipe: &Recipe| {
        let mut out = vec![];
        let json = serde_json::from_str(&recipe.to_json()).unwrap_or_default();
        flatten("", &json, &mut out);
        out
    };
    let before = flat(from);
    let after = flat(to);
    let value = |all: &[Value], key: &str| {
        let known = all.iter().find(|v| v.key == key);
        known.map(|v| v.text.clone()).unwrap_or_default()
    };
    let mut keys: Vec<&String> = before.iter().chain(&after).map(|v| &v.key).collect();
    keys.sort();
    keys.dedup();
    let mut out = vec![];
    for key in keys {
        let from = value(&before, key);
        let to = value(&after, key);
        if from != to {
            let first = key.split('.').next().unwrap_or_default();
            out.push(RecipeChange {
                device: OF_DEVICES.contains(&first),
                key: key.clone(),
                from,
                to,
            });
        }
    }
    out
}

/// A value of a recipe, as text.
struct Value {
    key: String,
    text: String,
}

fn flatten(at: &str, json: &serde_json::Value, out: &mut Vec<Value>) {
    let serde_json::Value::Object(map) = json else {
        out.push(Value {
            key: at.to_owned(),
            text: json.to_string(),
        });
        return;
    };
    for (key, value) in map {
        let below = match at {
            "" => key.clone(),
            at => format!("{at}.{key}"),
        };
        flatten(&below, value, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_in_a_recipe_is_named_by_its_key() {
        let from = Recipe::from_toml("").expect("a recipe");
        assert_eq!(changes(&from, &from), []);
        let text = "rounds = 6\ngoal = 3\n[split]\nk_in = 2\nk_out = 1\n[local]\nlr = 0.5\n";
        let to = Recipe::from_toml(text).expect("a recipe");
        let all = changes(&from, &to);
        let short: Vec<String> = all
            .iter()
            .map(|c| format!("{} {} -> {} {}", c.key, c.from, c.to, c.device))
            .collect();
        assert_eq!(
            short,
            [
                "goal  -> 3 false",
                "local.lr 1.0 -> 0.5 false",
                "rounds 4 -> 6 false",
                "split.k_in 4 -> 2 true",
            ]
        );
    }
}
