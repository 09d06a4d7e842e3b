//! The cheap references that a language model must beat. They are strong, so they are always
//! printed.

use lethe_learn::seed::Seed;

use crate::data::Event;
use crate::samples::TaskSample;

/// Names, in the order of [`References::scores`].
pub const NAMES: [&str; 4] = ["item_mean", "bias", "mf", "history_rate"];

/// Models fitted on the training events.
#[derive(Debug, Clone)]
pub struct References {
    item_rate: Vec<f32>,
    bias: Bias,
    mf: Factors,
}

#[derive(Debug, Clone)]
struct Bias {
    user: Vec<f32>,
    item: Vec<f32>,
}

#[derive(Debug, Clone)]
struct Factors {
    user: Vec<f32>,
    item: Vec<f32>,
    bias: Bias,
}

const DIM: usize = 16;

impl References {
    /// Fits all of them; deterministic.
    pub fn fit(events: &[Event], users: usize, items: usize, seed: &Seed) -> Self {
        let bias = Bias::fit(events, users, items);
        let mf = Factors::fit(events, users, items, bias.clone(), seed);
        Self {
            item_rate: item_rates(events, items),
            bias,
            mf,
        }
    }

    /// Pretrained vector of a user: matrix factorisation.
    pub fn user_vector(&self, u: u32) -> &[f32] {
        let at = u as usize * DIM;
        &self.mf.user[at..at + DIM]
    }

    /// Pretrained vector of an item.
    pub fn item_vector(&self, i: u32) -> &[f32] {
        let at = i as usize * DIM;
        &self.mf.item[at..at + DIM]
    }

    /// `[item_mean, bias, mf, history_rate]` for one sample; higher means more likely liked.
    pub fn scores(&self, s: &TaskSample) -> [f32; 4] {
        let (u, i) = (s.user as usize, s.item as usize);
        let likes = s.history.iter().filter(|h| h.1).count() as f32;
        let rate = likes / s.history.len().max(1) as f32;
        [
            self.item_rate[i],
            self.bias.predict(u, i),
            self.mf.predict(u, i),
            rate,
        ]
    }
}

/// Like-rate per item, shrunk to the mean with the weight of five events.
fn item_rates(events: &[Event], items: usize) -> Vec<f32> {
    let mean = events.iter().filter(|e| e.liked).count() as f32 / events.len().max(1) as f32;
    let (mut likes, mut n) = (vec![0.0f32; items], vec![0.0f32; items]);
    for e in events {
        likes[e.item as usize] += f32::from(u8::from(e.liked));
        n[e.item as usize] += 1.0;
    }
    likes
        .iter()
        .zip(&n)
        .map(|(l, n)| (l + 5.0 * mean) / (n + 5.0))
        .collect()
}

impl Bias {
    /// Shrunk item then user offsets of the rating, refined ten times (Koren, TKDD 2010, section
    /// 2.1).
    fn fit(events: &[Event], users: usize, items: usize) -> Self {
        let mean = events.iter().map(|e| f64::from(e.rating)).sum::<f64>() as f32
            / events.len().max(1) as f32;
        let mut b = Self {
            user: vec![0.0; users],
            item: vec![0.0; items],
        };
        for _ in 0..10 {
            let residual = |e: &Event, b: &Self| e.rating - mean - b.user[e.user as usize];
            b.item = shrunk(events, items, 5.0, |e| (e.item, residual(e, &b)));
            let residual = |e: &Event, b: &Self| e.rating - mean - b.item[e.item as usize];
            b.user = shrunk(events, users, 5.0, |e| (e.user, residual(e, &b)));
        }
        b
    }

    fn predict(&self, u: usize, i: usize) -> f32 {
        self.user[u] + self.item[i]
    }
}

fn shrunk(events: &[Event], n: usize, shrink: f32, f: impl Fn(&Event) -> (u32, f32)) -> Vec<f32> {
    let mut sums = vec![(0.0f32, 0.0f32); n];
    for e in events {
        let (k, v) = f(e);
        let s = &mut sums[k as usize];
        *s = (s.0 + v, s.1 + 1.0);
    }
    sums.iter().map(|(s, n)| s / (n + shrink)).collect()
}

impl Factors {
    /// Biased matrix factorisation by stochastic gradient (Koren et al., Computer 2009): 16
    /// factors, 20 epochs.
    fn fit(events: &[Event], users: usize, items: usize, bias: Bias, seed: &Seed) -> Self {
        let mut rng = seed.derive("mf", &[]).rng();
        let mut draw = |n: usize| {
            (0..n * DIM)
                .map(|_| 0.1 * rng.normal())
                .collect::<Vec<f32>>()
        };
        let mut f = Self {
            user: draw(users),
            item: draw(items),
            bias,
        };
        let mean = events.iter().map(|e| f64::from(e.rating)).sum::<f64>() as f32
            / events.len().max(1) as f32;
        let mut order: Vec<&Event> = events.iter().collect();
        let (rate, decay) = (0.01, 0.08);
        for _ in 0..20 {
            rng.shuffle(&mut order);
            for e in &order {
                let (u, i) = (e.user as usize, e.item as usize);
                let error = e.rating - mean - f.predict(u, i);
                f.bias.user[u] += rate * (error - 0.02 * f.bias.user[u]);
                f.bias.item[i] += rate * (error - 0.02 * f.bias.item[i]);
                for d in 0..DIM {
                    let (p, q) = (f.user[u * DIM + d], f.item[i * DIM + d]);
                    f.user[u * DIM + d] += rate * (error * q - decay * p);
                    f.item[i * DIM + d] += rate * (error * p - decay * q);
                }
            }
        }
        f
    }

    fn predict(&self, u: usize, i: usize) -> f32 {
        let (p, q) = (
            &self.user[u * DIM..(u + 1) * DIM],
            &self.item[i * DIM..(i + 1) * DIM],
        );
        self.bias.predict(u, i) + p.iter().zip(q).map(|(a, b)| a * b).sum::<f32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::Part;
    use lethe_learn::metrics::auc;

    #[test]
    fn they_learn_tastes() {
        let mut rng = Seed::from_u64(1).rng();
        let liked = |u: u32, i: u32| (u + i).is_multiple_of(2);
        let events: Vec<Event> = (0..6000)
            .map(|t| {
                let (user, item) = (rng.below(40) as u32, rng.below(40) as u32);
                let l = liked(user, item);
                Event {
                    user,
                    item,
                    rating: if l { 5.0 } else { 1.0 },
                    time: t,
                    liked: l,
                    kind: lethe_parts::event::Kind::Rating,
                }
            })
            .collect();
        let r = References::fit(&events, 40, 40, &Seed::from_u64(2));
        let all: Vec<TaskSample> = (0..1600u32)
            .map(|k| TaskSample {
                user: k / 40,
                item: k % 40,
                event: k,
                history: vec![],
                label: liked(k / 40, k % 40),
                part: Part::Test,
            })
            .collect();
        let labels: Vec<bool> = all.iter().map(|s| s.label).collect();
        let mf: Vec<f32> = all.iter().map(|s| r.scores(s)[2]).collect();
        assert!(auc(&mf, &labels).expect("both labels") > 0.95);
    }
}
