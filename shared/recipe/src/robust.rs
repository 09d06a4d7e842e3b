//! What a recipe says of aggregates that a minority cannot steer, and where they cannot work.

use lethe_learn::robust::Robust;
use lethe_proto::packed::PackedFormat;

use crate::{Aggregation, Recipe, RecipeError};

/// Largest cohort of a rule that looks at one coordinate of all updates.
const MOST_COLUMN: usize = 1024;
/// Largest cohort of multi-Krum, which compares every two updates.
const MOST_PAIRS: usize = 256;

impl Recipe {
    /// Refuses a robust rule that would protect nobody.
    pub(super) fn check_robust(&self) -> Result<(), RecipeError> {
        let rule = self.robust;
        if rule.is_none() {
            return Ok(());
        }
        let refused = |field, got: String, expected| {
            Err(RecipeError::Range {
                field,
                got,
                expected,
            })
        };
        let named = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
        if self.updates == PackedFormat::Masked {
            return refused(
                "robust",
                named(&rule),
                "\"none\" with updates = \"masked\": nobody reads one update alone, so none can be \
                 left out",
            );
        }
        let shares = self.aggregation == Aggregation::Shared;
        if self.aggregation == Aggregation::Personalized {
            return refused(
                "robust",
                named(&rule),
                "\"none\" with aggregation = \"personalized\": everybody keeps parameters of their \
                 own, and there is no one aggregate",
            );
        }
        if shares && rule == Robust::Median {
            return refused(
                "aggregation",
                named(&self.aggregation),
                "\"fedavg\" with robust = \"median\": a median has no weights, and the balance \
                 would do nothing",
            );
        }
        let columns = matches!(rule, Robust::Median | Robust::TrimmedMean(_));
        if columns && matches!(self.updates, PackedFormat::TopK(_)) {
            return refused(
                "updates",
                named(&self.updates),
                "f32, int8 or int4 with robust = \"median\" or trimmed-mean: a sparse update is \
                 zero almost everywhere, and so would the result be",
            );
        }
        let removes = match rule {
            Robust::TrimmedMean(f) | Robust::MultiKrum(f) => f > 0,
            Robust::Median | Robust::None => true,
        };
        if !removes {
            return refused(
                "robust",
                named(&rule),
                "at least 1 to leave out; or \"none\"",
            );
        }
        if self.quorum < rule.fewest() {
            return refused(
                "quorum",
                self.quorum.to_string(),
                "at least 3 with robust = \"median\", 2 f + 1 with trimmed-mean = f and 2 f + 3 \
                 with multi-krum = f: fewer updates cannot outvote f",
            );
        }
        if columns && self.cohort > MOST_COLUMN {
            return refused(
                "cohort",
                self.cohort.to_string(),
                "at most 1024 with robust = \"median\" or trimmed-mean: all updates of a round are \
                 looked at together",
            );
        }
        if !columns && self.cohort > MOST_PAIRS {
            return refused(
                "cohort",
                self.cohort.to_string(),
                "at most 256 with robust = { multi-krum = f }: every two updates are compared",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_not_sent_and_every_rule_comes_back() {
        assert!(!Recipe::default().to_json().contains("robust"));
        let none = Recipe::from_toml("robust = \"none\"").expect("valid");
        assert_eq!(none.digest(), Recipe::default().digest());
        let head = "cohort = 16\nquorum = 7\naggregation = \"fedavg\"\nrobust = ";
        for (rule, robust) in [
            ("\"median\"", Robust::Median),
            ("{ trimmed-mean = 3 }", Robust::TrimmedMean(3)),
            ("{ multi-krum = 2 }", Robust::MultiKrum(2)),
        ] {
            let recipe = Recipe::from_toml(&format!("{head}{rule}")).expect(rule);
            assert_eq!(recipe.robust, robust);
            let json = Recipe::from_json(&recipe.to_json()).expect("own JSON");
            let toml = recipe.to_toml().expect("TOML").to_string();
            assert_eq!(json, recipe);
            assert_eq!(Recipe::from_toml(&toml).expect("own TOML"), recipe);
            assert_ne!(recipe.digest(), Recipe::default().digest());
        }
    }

    #[test]
    fn a_rule_that_cannot_work_is_refused_in_words() {
        for (text, part) in [
            ("quorum = 3\nrobust = \"median\"", "a median has no weights"),
            (
                "aggregation = \"fedavg\"\nrobust = \"median\"",
                "quorum is 1, expected at least 3",
            ),
            ("quorum = 4\nrobust = { trimmed-mean = 2 }", "quorum is 4"),
            (
                "cohort = 9\nquorum = 8\nrobust = { multi-krum = 3 }",
                "quorum is 8",
            ),
            ("robust = { multi-krum = 0 }", "at least 1 to leave out"),
            (
                "aggregation = \"personalized\"\nrobust = { trimmed-mean = 1 }",
                "no one aggregate",
            ),
            (
                "updates = \"masked\"\naggregation = \"fedavg\"\nrobust = \"median\"\nquorum = 3",
                "nobody reads one update alone",
            ),
            (
                "updates = { top-k = 50 }\nquorum = 3\nrobust = { trimmed-mean = 1 }",
                "zero almost everywhere",
            ),
            (
                "cohort = 2000\nquorum = 9\nrobust = { trimmed-mean = 1 }",
                "at most 1024",
            ),
            (
                "cohort = 300\nquorum = 9\nrobust = { multi-krum = 1 }",
                "at most 256",
            ),
            ("robust = \"krum\"", "multi-krum"),
        ] {
            let e = Recipe::from_toml(text).expect_err(text).to_string();
            assert!(e.contains(part), "{text}: {e}");
        }
    }
}
