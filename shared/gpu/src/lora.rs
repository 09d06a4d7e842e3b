//! Low-rank adapters (LoRA, Hu et al., 2021) beside the frozen projections.

use std::collections::HashMap;

use crate::device::Buf;
use crate::error::{GpuError, same};
use crate::kernels::{Form, Product, View};
use crate::shape::Shape;
use crate::weights::Format;
use crate::work::Work;

/// A projection of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Projection {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Output of the attention.
    O,
    /// Gate of the MLP.
    Gate,
    /// Up of the MLP.
    Up,
    /// Down of the MLP.
    Down,
}

/// An adapter: `scale * (x A^T) B^T` is added to each projection that has a pair.
#[derive(Clone, Copy, Debug)]
pub struct Lora<'a> {
    /// Rank of all pairs.
    pub rank: usize,
    /// Scale of all pairs.
    pub scale: f32,
    /// The pairs; at most one for a projection.
    pub pairs: &'a [Pair<'a>],
}

/// The two factors beside one projection.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// Layer, counted from the first of the [`crate::Layers`] that the adapter is used with.
    pub layer: usize,
    /// The projection.
    pub projection: Projection,
    /// `[rank, in]`.
    pub a: &'a [f32],
    /// `[out, rank]`.
    pub b: &'a [f32],
}

/// Where the gradient of a pair is added.
#[derive(Debug)]
pub struct PairGrad<'a> {
    /// `[rank, in]`.
    pub a: &'a mut [f32],
    /// `[out, rank]`.
    pub b: &'a mut [f32],
}

/// An adapter on the GPU, all pairs in one buffer.
#[derive(Debug)]
pub(crate) struct Adapter {
    buf: Buf,
    rank: usize,
    scale: f32,
    /// First elements of A and of B.
    places: HashMap<(usize, Projection), Place>,
    pairs: usize,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    a: usize,
    b: usize,
}

/// What a pair works on: `x [rows, in]`, dense, and a view of the projection's output or of its
/// gradient.
#[derive(Clone, Copy)]
pub(crate) struct Site<'a> {
    pub(crate) layer: usize,
    pub(crate) projection: Projection,
    pub(crate) x: &'a Buf,
    pub(crate) y: View<'a>,
}

impl Adapter {
    pub(crate) fn upload(
        work: &Work<'_>,
        shape: &Shape,
        layers: usize,
        lora: &Lora<'_>,
    ) -> Result<Self, GpuError> {
        let mut data = Vec::new();
        let mut places = HashMap::new();
        if lora.rank == 0 {
            return Err(GpuError::shape("rank of the adapter", "at least 1", 0));
        }
        for pair in lora.pairs {
            if pair.layer >= layers {
                let expected = format!("a layer below {layers}");
                return Err(GpuError::shape("layer of a pair", expected, pair.layer));
            }
            let fan_in = shape.fan_in(pair.projection);
            let fan_out = shape.fan_out(pair.projection);
            same("A of a pair", lora.rank * fan_in, pair.a.len())?;
            same("B of a pair", fan_out * lora.rank, pair.b.len())?;
            let a = data.len();
            data.extend_from_slice(pair.a);
            let b = data.len();
            data.extend_from_slice(pair.b);
            let key = (pair.layer, pair.projection);
            if places.insert(key, Place { a, b }).is_some() {
                let got = format!("two for {key:?}");
                return Err(GpuError::shape("pairs", "one for a projection", got));
            }
        }
        Ok(Self {
            buf: work.upload(bytemuck::cast_slice(&data))?,
            rank: lora.rank,
            scale: lora.scale,
            places,
            pairs: lora.pairs.len(),
        })
    }

    /// Elements of all pairs.
    pub(crate) fn words(&self) -> usize {
        self.buf.words
    }

    pub(crate) fn has(&self, layer: usize, projection: Projection) -> bool {
        self.places.contains_key(&(layer, projection))
    }

    pub(crate) fn check_grads(&self, grads: &[PairGrad<'_>]) -> Result<(), GpuError> {
        same("gradients of pairs", self.pairs, grads.len())?;
        let words = grads.iter().map(|g| g.a.len() + g.b.len()).sum();
        same("elements of the gradients", self.words(), words)
    }

    /// `y += scale * (x A^T) B^T`.
    pub(crate) fn forward(
        &self,
        work: &mut Work<'_>,
        shape: &Shape,
        site: Site<'_>,
    ) -> Result<(), GpuError> {
        let Some(place) = self.places.get(&(site.layer, site.projection)) else {
            return Ok(());
        };
        let h = self.down(work, shape, site, *place)?;
        Product {
            c: site.y,
            m: h.words / self.rank,
            n: shape.fan_out(site.projection),
            k: self.rank,
            alpha: self.scale,
            add: true,
            ..self.product(
                Form::Nt,
                View::new(&h, 0, self.rank),
                View::new(&self.buf, place.b, self.rank),
                site.y,
            )
        }
        .run(work)
    }

    /// Backward of [`Self::forward`], with the gradient in `site.y`: adds to `dx`, sets the pair's
    /// part of `grads`.
    pub(crate) fn backward(
        &self,
        work: &mut Work<'_>,
        shape: &Shape,
        site: Site<'_>,
        dx: &Buf,
        grads: &Buf,
    ) -> Result<(), GpuError> {
        let Some(place) = self.places.get(&(site.layer, site.projection)) else {
            return Ok(());
        };
        let fan_in = shape.fan_in(site.projection);
        let fan_out = shape.fan_out(site.projection);
        let rank = self.rank;
        let h = self.down(work, shape, site, *place)?;
        let rows = h.words / rank;
        let wide = View::new(&h, 0, rank);
        let to_b = View::new(grads, place.b, rank);
        Product {
            m: fan_out,
            n: rank,
            k: rows,
            alpha: self.scale,
            ..self.product(Form::Tn, site.y, wide, to_b)
        }
        .run(work)?;
        let dh = work.take(rows * rank)?;
        let narrow = View::new(&dh, 0, rank);
        let b = View::new(&self.buf, place.b, rank);
        Product {
            m: rows,
            n: rank,
            k: fan_out,
            alpha: self.scale,
            ..self.product(Form::Nn, site.y, b, narrow)
        }
        .run(work)?;
        let x = View::new(site.x, 0, fan_in);
        let to_a = View::new(grads, place.a, fan_in);
        Product {
            m: rank,
            n: fan_in,
            k: rows,
            ..self.product(Form::Tn, narrow, x, to_a)
        }
        .run(work)?;
        let a = View::new(&self.buf, place.a, fan_in);
        Product {
            m: rows,
            n: fan_in,
            k: rank,
            add: true,
            ..self.product(Form::Nn, narrow, a, View::new(dx, 0, fan_in))
        }
        .run(work)
    }

    /// `x A^T`, `[rows, rank]`.
    fn down(
        &self,
        work: &mut Work<'_>,
        shape: &Shape,
        site: Site<'_>,
        place: Place,
    ) -> Result<Buf, GpuError> {
        let fan_in = shape.fan_in(site.projection);
        let rows = site.x.words / fan_in;
        let h = work.take(rows * self.rank)?;
        let a = View::new(&self.buf, place.a, fan_in);
        let x = View::new(site.x, 0, fan_in);
        Product {
            m: rows,
            n: self.rank,
            k: fan_in,
            ..self.product(Form::Nt, x, a, View::new(&h, 0, self.rank))
        }
        .run(work)?;
        Ok(h)
    }

    /// A product of no size yet.
    fn product<'a>(&self, form: Form, a: View<'a>, b: View<'a>, c: View<'a>) -> Product<'a> {
        Product {
            form,
            a,
            b,
            format: Format::F32,
            c,
            m: 0,
            n: 0,
            k: 0,
            alpha: 1.0,
            add: false,
            extra: None,
        }
    }
}
