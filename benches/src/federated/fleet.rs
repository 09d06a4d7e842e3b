//! What the coordinator of a method keeps, and how a round changes it.

use std::sync::Arc;

use lethe_learn::aggregate::{ServerAdam, fedavg_weights};
use lethe_learn::balance::{
    BalanceParams, learning_speeds, mixing_matrix, personalized, shared_weights, similarities,
};
use lethe_model::lora::{Adapter, AdapterShape};

use crate::factors::{product, truncated};
use crate::methods::{Cosine, Rule};
use crate::training::{Local, Recipe};

/// Most rank of what FedEx-LoRA has frozen, and what it is cut to then.
const FROZEN: (usize, usize) = (128, 64);

/// An adapter that is trained beside others that are not any more.
#[derive(Clone)]
pub(crate) struct Model {
    frozen: Vec<(Adapter, f32)>,
    pub(crate) own: Adapter,
}

impl Model {
    pub(crate) fn new(own: Adapter) -> Self {
        Self {
            frozen: vec![],
            own,
        }
    }

    /// All in one, with `own` in place of its own.
    pub(crate) fn with(&self, own: &Adapter) -> anyhow::Result<Adapter> {
        if self.frozen.is_empty() {
            return Ok(own.clone());
        }
        let mut parts: Vec<(&Adapter, f32)> = self.frozen.iter().map(|(a, w)| (a, *w)).collect();
        parts.push((own, 1.0));
        Ok(Adapter::mix_nd(&parts)?)
    }

    /// The part of a gradient on all of it that concerns its own adapter.
    pub(crate) fn part(
        &self,
        grads: Adapter,
        shape: &Arc<AdapterShape>,
    ) -> anyhow::Result<Vec<f32>> {
        match self.frozen.len() {
            0 => Ok(grads.data),
            n => Ok(grads.part_of_nd(n, shape)?.data),
        }
    }
}

/// A method's state between rounds.
pub(crate) struct Fleet {
    rule: Rule,
    models: Vec<Model>,
    /// Moments of the coordinator's Adam.
    adam: (Vec<f32>, Vec<f32>, u32),
    server_lr: Option<f32>,
}

/// One client's result, as it arrived.
pub(crate) struct Arrived {
    pub(crate) client: usize,
    /// What it started from.
    pub(crate) start: Adapter,
    /// Change, in the start's shape.
    pub(crate) delta: Vec<f32>,
    pub(crate) local: Local,
}

impl Arrived {
    fn theta(&self) -> Vec<f32> {
        self.start
            .data
            .iter()
            .zip(&self.delta)
            .map(|(s, d)| s + d)
            .collect()
    }

    fn adapter(&self) -> anyhow::Result<Adapter> {
        Ok(Adapter::from_data(self.start.shape(), self.theta())?)
    }
}

impl Fleet {
    /// `initial(rank)` is where everybody starts.
    pub(crate) fn new(
        rule: Rule,
        clients: usize,
        recipe: &Recipe,
        initial: impl Fn(usize) -> Adapter,
    ) -> Self {
        let models = match rule {
            Rule::Personal(..) => vec![Model::new(initial(recipe.rank)); clients],
            Rule::Flex => [recipe.rank / 2, recipe.rank, 2 * recipe.rank]
                .map(|r| Model::new(initial(r)))
                .to_vec(),
            _ => vec![Model::new(initial(recipe.rank))],
        };
        let n = models[0].own.data.len();
        Self {
            rule,
            models,
            adam: (vec![0.0; n], vec![0.0; n], 0),
            server_lr: recipe.server_adam(rule).map(|s| s.lr),
        }
    }

    /// What a client starts from, and is served with.
    pub(crate) fn model(&self, client: usize) -> &Model {
        &self.models[client % self.models.len()]
    }

    /// Closes a round.
    pub(crate) fn close(&mut self, round: usize, arrived: &[Arrived]) -> anyhow::Result<()> {
        if arrived.is_empty() {
            return Ok(());
        }
        match self.rule {
            Rule::Central | Rule::Alone => {
                anyhow::bail!("without a federation there are no rounds")
            }
            Rule::Average => self.add(&samples(arrived), arrived),
            Rule::Fair(power) => {
                let by_loss: Vec<f64> = arrived
                    .iter()
                    .map(|a| f64::from(a.local.samples) * a.local.loss.powf(power))
                    .collect();
                let total: f64 = by_loss.iter().sum();
                self.add(
                    &by_loss
                        .iter()
                        .map(|w| (w / total) as f32)
                        .collect::<Vec<_>>(),
                    arrived,
                );
            }
            Rule::Shared(params, cosine) => {
                let mixing = mixing(&params, cosine, round, arrived)?;
                self.add(&shared_weights(&mixing, arrived.len()), arrived);
            }
            Rule::Personal(params, cosine) => {
                let mixing = mixing(&params, cosine, round, arrived)?;
                let thetas: Vec<Vec<f32>> = arrived.iter().map(Arrived::theta).collect();
                for (a, theta) in arrived.iter().zip(personalized(&mixing, &thetas)) {
                    self.models[a.client].own.data = theta;
                }
            }
            Rule::FedEx => self.add_residual(arrived)?,
            Rule::Flex => {
                let adapters: Vec<Adapter> = arrived
                    .iter()
                    .map(Arrived::adapter)
                    .collect::<Result<_, _>>()?;
                let parts: Vec<(&Adapter, f32)> = adapters.iter().zip(samples(arrived)).collect();
                for m in &mut self.models {
                    m.own = truncated(&parts, m.own.shape())?;
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, weights: &[f32], arrived: &[Arrived]) {
        let (delta, theta) = (weighted(weights, arrived), &mut self.models[0].own.data);
        match self.server_lr {
            None => theta.iter_mut().zip(delta).for_each(|(t, d)| *t += d),
            Some(lr) => {
                self.adam.2 += 1;
                let (first, second, step) = (&mut self.adam.0, &mut self.adam.1, self.adam.2);
                ServerAdam {
                    first,
                    second,
                    step,
                    lr,
                }
                .apply(theta, &delta);
            }
        }
    }

    fn add_residual(&mut self, arrived: &[Arrived]) -> anyhow::Result<()> {
        let weights = samples(arrived);
        self.add(&weights, arrived);
        let model = &mut self.models[0];
        for (a, w) in arrived.iter().zip(&weights) {
            model.frozen.push((a.adapter()?, *w));
        }
        model.frozen.push((model.own.clone(), -1.0));
        let rank = model.own.shape().rank();
        if model.frozen.len() * rank > FROZEN.0 {
            let parts: Vec<(&Adapter, f32)> = model.frozen.iter().map(|(a, w)| (a, *w)).collect();
            let whole = Adapter::mix_nd(&parts)?;
            let wide = Adapter::mix_nd(&vec![(&model.own, 1.0); FROZEN.1 / rank])?;
            let cut = truncated(&[(&whole, 1.0)], wide.shape())?;
            let parts =
                (0..FROZEN.1 / rank).map(|i| Ok((cut.part_of_nd(i, model.own.shape())?, 1.0)));
            model.frozen = parts.collect::<anyhow::Result<_>>()?;
        }
        Ok(())
    }
}

fn samples(arrived: &[Arrived]) -> Vec<f32> {
    fedavg_weights(&arrived.iter().map(|a| a.local.samples).collect::<Vec<_>>())
}

fn weighted(weights: &[f32], arrived: &[Arrived]) -> Vec<f32> {
    let mut out = vec![0.0; arrived[0].delta.len()];
    for (w, a) in weights.iter().zip(arrived) {
        out.iter_mut().zip(&a.delta).for_each(|(o, d)| *o += w * d);
    }
    out
}

/// PPLR's mixing matrix of a round.
fn mixing(
    params: &BalanceParams,
    cosine: Cosine,
    round: usize,
    arrived: &[Arrived],
) -> anyhow::Result<Vec<f64>> {
    let losses: Vec<f64> = arrived.iter().map(|a| a.local.loss).collect();
    let changes: Vec<Vec<f32>> = arrived
        .iter()
        .map(|a| change(a, cosine))
        .collect::<Result<_, _>>()?;
    Ok(mixing_matrix(
        &learning_speeds(params, &losses, round as u32),
        &similarities(&changes),
    ))
}

fn change(a: &Arrived, cosine: Cosine) -> anyhow::Result<Vec<f32>> {
    Ok(match cosine {
        Cosine::Both => a.delta.clone(),
        Cosine::B => only_b(a.start.shape(), &a.delta),
        Cosine::Product => product(&[(&a.adapter()?, 1.0), (&a.start, -1.0)])?,
    })
}

/// The values of B alone.
pub(crate) fn only_b(shape: &AdapterShape, values: &[f32]) -> Vec<f32> {
    shape
        .entries()
        .iter()
        .flat_map(|e| values[shape.ranges(e).1].iter().copied())
        .collect()
}
