//! Scores and ranked lists over the split model.

use std::collections::HashSet;
use std::sync::Arc;

use lethe_model::layout::Layout;
use lethe_model::lora::Adapter;
use lethe_model::train::Packing;
use lethe_proto::ids::EpochNo;
use lethe_proto::message::{Purpose, Refusal, Reply, Request, ServedAdapter};
use lethe_recipe::{Combination, Recipe};
use lethe_recsys::samples::{HISTORY, Part};
use lethe_transport::TransportError;

use crate::epochs;
use crate::history::{TrainingEvent, samples};
use crate::lists::{ListSource, Listed, MAX_PAGE, Query};
use crate::local::{Local, now_unix_s};
use crate::logged::Given;
use crate::person::KeptList;
use crate::remote::RemoteMiddle;
use crate::vault::LIST;
use crate::worker::{Release, Worker};
use crate::{Catalogue, ClientError};

/// Tokens of one scoring pass: larger than in training, nothing is kept for a backward.
const SCORING: Packing = Packing { max_tokens: 2000 };

/// What a coordinator's refusal says that has no release yet.
const NO_RELEASE: &str = "no release yet";

/// Where a list of the language model comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Ranked now, with the coordinator's current release.
    Live {
        /// The release.
        release: u64,
    },
    /// The coordinator is away: the list of the last time.
    Cached,
    /// The coordinator is away, and there is no list of the last time, or it has expired: the
    /// candidates in the order of the device's own lists ([`crate::Client::top`]).
    OnDevice(ListSource),
}

/// One recommended item.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranked {
    /// Item of the catalogue.
    pub item: String,
    /// Log-odds that the person likes it; of [`Source::OnDevice`] the score of that list, which
    /// cannot be compared with others.
    pub score: f32,
}

/// A ranked list, best first.
#[derive(Clone, Debug, PartialEq)]
pub struct Recommendation {
    /// Where it comes from.
    pub source: Source,
    /// The items.
    pub items: Vec<Ranked>,
    /// Candidates that could not be scored: the others are ranked all the same.
    pub left_out: Vec<LeftOut>,
}

/// A candidate that is not in a list because something is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The candidate.
    pub item: String,
    /// What is wrong.
    pub why: String,
}

/// What became of candidates.
#[derive(Debug, Default)]
struct Order {
    /// Best first.
    items: Vec<Ranked>,
    left_out: Vec<LeftOut>,
}

impl Order {
    fn leave_out(&mut self, item: &str, why: &dyn std::fmt::Display) {
        self.left_out.push(LeftOut {
            item: item.to_owned(),
            why: why.to_string(),
        });
    }

    /// Puts what has a score in order; a score that is no number is none.
    fn of(mut self, candidates: &[&String], scores: Vec<f32>) -> Self {
        for (item, score) in candidates.iter().zip(scores) {
            let item = (*item).clone();
            match score.is_finite() {
                true => self.items.push(Ranked { item, score }),
                false => self.leave_out(&item, &format!("its score is {score}")),
            }
        }
        self.items.sort_by(|a, b| {
            b.score
                .total_cmp(&a.score)
                .then_with(|| a.item.cmp(&b.item))
        });
        self
    }
}

/// A test sample's score and label.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// Item of the catalogue.
    pub item: String,
    /// Time of the event.
    pub time: i64,
    /// Log-odds of a like.
    pub score: f32,
    /// Liked.
    pub label: bool,
}

impl Worker {
    /// Fetches the current release if the client has another.
    pub(crate) async fn refresh_release(&mut self) -> Result<(), ClientError> {
        let fetched = match self.fetch_release().await {
            // Another one is served since it was given.
            Err(e) if e.refusal() == Some(Refusal::StaleRelease) => self.fetch_release().await?,
            other => other?,
        };
        if fetched {
            return Ok(());
        }
        // It is of an epoch with another recipe: a part of the old one that has the same bytes
        // means something else there.
        self.release = Release::default();
        match self.fetch_release().await? {
            true => Ok(()),
            // Two switches within a moment: the next call finds the newer one.
            false => Err(ClientError::NoRelease),
        }
    }

    /// False: what this device has of a release cannot be used for the one that is served.
    async fn fetch_release(&mut self) -> Result<bool, ClientError> {
        let have = (self.release.number > 0).then_some(self.release.number);
        let adapters = self.release.digests.clone();
        let names_epochs = self.minor() >= epochs::MINOR;
        let ask = match names_epochs {
            true => Request::Served { have, adapters },
            false => Request::Release { have, adapters },
        };
        let reply = match self.call(&ask).await {
            // A coordinator is busy with its first training until it has a release.
            Err(e) if e.refusal() == Some(Refusal::Busy) && e.to_string().contains(NO_RELEASE) => {
                return Err(ClientError::NoRelease);
            }
            other => other?,
        };
        let unexpected = || ClientError::from(TransportError::UnexpectedReply { asked: "release" });
        let (epoch, info) = match reply {
            Reply::Release(info) if !names_epochs => (EpochNo::FIRST, info),
            Reply::Served(served) if names_epochs => (served.epoch, served.release),
            _ => return Err(unexpected()),
        };
        if self.epoch(epoch).is_err() {
            // It is served since this device asked which epochs there are.
            self.learn_epochs().await?;
        }
        self.fits_epoch(epoch)?;
        let recipe = self.recipe_of(epoch)?;
        if have.is_some() && self.release.recipe != recipe.digest() {
            return Ok(false);
        }
        {
            let mut local = self.local()?;
            let known = local.person.lineage;
            let got = info.lineage;
            if got < known {
                return Err(ClientError::OldLineage { got, known });
            }
            if got > known {
                local.person.lineage = got;
                local.save()?;
            }
        }
        self.release.valid_s = info.valid_s;
        if info.release != self.release.number {
            let shape = self.edge_shape(&recipe)?;
            let session = self.session()?;
            let (mut adapters, mut digests) = (vec![], vec![]);
            for (k, served) in info.adapters.iter().enumerate() {
                let (adapter, digest) = match served {
                    ServedAdapter::New(packed) => {
                        session.count_update(packed.bytes.len());
                        (self.unpack(&recipe, &shape, packed)?, packed.digest())
                    }
                    ServedAdapter::Same(digest) => {
                        match self.release.digests.get(k) == Some(digest) {
                            true => (self.release.adapters[k].clone(), *digest),
                            false => return Err(unexpected()),
                        }
                    }
                };
                adapters.push(adapter);
                digests.push(digest);
            }
            let given = Given {
                release: info.release,
                epoch,
                recipe: &recipe,
                parts: &digests,
            };
            self.release_is_logged(&given).await?;
            (self.release.adapters, self.release.digests) = (adapters, digests);
            self.release.number = info.release;
            self.release.recipe = recipe.digest();
        }
        self.release.epoch = epoch;
        Ok(true)
    }

    /// Where tokens lie, by the untuned device layers.
    pub(crate) async fn locate(&self, ids: &[u32]) -> Result<Vec<f32>, ClientError> {
        let model = self.model()?.clone();
        let ids = ids.to_vec();
        self.blocking(move || Ok(model.device.locate(&ids)?)).await
    }

    async fn omega(&self, ids: &[u32]) -> Result<Vec<f32>, ClientError> {
        let embedding = self.locate(ids).await?;
        match self.call(&Request::Weigh { embedding }).await? {
            Reply::Omega(omega) if omega.len() == self.release.adapters.len() => Ok(omega),
            _ => Err(TransportError::UnexpectedReply { asked: "weights" }.into()),
        }
    }

    /// Log-odds of a like for each prompt, with shard weights `omega` (empty: the untuned model).
    pub(crate) async fn score(
        &self,
        prompts: Vec<Vec<u32>>,
        omega: Vec<f32>,
    ) -> Result<Vec<f32>, ClientError> {
        let recipe = self.recipe_of(self.scoring())?;
        let adapter = self.mixed(&recipe, &omega)?;
        let purpose = Purpose::Score {
            release: self.release.number,
            omega,
        };
        let model = self.model()?.clone();
        let session = self.session()?;
        let format = recipe.wire;
        self.blocking(move || {
            let mut middle =
                RemoteMiddle::new(session, purpose, format, model.device.config().hidden);
            let mut out = Vec::with_capacity(prompts.len());
            for pack in shared_packs(&prompts) {
                let (layout, ids) = Layout::pack(pack);
                let answers = model.encoder.answers;
                let logits =
                    model
                        .device
                        .score(&layout, &ids, answers, adapter.as_ref(), &mut middle)?;
                out.extend(logits.iter().map(|l| l[1] - l[0]));
            }
            Ok(out)
        })
        .await
    }

    fn mixed(&self, recipe: &Recipe, omega: &[f32]) -> Result<Option<Adapter>, ClientError> {
        let used: Vec<(&Adapter, f32)> = self
            .release
            .adapters
            .iter()
            .zip(omega.iter().copied())
            .filter(|(_, w)| *w != 0.0)
            .collect();
        if used.is_empty() {
            return Ok(None);
        }
        Ok(Some(match recipe.combine {
            Combination::Nd => Adapter::mix_nd(&used)?,
            Combination::D => Adapter::mix_d(&used)?,
        }))
    }

    /// Ranks `candidates` (items of the catalogue) for this person and returns the best `n`.
    /// Without the coordinator the last list is returned, marked as such, until it expires, and
    /// then the device's own order of the candidates.
    pub(crate) async fn recommend(
        &mut self,
        candidates: &[String],
        n: usize,
    ) -> Result<Recommendation, ClientError> {
        let mut ranked = self.rank(candidates).await;
        if let Err(e) = &ranked
            && e.refusal() == Some(Refusal::StaleRelease)
        {
            // Another release, perhaps of another epoch, is served since this one was fetched.
            ranked = self.rank(candidates).await;
        }
        match ranked {
            Ok(order) => self.keep_list(order, n),
            Err(e) if e.leaves_the_last_list() => self.without_coordinator(candidates, n, e),
            Err(e) => Err(e),
        }
    }

    fn keep_list(&self, order: Order, n: usize) -> Result<Recommendation, ClientError> {
        let Order {
            mut items,
            left_out,
        } = order;
        items.truncate(n);
        let valid = i64::try_from(self.release.valid_s).unwrap_or(i64::MAX);
        let list = KeptList {
            items: items.iter().map(|r| (r.item.clone(), r.score)).collect(),
            until: now_unix_s().saturating_add(valid),
            release: self.release.number,
        };
        let mut local = self.local()?;
        local.vault.write(LIST, &list)?;
        local.list = Some(list);
        let Local { clock, vault, .. } = &mut *local;
        clock.begin(vault)?;
        Ok(Recommendation {
            source: Source::Live {
                release: self.release.number,
            },
            items,
            left_out,
        })
    }

    /// The last list, or what the device ranks by itself where nobody is reached. A coordinator
    /// that answers "busy" says so for a reason (a deletion is to be executed first): without a
    /// last list that is the answer.
    fn without_coordinator(
        &self,
        candidates: &[String],
        n: usize,
        why: ClientError,
    ) -> Result<Recommendation, ClientError> {
        let catalogue = self.catalogue();
        let (list, met) = {
            let mut local = self.local()?;
            let met = local.events.iter().filter_map(|e| catalogue.find(&e.item));
            let met: HashSet<u32> = met.collect();
            (local.shown_list()?, met)
        };
        let Some(list) = list else {
            if why.refusal().is_some() {
                return Err(why);
            }
            return self.on_device(&catalogue, candidates, n);
        };
        // What has left the catalogue, or was met since, is not shown any more.
        let shown = |item: &str| catalogue.find(item).is_some_and(|p| !met.contains(&p));
        let left = list.items.into_iter().filter(|(item, _)| shown(item));
        let ranked = |pair: (String, f32)| Ranked {
            item: pair.0,
            score: pair.1,
        };
        Ok(Recommendation {
            source: Source::Cached,
            items: left.take(n).map(ranked).collect(),
            left_out: vec![],
        })
    }

    fn on_device(
        &self,
        catalogue: &Arc<Catalogue>,
        candidates: &[String],
        n: usize,
    ) -> Result<Recommendation, ClientError> {
        // As when the language model ranks: items that have left are shown to nobody.
        let mut order = Order::default();
        let mut known = vec![];
        for item in candidates {
            match catalogue.had(item) {
                Ok(()) if catalogue.find(item).is_some() => known.push(item.clone()),
                Ok(()) => {}
                Err(e) => order.leave_out(item, &e),
            }
        }
        let query = Query {
            candidates: Some(known),
            ..Query::first(n.min(MAX_PAGE))
        };
        let input = self.local()?.input(catalogue, None);
        let page = input.decode().rank(&query)?.page(0, query.n);
        let ranked = |place: Listed| Ranked {
            item: place.item,
            score: place.score as f32,
        };
        Ok(Recommendation {
            source: Source::OnDevice(page.source),
            items: page.items.into_iter().map(ranked).collect(),
            left_out: order.left_out,
        })
    }

    async fn rank(&mut self, candidates: &[String]) -> Result<Order, ClientError> {
        let model = self.model()?.clone();
        let catalogue = self.catalogue();
        let (events, met) = {
            let local = self.local()?;
            let met = local.events.iter().filter_map(|e| catalogue.find(&e.item));
            let met: HashSet<u32> = met.collect();
            (local.training(&catalogue), met)
        };
        if events.len() < HISTORY {
            return Err(ClientError::ShortHistory {
                got: events.len(),
                needed: HISTORY,
            });
        }
        let history = &events[events.len() - HISTORY..];
        // Items that have left are shown to nobody; what was never there is left out below.
        let fresh = |c: &&String| match catalogue.find(c) {
            Some(place) => !met.contains(&place),
            None => !catalogue.has_left(c),
        };
        let fresh: Vec<&String> = candidates.iter().filter(fresh).collect();
        // The prompt is the recipe's of the epoch that is served.
        self.ready().await?;
        self.refresh_release().await?;
        let encoder = self.encoder(&self.recipe_of(self.release.epoch)?)?;
        let mut order = Order::default();
        let mut scored: Vec<&String> = vec![];
        let mut prompts: Vec<Vec<u32>> = vec![];
        let mut first = None;
        for candidate in fresh {
            let prompt = model.prompt(&catalogue, history, candidate);
            match prompt.and_then(|p| Ok(encoder.ids(&p)?)) {
                Ok(ids) => {
                    scored.push(candidate);
                    prompts.push(ids);
                }
                // What is wrong with one item concerns that item.
                Err(e) => {
                    tracing::warn!("{candidate:?} is left out of the list: {e}");
                    order.leave_out(candidate, &e);
                    first = first.or(Some(e));
                }
            }
        }
        match first {
            // There is no other item, or it is not the item.
            Some(e) if prompts.is_empty() => return Err(e),
            _ if prompts.is_empty() => return Ok(order),
            _ => {}
        }
        let (layout, ids) = Layout::pack(&prompts);
        // One set of weights for the person: where their history lies, which all candidates share.
        let shared = if layout.prefix > 0 {
            &ids[..layout.prefix as usize]
        } else {
            &prompts[0][..]
        };
        let omega = self.omega(shared).await?;
        let scores = self.score(prompts, omega).await?;
        Ok(order.of(&scored, scores))
    }

    /// Scores this client's test samples (at most `limit`, the earliest), with the served adapters
    /// or, with `untrained`, without any.
    pub(crate) async fn evaluate(
        &mut self,
        untrained: bool,
        limit: usize,
    ) -> Result<Vec<Scored>, ClientError> {
        self.model()?;
        self.ready().await?;
        if !untrained {
            self.refresh_release().await?;
        }
        let recipe = self.recipe_of(self.scoring())?;
        let catalogue = self.catalogue();
        let own = self.local()?.to_join(&catalogue);
        let tests: Vec<(TrainingEvent, Vec<u32>)> = samples(&own.events, own.cutoffs, Part::Test)
            .iter()
            .filter(|s| catalogue.knows(&s.target.item))
            .take(limit)
            .map(|s| {
                let sample = self.encode(&recipe, &catalogue, s.history, s.target)?;
                Ok((s.target.clone(), sample.ids))
            })
            .collect::<Result<_, ClientError>>()?;
        let mut scores = vec![];
        if untrained {
            scores = self
                .score(tests.iter().map(|(_, ids)| ids.clone()).collect(), vec![])
                .await?;
        } else {
            for (_, ids) in &tests {
                let omega = self.omega(ids).await?;
                scores.extend(self.score(vec![ids.clone()], omega).await?);
            }
        }
        let scored = |((e, _), score): ((TrainingEvent, Vec<u32>), f32)| Scored {
            item: e.item,
            time: e.time,
            score,
            label: e.liked,
        };
        Ok(tests.into_iter().zip(scores).map(scored).collect())
    }
}

/// Packs that fit a scoring pass once their common prefix is shared.
fn shared_packs(prompts: &[Vec<u32>]) -> Vec<&[Vec<u32>]> {
    let mut packs = vec![];
    let mut start = 0;
    while start < prompts.len() {
        let mut end = start + 1;
        while end < prompts.len()
            && Layout::pack(&prompts[start..=end]).0.rows() <= SCORING.max_tokens
        {
            end += 1;
        }
        packs.push(&prompts[start..end]);
        start = end;
    }
    packs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_08_a_score_that_is_no_number_leaves_its_item_out_and_ranks_the_rest() {
        let names = ["a", "b", "c", "d"].map(String::from);
        let candidates: Vec<&String> = names.iter().collect();
        let scores = vec![0.5, f32::NAN, 0.7, f32::INFINITY];
        let order = Order::default().of(&candidates, scores);
        let ranked: Vec<&str> = order.items.iter().map(|r| r.item.as_str()).collect();
        assert_eq!(ranked, ["c", "a"]);
        let left: Vec<&str> = order.left_out.iter().map(|l| l.item.as_str()).collect();
        assert_eq!(left, ["b", "d"]);
        assert!(
            order.left_out[0].why.contains("NaN"),
            "{:?}",
            order.left_out
        );
    }
}
