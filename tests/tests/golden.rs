//! The real model against reference values of an independent implementation (transformers, f32).
#![allow(missing_docs, clippy::unwrap_used)]

use lethe_learn::seed::Seed;
use lethe_model::kernels::panels::Compute;
use lethe_model::layout::Layout;
use lethe_model::lora::{Adapter, AdapterShape, LoraRecipe, Projection};
use lethe_model::source::{WeightSource, open};
use lethe_model::split::{Batch, DeviceModel, Labels, LocalMiddle, Middle, SplitSpec};
use serde_json::Value;

const SPLIT: SplitSpec = SplitSpec { k_in: 4, k_out: 1 };

fn golden() -> Value {
    serde_json::from_str(include_str!("../fixtures/smollm2.json")).unwrap()
}

fn model() -> Box<dyn WeightSource> {
    open(&lethe_tests::assets().model).unwrap()
}

fn ids(v: &Value) -> Vec<u32> {
    v.as_array()
        .unwrap()
        .iter()
        .map(|x| x.as_u64().unwrap() as u32)
        .collect()
}

fn floats(v: &Value) -> Vec<f32> {
    v.as_array()
        .unwrap()
        .iter()
        .map(|x| x.as_f64().unwrap() as f32)
        .collect()
}

#[test]
fn token_ids_are_equal() {
    let tokenizer = model().tokenizer().unwrap();
    for p in golden()["prompts"].as_array().unwrap() {
        assert_eq!(
            tokenizer.encode(p["text"].as_str().unwrap()).unwrap(),
            ids(&p["ids"])
        );
    }
    let answers = ids(&golden()["gradient"]["yes_no_token_ids"]);
    assert_eq!(
        [
            tokenizer.first(" Yes").unwrap(),
            tokenizer.first(" No").unwrap()
        ],
        [answers[0], answers[1]]
    );
}

#[test]
fn hidden_states_and_logits() {
    let source = model();
    let device = DeviceModel::load(source.as_ref(), SPLIT, Compute::F32).unwrap();
    let middle = DeviceModel::load_middle(source.as_ref(), SPLIT, Compute::F32).unwrap();
    for p in golden()["prompts"].as_array().unwrap() {
        let (layout, ids) = Layout::pack(&[ids(&p["ids"])]);
        let d = device.config().hidden;
        let last = |h: &[f32]| h[h.len() - d..].to_vec();
        let mut x = device.embed(&ids).unwrap();
        let mut hidden = vec![last(&x)];
        for part in [device.bottom(), &middle, device.top()] {
            x = part
                .run(&layout, x, None, |_, h| hidden.push(last(h)))
                .unwrap();
        }
        let layers = hidden.len() - 1;
        hidden[layers] = device.final_norm(&hidden[layers]);
        for (index, want) in p["hidden_last_token_first8"].as_object().unwrap() {
            let got = &hidden[index.parse::<usize>().unwrap()][..8];
            for (g, w) in got.iter().zip(floats(want)) {
                // The reference prints six decimals: allow half of the last one.
                assert!(
                    (g - w).abs() <= 2e-3 * w.abs() + 1e-6,
                    "hidden {index}: {g} against {w}"
                );
            }
        }
        let logits = device.logits(&hidden[layers]).unwrap();
        for row in p["last_logits_top20"].as_array().unwrap() {
            let (id, want) = (
                row[0].as_u64().unwrap() as usize,
                row[1].as_f64().unwrap() as f32,
            );
            assert!(
                (logits[id] - want).abs() <= 2e-3,
                "logit {id}: {} against {want}",
                logits[id]
            );
        }
        let lse = logits.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
        assert!((lse - p["logsumexp"].as_f64().unwrap()).abs() <= 2e-3);
    }
}

#[test]
fn lora_gradients() {
    let g = golden();
    let g = &g["gradient"];
    let source = model();
    let device = DeviceModel::load(source.as_ref(), SPLIT, Compute::F32).unwrap();
    let segment = DeviceModel::load_middle(source.as_ref(), SPLIT, Compute::F32).unwrap();
    let layers = source.config().layers;
    let shape = AdapterShape::new(source.config(), &LoraRecipe::default(), |_| true);
    let mut adapter = Adapter::init(&shape, &Seed::from_u64(0));
    for e in shape.entries() {
        let v = if e.proj == Projection::V { 4.0 } else { 0.0 };
        let (a, b) = shape.ranges(e);
        for (range, cols, s) in [(a, e.fan_in, 1.0), (b, shape.rank(), 2.0)] {
            for (k, x) in adapter.data[range].iter_mut().enumerate() {
                let (i, j) = ((k / cols) as f64, (k % cols) as f64);
                *x = (0.02 * (0.37 * i + 0.11 * j + 0.7 * e.layer as f64 + s + v).sin()) as f32;
            }
        }
    }
    let edge = adapter.select(|l| SPLIT.on_device(l, layers));
    let mut middle = LocalMiddle::new(segment, adapter.select(|l| !SPLIT.on_device(l, layers)));
    let prompt = ids(&golden()["prompts"][g["prompt"].as_u64().unwrap() as usize]["ids"]);
    let (layout, tokens) = Layout::pack(&[prompt]);
    let answers = ids(&g["yes_no_token_ids"]);
    let answers = [answers[1], answers[0]]; // The file lists yes first; ours is [no, yes].
    let mut grads = vec![0.0; edge.data.len()];
    let batch = Batch {
        layout: &layout,
        ids: &tokens,
        labels: Labels::Hard(&[g["label"] == 1]),
        answers,
        scale: 1.0,
    };
    let logits = device
        .score(&layout, &tokens, answers, Some(&edge), &mut middle)
        .unwrap();
    let loss = device
        .train_batch(&batch, &edge, &mut grads, &mut middle)
        .unwrap();
    for (got, want) in logits[0].iter().zip(floats(&g["logits_no_yes"])) {
        assert!((got - want).abs() <= 2e-3, "{got} against {want}");
    }
    assert!((loss.sum - g["loss_value"].as_f64().unwrap()).abs() <= 1e-3);
    let mut all = Adapter::from_data(&shape, vec![0.0; shape.len()]).unwrap();
    all.paste(&Adapter::from_data(edge.shape(), grads).unwrap())
        .unwrap();
    all.paste(&Adapter::from_data(middle.adapter.shape(), middle.grads.clone()).unwrap())
        .unwrap();
    for (name, want) in g["grads"].as_object().unwrap() {
        let (at, kind) = name.rsplit_once('.').unwrap();
        let (layer, proj) = at.split_once('.').unwrap();
        let proj = if proj == "q_proj" {
            Projection::Q
        } else {
            Projection::V
        };
        let (a, b) = all.pair(layer.parse().unwrap(), proj).unwrap();
        let got = if kind == "lora_A" { a } else { b };
        let l2 = got
            .iter()
            .map(|v| f64::from(*v).powi(2))
            .sum::<f64>()
            .sqrt();
        let want_l2 = want["l2"].as_f64().unwrap();
        assert!(
            (l2 - want_l2).abs() <= 0.01 * want_l2,
            "{name}: L2 {l2} against {want_l2}"
        );
        for (x, w) in got.iter().zip(floats(&want["first6"])) {
            assert!(
                f64::from((x - w).abs()) <= 0.01 * want_l2,
                "{name}: {x} against {w}"
            );
        }
    }
    assert!(
        Middle::backward(&mut middle, vec![]).is_err(),
        "a tape is used once"
    );
}
