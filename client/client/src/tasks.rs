//! What the coordinator asks for: a round, validation, erasure.

use std::sync::Arc;
use std::time::Duration;

use lethe_learn::seed::Seed;
use lethe_model::frozen::{FrozenStates, Recomputed};
use lethe_model::lora::{Adapter, AdapterShape};
use lethe_model::split::descend;
use lethe_model::train::{Sample, Trainer};
use lethe_proto::ids::{Digest, RoundKey, ShardId};
use lethe_proto::message::{Declined, ErrorReport, Purpose, Request, RoundStart};
use lethe_proto::packed::{Packed, PackedError};
use lethe_recipe::Recipe;
use lethe_recsys::samples::Part;
use tokio::time::Instant;

use crate::client::Done;
use crate::encode::Encoder;
use crate::history::{Joined, LocalSample, TrainingEvent};
use crate::remote::RemoteMiddle;
use crate::worker::{DECLINES, Worker};
use crate::{Catalogue, ClientError, ClientModel};

/// Result of local training: device part of the change, mean loss, samples.
pub(crate) struct Trained {
    pub(crate) delta: Vec<f32>,
    pub(crate) loss: f32,
    pub(crate) samples: u32,
}

impl Worker {
    /// The shape of the adapter's device part.
    pub(crate) fn edge_shape(&self, recipe: &Recipe) -> Result<Arc<AdapterShape>, ClientError> {
        let config = self.model()?.device.config();
        let layers = config.layers;
        Ok(AdapterShape::new(config, &recipe.lora, |l| {
            recipe.split.on_device(l, layers)
        }))
    }

    /// Where states of frozen layers are kept between rounds; nowhere when all layers are trained.
    fn frozen_states(&self, recipe: &Recipe) -> Result<Box<dyn FrozenStates>, ClientError> {
        let model = self.model()?;
        let config = model.device.config();
        let local = self.local()?;
        if recipe.lora.first_trained(config.layers) == 0 {
            local.vault.drop_frozen()?;
            return Ok(Box::new(Recomputed));
        }
        // Other arithmetic, here or on the coordinator, gives other bits.
        let theirs = self.welcome.as_ref().map_or("", |w| &w.engine);
        let engines = [theirs, &model.device.engine().kind()].join("\0");
        let under = Digest::of(&[&recipe.digest().0, &model.digest.0, engines.as_bytes()]);
        let states = local.vault.frozen(under, config.hidden, recipe.wire)?;
        Ok(Box::new(states))
    }

    /// Trains in a round, or says that nobody needs to wait for it.
    pub(crate) async fn take_part(&mut self, start: RoundStart) -> Result<Done, ClientError> {
        let round = start.round;
        let why = match self.train(start).await {
            Ok(()) => return Ok(Done::Trained),
            Err(e) => match e.declines() {
                Some(why) => {
                    tracing::info!("{e}");
                    why
                }
                None => return Err(e),
            },
        };
        // An older coordinator waits until the deadline.
        if self.minor() >= DECLINES {
            self.call(&Request::Decline { round, why }).await?;
        }
        Ok(Done::Declined(why))
    }

    /// Trains in a round and sends the update.
    async fn train(&mut self, start: RoundStart) -> Result<(), ClientError> {
        let model = self.model()?.clone();
        let epoch = start.round.epoch;
        self.fits_epoch(epoch)?;
        let recipe = self.recipe_of(epoch)?;
        let masking = self.may_update(&recipe).await?;
        let session = self.session()?;
        session.count_update(start.adapter.bytes.len());
        let joined = self.joined_in(epoch).await?;
        // Whoever trains again renders the same prompts: titles are those of the epoch's version.
        let catalogue = self.catalogue_of(Some(epoch)).await?;
        let chosen = self.choose(&start, &recipe, &joined, &catalogue)?;
        let shape = self.edge_shape(&recipe)?;
        let adapter = self.unpack(&recipe, &shape, &start.adapter)?;
        let until = Instant::now() + Duration::from_millis(start.deadline_ms);
        let purpose = Purpose::Train {
            round: start.round,
            pass: 0,
        };
        self.fits(&model, &recipe, &chosen)?;
        let frozen = self.frozen_states(&recipe)?;
        let by = recipe.clone();
        let watch = self.shared.guard.watch();
        let _stops = watch.until_dropped();
        let over = session.clone();
        let trained = self
            .blocking(move || {
                let width = model.device.config().hidden;
                let mut middle =
                    RemoteMiddle::new(over, purpose, by.wire, width).watched(watch, until);
                middle.below_trains = adapter.shape().first_trained() < model.device.split().k_in;
                local_training(&model, frozen.as_ref(), &by, adapter, &chosen, &mut middle)
            })
            .await?;
        let samples = trained.samples;
        let (delta, loss) = match masking {
            // The loss is under the mask, too.
            Some(masking) => (masking.mask(&recipe, start.round, &trained)?, 0.0),
            None => (self.pack(&recipe, &start, trained.delta)?, trained.loss),
        };
        session.count_update(delta.bytes.len());
        let update = Request::Update {
            round: start.round,
            delta,
            loss,
            samples,
        };
        session.call_until(&update, until).await?;
        session.count_samples(samples);
        Ok(())
    }

    /// Refuses what would need more memory than the app allows, before anything is allocated.
    fn fits(
        &self,
        model: &ClientModel,
        recipe: &Recipe,
        samples: &[Sample],
    ) -> Result<(), ClientError> {
        let Some(cap) = self.shared.options.memory_cap else {
            return Ok(());
        };
        let packs = samples
            .chunks(recipe.local.batch)
            .flat_map(|b| recipe.packing.split(b));
        let tokens = packs
            .map(|p| p.iter().map(|s| s.ids.len()).sum())
            .max()
            .unwrap_or(0);
        let first = recipe.lora.first_trained(model.device.config().layers);
        let needed = model.device.training_bytes(tokens, first);
        if needed > cap {
            Err(ClientError::Memory { needed, cap })
        } else {
            Ok(())
        }
    }

    /// An adapter's device part as the coordinator sent it.
    pub(crate) fn unpack(
        &self,
        recipe: &Recipe,
        shape: &Arc<AdapterShape>,
        packed: &Packed,
    ) -> Result<Adapter, ClientError> {
        let bad = |e: PackedError| {
            ClientError::Internal(format!("an adapter that the coordinator sent: {e}"))
        };
        let mut data = packed.decode(shape.len()).map_err(bad)?;
        if packed.format.lossy() {
            data.iter_mut()
                .zip(&recipe.initial(shape).data)
                .for_each(|(v, i)| *v += i);
        }
        Ok(Adapter::from_data(shape, data)?)
    }

    /// An update in the recipe's format. Where that leaves much out, what it leaves out is kept for
    /// the client's next round of the stage.
    fn pack(
        &self,
        recipe: &Recipe,
        start: &RoundStart,
        mut delta: Vec<f32>,
    ) -> Result<Packed, ClientError> {
        let bad = |e: PackedError| ClientError::Internal(e.to_string());
        let format = recipe.updates;
        if !format.feeds_back() {
            return Packed::encode(&delta, format).map_err(bad);
        }
        let local = self.local()?;
        let mut feedback = local.vault.feedback()?;
        if let Some(round) = start.counted {
            let before = RoundKey {
                round,
                ..start.round
            };
            let left = feedback
                .of(before)
                .filter(|l| l.len() == delta.len())
                .ok_or(ClientError::FeedbackLost)?;
            delta.iter_mut().zip(left).for_each(|(d, l)| *d += l);
        }
        let packed = Packed::encode(&delta, format).map_err(bad)?;
        let sent = packed.decode(delta.len()).map_err(bad)?;
        delta.iter_mut().zip(&sent).for_each(|(d, s)| *d -= s);
        // Before it is sent: the coordinator may count an update whose acknowledgement is lost.
        feedback.keep(start.round, start.counted, delta);
        local.vault.keep_feedback(&feedback)?;
        Ok(packed)
    }

    /// The samples of this round: the first by a rank that depends on the round and the sample
    /// alone.
    fn choose(
        &self,
        start: &RoundStart,
        recipe: &Recipe,
        joined: &Joined,
        catalogue: &Catalogue,
    ) -> Result<Vec<Sample>, ClientError> {
        let seed = Seed(start.seed);
        let all = joined.samples(Part::Train);
        let mut ranked: Vec<_> = all
            .iter()
            .filter(|s| catalogue.knows(&s.target.item))
            .map(|s| (seed.rank("sample", &s.id()), s))
            .collect();
        ranked.sort_by_key(|(rank, s)| (*rank, s.target.time));
        ranked.truncate(recipe.local.samples);
        if ranked.is_empty() && !all.is_empty() {
            return Err(ClientError::NothingToTrain);
        }
        ranked
            .into_iter()
            .map(|(_, s)| self.encode(recipe, catalogue, s.history, s.target))
            .collect()
    }

    pub(crate) fn encode(
        &self,
        recipe: &Recipe,
        catalogue: &Catalogue,
        history: &[TrainingEvent],
        target: &TrainingEvent,
    ) -> Result<Sample, ClientError> {
        let prompt = self.model()?.prompt(catalogue, history, &target.item)?;
        Ok(self.encoder(recipe)?.sample(&prompt, target.liked)?)
    }

    /// Renders prompts as the coordinator's recipe says.
    pub(crate) fn encoder(&self, recipe: &Recipe) -> Result<Encoder, ClientError> {
        Ok(self.model()?.encoder.with(recipe.template()?))
    }

    /// Measures shards' adapters on the newest validation samples and reports the errors; or says
    /// that it has measured nothing, so that it is not asked about this release again and again.
    pub(crate) async fn validate(
        &mut self,
        release: u64,
        shards: &[ShardId],
    ) -> Result<Done, ClientError> {
        let (rows, done) = match self.measured(release, shards).await {
            Ok(Some(rows)) => (rows, Done::Validated),
            // Another release is served since.
            Ok(None) => return Ok(Done::RoundLost),
            // As ever for devices without a model.
            Err(ClientError::NoModel) => (vec![], Done::Validated),
            // Who has yet to join again with what remains is asked again.
            Err(e) if e.lasts() && !self.local()?.owes => {
                tracing::info!("nothing is measured of release {release}: {e}");
                (vec![], Done::Declined(Declined::Conditions))
            }
            Err(e) => return Err(e),
        };
        self.call(&Request::Errors { release, rows }).await?;
        Ok(done)
    }

    /// None: another release is served.
    async fn measured(
        &mut self,
        release: u64,
        shards: &[ShardId],
    ) -> Result<Option<Vec<ErrorReport>>, ClientError> {
        self.model()?;
        self.refresh_release().await?;
        if self.release.number != release {
            return Ok(None);
        }
        let epoch = self.release.epoch;
        let recipe = self.recipe_of(epoch)?;
        let joined = self.joined_in(epoch).await?;
        let all = joined.samples(Part::Validation);
        let catalogue = self.catalogue_of(Some(epoch)).await?;
        let known = |s: &&LocalSample<'_>| catalogue.knows(&s.target.item);
        let all: Vec<&LocalSample<'_>> = all.iter().filter(known).collect();
        let newest = &all[all.len().saturating_sub(recipe.validation)..];
        let encoded: Vec<Sample> = newest
            .iter()
            .map(|s| self.encode(&recipe, &catalogue, s.history, s.target))
            .collect::<Result<_, _>>()?;
        let mut rows: Vec<ErrorReport> = vec![];
        for (i, s) in encoded.iter().enumerate() {
            let embedding = self.locate(&s.ids).await?;
            rows.push(ErrorReport {
                sample: i as u32,
                embedding,
                errors: vec![],
            });
        }
        let ids: Vec<Vec<u32>> = encoded.iter().map(|s| s.ids.clone()).collect();
        for shard in shards {
            let mut omega = vec![0.0; self.release.adapters.len()];
            *omega
                .get_mut(usize::from(shard.0))
                .ok_or_else(|| ClientError::Internal(format!("no {shard}")))? = 1.0;
            let margins = self.score(ids.clone(), omega).await?;
            for ((row, margin), s) in rows.iter_mut().zip(margins).zip(&encoded) {
                let toward = if s.label { margin } else { -margin };
                row.errors.push((*shard, 1.0 / (1.0 + toward.exp())));
            }
        }
        Ok(Some(rows))
    }
}

fn local_training(
    model: &ClientModel,
    frozen: &dyn FrozenStates,
    recipe: &Recipe,
    mut adapter: Adapter,
    samples: &[Sample],
    middle: &mut RemoteMiddle,
) -> Result<Trained, ClientError> {
    let start = adapter.data.clone();
    let mut grads = vec![0.0; adapter.data.len()];
    let (mut sum, mut count) = (0.0, 0);
    let (device, answers) = (&model.device, model.encoder.answers);
    let trainer = Trainer {
        device,
        answers,
        packing: recipe.packing,
        frozen,
    };
    for _ in 0..recipe.local.epochs {
        for batch in samples.chunks(recipe.local.batch) {
            middle.passes_in_step = recipe.packing.split(batch).len();
            let loss = trainer.accumulate(batch, &adapter, &mut grads, middle)?;
            descend(&mut adapter.data, &mut grads, recipe.local.lr);
            sum += loss.sum;
            count += loss.samples;
        }
    }
    let delta = adapter
        .data
        .iter()
        .zip(&start)
        .map(|(a, b)| a - b)
        .collect();
    Ok(Trained {
        delta,
        loss: (sum / count.max(1) as f64) as f32,
        samples: samples.len() as u32,
    })
}
