//! LoRA adapters (Hu et al., arXiv 2106.09685) as one flat vector, so that training, aggregation
//! and hashing see plain slices.

use std::ops::Range;
use std::sync::Arc;

use lethe_learn::seed::Seed;
use serde::{Deserialize, Serialize};

use crate::ModelError;
use crate::config::ModelConfig;

/// A linear map of a layer that an adapter can sit on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Projection {
    /// Query.
    Q,
    /// Key.
    K,
    /// Value.
    V,
    /// Attention output.
    O,
    /// MLP gate.
    Gate,
    /// MLP up.
    Up,
    /// MLP down.
    Down,
}

impl Projection {
    /// All seven.
    pub const ALL: [Self; 7] = [
        Self::Q,
        Self::K,
        Self::V,
        Self::O,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// Module path as PEFT and transformers name it.
    pub fn module(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// `(in, out)` widths.
    pub fn widths(self, c: &ModelConfig) -> (usize, usize) {
        match self {
            Self::Q => (c.hidden, c.heads * c.head_dim),
            Self::K | Self::V => (c.hidden, c.kv_heads * c.head_dim),
            Self::O => (c.heads * c.head_dim, c.hidden),
            Self::Gate | Self::Up => (c.hidden, c.intermediate),
            Self::Down => (c.intermediate, c.hidden),
        }
    }
}

/// Which projections are adapted, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraRecipe {
    /// Rank r.
    pub rank: usize,
    /// Scale is `alpha / rank`.
    pub alpha: f32,
    /// Adapted projections of every adapted layer.
    pub targets: Vec<Projection>,
    /// Only this many of the last layers are adapted (absent: all). Layers below them are frozen:
    /// their states are computed once per sample, nothing is kept for a backward pass, and no
    /// gradient goes through them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_layers: Option<usize>,
}

impl LoraRecipe {
    /// The first adapted layer of a model with `layers` layers.
    pub fn first_trained(&self, layers: usize) -> usize {
        layers - self.last_layers.unwrap_or(layers).min(layers)
    }
}

impl Default for LoraRecipe {
    /// TALLRec's: r 8, alpha 16, q and v.
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            targets: vec![Projection::Q, Projection::V],
            last_layers: None,
        }
    }
}

/// Where one pair lies in the flat vector: `a` is `[rank, fan_in]`, `b` is `[fan_out, rank]`, `b`
/// right after `a`.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Layer, 0-based in the whole model.
    pub layer: usize,
    /// Projection.
    pub proj: Projection,
    /// Input width.
    pub fan_in: usize,
    /// Output width.
    pub fan_out: usize,
    start: usize,
}

/// The pairs of an adapter in (layer, projection) order.
#[derive(Debug, PartialEq)]
pub struct AdapterShape {
    entries: Vec<Entry>,
    rank: usize,
    scale: f32,
    len: usize,
    /// Of the whole model, also in a part of its adapter.
    first_trained: usize,
}

impl AdapterShape {
    /// The shape that `recipe` gives on the layers for which `keep` holds.
    pub fn new(
        config: &ModelConfig,
        recipe: &LoraRecipe,
        keep: impl Fn(usize) -> bool,
    ) -> Arc<Self> {
        let mut targets = recipe.targets.clone();
        targets.sort();
        targets.dedup();
        let first = recipe.first_trained(config.layers);
        let layers = (first..config.layers).filter(|l| keep(*l));
        let pairs = layers
            .flat_map(|l| targets.iter().map(move |p| (l, *p)))
            .map(|(l, p)| (l, p, p.widths(config)));
        Self::of(
            pairs,
            recipe.rank,
            recipe.alpha / recipe.rank.max(1) as f32,
            first,
        )
    }

    fn of(
        pairs: impl Iterator<Item = (usize, Projection, (usize, usize))>,
        rank: usize,
        scale: f32,
        first_trained: usize,
    ) -> Arc<Self> {
        let mut len = 0;
        let entries = pairs
            .map(|(layer, proj, (fan_in, fan_out))| {
                let start = len;
                len += rank * (fan_in + fan_out);
                Entry {
                    layer,
                    proj,
                    fan_in,
                    fan_out,
                    start,
                }
            })
            .collect();
        Arc::new(Self {
            entries,
            rank,
            scale,
            len,
            first_trained,
        })
    }

    /// Where the values of the layers for which `keep` holds lie, in their order: what
    /// [`Adapter::select`] takes. Ranges that touch are one.
    pub fn selected(&self, keep: impl Fn(usize) -> bool) -> Vec<Range<usize>> {
        let mut out: Vec<Range<usize>> = vec![];
        for e in self.entries.iter().filter(|e| keep(e.layer)) {
            let end = e.start + self.rank * (e.fan_in + e.fan_out);
            match out.last_mut() {
                Some(last) if last.end == e.start => last.end = end,
                _ => out.push(e.start..end),
            }
        }
        out
    }

    fn with(&self, rank: usize, keep: impl Fn(usize) -> bool) -> Arc<Self> {
        let kept = self
            .entries
            .iter()
            .filter(|e| keep(e.layer))
            .map(|e| (e.layer, e.proj, (e.fan_in, e.fan_out)));
        Self::of(kept, rank, self.scale, self.first_trained)
    }

    /// The first layer of the whole model that is adapted, also if this is the shape of a part of
    /// it: layers below it are frozen.
    pub fn first_trained(&self) -> usize {
        self.first_trained
    }

    /// Pairs in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Rank of every pair.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// `alpha / rank` of the recipe.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Values in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No pair at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pair on `proj` of `layer`, if any.
    pub fn find(&self, layer: usize, proj: Projection) -> Option<&Entry> {
        self.entries
            .binary_search_by(|e| (e.layer, e.proj).cmp(&(layer, proj)))
            .ok()
            .map(|i| &self.entries[i])
    }

    /// Ranges of A and of B in the flat vector.
    pub fn ranges(&self, e: &Entry) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        let mid = e.start + self.rank * e.fan_in;
        (e.start..mid, mid..mid + self.rank * e.fan_out)
    }
}

/// An adapter: its shape and its values.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    shape: Arc<AdapterShape>,
    /// Values in the shape's order.
    pub data: Vec<f32>,
}

impl Adapter {
    /// PEFT's initialisation, seeded: A uniform in `+-1/sqrt(fan_in)`, B zero. Each pair has its
    /// own stream, so that a part of the model initialises to the same bytes as the whole.
    pub fn init(shape: &Arc<AdapterShape>, seed: &Seed) -> Self {
        let mut data = vec![0.0; shape.len];
        for e in &shape.entries {
            let bound = 1.0 / (e.fan_in as f32).sqrt();
            let key = [
                (e.layer as u64).to_le_bytes(),
                (e.proj as u64).to_le_bytes(),
            ];
            let mut rng = seed.derive("lora-init", &[&key[0], &key[1]]).rng();
            let (a, _) = shape.ranges(e);
            data[a]
                .iter_mut()
                .for_each(|v| *v = rng.uniform(-bound, bound));
        }
        Self {
            shape: shape.clone(),
            data,
        }
    }

    /// An adapter of `data`, whose length must be the shape's.
    pub fn from_data(shape: &Arc<AdapterShape>, data: Vec<f32>) -> Result<Self, ModelError> {
        if data.len() != shape.len {
            return Err(ModelError::Shape(format!(
                "an adapter of {} values was given for a shape of {}: recipe or model differ",
                data.len(),
                shape.len
            )));
        }
        Ok(Self {
            shape: shape.clone(),
            data,
        })
    }

    /// Its shape.
    pub fn shape(&self) -> &Arc<AdapterShape> {
        &self.shape
    }

    /// The A and B of a pair.
    pub fn pair(&self, layer: usize, proj: Projection) -> Option<(&[f32], &[f32])> {
        let (a, b) = self.shape.ranges(self.shape.find(layer, proj)?);
        Some((&self.data[a], &self.data[b]))
    }

    /// The part on the layers for which `keep` holds.
    pub fn select(&self, keep: impl Fn(usize) -> bool) -> Self {
        let shape = self.shape.with(self.shape.rank, &keep);
        let step = |e: &Entry| e.start..e.start + self.shape.rank * (e.fan_in + e.fan_out);
        let kept = self.shape.entries.iter().filter(|e| keep(e.layer));
        let data = kept
            .flat_map(|e| self.data[step(e)].iter().copied())
            .collect();
        Self { shape, data }
    }

    /// Writes `part` (made by [`Self::select`] on the same shape) over this adapter's values.
    pub fn paste(&mut self, part: &Self) -> Result<(), ModelError> {
        let rank = self.shape.rank;
        for e in &part.shape.entries {
            let here = self
                .shape
                .find(e.layer, e.proj)
                .filter(|h| part.shape.rank == rank && h.fan_in == e.fan_in);
            let here = here.ok_or_else(|| {
                ModelError::Shape(format!(
                    "the part adapts {:?} of layer {}, the whole does not",
                    e.proj, e.layer
                ))
            })?;
            let n = rank * (e.fan_in + e.fan_out);
            self.data[here.start..here.start + n].copy_from_slice(&part.data[e.start..e.start + n]);
        }
        Ok(())
    }

    /// APA(D), arXiv 2404.10327: `A = sum w_k A_k`, `B = sum w_k B_k`. All must have one shape.
    pub fn mix_d(parts: &[(&Self, f32)]) -> Result<Self, ModelError> {
        let first = same_shape(parts)?;
        let mut data = vec![0.0; first.shape.len];
        for (p, w) in parts {
            data.iter_mut().zip(&p.data).for_each(|(d, v)| *d += w * v);
        }
        Ok(Self {
            shape: first.shape.clone(),
            data,
        })
    }

    /// APA(ND), arXiv 2404.10327: `delta = sum w_k B_k A_k` as one adapter of rank `K r`: `A =
    /// [A_1; ...]`, `B = [w_1 B_1 | ...]`. The delta itself is never built.
    pub fn mix_nd(parts: &[(&Self, f32)]) -> Result<Self, ModelError> {
        let first = same_shape(parts)?;
        let (r, k) = (first.shape.rank, parts.len());
        let shape = first.shape.with(r * k, |_| true);
        let mut data = vec![0.0; shape.len];
        for (new, old) in shape.entries.iter().zip(&first.shape.entries) {
            let (na, nb) = shape.ranges(new);
            let (oa, ob) = first.shape.ranges(old);
            for (i, (p, w)) in parts.iter().enumerate() {
                let block = r * new.fan_in;
                data[na.start + i * block..na.start + (i + 1) * block]
                    .copy_from_slice(&p.data[oa.clone()]);
                for (row, b) in p.data[ob.clone()].chunks_exact(r).enumerate() {
                    let at = nb.start + row * r * k + i * r;
                    data[at..at + r]
                        .iter_mut()
                        .zip(b)
                        .for_each(|(d, v)| *d = w * v);
                }
            }
        }
        Ok(Self { shape, data })
    }

    /// Part `i` of what [`Self::mix_nd`] stacked from adapters of `shape` with weight 1 (or of the
    /// gradient on it).
    pub fn part_of_nd(&self, i: usize, shape: &Arc<AdapterShape>) -> Result<Self, ModelError> {
        let (r, whole) = (shape.rank, self.shape.rank);
        if whole % r != 0 || (i + 1) * r > whole || self.shape.entries.len() != shape.entries.len()
        {
            return Err(ModelError::Shape(format!(
                "no part {i} of rank {r} in an adapter of rank {whole}"
            )));
        }
        let mut data = vec![0.0; shape.len];
        for (old, new) in self.shape.entries.iter().zip(&shape.entries) {
            let ((oa, ob), (na, nb)) = (self.shape.ranges(old), shape.ranges(new));
            let block = r * new.fan_in;
            data[na].copy_from_slice(&self.data[oa.start + i * block..oa.start + (i + 1) * block]);
            for (row, b) in data[nb].chunks_exact_mut(r).enumerate() {
                let at = ob.start + row * whole + i * r;
                b.copy_from_slice(&self.data[at..at + r]);
            }
        }
        Ok(Self {
            shape: shape.clone(),
            data,
        })
    }
}

fn same_shape<'a>(parts: &[(&'a Adapter, f32)]) -> Result<&'a Adapter, ModelError> {
    let first = parts
        .first()
        .ok_or_else(|| ModelError::Shape("no adapter to aggregate".into()))?
        .0;
    if parts.iter().any(|p| p.0.shape != first.shape) {
        return Err(ModelError::Shape(
            "adapters of different shapes cannot be aggregated: recipes differ".into(),
        ));
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: u64) -> Adapter {
        let shape = AdapterShape::new(
            &ModelConfig::tiny(),
            &LoraRecipe {
                rank: 2,
                ..Default::default()
            },
            |_| true,
        );
        let mut rng = Seed::from_u64(seed).rng();
        let data = (0..shape.len()).map(|_| rng.normal()).collect();
        Adapter::from_data(&shape, data).expect("same length")
    }

    #[test]
    fn stacked_parts_come_back() {
        let (a, b) = (random(1), random(2));
        let both = Adapter::mix_nd(&[(&a, 1.0), (&b, 1.0)]).expect("same shape");
        assert_eq!(both.part_of_nd(0, a.shape()).expect("there").data, a.data);
        assert_eq!(both.part_of_nd(1, a.shape()).expect("there").data, b.data);
        assert!(both.part_of_nd(2, a.shape()).is_err());
    }

    fn delta(x: &Adapter, layer: usize) -> Vec<f32> {
        let (a, b) = x.pair(layer, Projection::V).expect("v is a target");
        let r = x.shape.rank;
        let n = a.len() / r;
        b.chunks(r)
            .flat_map(|row| (0..n).map(|j| (0..r).map(|q| row[q] * a[q * n + j]).sum()))
            .collect()
    }

    #[test]
    fn select_and_paste_are_inverse() {
        let x = random(1);
        let mut y = random(2);
        let part = x.select(|l| l != 1);
        y.paste(&part).expect("a part of the same shape");
        assert_eq!(y.select(|l| l != 1), part);
        assert_ne!(y, x);
        y.paste(&x.select(|l| l == 1))
            .expect("a part of the same shape");
        assert_eq!(y, x);
        let lie = x.shape.selected(|l| l != 1);
        let there: Vec<f32> = lie.into_iter().flat_map(|r| x.data[r].to_vec()).collect();
        assert_eq!(there, part.data, "ranges say where they came from");
    }

    #[test]
    fn parts_initialise_like_the_whole() {
        let c = ModelConfig::tiny();
        let recipe = LoraRecipe::default();
        let seed = Seed::from_u64(4);
        let whole = Adapter::init(&AdapterShape::new(&c, &recipe, |_| true), &seed);
        let part = Adapter::init(&AdapterShape::new(&c, &recipe, |l| l == 2), &seed);
        assert_eq!(whole.select(|l| l == 2).data, part.data);
    }

    #[test]
    fn nd_is_the_weighted_sum_of_deltas() {
        let (x, y) = (random(1), random(2));
        let mix = Adapter::mix_nd(&[(&x, 0.25), (&y, 0.75)]).expect("same shapes");
        for ((m, a), b) in delta(&mix, 1).iter().zip(delta(&x, 1)).zip(delta(&y, 1)) {
            assert!((m - (0.25 * a + 0.75 * b)).abs() < 1e-5);
        }
        assert!(Adapter::mix_nd(&[]).is_err());
    }
}
