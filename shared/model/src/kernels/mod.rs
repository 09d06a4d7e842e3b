//! The arithmetic: matrix products, norms, rotary embedding, attention, activations, forward and
//! backward.
//!
//! Every function gives the same bits whatever the number of threads: work is divided by rows or by
//! (sequence, head), each output is computed by one task, and partial sums are added in a fixed
//! order.

pub mod attention;
pub(crate) mod caches;
pub mod gemm;
pub mod linear;
pub mod math;
pub mod norm;
pub mod panels;
mod quant;
pub mod rope;
pub(crate) mod stored;
pub(crate) mod tile;
mod tiled;
mod transpose;
