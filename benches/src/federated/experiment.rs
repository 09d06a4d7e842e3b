//! One method with one seed: its rounds, and what is measured.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use lethe_benches::lab::{Lab, eprint_line};
use lethe_learn::metrics::{Spread, auc, uauc};
use lethe_learn::seed::Seed;
use lethe_model::lora::{Adapter, AdapterShape};
use lethe_proto::ids::Digest;
use lethe_proto::packed::{Packed, PackedFormat};
use serde_json::{Value, json};

use crate::fleet::{Arrived, Fleet, Model, only_b};
use crate::methods::{Method, Rule};
use crate::population::Client;
use crate::training::{Local, Passes, Recipe, Trainer};

/// Steps over which the rate rises where the optimiser is not renewed every round.
const WARMUP: usize = 8;

/// What all methods of one population share.
pub(crate) struct Experiment<'a> {
    pub(crate) clients: &'a [Client],
    pub(crate) recipe: &'a Recipe,
    pub(crate) seed: Seed,
    /// What everybody's first round gave.
    pub(crate) first: &'a mut HashMap<Digest, Local>,
}

/// What a run leaves.
#[derive(Default)]
struct Trace {
    /// `(rounds, AUC)` on validation samples.
    validation: Vec<(usize, f64)>,
    sent: u64,
    crossed: u64,
    /// Updates that were sent.
    updates: u64,
    lost: u64,
}

/// Which samples of a client.
type Which = fn(&Client) -> &Vec<usize>;

/// Scores of samples.
struct Scored {
    /// Client of each.
    clients: Vec<usize>,
    users: Vec<u32>,
    scores: Vec<f32>,
    labels: Vec<bool>,
}

impl Experiment<'_> {
    /// Everybody's initial adapter: one for all clients, since their own would dominate what they
    /// are compared by.
    fn initial(&self, lab: &Lab, rank: usize) -> Adapter {
        Adapter::init(&lab.shape(rank), &self.seed.derive("adapter", &[]))
    }

    /// The row of a method. `target` is the validation AUC that counts as reached.
    pub(crate) fn row(
        &mut self,
        lab: &mut Lab,
        method: &Method,
        target: Option<f64>,
    ) -> anyhow::Result<Row> {
        let started = Instant::now();
        let (models, trace) = match method.rule {
            Rule::Central | Rule::Alone => self.apart(lab, method)?,
            _ => self.rounds(lab, method)?,
        };
        let of = |i: usize| &models[i % models.len()];
        let test = self.score(lab, &of, |c| &c.test)?;
        let validation = trace.validation.last().map(|v| v.1);
        let reached = target.and_then(|t| {
            trace
                .validation
                .iter()
                .find(|(_, v)| *v >= t)
                .map(|(r, _)| *r)
        });
        let own = Spread::of(&test.by_client());
        let each = |bytes: u64| (trace.updates > 0).then(|| bytes as f64 / trace.updates as f64);
        let rounds_run = match method.rule {
            Rule::Central | Rule::Alone => 0,
            _ => self.recipe.rounds,
        };
        let row = json!({
            "method": method.name,
            "auc": auc(&test.scores, &test.labels),
            "uauc": uauc(&test.users, &test.scores, &test.labels),
            "client_auc_mean": own.map(|s| s.mean), "client_auc_std": own.map(|s| s.std),
            "worst_decile_auc": own.map(|s| s.worst_decile),
            "validation_auc": validation, "validation": trace.validation,
            "rounds": reached, "rounds_run": rounds_run,
            "update_bytes": each(trace.sent), "activation_bytes": each(trace.crossed),
            "updates": trace.updates, "updates_lost": trace.lost,
            "seconds": started.elapsed().as_secs_f64(),
        });
        eprint_line(&format!(
            "{}: AUC {:.4}, validation {:.4}, {:.0} s",
            method.name,
            row["auc"].as_f64().unwrap_or(f64::NAN),
            validation.unwrap_or(f64::NAN),
            started.elapsed().as_secs_f64()
        ));
        Ok(Row { row, validation })
    }

    fn trainer<'b>(&'b mut self, lab: &'b mut Lab) -> Trainer<'b> {
        Trainer {
            lab,
            recipe: self.recipe,
            seed: self.seed,
            first: self.first,
            paid: HashMap::new(),
        }
    }

    /// Without a federation: all samples in one place, or every client alone.
    fn apart(&mut self, lab: &mut Lab, method: &Method) -> anyhow::Result<(Vec<Adapter>, Trace)> {
        let start = Model::new(self.initial(lab, self.recipe.rank));
        let passes = Passes {
            epochs: self.recipe.central_epochs,
            samples: usize::MAX,
            warmup: WARMUP,
            batch: self.recipe.batch,
            plain: None,
            round: 0,
        };
        let groups: Vec<Vec<usize>> = match method.rule {
            Rule::Central => vec![self.clients.iter().flat_map(|c| c.train.clone()).collect()],
            _ => self.clients.iter().map(|c| c.train.clone()).collect(),
        };
        let mut models = vec![];
        for (i, samples) in groups.iter().enumerate() {
            let local = self
                .trainer(lab)
                .train(i, samples, &start, method, passes)?;
            models.push(Adapter::from_data(start.own.shape(), local.theta)?);
        }
        let of = |i: usize| &models[i % models.len()];
        let validation = self.score(lab, &of, |c| &c.validation)?.auc();
        Ok((
            models,
            Trace {
                validation: vec![(0, validation)],
                ..Trace::default()
            },
        ))
    }

    fn rounds(&mut self, lab: &mut Lab, method: &Method) -> anyhow::Result<(Vec<Adapter>, Trace)> {
        let (n, recipe, seed) = (self.clients.len(), self.recipe, self.seed);
        let mut fleet = Fleet::new(method.rule, n, recipe, |rank| self.initial(lab, rank));
        let (mut trace, mut left) = (Trace::default(), BTreeMap::new());
        let clients = self.clients;
        let mut paid = HashMap::new();
        for round in 0..recipe.rounds {
            let mut arrived = vec![];
            for client in cohort(&seed, round, n, recipe.cohort) {
                if seed.rank("lost", &place(round, client)) as f64 / (u64::MAX as f64) < method.lost
                {
                    trace.lost += 1;
                    continue;
                }
                let (model, samples) = (fleet.model(client), &clients[client].train);
                let passes = Passes {
                    epochs: 1,
                    samples: recipe.samples,
                    warmup: 1,
                    batch: recipe.client_batch,
                    plain: recipe.server_adam(method.rule).map(|s| s.device_lr),
                    round,
                };
                let mut trainer = self.trainer(lab);
                trainer.paid = std::mem::take(&mut paid);
                let local = trainer.train(client, samples, model, method, passes)?;
                paid = trainer.paid;
                let start = model.own.clone();
                let delta: Vec<f32> = local
                    .theta
                    .iter()
                    .zip(&start.data)
                    .map(|(t, s)| t - s)
                    .collect();
                let (delta, bytes) = send(
                    method,
                    start.shape(),
                    delta,
                    left.entry(client).or_default(),
                )?;
                (trace.sent, trace.crossed) = (trace.sent + bytes, trace.crossed + local.crossed);
                trace.updates += 1;
                arrived.push(Arrived {
                    client,
                    start,
                    delta,
                    local,
                });
            }
            fleet.close(round, &arrived)?;
            if (round + 1) % recipe.validate_every == 0 || round + 1 == recipe.rounds {
                let models = served(&fleet, n)?;
                let of = |i: usize| &models[i];
                trace
                    .validation
                    .push((round + 1, self.score(lab, &of, |c| &c.validation)?.auc()));
            }
        }
        let mut models = served(&fleet, n)?;
        if method.tuned > 0 {
            let passes = Passes {
                epochs: method.tuned,
                samples: usize::MAX,
                warmup: 1,
                batch: recipe.client_batch,
                plain: None,
                round: recipe.rounds,
            };
            for (i, c) in clients.iter().enumerate() {
                let local = self
                    .trainer(lab)
                    .train(i, &c.train, fleet.model(i), method, passes)?;
                models[i] = Adapter::from_data(models[i].shape(), local.theta)?;
            }
            let of = |i: usize| &models[i];
            let validation = self.score(lab, &of, |c| &c.validation)?.auc();
            if let Some(last) = trace.validation.last_mut() {
                last.1 = validation;
            }
        }
        Ok((models, trace))
    }

    /// Scores of all clients' samples, each by the model that serves it.
    fn score<'m>(
        &self,
        lab: &mut Lab,
        model: &dyn Fn(usize) -> &'m Adapter,
        which: Which,
    ) -> anyhow::Result<Scored> {
        let mut out = Scored {
            clients: vec![],
            users: vec![],
            scores: vec![],
            labels: vec![],
        };
        for (i, client) in self.clients.iter().enumerate() {
            let samples = which(client);
            let rows = lab.samples(samples)?;
            out.scores
                .extend(lab.score(model(i), &rows)?.iter().map(|l| l[1] - l[0]));
            for s in samples {
                out.clients.push(i);
                out.users.push(lab.rows[*s].user);
                out.labels.push(lab.rows[*s].label);
            }
        }
        Ok(out)
    }
}

/// A row of the table, and the AUC on validation samples at its end.
pub(crate) struct Row {
    pub(crate) row: Value,
    pub(crate) validation: Option<f64>,
}

impl Scored {
    fn auc(&self) -> f64 {
        auc(&self.scores, &self.labels).unwrap_or(f64::NAN)
    }

    fn by_client(&self) -> Vec<f64> {
        lethe_learn::metrics::user_aucs(&self.clients, &self.scores, &self.labels)
            .into_values()
            .collect()
    }
}

fn served(fleet: &Fleet, clients: usize) -> anyhow::Result<Vec<Adapter>> {
    (0..clients)
        .map(|i| fleet.model(i).with(&fleet.model(i).own))
        .collect()
}

fn place(round: usize, client: usize) -> Vec<u8> {
    [(round as u64).to_le_bytes(), (client as u64).to_le_bytes()].concat()
}

/// Who takes part in a round, in order: everybody equally often, in a seeded order anew each time
/// all have been asked.
fn cohort(seed: &Seed, round: usize, clients: usize, size: usize) -> Vec<usize> {
    let mut out: Vec<usize> = (round * size..(round + 1) * size)
        .map(|turn| {
            let mut order: Vec<usize> = (0..clients).collect();
            order.sort_by_key(|c| (seed.rank("cohort", &place(turn / clients, *c)), *c));
            order[turn % clients]
        })
        .collect();
    out.sort_unstable();
    out.dedup();
    out
}

/// What arrives of a change, and its bytes. What a sparse format leaves out is kept in `left` and
/// goes with the next.
fn send(
    method: &Method,
    shape: &AdapterShape,
    mut delta: Vec<f32>,
    left: &mut Vec<f32>,
) -> anyhow::Result<(Vec<f32>, u64)> {
    if method.freeze_a {
        // A did not change.
        let bytes = Packed::encode(&only_b(shape, &delta), method.updates)?
            .bytes
            .len();
        return Ok((delta, bytes as u64));
    }
    if method.updates == PackedFormat::F32 {
        let bytes = 4 * delta.len() as u64;
        return Ok((delta, bytes));
    }
    if method.updates.feeds_back() {
        left.resize(delta.len(), 0.0);
        delta.iter_mut().zip(&*left).for_each(|(d, l)| *d += l);
    }
    let packed = Packed::encode(&delta, method.updates)?;
    let arrived = packed.decode(delta.len())?;
    if method.updates.feeds_back() {
        *left = delta.iter().zip(&arrived).map(|(d, a)| d - a).collect();
    }
    Ok((arrived, packed.bytes.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_asked_equally_often() {
        let seed = Seed::from_u64(1);
        let mut asked = [0; 12];
        for round in 0..6 {
            let chosen = cohort(&seed, round, 12, 4);
            assert_eq!(chosen.len(), 4);
            chosen.into_iter().for_each(|c| asked[c] += 1);
        }
        assert_eq!(asked, [2; 12]);
        assert_eq!(cohort(&seed, 3, 5, 5), [0, 1, 2, 3, 4]);
    }
}
