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
    /// Passes of a client over its samples in a round.
    pub(crate) epochs: usize,
    /// Passes where there are no rounds.
    pub(crate) central_epochs: usize,
    pub(crate) batch: usize,
    /// Of AdamW, fresh in every round as in PPLR's and FedIT's code.
    pub(crate) lr: f32,
    pub(crate) rank: usize,
    /// Of the plain steps on devices when the coordinator runs Adam.
    pub(crate) device_lr: f32,
    pub(crate) server_lr: f32,
    /// Rounds between two looks at the validation samples.
    pub(crate) validate_every: usize,
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
    /// Steps over which the rate rises.
    pub(crate) warmup: usize,
    /// Decides the order of samples.
    pub(crate) round: usize,
}

/// Trains for clients; what everybody's first round gives is kept, since methods that start alike share it.
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
        let bytes: Vec<u8> = model.own.data.iter().flat_map(|v| v.to_le_bytes()).collect();
        // In whatever order they come: they are put in a seeded one.
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        let how = format!(
            "{sorted:?} {} {} {} {} {:?} {}",
            passes.epochs,
            passes.warmup,
            method.prox,
            method.freeze_a,
            method.wire,
            matches!(method.rule, Rule::Served(_))
        );
        let key = Digest::of(&[&bytes, how.as_bytes()]);
        if let Some(known) = self.first.get(&key).filter(|_| passes.round == 0) {
            let (known, rows) = (known.clone(), self.lab.samples(samples)?);
            self.paid.entry(client).or_default().extend(rows.into_iter().map(|r| r.ids));
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
            for batch in order.chunks(self.recipe.batch) {
                let rows = self.lab.samples(batch)?;
                let paid = self.paid.entry(client).or_default();
                let got = self.lab.gradient(&model.with(&own)?, &rows, None, paid)?;
                let mut grads = model.part(got.grads, own.shape())?;
                (sum, count, crossed) = (sum + got.loss.sum, count + got.loss.samples, crossed + got.crossed);
                step += 1;
                if let Rule::Served(_) = method.rule {
                    descend(&mut own.data, &mut grads, self.recipe.device_lr);
                    continue;
                }
                if method.prox > 0.0 {
                    let pull = own.data.iter().zip(start).map(|(t, s)| method.prox * (t - s));
                    grads.iter_mut().zip(pull).for_each(|(g, p)| *g += p);
                }
                let rate = self.recipe.lr * (step as f32 / passes.warmup.max(1) as f32).min(1.0);
                optimiser.step(&mut own.data, &grads, rate);
                if method.freeze_a {
                    restore_a(&mut own, start);
                }
            }
        }
        if let Rule::Served(_) = method.rule {
            let mut delta: Vec<f32> = own.data.iter().zip(start).map(|(t, s)| t - s).collect();
            clip(&mut delta, 10.0);
            own.data = start.iter().zip(&delta).map(|(s, d)| s + d).collect();
        }
        Ok(Local { theta: own.data, loss: sum / count.max(1) as f64, samples: samples.len() as u32, crossed })
    }

    fn order(&self, samples: &[usize], round: usize, epoch: usize) -> Vec<usize> {
        let pass = [(round as u64).to_le_bytes(), (epoch as u64).to_le_bytes()].concat();
        let seed = self.seed.derive("pass", &[&pass]);
        let mut order = samples.to_vec();
        order.sort_by_key(|s| (seed.rank("order", &self.lab.rows[*s].event.to_le_bytes()), *s));
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
