//! Questions about what the tally has, in as many requests as its bounds ask for.

use lethe_proto::tally::{HeldOf, HeldShown, TOGETHER};

/// A question, or a part of one about many items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Which question it belongs to.
    pub(super) of: usize,
    pub(super) asks: HeldOf,
}

/// A request has at most [`TOGETHER`] of these.
fn weight(asks: &HeldOf) -> usize {
    match asks {
        HeldOf::Handle(_) => 1,
        HeldOf::Items(items) => items.len().max(1),
    }
}

/// The parts of all questions, in requests that a tally takes.
pub(super) fn requests(all: &[HeldOf]) -> Vec<Vec<Part>> {
    let mut out: Vec<Vec<Part>> = vec![];
    let mut sum = TOGETHER;
    for (of, question) in all.iter().enumerate() {
        let parts = match question {
            HeldOf::Items(items) if items.len() > TOGETHER => {
                let parts = items.chunks(TOGETHER);
                parts.map(|p| HeldOf::Items(p.to_vec())).collect()
            }
            other => vec![other.clone()],
        };
        for asks in parts {
            let more = weight(&asks);
            if sum + more > TOGETHER {
                out.push(vec![]);
                sum = 0;
            }
            sum += more;
            if let Some(last) = out.last_mut() {
                last.push(Part { of, asks });
            }
        }
    }
    out
}

/// What there is of one thing or another.
pub(super) fn either(one: &HeldShown, other: &HeldShown) -> HeldShown {
    HeldShown {
        held: one.held || other.held,
        cell: one.cell.max(other.cell),
        shown: one.shown || other.shown,
        was_shown: one.was_shown.or(other.was_shown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(n: usize) -> HeldOf {
        HeldOf::Items((0..n as u32).collect())
    }

    #[test]
    fn no_request_has_more_than_a_tally_takes_and_nothing_is_left_out() {
        let handles = (0..2_000u32).map(|n| {
            let mut handle = [0; 16];
            handle[..4].copy_from_slice(&n.to_le_bytes());
            HeldOf::Handle(handle)
        });
        let mut all: Vec<HeldOf> = handles.collect();
        all.extend([
            items(0),
            items(3_000),
            items(1_024),
            items(1_000),
            items(30),
        ]);
        let requests = requests(&all);
        let mut back = vec![vec![]; all.len()];
        for request in &requests {
            let sum: usize = request.iter().map(|p| weight(&p.asks)).sum();
            assert!((1..=TOGETHER).contains(&sum));
            for part in request {
                match &part.asks {
                    HeldOf::Handle(_) => assert_eq!(all[part.of], part.asks),
                    HeldOf::Items(items) => back[part.of].extend_from_slice(items),
                }
            }
        }
        for (question, back) in all.iter().zip(back) {
            if let HeldOf::Items(items) = question {
                assert_eq!(*items, back);
            }
        }
        let asked: usize = requests.iter().map(Vec::len).sum();
        assert_eq!(asked, 2_000 + 1 + 3 + 1 + 1 + 1);
    }
}
