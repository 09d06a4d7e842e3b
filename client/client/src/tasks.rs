//! What the coordinator asks for: a round, validation, erasure.

use std::sync::Arc;
use std::time::Duration;

use lethe_learn::seed::Seed;
use lethe_model::frozen::{FrozenStates, Recomputed};
use lethe_model::lora::{Adapter, AdapterShape};
use lethe_model::split::descend;
use lethe_model::train::{Sample, Trainer};
use lethe_proto::ids::{Digest, RoundKey, ShardId};
use lethe_proto::message::{ErrorReport, Purpose, Request, RoundStart};
use lethe_proto::packed::{Packed, PackedError};
use lethe_recsys::samples::Part;
use tokio::time::Instant;

use crate::client::{Client, Done};
use crate::encode::Encoder;
use crate::history::LocalSample;
use crate::remote::RemoteMiddle;
use crate::{ClientError, ClientModel};

/// Result of local training: device part of the change, mean loss, samples.
struct Trained {
    delta: Vec<f32>,
    loss: f32,
    samples: u32,
}

impl Client {
    /// The shape of the adapter's device part.
    pub(crate) fn edge_shape(&self) -> Arc<AdapterShape> {
        let (split, layers) = (self.recipe.split, self.model.device.config().layers);
        AdapterShape::new(self.model.device.config(), &self.recipe.lora, |l| {
            split.on_device(l, layers)
        })
    }

    /// Where states of frozen layers are kept between rounds; nowhere when all layers are trained.
    fn frozen_states(&self) -> Result<Box<dyn FrozenStates>, ClientError> {
        if self
            .recipe
            .lora
            .first_trained(self.model.device.config().layers)
            == 0
        {
            self.vault.drop_frozen()?;
            return Ok(Box::new(Recomputed));
        }
        // Other arithmetic, here or on the coordinator, gives other bits.
        let engines = [self.engine.as_str(), &lethe_model::engine()].join("\0");
        let under = Digest::of(&[
            &self.recipe.digest().0,
            &self.model.digest.0,
            engines.as_bytes(),
        ]);
        let (width, format) = (self.model.device.config().hidden, self.recipe.wire);
        Ok(Box::new(self.vault.frozen(under, width, format)?))
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
        if self.minor >= 1 {
            self.session.call(&Request::Decline { round, why }).await?;
        }
        Ok(Done::Declined(why))
    }

    /// Trains in a round and sends the update.
    async fn train(&mut self, start: RoundStart) -> Result<(), ClientError> {
        self.session.count_update(start.adapter.bytes.len());
        self.joined().await?;
        let chosen = self.choose(&start)?;
        let shape = self.edge_shape();
        let adapter = self.unpack(&shape, &start.adapter)?;
        let until = Instant::now() + Duration::from_millis(start.deadline_ms);
        let purpose = Purpose::Train {
            round: start.round,
            pass: 0,
        };
        self.fits(&chosen)?;
        let frozen = self.frozen_states()?;
        let (model, recipe, session) = (
            self.model.clone(),
            self.recipe.clone(),
            self.session.clone(),
        );
        let watch = self.guard.watch();
        let _stops = watch.until_dropped();
        let trained = self
            .blocking(move || {
                let width = model.device.config().hidden;
                let mut middle =
                    RemoteMiddle::new(session, purpose, recipe.wire, width).watched(watch, until);
                middle.below_trains = adapter.shape().first_trained() < model.device.split().k_in;
                local_training(
                    &model,
                    frozen.as_ref(),
                    &recipe,
                    adapter,
                    &chosen,
                    &mut middle,
                )
            })
            .await?;
        let delta = self.pack(&start, trained.delta)?;
        self.session.count_update(delta.bytes.len());
        let update = Request::Update {
            round: start.round,
            delta,
            loss: trained.loss,
            samples: trained.samples,
        };
        self.session.call_until(&update, until).await?;
        self.session.samples.fetch_add(
            u64::from(trained.samples),
            std::sync::atomic::Ordering::Relaxed,
        );
        Ok(())
    }

    /// Refuses what would need more memory than the app allows, before anything is allocated.
    fn fits(&self, samples: &[Sample]) -> Result<(), ClientError> {
        let Some(cap) = self.memory_cap else {
            return Ok(());
        };
        let packs = samples
            .chunks(self.recipe.local.batch)
            .flat_map(|b| self.recipe.packing.split(b));
        let tokens = packs
            .map(|p| p.iter().map(|s| s.ids.len()).sum())
            .max()
            .unwrap_or(0);
        let first = self
            .recipe
            .lora
            .first_trained(self.model.device.config().layers);
        let needed = self.model.device.training_bytes(tokens, first);
        if needed > cap {
            Err(ClientError::Memory { needed, cap })
        } else {
            Ok(())
        }
    }

    /// An adapter's device part as the coordinator sent it.
    pub(crate) fn unpack(
        &self,
        shape: &Arc<AdapterShape>,
        packed: &Packed,
    ) -> Result<Adapter, ClientError> {
        let bad = |e: PackedError| {
            ClientError::Internal(format!("an adapter that the coordinator sent: {e}"))
        };
        let mut data = packed.decode(shape.len()).map_err(bad)?;
        if packed.format.lossy() {
            data.iter_mut()
                .zip(&self.recipe.initial(shape).data)
                .for_each(|(v, i)| *v += i);
        }
        Ok(Adapter::from_data(shape, data)?)
    }

    /// An update in the recipe's format. Where that leaves much out, what it leaves out is kept for
    /// the client's next round of the stage.
    fn pack(&self, start: &RoundStart, mut delta: Vec<f32>) -> Result<Packed, ClientError> {
        let bad = |e: PackedError| ClientError::Internal(e.to_string());
        let format = self.recipe.updates;
        if !format.feeds_back() {
            return Packed::encode(&delta, format).map_err(bad);
        }
        let mut feedback = self.vault.feedback()?;
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
        self.vault.keep_feedback(&feedback)?;
        Ok(packed)
    }

    /// The samples of this round: the first by a rank that depends on the round and the sample
    /// alone.
    fn choose(&self, start: &RoundStart) -> Result<Vec<Sample>, ClientError> {
        let seed = Seed(start.seed);
        let all = self
            .state
            .joined
            .as_ref()
            .ok_or(ClientError::OtherData)?
            .samples(Part::Train);
        let mut ranked: Vec<_> = all
            .iter()
            .filter(|s| self.model.knows(&s.target.item))
            .map(|s| (seed.rank("sample", &s.id()), s))
            .collect();
        ranked.sort_by_key(|(rank, s)| (*rank, s.target.time));
        ranked.truncate(self.recipe.local.samples);
        if ranked.is_empty() && !all.is_empty() {
            return Err(ClientError::NothingToTrain);
        }
        ranked
            .into_iter()
            .map(|(_, s)| self.encode(s.history, s.target))
            .collect()
    }

    pub(crate) fn encode(
        &self,
        history: &[crate::LocalEvent],
        target: &crate::LocalEvent,
    ) -> Result<Sample, ClientError> {
        let prompt = self.model.prompt(history, &target.item)?;
        Ok(self.encoder()?.sample(&prompt, target.liked)?)
    }

    /// Renders prompts as the coordinator's recipe says.
    pub(crate) fn encoder(&self) -> Result<Encoder, ClientError> {
        Ok(self.model.encoder.with(self.recipe.template()?))
    }

    /// Measures shards' adapters on the newest validation samples and reports the errors.
    pub(crate) async fn validate(
        &mut self,
        release: u64,
        shards: &[ShardId],
    ) -> Result<(), ClientError> {
        self.joined().await?;
        self.refresh_release().await?;
        let all = self
            .state
            .joined
            .as_ref()
            .ok_or(ClientError::OtherData)?
            .samples(Part::Validation);
        let known = |s: &&LocalSample<'_>| self.model.knows(&s.target.item);
        let all: Vec<&LocalSample<'_>> = all.iter().filter(known).collect();
        let newest = &all[all.len().saturating_sub(self.recipe.validation)..];
        let encoded: Vec<Sample> = newest
            .iter()
            .map(|s| self.encode(s.history, s.target))
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
        self.session
            .call(&Request::Errors { release, rows })
            .await?;
        Ok(())
    }
}

fn local_training(
    model: &ClientModel,
    frozen: &dyn FrozenStates,
    recipe: &lethe_recipe::Recipe,
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
