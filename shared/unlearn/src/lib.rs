//! The published unlearning methods for recommenders behind one trait, to be compared on the same
//! data, model and deletions.
//!
//! A [`Strategy`] trains on samples, forgets some of them, and predicts. It sees the world through
//! [`World`]: training, scoring and mixing adapters, and the vectors that its partition needs; the
//! world counts what it costs. Methods: [`whole::Retrain`], [`whole::E2urec`], and
//! [`sharded::Sharded`] with a [`partition::Partition`] and a [`combine::Combine`], which covers
//! SISA, GraphEraser, RecEraser and APA; [`analytic::Analytic`] is a head that forgets by
//! subtraction. [`figures`] compares predictions: JSD, L2 and membership inference against what was
//! never trained on.
//!
//! Every method's docstring names its paper and where this departs from the published code, and
//! why.

pub mod analytic;
pub mod combine;
pub mod figures;
pub mod partition;
pub mod sharded;
pub mod sums;
pub mod whole;
pub mod world;

pub use world::{
    Cost, Exactness, ModelId, SampleId, Strategy, Training, UnlearnError, Untuned, World,
};

#[cfg(test)]
mod toy;
