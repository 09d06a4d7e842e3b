//! Rows of the error table, as a person's devices report them and as they are stored: one value for
//! each person and shard.

use std::collections::BTreeMap;

use lethe_learn::apa::ErrorRow;
use lethe_proto::ids::ShardId;
use lethe_proto::message::ErrorReport;
use serde::{Deserialize, Serialize};

/// A sample, measured on one shard's adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    /// `[hidden]`.
    pub(crate) embedding: Vec<f32>,
    /// Probability of the wrong answer.
    pub(crate) error: f32,
}

/// All that a person has measured on a shard, by sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ErrorRows(pub(crate) BTreeMap<u32, Row>);

impl ErrorRows {
    /// Takes what was reported of a shard: it replaces what was known of the same samples.
    pub(crate) fn merge(&mut self, shard: ShardId, reported: &[ErrorReport]) {
        for report in reported {
            for (_, error) in report.errors.iter().filter(|(s, _)| *s == shard) {
                let row = Row {
                    embedding: report.embedding.clone(),
                    error: *error,
                };
                self.0.insert(report.sample, row);
            }
        }
    }
}

/// The rows of a person's samples: the errors on every shard, side by side.
pub(crate) fn together(samples: &[u32], shards: &[ErrorRows]) -> Vec<ErrorRow> {
    let row = |sample: &u32| {
        let rows: Vec<&Row> = shards
            .iter()
            .map(|s| s.0.get(sample))
            .collect::<Option<_>>()?;
        Some(ErrorRow {
            embedding: rows.first()?.embedding.clone(),
            errors: rows.iter().map(|r| r.error).collect(),
        })
    };
    samples.iter().filter_map(row).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn report(sample: u32, shard: u16, error: f32) -> ErrorReport {
        ErrorReport {
            sample,
            embedding: vec![sample as f32],
            errors: vec![(ShardId(shard), error)],
        }
    }

    #[test]
    fn what_is_measured_again_replaces_and_half_a_row_does_not_count() {
        let mut shards = vec![ErrorRows::default(), ErrorRows::default()];
        let first = [report(1, 0, 0.5), report(2, 0, 0.25), report(1, 1, 0.75)];
        let again = [report(1, 0, 0.125)];
        for (k, rows) in shards.iter_mut().enumerate() {
            rows.merge(ShardId(k as u16), &first);
            rows.merge(ShardId(k as u16), &again);
        }
        let rows = together(&[1, 2], &shards);
        assert_eq!(rows.len(), 1, "sample 2 was not measured on shard 1");
        assert_eq!(rows[0].errors, [0.125, 0.75]);
        assert_eq!(rows[0].embedding, [1.0]);
    }
}
