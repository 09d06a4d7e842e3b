//! The host of the middle as an attacker: it has the weights, which are public, and what arrives.
//!
//! Attention is causal: a state depends on the tokens up to its own. The host guesses all tokens
//! ([`super::probe`]), runs the device's layers on the guess, and where what it gets is not what
//! arrived it tries others, from left to right.

use lethe_model::layout::Layout;
use lethe_model::lora::Adapter;
use lethe_model::segment::Segment;
use lethe_proto::payload::WireFormat;

use super::probe::{Probe, largest};
use super::tap::{Crossing, squared};
use super::world::World;

/// Single tokens that the probe learns from besides whole prompts.
const SINGLE: usize = 4096;
/// Rows of a pass over them.
const PASS: usize = 1024;
/// How many tokens are tried at a position, and how many more if none of these fits.
const TRIED: [usize; 2] = [64, 1024];
/// Rows computed beyond the first that does not fit: they change with it.
const AHEAD: usize = 48;
/// Titles tried with the device's layers, of those that the probe likes best.
const TITLES: usize = 48;
/// No prompt has more titles.
const MOST_TITLES: usize = 24;

/// States of the attacker's own texts behind some of the device's layers.
pub(super) struct Lessons {
    ids: Vec<u32>,
    states: Vec<f32>,
    /// Median length of a row.
    pub(super) norm: f32,
}

impl Lessons {
    /// Of layers `bottom`, with the adapter that the attacker supposes on them. First rows are left
    /// out: their states are of another size.
    pub(super) fn learn(
        world: &World,
        bottom: &Segment,
        adapter: Option<&Adapter>,
    ) -> anyhow::Result<Self> {
        let width = world.hidden();
        let mut ids = vec![];
        let mut states = vec![];
        for text in &world.public {
            let rows = run(world, bottom, &one(text.len()), text, adapter)?;
            ids.extend_from_slice(&text[1..]);
            states.extend_from_slice(&rows[width..]);
        }
        let head = world.tokenizer.encode(&format!("{}\"", world.frame.head))?;
        let mut rng = world.seed.derive("single", &[]).rng();
        let single: Vec<u32> = (0..SINGLE).map(|_| rng.below(world.vocab) as u32).collect();
        for some in single.chunks(PASS) {
            let layout = Layout {
                prefix: head.len() as u32,
                lens: vec![1; some.len()],
            };
            let all = [&head[..], some].concat();
            let rows = run(world, bottom, &layout, &all, adapter)?;
            ids.extend_from_slice(some);
            states.extend_from_slice(&rows[head.len() * width..]);
        }
        let mut norms: Vec<f32> = states
            .chunks_exact(width)
            .map(|r| squared(r).sqrt())
            .collect();
        norms.sort_by(f32::total_cmp);
        Ok(Self {
            norm: norms[norms.len() / 2],
            ids,
            states,
        })
    }
}

pub(super) fn one(rows: usize) -> Layout {
    Layout {
        prefix: 0,
        lens: vec![rows as u32],
    }
}

fn run(
    world: &World,
    bottom: &Segment,
    layout: &Layout,
    ids: &[u32],
    adapter: Option<&Adapter>,
) -> anyhow::Result<Vec<f32>> {
    let width = world.hidden();
    let rows = ids
        .iter()
        .flat_map(|id| &world.words[*id as usize * width..][..width]);
    Ok(bottom.forward(layout, rows.copied().collect(), adapter)?)
}

pub(super) struct Host<'a> {
    pub(super) world: &'a World,
    bottom: Segment,
    crossing: Crossing,
    /// What it supposes that the device adds to its layers.
    adapter: Option<Adapter>,
    probe: Probe,
    /// Half the usual squared distance of two tokens' states in one place.
    gap: f32,
}

impl<'a> Host<'a> {
    /// `bottom` are the device's first layers; the attacker knows how states cross.
    pub(super) fn new(
        world: &'a World,
        bottom: Segment,
        crossing: Crossing,
        adapter: Option<Adapter>,
        lessons: &Lessons,
    ) -> anyhow::Result<Self> {
        let width = world.hidden();
        let mut rng = world.seed.derive("attacker", &[]).rng();
        // It learns from states as they would arrive.
        let states = crossing.states(lessons.states.clone(), width, &mut rng)?;
        let probe = Probe::fit(&states, &lessons.ids, &world.words, width)?;
        let single = &lessons.states[lessons.states.len() - SINGLE * width..];
        let gap = gap(&crossing.clipped(single.to_vec(), width), width);
        Ok(Self {
            gap,
            world,
            bottom,
            crossing,
            adapter,
            probe,
        })
    }

    fn states(&self, layout: &Layout, ids: &[u32]) -> anyhow::Result<Vec<f32>> {
        let rows = run(self.world, &self.bottom, layout, ids, self.adapter.as_ref())?;
        Ok(self.crossing.clipped(rows, self.world.hidden()))
    }

    /// How far from the right state a row may have arrived, squared.
    fn tolerance(&self, row: &[f32]) -> f32 {
        let width = row.len() as f32;
        let wire = match self.crossing.format {
            WireFormat::F32 | WireFormat::F16 => 0.0,
            WireFormat::Int8 => {
                let step = row.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
                2.0 * width * step * step / 12.0
            }
        };
        wire + 1e-5 * squared(row)
    }

    /// The tokens behind the states of one sequence. The first one is given: the template is
    /// public. Nothing else of it is used. Under noise no state fits, and every token is compared
    /// with others.
    pub(super) fn tokens(&self, seen: &[f32], first: u32) -> anyhow::Result<Vec<u32>> {
        let width = self.world.hidden();
        let rows = seen.len() / width;
        let ratios = self.probe.ratios(seen);
        let ranked: Vec<Vec<u32>> = ratios
            .chunks_exact(self.world.vocab)
            .map(|row| largest(row, TRIED[1]))
            .collect();
        let mut ids: Vec<u32> = ranked.iter().map(|r| r[0]).collect();
        ids[0] = first;
        let mut from = 1;
        while from < rows {
            let until = (from + AHEAD).min(rows);
            let states = match self.crossing.noise {
                None => self.states(&one(until), &ids[..until])?,
                Some(_) => vec![],
            };
            let wrong = (from..until).find(|t| {
                let row = &seen[t * width..][..width];
                self.crossing.noise.is_some()
                    || distance(row, &states[t * width..][..width]) > self.tolerance(row)
            });
            from = match wrong {
                Some(t) => {
                    ids[t] = self.best(&seen[t * width..][..width], &ids[..t], &ranked[t])?;
                    t + 1
                }
                None => until,
            };
        }
        Ok(ids)
    }

    /// The token whose state after `before` is nearest to the one that arrived.
    fn best(&self, row: &[f32], before: &[u32], ranked: &[u32]) -> anyhow::Result<u32> {
        let width = row.len();
        let mut best = (f32::INFINITY, ranked[0]);
        let mut tried = 0;
        for n in TRIED {
            let some = &ranked[tried..n.min(ranked.len())];
            tried = n.min(ranked.len());
            let layout = Layout {
                prefix: before.len() as u32,
                lens: vec![1; some.len()],
            };
            let states = self.states(&layout, &[before, some].concat())?;
            let own = states[before.len() * width..].chunks_exact(width);
            for (state, id) in own.zip(some) {
                let far = distance(row, state);
                if far < best.0 {
                    best = (far, *id);
                }
            }
            if best.0 <= self.tolerance(row) || self.crossing.noise.is_some() {
                break;
            }
        }
        Ok(best.1)
    }

    /// Share of a prompt's tokens that the probe alone names, without running a layer.
    pub(super) fn guessed(&self, seen: &[f32], truth: &[u32]) -> f64 {
        let ratios = self.probe.ratios(seen);
        let rows = ratios.chunks_exact(self.world.vocab).zip(truth);
        let right = rows.skip(1).filter(|(row, id)| largest(row, 1) == [**id]);
        right.count() as f64 / (truth.len() - 1).max(1) as f64
    }

    /// The titles behind the states of one sequence, in order, the target last; true: it stands
    /// among the liked. The catalogue and the template are public.
    pub(super) fn titles(&self, seen: &[f32]) -> anyhow::Result<Vec<(bool, String)>> {
        let width = self.world.hidden();
        let ratios = self.probe.ratios(seen);
        let mut out = vec![];
        let mut place = Place::Liked { any: false };
        let mut text = self.world.frame.head.clone();
        while out.len() <= MOST_TITLES && place != Place::End {
            // Titles end and begin inside of tokens: the last word is encoded again.
            let (done, word) = text.split_at(text.rfind(' ').unwrap_or(0));
            let head = self.world.tokenizer.encode(done)?;
            let tries = self.tries(place, word, head.len(), seen.len() / width)?;
            let quick: Vec<f32> = tries
                .iter()
                .map(|t| self.likes(&ratios, head.len(), t))
                .collect();
            let kept = largest(&quick, TITLES);
            let kept: Vec<&Try> = kept.iter().map(|i| &tries[*i as usize]).collect();
            let Some(best) = self.nearest(seen, &head, &kept)? else {
                break;
            };
            let Try {
                piece, title, next, ..
            } = kept[best];
            text += piece;
            if let Some(title) = title {
                let liked = matches!(next, Place::Liked { .. });
                out.push((liked, title.clone()));
            }
            place = *next;
        }
        Ok(out)
    }

    /// Everything that may follow at a place.
    fn tries(
        &self,
        place: Place,
        word: &str,
        from: usize,
        rows: usize,
    ) -> anyhow::Result<Vec<Try>> {
        let frame = &self.world.frame;
        let mut out = vec![];
        let mut add = |piece: String, title: Option<&String>, next: Place| {
            let ids = self.world.tokenizer.encode(&format!("{word}{piece}"))?;
            let fits = match next {
                Place::End => from + ids.len() == rows,
                _ => from + ids.len() <= rows,
            };
            if fits && !ids.is_empty() {
                out.push(Try {
                    piece,
                    title: title.cloned(),
                    next,
                    ids,
                });
            }
            anyhow::Ok(())
        };
        let starts: Vec<(String, Place)> = match place {
            Place::Liked { any: false } => vec![("\"".into(), Place::Liked { any: true })],
            Place::Liked { any: true } => vec![
                (", \"".into(), Place::Liked { any: true }),
                (
                    format!("{}\"", frame.between),
                    Place::Disliked { any: true },
                ),
            ],
            Place::Disliked { any: false } => vec![("\"".into(), Place::Disliked { any: true })],
            Place::Disliked { any: true } => {
                vec![(", \"".into(), Place::Disliked { any: true })]
            }
            Place::Target | Place::End => vec![],
        };
        match place {
            Place::Liked { any: false } => {
                let piece = format!("None{}", frame.between);
                add(piece, None, Place::Disliked { any: false })?;
            }
            Place::Liked { any: true } => {
                let piece = format!("{}None", frame.between);
                add(piece, None, Place::Target)?;
            }
            Place::Disliked { any: false } => add("None".into(), None, Place::Target)?,
            _ => {}
        }
        for title in &self.world.labels {
            for (start, next) in &starts {
                add(format!("{start}{title}\""), Some(title), *next)?;
            }
            if matches!(place, Place::Target | Place::Disliked { any: true }) {
                let piece = format!("{}{title}{}", frame.before, frame.after);
                add(piece, Some(title), Place::End)?;
            }
        }
        Ok(out)
    }

    /// What the probe says for a continuation after `from` tokens.
    fn likes(&self, ratios: &[f32], from: usize, one: &Try) -> f32 {
        let all = one.compared().iter().zip(from..);
        all.map(|(id, t)| ratios[t * self.world.vocab + *id as usize])
            .sum()
    }

    /// The continuation whose states explain most of what arrived: a right token brings the gap,
    /// a wrong one loses as much or more.
    fn nearest(&self, seen: &[f32], head: &[u32], tries: &[&Try]) -> anyhow::Result<Option<usize>> {
        if tries.is_empty() {
            return Ok(None);
        }
        let width = self.world.hidden();
        let sequences: Vec<Vec<u32>> = tries.iter().map(|t| [head, &t.ids].concat()).collect();
        let (layout, ids) = Layout::pack(&sequences);
        let states = self.states(&layout, &ids)?;
        let shared = layout.prefix as usize;
        let mut best = None;
        let mut most = f32::NEG_INFINITY;
        let mut start = shared;
        for (i, one) in tries.iter().enumerate() {
            let compared = head.len() + one.compared().len();
            let mut gain = 0.0;
            for t in head.len()..compared {
                let row = if t < shared { t } else { start + t - shared };
                let arrived = &seen[t * width..][..width];
                let noise = self.crossing.noise.map_or(0.0, |n| n.sigma * n.sigma);
                let expected = width as f32 * noise;
                gain += self.gap + expected - distance(arrived, &states[row * width..][..width]);
            }
            if gain > most {
                most = gain;
                best = Some(i);
            }
            start += sequences[i].len() - shared;
        }
        Ok(best)
    }
}

/// Where in the template a text has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Among the liked titles; whether there was one.
    Liked { any: bool },
    /// Among the others.
    Disliked { any: bool },
    /// Before the target.
    Target,
    /// Nothing follows.
    End,
}

/// A possible continuation.
struct Try {
    piece: String,
    title: Option<String>,
    next: Place,
    /// Tokens, from the word on that it continues.
    ids: Vec<u32>,
}

impl Try {
    /// The last token may be longer in the text as a whole.
    fn compared(&self) -> &[u32] {
        match self.next {
            Place::End => &self.ids,
            _ => &self.ids[..self.ids.len() - 1],
        }
    }
}

/// The median of squared distances from the mean row.
fn gap(rows: &[f32], width: usize) -> f32 {
    let n = (rows.len() / width).max(1) as f32;
    let mut mean = vec![0.0f32; width];
    for row in rows.chunks_exact(width) {
        mean.iter_mut().zip(row).for_each(|(m, v)| *m += v / n);
    }
    let mut all: Vec<f32> = rows
        .chunks_exact(width)
        .map(|row| distance(row, &mean))
        .collect();
    all.sort_by(f32::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(0.0)
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum()
}
