//! Items that nobody has met: what their content says.

use rayon::prelude::*;

use crate::content::Content;
use crate::ease::substitute;
use crate::linalg::{Matrix, NotPositive, cholesky, dot};
use crate::rows::{Row, Rows};

/// Ridge penalty, served.md's.
const LAMBDA: f64 = 3.0;
/// The most pairs of a known and an unmet item that are computed: a bound on time. Of a larger
/// catalogue only the items that most people have met speak for unmet ones.
const MOST_PAIRS: usize = 20_000_000;
/// What likeness of text adds, chosen on validation items.
const LIKENESS: f64 = 0.1;
/// Ridge penalty of the mean rating, chosen on validation items.
const MEAN_LAMBDA: f64 = 10.0;

/// Ridge from content onto the columns of `B`, fitted on items that people have met, plus a tenth
/// of the squared positive cosine of the texts; the rows of items that nobody has met.
///
/// Only the `keep` largest weights of an unseen item are kept. `people` met each item.
pub(crate) fn rows(
    ease: &Rows,
    content: &Content,
    people: &[u64],
    keep: usize,
) -> Result<Vec<Row>, NotPositive> {
    let items = content.items();
    let (met, unmet): (Vec<u32>, Vec<u32>) =
        (0..items as u32).partition(|i| people[*i as usize] > 0);
    let width = feature_width(content);
    if width == 0 || unmet.is_empty() || met.is_empty() {
        return Ok(vec![Row::default(); items]);
    }
    let factor = normal(content, &met, LAMBDA, features)?;
    let mut speakers = met.clone();
    speakers.sort_by_key(|i| (std::cmp::Reverse(people[*i as usize]), *i));
    speakers.truncate((MOST_PAIRS / unmet.len()).max(1));
    speakers.sort_unstable();
    // W[:, h] for every item of a history: (X'X + lambda)^-1 X' B[h, met].
    let weights: Vec<Vec<f64>> = speakers
        .par_iter()
        .map_init(Row::default, |row, h| {
            ease.read(*h, row);
            let mut right = vec![0.0; width];
            let mut entries = row.columns.iter().zip(&row.values).peekable();
            for item in &met {
                while entries.next_if(|e| e.0 < item).is_some() {}
                let own = entries.next_if(|e| e.0 == item).map_or(0.0, |e| *e.1);
                let value = f64::from(own + row.background);
                if value != 0.0 {
                    add_scaled(content, *item, value, &mut right);
                }
            }
            substitute(&factor, right)
        })
        .collect();
    let columns: Vec<Vec<(u32, f32)>> = unmet
        .par_iter()
        .map(|item| {
            let own = features(content, *item);
            let mut column: Vec<(u32, f32)> = speakers
                .iter()
                .zip(&weights)
                .map(|(h, w)| {
                    let cosine = content.text_cosine(*h, *item).max(0.0);
                    (*h, (dot(&own, w) + LIKENESS * cosine * cosine) as f32)
                })
                .collect();
            if column.len() > keep {
                let larger = |a: &(u32, f32), b: &(u32, f32)| {
                    b.1.abs().total_cmp(&a.1.abs()).then(a.0.cmp(&b.0))
                };
                column.select_nth_unstable_by(keep, larger);
                column.truncate(keep);
            }
            column
        })
        .collect();
    let mut out = vec![Row::default(); items];
    for (item, column) in unmet.iter().zip(columns) {
        for (h, value) in column {
            out[h as usize].columns.push(*item);
            out[h as usize].values.push(value);
        }
    }
    Ok(out)
}

/// Mean ratings of unrated items, less the overall mean: a ridge on text, terms and year.
pub(crate) fn means(
    content: &Content,
    rated: &[u32],
    unrated: &[u32],
    above_overall: impl Fn(u32) -> f64,
) -> Result<Vec<f32>, NotPositive> {
    let mut out = vec![0.0; content.items()];
    if rated.is_empty() || unrated.is_empty() {
        return Ok(out);
    }
    let factor = normal(content, rated, MEAN_LAMBDA, mean_features)?;
    let mut right = vec![0.0; factor.rows];
    for item in rated {
        let value = above_overall(*item);
        for (sum, x) in right.iter_mut().zip(mean_features(content, *item)) {
            *sum += value * x;
        }
    }
    let weights = substitute(&factor, right);
    for item in unrated {
        out[*item as usize] = dot(&mean_features(content, *item), &weights) as f32;
    }
    Ok(out)
}

/// The Cholesky factor of `X'X + lambda I`.
fn normal(
    content: &Content,
    items: &[u32],
    lambda: f64,
    of: impl Fn(&Content, u32) -> Vec<f64> + Sync,
) -> Result<Matrix, NotPositive> {
    let vectors: Vec<Vec<f64>> = items.iter().map(|i| of(content, *i)).collect();
    let width = vectors[0].len();
    let mut gram = Matrix::zeros(width, width);
    gram.data
        .par_chunks_mut(width)
        .enumerate()
        .for_each(|(i, row)| {
            for v in &vectors {
                if v[i] != 0.0 {
                    for (sum, x) in row[..=i].iter_mut().zip(v) {
                        *sum += v[i] * x;
                    }
                }
            }
            row[i] += lambda;
        });
    cholesky(&mut gram)?;
    Ok(gram)
}

fn feature_width(content: &Content) -> usize {
    match content.text_width() {
        0 => content.terms().len(),
        width => width,
    }
}

/// Text where there is some, else terms.
fn features(content: &Content, item: u32) -> Vec<f64> {
    if content.text_width() > 0 {
        return content
            .text_of(item)
            .iter()
            .map(|v| f64::from(*v))
            .collect();
    }
    let mut out = vec![0.0; content.terms().len()];
    for (column, weight) in content.terms_of(item) {
        out[*column as usize] = f64::from(*weight);
    }
    out
}

fn add_scaled(content: &Content, item: u32, scale: f64, to: &mut [f64]) {
    if content.text_width() > 0 {
        for (sum, v) in to.iter_mut().zip(content.text_of(item)) {
            *sum += scale * f64::from(*v);
        }
        return;
    }
    for (column, weight) in content.terms_of(item) {
        to[*column as usize] += scale * f64::from(*weight);
    }
}

/// Year at which the year's feature is zero; where an item has none, too.
const YEAR_ZERO: f64 = 1990.0;
/// Years of one unit of it.
const YEAR_UNIT: f64 = 20.0;

fn mean_features(content: &Content, item: u32) -> Vec<f64> {
    let terms = content.terms().len();
    let mut out = vec![0.0; terms + content.text_width() + 2];
    for (column, weight) in content.terms_of(item) {
        out[*column as usize] = f64::from(*weight);
    }
    for (place, v) in out[terms..].iter_mut().zip(content.text_of(item)) {
        *place = f64::from(*v);
    }
    let last = out.len() - 1;
    let year = content.year(item).map_or(YEAR_ZERO, f64::from);
    out[last - 1] = (year - YEAR_ZERO) / YEAR_UNIT;
    out[last] = 1.0;
    out
}
