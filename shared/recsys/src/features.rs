//! Public item features for the partition: tags weighted by how rare they are, else words of the
//! title.

use std::collections::BTreeMap;

use crate::data::Item;

/// One vector per item, `[items][distinct terms]`: `ln(n / df)` for each of its terms. It is
/// computed from the public catalogue alone; nobody's interactions enter.
pub fn item_features(items: &[Item]) -> Vec<Vec<f32>> {
    let tagged = items.iter().any(|i| !i.tags.is_empty());
    let terms = |item: &Item| -> Vec<String> {
        let mut t: Vec<String> = if tagged {
            item.tags.iter().map(|t| t.to_lowercase()).collect()
        } else {
            item.title
                .to_lowercase()
                .split(|c: char| !c.is_alphanumeric())
                .filter(|w| w.len() > 3)
                .map(str::to_owned)
                .collect()
        };
        t.sort();
        t.dedup();
        t
    };
    let mut frequency: BTreeMap<String, usize> = BTreeMap::new();
    for item in items {
        for t in terms(item) {
            *frequency.entry(t).or_default() += 1;
        }
    }
    // Words that one item has say nothing about neighbours; at most 512 terms bound the width.
    let mut kept: Vec<(String, usize)> = frequency
        .into_iter()
        .filter(|(_, n)| tagged || *n > 1)
        .collect();
    kept.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    kept.truncate(512);
    let column: BTreeMap<&str, (usize, f32)> = kept
        .iter()
        .enumerate()
        .map(|(i, (t, df))| (t.as_str(), (i, (items.len() as f32 / *df as f32).ln())))
        .collect();
    items
        .iter()
        .map(|item| {
            let mut v = vec![0.0; kept.len().max(1)];
            for t in terms(item) {
                if let Some((i, w)) = column.get(t.as_str()) {
                    v[*i] = *w;
                }
            }
            v
        })
        .collect()
}
