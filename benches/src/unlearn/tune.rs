//! Which recipe is best on validation samples. The test samples are not looked at.

use lethe_benches::lab::eprint_line;
use lethe_learn::apa::ApaParams;
use lethe_learn::metrics::auc;
use lethe_unlearn::analytic::Analytic;
use lethe_unlearn::combine::Combine;
use lethe_unlearn::partition::Partition;
use lethe_unlearn::sharded::Sharded;
use lethe_unlearn::whole::{Base, Retrain};
use lethe_unlearn::world::Mixing;
use lethe_unlearn::{SampleId, Strategy, World};
use serde_json::{Value, json};

use crate::experiment::Experiment;
use crate::methods::SLICES;
use crate::world::Recipe;

const TAUS: [f64; 4] = [1.0, 10.0, 100.0, 1000.0];
const NEIGHBOURS: [usize; 2] = [20, 100];
const RIDGES: [f64; 6] = [300.0, 1000.0, 3000.0, 10_000.0, 30_000.0, 100_000.0];
const GAINS: [f64; 2] = [1.0, 4.0];

fn grid() -> Vec<ApaParams> {
    let mut out = vec![];
    for gain in GAINS {
        for tau in TAUS {
            out.extend(NEIGHBOURS.map(|neighbours| ApaParams {
                tau,
                neighbours,
                gain,
            }));
        }
    }
    out
}

impl Experiment {
    /// Validation AUC of one model for everything and of our APA(ND), whose table comes from one
    /// half of the validation samples while the other half is predicted, and the other way round;
    /// the latter for the `only` recipe alone.
    pub(crate) fn tune(
        &mut self,
        dataset: &str,
        seed: u64,
        recipe: &Recipe,
        shards: usize,
        epochs: &[f64],
        only: bool,
    ) -> anyhow::Result<Vec<Value>> {
        let mut rows = vec![];
        let all = self.validation.clone();
        let (first, second) = all.split_at(all.len() / 2);
        let mut base = Base::default();
        base.fit(&mut self.world, &self.train, &[])?;
        let untrained = self.validated(&mut base, &all)?;
        let mut head = Analytic::new(RIDGES[0]);
        head.fit(&mut self.world, &self.train, &[])?;
        for ridge in RIDGES {
            let auc = self.validated(&mut head.with_ridge(ridge)?, &all)?;
            eprint_line(&format!(
                "{dataset}: analytic head, ridge {ridge}: {auc:.4}"
            ));
            rows.push(json!({
                "dataset": dataset, "seed": seed, "people": recipe.people,
                "method": "Analytic head", "ridge": ridge,
                "validation_auc": auc,
            }));
        }
        for epochs in epochs {
            let mut full = Retrain::new(*epochs);
            let cost = full.fit(&mut self.world, &self.train, &[])?;
            let whole = self.validated(&mut full, &all)?;
            let mut row = |method: &str, apa: Option<ApaParams>, auc: f64| {
                eprint_line(&format!(
                    "{dataset} {recipe:?} {epochs} epochs: {method} {apa:?}: {auc:.4}"
                ));
                rows.push(json!({
                    "dataset": dataset, "seed": seed, "last_layers": recipe.last_layers,
                    "lr": recipe.lr, "batch": recipe.batch, "epochs": epochs,
                    "all_projections": recipe.all_projections, "people": recipe.people,
                    "method": method, "tau": apa.map(|a| a.tau),
                    "neighbours": apa.map(|a| a.neighbours), "gain": apa.map(|a| a.gain),
                    "validation_auc": auc, "seconds": cost.seconds,
                }));
            };
            row("Base", None, untrained);
            row("Retrain", None, whole);
            let mut parts = 0.0;
            for apa in if only {
                grid()
            } else {
                GAINS.map(|gain| ApaParams { gain, ..self.apa }).to_vec()
            } {
                let combine = Combine::Apa(Mixing::Nd, apa);
                let mut ours = Sharded::new(
                    "ours",
                    Partition::Ours,
                    combine,
                    shards,
                    SLICES,
                    *epochs,
                    &self.seed,
                )
                .slice_by_slice();
                let mut auc = 0.0;
                for (asked, predicted) in [(first, second), (second, first)] {
                    ours.fit(&mut self.world, &self.train, asked)?;
                    auc += self.validated(&mut ours, predicted)? / 2.0;
                }
                row("APA(ND), our partition", Some(apa), auc);
                let models = ours.models();
                parts = 0.0;
                for model in &models {
                    let logits = self.world.logits(model, &all)?;
                    parts += self.validation_auc(&all, &logits) / models.len() as f64;
                }
            }
            row("mean of its shards", None, parts);
            // As above, for comparison.
            let halves =
                (self.validated(&mut full, first)? + self.validated(&mut full, second)?) / 2.0;
            row("Retrain, mean of both halves", None, halves);
        }
        Ok(rows)
    }

    fn validated(&mut self, m: &mut dyn Strategy, samples: &[SampleId]) -> anyhow::Result<f64> {
        let logits = m.predict(&mut self.world, samples)?;
        Ok(self.validation_auc(samples, &logits))
    }

    fn validation_auc(&self, samples: &[SampleId], logits: &[[f32; 2]]) -> f64 {
        let scores: Vec<f32> = logits.iter().map(|l| l[1] - l[0]).collect();
        let labels: Vec<bool> = samples.iter().map(|s| self.world.label(*s)).collect();
        auc(&scores, &labels).unwrap_or(f64::NAN)
    }
}
