//! Who takes part: users with samples of their own, as one client each or gathered into silos.

use std::collections::BTreeMap;

use anyhow::ensure;
use lethe_learn::seed::Seed;
use lethe_recsys::data::Dataset;
use lethe_recsys::references::References;
use lethe_recsys::samples::{Samples, Split, TaskSample, training_events};
use lethe_unlearn::partition::clusters;

/// How many users, and of how many samples each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) users: usize,
    /// Of each user: the newest before their last fifth.
    pub(crate) train: usize,
    /// The newest of their ninth tenth.
    pub(crate) validation: usize,
    /// The oldest of their last tenth.
    pub(crate) test: usize,
    pub(crate) silos: usize,
}

/// What a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Users gathered by k-means of their vectors.
    Silos,
    /// One user each.
    Users,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Silos => "silos",
            Self::Users => "users",
        }
    }
}

/// Positions of one client's samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Client {
    pub(crate) train: Vec<usize>,
    pub(crate) validation: Vec<usize>,
    pub(crate) test: Vec<usize>,
}

impl Client {
    fn join(&mut self, other: &Self) {
        self.train.extend(&other.train);
        self.validation.extend(&other.validation);
        self.test.extend(&other.test);
    }
}

/// A user's targets as candidates of one moment, with the history before the first, as a
/// recommendation ranks them. With a history that moves on, each target would be in the histories
/// of the next: of a few targets of one user those after many liked ones are less often liked,
/// whatever the model, and within a user its AUC would fall below one half.
fn as_one(targets: Vec<TaskSample>) -> Vec<TaskSample> {
    let Some(history) = targets.first().map(|s| s.history.clone()) else {
        return targets;
    };
    targets
        .into_iter()
        .map(|s| TaskSample {
            history: history.clone(),
            ..s
        })
        .collect()
}

/// Users of an experiment.
pub(crate) struct Population {
    /// Every sample.
    pub(crate) rows: Vec<TaskSample>,
    users: Vec<Client>,
    /// Silo of each user.
    silos: Vec<usize>,
}

impl Population {
    /// Chooses users by a seeded rank among those with enough samples and both labels in the test:
    /// others have no AUC.
    ///
    /// Silos are a k-means of the users' vectors by matrix factorisation, as in PPLR's experiments
    /// (arXiv 2402.09959), none of them above twice the mean.
    pub(crate) fn draw(data: &Dataset, sizes: &Sizes, seed: &Seed) -> anyhow::Result<Self> {
        let all = Samples::build(data, Split::PerUser);
        let mut of: BTreeMap<u32, [Vec<&TaskSample>; 3]> = BTreeMap::new();
        for s in &all.all {
            of.entry(s.user).or_default()[s.part as usize].push(s);
        }
        let mut chosen: Vec<(u64, u32, [Vec<TaskSample>; 3])> = vec![];
        for (user, [train, validation, test]) in of {
            let newest = |v: &[&TaskSample], n: usize| {
                v[v.len().saturating_sub(n)..]
                    .iter()
                    .copied()
                    .cloned()
                    .collect()
            };
            let parts: [Vec<TaskSample>; 3] = [
                newest(&train, sizes.train),
                as_one(newest(&validation, sizes.validation)),
                as_one(test.iter().take(sizes.test).copied().cloned().collect()),
            ];
            let both = [true, false]
                .iter()
                .all(|l| parts[2].iter().any(|s| s.label == *l));
            let enough = [sizes.train, sizes.validation, sizes.test]
                .iter()
                .zip(&parts)
                .all(|(n, p)| p.len() == *n);
            if both && enough {
                chosen.push((seed.rank("client", &user.to_le_bytes()), user, parts));
            }
        }
        ensure!(
            chosen.len() >= sizes.users,
            "{} users have enough samples, {} are asked for",
            chosen.len(),
            sizes.users
        );
        chosen.sort_by_key(|(rank, user, _)| (*rank, *user));
        chosen.truncate(sizes.users);
        let vectors = References::fit(
            &training_events(data, Split::PerUser),
            data.users.len(),
            data.items.len(),
            seed,
        );
        let places: Vec<Vec<f32>> = chosen
            .iter()
            .map(|(_, u, _)| vectors.user_vector(*u).to_vec())
            .collect();
        let cap = (2 * sizes.users).div_ceil(sizes.silos);
        let silos = clusters(&places, sizes.silos, cap, 50, &seed.derive("silos", &[]));
        let mut rows = vec![];
        let mut take = |samples: Vec<TaskSample>| {
            let ids = (rows.len()..rows.len() + samples.len()).collect();
            rows.extend(samples);
            ids
        };
        let users = chosen
            .into_iter()
            .map(|(_, _, [train, validation, test])| Client {
                train: take(train),
                validation: take(validation),
                test: take(test),
            })
            .collect();
        Ok(Self { rows, users, silos })
    }

    /// The clients, each with at least one sample.
    pub(crate) fn clients(&self, kind: Kind) -> Vec<Client> {
        match kind {
            Kind::Users => self.users.clone(),
            Kind::Silos => {
                let mut out = vec![Client::default(); self.silos.iter().max().map_or(0, |m| m + 1)];
                for (user, silo) in self.users.iter().zip(&self.silos) {
                    out[*silo].join(user);
                }
                out.retain(|c| !c.train.is_empty());
                out
            }
        }
    }
}
