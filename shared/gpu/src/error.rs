//! What can go wrong on a GPU.

/// A failure of the GPU or of what was asked of it. None of them is a panic.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GpuError {
    /// No adapter can be used.
    #[error("no GPU adapter that can be used: {0}; install a Vulkan, Metal or Direct3D 12 driver")]
    NoAdapter(String),
    /// The device is gone: a reset, a removed card, or [`crate::Gpu::destroy`].
    #[error("the GPU was lost: {0}; open it again")]
    Lost(String),
    /// The device, or the limit set with [`crate::Gpu::limit_memory`], has no room.
    #[error(
        "no GPU memory for {asked} bytes more (limit {limit}, 0 is the device's own); free some \
         or use fewer layers"
    )]
    OutOfMemory {
        /// Bytes that were asked for.
        asked: u64,
        /// Bytes that all buffers together may take; 0 when the driver refused.
        limit: u64,
    },
    /// More than one binding, dispatch or kernel takes.
    #[error("{what}: {got} is more than the {limit} that this GPU takes at once; split it")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        got: u64,
        /// The largest size allowed.
        limit: u64,
    },
    /// An argument has the wrong shape.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// The argument.
        what: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A wait took longer than its bound.
    #[error("the GPU gave no answer in {seconds} s; it hangs or is overloaded")]
    Timeout {
        /// Seconds waited.
        seconds: u64,
    },
    /// The driver or the graphics library refused a command: a bug in this crate or in the driver.
    #[error("the GPU driver refused a command: {0}; please report it")]
    Driver(String),
}

impl GpuError {
    /// Whether the device failed, so that another one could do the same work: it is lost, has no
    /// room, does not answer, or refused a command.
    pub fn is_of_the_device(&self) -> bool {
        match self {
            Self::Lost(_) | Self::OutOfMemory { .. } | Self::Timeout { .. } | Self::Driver(_) => {
                true
            }
            Self::NoAdapter(_) | Self::TooLarge { .. } | Self::Shape { .. } => false,
        }
    }

    pub(crate) fn shape(what: &'static str, expected: impl ToString, got: impl ToString) -> Self {
        Self::Shape {
            what,
            expected: expected.to_string(),
            got: got.to_string(),
        }
    }
}

/// An error unless `got` is `expected`.
pub(crate) fn same(what: &'static str, expected: usize, got: usize) -> Result<(), GpuError> {
    if expected == got {
        return Ok(());
    }
    Err(GpuError::shape(what, expected, got))
}
