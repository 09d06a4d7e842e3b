//! Which engine runs a model's layers: chosen for each instance, by default the one that the
//! environment variable `LETHE_DEVICE` names.

use std::sync::{Arc, OnceLock};

use crate::ModelError;
#[cfg(feature = "wgpu")]
use crate::backend::gpu::GpuBackend;
use crate::backend::{Backend, cpu};

/// What runs layers. Cloning shares it; layers on one GPU share its device.
///
/// ```
/// use lethe_model::config::ModelConfig;
/// use lethe_model::engine::Engine;
/// use lethe_model::kernels::panels::Compute;
/// use lethe_model::segment::Segment;
/// use lethe_model::source::RandomWeights;
/// let source = RandomWeights::new(ModelConfig::tiny(), 7);
/// let segment = Segment::load_on(&Engine::cpu(), &source, 0..2, Compute::F32)?;
/// assert_eq!(segment.engine(), &Engine::named("cpu")?);
/// # Ok::<(), lethe_model::ModelError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Engine(Arc<dyn Backend>);

/// Engines are equal if their results are, bit for bit.
impl PartialEq for Engine {
    fn eq(&self, other: &Self) -> bool {
        self.kind() == other.kind()
    }
}

/// The names that [`Engine::named`] knows, for errors.
const NAMES: &str = "cpu, cpu:compact, wgpu, wgpu:N, cuda, cuda:N, metal or candle-cpu";

impl Engine {
    /// Our kernels on this computer's cores.
    pub fn cpu() -> Self {
        Self(Arc::new(cpu::Cpu::default()))
    }

    /// The same kernels, with weights held as their file stores them. Results are the same; short
    /// passes take longer, because each product decodes its weights.
    ///
    /// It saves memory where a file has fewer bits a weight than the arithmetic: F16 and blocks of
    /// 32 (Q4_0 to Q8_0) in f32, blocks of 32 in bf16, on processors with tile kernels for that
    /// arithmetic. Other weights (F32, K types, inputs that 32 does not divide) and those for 8-bit
    /// scoring are held as [`Self::cpu`] holds them.
    pub fn compact() -> Self {
        Self(Arc::new(cpu::Cpu { compact: true }))
    }

    /// What an app gets that chooses nothing: the engine that `LETHE_DEVICE` names,
    /// [`Self::compact`] if it is not set.
    ///
    /// # Errors
    /// As [`Self::named`].
    pub fn of_app() -> Result<Self, ModelError> {
        match std::env::var_os("LETHE_DEVICE") {
            Some(_) => Self::from_env(),
            None => Ok(Self::compact()),
        }
    }

    /// The engine of that name: `cpu`, `cpu:compact` ([`Self::compact`]); in builds with the
    /// feature `wgpu`: `wgpu` (the best GPU that has a Vulkan, Metal or Direct3D 12 driver),
    /// `wgpu:N`; with `candle`: `candle-cpu` (for comparisons), with `cuda`: `cuda`, `cuda:N`, with
    /// `metal`: `metal`.
    ///
    /// # Errors
    /// [`ModelError::Device`] for other names, and if this build or this computer has no such
    /// engine.
    pub fn named(name: &str) -> Result<Self, ModelError> {
        let unknown = |why: &str| ModelError::Device(format!("engine {name:?}: {why}"));
        let numbered = |number: &str| {
            number.parse::<usize>().map_err(|_| {
                unknown(&format!(
                    "no device number {number:?}, expected one of {NAMES}"
                ))
            })
        };
        match name.split_once(':') {
            None if name == "cpu" => Ok(Self::cpu()),
            Some(("cpu", "compact")) => Ok(Self::compact()),
            None if name == "wgpu" => gpu(name, None),
            None if matches!(name, "candle-cpu" | "cuda" | "metal") => candle(name, name, 0),
            Some(("wgpu", number)) => gpu(name, Some(numbered(number)?)),
            Some(("cuda", number)) => candle(name, "cuda", numbered(number)?),
            _ => Err(unknown(&format!("expected {NAMES}"))),
        }
    }

    /// The engine that the environment variable `LETHE_DEVICE` names, `cpu` if it is not set. It is
    /// opened once in a process.
    ///
    /// # Errors
    /// As [`Self::named`].
    pub fn from_env() -> Result<Self, ModelError> {
        static CHOSEN: OnceLock<Result<Engine, String>> = OnceLock::new();
        let open = || {
            let name = std::env::var("LETHE_DEVICE").unwrap_or_else(|_| "cpu".into());
            Engine::named(&name).map_err(|e| format!("LETHE_DEVICE: {e}"))
        };
        CHOSEN.get_or_init(open).clone().map_err(ModelError::Device)
    }

    /// What it computes with: version, device and vector units. Where it is equal, results are
    /// equal bit for bit; where it differs they may not be. It is recorded with each round.
    pub fn kind(&self) -> String {
        format!(
            "lethe-model {} {}",
            env!("CARGO_PKG_VERSION"),
            self.0.kind()
        )
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.0
    }

    #[cfg(any(feature = "candle", feature = "wgpu"))]
    pub(crate) fn of(backend: impl Backend + 'static) -> Self {
        Self(Arc::new(backend))
    }
}

/// The kind of the engine that `LETHE_DEVICE` names; if there is none, why.
pub fn kind_from_env() -> String {
    match Engine::from_env() {
        Ok(engine) => engine.kind(),
        Err(e) => e.to_string(),
    }
}

#[cfg(feature = "wgpu")]
fn gpu(name: &str, number: Option<usize>) -> Result<Engine, ModelError> {
    let backend = GpuBackend::open(number)
        .map_err(|e| ModelError::Device(format!("engine {name:?}: {e}, or use \"cpu\"")))?;
    Ok(Engine::of(backend))
}

#[cfg(not(feature = "wgpu"))]
fn gpu(name: &str, _: Option<usize>) -> Result<Engine, ModelError> {
    Err(ModelError::Device(format!(
        "engine {name:?}: this program was built without GPUs; build it with the feature `wgpu`"
    )))
}

#[cfg(feature = "candle")]
fn candle(name: &str, kind: &str, number: usize) -> Result<Engine, ModelError> {
    let backend = crate::backend::candle::Candle::open(kind, number).map_err(|e| {
        ModelError::Device(format!(
            "engine {name:?}: {e}; builds with the feature `cuda` or `metal` can use one"
        ))
    })?;
    Ok(Engine::of(backend))
}

#[cfg(not(feature = "candle"))]
fn candle(name: &str, _: &str, _: usize) -> Result<Engine, ModelError> {
    Err(ModelError::Device(format!(
        "engine {name:?}: this program was built without candle; build it with the feature \
         `candle`, `cuda` or `metal`"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compact_engine_is_found_by_its_name_and_is_of_the_same_kind() {
        let named = Engine::named("cpu:compact").expect("always there");
        assert!(format!("{named:?}").contains("compact: true"), "{named:?}");
        assert!(format!("{:?}", Engine::cpu()).contains("compact: false"));
        assert_eq!(
            named,
            Engine::cpu(),
            "an audit compares kinds: results are the same"
        );
        assert!(Engine::named("cpu:other").is_err());
        assert!(Engine::of_app().is_ok());
    }
}
