//! The language model on the device.

use std::path::Path;
use std::sync::Arc;

use lethe_client::{ClientModel, Compute, ModelOptions, SplitSpec};

use crate::FfiError;

/// Arithmetic of the products with frozen weights. It has to be that of the coordinator's recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum FfiArithmetic {
    /// 32-bit factors and sums.
    F32,
    /// bf16 factors, 32-bit sums.
    Bf16,
}

/// The device's layers of a language model, and its tokenizer. Several clients may share one.
#[derive(Debug, uniffi::Object)]
pub struct FfiModel(pub(crate) Arc<ClientModel>);

/// Loads the device's part of a model: a GGUF file or a Hugging Face folder. `layers_in` and
/// `layers_out` are how many of the first and of the last layers the device holds; they and the
/// arithmetic have to be those of the coordinator's recipe. Without them those of the default
/// recipe are taken. It reads a file of some 100 MB: call it off the main thread.
#[uniffi::export(default(layers_in = None, layers_out = None, arithmetic = None))]
pub fn load_model(
    path: String,
    layers_in: Option<u32>,
    layers_out: Option<u32>,
    arithmetic: Option<FfiArithmetic>,
) -> Result<Arc<FfiModel>, FfiError> {
    let default = ModelOptions::default();
    let options = ModelOptions {
        split: SplitSpec {
            k_in: layers_in.map_or(default.split.k_in, |n| n as usize),
            k_out: layers_out.map_or(default.split.k_out, |n| n as usize),
        },
        compute: match arithmetic {
            None => default.compute,
            Some(FfiArithmetic::F32) => Compute::F32,
            Some(FfiArithmetic::Bf16) => Compute::Bf16,
        },
    };
    let model = ClientModel::load(Path::new(&path), options)?;
    Ok(Arc::new(FfiModel(model)))
}

#[uniffi::export]
impl FfiModel {
    /// Memory of the weights, in bytes.
    pub fn weight_bytes(&self) -> u64 {
        self.0.weight_bytes() as u64
    }
}
