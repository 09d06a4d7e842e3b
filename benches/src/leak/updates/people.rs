//! Whose samples the experiments use.

use std::collections::BTreeMap;

use anyhow::ensure;
use lethe_learn::seed::Seed;
use lethe_recsys::data::Dataset;
use lethe_recsys::samples::{Part, Samples, Split, TaskSample};

/// People drawn at random, and positions of their samples in the lab.
#[derive(Clone, Debug, Default)]
pub(super) struct People {
    /// All samples; identified by position.
    pub(super) rows: Vec<TaskSample>,
    /// Positions of each person's samples.
    pub(super) of: Vec<Vec<usize>>,
}

impl People {
    /// `people` with `each` training samples, both by a seeded rank.
    ///
    /// # Errors
    /// Fewer people have so many samples.
    pub(super) fn draw(
        data: &Dataset,
        people: usize,
        each: usize,
        seed: &Seed,
    ) -> anyhow::Result<Self> {
        let all = Samples::build(data, Split::PerUser);
        let mut by_user: BTreeMap<u32, Vec<&TaskSample>> = BTreeMap::new();
        for s in all.part(Part::Train) {
            by_user.entry(s.user).or_default().push(s);
        }
        by_user.retain(|_, own| own.len() >= each);
        ensure!(
            by_user.len() >= people,
            "{} people have {each} samples, expected {people}",
            by_user.len()
        );
        let mut users: Vec<u32> = by_user.keys().copied().collect();
        users.sort_by_key(|u| (seed.rank("person", &u.to_le_bytes()), *u));
        let mut out = Self::default();
        for user in &users[..people] {
            let mut own = by_user.remove(user).unwrap_or_default();
            own.sort_by_key(|s| (seed.rank("sample", &s.event.to_le_bytes()), s.event));
            own.truncate(each);
            let start = out.rows.len();
            out.rows.extend(own.into_iter().cloned());
            out.of.push((start..out.rows.len()).collect());
        }
        Ok(out)
    }
}
