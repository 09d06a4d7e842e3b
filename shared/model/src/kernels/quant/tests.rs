use lethe_learn::seed::Seed;

use super::*;

fn random(name: &str, n: usize) -> Vec<f32> {
    let mut rng = Seed::from_u64(6).derive(name, &[&n.to_le_bytes()]).rng();
    (0..n).map(|_| rng.normal()).collect()
}

fn rounded(block: &[f32]) -> Vec<f64> {
    let top = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let scale = f64::from(top) / 127.0;
    block
        .iter()
        .map(|v| (f64::from(*v) / scale).round_ties_even() * scale)
        .collect()
}

#[test]
fn products_are_those_of_the_rounded_factors() {
    for (rows, n, k) in [
        (1, 1, 32),
        (3, 33, 64),
        (6, 64, 32),
        (7, 40, 96),
        (41, 100, 160),
    ] {
        let x = random("x", rows * k);
        for four in [true, false] {
            let mut w = random("w", n * k);
            if four {
                w.chunks_exact_mut(BLOCK).for_each(|b| {
                    let block = Block::of(b, 15.0);
                    b.iter_mut()
                        .enumerate()
                        .for_each(|(i, v)| *v = block.value(i));
                });
            }
            let Some(quantised) = Quantised::new(&w, n, k) else {
                assert!(!supported());
                return;
            };
            assert_eq!(quantised.bits == Bits::Four, four);
            let mut y = vec![f32::NAN; rows * n];
            quantised.multiply(&x, rows, &mut y, false);
            let mut twice = y.clone();
            quantised.multiply(&x, rows, &mut twice, true);
            // The factors as the kernel rounds them; their product in f64.
            let rounded_x: Vec<f64> = x.chunks_exact(BLOCK).flat_map(rounded).collect();
            let top = if four { 15.0 } else { 255.0 };
            let blocks = w.chunks_exact(BLOCK).map(|b| Block::of(b, top));
            let rounded_w: Vec<f64> = blocks
                .flat_map(|b| {
                    (0..BLOCK)
                        .map(move |i| f64::from(b.value(i)))
                        .collect::<Vec<_>>()
                })
                .collect();
            for (i, j) in (0..rows).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let exact: f64 = (0..k)
                    .map(|l| rounded_x[i * k + l] * rounded_w[j * k + l])
                    .sum();
                let got = f64::from(y[i * n + j]);
                assert!(
                    (got - exact).abs() < 1e-4 * (1.0 + exact.abs()),
                    "{got} {exact}, {rows} x {n} x {k}"
                );
                assert!((twice[i * n + j] - 2.0 * y[i * n + j]).abs() < 1e-3);
            }
            // A row alone gives the same bits as among others.
            let mut alone = vec![0.0; n];
            quantised.multiply(&x[..k], 1, &mut alone, false);
            assert_eq!(alone, y[..n]);
        }
    }
}

/// AVX2 and AVX-512 give the same bits: those of one order of integer sums and scalings.
#[test]
fn all_vector_units_give_the_bits_of_one_order() {
    for (rows, n, k) in [(1, 1, 32), (5, 33, 96), (13, 40, 160)] {
        let x = random("x", rows * k);
        for top in [15.0, 255.0] {
            let blocks: Vec<Block> = random("w", n * k)
                .chunks_exact(BLOCK)
                .map(|b| Block::of(b, top))
                .collect();
            let weights: Vec<f32> = blocks
                .iter()
                .flat_map(|b| (0..BLOCK).map(|i| b.value(i)).collect::<Vec<_>>())
                .collect();
            let Some(quantised) = Quantised::new(&weights, n, k) else {
                assert!(!supported());
                return;
            };
            // As the panels hold them: eight bits are rounded once more.
            let held = |b: &[f32]| Block::of(b, top);
            let blocks: Vec<Block> = weights.chunks_exact(BLOCK).map(held).collect();
            let mut y = vec![0.0; rows * n];
            quantised.multiply(&x, rows, &mut y, false);
            for (at, got) in y.iter().enumerate() {
                let x = &x[at / n * k..][..k];
                let w = &blocks[at % n * (k / BLOCK)..][..k / BLOCK];
                let want = in_order(x, w);
                assert_eq!(got.to_bits(), want.to_bits(), "{rows} x {n} x {k} at {at}");
            }
        }
    }
}

/// One result, block by block, as the kernels compute it.
fn in_order(x: &[f32], w: &[Block]) -> f32 {
    let mut sum = 0.0f32;
    for (x, w) in x.chunks_exact(BLOCK).zip(w) {
        let top = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let scale = top / 127.0;
        let inverse = if top > 0.0 { 127.0 / top } else { 0.0 };
        let q: Vec<i32> = x
            .iter()
            .map(|v| (v * inverse).round_ties_even() as i32)
            .collect();
        let products: i32 = q.iter().zip(w.q).map(|(x, w)| x * i32::from(w)).sum();
        let d = half::f16::from_bits(w.d).to_f32();
        let m = half::f16::from_bits(w.m).to_f32();
        sum = (products as f32).mul_add(scale * d, sum);
        sum = (scale * q.iter().sum::<i32>() as f32).mul_add(m, sum);
    }
    sum
}
