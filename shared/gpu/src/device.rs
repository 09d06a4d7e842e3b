//! The device: opening it, its memory, its compiled kernels, and its errors.

use std::collections::HashMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::error::GpuError;
use crate::kernels::Kernel;

/// Longest wait for an answer: far above any pass of a real GPU, and below the time for which peers
/// wait for a reply (120 s).
const WAIT: Duration = Duration::from_secs(90);

/// Most bytes of buffers that are kept for later while no one uses them.
const KEPT_BYTES: u64 = 512 << 20;

/// An open GPU. All its passes go through one queue, one after the other.
#[derive(Debug)]
pub struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    limits: wgpu::Limits,
    faults: Arc<Faults>,
    pipelines: Mutex<HashMap<Kernel, Arc<Pipeline>>>,
    memory: Arc<Memory>,
    passes: Mutex<()>,
}

/// What the callbacks of the device reported.
#[derive(Debug, Default)]
struct Faults {
    lost: Mutex<Option<String>>,
    other: Mutex<Option<String>>,
}

/// A compiled kernel.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
}

/// Buffers that no one uses now, by size, and a count of all bytes.
#[derive(Debug, Default)]
struct Memory {
    free: Mutex<Free>,
    used: AtomicU64,
    limit: AtomicU64,
}

/// Free buffers by size.
#[derive(Debug, Default)]
struct Free {
    buffers: HashMap<u64, Vec<wgpu::Buffer>>,
    bytes: u64,
}

impl Free {
    fn pop(&mut self, size: u64) -> Option<wgpu::Buffer> {
        let found = self.buffers.get_mut(&size).and_then(Vec::pop)?;
        self.bytes -= size;
        Some(found)
    }

    /// Keeps a buffer, unless enough are kept.
    fn push(&mut self, size: u64, buffer: wgpu::Buffer) -> bool {
        let kept = self.bytes + size <= KEPT_BYTES;
        if kept {
            self.bytes += size;
            self.buffers.entry(size).or_default().push(buffer);
        }
        kept
    }
}

/// A storage buffer; it goes back to its device's pool when dropped, if it came from there.
#[derive(Debug)]
pub(crate) struct Buf {
    pub(crate) raw: wgpu::Buffer,
    /// Words of four bytes that are used; the buffer may be longer.
    pub(crate) words: usize,
    size: u64,
    pooled: bool,
    memory: Arc<Memory>,
}

impl Buf {
    /// Bytes that a binding shows.
    pub(crate) fn bytes(&self) -> u64 {
        4 * self.words.max(1) as u64
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        let kept = self.pooled && lock(&self.memory.free).push(self.size, self.raw.clone());
        if !kept {
            self.memory.used.fetch_sub(self.size, Ordering::Relaxed);
        }
    }
}

/// A lock whose holder panicked guards plain data that is still whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Result of a future that is ready at once or soon, as all of wgpu's native ones are.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(v) = future.as_mut().poll(&mut context) {
            return v;
        }
        std::thread::yield_now();
    }
}

/// Lower is better: real cards first, software last.
fn rank(kind: wgpu::DeviceType) -> u8 {
    match kind {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

impl Gpu {
    /// Opens the adapter `index` of [`Self::adapters`], or the first of them: a discrete card
    /// before an integrated one, a software adapter only when there is no other.
    ///
    /// # Errors
    /// [`GpuError::NoAdapter`] when there is none, none of that index, or it cannot be opened.
    pub fn open(index: Option<usize>) -> Result<Arc<Self>, GpuError> {
        let index = index.unwrap_or(0);
        let mut adapters = found();
        if index >= adapters.len() {
            let text = format!("adapter {index} of {}", adapters.len());
            return Err(GpuError::NoAdapter(text));
        }
        let adapter = adapters.swap_remove(index);
        // The portable limits, so that what fits one GPU fits all.
        let limits = wgpu::Limits::default();
        let (device, queue) = block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("lethe"),
            required_features: wgpu::Features::empty(),
            required_limits: limits.clone(),
            ..Default::default()
        }))
        .map_err(|e| GpuError::NoAdapter(e.to_string()))?;
        let faults = Arc::new(Faults::default());
        let sink = faults.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
            *lock(&sink.other) = Some(e.to_string());
        }));
        let sink = faults.clone();
        device.set_device_lost_callback(move |reason, text| {
            *lock(&sink.lost) = Some(format!("{reason:?} {text}"));
        });
        Ok(Arc::new(Self {
            device,
            queue,
            info: adapter.get_info(),
            limits,
            faults,
            pipelines: Mutex::default(),
            memory: Arc::default(),
            passes: Mutex::default(),
        }))
    }

    /// Kinds of all adapters, in the order of [`Self::open`]'s index.
    pub fn adapters() -> Vec<String> {
        found().iter().map(|a| kind(&a.get_info())).collect()
    }

    /// Backend, adapter, driver and optional features in use: equal kinds give equal bits.
    pub fn kind(&self) -> String {
        kind(&self.info)
    }

    /// Whether it is software that acts as a GPU, on the CPU.
    pub fn is_software(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    /// Lets all buffers together take at most `bytes` from now on; 0 lifts the limit.
    pub fn limit_memory(&self, bytes: u64) {
        self.memory.limit.store(bytes, Ordering::Relaxed);
    }

    /// Bytes of all buffers, those in the pool included.
    pub fn memory_used(&self) -> u64 {
        self.memory.used.load(Ordering::Relaxed)
    }

    /// Gives the device up; every later call is [`GpuError::Lost`].
    pub fn destroy(&self) {
        self.device.destroy();
        let mut lost = lock(&self.faults.lost);
        lost.get_or_insert_with(|| "destroyed".into());
    }

    /// The right to record and submit a pass. One at a time: buffers go back to the pool while a
    /// pass is recorded, which is sound only if no other pass takes them before the submission.
    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        lock(&self.passes)
    }

    /// An error when a callback reported one.
    pub(crate) fn check(&self) -> Result<(), GpuError> {
        if let Some(text) = &*lock(&self.faults.lost) {
            return Err(GpuError::Lost(text.clone()));
        }
        match lock(&self.faults.other).take() {
            Some(text) => Err(GpuError::Driver(text)),
            None => Ok(()),
        }
    }

    /// Runs commands of wgpu and turns their errors into ours; `asked` is for an out-of-memory.
    pub(crate) fn guarded<T>(&self, asked: u64, run: impl FnOnce() -> T) -> Result<T, GpuError> {
        self.check()?;
        let filters = [
            wgpu::ErrorFilter::Internal,
            wgpu::ErrorFilter::Validation,
            wgpu::ErrorFilter::OutOfMemory,
        ];
        let scopes = filters.map(|f| self.device.push_error_scope(f));
        let value = run();
        let mut first = None;
        // Scopes are a stack.
        for scope in scopes.into_iter().rev() {
            first = first.or(block_on(scope.pop()));
        }
        self.check()?;
        match first {
            None => Ok(value),
            Some(wgpu::Error::OutOfMemory { .. }) => Err(GpuError::OutOfMemory { asked, limit: 0 }),
            Some(e) => Err(GpuError::Driver(e.to_string())),
        }
    }

    /// A buffer of `words` with any content, from the pool if one fits.
    pub(crate) fn take(&self, words: usize) -> Result<Buf, GpuError> {
        let size = size_class(4 * words.max(1) as u64);
        self.fits(4 * words.max(1) as u64)?;
        let old = lock(&self.memory.free).pop(size);
        let raw = match old {
            Some(raw) => raw,
            None => self.create(size)?,
        };
        Ok(self.own(raw, words, size, true))
    }

    /// A buffer of its own with `bytes` in it, for weights.
    pub(crate) fn upload(&self, bytes: &[u8]) -> Result<Buf, GpuError> {
        let size = (bytes.len() as u64).next_multiple_of(4).max(4);
        self.fits(size)?;
        let raw = self.create(size)?;
        let buf = self.own(raw, (size / 4) as usize, size, false);
        self.write(&buf, bytes)?;
        Ok(buf)
    }

    /// Writes `bytes` to the start of a buffer, before all commands of the next submission.
    pub(crate) fn write(&self, buf: &Buf, bytes: &[u8]) -> Result<(), GpuError> {
        let whole = bytes.len() / 4 * 4;
        self.guarded(buf.size, || {
            if whole > 0 {
                self.queue.write_buffer(&buf.raw, 0, &bytes[..whole]);
            }
            if whole < bytes.len() {
                let mut last = [0; 4];
                last[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
                self.queue.write_buffer(&buf.raw, whole as u64, &last);
            }
        })
    }

    fn own(&self, raw: wgpu::Buffer, words: usize, size: u64, pooled: bool) -> Buf {
        Buf {
            raw,
            words,
            size,
            pooled,
            memory: self.memory.clone(),
        }
    }

    fn fits(&self, bytes: u64) -> Result<(), GpuError> {
        let limit = self.limits.max_storage_buffer_binding_size;
        if bytes <= limit {
            return Ok(());
        }
        Err(GpuError::TooLarge {
            what: "bytes of one buffer",
            got: bytes,
            limit,
        })
    }

    /// A new buffer; the pool is emptied first if there is no room otherwise.
    fn create(&self, size: u64) -> Result<wgpu::Buffer, GpuError> {
        match self.try_create(size) {
            Err(GpuError::OutOfMemory { .. }) => {
                self.empty_pool();
                self.try_create(size)
            }
            other => other,
        }
    }

    fn try_create(&self, size: u64) -> Result<wgpu::Buffer, GpuError> {
        let limit = self.memory.limit.load(Ordering::Relaxed);
        if limit > 0 && self.memory_used() + size > limit {
            return Err(GpuError::OutOfMemory { asked: size, limit });
        }
        let usage = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_SRC
            | wgpu::BufferUsages::COPY_DST;
        let raw = self.guarded(size, || self.raw(size, usage))?;
        self.memory.used.fetch_add(size, Ordering::Relaxed);
        Ok(raw)
    }

    /// A buffer that no one counts.
    pub(crate) fn raw(&self, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage,
            mapped_at_creation: false,
        })
    }

    /// A buffer that results are copied to, to be read by the host. The pool is emptied first if
    /// there is no room otherwise.
    pub(crate) fn staging(&self, bytes: u64) -> Result<wgpu::Buffer, GpuError> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let create = || self.guarded(bytes, || self.raw(bytes, usage));
        match create() {
            Err(GpuError::OutOfMemory { .. }) => {
                self.empty_pool();
                create()
            }
            other => other,
        }
    }

    fn empty_pool(&self) {
        let free = std::mem::take(&mut *lock(&self.memory.free));
        self.memory.used.fetch_sub(free.bytes, Ordering::Relaxed);
    }

    /// Sends what was written, and waits for it: until then the library holds copies.
    pub(crate) fn flush(&self) -> Result<(), GpuError> {
        let index = self.guarded(0, || self.queue.submit([]))?;
        self.wait(index)
    }

    /// The kernel, compiled at its first use.
    pub(crate) fn pipeline(&self, kernel: Kernel) -> Result<Arc<Pipeline>, GpuError> {
        let mut all = lock(&self.pipelines);
        if let Some(p) = all.get(&kernel) {
            return Ok(p.clone());
        }
        let made = self.guarded(0, || self.compile(kernel))?;
        let made = Arc::new(made);
        all.insert(kernel, made.clone());
        Ok(made)
    }

    fn compile(&self, kernel: Kernel) -> Pipeline {
        let source = wgpu::ShaderSource::Wgsl(kernel.source().into());
        let module = self
            .device
            .create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(kernel.name()),
                source,
            });
        let pipeline = self
            .device
            .create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(kernel.name()),
                layout: None,
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                cache: None,
            });
        let layout = pipeline.get_bind_group_layout(0);
        Pipeline { pipeline, layout }
    }

    /// Waits for a submission.
    pub(crate) fn wait(&self, index: wgpu::SubmissionIndex) -> Result<(), GpuError> {
        self.check()?;
        let poll = wgpu::PollType::Wait {
            submission_index: Some(index),
            timeout: Some(WAIT),
        };
        // wgpu panics when the device is lost during the wait; there is no other way to hear it.
        let polled = catch_unwind(AssertUnwindSafe(|| self.device.poll(poll)));
        self.check()?;
        match polled {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(wgpu::PollError::Timeout)) => {
                // Who waits for a turn does not wait as long again.
                let text = format!("it gave no answer in {} s", WAIT.as_secs());
                lock(&self.faults.lost).get_or_insert(text);
                Err(GpuError::Timeout {
                    seconds: WAIT.as_secs(),
                })
            }
            Ok(Err(e)) => Err(GpuError::Driver(e.to_string())),
            Err(_) => Err(GpuError::Lost("while it computed".into())),
        }
    }
}

/// Adapters that can run the kernels, the best first; the order of equals is the driver's.
fn found() -> Vec<wgpu::Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let mut all = block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    let limits = wgpu::Limits::default();
    all.retain(|a| limits.check_limits(&a.limits()));
    all.sort_by_key(|a| rank(a.get_info().device_type));
    all
}

fn kind(info: &wgpu::AdapterInfo) -> String {
    format!(
        "{} {} driver {} {} features none",
        info.backend, info.name, info.driver, info.driver_info
    )
}

/// Sizes of the pool: at most a quarter above what is asked.
fn size_class(bytes: u64) -> u64 {
    let step = (bytes.next_power_of_two() / 8).max(256);
    bytes.next_multiple_of(step)
}
