//! How sequences of different lengths lie in one buffer, without padding.

use serde::{Deserialize, Serialize};

/// A packed batch: a shared prefix of `prefix` rows, then one run of `lens[i]` rows per sequence.
/// Each sequence attends to the prefix and, causally, to itself; positions of a run continue the
/// prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Rows shared by all sequences.
    pub prefix: u32,
    /// Own rows of each sequence; none is zero.
    pub lens: Vec<u32>,
}

/// One run of rows and the context before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First row.
    pub start: usize,
    /// Rows.
    pub len: usize,
    /// Rows of the shared prefix that it also attends to (`0..context`).
    pub context: usize,
}

impl Layout {
    /// Packs token sequences, sharing their longest common prefix (at least one own token is left
    /// to each). Returns the layout and the tokens in row order. Empty sequences are not allowed.
    pub fn pack(sequences: &[Vec<u32>]) -> (Self, Vec<u32>) {
        let shortest = sequences.iter().map(Vec::len).min().unwrap_or(0);
        let common = match sequences {
            [] | [_] => 0,
            [first, rest @ ..] => {
                let same = |i: &usize| rest.iter().all(|s| s[*i] == first[*i]);
                (0..shortest.saturating_sub(1)).take_while(same).count()
            }
        };
        let mut ids: Vec<u32> = sequences.first().map_or(&[][..], |s| &s[..common]).to_vec();
        for s in sequences {
            ids.extend_from_slice(&s[common..]);
        }
        let lens = sequences
            .iter()
            .map(|s| (s.len() - common) as u32)
            .collect();
        (
            Self {
                prefix: common as u32,
                lens,
            },
            ids,
        )
    }

    /// All rows.
    pub fn rows(&self) -> usize {
        self.prefix as usize + self.lens.iter().map(|l| *l as usize).sum::<usize>()
    }

    /// Sequences.
    pub fn sequences(&self) -> usize {
        self.lens.len()
    }

    /// One past the largest position.
    pub fn max_position(&self) -> usize {
        self.prefix as usize + self.lens.iter().max().map_or(0, |l| *l as usize)
    }

    /// The prefix (if any) and each sequence's own rows, in row order.
    pub fn runs(&self) -> Vec<Run> {
        let context = self.prefix as usize;
        let mut runs = Vec::with_capacity(self.lens.len() + 1);
        if context > 0 {
            runs.push(Run {
                start: 0,
                len: context,
                context: 0,
            });
        }
        let mut start = context;
        for len in &self.lens {
            let len = *len as usize;
            runs.push(Run {
                start,
                len,
                context,
            });
            start += len;
        }
        runs
    }

    /// Position of every row.
    pub fn positions(&self) -> Vec<usize> {
        self.runs()
            .iter()
            .flat_map(|r| (0..r.len).map(|i| r.context + i))
            .collect()
    }

    /// Last row of each sequence.
    pub fn last_rows(&self) -> Vec<usize> {
        let mut row = self.prefix as usize;
        self.lens
            .iter()
            .map(|l| {
                row += *l as usize;
                row - 1
            })
            .collect()
    }

    /// Refuses a layout that a peer must not send: no sequence, an empty one, or more rows or
    /// positions than allowed.
    pub fn check(&self, max_rows: usize, max_positions: usize) -> Result<(), String> {
        if self.lens.is_empty() || self.lens.contains(&0) {
            return Err("a batch needs at least one sequence and no empty ones".into());
        }
        let rows = self
            .lens
            .iter()
            .fold(u64::from(self.prefix), |n, l| n + u64::from(*l));
        if rows > max_rows as u64 || self.max_position() > max_positions {
            return Err(format!(
                "a batch of {rows} tokens (longest sequence {}), allowed are {max_rows} and \
                 {max_positions}",
                self.max_position()
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_the_common_prefix_and_leaves_a_token() {
        let (l, ids) = Layout::pack(&[vec![1, 2, 3], vec![1, 2], vec![1, 2, 4, 5]]);
        assert_eq!(
            l,
            Layout {
                prefix: 1,
                lens: vec![2, 1, 3]
            }
        );
        assert_eq!(ids, [1, 2, 3, 2, 2, 4, 5]);
        assert_eq!(l.positions(), [0, 1, 2, 1, 1, 2, 3]);
        assert_eq!(l.last_rows(), [2, 3, 6]);
        assert!(l.check(7, 4).is_ok());
        assert!(l.check(6, 4).is_err());
        assert!(
            Layout {
                prefix: 3,
                lens: vec![]
            }
            .check(9, 9)
            .is_err()
        );
    }

    #[test]
    fn one_sequence_has_no_prefix() {
        let (l, ids) = Layout::pack(&[vec![4, 5]]);
        assert_eq!((l.prefix, l.rows(), ids.len()), (0, 2, 2));
    }
}
