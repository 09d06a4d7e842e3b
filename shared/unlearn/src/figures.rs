//! How far a model is from one that never saw the deleted samples.

use lethe_learn::metrics::auc;

fn yes(l: &[f32; 2]) -> f64 {
    1.0 / (1.0 + (f64::from(l[0]) - f64::from(l[1])).exp())
}

/// Mean Jensen-Shannon divergence between the answers of two models, in nats (at most ln 2): the
/// divergence of each to their mixture.
pub fn jsd(a: &[[f32; 2]], b: &[[f32; 2]]) -> f64 {
    let kl = |p: f64, q: f64| if p > 0.0 { p * (p / q).ln() } else { 0.0 };
    let one = |(x, y): (&[f32; 2], &[f32; 2])| {
        let (p, q) = (yes(x), yes(y));
        let m = (p + q) / 2.0;
        (kl(p, m) + kl(1.0 - p, 1.0 - m) + kl(q, m) + kl(1.0 - q, 1.0 - m)) / 2.0
    };
    a.iter().zip(b).map(one).sum::<f64>() / a.len().max(1) as f64
}

/// Mean Euclidean distance between the answers' probabilities.
pub fn l2(a: &[[f32; 2]], b: &[[f32; 2]]) -> f64 {
    let one = |(x, y): (&[f32; 2], &[f32; 2])| (yes(x) - yes(y)).abs() * std::f64::consts::SQRT_2;
    a.iter().zip(b).map(one).sum::<f64>() / a.len().max(1) as f64
}

/// Per-example membership inference (LiRA, Carlini et al., arXiv 2112.03570, the offline attack):
/// how far the attacked model's confidence in a sample's label, as log-odds, lies above that of
/// reference models that never saw the sample, in their standard deviations.
pub fn membership_score(attacked: &[f32; 2], label: bool, references: &[[f32; 2]]) -> f32 {
    let confidence = |l: &[f32; 2]| f64::from(if label { l[1] - l[0] } else { l[0] - l[1] });
    let n = references.len().max(1) as f64;
    let mean = references.iter().map(&confidence).sum::<f64>() / n;
    let variance = references
        .iter()
        .map(|l| (confidence(l) - mean).powi(2))
        .sum::<f64>()
        / n;
    // Few references: a floor keeps one lucky pair from looking certain.
    ((confidence(attacked) - mean) / variance.sqrt().max(0.1)) as f32
}

/// AUC of an attack that tells samples that may have been trained on from samples that never were;
/// 0.5 is what chance gives.
pub fn membership_auc(members: &[f32], never: &[f32]) -> Option<f64> {
    let scores = [members, never].concat();
    let labels: Vec<bool> = (0..scores.len()).map(|i| i < members.len()).collect();
    auc(&scores, &labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergences_are_those_of_the_definition() {
        let (sure, unsure) = ([[0.0f32, 40.0]], [[40.0f32, 0.0]]);
        assert!(
            (jsd(&sure, &unsure) - std::f64::consts::LN_2).abs() < 1e-6,
            "disjoint answers"
        );
        assert_eq!((jsd(&sure, &sure), l2(&sure, &sure)), (0.0, 0.0));
        assert!((l2(&sure, &unsure) - std::f64::consts::SQRT_2).abs() < 1e-6);
    }

    #[test]
    fn an_attack_finds_members_by_their_confidence() {
        let refs = [[0.0, 0.1], [0.0, -0.1], [0.0, 0.0]];
        let seen = membership_score(&[0.0, 3.0], true, &refs);
        let unseen = membership_score(&[0.0, 0.05], true, &refs);
        assert!(seen > unseen);
        assert_eq!(membership_auc(&[seen, seen], &[unseen]), Some(1.0));
        assert_eq!(membership_auc(&[unseen], &[unseen]), Some(0.5));
    }
}
