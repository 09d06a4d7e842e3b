//! Transformer layers on GPUs, forward and backward, through Vulkan, Metal or Direct3D 12.
//!
//! It knows layers only: RMSNorm, rotary positions, grouped attention over packed runs with a
//! shared prefix, SwiGLU, and LoRA on any projection. Frozen weights stay in the block formats of
//! GGUF and are decoded in the kernels. A pass is one submission; nothing is read back inside it.
//!
//! | Kernel | Source | A workgroup computes |
//! |---|---|---|
//! | product, tiled | `matmul.wgsl` | 32x32 elements of C; forms NT, NN, TN |
//! | product, few rows | `matvec.wgsl` | one element of C, K split among 64 |
//! | RMSNorm | `norm_forward.wgsl`, `norm_backward.wgsl` | a row |
//! | attention | `attention_forward.wgsl` | a row of a head, 64 keys a step |
//! | attention, dQ | `attention_query.wgsl` | a row of a head |
//! | attention, dK, dV | `attention_key.wgsl` | a key row of a key head |
//! | rotary, SwiGLU, copy | `elements.wgsl` with `rope`, `swiglu_*`, `copy` | 64 elements |
//!
//! There are no atomics: one adapter with one driver ([`Gpu::kind`]) gives the same bits each time.
//! Every failure is a [`GpuError`], that of the driver and the loss of the device included. A
//! buffer, and so a matrix, is at most 128 MiB, which all GPUs take.

mod backward;
mod cache;
mod device;
mod error;
mod kernels;
mod layer;
mod layers;
mod lora;
mod rows;
mod shape;
mod weights;
mod work;

pub use cache::Cache;
pub use device::Gpu;
pub use error::GpuError;
pub use layers::{Layers, See, Tape};
pub use lora::{Lora, Pair, PairGrad, Projection};
pub use rows::{Rows, Run};
pub use shape::Shape;
pub use weights::{Format, LayerWeights, Matrix};
