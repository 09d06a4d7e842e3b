//! Our kernels over plain buffers.

use std::ops::Range;
use std::sync::Arc;

use super::{Backend, First, Kept, Part, See};
use crate::ModelError;
use crate::buffers::{Buffer, Pool};
use crate::config::ModelConfig;
use crate::kernels::panels::Compute;
use crate::layer::{Layer, LayerCache, LayerTape, LayerWeights, gather, scatter};
use crate::pass::Pass;
use crate::source::WeightSource;

/// Layers with packed weights.
#[derive(Clone, Debug)]
pub(crate) struct Layers {
    layers: Arc<Vec<Arc<Layer>>>,
    pool: Pool,
}

/// Our kernels on the cores of this computer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu {
    /// Weights stay as their file has them. Results are the same, and so is the engine's kind.
    pub(crate) compact: bool,
}

impl Backend for Cpu {
    fn kind(&self) -> String {
        let units = crate::kernels::tile::units();
        format!("{units:?} {}", std::env::consts::ARCH)
    }

    fn load(
        &self,
        source: &dyn WeightSource,
        range: Range<usize>,
        compute: Compute,
    ) -> Result<Arc<dyn super::Layers>, ModelError> {
        if self.compact {
            let layers = range.map(|l| Layer::stored(source, l, compute).map(Arc::new));
            return Ok(Arc::new(Layers::of(layers.collect::<Result<_, _>>()?)));
        }
        let read = range.map(|l| crate::source::layer(source, l));
        Ok(Arc::new(Layers::new(source.config(), read, compute)?))
    }
}

impl Layers {
    /// Packs each layer as it is read.
    ///
    /// # Errors
    /// The first of `read`.
    pub(super) fn new(
        config: &ModelConfig,
        read: impl Iterator<Item = Result<LayerWeights, ModelError>>,
        compute: Compute,
    ) -> Result<Self, ModelError> {
        let pack = |weights| Ok(Arc::new(Layer::new(config, weights?, compute)));
        Ok(Self::of(read.map(pack).collect::<Result<_, ModelError>>()?))
    }

    fn of(layers: Vec<Arc<Layer>>) -> Self {
        Self {
            layers: Arc::new(layers),
            pool: Pool::default(),
        }
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

    fn all_rows(
        &self,
        first: First<'_>,
        parts: &[Part<'_>],
        x: Vec<f32>,
        mut see: See<'_>,
    ) -> Vec<f32> {
        let pass = Pass::many(first.config, parts.to_vec(), 0, &self.pool);
        let mut x = self.pool.adopt(x);
        crate::in_pool(|| {
            for (l, layer) in self.numbered(first) {
                layer.forward(&pass, l, &mut x, false);
                if let Some(see) = &mut see {
                    see(l, &x);
                }
            }
        });
        x.into_vec()
    }

    fn train_all_rows(
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

    fn last_rows(
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

    fn back(
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

    fn back_last(
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
}

impl super::Layers for Layers {
    fn part(&self, layers: Range<usize>) -> Arc<dyn super::Layers> {
        Arc::new(Self {
            layers: Arc::new(self.layers[layers].to_vec()),
            pool: self.pool.clone(),
        })
    }

    fn bytes(&self) -> usize {
        self.layers.iter().map(|l| l.bytes()).sum()
    }

    fn forward(
        &self,
        first: First<'_>,
        parts: &[Part<'_>],
        x: Vec<f32>,
        see: See<'_>,
    ) -> Result<Vec<f32>, ModelError> {
        Ok(self.all_rows(first, parts, x, see))
    }

    fn forward_last(
        &self,
        first: First<'_>,
        part: Part<'_>,
        x: Vec<f32>,
    ) -> Result<Vec<f32>, ModelError> {
        Ok(self.last_rows(first, part, x, false).0)
    }

    fn forward_train(
        &self,
        first: First<'_>,
        part: Part<'_>,
        x: Vec<f32>,
        last: bool,
    ) -> Result<(Vec<f32>, Kept), ModelError> {
        let (y, tapes) = match last {
            true => self.last_rows(first, part, x, true),
            false => self.train_all_rows(first, part, x),
        };
        Ok((y, Kept::new(tapes)))
    }

    fn backward(
        &self,
        first: First<'_>,
        part: Part<'_>,
        last: bool,
        tape: &Kept,
        dy: Vec<f32>,
        grads: &mut [f32],
    ) -> Result<Vec<f32>, ModelError> {
        let tapes: &Vec<LayerTape> = tape.get()?;
        Ok(match last {
            true => self.back_last(first, part, tapes, dy, grads),
            false => self.back(first, part, tapes, dy, grads),
        })
    }

    fn cache(&self, config: &ModelConfig, positions: usize) -> Kept {
        let width = config.kv_heads * config.head_dim;
        let layer = || LayerCache {
            keys: Vec::with_capacity(positions * width),
            values: vec![],
        };
        let caches: Vec<LayerCache> = self.layers.iter().map(|_| layer()).collect();
        Kept::new(caches)
    }

    fn extend(
        &self,
        first: First<'_>,
        part: Part<'_>,
        cache: &mut Kept,
        before: usize,
        x: Vec<f32>,
    ) -> Result<Vec<f32>, ModelError> {
        let caches: &mut Vec<LayerCache> = cache.get_mut()?;
        let pass = self.pass(first, part, before);
        let mut x = self.pool.adopt(x);
        crate::in_pool(|| {
            for ((l, layer), cache) in self.numbered(first).zip(caches) {
                layer.extend(&pass, l, &mut x, cache);
            }
        });
        Ok(x.into_vec())
    }
}
