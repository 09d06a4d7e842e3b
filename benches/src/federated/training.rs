//! What a client does with its own samples.

use std::collections::{BTreeSet, HashMap};

use lethe_benches::lab::Lab;
use lethe_learn::aggregate::clip;
use lethe_learn::seed::Seed;
use lethe_model::lora::Adapter;
use lethe_model::split::descend;
use lethe_model::train::AdamW;
use lethe_proto::ids::Digest;

use crate::fleet::Model;
use crate::methods::{Method, Rule};

/// Hyper-parameters; the same for every method.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) rounds: usize,
    /// Clients per round.
    pub(crate) cohort: usize,
    /// Samples that a client trains on in a round, once: the first in the round's seeded order.
    pub(crate) samples: usize,
    /// Passes where there are no rounds.
    pub(crate) central_epochs: usize,
    /// Samples per step where there are no rounds.
    pub(crate) batch: usize,
    /// Samples per step of a round.
    pub(crate) client_batch: usize,
    /// Of AdamW, fresh in every round as in PPLR's and FedIT's code.
    pub(crate) lr: f32,
    pub(crate) rank: usize,
    /// Devices take plain gradient steps and the coordinator runs Adam on their weighted mean
    /// (FedAdam; Reddi et al., ICLR 2021), as `lethe-server` does, wherever a rule gives a mean.
    /// Devices with a few samples learn nothing together otherwise.
    pub(crate) server_adam: Option<ServerAdam>,
    /// Rounds between two looks at the validation samples.
    pub(crate) validate_every: usize,
}

/// Rates of both sides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerAdam {
    /// Of the devices' plain steps.
    pub(crate) device_lr: f32,
    /// Of the coordinator's Adam.
    pub(crate) lr: f32,
}

impl Recipe {
    /// How a round of this rule steps, if not by AdamW on the clients.
    pub(crate) fn server_adam(&self, rule: Rule) -> Option<ServerAdam> {
        self.server_adam.filter(|_| rule.gives_a_mean())
    }
}

/// What a client did.
#[derive(Clone)]
pub(crate) struct Local {
    /// Its adapter afterwards.
    pub(crate) theta: Vec<f32>,
    /// Mean loss over what it trained on, while it trained.
    pub(crate) loss: f64,
    pub(crate) samples: u32,
    /// Bytes over the split, both ways.
    pub(crate) crossed: u64,
}

/// How long, and with what.
#[derive(Clone, Copy)]
pub(crate) struct Passes {
    pub(crate) epochs: usize,
    /// Samples of each, at most.
    pub(crate) samples: usize,
    /// Steps over which the rate rises.
    pub(crate) warmup: usize,
    /// Samples per step.
    pub(crate) batch: usize,
    /// Plain gradient steps at this rate, in place of AdamW.
    pub(crate) plain: Option<f32>,
    /// Decides the order of samples.
    pub(crate) round: usize,
}

/// Trains for clients; what everybody's first round gives is kept, since methods that start alike
/// share it.
pub(crate) struct Trainer<'a> {
    pub(crate) lab: &'a mut Lab,
    pub(crate) recipe: &'a Recipe,
    pub(crate) seed: Seed,
    pub(crate) first: &'a mut HashMap<Digest, Local>,
    /// Samples whose frozen states each client has fetched.
    pub(crate) paid: HashMap<usize, BTreeSet<Vec<u32>>>,
}

impl Trainer<'_> {
    /// One client's training from `model`.
    pub(crate) fn train(
        &mut self,
        client: usize,
        samples: &[usize],
        model: &Model,
        method: &Method,
        passes: Passes,
    ) -> anyhow::Result<Local> {
        let bytes: Vec<u8> = model
            .own
            .data
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        // In whatever order they come: they are put in a seeded one.
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        let how = format!(
            "{sorted:?} {} {} {} {} {} {:?} {:?}",
            passes.epochs,
            passes.samples,
            passes.warmup,
            method.prox,
            method.freeze_a,
            method.wire,
            passes.plain
        );
        let key = Digest::of(&[&bytes, how.as_bytes()]);
        if let Some(known) = self.first.get(&key).filter(|_| passes.round == 0) {
            // It has fetched what it trained on, and nothing else.
            let (known, mut order) = (known.clone(), self.order(samples, passes.round, 0));
            order.truncate(passes.samples);
            let rows = self.lab.samples(&order)?;
            self.paid
                .entry(client)
                .or_default()
                .extend(rows.into_iter().map(|r| r.ids));
            return Ok(known);
        }
        let local = self.descend(client, samples, model, method, passes)?;
        if passes.round == 0 {
            self.first.insert(key, local.clone());
        }
        Ok(local)
    }

    fn descend(
        &mut self,
        client: usize,
        samples: &[usize],
        model: &Model,
        method: &Method,
        passes: Passes,
    ) -> anyhow::Result<Local> {
        let start = &model.own.data;
        let mut own = model.own.clone();
        let mut optimiser = AdamW::new(start.len(), 0.01);
        let (mut sum, mut count, mut crossed, mut step) = (0.0, 0usize, 0, 0usize);
        for epoch in 0..passes.epochs {
            let order = self.order(samples, passes.round, epoch);
            for batch in order[..passes.samples.min(order.len())].chunks(passes.batch) {
                let rows = self.lab.samples(batch)?;
                let paid = self.paid.entry(client).or_default();
                let got = self.lab.gradient(&model.with(&own)?, &rows, None, paid)?;
                let mut grads = model.part(got.grads, own.shape())?;
                (sum, count, crossed) = (
                    sum + got.loss.sum,
                    count + got.loss.samples,
                    crossed + got.crossed,
                );
                step += 1;
                if method.prox > 0.0 {
                    let pull = own
                        .data
                        .iter()
                        .zip(start)
                        .map(|(t, s)| method.prox * (t - s));
                    grads.iter_mut().zip(pull).for_each(|(g, p)| *g += p);
                }
                if let Some(rate) = passes.plain {
                    descend(&mut own.data, &mut grads, rate);
                } else {
                    let rate =
                        self.recipe.lr * (step as f32 / passes.warmup.max(1) as f32).min(1.0);
                    optimiser.step(&mut own.data, &grads, rate);
                }
                if method.freeze_a {
                    restore_a(&mut own, start);
                }
            }
        }
        if passes.plain.is_some() {
            let mut delta: Vec<f32> = own.data.iter().zip(start).map(|(t, s)| t - s).collect();
            clip(&mut delta, 10.0);
            own.data = start.iter().zip(&delta).map(|(s, d)| s + d).collect();
        }
        Ok(Local {
            theta: own.data,
            loss: sum / count.max(1) as f64,
            samples: samples.len() as u32,
            crossed,
        })
    }

    fn order(&self, samples: &[usize], round: usize, epoch: usize) -> Vec<usize> {
        let pass = [(round as u64).to_le_bytes(), (epoch as u64).to_le_bytes()].concat();
        let seed = self.seed.derive("pass", &[&pass]);
        let mut order = samples.to_vec();
        order.sort_by_key(|s| {
            (
                seed.rank("order", &self.lab.rows[*s].event.to_le_bytes()),
                *s,
            )
        });
        order
    }
}

/// Puts A back to what it was.
fn restore_a(adapter: &mut Adapter, start: &[f32]) {
    let shape = adapter.shape().clone();
    for e in shape.entries() {
        let (a, _) = shape.ranges(e);
        adapter.data[a.clone()].copy_from_slice(&start[a]);
    }
}
