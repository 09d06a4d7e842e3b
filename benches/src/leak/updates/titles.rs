//! Titles from an update, by who knows only what is public: the base model, the adapter of the
//! round, the template and the catalogue.
//!
//! The input of layer 0 at a token is the token's normed embedding, whatever stands before it. So
//! every row of the gradient of A is a sum of embeddings of the prompts' tokens: `rank` sums for
//! query and `rank` for value, all over the same few tokens. Which these are is a question for a
//! sparse regression, and it needs no pass through the model.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use lethe_benches::lab::Lab;
use lethe_model::lora::{Adapter, Projection};
use lethe_model::train::Sample;
use lethe_proto::packed::{BLOCK, PackedFormat};
use lethe_recsys::prompt::Prompt;

use super::sparse::{Dictionary, Found};

/// Tokens in this share of all titles are taken for granted: digits, quotes, commas.
const COMMON: f64 = 0.1;
/// Tokens that are looked for, at most: more than the width of the model cannot be told apart.
const MOST: usize = 420;

/// The catalogue as an attacker reads it.
pub(super) struct Catalogue {
    dictionary: Dictionary,
    /// Position in the dictionary of what every prompt holds.
    given: Vec<usize>,
    /// Positions of each title's other tokens; titles without any cannot be told.
    titles: Vec<BTreeSet<usize>>,
}

impl Catalogue {
    /// Reads the catalogue with the model's embedding; `adapter` is any with B not zero.
    pub(super) fn read(lab: &mut Lab, adapter: &Adapter) -> anyhow::Result<Self> {
        let empty = lab.encode(&Prompt {
            liked: vec![],
            disliked: vec![],
            target: String::new(),
        })?;
        let labels: Vec<String> = lab.data.items.iter().map(|i| i.label()).collect();
        let mut of: Vec<BTreeSet<u32>> = vec![];
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        for label in &labels {
            // First, later and last in a list, and as the target.
            let ids = lab.encode(&Prompt {
                liked: vec![label.clone(), label.clone()],
                disliked: vec![label.clone()],
                target: label.clone(),
            })?;
            let own: BTreeSet<u32> = ids.into_iter().collect();
            own.iter().for_each(|t| *counts.entry(*t).or_default() += 1);
            of.push(own);
        }
        let common = COMMON * labels.len() as f64;
        let known: BTreeSet<u32> = empty.into_iter().collect();
        let free =
            |t: u32| known.contains(&t) || counts.get(&t).is_some_and(|n| *n as f64 > common);
        let mut tokens: BTreeSet<u32> = counts.keys().copied().collect();
        tokens.extend(&known);
        let tokens: Vec<u32> = tokens.into_iter().collect();
        let at: BTreeMap<u32, usize> = tokens.iter().enumerate().map(|(i, t)| (*t, i)).collect();
        let rows = inputs(lab, adapter, &tokens)?;
        Ok(Self {
            dictionary: Dictionary::new(&rows),
            given: (0..tokens.len()).filter(|i| free(tokens[*i])).collect(),
            titles: of
                .iter()
                .map(|own| {
                    let own = own.iter().filter(|t| !free(**t));
                    own.filter_map(|t| at.get(t).copied()).collect()
                })
                .collect(),
        })
    }

    /// The titles of an update: at most `most` of them.
    ///
    /// `change` is the device's part as the coordinator reads it, `start` what the device began
    /// with, `senders` how many updates were added up.
    pub(super) fn titles_in(
        &self,
        start: &Adapter,
        change: &[f32],
        format: PackedFormat,
        senders: usize,
        most: usize,
    ) -> anyhow::Result<Vec<usize>> {
        let sums = sums(start, change, format, senders)?;
        if sums.is_empty() {
            return Ok(vec![]);
        }
        let found = self.dictionary.search(&sums, &self.given, MOST);
        Ok(self.cover(&found, most))
    }

    /// Titles of which every token was found, those that explain most tokens first.
    fn cover(&self, found: &Found, most: usize) -> Vec<usize> {
        let mut open: BTreeSet<usize> = found.strength.iter().map(|s| s.0).collect();
        let whole = |t: &BTreeSet<usize>| !t.is_empty() && t.iter().all(|a| open.contains(a));
        let candidates: Vec<usize> = (0..self.titles.len())
            .filter(|i| whole(&self.titles[*i]))
            .collect();
        let mut out = vec![];
        while out.len() < most {
            // Tokens that nothing explains yet; among equals the title that is surest.
            let worth = |i: &usize| {
                let title = &self.titles[*i];
                let new = title.iter().filter(|a| open.contains(a)).count();
                let weakest = title
                    .iter()
                    .map(|a| found.of(*a))
                    .fold(f64::INFINITY, f64::min);
                (new, weakest)
            };
            let best = candidates
                .iter()
                .map(|i| (worth(i), *i))
                .filter(|((new, _), _)| *new > 0)
                .max_by(|a, b| (a.0.0.cmp(&b.0.0)).then(a.0.1.total_cmp(&b.0.1)));
            let Some((_, title)) = best else { break };
            self.titles[title].iter().for_each(|a| {
                open.remove(a);
            });
            out.push(title);
        }
        out
    }
}

/// Rows of the change of A in layer 0, in units of their noise.
fn sums(
    start: &Adapter,
    change: &[f32],
    format: PackedFormat,
    senders: usize,
) -> anyhow::Result<Vec<Vec<f64>>> {
    let shape = start.shape().clone();
    let mut out = vec![];
    for proj in [Projection::Q, Projection::V] {
        let entry = shape.find(0, proj).context("layer 0 is not adapted")?;
        let (a, _) = shape.ranges(entry);
        let noise = noise(&start.data, change, a.clone(), format);
        let noise = (noise * senders as f64).sqrt().max(1e-30);
        out.extend(
            change[a]
                .chunks_exact(entry.fan_in)
                .filter(|row| row.iter().any(|v| *v != 0.0))
                .map(|row| row.iter().map(|v| f64::from(*v) / noise).collect()),
        );
    }
    Ok(out)
}

/// Variance of the error of a value in this range: what a step rounds, and what the format does.
/// Everything that it follows from is public.
fn noise(
    start: &[f32],
    change: &[f32],
    range: std::ops::Range<usize>,
    format: PackedFormat,
) -> f64 {
    let count = range.len().max(1) as f64;
    let rounding: f64 = start[range.clone()]
        .iter()
        .map(|t| f64::from(t.abs() * f32::EPSILON).powi(2) / 12.0)
        .sum::<f64>()
        / count;
    let blocks = |top: f64| {
        let of = change[range.clone()].chunks(BLOCK);
        let steps = of.map(|b| {
            let max = b.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            b.len() as f64 * (f64::from(max) / top).powi(2) / 12.0
        });
        steps.sum::<f64>() / count
    };
    // What was added up is as exact as single precision.
    let relative = change[range.clone()].iter();
    let relative = relative
        .map(|v| (f64::from(*v) * 1e-6).powi(2))
        .sum::<f64>()
        / count;
    let lost = match format {
        // Of masked updates only the sum is seen, as exact as single precision.
        PackedFormat::F32 | PackedFormat::Masked => 0.0,
        PackedFormat::Int8 => blocks(127.0),
        PackedFormat::Int4 => blocks(7.0),
        PackedFormat::TopK(_) => {
            // Whatever was left out is smaller than the smallest that was sent.
            let kept = change.iter().map(|v| v.abs()).filter(|v| *v > 0.0);
            f64::from(kept.fold(f32::INFINITY, f32::min)).powi(2) / 3.0
        }
    };
    rounding + relative + lost
}

/// Directions of the inputs of layer 0: embeddings times the norm's gain. The gain is read off the
/// model: of a prompt of a single token, every row of the gradient of A for value is that token's
/// input.
fn inputs(lab: &mut Lab, adapter: &Adapter, tokens: &[u32]) -> anyhow::Result<Vec<Vec<f64>>> {
    let embedded = lab.embed(tokens)?;
    let width = embedded.len() / tokens.len().max(1);
    let step = (tokens.len() / 16).max(1);
    let probes: Vec<usize> = (0..tokens.len()).step_by(step).take(16).collect();
    let mut seen = vec![];
    for probe in &probes {
        let row = Sample {
            ids: vec![tokens[*probe]],
            label: true,
        };
        let found = lab.gradient(adapter, &[row], None, &mut BTreeSet::new())?;
        let (a, _) = found
            .grads
            .pair(0, Projection::V)
            .context("value of layer 0 is not adapted")?;
        let row = a
            .chunks_exact(width)
            .max_by(|x, y| square(x).total_cmp(&square(y)))
            .unwrap_or_default();
        ensure!(
            square(row) > 0.0,
            "the gradient of layer 0 is zero: expected an adapter with B not zero"
        );
        let e = &embedded[probe * width..(probe + 1) * width];
        seen.push((row.to_vec(), e.to_vec()));
    }
    let gain = gain(&seen, width);
    Ok(embedded
        .chunks_exact(width)
        .map(|row| {
            row.iter()
                .zip(&gain)
                .map(|(e, g)| f64::from(*e) * g)
                .collect()
        })
        .collect())
}

fn square(row: &[f32]) -> f64 {
    row.iter().map(|v| f64::from(*v).powi(2)).sum()
}

/// The gain, but for its scale, from pairs of (input times any factor, embedding), by least squares
/// in turns.
fn gain(seen: &[(Vec<f32>, Vec<f32>)], width: usize) -> Vec<f64> {
    let mut gain = vec![1.0; width];
    for _ in 0..20 {
        let mut above = vec![0.0; width];
        let mut below = vec![1e-30; width];
        for (x, e) in seen {
            let plain: Vec<f64> = e
                .iter()
                .zip(&gain)
                .map(|(e, g)| f64::from(*e) * g)
                .collect();
            let dot: f64 = plain.iter().zip(x).map(|(p, x)| p * f64::from(*x)).sum();
            let length: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
            let factor = dot / length;
            for i in 0..width {
                above[i] += factor * f64::from(x[i]) * f64::from(e[i]);
                below[i] += f64::from(e[i]).powi(2);
            }
        }
        gain = above.iter().zip(&below).map(|(a, b)| a / b).collect();
        let mean = gain.iter().map(|g| g.abs()).sum::<f64>() / width as f64;
        gain.iter_mut().for_each(|g| *g /= mean.max(1e-30));
    }
    gain
}

#[cfg(test)]
mod tests {
    use lethe_learn::seed::Seed;

    use super::*;

    #[test]
    fn a_gain_is_read_off_scaled_products() {
        let mut rng = Seed::from_u64(3).rng();
        let truth: Vec<f32> = (0..8).map(|_| rng.uniform(0.5, 2.0)).collect();
        let seen: Vec<(Vec<f32>, Vec<f32>)> = (0..6)
            .map(|i| {
                let e: Vec<f32> = (0..8).map(|_| rng.normal()).collect();
                let factor = if i % 2 == 0 { 3.0 } else { -0.5 };
                let x = e.iter().zip(&truth).map(|(e, g)| factor * e * g).collect();
                (x, e)
            })
            .collect();
        let found = gain(&seen, 8);
        let mean = truth.iter().sum::<f32>() / 8.0;
        for (f, t) in found.iter().zip(&truth) {
            assert!((f - f64::from(t / mean)).abs() < 1e-4, "{f} {t}");
        }
    }

    #[test]
    fn titles_cover_what_was_found() {
        let set = |own: &[usize]| own.iter().copied().collect::<BTreeSet<usize>>();
        let catalogue = Catalogue {
            dictionary: Dictionary::new(&[]),
            given: vec![],
            titles: vec![set(&[1, 2]), set(&[2]), set(&[3, 9]), set(&[]), set(&[4])],
        };
        let found = Found {
            strength: vec![(1, 5.0), (2, 5.0), (3, 5.0), (4, 5.0)],
        };
        assert_eq!(catalogue.cover(&found, 9), [0, 4]);
        assert_eq!(catalogue.cover(&found, 1), [0]);
    }
}
