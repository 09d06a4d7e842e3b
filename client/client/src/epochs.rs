//! Epochs as a device knows them: which are alive, what it joined each with, and what it lacks.
//!
//! A device trains an epoch on what it joined that epoch with, and by that epoch's recipe. When the
//! coordinator says that a newer one is there, a device that takes part joins it with what it holds
//! then (`docs/life.md`).

use std::collections::BTreeMap;
use std::sync::MutexGuard;

use lethe_proto::epochs::{EpochInfo, Lacks, TrainsFrom};
use lethe_proto::ids::{Digest, EpochNo, ShardId};
use lethe_proto::message::{Refusal, Reply, Request};
use lethe_recipe::Recipe;
use lethe_transport::TransportError;
use serde::{Deserialize, Serialize};

use crate::history::{Erasure, Joined};
use crate::local::{Local, now_unix_s};
use crate::vault::{EPOCHS, Vault};
use crate::worker::{KnownEpoch, Welcome, Worker};
use crate::{ClientError, ModelOptions};

/// Minor version from which clients know that there are several epochs.
pub(crate) const MINOR: u16 = 5;
/// Most epochs that a coordinator may have alive: two while one follows another, and one that is
/// about to end.
const MOST: usize = 4;

/// Seconds after which a join of a newer epoch that failed is tried again.
const FOLLOW_S: i64 = 20;

/// The sealed file `epochs`: what the device joined each epoch with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Places {
    /// What the coordinator was last known to count: the only data that is trained on in an epoch.
    pub(crate) joined: BTreeMap<EpochNo, Joined>,
    /// What the last join offered, until the coordinator's answer says whether it counts.
    pub(crate) offered: Option<Offered>,
    /// A join counted once: the device joins epochs that follow by itself, whatever has ended while
    /// it was away.
    pub(crate) takes_part: bool,
    /// An older version, to which all epochs were one, has left what is under the first.
    pub(crate) taken_over: bool,
}

/// What a join offered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Offered {
    pub(crate) epoch: EpochNo,
    pub(crate) data: Joined,
}

impl Places {
    /// From a folder. Older versions knew one epoch, the first, and kept this with the identity.
    pub(crate) fn of(vault: &Vault, old: Old) -> Result<Self, ClientError> {
        if let Some(known) = vault.read(EPOCHS)? {
            return Ok(known);
        }
        let known = old.joined.is_some();
        let joined = old.joined.map(|joined| (EpochNo::FIRST, joined));
        let offered = old.offered.map(|data| Offered {
            epoch: EpochNo::FIRST,
            data,
        });
        Ok(Self {
            joined: joined.into_iter().collect(),
            offered,
            takes_part: known,
            taken_over: known,
        })
    }

    /// The newest epoch that was joined, with the data.
    pub(crate) fn newest(&self) -> Option<(EpochNo, &Joined)> {
        let last = self.joined.iter().next_back();
        last.map(|(no, joined)| (*no, joined))
    }

    /// Removes events from all that was joined with.
    pub(crate) fn erase(&mut self, what: &Erasure) {
        let all = self.joined.values_mut();
        let offered = self.offered.iter_mut().map(|o| &mut o.data);
        all.chain(offered).for_each(|j| *j = j.without(what));
    }
}

/// What a folder of an older version says.
#[derive(Default)]
pub(crate) struct Old {
    pub(crate) joined: Option<Joined>,
    pub(crate) offered: Option<Joined>,
}

/// What the person's data trains, as the coordinator said last; forgotten with the process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) trains: Option<TrainsFrom>,
    /// Shards, by epoch.
    pub(crate) shards: BTreeMap<EpochNo, ShardId>,
    /// The device lacks this for the newest epoch.
    pub(crate) needs: Option<Needs>,
    /// Epochs that have begun: whether what this device joined one with is what counts in it, as
    /// the coordinator has said since. Another device of the person may have joined with other
    /// data.
    pub(crate) counts: BTreeMap<EpochNo, bool>,
}

/// What a device needs to take part in the newest epoch, besides what it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The epoch's number.
    pub epoch: u32,
    /// What it lacks.
    pub lacks: Lacks,
    /// Digest of the base model that the epoch uses, hexadecimal.
    pub model: String,
    /// How the model is to be loaded; `None`: this version does not understand the recipe, and the
    /// app has to be updated.
    pub options: Option<ModelOptions>,
}

impl Local {
    /// Replaces the file of the epochs.
    pub(crate) fn save_places(&self) -> Result<(), ClientError> {
        self.vault.write(EPOCHS, &self.places)
    }

    /// Training data of the newest epoch that was joined.
    pub(crate) fn joined(&self) -> Option<&Joined> {
        self.places.newest().map(|(_, joined)| joined)
    }

    /// The shard of the newest epoch that has placed this person.
    pub(crate) fn shard(&self) -> Option<ShardId> {
        self.told.shards.values().next_back().copied()
    }
}

impl Worker {
    /// Asks which epochs there are, and forgets what those were joined with that have ended.
    pub(crate) async fn learn_epochs(&mut self) -> Result<(), ClientError> {
        if self.minor() < MINOR {
            return Ok(());
        }
        let Reply::Epochs(all) = self.call(&Request::Epochs).await? else {
            return Err(TransportError::UnexpectedReply { asked: "epochs" }.into());
        };
        if all.is_empty() || all.len() > MOST {
            let got = all.len();
            let message = format!("the coordinator has {got} epochs, expected 1 to {MOST}");
            return Err(ClientError::Internal(message));
        }
        let known: Vec<KnownEpoch> = all.into_iter().map(known).collect();
        let alive = |no: &EpochNo| known.iter().any(|k| k.no == *no);
        {
            let mut local = self.local()?;
            let before = local.places.joined.len();
            if std::mem::take(&mut local.places.taken_over) {
                // A join meant the newest epoch then: the coordinator says whether it was this one.
                let epoch = known.last().map_or(EpochNo::FIRST, |k| k.no);
                if epoch != EpochNo::FIRST
                    && let Some(data) = local.places.joined.remove(&EpochNo::FIRST)
                {
                    local.places.offered = Some(Offered { epoch, data });
                }
                local.save_places()?;
            }
            local.places.joined.retain(|no, _| alive(no));
            local.told.shards.retain(|no, _| alive(no));
            local.told.counts.retain(|no, _| alive(no));
            if local.places.joined.len() < before {
                local.save_places()?;
            }
        }
        if let Some(welcome) = &mut self.welcome {
            welcome.epochs = known;
        }
        let needs = self.epochs().last().and_then(|newest| self.needs(newest));
        self.local()?.told.needs = needs;
        Ok(())
    }

    fn epochs(&self) -> &[KnownEpoch] {
        self.welcome.as_ref().map_or(&[], |w| &w.epochs)
    }

    /// Number of the newest epoch that is alive; before a welcome, that of the first.
    pub(crate) fn newest_no(&self) -> EpochNo {
        self.epochs().last().map_or(EpochNo::FIRST, |k| k.no)
    }

    /// An epoch that is alive.
    ///
    /// # Errors
    /// [`ClientError::EpochOver`].
    pub(crate) fn epoch(&self, no: EpochNo) -> Result<&KnownEpoch, ClientError> {
        let no = self.known_as(no);
        let found = self.epochs().iter().find(|k| k.no == no);
        found.ok_or(ClientError::EpochOver { epoch: no.0 })
    }

    /// To a coordinator of before, or as a client of before, all epochs are one: it lets such a
    /// client go on as long as all have the same recipe.
    fn known_as(&self, no: EpochNo) -> EpochNo {
        match self.minor() < MINOR {
            true => EpochNo::FIRST,
            false => no,
        }
    }

    /// The recipe of an epoch.
    ///
    /// # Errors
    /// [`ClientError::EpochOver`]; [`ClientError::NewerRecipe`].
    pub(crate) fn recipe_of(&self, no: EpochNo) -> Result<Recipe, ClientError> {
        let recipe = self.epoch(no)?.recipe.clone();
        recipe.ok_or(ClientError::NewerRecipe { epoch: no.0 })
    }

    /// The epoch whose recipe scores: that of the release or, before there is one, of the epoch
    /// which is served or joined.
    pub(crate) fn scoring(&self) -> EpochNo {
        if self.release.number > 0 {
            return self.release.epoch;
        }
        let serving = self.epochs().iter().find(|k| k.serving);
        serving.map_or_else(|| self.newest_no(), |k| k.no)
    }

    /// What the loaded model lacks for an epoch; `None`: nothing, or there is no model at all.
    pub(crate) fn lacks(&self, epoch: &KnownEpoch) -> Option<Lacks> {
        let model = self.shared.model.as_ref()?;
        let Some(recipe) = &epoch.recipe else {
            return Some(Lacks::Recipe);
        };
        if epoch.model != Digest::default() && epoch.model != model.digest {
            return Some(Lacks::Model);
        }
        if recipe.split != model.device.split() {
            return Some(Lacks::Layers);
        }
        (recipe.compute != model.device.compute()).then_some(Lacks::Arithmetic)
    }

    fn needs(&self, epoch: &KnownEpoch) -> Option<Needs> {
        let lacks = self.lacks(epoch)?;
        Some(Needs {
            epoch: epoch.no.0,
            lacks,
            model: epoch.model.hex(),
            options: epoch.recipe.as_ref().map(|recipe| ModelOptions {
                split: recipe.split,
                compute: recipe.compute,
            }),
        })
    }

    /// Refuses what needs the model in an epoch for which the loaded one does not fit.
    ///
    /// # Errors
    /// [`ClientError::OtherOptions`], [`ClientError::OtherModel`], [`ClientError::NewerRecipe`].
    pub(crate) fn fits_epoch(&self, no: EpochNo) -> Result<(), ClientError> {
        let epoch = self.epoch(no)?;
        let (Some(lacks), Some(model)) = (self.lacks(epoch), &self.shared.model) else {
            return Ok(());
        };
        match (lacks, &epoch.recipe) {
            (Lacks::Recipe, _) | (_, None) => Err(ClientError::NewerRecipe { epoch: no.0 }),
            (Lacks::Model, _) => Err(ClientError::OtherModel {
                wanted: epoch.model.hex(),
                loaded: model.digest.hex(),
            }),
            (Lacks::Layers | Lacks::Arithmetic, Some(recipe)) => Err(ClientError::OtherOptions {
                wanted: ModelOptions {
                    split: recipe.split,
                    compute: recipe.compute,
                },
                loaded: ModelOptions {
                    split: model.device.split(),
                    compute: model.device.compute(),
                },
            }),
        }
    }

    /// There is a newer epoch than this device knew: it joins, if it takes part in one already, or
    /// says what it lacks.
    pub(crate) async fn follow(&mut self) -> Result<(), ClientError> {
        self.learn_epochs().await?;
        let newest = self.newest_no();
        let (joined, needs, takes_part) = {
            let local = self.local()?;
            let newest = local.places.newest().map(|(no, _)| no);
            (newest, local.told.needs.clone(), local.places.takes_part)
        };
        if let Some(needs) = needs {
            let say = Request::Lacks {
                epoch: newest,
                lacks: needs.lacks,
            };
            self.call(&say).await?;
            return Ok(());
        }
        if !takes_part || joined.is_some_and(|no| no >= newest) {
            return Ok(());
        }
        match self.join_newest().await {
            // Another device of this person has joined it first, with other data.
            Err(ClientError::OtherData) => Ok(()),
            // It ended meanwhile: the next answer says so.
            Err(e) if e.refusal() == Some(Refusal::Invalid) => Ok(()),
            other => other,
        }
    }

    /// Waits for work, for news of lists, or of an epoch. `None`: other jobs go first.
    pub(crate) async fn await_news(
        &mut self,
    ) -> Result<Option<lethe_proto::lists::Watched>, ClientError> {
        self.try_to_follow().await;
        // What was heard of, followed or not: otherwise the answer would come at once, again and
        // again.
        let newest = self.heard.unwrap_or_else(|| self.newest_no());
        let ask = Request::Await {
            lists: self.lists,
            newest,
        };
        let queued = self.queued();
        let reply = tokio::select! {
            reply = self.call(&ask) => reply?,
            () = queued.any() => return Ok(None),
        };
        let Reply::Awaited(awaited) = reply else {
            return Err(TransportError::UnexpectedReply { asked: "await" }.into());
        };
        if awaited.newest != newest {
            self.heard = Some(awaited.newest);
            self.follow_at = 0;
            self.try_to_follow().await;
        }
        Ok(Some(awaited.watched))
    }

    /// Follows to the newest epoch, unless that is done. What fails is tried again later: it keeps
    /// nothing else from going on.
    pub(crate) async fn try_to_follow(&mut self) {
        let newest = self.heard.unwrap_or_else(|| self.newest_no());
        let now = now_unix_s();
        if self.minor() < MINOR || self.followed == Some(newest) || now < self.follow_at {
            return;
        }
        match self.follow().await {
            Ok(()) => {
                self.followed = Some(self.newest_no());
                self.heard = self.followed;
            }
            Err(e) => {
                tracing::info!("the newest epoch is not joined yet: {e}");
                self.follow_at = now.saturating_add(FOLLOW_S);
            }
        }
    }

    /// The data that counts in an epoch which has begun.
    pub(crate) async fn joined_in(&mut self, epoch: EpochNo) -> Result<Joined, ClientError> {
        match self.settle().await {
            // What was offered may be about another epoch.
            Ok(()) | Err(ClientError::OtherData) => {}
            Err(e) => return Err(e),
        }
        let epoch = self.known_as(epoch);
        let joined = {
            let local = self.local()?;
            let joined = local.places.joined.get(&epoch);
            joined.filter(|_| !local.owes).cloned()
        };
        let joined = joined.ok_or(ClientError::OtherData)?;
        if self.minor() < MINOR {
            return Ok(joined);
        }
        let known = self.local()?.told.counts.get(&epoch).copied();
        let mine = match known {
            Some(mine) => mine,
            // Before the epoch began, another device of the person may have joined with other data.
            None => self.ask_whose_counts(epoch, joined.clone()).await?,
        };
        mine.then_some(joined).ok_or(ClientError::OtherData)
    }

    /// Asks whether this data counts in an epoch that has begun: from then on that stays, until
    /// the device erases something and joins again.
    async fn ask_whose_counts(
        &mut self,
        epoch: EpochNo,
        data: Joined,
    ) -> Result<bool, ClientError> {
        let mine = match self.offer(epoch, data).await {
            Ok(()) => true,
            Err(ClientError::OtherData) => false,
            Err(e) => return Err(self.over(epoch, e).await),
        };
        self.local()?.told.counts.insert(epoch, mine);
        Ok(mine)
    }

    /// What an offer's refusal says, where the epoch has ended meanwhile: nothing of it is offered
    /// any more.
    async fn over(&mut self, epoch: EpochNo, refused: ClientError) -> ClientError {
        if refused.refusal() != Some(Refusal::Invalid) {
            return refused;
        }
        if let Err(e) = self.learn_epochs().await {
            return e;
        }
        if self.epoch(epoch).is_ok() {
            return refused;
        }
        let forgotten = self.local().and_then(|mut local| {
            local.places.offered.take_if(|o| o.epoch == epoch);
            local.save_places()
        });
        match forgotten {
            Ok(()) => ClientError::EpochOver { epoch: epoch.0 },
            Err(e) => e,
        }
    }

    /// Finds out whether an offer counts whose answer was lost.
    pub(crate) async fn settle(&mut self) -> Result<(), ClientError> {
        let offered = self.local()?.places.offered.clone();
        let Some(offered) = offered else {
            return Ok(());
        };
        if self.epoch(offered.epoch).is_err() {
            // Its epoch has ended: nothing of it counts.
            let mut local = self.local()?;
            local.places.offered = None;
            return local.save_places();
        }
        let epoch = offered.epoch;
        match self.offer(epoch, offered.data).await {
            Err(e) => match self.over(epoch, e).await {
                ClientError::EpochOver { .. } => Ok(()),
                e => Err(e),
            },
            Ok(()) => Ok(()),
        }
    }

    /// Joins again with what remains after an erasure. The older of two epochs first, while the
    /// newer one has not begun: there the person may still join, and stays in both.
    pub(crate) async fn join_what_remains(&mut self) -> Result<(), ClientError> {
        // One may have begun, or ended, since this device asked.
        self.learn_epochs().await?;
        let all: Vec<(EpochNo, Joined)> = {
            let local = self.local()?;
            let joined = local.places.joined.iter();
            joined.map(|(no, data)| (*no, data.clone())).collect()
        };
        let Some((newest, last)) = all.last().cloned() else {
            return self.join().await;
        };
        let waits = self.epoch(newest).is_ok_and(|k| !k.begun);
        let older: Vec<(EpochNo, Joined)> = match waits {
            true => all.into_iter().filter(|(no, _)| *no != newest).collect(),
            false => vec![],
        };
        if !older.is_empty() {
            // From the first of these joins on the coordinator waits for the last. Should this
            // process end in between, or an answer come later, the newest is followed to again.
            let mut local = self.local()?;
            local.places.joined.remove(&newest);
            local.places.offered = older.first().map(|(epoch, data)| Offered {
                epoch: *epoch,
                data: data.clone(),
            });
            local.save_places()?;
            drop(local);
            self.followed = None;
        }
        for (older, data) in older {
            self.offer(older, data).await?;
        }
        self.offer(newest, last).await
    }

    /// One join on the wire: the shard, the commitment that counts, and from when on it trains.
    pub(crate) async fn ask_to_join(
        &self,
        epoch: EpochNo,
        with: Join,
    ) -> Result<Answered, ClientError> {
        let Join {
            anchor,
            samples,
            commitment,
        } = with;
        let unexpected = || TransportError::UnexpectedReply { asked: "join" };
        if self.minor() < MINOR {
            let join = Request::Join {
                anchor,
                samples,
                commitment,
            };
            let Reply::Joined { shard, commitment } = self.call(&join).await? else {
                return Err(unexpected().into());
            };
            return Ok(Answered {
                shard,
                commitment,
                trains: None,
            });
        }
        let join = Request::JoinEpoch {
            epoch,
            anchor,
            samples,
            commitment,
        };
        let Reply::JoinedEpoch(joined) = self.call(&join).await? else {
            return Err(unexpected().into());
        };
        Ok(Answered {
            shard: joined.shard,
            commitment: joined.commitment,
            trains: Some(joined.trains),
        })
    }

    /// What became of an offer.
    pub(crate) fn take_answer(
        mut local: MutexGuard<'_, Local>,
        epoch: EpochNo,
        mine: Digest,
        answered: Answered,
    ) -> Result<(), ClientError> {
        let offered = local.places.offered.take();
        if let Some(offered) = offered.filter(|_| answered.commitment == mine) {
            local.places.joined.insert(epoch, offered.data);
            local.places.takes_part = true;
        }
        local.save_places()?;
        match answered.shard {
            Some(shard) => drop(local.told.shards.insert(epoch, shard)),
            None => drop(local.told.shards.remove(&epoch)),
        }
        local.told.trains = answered.trains;
        let salt = local.person.salt;
        let joined = local.places.joined.get(&epoch);
        let mine = joined.is_some_and(|j| j.commitment(&salt) == answered.commitment);
        if let Some(counts) = local.told.counts.get_mut(&epoch) {
            *counts = mine;
        }
        match mine {
            true => Ok(()),
            false => Err(ClientError::OtherData),
        }
    }
}

/// What a join says.
pub(crate) struct Join {
    pub(crate) anchor: Option<u16>,
    pub(crate) samples: u32,
    pub(crate) commitment: Digest,
}

/// What is answered to a join.
pub(crate) struct Answered {
    pub(crate) shard: Option<ShardId>,
    pub(crate) commitment: Digest,
    pub(crate) trains: Option<TrainsFrom>,
}

fn known(info: EpochInfo) -> KnownEpoch {
    KnownEpoch {
        no: info.no,
        recipe: Recipe::from_json(&info.recipe)
            .inspect_err(|e| tracing::warn!("{} is not understood: {e}", info.no))
            .ok(),
        anchors: info.anchors,
        model: info.model,
        serving: info.serving,
        begun: info.begun,
    }
}

impl Welcome {
    /// The one epoch of a coordinator that knows no others.
    pub(crate) fn only(recipe: Recipe, anchors: Vec<Vec<f32>>) -> Vec<KnownEpoch> {
        vec![KnownEpoch {
            no: EpochNo::FIRST,
            recipe: Some(recipe),
            anchors,
            // Its own check was made when the client introduced itself.
            model: Digest::default(),
            serving: true,
            begun: true,
        }]
    }
}
