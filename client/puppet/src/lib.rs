//! Clients without a model: the real protocol over real QUIC, with noise in place of what a device
//! would compute.
//!
//! For load and fault tests: thousands of them fit in one process, and one can be told to fall
//! silent at any message ([`Puppet::silent_after`]). What the coordinator sees differs from a
//! device only in the values.
//!
//! ```no_run
//! # async fn example(
//! #     addr: std::net::SocketAddr,
//! #     config: &lethe_model::config::ModelConfig,
//! # ) -> Result<(), lethe_puppet::PuppetError> {
//! use lethe_puppet::{Puppet, Role};
//! let role = Role { config, model: Default::default(), seed: 7 };
//! let mut puppet = Puppet::enrol(addr, "lethe1:...", &role).await?;
//! puppet.join().await?;
//! puppet.step().await?;
//! # Ok(())
//! # }
//! ```

use std::net::SocketAddr;

use lethe_learn::secure_sum::{Grid, GridError};
use lethe_learn::seed::Seed;
use lethe_model::config::ModelConfig;
use lethe_model::lora::AdapterShape;
use lethe_proto::ids::{Digest, RoundKey};
use lethe_proto::limits::MINOR;
use lethe_proto::masked::{MASK, Masked, bound_to};
use lethe_proto::message::{
    BatchShape, Erased, ErrorReport, Purpose, Reply, Request, RoundStart, Task,
};
use lethe_proto::packed::{Packed, PackedError};
use lethe_proto::payload::Payload;
use lethe_proto::tally::ANSWER;
use lethe_receipt::note::{NoteError, VerifierKey};
use lethe_receipt::sealing::SealingStatement;
use lethe_recipe::{Recipe, RecipeError};
use lethe_seal::envelope::{PublicKey, seal_to};
use lethe_seal::{SealError, mask};
use lethe_transport::TransportError;
use lethe_transport::client::{Connection, Dialer, enrol_as};
use lethe_transport::identity::{Identity, Invitation};
use thiserror::Error;

/// Why a puppet could not go on.
#[derive(Debug, Error)]
pub enum PuppetError {
    /// The coordinator could not be reached, or refused.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The coordinator's recipe is not understood.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The noise cannot be packed.
    #[error(transparent)]
    Packed(#[from] PackedError),
    /// The noise does not fit the grid of masked updates.
    #[error(transparent)]
    Grid(#[from] GridError),
    /// No randomness, or no encryption.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// What the tally states does not hold.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The answer is not one to the question.
    #[error("the coordinator answered {asked} with something else")]
    Unexpected {
        /// What was asked.
        asked: &'static str,
    },
    /// It was told to fall silent.
    #[error("silent from message {0} on")]
    Silent(u32),
}

/// What a puppet pretends.
#[derive(Clone, Copy, Debug)]
pub struct Role<'a> {
    /// Shape of the base model.
    pub config: &'a ModelConfig,
    /// Its digest.
    pub model: Digest,
    /// Decides its noise.
    pub seed: u64,
}

/// What a [`Puppet::step`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Did {
    /// There was nothing to do.
    Nothing,
    /// Sent the update of a round.
    Trained(lethe_proto::ids::RoundKey),
    /// Reported errors.
    Validated,
    /// Erased, and joined again.
    Erased,
}

/// One of them.
#[derive(Debug)]
pub struct Puppet {
    connection: Connection,
    recipe: Recipe,
    config: ModelConfig,
    shape: std::sync::Arc<AdapterShape>,
    anchors: usize,
    seed: Seed,
    /// Its noise: the same in every round, so that a load test measures the coordinator.
    update: Option<Packed>,
    /// The same on the grid of masked updates: each time under another mask.
    on_grid: Option<Vec<u32>>,
    /// Messages that it still sends.
    left: Option<u32>,
    sent: u32,
}

/// Exchanges an invitation for an identity, over a socket that others use too.
pub async fn identity(
    dialer: &Dialer,
    addr: SocketAddr,
    invitation: &str,
) -> Result<Identity, PuppetError> {
    let invitation = Invitation::parse(invitation)?;
    Ok(enrol_as(dialer, addr, &invitation, None).await?.identity)
}

impl Puppet {
    /// Enrols and agrees on the recipe.
    pub async fn enrol(
        addr: SocketAddr,
        invitation: &str,
        role: &Role<'_>,
    ) -> Result<Self, PuppetError> {
        let dialer = Dialer::bind(addr)?;
        let identity = identity(&dialer, addr, invitation).await?;
        let authority = Invitation::parse(invitation)?.authority()?;
        Self::connect(&dialer, addr, &authority, &identity, role).await
    }

    /// Connects with an identity.
    pub async fn connect(
        dialer: &Dialer,
        addr: SocketAddr,
        authority: &[u8],
        identity: &Identity,
        role: &Role<'_>,
    ) -> Result<Self, PuppetError> {
        let connection = dialer.connect(addr, authority, Some(identity)).await?;
        let hello = Request::Hello {
            build: "lethe-puppet".into(),
            model: role.model,
            minor: MINOR,
        };
        let Reply::Welcome {
            recipe, anchors, ..
        } = connection.call(&hello).await?
        else {
            return Err(PuppetError::Unexpected { asked: "hello" });
        };
        let recipe = Recipe::from_json(&recipe)?;
        let layers = role.config.layers;
        let shape = AdapterShape::new(role.config, &recipe.lora, |l| {
            recipe.split.on_device(l, layers)
        });
        Ok(Self {
            connection,
            recipe,
            config: role.config.clone(),
            shape,
            anchors: anchors.len(),
            seed: Seed::from_u64(role.seed).derive("puppet", &[]),
            update: None,
            on_grid: None,
            left: None,
            sent: 0,
        })
    }

    /// Sends so many messages more and then none, with its connection open.
    pub fn silent_after(&mut self, messages: u32) {
        self.left = Some(messages);
    }

    /// Values of a device's part of the adapter.
    pub fn values(&self) -> usize {
        self.shape.len()
    }

    async fn call(&mut self, request: &Request) -> Result<Reply, PuppetError> {
        if let Some(left) = &mut self.left {
            if *left == 0 {
                return Err(PuppetError::Silent(self.sent));
            }
            *left -= 1;
        }
        self.sent += 1;
        Ok(self.connection.call(request).await?)
    }

    /// Takes part in the epoch.
    pub async fn join(&mut self) -> Result<(), PuppetError> {
        let anchor = (self.seed.rank("anchor", &[]) % self.anchors.max(1) as u64) as u16;
        let join = Request::Join {
            anchor: Some(anchor),
            samples: 4,
            commitment: Digest(self.seed.0),
        };
        match self.call(&join).await? {
            Reply::Joined { .. } => Ok(()),
            _ => Err(PuppetError::Unexpected { asked: "join" }),
        }
    }

    /// Asks for work once and does it.
    pub async fn step(&mut self) -> Result<Did, PuppetError> {
        let Reply::Task { task, .. } = self.call(&Request::Poll).await? else {
            return Err(PuppetError::Unexpected { asked: "poll" });
        };
        match task {
            Task::Wait => Ok(Did::Nothing),
            Task::Train(start) => {
                let round = start.round;
                self.train(start).await?;
                Ok(Did::Trained(round))
            }
            Task::Validate { release, shards } => {
                let embedding = self.noise(self.config.hidden, "embedding", 1.0);
                let errors = shards.into_iter().map(|s| (s, 0.5)).collect();
                let rows = vec![ErrorReport {
                    sample: 0,
                    embedding,
                    errors,
                }];
                self.call(&Request::Errors { release, rows }).await?;
                Ok(Did::Validated)
            }
            Task::Erase { task } => {
                let removed = vec![];
                let outcome = Erased::Done { removed };
                self.call(&Request::Erased { task, outcome }).await?;
                self.join().await?;
                Ok(Did::Erased)
            }
        }
    }

    fn noise(&self, n: usize, what: &str, scale: f32) -> Vec<f32> {
        let mut rng = self.seed.derive(what, &[]).rng();
        (0..n).map(|_| scale * rng.normal()).collect()
    }

    fn packed(&mut self) -> Result<Packed, PuppetError> {
        if let Some(update) = self.update.clone() {
            return Ok(update);
        }
        let noise = self.noise(self.shape.len(), "update", 1e-3);
        let update = Packed::encode(&noise, self.recipe.updates)?;
        self.update = Some(update.clone());
        Ok(update)
    }

    /// Under a fresh mask, as a device sends it.
    async fn masked(
        &mut self,
        grid: &Grid,
        round: RoundKey,
        samples: u32,
    ) -> Result<Packed, PuppetError> {
        let Reply::Terms(Some(terms)) = self.call(&Request::Terms).await? else {
            return Err(PuppetError::Unexpected { asked: "terms" });
        };
        let key = VerifierKey::parse(&terms.key)?;
        let statement = SealingStatement::open(&terms.note, &key)?;
        let mut values = match self.on_grid.clone() {
            Some(values) => values,
            None => {
                let noise = self.noise(self.shape.len(), "update", 1e-3);
                self.recipe.on_grid(grid, &noise, 0.6, samples)?
            }
        };
        self.on_grid = Some(values.clone());
        let seed = lethe_seal::random()?;
        mask::add(&seed, &mut values)?;
        let bound = bound_to(&terms.handle, &round, values.len() as u32);
        let key = PublicKey(statement.key);
        let sealed = seal_to(&key, MASK, &bound, &seed, ANSWER)?;
        let update = Masked {
            values,
            seed: sealed.envelope,
        };
        Ok(update.pack())
    }

    /// Through the middle layers, if there are any, and then an update of noise.
    async fn train(&mut self, start: RoundStart) -> Result<(), PuppetError> {
        let round = start.round;
        if self.recipe.split.k_in + self.recipe.split.k_out < self.config.layers {
            let (rows, width) = (8, self.config.hidden);
            let hidden = Payload::encode(
                &self.noise(rows * width, "hidden", 0.1),
                width,
                self.recipe.wire,
            );
            let shape = BatchShape {
                prefix: 0,
                lens: vec![rows as u32],
            };
            self.call(&Request::Forward {
                purpose: Purpose::Train { round, pass: 1 },
                shape,
                hidden,
            })
            .await?;
            let grad = Payload::encode(
                &self.noise(rows * width, "grad", 1e-4),
                width,
                self.recipe.wire,
            );
            self.call(&Request::Backward {
                round,
                pass: 2,
                grad,
                step: true,
            })
            .await?;
        }
        let samples = self.recipe.local.samples.min(4) as u32;
        let delta = match self.recipe.grid() {
            Some(grid) => self.masked(&grid, round, samples).await?,
            None => self.packed()?,
        };
        match self
            .call(&Request::Update {
                round,
                delta,
                loss: 0.6,
                samples,
            })
            .await?
        {
            Reply::Ack => Ok(()),
            _ => Err(PuppetError::Unexpected { asked: "update" }),
        }
    }
}
