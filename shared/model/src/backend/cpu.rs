//! Our kernels over plain buffers.

use std::ops::Range;
use std::sync::Arc;

use super::{First, Part};
use crate::ModelError;
use crate::buffers::{Buffer, Pool};
use crate::config::ModelConfig;
use crate::kernels::panels::Compute;
use crate::layer::{Layer, LayerCache, LayerTape, gather, scatter};
use crate::pass::Pass;
use crate::source::WeightSource;

/// Layers with packed weights.
#[derive(Clone, Debug)]
pub(crate) struct Layers {
    layers: Arc<Vec<Arc<Layer>>>,
    pool: Pool,
}

impl Layers {
    pub(super) fn load(
        source: &dyn WeightSource,
        range: Range<usize>,
        compute: Compute,
    ) -> Result<Self, ModelError> {
        let layer = |l| {
            Ok(Arc::new(Layer::new(
                source.config(),
                source.layer(l)?,
                compute,
            )))
        };
        let layers = range.map(layer).collect::<Result<Vec<_>, ModelError>>()?;
        Ok(Self {
            layers: Arc::new(layers),
            pool: Pool::default(),
        })
    }

    pub(super) fn part(&self, layers: Range<usize>) -> Self {
        Self {
            layers: Arc::new(self.layers[layers].to_vec()),
            pool: self.pool.clone(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.layers.iter().map(|l| l.bytes()).sum()
    }

    fn numbered(
        &self,
        first: First<'_>,
    ) -> impl DoubleEndedIterator<Item = (usize, &Layer)> + ExactSizeIterator {
        self.layers
            .iter()
            .enumerate()
            .map(move |(i, layer)| (first.layer + i, &**layer))
    }

    fn pass<'a>(&'a self, first: First<'a>, part: Part<'a>, before: usize) -> Pass<'a> {
        Pass::many(first.config, vec![part], before, &self.pool)
    }

    pub(super) fn forward(
        &self,
        first: First<'_>,
        parts: &[Part<'_>],
        x: Vec<f32>,
        see: &mut (dyn FnMut(usize, &[f32]) + Send),
    ) -> Vec<f32> {
        let pass = Pass::many(first.config, parts.to_vec(), 0, &self.pool);
        let mut x = self.pool.adopt(x);
        crate::in_pool(|| {
            for (l, layer) in self.numbered(first) {
                layer.forward(&pass, l, &mut x, false);
                see(l, &x);
            }
        });
        x.into_vec()
    }

    pub(super) fn forward_train(
        &self,
        first: First<'_>,
        part: Part<'_>,
        x: Vec<f32>,
    ) -> (Vec<f32>, Vec<LayerTape>) {
        let pass = self.pass(first, part, 0);
        let mut x = self.pool.adopt(x);
        let tapes = crate::in_pool(|| {
            self.numbered(first)
                .filter_map(|(l, layer)| layer.forward(&pass, l, &mut x, true))
                .collect()
        });
        (x.into_vec(), tapes)
    }

    pub(super) fn forward_last(
        &self,
        first: First<'_>,
        part: Part<'_>,
        x: Vec<f32>,
        keep: bool,
    ) -> (Vec<f32>, Vec<LayerTape>) {
        let pass = self.pass(first, part, 0);
        let mut x = self.pool.adopt(x);
        let mut tapes = vec![];
        let y: Buffer = crate::in_pool(|| {
            let mut layers = self.numbered(first);
            let Some((end, last)) = layers.next_back() else {
                return gather(
                    &self.pool,
                    &x,
                    &part.layout.last_rows(),
                    first.config.hidden,
                );
            };
            for (l, layer) in layers {
                tapes.extend(layer.forward(&pass, l, &mut x, keep));
            }
            let (y, tape) = last.forward_last(&pass, end, x, keep);
            tapes.extend(tape);
            y
        });
        (y.into_vec(), tapes)
    }

    pub(super) fn backward(
        &self,
        first: First<'_>,
        part: Part<'_>,
        tapes: &[LayerTape],
        mut dy: Vec<f32>,
        grads: &mut [f32],
    ) -> Vec<f32> {
        let pass = self.pass(first, part, 0);
        crate::in_pool(|| {
            for ((l, layer), tape) in self.numbered(first).zip(tapes).rev() {
                layer.backward(&pass, l, tape, &mut dy, grads);
            }
        });
        dy
    }

    pub(super) fn backward_last(
        &self,
        first: First<'_>,
        part: Part<'_>,
        tapes: &[LayerTape],
        dy: Vec<f32>,
        grads: &mut [f32],
    ) -> Vec<f32> {
        let pass = self.pass(first, part, 0);
        let dy = self.pool.adopt(dy);
        let dx = crate::in_pool(|| {
            let mut layers = self.numbered(first);
            let (Some((end, last)), Some((last_tape, tapes))) =
                (layers.next_back(), tapes.split_last())
            else {
                return scatter(
                    &self.pool,
                    &dy,
                    &part.layout.last_rows(),
                    first.config.hidden,
                    part.layout.rows(),
                );
            };
            let mut dx = last.backward_last(&pass, end, last_tape, dy, grads);
            for ((l, layer), tape) in layers.zip(tapes).rev() {
                layer.backward(&pass, l, tape, &mut dx, grads);
            }
            dx
        });
        dx.into_vec()
    }

    pub(super) fn cache(&self, config: &ModelConfig, positions: usize) -> Vec<LayerCache> {
        let width = config.kv_heads * config.head_dim;
        let layer = || LayerCache {
            keys: Vec::with_capacity(positions * width),
            values: vec![],
        };
        self.layers.iter().map(|_| layer()).collect()
    }

    pub(super) fn extend(
        &self,
        first: First<'_>,
        part: Part<'_>,
        cache: &mut [LayerCache],
        before: usize,
        x: Vec<f32>,
    ) -> Vec<f32> {
        let pass = self.pass(first, part, before);
        let mut x = self.pool.adopt(x);
        crate::in_pool(|| {
            for ((l, layer), cache) in self.numbered(first).zip(cache) {
                layer.extend(&pass, l, &mut x, cache);
            }
        });
        x.into_vec()
    }
}
