//! What attackers do, and what stands against them.

use lethe_learn::robust::Robust;
use lethe_recipe::{Aggregation, Recipe};

/// How many times an attacker makes an update longer than what it trained.
const BOOST: f32 = 5.0;
/// The same where it is all that the attack does.
const SCALED: f32 = 100.0;

/// What an attacker sends. Each keeps to what the coordinator accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attack {
    /// Nothing: everybody is honest.
    Nobody,
    /// The opposite of what it trained.
    SignFlip,
    /// The opposite, a hundred times as long.
    Scaling,
    /// The opposite, with the most samples and the largest loss that are accepted.
    Inflation,
    /// It trains on an item that everybody likes, and sends five times as much.
    Promotion,
    /// It trains on an item that is liked after another one and not otherwise, and sends five times
    /// as much.
    Backdoor,
}

/// What an attacker trains on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TrainsOn {
    /// What it would honestly train on.
    Own,
    Promoted,
    Backdoor,
}

impl Attack {
    pub(crate) const ALL: [Self; 5] = [
        Self::SignFlip,
        Self::Scaling,
        Self::Inflation,
        Self::Promotion,
        Self::Backdoor,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::SignFlip => "sign flip",
            Self::Scaling => "scaling",
            Self::Inflation => "inflated claims",
            Self::Promotion => "promotion",
            Self::Backdoor => "backdoor",
        }
    }

    pub(crate) fn trains_on(self) -> TrainsOn {
        match self {
            Self::Nobody | Self::SignFlip | Self::Scaling | Self::Inflation => TrainsOn::Own,
            Self::Promotion => TrainsOn::Promoted,
            Self::Backdoor => TrainsOn::Backdoor,
        }
    }

    /// By what an attacker scales what it trained.
    pub(crate) fn scale(self) -> f32 {
        match self {
            Self::Nobody => 1.0,
            Self::SignFlip | Self::Inflation => -1.0,
            Self::Scaling => -SCALED,
            Self::Promotion | Self::Backdoor => BOOST,
        }
    }

    /// Whether it claims more than it did.
    pub(crate) fn inflates(self) -> bool {
        self == Self::Inflation
    }
}

/// An aggregation rule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    pub(crate) name: &'static str,
    clip_factor: Option<f32>,
    aggregation: Aggregation,
    robust: fn(usize) -> Robust,
}

/// Attackers that a rule is set for, in a cohort of so many: a fifth.
fn fifth(cohort: usize) -> u16 {
    (cohort / 5) as u16
}

impl Rule {
    pub(crate) const ALL: [Self; 7] = [
        Self {
            name: "absolute bound only",
            clip_factor: None,
            aggregation: Aggregation::Fedavg,
            robust: |_| Robust::None,
        },
        Self {
            name: "running median",
            clip_factor: Some(2.0),
            aggregation: Aggregation::Fedavg,
            robust: |_| Robust::None,
        },
        Self {
            name: "running median, balance",
            clip_factor: Some(2.0),
            aggregation: Aggregation::Shared,
            robust: |_| Robust::None,
        },
        Self {
            name: "trimmed mean",
            clip_factor: Some(2.0),
            aggregation: Aggregation::Fedavg,
            robust: |cohort| Robust::TrimmedMean(fifth(cohort)),
        },
        Self {
            name: "median",
            clip_factor: Some(2.0),
            aggregation: Aggregation::Fedavg,
            robust: |_| Robust::Median,
        },
        Self {
            name: "multi-Krum",
            clip_factor: Some(2.0),
            aggregation: Aggregation::Fedavg,
            robust: |cohort| Robust::MultiKrum(fifth(cohort)),
        },
        Self {
            name: "multi-Krum, balance",
            clip_factor: Some(2.0),
            aggregation: Aggregation::Shared,
            robust: |cohort| Robust::MultiKrum(fifth(cohort)),
        },
    ];

    /// The product's default.
    pub(crate) const DEFAULT: Self = Self::ALL[2];

    /// The recipe of a federation under this rule.
    pub(crate) fn recipe(&self, base: &Recipe) -> Recipe {
        Recipe {
            clip_factor: self.clip_factor,
            aggregation: self.aggregation,
            robust: (self.robust)(base.cohort),
            ..base.clone()
        }
    }
}
