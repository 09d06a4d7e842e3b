//! Rows of the error table, as a person's devices report them and as they are stored: one value for
//! each person and shard.

use std::collections::BTreeMap;

use lethe_learn::apa;
use lethe_proto::ids::ShardId;
use lethe_proto::message::ErrorReport;

use crate::content::{ErrorRow, ErrorRows};

impl ErrorRows {
    /// Takes what was reported of a shard: it replaces what was known of the same samples.
    pub(crate) fn merge(&mut self, shard: ShardId, reported: &[ErrorReport]) {
        let known = std::mem::take(&mut self.0);
        let mut rows: BTreeMap<u32, ErrorRow> = known.into_iter().map(|r| (r.sample, r)).collect();
        for report in reported {
            for (_, error) in report.errors.iter().filter(|(s, _)| *s == shard) {
                let row = ErrorRow {
                    sample: report.sample,
                    embedding: report.embedding.clone(),
                    error: *error,
                };
                rows.insert(report.sample, row);
            }
        }
        self.0 = rows.into_values().collect();
    }

    fn of(&self, sample: u32) -> Option<&ErrorRow> {
        self.0.iter().find(|r| r.sample == sample)
    }
}

/// The rows of a person's samples: the errors on every shard, side by side.
pub(crate) fn together(samples: &[u32], shards: &[ErrorRows]) -> Vec<apa::ErrorRow> {
    let row = |sample: &u32| {
        let rows: Vec<&ErrorRow> = shards
            .iter()
            .map(|s| s.of(*sample))
            .collect::<Option<_>>()?;
        Some(apa::ErrorRow {
            embedding: rows.first()?.embedding.clone(),
            errors: rows.iter().map(|r| r.error).collect(),
        })
    };
    samples.iter().filter_map(row).collect()
}

#[cfg(test)]
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
