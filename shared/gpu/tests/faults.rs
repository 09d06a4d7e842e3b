//! Failures are errors: a lost device, no memory, sizes that do not fit.

mod common;

use common::{Model, Rng, RowData, fresh_gpu, shape};
use lethe_gpu::{Cache, Format, Gpu, GpuError, Layers, Matrix};

#[test]
fn a_lost_device_is_an_error() {
    let Some(gpu) = fresh_gpu() else { return };
    let mut rng = Rng::new(1);
    let s = shape(24, 2, 1, 6, 40);
    let model = Model::random(&mut rng, s, 1, false, Format::F32);
    let layers = model.load(&gpu);
    let rows = RowData::new(&s, 0, &[3]);
    let x = rng.vector(3 * 24, 1.0);
    let (y, tape) = layers
        .forward_train(&rows.rows(), None, &x, false)
        .expect("a pass");
    gpu.destroy();
    let lost = |e: GpuError| matches!(e, GpuError::Lost(_));
    let forward = layers.forward(&rows.rows(), None, &x, None);
    assert!(lost(forward.expect_err("the device is lost")));
    let backward = layers.backward(&tape, &y, &mut []);
    assert!(lost(backward.expect_err("the device is lost")));
    let mut cache = Cache::new();
    let extend = layers.extend(&mut cache, &rows.cos, &rows.sin, None, &x);
    assert!(lost(extend.expect_err("the device is lost")));
    assert_eq!(cache.len(), 0);
    // A new device works.
    let again = fresh_gpu().expect("an adapter");
    let layers = model.load(&again);
    assert!(layers.forward(&rows.rows(), None, &x, None).is_ok());
}

#[test]
fn a_device_lost_in_other_threads_passes_is_an_error_there() {
    let Some(gpu) = fresh_gpu() else { return };
    let mut rng = Rng::new(2);
    let s = shape(64, 4, 2, 16, 96);
    let layers = Model::random(&mut rng, s, 2, false, Format::F32).load(&gpu);
    let rows = RowData::new(&s, 0, &[40]);
    let x = rng.vector(40 * 64, 1.0);
    let passes = std::thread::spawn(move || {
        loop {
            if let Err(e) = layers.forward(&rows.rows(), None, &x, None) {
                return e;
            }
        }
    });
    std::thread::sleep(std::time::Duration::from_millis(300));
    gpu.destroy();
    let e = passes.join().expect("no panic");
    assert!(matches!(e, GpuError::Lost(_)), "{e}");
}

#[test]
fn no_memory_is_an_error_and_passes_later() {
    let Some(gpu) = fresh_gpu() else { return };
    let mut rng = Rng::new(3);
    let s = shape(64, 4, 2, 16, 96);
    let model = Model::random(&mut rng, s, 1, false, Format::F32);
    let layers = model.load(&gpu);
    let rows = RowData::new(&s, 0, &[200]);
    let x = rng.vector(200 * 64, 1.0);
    let limit = gpu.memory_used() + 100_000;
    gpu.limit_memory(limit);
    match layers.forward(&rows.rows(), None, &x, None) {
        Err(GpuError::OutOfMemory { asked, limit: l }) => {
            assert_eq!(l, limit);
            assert!(asked > 0);
        }
        other => panic!("{other:?}"),
    }
    assert!(gpu.memory_used() <= limit);
    gpu.limit_memory(0);
    assert!(layers.forward(&rows.rows(), None, &x, None).is_ok());
}

#[test]
fn memory_comes_back_when_layers_go() {
    let Some(gpu) = fresh_gpu() else { return };
    let s = shape(64, 4, 2, 16, 96);
    let layers = Model::random(&mut Rng::new(4), s, 2, true, Format::Q4_1).load(&gpu);
    assert_eq!(gpu.memory_used(), layers.bytes());
    drop(layers);
    assert_eq!(gpu.memory_used(), 0);
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(gpu) = common::gpu() else { return };
    let mut rng = Rng::new(5);
    let s = shape(24, 2, 1, 6, 40);
    let layers = Model::random(&mut rng, s, 1, false, Format::F32).load(&gpu);
    let rows = RowData::new(&s, 0, &[3]);
    let wrong = |e: GpuError| matches!(e, GpuError::Shape { .. });
    let x = rng.vector(2 * 24, 1.0);
    let e = layers.forward(&rows.rows(), None, &x, None);
    assert!(wrong(e.expect_err("two rows for three")));
    let mut gap = rows.clone();
    gap.runs[0].start = 1;
    let x = rng.vector(3 * 24, 1.0);
    let e = layers.forward(&gap.rows(), None, &x, None);
    assert!(wrong(e.expect_err("a gap before the first run")));
    let e = Layers::load(gpu.clone(), shape(24, 3, 2, 6, 40), &[]);
    assert!(wrong(e.expect_err("heads that do not divide")));
    let e = Layers::load(gpu.clone(), shape(24, 3, 3, 512, 40), &[]);
    let e = e.expect_err("a head that is too wide");
    assert!(matches!(e, GpuError::TooLarge { .. }));
    assert!(matches!(Gpu::open(Some(99)), Err(GpuError::NoAdapter(_))));
}

#[test]
fn a_matrix_above_a_binding_is_refused() {
    let Some(gpu) = common::gpu() else { return };
    // 130 MiB in one matrix.
    let (rows, cols) = (32, 1_064_960);
    let s = shape(32, 1, 1, 2, cols);
    let mut model = Vec::new();
    let gain = vec![1.0; 32];
    let small = vec![0.0; 2 * 32];
    let large = vec![0.0; rows * cols];
    model.push(lethe_gpu::LayerWeights {
        attn_norm: &gain,
        q: Matrix::f32(2, 32, &small),
        k: Matrix::f32(2, 32, &small),
        v: Matrix::f32(2, 32, &small),
        qkv_bias: None,
        out: Matrix::f32(32, 2, &small),
        mlp_norm: &gain,
        gate: Matrix::f32(cols, 32, &large),
        up: Matrix::f32(cols, 32, &large),
        down: Matrix::f32(32, cols, &large),
    });
    match Layers::load(gpu, s, &model) {
        Err(GpuError::TooLarge { got, limit, .. }) => assert!(got > limit),
        other => panic!("{:?}", other.map(|l| l.bytes())),
    }
}
