//! Folding everybody and solving again: what the tally does, and what whoever audits it does on
//! another machine. The same contributions give the same bytes.

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::content::Content;
use crate::contribution::{Bounds, Contribution, MAX_CLIP, MAX_DAYS};
use crate::history::{Interaction, newest_of_each};
use crate::linalg::NotPositive;
use crate::noise::{self, Drawn, Unfit};
use crate::part::Refused;
use crate::snapshot::{Packing, PackingError, encode};
use crate::solve::{self, solve};
use crate::sums::Sums;

/// What decides a snapshot's bytes besides people, content and the day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Method {
    /// The most events of a contribution. It bounds what is taken, not what is folded again.
    pub clip: usize,
    /// How tables are solved; k among it.
    pub solve: solve::Settings,
    /// How they are packed.
    pub packing: Packing,
    /// The noise on the sums; none: there was none. Whoever has it can take it off again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<Drawn>,
}

/// Why there is no snapshot.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum NotMade {
    /// Sums that no tables can be solved from.
    #[error("the sums cannot be solved ({0}): fold them again")]
    Solve(#[from] NotPositive),
    /// A packing that devices could not read.
    #[error(transparent)]
    Packing(#[from] PackingError),
    /// Noise that cannot be drawn.
    #[error(transparent)]
    Noise(#[from] Unfit),
}

/// A contribution that was taken before. The catalogue may have grown since, and the settings may
/// allow less now: only what the sums need is checked.
///
/// # Errors
/// [`Refused`] names the first event that the sums cannot take.
pub fn contribution(
    whole: bool,
    events: &[Interaction],
    items: usize,
) -> Result<Contribution, Refused> {
    let bounds = Bounds {
        items,
        clip: MAX_CLIP,
        first_day: 0,
        last_day: MAX_DAYS - 1,
    };
    match whole {
        true => Contribution::new(events, &bounds),
        false => Contribution::tail(events, &bounds),
    }
}

/// The same, cut to the newest `repeats` events of an item, and the newest `clip` of these: noise
/// is made for as much as that. A contribution within these bounds stays as it is.
///
/// # Errors
/// As [`contribution`].
pub fn clipped(
    whole: bool,
    events: &[Interaction],
    items: usize,
    clip: u32,
    repeats: u32,
) -> Result<Contribution, Refused> {
    let events = newest_of_each(events, |e| e.item, repeats as usize);
    let from = events.len().saturating_sub(clip as usize);
    contribution(whole && from == 0, &events[from..], items)
}

/// Folds from nothing, over `items` items of which these are cleared. Neither the order of people
/// nor how they come in chunks changes anything.
///
/// # Errors
/// Those of the chunks; [`Refused`] for a cleared item that the catalogue does not have.
pub fn fold<E: From<Refused>>(
    items: usize,
    cleared: &[u32],
    chunks: impl IntoIterator<Item = Result<Vec<Contribution>, E>>,
) -> Result<Sums, E> {
    let mut sums = Sums::new(items);
    sums.clear_items(cleared)?;
    for chunk in chunks {
        sums.fold_all(&chunk?)?;
    }
    Ok(sums)
}

/// The snapshot of sums, as of the beginning of `day` (since 1970).
///
/// # Errors
/// [`NotMade`].
///
/// # Panics
/// If `content` describes another number of items than the sums are over.
pub fn snapshot(
    sums: &Sums,
    content: &Content,
    settings: &solve::Settings,
    packing: &Packing,
    day: i32,
) -> Result<Vec<u8>, NotMade> {
    let solved = solve(sums, content, settings, day)?;
    Ok(encode(&solved.tables, packing)?)
}

/// The same, of the sums with noise.
///
/// # Errors
/// [`NotMade`].
///
/// # Panics
/// As [`snapshot`].
pub fn noised_snapshot(
    sums: &Sums,
    drawn: &Drawn,
    content: &Content,
    settings: &solve::Settings,
    packing: &Packing,
    day: i32,
) -> Result<Vec<u8>, NotMade> {
    let noised = noise::noised(sums, drawn, day)?;
    snapshot(&noised, content, settings, packing, day)
}

/// SHA-256 of a salt and a digest, 64 bytes in all. On a plain digest of people's data a guess can
/// be tested by everybody who sees it.
pub fn salted(salt: &[u8; 32], digest: &[u8; 32]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(salt);
    context.update(digest);
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Description;
    use crate::snapshot::digest;

    const ITEMS: usize = 6;

    fn of(who: u32) -> Contribution {
        let one = |n: u32| Interaction {
            item: (who + n) % 6,
            day: 100 + n as i32,
            seen: true,
            half_stars: Some(2 + (who % 9) as u8),
            liked: who.is_multiple_of(2),
            hidden: false,
        };
        let events: Vec<Interaction> = (0..3).map(one).collect();
        contribution(true, &events, ITEMS).expect("within bounds")
    }

    fn fold_in(cleared: &[u32], chunks: &[&[u32]]) -> Sums {
        let of_all = |chunk: &&[u32]| Ok(chunk.iter().map(|w| of(*w)).collect());
        fold::<Refused>(ITEMS, cleared, chunks.iter().map(of_all)).expect("folds")
    }

    #[test]
    fn chunks_and_order_change_nothing_and_people_and_cleared_items_do() {
        let all = fold_in(&[], &[&[0, 1, 2, 3, 4, 5, 6]]);
        assert_eq!(fold_in(&[], &[&[6, 2], &[], &[5, 1, 0, 3], &[4]]), all);
        assert_ne!(fold_in(&[], &[&[0, 1, 2, 3, 4, 5]]), all);
        assert_ne!(fold_in(&[3], &[&[0, 1, 2, 3, 4, 5, 6]]), all);
        let content = Content::new(&vec![Description::default(); ITEMS]);
        let make = |sums: &Sums, day| {
            let settings = solve::Settings::default();
            snapshot(sums, &content, &settings, &Packing::default(), day).expect("is made")
        };
        assert_eq!(make(&all, 120), make(&all.clone(), 120));
        assert_ne!(make(&all, 120), make(&all, 900), "tables are of a day");
        let none: Result<Sums, Refused> = fold(ITEMS, &[6], []);
        assert!(matches!(none, Err(Refused::UnknownItem { item: 6, .. })));
    }

    #[test]
    fn a_salt_is_hashed_before_the_digest() {
        let both = [[7; 32], [9; 32]].concat();
        assert_eq!(salted(&[7; 32], &[9; 32]), digest(&both));
        assert_ne!(salted(&[9; 32], &[7; 32]), digest(&both));
    }
}
