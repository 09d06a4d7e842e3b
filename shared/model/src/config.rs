//! Shape of a Llama-family model.

use serde::{Deserialize, Serialize};

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
            rms_eps: 1e-5,
            qkv_bias: false,
            tied_head: true,
        }
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
