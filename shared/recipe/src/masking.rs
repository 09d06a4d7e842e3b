//! What a recipe says of masked updates (`docs/secure-sums.md`).

use lethe_learn::aggregate::clip;
use lethe_learn::secure_sum::{Grid, GridError};
use lethe_model::split::SplitSpec;
use lethe_proto::limits::MAX_LOSS;
use lethe_proto::masked;
use lethe_proto::packed::PackedFormat;

use crate::{Aggregation, Recipe, RecipeError};

impl Recipe {
    /// The grid that updates are rounded to before they are masked; none: they are not
    /// (`docs/secure-sums.md`).
    pub fn grid(&self) -> Option<Grid> {
        if self.updates != PackedFormat::Masked {
            return None;
        }
        let clients = u32::try_from(self.cohort).ok()?;
        Grid::new(self.clip, masked::BITS, clients).ok()
    }

    /// A device's change (`[values]`) and its loss as they are masked, `[values + 1]`: clipped to
    /// [`Self::clip`] as an L2 norm, scaled by [`Self::masked_weight`], on [`Self::grid`]. The loss
    /// is scaled so that the grid holds it, and has no weight.
    ///
    /// # Errors
    /// [`GridError::NotFinite`]: the training diverged.
    pub fn on_grid(
        &self,
        grid: &Grid,
        change: &[f32],
        loss: f32,
        samples: u32,
    ) -> Result<Vec<u32>, GridError> {
        let mut values = change.to_vec();
        if let Some(index) = values.iter().position(|v| !v.is_finite()) {
            return Err(GridError::NotFinite { index });
        }
        clip(&mut values, self.clip);
        let weight = self.masked_weight(samples);
        values.iter_mut().for_each(|v| *v *= weight);
        values.push(loss.clamp(0.0, MAX_LOSS) / MAX_LOSS * self.clip);
        let codes = grid.encode(&values)?;
        // The grid has 32 bits.
        Ok(codes.into_iter().map(|code| code as u32).collect())
    }

    /// The mean loss of a round, from the sum of what [`Self::on_grid`] has put last.
    pub fn loss_off_grid(&self, sum: f32, clients: u32) -> f32 {
        (sum / self.clip * MAX_LOSS / clients as f32).clamp(0.0, MAX_LOSS)
    }

    /// By what a device scales its change before it is masked: its number of samples, as a part of
    /// the most that a device may train on. All of them are at most 1, so that the grid holds.
    pub fn masked_weight(&self, samples: u32) -> f32 {
        (f64::from(samples) / self.local.samples as f64).min(1.0) as f32
    }

    /// Checks that masks hide something: whoever hosts middle layers reads the prompts anyway.
    ///
    /// # Errors
    /// [`RecipeError::Range`] for masked updates where a model with `layers` layers has some that
    /// the coordinator hosts.
    pub fn check_masked(&self, layers: usize) -> Result<(), RecipeError> {
        let SplitSpec { k_in, k_out } = self.split;
        let masked = self.updates == PackedFormat::Masked;
        if !masked || k_in + k_out >= layers {
            return Ok(());
        }
        Err(RecipeError::Range {
            field: "split",
            got: format!("{k_in} + {k_out} of {layers} layers on the device"),
            expected: "all of them with updates = \"masked\": whoever hosts the middle reads the \
                       prompts, and masks would hide nothing",
        })
    }

    /// Checks that a tally sums rounds of masked updates of `values` values.
    ///
    /// # Errors
    /// [`RecipeError::Range`]: beyond what one answer, or a minute of work, can be.
    pub fn check_masked_work(&self, values: usize) -> Result<(), RecipeError> {
        let (most_values, most_work) = (masked::MOST_VALUES, masked::MOST_WORK);
        let work = self.cohort.saturating_mul(values + 1);
        if self.grid().is_none() || (values < most_values && work <= most_work) {
            return Ok(());
        }
        Err(RecipeError::Range {
            field: "cohort",
            got: format!("{} with {values} values each", self.cohort),
            expected: "with updates = \"masked\" fewer than 8388608 values each and at most 2^34 \
                       in all: train fewer layers, a lower rank or with a smaller cohort",
        })
    }

    /// What a sum of masked updates excludes: nobody has one update alone.
    pub(super) fn check_sums(&self) -> Result<(), RecipeError> {
        let refused = |field, got: String, expected| {
            Err(RecipeError::Range {
                field,
                got,
                expected,
            })
        };
        if self.aggregation != Aggregation::Fedavg {
            return refused(
                "aggregation",
                format!("{:?}", self.aggregation).to_lowercase(),
                "fedavg with updates = \"masked\": the balance compares single updates",
            );
        }
        if let Some(factor) = self.clip_factor {
            return refused(
                "clip_factor",
                factor.to_string(),
                "0 with updates = \"masked\": nobody knows the length of one update",
            );
        }
        if let Some(staleness) = self.staleness {
            return refused(
                "staleness",
                staleness.to_string(),
                "none with updates = \"masked\": a mask is for one round",
            );
        }
        if let Some(goal) = self.goal {
            return refused(
                "goal",
                goal.to_string(),
                "none with updates = \"masked\": after a deletion the same people have to answer \
                 again, not the fastest",
            );
        }
        let rounds = self.rounds * self.slices * self.shards;
        if self.cohort.saturating_mul(rounds) > masked::MOST_KEPT {
            return refused(
                "cohort",
                format!("{} in each of {rounds} rounds", self.cohort),
                "at most 2^24 people in all rounds together with updates = \"masked\": who was in \
                 a sum is kept",
            );
        }
        if self.grid().is_none() || self.cohort > masked::MOST_MEMBERS {
            return refused(
                "cohort",
                self.cohort.to_string(),
                "at most 65536 with updates = \"masked\"",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_updates_exclude_what_needs_one_update_alone() {
        let head = "updates = \"masked\"\naggregation = ";
        let recipe = Recipe::from_toml(&format!("{head}\"fedavg\"")).expect("valid");
        assert_eq!(recipe.clip_factor, None, "absent means none here");
        let again = recipe.to_toml().expect("TOML").to_string();
        assert_eq!(Recipe::from_toml(&again).expect("own TOML"), recipe);
        assert_eq!(
            Recipe::from_json(&recipe.to_json()).expect("own JSON"),
            recipe
        );
        let grid = recipe.grid().expect("masked");
        let share = recipe.masked_weight(2);
        assert!(
            share == 0.5 && grid.error(4) < 1e-5,
            "{share} {}",
            grid.error(4)
        );
        assert!(Recipe::default().grid().is_none());
        for (rest, part) in [
            ("\"shared\"", "aggregation is shared"),
            ("\"fedavg\"\nclip_factor = 2.0", "clip_factor is 2"),
            ("\"fedavg\"\ngoal = 2\nstaleness = 1", "staleness is 1"),
            ("\"fedavg\"\ngoal = 2", "goal is 2"),
            (
                "\"fedavg\"\ncohort = 60000\nrounds = 1000",
                "in each of 8000 rounds",
            ),
            ("\"fedavg\"\ncohort = 70000", "cohort is 70000"),
            ("\"fedavg\"\nadapters = \"masked\"", "adapters is Masked"),
        ] {
            let text = format!("{head}{rest}");
            let e = Recipe::from_toml(&text).expect_err(rest).to_string();
            assert!(e.contains(part), "{e}");
        }
        let e = recipe.check_masked(30).expect_err("4 + 1").to_string();
        assert!(e.contains("4 + 1 of 30 layers"), "{e}");
        assert!(recipe.check_masked(5).is_ok());
        assert!(Recipe::default().check_masked(30).is_ok());
        assert!(recipe.check_masked_work(1 << 20).is_ok());
        assert!(recipe.check_masked_work(1 << 23).is_err());
    }

    #[test]
    fn what_is_on_the_grid_is_clipped_and_weighed_and_the_loss_comes_last() {
        let recipe = Recipe::from_toml(
            "updates = \"masked\"\naggregation = \"fedavg\"\nclip = 2.0\ncohort = 2\n",
        );
        let recipe = recipe.expect("valid");
        let grid = recipe.grid().expect("masked");
        let read = |codes: &[u32], clients: u32| {
            let wide: Vec<u64> = codes.iter().copied().map(u64::from).collect();
            grid.decode(&wide, clients).expect("in range")
        };
        let long = recipe.on_grid(&grid, &[3.0, -4.0], 0.5, 4).expect("finite");
        let short = recipe.on_grid(&grid, &[0.5, 0.5], 1.5, 1).expect("finite");
        let near = |a: f32, b: f32| assert!((a - b).abs() < 1e-5, "{a} {b}");
        // As long as is allowed, and all of its samples.
        near(read(&long, 1)[0], 1.2);
        near(read(&long, 1)[1], -1.6);
        // One sample of four.
        near(read(&short, 1)[0], 0.125);
        let sum: Vec<u32> = long
            .iter()
            .zip(&short)
            .map(|(a, b)| a.wrapping_add(*b))
            .collect();
        let sum = read(&sum, 2);
        near(sum[1], -1.475);
        near(recipe.loss_off_grid(sum[2], 2), 1.0);
        let bad = recipe.on_grid(&grid, &[0.0, f32::NAN], 0.5, 1);
        assert_eq!(bad, Err(GridError::NotFinite { index: 1 }));
    }
}
