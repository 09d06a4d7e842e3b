//! One submission: kernels and copies are recorded, sent at once, and their results read back.

use std::sync::{Arc, MutexGuard, mpsc};

use crate::device::{Buf, Gpu, Pipeline};
use crate::error::GpuError;
use crate::kernels::{Kernel, check_groups, grid};

/// Bytes between the parameters of two dispatches: the largest alignment that a GPU may ask for.
const SLOT: usize = 256;

/// A submission in the making.
pub(crate) struct Work<'g> {
    pub(crate) gpu: &'g Gpu,
    steps: Vec<Step>,
    reads: Vec<Read>,
    _turn: MutexGuard<'g, ()>,
}

enum Step {
    Kernel(Dispatch),
    Copy(Move),
}

struct Dispatch {
    pipeline: Arc<Pipeline>,
    /// Buffers in the order of the kernel's bindings, and the bytes that they show.
    buffers: Vec<(wgpu::Buffer, u64)>,
    params: [u32; 16],
    groups: [usize; 2],
}

/// A copy between buffers, in bytes.
struct Move {
    from: wgpu::Buffer,
    to: wgpu::Buffer,
    bytes: u64,
}

/// A buffer as it is at one step of the work, to be read after it.
struct Read {
    staging: wgpu::Buffer,
    bytes: u64,
}

impl<'g> Work<'g> {
    pub(crate) fn new(gpu: &'g Gpu) -> Result<Self, GpuError> {
        let turn = gpu.turn();
        gpu.check()?;
        Ok(Self {
            gpu,
            steps: Vec::new(),
            reads: Vec::new(),
            _turn: turn,
        })
    }

    /// A buffer with any content.
    pub(crate) fn take(&self, words: usize) -> Result<Buf, GpuError> {
        self.gpu.take(words)
    }

    /// A buffer with `bytes`, which are there before the first step. A pooled buffer could still be
    /// written by a step that is recorded already, so from then on it is a new one.
    pub(crate) fn upload(&self, bytes: &[u8]) -> Result<Buf, GpuError> {
        if !self.steps.is_empty() {
            return self.gpu.upload(bytes);
        }
        let buf = self.gpu.take(bytes.len() / 4)?;
        self.gpu.write(&buf, bytes)?;
        Ok(buf)
    }

    /// Records a kernel over a grid of workgroups.
    pub(crate) fn run(
        &mut self,
        kernel: Kernel,
        buffers: &[&Buf],
        params: &[u32],
        groups: [usize; 2],
    ) -> Result<(), GpuError> {
        check_groups(groups)?;
        let mut all = [0; 16];
        all[..params.len()].copy_from_slice(params);
        self.steps.push(Step::Kernel(Dispatch {
            pipeline: self.gpu.pipeline(kernel)?,
            buffers: buffers.iter().map(|b| (b.raw.clone(), b.bytes())).collect(),
            params: all,
            groups,
        }));
        Ok(())
    }

    /// Records a kernel for each of `params[0]` elements.
    pub(crate) fn each(
        &mut self,
        kernel: Kernel,
        buffers: &[&Buf],
        params: &[u32],
    ) -> Result<(), GpuError> {
        self.run(kernel, buffers, params, grid(u64::from(params[0])))
    }

    /// Records the copy of the whole of `from` to the start of `to`.
    pub(crate) fn copy(&mut self, from: &Buf, to: &Buf) {
        self.steps.push(Step::Copy(Move {
            from: from.raw.clone(),
            to: to.raw.clone(),
            bytes: from.bytes(),
        }));
    }

    /// Reads `buf` as it is at this step; the result comes from [`Self::finish`], in order.
    pub(crate) fn read(&mut self, buf: &Buf) -> Result<(), GpuError> {
        let bytes = buf.bytes();
        let staging = self.gpu.staging(bytes)?;
        self.steps.push(Step::Copy(Move {
            from: buf.raw.clone(),
            to: staging.clone(),
            bytes,
        }));
        self.reads.push(Read { staging, bytes });
        Ok(())
    }

    /// Submits all, waits, and returns what was to be read.
    pub(crate) fn finish(self) -> Result<Vec<Vec<f32>>, GpuError> {
        let gpu = self.gpu;
        let (sender, receiver) = mpsc::channel();
        let asked = (self.steps.len() * SLOT) as u64;
        let index = gpu.guarded(asked, || {
            let index = gpu.queue.submit([self.encode()]);
            for read in &self.reads {
                let sender = sender.clone();
                // The receiver is gone only after an error elsewhere, which is reported there.
                let done = move |r| drop(sender.send(r));
                read.staging.map_async(wgpu::MapMode::Read, .., done);
            }
            index
        })?;
        gpu.wait(index)?;
        for _ in &self.reads {
            match receiver.try_recv() {
                Ok(Ok(())) => (),
                Ok(Err(e)) => return Err(GpuError::Driver(e.to_string())),
                Err(_) => return Err(GpuError::Driver("a result was not mapped".into())),
            }
        }
        self.reads.iter().map(|r| r.get(gpu)).collect()
    }

    fn encode(&self) -> wgpu::CommandBuffer {
        let uniforms = self.uniforms();
        let mut encoder = self
            .gpu
            .device
            .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut at = 0;
        while at < self.steps.len() {
            if let Step::Copy(c) = &self.steps[at] {
                encoder.copy_buffer_to_buffer(&c.from, 0, &c.to, 0, c.bytes);
                at += 1;
                continue;
            }
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            while let Some(Step::Kernel(d)) = self.steps.get(at) {
                let group = self.bind(d, &uniforms, (at * SLOT) as u64);
                pass.set_pipeline(&d.pipeline.pipeline);
                pass.set_bind_group(0, &group, &[]);
                pass.dispatch_workgroups(d.groups[0] as u32, d.groups[1] as u32, 1);
                at += 1;
            }
        }
        encoder.finish()
    }

    /// The parameters of all steps, a slot for each.
    fn uniforms(&self) -> wgpu::Buffer {
        let mut bytes = vec![0; self.steps.len().max(1) * SLOT];
        for (slot, step) in bytes.chunks_exact_mut(SLOT).zip(&self.steps) {
            if let Step::Kernel(d) = step {
                slot[..64].copy_from_slice(bytemuck::cast_slice(&d.params));
            }
        }
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let buffer = self.gpu.raw(bytes.len() as u64, usage);
        self.gpu.queue.write_buffer(&buffer, 0, &bytes);
        buffer
    }

    fn bind(&self, d: &Dispatch, uniforms: &wgpu::Buffer, offset: u64) -> wgpu::BindGroup {
        let binding = |buffer, offset, size| {
            wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset,
                size: wgpu::BufferSize::new(size),
            })
        };
        let mut entries = vec![wgpu::BindGroupEntry {
            binding: 0,
            resource: binding(uniforms, offset, 64),
        }];
        for (i, (raw, bytes)) in d.buffers.iter().enumerate() {
            entries.push(wgpu::BindGroupEntry {
                binding: i as u32 + 1,
                resource: binding(raw, 0, *bytes),
            });
        }
        self.gpu
            .device
            .create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &d.pipeline.layout,
                entries: &entries,
            })
    }
}

impl Read {
    fn get(&self, gpu: &Gpu) -> Result<Vec<f32>, GpuError> {
        let view = self.staging.get_mapped_range(0..self.bytes);
        let view = view.map_err(|e| {
            let lost = gpu.check().err();
            lost.unwrap_or_else(|| GpuError::Driver(e.to_string()))
        })?;
        let mut out = vec![0.0_f32; view.len() / 4];
        // The mapped bytes are little-endian words, as on every machine that has such a GPU.
        bytemuck::cast_slice_mut::<f32, u8>(&mut out).copy_from_slice(&view);
        Ok(out)
    }
}
