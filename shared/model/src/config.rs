//! Shape of a Llama-family model.

use serde::{Deserialize, Serialize};

/// Most layers of a model: bounds far above any real one, and so low that no product of three of
/// them overflows 64 bits.
pub(crate) const LAYERS: usize = 1 << 14;
/// Most heads.
pub(crate) const HEADS: usize = 1 << 14;
/// Largest width: of the residual stream, of a head, of the MLP.
pub(crate) const WIDTH: usize = 1 << 20;
/// Most tokens in a vocabulary.
pub(crate) const VOCAB: usize = 1 << 24;
/// Most positions.
pub(crate) const POSITIONS: usize = 1 << 27;

/// Dimensions and constants of a model; every tensor's shape follows from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads (grouped-query attention).
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Longest sequence, in tokens.
    pub max_positions: usize,
    /// Base of the rotary embedding.
    pub rope_theta: f32,
    /// What each of the `head_dim / 2` rotary frequencies is divided by (scaled rotations, as of
    /// Llama 3.1); empty: by nothing.
    #[serde(default)]
    pub rope_factors: Vec<f32>,
    /// Epsilon of RMSNorm.
    pub rms_eps: f32,
    /// q, k and v projections have a bias (Qwen2).
    pub qkv_bias: bool,
    /// The head is the embedding.
    pub tied_head: bool,
}

impl ModelConfig {
    /// A three-layer model for tests.
    pub fn tiny() -> Self {
        Self {
            hidden: 24,
            layers: 3,
            heads: 4,
            kv_heads: 2,
            head_dim: 6,
            intermediate: 40,
            vocab: 64,
            max_positions: 256,
            rope_theta: 10_000.0,
            rope_factors: vec![],
            rms_eps: 1e-5,
            qkv_bias: false,
            tied_head: true,
        }
    }

    /// The angle by which the `i`-th pair of a head's values is turned for each position.
    pub(crate) fn rope_rate(&self, i: usize) -> f32 {
        let rate = 1.0 / self.rope_theta.powf(2.0 * i as f32 / self.head_dim as f32);
        match self.rope_factors.get(i) {
            Some(factor) => rate / factor,
            None => rate,
        }
    }

    /// Values that the training forward of one layer keeps for each token: its input, queries to
    /// values, the attention's output and normalisers, the state before the MLP, gate and up.
    pub(crate) fn kept_values(&self) -> usize {
        let queries = self.heads * self.head_dim;
        2 * self.hidden + self.qkv_width() + queries + self.heads + 2 * self.intermediate
    }

    /// Columns of the fused query, key and value projection.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Refuses shapes the kernels cannot run; `Err` says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        let positive = [
            self.hidden,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.intermediate,
            self.vocab,
        ];
        if positive.contains(&0) {
            return Err(format!("a dimension is zero: {self:?}"));
        }
        let bounded = [
            ("layers", self.layers, LAYERS),
            ("heads", self.heads, HEADS),
            ("key heads", self.kv_heads, HEADS),
            ("a head's width", self.head_dim, WIDTH),
            ("the width", self.hidden, WIDTH),
            ("the MLP's width", self.intermediate, WIDTH),
            ("the vocabulary", self.vocab, VOCAB),
            ("positions", self.max_positions, POSITIONS),
        ];
        if let Some((what, got, most)) = bounded.iter().find(|(_, got, most)| got > most) {
            return Err(format!("{what}: {got}, at most {most}"));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return Err(format!(
                "rotary base {}, expected a positive number",
                self.rope_theta
            ));
        }
        let usable = |f: &f32| f.is_finite() && *f > 0.0;
        if !matches!(self.rope_factors.len(), n if n == 0 || n == self.head_dim / 2)
            || !self.rope_factors.iter().all(usable)
        {
            return Err(format!(
                "{} factors of rotary frequencies, expected {} positive ones",
                self.rope_factors.len(),
                self.head_dim / 2
            ));
        }
        if !(self.rms_eps.is_finite() && self.rms_eps >= 0.0) {
            return Err(format!(
                "RMSNorm epsilon {}, expected a small number",
                self.rms_eps
            ));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!(
                "{} query heads do not divide over {} key heads",
                self.heads, self.kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!(
                "head width {} is odd: rotary embedding needs pairs",
                self.head_dim
            ));
        }
        Ok(())
    }
}
