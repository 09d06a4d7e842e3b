//! Sums of products of low-rank factors, cut back to a rank by SVD.

use std::sync::Arc;

use lethe_model::lora::{Adapter, AdapterShape};
use nalgebra::{DMatrix, DVector};

/// `sum w_k B_k A_k` of adapters of any ranks as one adapter of `shape`'s rank: `B = U S`, `A =
/// V^T` of the truncated SVD, which is the nearest such adapter. All must have the same pairs and
/// scale.
pub(crate) fn truncated(
    parts: &[(&Adapter, f32)],
    shape: &Arc<AdapterShape>,
) -> anyhow::Result<Adapter> {
    let mut out = Adapter::from_data(shape, vec![0.0; shape.len()])?;
    for e in shape.entries() {
        let (left, right) = stacked(parts, e.layer, e.proj)?;
        let (b, a) = nearest(&left, &right, shape.rank());
        let (at, bt) = shape.ranges(e);
        // Column-major: B row by row is its transpose column by column.
        out.data[at]
            .iter_mut()
            .zip(a.transpose().iter())
            .for_each(|(o, v)| *o = *v as f32);
        out.data[bt]
            .iter_mut()
            .zip(b.transpose().iter())
            .for_each(|(o, v)| *o = *v as f32);
    }
    Ok(out)
}

/// `[w_1 B_1 | ...]` and `[A_1; ...]` of one pair.
fn stacked(
    parts: &[(&Adapter, f32)],
    layer: usize,
    proj: lethe_model::lora::Projection,
) -> anyhow::Result<(DMatrix<f64>, DMatrix<f64>)> {
    let (mut left, mut right) = (vec![], vec![]);
    for (adapter, w) in parts {
        let (a, b) = adapter
            .pair(layer, proj)
            .ok_or_else(|| anyhow::anyhow!("adapters of different pairs"))?;
        let r = adapter.shape().rank();
        right.extend(
            a.chunks_exact(a.len() / r)
                .map(|row| DVector::from_iterator(row.len(), row.iter().map(|v| f64::from(*v)))),
        );
        left.extend((0..r).map(|q| {
            DVector::from_iterator(
                b.len() / r,
                b.iter()
                    .skip(q)
                    .step_by(r)
                    .map(|v| f64::from(*w) * f64::from(*v)),
            )
        }));
    }
    Ok((
        DMatrix::from_columns(&left),
        DMatrix::from_columns(&right).transpose(),
    ))
}

/// The factors of rank `rank` whose product is nearest to `left * right`: SVD of the small core
/// between two orthogonal bases.
fn nearest(left: &DMatrix<f64>, right: &DMatrix<f64>, rank: usize) -> (DMatrix<f64>, DMatrix<f64>) {
    let (ql, qr) = (left.clone().qr(), right.transpose().qr());
    let svd = (ql.r() * qr.r().transpose()).svd(true, true);
    let (Some(u), Some(vt)) = (svd.u, svd.v_t) else {
        unreachable!("both were asked for")
    };
    let mut order: Vec<usize> = (0..svd.singular_values.len()).collect();
    order.sort_by(|i, j| svd.singular_values[*j].total_cmp(&svd.singular_values[*i]));
    let mut b = DMatrix::zeros(left.nrows(), rank);
    let mut a = DMatrix::zeros(rank, right.ncols());
    for (q, i) in order.into_iter().take(rank).enumerate() {
        b.set_column(q, &(ql.q() * u.column(i) * svd.singular_values[i]));
        a.set_row(q, &(vt.row(i) * qr.q().transpose()));
    }
    (b, a)
}

/// `sum w_k B_k A_k` of every pair, all entries in one vector.
pub(crate) fn product(parts: &[(&Adapter, f32)]) -> anyhow::Result<Vec<f32>> {
    let Some((first, _)) = parts.first() else {
        return Ok(vec![]);
    };
    let mut out = vec![];
    for e in first.shape().entries() {
        let (left, right) = stacked(parts, e.layer, e.proj)?;
        out.extend((left * right).iter().map(|v| *v as f32));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use lethe_learn::seed::Seed;
    use lethe_model::config::ModelConfig;
    use lethe_model::lora::LoraRecipe;

    use super::*;

    fn shape(rank: usize) -> Arc<AdapterShape> {
        let recipe = LoraRecipe {
            rank,
            alpha: 2.0 * rank as f32,
            ..LoraRecipe::default()
        };
        AdapterShape::new(&ModelConfig::tiny(), &recipe, |_| true)
    }

    fn random(rank: usize, seed: u64) -> Adapter {
        let mut rng = Seed::from_u64(seed).rng();
        let shape = shape(rank);
        let data = (0..shape.len()).map(|_| rng.normal()).collect();
        Adapter::from_data(&shape, data).expect("of this length")
    }

    fn apart(x: &[f32], y: &[f32]) -> f64 {
        x.iter()
            .zip(y)
            .map(|(a, b)| f64::from(a - b).powi(2))
            .sum::<f64>()
            .sqrt()
    }

    #[test]
    fn a_rank_that_suffices_loses_nothing() {
        let (x, y) = (random(2, 1), random(3, 2));
        let parts = [(&x, 0.25), (&y, 0.75)];
        let whole = product(&parts).expect("same pairs");
        let cut = truncated(&parts, &shape(5)).expect("same pairs");
        assert!(apart(&whole, &product(&[(&cut, 1.0)]).expect("pairs")) < 1e-4);
    }

    #[test]
    fn a_cut_is_nearer_than_either_part() {
        let (x, y) = (random(2, 1), random(2, 2));
        let parts = [(&x, 0.5), (&y, 0.5)];
        let whole = product(&parts).expect("same pairs");
        let cut =
            product(&[(&truncated(&parts, &shape(2)).expect("same pairs"), 1.0)]).expect("pairs");
        let (far, near) = (
            apart(&whole, &product(&[(&x, 0.5)]).expect("pairs")),
            apart(&whole, &cut),
        );
        assert!(near > 0.1 && near < far, "{near} {far}");
    }
}
