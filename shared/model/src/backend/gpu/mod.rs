//! Layers on a GPU, through `lethe-gpu`, in f32.
//!
//! When the GPU is lost or has no room, the CPU takes over within the same pass, and keeps at it:
//! what it needs for that is on the host (the weights as they are stored, and the inputs of tapes
//! and caches). [`Backend::kind`] says so from then on.

mod host;
mod layers;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lethe_gpu::{Gpu, GpuError};

use super::{Backend, cpu};
use crate::ModelError;
use crate::kernels::panels::Compute;
use crate::source::WeightSource;
use host::Host;
use layers::Layers;

/// A GPU.
#[derive(Clone, Debug)]
pub(crate) struct GpuBackend(Arc<Device>);

/// A GPU, and whether it failed: it is not used any more then.
#[derive(Debug)]
struct Device {
    gpu: Arc<Gpu>,
    failed: AtomicBool,
}

impl Device {
    /// What the GPU computes; nothing if the CPU has to: the GPU failed, or the pass is too large
    /// for its buffers, which depends on shapes alone.
    ///
    /// # Errors
    /// [`ModelError::Shape`] for arguments that do not fit each other.
    fn attempt<T>(
        &self,
        run: impl FnOnce() -> Result<T, GpuError>,
    ) -> Result<Option<T>, ModelError> {
        if self.has_failed() {
            return Ok(None);
        }
        match run() {
            Ok(value) => Ok(Some(value)),
            Err(e) if e.is_of_the_device() => {
                self.give_up(&e);
                Ok(None)
            }
            Err(GpuError::TooLarge { .. }) => Ok(None),
            Err(e) => Err(ModelError::Shape(e.to_string())),
        }
    }

    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    fn give_up(&self, why: &GpuError) {
        let kind = self.gpu.kind();
        if !self.failed.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "the GPU ({kind}) failed: {why}; this process computes on the CPU from now on: \
                 restart it to use the GPU again"
            );
        }
    }
}

impl GpuBackend {
    /// The GPU of that number, or the best one.
    ///
    /// # Errors
    /// [`GpuError::NoAdapter`].
    pub(crate) fn open(number: Option<usize>) -> Result<Self, GpuError> {
        let gpu = Gpu::open(number)?;
        if gpu.is_software() {
            let kind = gpu.kind();
            tracing::warn!("no GPU but software that acts as one ({kind}): the CPU is far faster");
        }
        Ok(Self(Arc::new(Device {
            gpu,
            failed: AtomicBool::new(false),
        })))
    }

    #[cfg(test)]
    pub(crate) fn gpu(&self) -> &Gpu {
        &self.0.gpu
    }
}

impl Backend for GpuBackend {
    fn kind(&self) -> String {
        let gpu = format!("wgpu {}", self.0.gpu.kind());
        match self.0.has_failed() {
            false => gpu,
            true => format!("{} in place of {gpu}", cpu::Cpu::default().kind()),
        }
    }

    fn load(
        &self,
        source: &dyn WeightSource,
        range: Range<usize>,
        compute: Compute,
    ) -> Result<Arc<dyn super::Layers>, ModelError> {
        if compute != Compute::F32 {
            return Err(ModelError::Device(format!(
                "layers on a GPU compute in f32, not in {compute:?}: set compute = \"f32\""
            )));
        }
        let host = Host::read(source, range)?;
        Ok(Arc::new(Layers::load(&self.0, host)?))
    }
}

#[cfg(test)]
pub(super) mod tests;
