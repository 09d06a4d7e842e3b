//! Scores and ranked lists over the split model.

use std::time::{SystemTime, UNIX_EPOCH};

use lethe_model::layout::Layout;
use lethe_model::lora::Adapter;
use lethe_model::train::Packing;
use lethe_proto::message::{Purpose, Reply, Request, ServedAdapter};
use lethe_recipe::Combination;
use lethe_recsys::samples::{HISTORY, Part};
use lethe_transport::TransportError;

use crate::client::Client;
use crate::history::samples;
use crate::remote::RemoteMiddle;
use crate::{ClientError, LocalEvent};

/// Tokens of one scoring pass: larger than in training, nothing is kept for a backward.
const SCORING: Packing = Packing { max_tokens: 2000 };

/// Where a list comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Ranked now, with the coordinator's current release.
    Live {
        /// The release.
        release: u64,
    },
    /// The coordinator is away: the list of the last time.
    Cached,
}

/// One recommended item.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranked {
    /// Item of the catalogue.
    pub item: String,
    /// Log-odds that the person likes it.
    pub score: f32,
}

/// A ranked list, best first.
#[derive(Clone, Debug, PartialEq)]
pub struct Recommendation {
    /// Where it comes from.
    pub source: Source,
    /// The items.
    pub items: Vec<Ranked>,
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

impl Client {
    /// Fetches the current release if the client has another.
    pub(crate) async fn refresh_release(&mut self) -> Result<(), ClientError> {
        let have = (self.release.number > 0).then_some(self.release.number);
        let ask = Request::Release {
            have,
            adapters: self.release.digests.clone(),
        };
        let Reply::Release(info) = self.session.call(&ask).await? else {
            return Err(TransportError::UnexpectedReply { asked: "release" }.into());
        };
        let (got, known) = (info.lineage, self.state.lineage);
        if got < known {
            return Err(ClientError::OldLineage { got, known });
        }
        if got > known {
            self.state.lineage = got;
            self.vault.save(&self.state)?;
        }
        self.release.valid_s = info.valid_s;
        if info.release != self.release.number {
            let shape = self.edge_shape();
            let (mut adapters, mut digests) = (vec![], vec![]);
            for (k, served) in info.adapters.iter().enumerate() {
                let (adapter, digest) = match served {
                    ServedAdapter::New(packed) => {
                        self.session.count_update(packed.bytes.len());
                        (self.unpack(&shape, packed)?, packed.digest())
                    }
                    ServedAdapter::Same(digest) => {
                        match self.release.digests.get(k) == Some(digest) {
                            true => (self.release.adapters[k].clone(), *digest),
                            false => {
                                return Err(
                                    TransportError::UnexpectedReply { asked: "release" }.into()
                                );
                            }
                        }
                    }
                };
                adapters.push(adapter);
                digests.push(digest);
            }
            (self.release.adapters, self.release.digests) = (adapters, digests);
            self.release.number = info.release;
        }
        Ok(())
    }

    /// Where tokens lie, by the untuned device layers.
    pub(crate) async fn locate(&self, ids: &[u32]) -> Result<Vec<f32>, ClientError> {
        let (model, ids) = (self.model.clone(), ids.to_vec());
        self.blocking(move || Ok(model.device.locate(&ids)?)).await
    }

    async fn omega(&self, ids: &[u32]) -> Result<Vec<f32>, ClientError> {
        let embedding = self.locate(ids).await?;
        match self.session.call(&Request::Weigh { embedding }).await? {
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
        let adapter = self.mixed(&omega)?;
        let purpose = Purpose::Score {
            release: self.release.number,
            omega,
        };
        let (model, session, format) = (self.model.clone(), self.session.clone(), self.recipe.wire);
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

    fn mixed(&self, omega: &[f32]) -> Result<Option<Adapter>, ClientError> {
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
        Ok(Some(match self.recipe.combine {
            Combination::Nd => Adapter::mix_nd(&used)?,
            Combination::D => Adapter::mix_d(&used)?,
        }))
    }

    /// Ranks `candidates` (items of the catalogue) for this person and returns the best `n`. Items
    /// already in the history are left out. Without the coordinator the last list is returned,
    /// marked as such, until it expires.
    pub async fn recommend(
        &mut self,
        candidates: &[&str],
        n: usize,
    ) -> Result<Recommendation, ClientError> {
        match self.rank(candidates).await {
            Ok(items) => {
                let valid = i64::try_from(self.release.valid_s).unwrap_or(i64::MAX);
                self.state.cached_until = now_unix_s().saturating_add(valid);
                self.state.cached_release = self.release.number;
                self.state.cached = items
                    .iter()
                    .take(n)
                    .map(|r| (r.item.clone(), r.score))
                    .collect();
                self.vault.save(&self.state)?;
                let items = items.into_iter().take(n).collect();
                Ok(Recommendation {
                    source: Source::Live {
                        release: self.release.number,
                    },
                    items,
                })
            }
            Err(e) if e.is_offline() && !self.state.cached.is_empty() => {
                if now_unix_s() >= self.state.cached_until {
                    self.state.cached.clear();
                    self.vault.save(&self.state)?;
                    return Err(ClientError::ListExpired(Box::new(e)));
                }
                let ranked = |(item, score): &(String, f32)| Ranked {
                    item: item.clone(),
                    score: *score,
                };
                let items = self.state.cached.iter().take(n).map(ranked).collect();
                Ok(Recommendation {
                    source: Source::Cached,
                    items,
                })
            }
            Err(e) => Err(e),
        }
    }

    async fn rank(&mut self, candidates: &[&str]) -> Result<Vec<Ranked>, ClientError> {
        self.alive()?;
        let events = &self.state.events;
        if events.len() < HISTORY {
            return Err(ClientError::ShortHistory {
                got: events.len(),
                needed: HISTORY,
            });
        }
        let history: Vec<LocalEvent> = events[events.len() - HISTORY..].to_vec();
        let fresh: Vec<&str> = candidates
            .iter()
            .copied()
            .filter(|c| !events.iter().any(|e| e.item == *c))
            .collect();
        let encoder = self.encoder()?;
        let prompt = |c: &&str| Ok(encoder.ids(&self.model.prompt(&history, c)?)?);
        let prompts: Vec<Vec<u32>> = fresh
            .iter()
            .map(prompt)
            .collect::<Result<_, ClientError>>()?;
        if prompts.is_empty() {
            return Ok(vec![]);
        }
        self.refresh_release().await?;
        let (layout, ids) = Layout::pack(&prompts);
        // One set of weights for the person: where their history lies, which all candidates share.
        let shared = if layout.prefix > 0 {
            &ids[..layout.prefix as usize]
        } else {
            &prompts[0][..]
        };
        let omega = self.omega(shared).await?;
        let scores = self.score(prompts, omega).await?;
        let mut ranked: Vec<Ranked> = fresh
            .iter()
            .zip(scores)
            .map(|(item, score)| Ranked {
                item: (*item).to_owned(),
                score,
            })
            .collect();
        ranked.sort_by(|a, b| {
            b.score
                .total_cmp(&a.score)
                .then_with(|| a.item.cmp(&b.item))
        });
        Ok(ranked)
    }

    /// Scores this client's test samples (at most `limit`, the earliest), with the served adapters
    /// or, with `untrained`, without any. Labels stay here; the caller decides what to do with the
    /// figures.
    pub async fn evaluate(
        &mut self,
        untrained: bool,
        limit: usize,
    ) -> Result<Vec<Scored>, ClientError> {
        self.alive()?;
        let tests = samples(&self.state.events, self.cutoffs(), Part::Test);
        let tests: Vec<(LocalEvent, Vec<u32>)> = tests
            .iter()
            .filter(|s| self.model.knows(&s.target.item))
            .take(limit)
            .map(|s| Ok((s.target.clone(), self.encode(s.history, s.target)?.ids)))
            .collect::<Result<_, ClientError>>()?;
        let mut scores = vec![];
        if untrained {
            scores = self
                .score(tests.iter().map(|(_, ids)| ids.clone()).collect(), vec![])
                .await?;
        } else {
            self.refresh_release().await?;
            for (_, ids) in &tests {
                let omega = self.omega(ids).await?;
                scores.extend(self.score(vec![ids.clone()], omega).await?);
            }
        }
        let scored = |((e, _), score): ((LocalEvent, Vec<u32>), f32)| Scored {
            item: e.item,
            time: e.time,
            score,
            label: e.liked,
        };
        Ok(tests.into_iter().zip(scores).map(scored).collect())
    }
}

fn now_unix_s() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs() as i64)
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
