//! Forward passes against the reference.

mod common;

use common::{
    AdapterData, FORMATS, Model, PROJECTIONS, Pairs, Rng, RowData, double, error, gpu, lora, shape,
};
use lethe_gpu::{Cache, Format, Gpu, Projection, Shape};
use std::sync::Arc;

/// Largest difference from the reference, relative to the largest value.
const NEAR: f64 = 1e-4;

struct Case {
    shape: Shape,
    layers: usize,
    format: Format,
    bias: bool,
    prefix: usize,
    lens: &'static [usize],
    /// No adapter if 0.
    rank: usize,
}

fn check(gpu: &Arc<Gpu>, seed: u64, case: &Case) {
    let mut rng = Rng::new(seed);
    let model = Model::random(&mut rng, case.shape, case.layers, case.bias, case.format);
    let layers = model.load(gpu);
    let rows = RowData::new(&case.shape, case.prefix, case.lens);
    let x = rng.vector(rows.rows().count() * case.shape.hidden, 1.0);
    let adapter = (case.rank > 0).then(|| model.adapter(&mut rng, case.rank.max(1), &PROJECTIONS));
    let pairs = adapter.as_ref().map(Pairs::new);
    let list = adapter
        .as_ref()
        .zip(pairs.as_ref())
        .map(|(a, p)| p.list(a))
        .unwrap_or_default();
    let lora = adapter.as_ref().map(|a| lora(a, &list));
    let want = model.outputs(&rows, adapter.as_ref(), &double(&x));
    let mut seen = Vec::new();
    let mut see = |layer: usize, y: &[f32]| seen.push((layer, error(y, &want[layer])));
    let y = layers
        .forward(&rows.rows(), lora.as_ref(), &x, Some(&mut see))
        .expect("a pass");
    assert_eq!(seen.len(), case.layers);
    for (layer, far) in seen {
        assert!(far < NEAR, "seed {seed}, layer {layer}: {far}");
    }
    let again = layers
        .forward(&rows.rows(), lora.as_ref(), &x, None)
        .expect("a pass");
    assert!(same_bits(&y, &again), "seed {seed}: other bits");
    let last = layers
        .forward_last(&rows.rows(), lora.as_ref(), &x)
        .expect("a pass");
    let d = case.shape.hidden;
    let want: Vec<f64> = rows
        .rows()
        .last_rows()
        .iter()
        .flat_map(|r| want[case.layers - 1][r * d..(r + 1) * d].to_vec())
        .collect();
    assert_eq!(want.len(), case.lens.len() * d);
    let far = error(&last, &want);
    assert!(far < NEAR, "seed {seed}, last rows: {far}");
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

#[test]
fn all_formats_agree_with_the_reference() {
    let Some(gpu) = gpu() else { return };
    for (i, format) in FORMATS.into_iter().enumerate() {
        for bias in [false, true] {
            let case = Case {
                shape: shape(64, 4, 2, 16, 96),
                layers: 2,
                format,
                bias,
                prefix: if bias { 5 } else { 0 },
                lens: if bias { &[3, 1, 7] } else { &[13] },
                rank: if bias { 3 } else { 0 },
            };
            check(&gpu, i as u64, &case);
        }
    }
}

#[test]
fn odd_shapes_agree_with_the_reference() {
    let Some(gpu) = gpu() else { return };
    let case = |shape, prefix, lens, rank| Case {
        shape,
        layers: 2,
        format: Format::F32,
        bias: rank == 1,
        prefix,
        lens,
        rank,
    };
    let cases = [
        case(shape(24, 4, 2, 6, 40), 0, &[1][..], 1),
        case(shape(24, 4, 4, 6, 33), 3, &[2, 5], 2),
        case(shape(40, 5, 1, 16, 72), 0, &[4, 9, 1], 32),
        case(shape(40, 2, 1, 64, 50), 70, &[66, 64], 5),
        case(shape(24, 2, 1, 130, 48), 1, &[70], 7),
    ];
    for (i, case) in cases.iter().enumerate() {
        check(&gpu, 100 + i as u64, case);
    }
    // Rows of an odd number of half words: four elements begin anywhere in them.
    for (i, format) in [Format::F16, Format::Bf16].into_iter().enumerate() {
        let odd = Case {
            format,
            ..case(shape(25, 3, 1, 6, 33), 3, &[2, 5], 2)
        };
        check(&gpu, 120 + i as u64, &odd);
    }
}

#[test]
fn a_wide_layer_of_many_rows_agrees() {
    let Some(gpu) = gpu() else { return };
    let case = Case {
        shape: shape(576, 9, 3, 64, 1536),
        layers: 1,
        format: Format::Q4_1,
        bias: false,
        prefix: 100,
        lens: &[60, 40],
        rank: 8,
    };
    check(&gpu, 200, &case);
}

/// Extends by `steps` tokens at a time; all outputs together.
fn extended(
    gpu: &Arc<Gpu>,
    model: &Model,
    rows: &RowData,
    adapter: &AdapterData,
    x: &[f32],
    steps: &[usize],
) -> Vec<f32> {
    let layers = model.load(gpu);
    let pairs = Pairs::new(adapter);
    let list = pairs.list(adapter);
    let lora = lora(adapter, &list);
    let (d, half) = (model.shape.hidden, model.shape.head_dim / 2);
    let mut cache = Cache::new();
    let mut y = Vec::new();
    for step in steps {
        let from = cache.len();
        let to = from + step;
        let angles = from * half..to * half;
        let part = layers.extend(
            &mut cache,
            &rows.cos[angles.clone()],
            &rows.sin[angles],
            Some(&lora),
            &x[from * d..to * d],
        );
        y.extend(part.expect("a pass"));
        assert_eq!(cache.len(), to);
    }
    y
}

#[test]
fn a_cache_extends_as_a_whole_pass_does() {
    let Some(gpu) = gpu() else { return };
    let mut rng = Rng::new(300);
    let s = shape(64, 4, 2, 16, 96);
    let model = Model::random(&mut rng, s, 3, true, Format::Q8_0);
    // 75 rows: the cache grows once.
    let rows = RowData::new(&s, 0, &[75]);
    let x = rng.vector(75 * 64, 1.0);
    let adapter = model.adapter(&mut rng, 4, &[Projection::Q, Projection::V]);
    let want = model.forward(&rows, Some(&adapter), &double(&x));
    for steps in [&[75][..], &[9, 1, 1, 50, 14], &[1, 2, 72]] {
        let y = extended(&gpu, &model, &rows, &adapter, &x, steps);
        let far = error(&y, &want);
        assert!(far < NEAR, "{steps:?}: {far}");
    }
}

#[test]
fn parts_in_sequence_are_the_whole() {
    let Some(gpu) = gpu() else { return };
    let mut rng = Rng::new(400);
    let s = shape(32, 2, 1, 16, 64);
    let layers = Model::random(&mut rng, s, 3, false, Format::F16).load(&gpu);
    let rows = RowData::new(&s, 2, &[3, 4]);
    let x = rng.vector(9 * 32, 1.0);
    let run = |layers: &lethe_gpu::Layers, x: &[f32]| {
        layers.forward(&rows.rows(), None, x, None).expect("a pass")
    };
    let whole = run(&layers, &x);
    let first = layers.part(0..1);
    let rest = layers.part(1..3);
    assert_eq!((first.len(), rest.len()), (1, 2));
    assert_eq!(first.bytes() + rest.bytes(), layers.bytes());
    assert!(same_bits(&run(&rest, &run(&first, &x)), &whole));
    assert_eq!(run(&layers.part(3..3), &x), x);
}
