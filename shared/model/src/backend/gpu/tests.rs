//! The CPU takes over from a GPU that fails before or between passes.
#![allow(clippy::print_stderr, reason = "what is skipped is said")]

use super::GpuBackend;
use crate::config::ModelConfig;
use crate::engine::Engine;
use crate::kernels::panels::Compute;
use crate::layout::Layout;
use crate::lora::{Adapter, AdapterShape, LoraRecipe};
use crate::segment::{Part, Segment};
use crate::source::RandomWeights;

/// The best GPU of this computer. Where there is none, tests that need one are skipped; with
/// `LETHE_GPU=required` they fail.
pub(in crate::backend) fn open() -> Option<GpuBackend> {
    match GpuBackend::open(None) {
        Ok(gpu) => Some(gpu),
        Err(e) if std::env::var("LETHE_GPU").is_ok_and(|v| v == "required") => {
            panic!("LETHE_GPU=required: {e}")
        }
        Err(e) => {
            eprintln!("skipped, LETHE_GPU=required would fail: {e}");
            None
        }
    }
}

const SEQUENCES: [&[u32]; 3] = [&[7, 8, 9, 1, 2], &[7, 8, 5], &[7, 8, 9, 1]];

struct Case {
    config: ModelConfig,
    layout: Layout,
    adapter: Adapter,
    x: Vec<f32>,
    dy: Vec<f32>,
}

impl Case {
    fn new() -> Self {
        let config = ModelConfig::tiny();
        let (layout, _) = Layout::pack(&SEQUENCES.map(<[u32]>::to_vec));
        let shape = AdapterShape::new(&config, &LoraRecipe::default(), |_| true);
        let wave = |n: usize, rate: f32| -> Vec<f32> {
            (0..n).map(|i| (i as f32 * rate).sin() * 0.3).collect()
        };
        let values = layout.rows() * config.hidden;
        Self {
            adapter: Adapter::from_data(&shape, wave(shape.len(), 0.7)).expect("same length"),
            x: wave(values, 1.3),
            dy: wave(values, 2.1),
            layout,
            config,
        }
    }

    fn segment(&self, engine: &Engine) -> Segment {
        let source = RandomWeights::new(self.config.clone(), 5);
        Segment::load_on(engine, &source, 0..self.config.layers, Compute::F32).expect("loads")
    }

    /// Output, gradient of the input and of the adapter; `between` forward and backward something
    /// happens.
    fn train(&self, segment: &Segment, between: impl FnOnce()) -> [Vec<f32>; 3] {
        let (y, tape) = segment
            .forward_train(&self.layout, self.x.clone(), &self.adapter)
            .expect("runs");
        between();
        let mut grads = vec![0.0; self.adapter.data.len()];
        let dx = segment
            .backward(&tape, self.dy.clone(), &self.adapter, &mut grads)
            .expect("runs");
        [y, dx, grads]
    }

    /// The first sequence's states, token by token; something happens `before` one of them.
    fn extend(&self, segment: &Segment, mut before: impl FnMut(usize)) -> Vec<f32> {
        let mut cache = segment.cache(8);
        let mut out = vec![];
        for (i, x) in self.x.chunks_exact(self.config.hidden).take(5).enumerate() {
            before(i);
            let next = segment.extend(&mut cache, x.to_vec(), Some(&self.adapter));
            out.extend(next.expect("runs"));
        }
        out
    }
}

fn near(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let norm = want.iter().map(|x| x * x).sum::<f32>().sqrt();
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() < 1e-4 * norm + 1e-7, "{what}: {g}, not {w}");
    }
}

/// Everything is as on the CPU although the GPU fails, and the engine says that it failed.
fn taken_over(gpu: GpuBackend, fails: impl Fn(&GpuBackend)) {
    let case = Case::new();
    let ours = case.segment(&Engine::cpu());
    let engine = Engine::of(gpu.clone());
    let before = engine.kind();
    let theirs = case.segment(&engine);
    let want = case.train(&ours, || {});
    let got = case.train(&theirs, || fails(&gpu));
    for (got, want) in got.iter().zip(&want) {
        near("training", got, want);
    }
    let after = engine.kind();
    assert!(after.contains("in place of wgpu"), "{after}");
    assert_ne!(before, after);
    assert_ne!(engine, Engine::cpu());
    // From now on on the CPU, bit for bit: what was loaded before, and what is loaded now.
    for segment in [&theirs, &case.segment(&engine)] {
        assert_eq!(case.train(segment, || {}), want);
        let y = segment.forward(&case.layout, case.x.clone(), None);
        let ours = ours.forward(&case.layout, case.x.clone(), None);
        assert_eq!(y.expect("runs"), ours.expect("runs"));
    }
}

#[test]
fn a_lost_device_between_forward_and_backward() {
    let Some(gpu) = open() else { return };
    taken_over(gpu, |gpu| gpu.gpu().destroy());
}

#[test]
fn no_room_for_a_backward() {
    let Some(gpu) = open() else { return };
    taken_over(gpu, |gpu| gpu.gpu().limit_memory(1));
}

#[test]
fn a_lost_device_before_each_form_of_a_forward() {
    type Form = fn(&Case, &Segment) -> Vec<f32>;
    let plain: Form = |case, segment| {
        let y = segment.forward(&case.layout, case.x.clone(), Some(&case.adapter));
        y.expect("runs")
    };
    let last: Form = |case, segment| {
        let y = segment.forward_last(&case.layout, case.x.clone(), None);
        y.expect("runs")
    };
    let last_train: Form = |case, segment| {
        let run = segment.forward_last_train(&case.layout, case.x.clone(), &case.adapter);
        let (mut y, tape) = run.expect("runs");
        let mut grads = vec![0.0; case.adapter.data.len()];
        let dx = segment.backward_last(&tape, y.clone(), &case.adapter, &mut grads);
        y.extend(dx.expect("runs"));
        y.extend(grads);
        y
    };
    let many: Form = |case, segment| {
        let part = |adapter| Part {
            layout: &case.layout,
            adapter,
        };
        let twice = [&case.x[..], &case.x[..]].concat();
        let y = segment.forward_many(&[part(None), part(Some(&case.adapter))], twice);
        y.expect("runs")
    };
    let case = Case::new();
    let ours = case.segment(&Engine::cpu());
    for form in [plain, last, last_train, many] {
        let Some(gpu) = open() else { return };
        let theirs = case.segment(&Engine::of(gpu.clone()));
        near("on the GPU", &form(&case, &theirs), &form(&case, &ours));
        gpu.gpu().destroy();
        assert_eq!(form(&case, &theirs), form(&case, &ours));
    }
}

/// Parts without layers are no failure, and need no layers on the CPU.
#[test]
fn a_part_without_layers_changes_nothing() {
    let Some(gpu) = open() else { return };
    let case = Case::new();
    let engine = Engine::of(gpu);
    let none = case.segment(&engine).part(0..0);
    let y = none.forward(&case.layout, case.x.clone(), None);
    assert_eq!(y.expect("runs"), case.x);
    assert_eq!(none.weight_bytes(), 0);
    assert!(!engine.kind().contains("in place of"));
}

#[test]
fn no_room_for_the_weights() {
    let Some(gpu) = open() else { return };
    gpu.gpu().limit_memory(1);
    let case = Case::new();
    let engine = Engine::of(gpu);
    let theirs = case.segment(&engine);
    assert!(engine.kind().contains("in place of wgpu"));
    let ours = case.segment(&Engine::cpu());
    assert_eq!(case.train(&theirs, || {}), case.train(&ours, || {}));
}

#[test]
fn a_sequence_goes_on_at_the_token_at_which_the_device_was_lost() {
    let case = Case::new();
    let want = case.extend(&case.segment(&Engine::cpu()), |_| {});
    for lost in [0, 1, 3] {
        let Some(gpu) = open() else { return };
        let segment = case.segment(&Engine::of(gpu.clone()));
        let got = case.extend(&segment, |token| {
            if token == lost {
                gpu.gpu().destroy();
            }
        });
        near(&format!("lost before token {lost}"), &got, &want);
    }
}

#[test]
fn states_are_shown_once_after_each_layer() {
    let Some(gpu) = open() else { return };
    let case = Case::new();
    let shown = |engine: &Engine| {
        let mut shown = vec![];
        let segment = case.segment(engine).part(1..case.config.layers);
        let see = |layer: usize, y: &[f32]| shown.push((layer, y.to_vec()));
        let run = segment.run(&case.layout, case.x.clone(), None, see);
        run.expect("runs");
        shown
    };
    let ours = shown(&Engine::cpu());
    let theirs = shown(&Engine::of(gpu));
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours.0, theirs.0);
        near(&format!("layer {}", ours.0), &theirs.1, &ours.1);
    }
}

/// One adapter gives the same bits each time.
#[test]
fn results_repeat() {
    let Some(gpu) = open() else { return };
    let case = Case::new();
    let engine = Engine::of(gpu);
    let once = case.train(&case.segment(&engine), || {});
    let again = case.train(&case.segment(&engine), || {});
    assert_eq!(once, again);
}
