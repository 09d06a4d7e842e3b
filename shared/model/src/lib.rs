//! A Llama-family language model that can be split between a device and a coordinator, with LoRA
//! training.
//!
//! The model is three pieces run in sequence: the **device bottom** (embedding and layers `[0,
//! k_in)`), the **coordinator middle**, and the **device top** (the last `k_out` layers, final norm
//! and head). The unsplit model is the same three pieces in one process ([`split::DeviceModel`]
//! with a [`segment::Segment`] as its [`split::Middle`]), so there is one code path to test. The
//! forward and backward passes are our own kernels over plain buffers.
//!
//! An [`engine::Engine`] runs the layers: our kernels on the CPU, or, in builds with the feature of
//! that name, our shaders on a GPU (`wgpu`) or candle's operations (`candle`; on GPUs `cuda`,
//! `metal`). It is chosen for each instance; `LETHE_DEVICE` names the default. What it does not do:
//! dropout. Every result of our kernels is independent of the number of threads.
//!
//! ```
//! use lethe_model::config::ModelConfig;
//! use lethe_model::kernels::panels::Compute;
//! use lethe_model::layout::Layout;
//! use lethe_model::source::RandomWeights;
//! use lethe_model::split::{DeviceModel, SplitSpec};
//! let source = RandomWeights::new(ModelConfig::tiny(), 7);
//! let spec = SplitSpec { k_in: 1, k_out: 1 };
//! let device = DeviceModel::load(&source, spec, Compute::F32)?;
//! let mut middle = DeviceModel::load_middle(&source, spec, Compute::F32)?;
//! let (layout, ids) = Layout::pack(&[vec![1, 2, 3], vec![1, 5]]);
//! let logits = device.score(&layout, &ids, [3, 4], None, &mut (&mut middle, None))?;
//! assert_eq!(logits.len(), 2);
//! # Ok::<(), lethe_model::ModelError>(())
//! ```

mod backend;
mod buffers;
pub mod config;
mod dtype;
pub mod embedding;
#[cfg(feature = "candle")]
pub mod encoder;
pub mod engine;
mod error;
mod files;
pub mod frozen;
pub mod generate;
pub mod kernels;
mod layer;
pub mod layout;
pub mod lora;
pub mod lora_io;
mod pass;
pub mod peft;
pub mod segment;
pub mod source;
pub mod split;
pub mod tokenizer;
pub mod train;

pub use error::ModelError;

/// Runs `f` on a thread of the pool, so that its products divide their work without changing
/// threads each time.
pub(crate) fn in_pool<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| f())
}
