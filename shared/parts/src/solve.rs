//! From sums to tables.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::content::Content;
use crate::ease::{self, Column, DENSE_SOLVE, Shared};
use crate::field::{self, FIELD_ITEMS, Means};
use crate::linalg::NotPositive;
use crate::matrix::SumMatrix;
use crate::rows::{Row, Rows};
use crate::sums::{Counts, Sums};
use crate::tables::{Columns, Derived, Recent, Tables};
use crate::unseen;

/// Prior strength of the far transitions, in units of the sums.
const FAR_PRIOR: f64 = 320.0;
/// Prior strength of the near transitions, in encounters.
const NEAR_PRIOR: f64 = 60.0;
/// Unit of the transitions' weights.
const UNIT: f64 = 64.0;

/// How tables are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Pairs that fewer people share, and items that fewer people met, count as nothing. 1: off.
    pub k: u64,
    /// Eigenpairs of the item field; 0: no field.
    pub rank: usize,
    /// How EASE is solved.
    pub form: Form,
    /// Up to this many items the field is estimated from ratings; above, it is a level that a
    /// person's ratings share.
    pub field_items: usize,
    /// Whether the item field uses content.
    pub content_in_field: bool,
    /// Weights that an item that nobody has met keeps.
    pub unseen: usize,
    /// Where likes begin, in quarter stars: [`crate::event::Meaning::like_boundary`] of the
    /// catalogue.
    pub like_boundary: u8,
}

/// How EASE is solved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// Dense up to [`DENSE_SOLVE`] items, neighbourhoods above.
    BySize,
    /// One dense system.
    Dense,
    /// One small system per item.
    Neighbourhood,
}

impl Default for Settings {
    /// Three people, 64 eigenpairs.
    fn default() -> Self {
        Self {
            k: 3,
            rank: field::RANK,
            field_items: FIELD_ITEMS,
            form: Form::BySize,
            content_in_field: true,
            unseen: 200,
            like_boundary: crate::event::LIKE_BOUNDARY,
        }
    }
}

/// Tables, and what the next solve can reuse.
#[derive(Clone, Debug, PartialEq)]
pub struct Solved {
    /// What devices are going to hold.
    pub tables: Tables,
    /// How they were solved.
    settings: Settings,
    /// The neighbourhood form's columns; empty in the dense form.
    columns: Vec<Column>,
    /// Columns that had to be solved.
    pub columns_solved: usize,
}

/// Computes all tables, as of the beginning of `day` (since 1970).
///
/// # Errors
/// [`NotPositive`] for damaged sums only.
///
/// # Panics
/// If `content` describes another number of items than the sums are over.
pub fn solve(
    sums: &Sums,
    content: &Content,
    settings: &Settings,
    day: i32,
) -> Result<Solved, NotPositive> {
    solve_from(None, sums, content, settings, day)
}

/// As [`solve`], and gives the same bytes; in the neighbourhood form solves only columns whose
/// neighbourhood or entries changed since `before` was solved. If that was solved with other
/// settings, or over fewer items, everything is solved.
///
/// # Errors
/// As [`solve`].
///
/// # Panics
/// As [`solve`].
pub fn solve_again(
    before: &Before<'_>,
    sums: &Sums,
    content: &Content,
    settings: &Settings,
    day: i32,
) -> Result<Solved, NotPositive> {
    solve_from(Some(before), sums, content, settings, day)
}

/// What was solved before, and which items' sums have changed since.
pub struct Before<'a> {
    /// The earlier result.
    pub solved: &'a Solved,
    /// Items of everybody who was folded in or taken out since, and items that were cleared. An
    /// item that is left out here keeps the column it had.
    pub touched: &'a [u32],
}

fn solve_from(
    before: Option<&Before<'_>>,
    sums: &Sums,
    content: &Content,
    settings: &Settings,
    day: i32,
) -> Result<Solved, NotPositive> {
    let items = sums.items();
    assert_eq!(content.items(), items, "content and sums: number of items");
    let columns = published(sums, settings.k);
    let recent = recent(sums, settings.k, day).values;
    let guess = guesses(&columns, content)?;
    let derived = Derived::of(&columns, &recent, &guess);
    let shared = Shared {
        met: &sums.pairs.met,
        k: settings.k,
    };
    let dense = match settings.form {
        Form::BySize => items <= DENSE_SOLVE,
        Form::Dense => true,
        Form::Neighbourhood => false,
    };
    let by_pairs = || -> Result<_, NotPositive> {
        let mut neighbourhoods = vec![];
        let mut columns_solved = 0;
        let ease = if dense {
            ease::dense(&shared)?
        } else {
            let before = before.filter(|b| b.solved.settings == *settings);
            (neighbourhoods, columns_solved) = solve_columns(before, &shared, &columns.seen)?;
            ease::transpose(&neighbourhoods)
        };
        let ease = Rows::Plain(ease);
        let unseen = unseen::rows(&ease, content, &columns.seen, settings.unseen)?;
        Ok((ease, unseen, neighbourhoods, columns_solved))
    };
    // Neither needs the other, and each has steps that only one thread can do.
    let of_ratings = || field(sums, content, settings, &derived);
    let (field, by_pairs) = rayon::join(of_ratings, by_pairs);
    let (ease, unseen, neighbourhoods, columns_solved) = by_pairs?;
    let tables = Tables {
        day,
        like_boundary: settings.like_boundary,
        next: Rows::Plain(next_rows(&sums.transitions.far, &shared)),
        near: Rows::Plain(near_rows(&sums.transitions.near, &shared, &derived)),
        field,
        unseen: Rows::Plain(unseen),
        ease,
        columns,
        recent,
        guess,
        derived,
    };
    Ok(Solved {
        tables,
        settings: *settings,
        columns: neighbourhoods,
        columns_solved,
    })
}

/// The sums per item, those of items below the threshold as zero.
fn published(sums: &Sums, k: u64) -> Columns {
    let counts = &sums.counts;
    let keep = |values: &[u64], people: &[u64]| -> Vec<u64> {
        let kept = values.iter().zip(people);
        kept.map(|(v, n)| if *n >= k { *v } else { 0 }).collect()
    };
    Columns {
        seen: keep(&counts.seen, &counts.seen),
        rated: keep(&counts.rated, &counts.rated),
        half_stars: keep(&counts.half_stars, &counts.rated),
        likes: keep(&counts.likes, &counts.rated),
        starts: keep(&counts.starts, &counts.starters),
    }
}

/// What was met lately, as of the beginning of `day`; 0 for items that fewer than `k` people met.
pub fn recent(sums: &Sums, k: u64, day: i32) -> Recent {
    recent_of(&sums.counts, k, day)
}

/// The same, of counts.
pub fn recent_of(counts: &Counts, k: u64, day: i32) -> Recent {
    let all = counts.recent(day).into_iter().zip(&counts.seen);
    let values = all.map(|(r, n)| if *n >= k { r as f32 } else { 0.0 });
    Recent {
        day,
        values: values.collect(),
    }
}

fn guesses(columns: &Columns, content: &Content) -> Result<Vec<f32>, NotPositive> {
    let (rated, unrated): (Vec<u32>, Vec<u32>) =
        (0..columns.rated.len() as u32).partition(|i| columns.rated[*i as usize] > 0);
    let plain = Derived::of(columns, &[], &vec![0.0; columns.rated.len()]);
    let above = |item: u32| plain.mean[item as usize] - plain.overall;
    unseen::means(content, &rated, &unrated, above)
}

fn field(sums: &Sums, content: &Content, settings: &Settings, derived: &Derived) -> field::Field {
    let means = Means {
        of_items: &derived.mean,
    };
    let sigma = field::shared_variance(&sums.pairs, &means, settings.k);
    if settings.rank == 0 || sums.items() == 0 || sums.items() > settings.field_items {
        return field::level(sums.items(), sigma);
    }
    let content = settings.content_in_field.then_some(content);
    field::estimated(
        &sums.pairs,
        &means,
        sigma,
        content,
        settings.k,
        settings.rank,
    )
}

/// The columns of the neighbourhood form, and how many had to be solved.
fn solve_columns(
    before: Option<&Before<'_>>,
    shared: &Shared<'_>,
    people: &[u64],
) -> Result<(Vec<Column>, usize), NotPositive> {
    let items = people.len() as u32;
    let Some(before) = before.filter(|b| b.solved.columns.len() == people.len()) else {
        let all: Vec<u32> = (0..items).collect();
        return Ok((ease::neighbourhood(shared, people, &all)?, people.len()));
    };
    let mut touched = vec![false; people.len()];
    for item in before.touched {
        if let Some(place) = touched.get_mut(*item as usize) {
            *place = true;
        }
    }
    let stale: Vec<u32> = (0..items)
        .into_par_iter()
        .filter(|item| {
            let old = &before.solved.columns[*item as usize].neighbours;
            touched[*item as usize]
                || old.iter().any(|n| touched[*n as usize])
                || ease::nearest(shared, people, *item) != *old
        })
        .collect();
    let mut columns = before.solved.columns.clone();
    let fresh = ease::neighbourhood(shared, people, &stale)?;
    for (item, column) in stale.iter().zip(fresh) {
        columns[*item as usize] = column;
    }
    Ok((columns, stale.len()))
}

/// A row's entries that the threshold lets pass, and their sum.
fn passing(matrix: &SumMatrix, shared: &Shared<'_>, row: u32) -> (Vec<(u32, u64)>, u64) {
    let mut allowed = vec![];
    shared.for_row(row, |column, _| allowed.push(column));
    let mut allowed = allowed.into_iter().peekable();
    let mut out = vec![];
    let mut sum = 0;
    matrix.for_row(row, |column, value| {
        while allowed.next_if(|a| *a < column).is_some() {}
        if allowed.peek() == Some(&column) {
            out.push((column, value));
            sum += value;
        }
    });
    (out, sum)
}

/// `P40 = (C40 + 320 p) / (rowsum + 320)`: the background is in units of `p`.
fn next_rows(far: &SumMatrix, shared: &Shared<'_>) -> Vec<Row> {
    (0..far.items() as u32)
        .into_par_iter()
        .map(|row| {
            let (entries, sum) = passing(far, shared, row);
            let total = sum as f64 + FAR_PRIOR;
            Row {
                background: (FAR_PRIOR / total) as f32,
                columns: entries.iter().map(|e| e.0).collect(),
                values: entries
                    .iter()
                    .map(|e| (e.1 as f64 / total) as f32)
                    .collect(),
            }
        })
        .collect()
}

/// `L10 = log[(C10 / 64 + 60 p) / ((rowsum / 64 + 60) p)]`.
fn near_rows(near: &SumMatrix, shared: &Shared<'_>, derived: &Derived) -> Vec<Row> {
    (0..near.items() as u32)
        .into_par_iter()
        .map(|row| {
            let (entries, sum) = passing(near, shared, row);
            let background = libm::log(NEAR_PRIOR / (sum as f64 / UNIT + NEAR_PRIOR));
            let value = |entry: &(u32, u64)| {
                let prior = NEAR_PRIOR * derived.share[entry.0 as usize];
                libm::log1p(entry.1 as f64 / UNIT / prior) as f32
            };
            Row {
                background: background as f32,
                columns: entries.iter().map(|e| e.0).collect(),
                values: entries.iter().map(value).collect(),
            }
        })
        .collect()
}
