//! The real world of the comparison: a language model, a data set, and everything computed so far
//! on disk.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use anyhow::Context;
use lethe_benches::cpu_seconds;
use lethe_benches::lab::{Lab, QV, Setting, eprint_line};
use lethe_learn::seed::Seed;
use lethe_model::kernels::panels::Compute;
use lethe_model::lora::{Adapter, AdapterShape, Projection};
use lethe_model::split::SplitSpec;
use lethe_model::train::{AdamW, Sample};
use lethe_proto::ids::Digest;
use lethe_proto::payload::WireFormat;
use lethe_recsys::data::{Dataset, Event};
use lethe_recsys::features::item_features;
use lethe_recsys::prompt::Template;
use lethe_recsys::references::References;
use lethe_recsys::samples::{Part, Split, TaskSample, event_parts, training_events};
use lethe_unlearn::world::{Distillation, Mixing};
use lethe_unlearn::{Cost, ModelId, SampleId, Training, UnlearnError, Untuned, World};
use serde::{Deserialize, Serialize};

use crate::composed::Rates;

/// What decides a model's bytes besides samples and seed; the same for every method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Recipe {
    /// Learning rate after the warm-up; constant, since a schedule that knew the number of samples
    /// would know who left.
    pub(crate) lr: f32,
    /// Steps of the warm-up.
    pub(crate) warmup: usize,
    /// Samples per optimiser step.
    pub(crate) batch: usize,
    /// Rate of distillation.
    pub(crate) distil_lr: f32,
    /// How many of the last layers are adapted; what the layers below give is computed once per
    /// sample.
    pub(crate) last_layers: usize,
    /// Whether all projections are adapted, or q and v.
    pub(crate) all_projections: bool,
    /// Made-up people that the base model has learned from.
    pub(crate) people: usize,
    /// Arithmetic of products with frozen weights.
    pub(crate) compute: Compute,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            warmup: 8,
            batch: 4,
            distil_lr: 2e-4,
            last_layers: 1,
            all_projections: false,
            people: 64,
            compute: Compute::F32,
        }
    }
}

/// What is learned: a data set, how its events are divided, and the words of its prompts.
#[derive(Clone)]
pub(crate) struct Task {
    /// People, items and events.
    pub(crate) data: Dataset,
    /// Which events train, validate and test.
    pub(crate) split: Split,
    /// The words of a prompt.
    pub(crate) template: Template,
}

/// A trained model with its optimiser, as it lies in the cache.
#[derive(Clone, Serialize, Deserialize)]
struct Stored {
    theta: Vec<f32>,
    optimiser: AdamW,
    steps: usize,
    /// Of this run alone.
    samples: u64,
    seconds: f64,
    /// Models beside which this one is mixed with weight 1 (an unlearning adapter).
    beside: Option<String>,
}

/// Model, data and cache.
pub(crate) struct Real {
    lab: Lab,
    shape: std::sync::Arc<AdapterShape>,
    initial: Adapter,
    /// Last hidden states by the untuned model.
    places: Vec<Option<Vec<f32>>>,
    /// Processor seconds that those took.
    places_took: f64,
    vectors: References,
    catalogue: Vec<Vec<f32>>,
    /// Rows of the output table for no and yes.
    answers: [Vec<f32>; 2],
    recipe: Recipe,
    split: Split,
    seed: Seed,
    /// Digest of all that the files below depend on.
    under: String,
    cache: PathBuf,
    /// One line per computed model.
    pub(crate) log: bool,
    /// Predictions are computed anew, to be timed.
    pub(crate) timed: bool,
}

fn failed(e: impl std::fmt::Display) -> UnlearnError {
    UnlearnError::World(e.to_string())
}

impl Real {
    /// Loads the model; `rows` is every sample that the experiment uses.
    pub(crate) fn load(
        model: &Path,
        task: Task,
        rows: Vec<TaskSample>,
        recipe: Recipe,
        seed: &Seed,
        cache: &Path,
    ) -> anyhow::Result<Self> {
        let Task {
            data,
            split,
            template,
        } = task;
        let events = training_events(&data, split);
        let vectors = References::fit(&events, data.users.len(), data.items.len(), seed);
        let catalogue = item_features(&data.items);
        let places = vec![None; rows.len()];
        let version = template.version;
        // All layers here: nothing crosses a split.
        let whole = SplitSpec {
            k_in: 0,
            k_out: lethe_model::source::open(model)?.config().layers,
        };
        let setting = Setting {
            split: whole,
            last_layers: recipe.last_layers,
            wire: WireFormat::F32,
            people: recipe.people,
            compute: recipe.compute,
            targets: if recipe.all_projections {
                &Projection::ALL
            } else {
                QV
            },
        };
        let lab = Lab::load(model, data, template, rows, setting, &cache.join("states"))?;
        let shape = lab.shape(8);
        let initial = Adapter::init(&shape, &seed.derive("adapter", &[]));
        let named = serde_json::to_vec(&recipe)?;
        let under = Digest::of(&[version.as_bytes(), &named, &seed.0, lab.under.as_bytes()]).hex();
        std::fs::create_dir_all(cache).with_context(|| cache.display().to_string())?;
        Ok(Self {
            places,
            places_took: 0.0,
            catalogue,
            answers: lab.answer_rows()?,
            lab,
            shape,
            initial,
            vectors,
            recipe,
            split,
            seed: *seed,
            under,
            cache: cache.to_owned(),
            log: true,
            timed: false,
        })
    }

    /// Made-up people that the base has learned from.
    pub(crate) fn people(&self) -> usize {
        self.recipe.people
    }

    /// A sample, with its history.
    pub(crate) fn row(&self, s: SampleId) -> &TaskSample {
        &self.lab.rows[s]
    }

    /// Rates from what remains of the training events when those leave for which `leaves`
    /// (position, event) holds.
    pub(crate) fn rates(&self, leaves: impl Fn(u32, &Event) -> bool) -> Rates {
        let data = &self.lab.data;
        let parts = event_parts(data, self.split);
        let stays = |(at, (e, part)): (u32, (&Event, Part))| {
            (part == Part::Train && !leaves(at, e)).then_some(*e)
        };
        let remaining: Vec<Event> = (0..)
            .zip(data.events.iter().zip(parts))
            .filter_map(stays)
            .collect();
        Rates::fit(&remaining, data.users.len(), data.items.len(), &self.seed)
    }

    fn sample(&mut self, s: SampleId) -> Result<Sample, UnlearnError> {
        self.lab.sample(s).map_err(failed)
    }

    /// Identities of samples, sorted, with what their prompts say.
    fn content(&mut self, samples: &[SampleId]) -> Result<Vec<u8>, UnlearnError> {
        let mut all = vec![];
        for s in samples {
            let Sample { ids, label } = self.sample(*s)?;
            let bytes: Vec<u8> = ids.iter().flat_map(|t| t.to_le_bytes()).collect();
            all.push(Digest::of(&[&bytes, &[u8::from(label)]]).0);
        }
        all.sort_unstable();
        Ok(all.concat())
    }

    fn path(&self, kind: &str, id: &str) -> PathBuf {
        self.cache.join(kind).join(format!("{}.bin", &id[..32]))
    }

    fn kept<T: for<'a> Deserialize<'a>>(&self, kind: &str, id: &str) -> Option<T> {
        let bytes = std::fs::read(self.path(kind, id)).ok()?;
        lethe_proto::codec::from_bytes(&bytes, 1 << 30).ok()
    }

    /// Written whole or not at all: an interrupted experiment goes on from what it has.
    fn keep<T: Serialize>(&self, kind: &str, id: &str, value: &T) -> Result<(), UnlearnError> {
        let path = self.path(kind, id);
        let folder = path.parent().unwrap_or(&self.cache);
        std::fs::create_dir_all(folder).map_err(failed)?;
        let next = path.with_extension(format!("next-{}", std::process::id()));
        std::fs::write(&next, lethe_proto::codec::to_bytes(value).map_err(failed)?)
            .map_err(failed)?;
        std::fs::rename(next, path).map_err(failed)
    }

    fn kept_logits(&self, id: &str) -> Option<Vec<[f32; 2]>> {
        if self.timed {
            None
        } else {
            self.kept("logits", id)
        }
    }

    fn keep_logits(&self, id: &str, logits: &Vec<[f32; 2]>) -> Result<(), UnlearnError> {
        if self.timed {
            Ok(())
        } else {
            self.keep("logits", id, logits)
        }
    }

    fn stored(&self, id: &ModelId) -> Result<Stored, UnlearnError> {
        self.kept("models", &id.0)
            .ok_or_else(|| failed(format!("model {id} is not in the cache any more")))
    }

    /// The adapter that a model predicts with.
    fn adapter(&self, id: &ModelId) -> Result<Adapter, UnlearnError> {
        let stored = self.stored(id)?;
        let own = Adapter::from_data(&self.shape, stored.theta).map_err(failed)?;
        match stored.beside {
            None => Ok(own),
            Some(other) => {
                let base = self.adapter(&ModelId(other))?;
                Adapter::mix_nd(&[(&base, 1.0), (&own, 1.0)]).map_err(failed)
            }
        }
    }

    /// `count` optimiser steps over samples in seeded orders.
    fn descend(
        &mut self,
        mut state: Stored,
        base: Option<&Adapter>,
        samples: &[(SampleId, Option<f32>)],
        epochs: f64,
        lr: f32,
    ) -> Result<Stored, UnlearnError> {
        let started = cpu_seconds();
        let batch = self.recipe.batch;
        let before = state.steps;
        // In whole samples: a fraction that no batch reaches would never end.
        let due = if samples.is_empty() {
            0
        } else {
            ((epochs * samples.len() as f64).floor() as u64).max(1)
        };
        let mut order: Vec<(u64, SampleId, Option<f32>)> = vec![];
        (state.samples, state.seconds) = (0, 0.0);
        for pass in 0.. {
            if state.samples >= due {
                break;
            }
            // By a keyed rank of the sample: who leaves does not change the order of who stays.
            let seed = self.seed.derive("pass", &[&(pass as u64).to_le_bytes()]);
            order.clear();
            order.extend(
                samples
                    .iter()
                    .map(|(s, t)| (seed.rank("order", &self.identity(*s).to_le_bytes()), *s, *t)),
            );
            order.sort_by_key(|(rank, s, _)| (*rank, *s));
            for chunk in order.chunks(batch) {
                if state.samples >= due {
                    break;
                }
                let rows: Vec<Sample> = chunk
                    .iter()
                    .map(|(_, s, _)| self.sample(*s))
                    .collect::<Result<_, _>>()?;
                let soft: Option<Vec<f32>> = chunk.iter().map(|(_, _, t)| *t).collect();
                let grads = self.gradient(&state.theta, base, &rows, soft.as_deref())?;
                let rate = lr * ((state.steps + 1) as f32 / self.recipe.warmup as f32).min(1.0);
                state.optimiser.step(&mut state.theta, &grads, rate);
                (state.steps, state.samples) =
                    (state.steps + 1, state.samples + chunk.len() as u64);
            }
        }
        state.seconds = cpu_seconds() - started;
        if self.log {
            let steps = state.steps - before;
            eprint_line(&format!(
                "trained {steps} steps, {} samples, {:.0} processor s",
                state.samples, state.seconds
            ));
        }
        Ok(state)
    }

    /// Computes what the layers below the adapted ones give for the `first` samples, so that no
    /// method is charged for it.
    pub(crate) fn prepare(&mut self, first: usize) -> anyhow::Result<()> {
        self.lab.prepare(first)
    }

    /// Gradient on an adapter; beside `base`, which stays as it is.
    fn gradient(
        &self,
        theta: &[f32],
        base: Option<&Adapter>,
        rows: &[Sample],
        soft: Option<&[f32]>,
    ) -> Result<Vec<f32>, UnlearnError> {
        let own = Adapter::from_data(&self.shape, theta.to_vec()).map_err(failed)?;
        let whole = match base {
            None => own.clone(),
            Some(b) => Adapter::mix_nd(&[(b, 1.0), (&own, 1.0)]).map_err(failed)?,
        };
        let grads = self
            .lab
            .gradient(&whole, rows, soft, &mut BTreeSet::new())
            .map_err(failed)?
            .grads;
        match base {
            None => Ok(grads.data),
            Some(_) => Ok(grads.part_of_nd(1, &self.shape).map_err(failed)?.data),
        }
    }

    fn score(
        &mut self,
        adapter: &Adapter,
        samples: &[SampleId],
    ) -> Result<Vec<[f32; 2]>, UnlearnError> {
        let rows = self.lab.samples(samples).map_err(failed)?;
        let out = if self.timed {
            self.lab.score_whole(adapter, rows)
        } else {
            self.lab.score(adapter, &rows)
        };
        out.map_err(failed)
    }
}

impl World for Real {
    fn train(&mut self, run: &Training) -> Result<(ModelId, Cost), UnlearnError> {
        let start = run.start.as_ref().map_or(String::new(), |m| m.0.clone());
        let content = self.content(&run.samples)?;
        let parts = [
            self.under.as_bytes(),
            start.as_bytes(),
            &content[..],
            &run.epochs.to_le_bytes()[..],
        ];
        let id = Digest::of(&parts).hex();
        let stored = match self.kept::<Stored>("models", &id) {
            Some(stored) => stored,
            None => {
                let state = match &run.start {
                    Some(m) => self.stored(m)?,
                    None => Stored {
                        theta: self.initial.data.clone(),
                        optimiser: AdamW::new(self.initial.data.len(), 0.01),
                        steps: 0,
                        samples: 0,
                        seconds: 0.0,
                        beside: None,
                    },
                };
                let samples: Vec<_> = run.samples.iter().map(|s| (*s, None)).collect();
                let stored = self.descend(state, None, &samples, run.epochs, self.recipe.lr)?;
                self.keep("models", &id, &stored)?;
                stored
            }
        };
        Ok((
            ModelId(id),
            Cost {
                samples: stored.samples,
                seconds: stored.seconds,
            },
        ))
    }

    fn distil(&mut self, run: &Distillation) -> Result<(ModelId, Cost), UnlearnError> {
        let samples: Vec<SampleId> = run.targets.iter().map(|(s, _)| *s).collect();
        let content = self.content(&samples)?;
        let soft: Vec<u8> = run
            .targets
            .iter()
            .flat_map(|(_, t)| t.to_le_bytes())
            .collect();
        let parts = [
            self.under.as_bytes(),
            b"distil",
            run.student.0.as_bytes(),
            &content[..],
            &soft[..],
        ];
        let id = Digest::of(&parts).hex();
        let stored = match self.kept::<Stored>("models", &id) {
            Some(stored) => stored,
            None => {
                let base = self.adapter(&run.student)?;
                let init = Adapter::init(&self.shape, &self.seed.derive("unlearning adapter", &[]));
                let state = Stored {
                    optimiser: AdamW::new(init.data.len(), 0.01),
                    theta: init.data,
                    steps: 0,
                    samples: 0,
                    seconds: 0.0,
                    beside: Some(run.student.0.clone()),
                };
                let targets: Vec<_> = run.targets.iter().map(|(s, t)| (*s, Some(*t))).collect();
                let stored = self.descend(
                    state,
                    Some(&base),
                    &targets,
                    run.epochs,
                    self.recipe.distil_lr,
                )?;
                self.keep("models", &id, &stored)?;
                stored
            }
        };
        Ok((
            ModelId(id),
            Cost {
                samples: stored.samples,
                seconds: stored.seconds,
            },
        ))
    }

    fn logits(
        &mut self,
        model: &ModelId,
        samples: &[SampleId],
    ) -> Result<Vec<[f32; 2]>, UnlearnError> {
        let bytes: Vec<u8> = samples
            .iter()
            .flat_map(|s| self.identity(*s).to_le_bytes())
            .collect();
        let id = Digest::of(&[model.0.as_bytes(), &bytes]).hex();
        if let Some(kept) = self.kept_logits(&id) {
            return Ok(kept);
        }
        let adapter = self.adapter(model)?;
        let out = self.score(&adapter, samples)?;
        self.keep_logits(&id, &out)?;
        Ok(out)
    }

    fn mixed(
        &mut self,
        models: &[ModelId],
        omega: &[Vec<f32>],
        how: Mixing,
        samples: &[SampleId],
    ) -> Result<Vec<[f32; 2]>, UnlearnError> {
        let bytes: Vec<u8> = samples
            .iter()
            .flat_map(|s| self.identity(*s).to_le_bytes())
            .collect();
        let weights: Vec<u8> = omega
            .iter()
            .flatten()
            .flat_map(|w| w.to_le_bytes())
            .collect();
        let names: String = models.iter().map(|m| m.0.as_str()).collect();
        let id = Digest::of(&[
            names.as_bytes(),
            &bytes,
            &weights,
            format!("{how:?}").as_bytes(),
        ])
        .hex();
        if let Some(kept) = self.kept_logits(&id) {
            return Ok(kept);
        }
        let adapters: Vec<Adapter> = models
            .iter()
            .map(|m| self.adapter(m))
            .collect::<Result<_, _>>()?;
        // Queries with the same weights share an adapter and a pass; most weigh one shard alone.
        let mut groups: HashMap<Vec<u32>, Vec<usize>> = HashMap::new();
        for (i, w) in omega.iter().enumerate() {
            groups
                .entry(w.iter().map(|v| v.to_bits()).collect())
                .or_default()
                .push(i);
        }
        let mut groups: Vec<Vec<usize>> = groups.into_values().collect();
        groups.sort();
        let mut out = vec![[0.0; 2]; samples.len()];
        for rows in groups {
            let weights = &omega[rows[0]];
            let parts: Vec<(&Adapter, f32)> = adapters
                .iter()
                .zip(weights.iter().copied())
                .filter(|(_, w)| *w != 0.0)
                .collect();
            let mix = match how {
                Mixing::D => Adapter::mix_d(&parts),
                Mixing::Nd => Adapter::mix_nd(&parts),
            };
            let those: Vec<SampleId> = rows.iter().map(|i| samples[*i]).collect();
            for (i, l) in rows.iter().zip(self.score(&mix.map_err(failed)?, &those)?) {
                out[*i] = l;
            }
        }
        self.keep_logits(&id, &out)?;
        Ok(out)
    }

    fn hidden(&mut self, samples: &[SampleId]) -> Result<Vec<Vec<f32>>, UnlearnError> {
        if self.timed {
            // Samples that are asked together are candidates of one person, whom the product
            // locates once.
            let first = self.lab.samples(&samples[..1]).map_err(failed)?;
            let place = self.lab.last_hidden_whole(first).map_err(failed)?;
            return Ok(samples.iter().flat_map(|_| place.iter().cloned()).collect());
        }
        let unknown: Vec<SampleId> = samples
            .iter()
            .copied()
            .filter(|s| self.places[*s].is_none())
            .collect();
        let rows = self.lab.samples(&unknown).map_err(failed)?;
        let started = cpu_seconds();
        let found = self.lab.last_hidden(&rows).map_err(failed)?;
        self.places_took += cpu_seconds() - started;
        for (s, v) in unknown.into_iter().zip(found) {
            self.places[s] = Some(v);
        }
        Ok(samples
            .iter()
            .map(|s| self.places[*s].clone().unwrap_or_default())
            .collect())
    }

    fn untuned(&mut self, samples: &[SampleId]) -> Result<(Vec<Untuned>, Cost), UnlearnError> {
        let hidden = if self.timed {
            let rows = self.lab.samples(samples).map_err(failed)?;
            self.lab.last_hidden_whole(rows).map_err(failed)?
        } else {
            self.hidden(samples)?
        };
        let [no, yes] = &self.answers;
        let dot = |x: &[f32], w: &[f32]| {
            x.iter()
                .zip(w)
                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                .sum::<f64>()
        };
        let of = |hidden: Vec<f32>| Untuned {
            log_odds: (dot(&hidden, yes) - dot(&hidden, no)) as f32,
            hidden,
        };
        // As often as asked, at the mean of all that were computed.
        let each = self.places_took / self.places.iter().flatten().count().max(1) as f64;
        let cost = Cost {
            samples: samples.len() as u64,
            seconds: each * samples.len() as f64,
        };
        Ok((hidden.into_iter().map(of).collect(), cost))
    }

    fn seconds(&self) -> f64 {
        cpu_seconds()
    }

    fn identity(&self, sample: SampleId) -> u64 {
        u64::from(self.lab.rows[sample].event)
    }

    fn user(&self, sample: SampleId) -> u32 {
        self.lab.rows[sample].user
    }

    fn item(&self, sample: SampleId) -> u32 {
        self.lab.rows[sample].item
    }

    fn label(&self, sample: SampleId) -> bool {
        self.lab.rows[sample].label
    }

    fn liked(&self, sample: SampleId) -> Vec<u32> {
        self.lab.rows[sample]
            .history
            .iter()
            .filter(|(_, l)| *l)
            .map(|(i, _)| *i)
            .collect()
    }

    fn user_vector(&self, user: u32) -> Vec<f32> {
        self.vectors.user_vector(user).to_vec()
    }

    fn item_vector(&self, item: u32) -> Vec<f32> {
        self.vectors.item_vector(item).to_vec()
    }

    fn catalogue(&self) -> &[Vec<f32>] {
        &self.catalogue
    }
}
