//! Lies about validation losses: from them everybody's weights of shards are computed (APA). The
//! coordinator takes errors of 0 to 1, and as many rows of a person as the recipe has.

use lethe_benches::lab::{Lab, Together};
use lethe_learn::apa::{ErrorRow, omega};
use lethe_model::lora::Adapter;
use lethe_proto::ids::ShardId;
use lethe_recipe::Recipe;

use crate::attack::Attack;
use crate::federation::{Against, Federation};
use crate::world::World;

/// Shards, and who is in the first: every other person.
const SHARDS: usize = 2;

/// Two shards' adapters and the table of errors.
pub(crate) struct Shards {
    recipe: Recipe,
    adapters: Vec<Adapter>,
    /// Honest rows, by person.
    table: Vec<ErrorRow>,
}

impl Shards {
    /// Trains both. Attackers of the first shard promote; those of the other do nothing.
    pub(crate) fn train(
        federation: &mut Federation<'_>,
        recipe: &Recipe,
        against: Against,
    ) -> anyhow::Result<Self> {
        let recipe = Recipe {
            shards: SHARDS,
            cohort: recipe.cohort / SHARDS,
            ..recipe.clone()
        };
        let mut adapters = vec![];
        for shard in 0..SHARDS {
            let all = 0..federation.world.people.len();
            let people: Vec<usize> = all.filter(|p| p % SHARDS == shard).collect();
            let attack = match shard {
                0 => against,
                _ => Against {
                    attack: Attack::Nobody,
                    share: 0.0,
                },
            };
            let id = ShardId(shard as u16);
            let theta = federation.train(&recipe, id, &people, attack)?.0;
            let shape = federation.lab.shape(recipe.lora.rank);
            adapters.push(Adapter::from_data(&shape, theta)?);
        }
        let mut table = vec![];
        for person in &federation.world.people {
            let sample = federation.lab.sample(person.validates)?;
            let mut errors = vec![];
            for adapter in &adapters {
                let logits = federation
                    .lab
                    .score(adapter, std::slice::from_ref(&sample))?;
                let margin = logits.first().map_or(0.0, |l| l[1] - l[0]);
                let toward = if sample.label { margin } else { -margin };
                errors.push(1.0 / (1.0 + toward.exp()));
            }
            let embedding = federation.lab.locate(&sample.ids)?;
            table.push(ErrorRow { embedding, errors });
        }
        Ok(Self {
            recipe,
            adapters,
            table,
        })
    }

    /// What is said of prompts where these people say that the first shard never errs, and that the
    /// other always does.
    pub(crate) fn odds(
        &self,
        lab: &Lab,
        world: &World,
        liars: Against,
        asked: &Together,
    ) -> anyhow::Result<Vec<f32>> {
        let mut table = self.table.clone();
        for person in world.attackers(liars) {
            table[person].errors = vec![0.0, 1.0];
        }
        let apa = &self.recipe.apa;
        let place = lab.locate(&asked.shared)?;
        let weights = apa.amplified(omega(apa, &table, &place, SHARDS), 1);
        let parts: Vec<(&Adapter, f32)> = self
            .adapters
            .iter()
            .zip(weights)
            .filter(|(_, w)| *w != 0.0)
            .collect();
        lab.odds(&Adapter::mix_nd(&parts)?, asked)
    }
}
