//! What placement and batching save, simulated: an epoch's subjects, a trace of deletions, and the
//! samples that each deletion has retrained (SISA, arXiv 1912.03817, section V, with this system's
//! rounds).
//!
//! The simulation keeps counts only; the cost of a stage is the one that [`crate::plan()`]
//! forecasts: rounds times cohort times samples per client. [`Shape::saving`] is deterministic in
//! its seed.

use lethe_proto::ids::Digest;

/// Which slice a subject's data enters with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// A keyed hash of the subject: any slice is as likely as any other.
    Hash,
    /// The longer somebody is here when the epoch starts, the earlier: the newest are in the last
    /// slice.
    Tenure,
}

/// Who asks to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// Anybody.
    Uniform,
    /// The probability falls with the time since somebody came: by a factor e per tenth of the
    /// population.
    RecentFirst,
    /// In proportion to the squared number of samples: those who contributed most.
    CoreUsers,
}

/// A federation and its deletions.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Shards (K).
    pub shards: u32,
    /// Slices per shard (R).
    pub slices: u32,
    /// Subjects when the epoch starts.
    pub subjects: u32,
    /// Deletions.
    pub deletions: u32,
    /// Deletions that share a plan.
    pub batch: u32,
    /// Rounds per stage.
    pub rounds: u32,
    /// Clients per round.
    pub cohort: u32,
    /// Samples per client and round, at most.
    pub samples: u32,
    /// Seed of subjects and trace.
    pub seed: u64,
}

/// One point of the cost curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Deletions so far.
    pub deletions: u32,
    /// Samples retrained per deletion, on average so far.
    pub samples: f64,
    /// Samples of retraining everything, divided by that.
    pub saving: f64,
}

/// A small generator of its own, so that figures in documents can be made again anywhere.
struct Draw {
    seed: u64,
    count: u64,
}

impl Draw {
    /// Uniform in (0, 1].
    fn unit(&mut self) -> f64 {
        let d = Digest::of(&[
            b"simulate",
            &self.seed.to_le_bytes(),
            &self.count.to_le_bytes(),
        ]);
        self.count += 1;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&d.0[..8]);
        ((u64::from_le_bytes(bytes) >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}

struct Person {
    shard: u32,
    slice: u32,
    samples: u32,
}

impl Shape {
    /// The curve of the mean cost, at about 20 points; the last is after all deletions.
    pub fn curve(&self, placement: Placement, trace: Trace) -> Vec<Point> {
        let mut draw = Draw {
            seed: self.seed,
            count: 0,
        };
        // Index 0 came last. Numbers of samples have a long tail.
        let people: Vec<Person> = (0..self.subjects)
            .map(|i| {
                let slice = match placement {
                    Placement::Hash => (draw.unit() * f64::from(self.slices)) as u32,
                    Placement::Tenure => {
                        self.slices
                            - 1
                            - (u64::from(i) * u64::from(self.slices) / u64::from(self.subjects))
                                as u32
                    }
                };
                let samples = (3.0 * draw.unit().powf(-0.8)) as u32;
                let shard = (draw.unit() * f64::from(self.shards)) as u32;
                Person {
                    shard: shard.min(self.shards - 1),
                    slice: slice.min(self.slices - 1),
                    samples: samples.min(500),
                }
            })
            .collect();
        let order = self.order(&people, trace, &mut draw);
        self.cost_of(&people, &order)
    }

    /// The saving after all deletions.
    pub fn saving(&self, placement: Placement, trace: Trace) -> f64 {
        self.curve(placement, trace)
            .last()
            .map_or(0.0, |p| p.saving)
    }

    /// Who is deleted, in order: weighted sampling without replacement (exponential clocks,
    /// Efraimidis and Spirakis).
    fn order(&self, people: &[Person], trace: Trace, draw: &mut Draw) -> Vec<usize> {
        let tenth = f64::from(self.subjects) / 10.0;
        let mut clocks: Vec<(f64, usize)> = people
            .iter()
            .enumerate()
            .map(|(i, p)| {
                let weight = match trace {
                    Trace::Uniform => 1.0,
                    Trace::RecentFirst => (-(i as f64) / tenth).exp(),
                    Trace::CoreUsers => f64::from(p.samples).powi(2),
                };
                (-draw.unit().ln() / weight, i)
            })
            .collect();
        clocks.sort_by(|a, b| a.0.total_cmp(&b.0));
        clocks
            .into_iter()
            .take(self.deletions as usize)
            .map(|(_, i)| i)
            .collect()
    }

    fn cost_of(&self, people: &[Person], order: &[usize]) -> Vec<Point> {
        let (k, r) = (self.shards as usize, self.slices as usize);
        let mut members = vec![vec![(0u64, 0u64); r]; k];
        for p in people {
            let at = &mut members[p.shard as usize][p.slice as usize];
            at.0 += 1;
            at.1 += u64::from(p.samples.min(self.samples));
        }
        // Samples of stages `from..` of a shard.
        let cost = |slices: &[(u64, u64)], from: usize| -> f64 {
            (from..r)
                .map(|stage| {
                    let (n, s) = slices[..=stage]
                        .iter()
                        .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
                    let share = if n == 0 { 0.0 } else { s as f64 / n as f64 };
                    f64::from(self.rounds) * share * n.min(u64::from(self.cohort)) as f64
                })
                .sum()
        };
        let (mut retrained, mut everything, mut out) = (0.0, 0.0, vec![]);
        let every = (order.len() / 20).max(1);
        let batch = self.batch.max(1) as usize;
        for (b, group) in order.chunks(batch).enumerate() {
            let mut first = vec![r; k];
            for i in group {
                let p = &people[*i];
                let at = &mut members[p.shard as usize][p.slice as usize];
                at.0 -= 1;
                at.1 -= u64::from(p.samples.min(self.samples));
                first[p.shard as usize] = first[p.shard as usize].min(p.slice as usize);
            }
            retrained += members
                .iter()
                .zip(&first)
                .map(|(m, from)| cost(m, *from))
                .sum::<f64>();
            everything += group.len() as f64 * members.iter().map(|m| cost(m, 0)).sum::<f64>();
            let done = b * batch + group.len();
            if done / every != (b * batch) / every || done == order.len() {
                let samples = retrained / done as f64;
                out.push(Point {
                    deletions: done as u32,
                    samples,
                    saving: everything / retrained.max(1.0),
                });
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            shards: 4,
            slices: 4,
            subjects: 20_000,
            deletions: 2_000,
            batch: 1,
            rounds: 10,
            cohort: 32,
            samples: 8,
            seed: 1,
        }
    }

    #[test]
    fn one_of_k_shards_and_half_of_its_stages_without_placement() {
        // Hash placement, any trace: slice uniform over 4, stages of equal cost: mean of 4, 3, 2, 1
        // quarters of a shard.
        for trace in [Trace::Uniform, Trace::RecentFirst] {
            let s = shape().saving(Placement::Hash, trace);
            assert!((s - 4.0 / 0.625).abs() < 0.15, "{trace:?}: {s}");
        }
    }

    #[test]
    fn the_newest_in_late_slices_saves_ten_times_when_the_newest_go_first() {
        let s = shape().saving(Placement::Tenure, Trace::RecentFirst);
        assert!(s >= 10.0, "{s}");
        let uniform = shape().saving(Placement::Tenure, Trace::Uniform);
        assert!(
            (uniform - 6.4).abs() < 0.15,
            "placement costs nothing when anybody goes: {uniform}"
        );
    }

    #[test]
    fn a_batch_replays_every_shard_once() {
        let one = shape().saving(Placement::Tenure, Trace::RecentFirst);
        let many = Shape {
            batch: 50,
            ..shape()
        }
        .saving(Placement::Tenure, Trace::RecentFirst);
        assert!(many > 5.0 * one, "{many} against {one}");
        assert_eq!(
            one,
            shape().saving(Placement::Tenure, Trace::RecentFirst),
            "the same seed, the same figure"
        );
    }
}
