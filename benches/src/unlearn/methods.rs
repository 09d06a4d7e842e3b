//! The methods of the table.

use lethe_learn::apa::ApaParams;
use lethe_learn::seed::Seed;
use lethe_unlearn::Strategy;
use lethe_unlearn::analytic::{Analytic, WithHead};
use lethe_unlearn::combine::Combine;
use lethe_unlearn::partition::Partition;
use lethe_unlearn::sharded::Sharded;
use lethe_unlearn::whole::{Base, E2urec, Retrain};
use lethe_unlearn::world::Mixing;

/// Slices of those methods that have any.
pub(crate) const SLICES: usize = 4;

/// Penalty of the analytic head, in samples: chosen on validation samples (`--tune`).
pub(crate) const RIDGE: f64 = 10_000.0;

/// All of them, with `shards` shards and `epochs` passes.
pub(crate) fn all(
    shards: usize,
    epochs: f64,
    apa: ApaParams,
    seed: &Seed,
) -> Vec<Box<dyn Strategy>> {
    let sum = ApaParams {
        gain: shards as f64,
        ..apa
    };
    let apa = |mixing| Combine::Apa(mixing, apa);
    let sharded = |name: &str, partition, combine, slices| -> Box<dyn Strategy> {
        Box::new(Sharded::new(
            name, partition, combine, shards, slices, epochs, seed,
        ))
    };
    let sliced = |name: &str, partition, combine| {
        Sharded::new(name, partition, combine, shards, SLICES, epochs, seed).slice_by_slice()
    };
    let by_slice = |name: &str, partition, combine| -> Box<dyn Strategy> {
        Box::new(sliced(name, partition, combine))
    };
    let ours = |name: &str, combine| by_slice(name, Partition::Ours, combine);
    vec![
        Box::new(Retrain::new(epochs)),
        Box::new(Base::default()),
        sharded("SISA", Partition::Random, Combine::Mean, SLICES),
        by_slice("SISA, slice by slice", Partition::Random, Combine::Mean),
        sharded("GraphEraser (BEKM)", Partition::Bekm, Combine::Learned, 1),
        sharded("RecEraser (UBP)", Partition::Ubp, Combine::Attention, 1),
        sharded("RecEraser (IBP)", Partition::Ibp, Combine::Attention, 1),
        sharded("RecEraser (InBP)", Partition::Inbp, Combine::Attention, 1),
        sharded(
            "APA(D), paper's partition",
            Partition::Apa,
            apa(Mixing::D),
            1,
        ),
        sharded(
            "APA(ND), paper's partition",
            Partition::Apa,
            apa(Mixing::Nd),
            1,
        ),
        ours("APA(D), our partition", apa(Mixing::D)),
        ours("APA(ND), our partition", apa(Mixing::Nd)),
        ours(
            "APA(ND), our partition, gain K",
            Combine::Apa(Mixing::Nd, sum),
        ),
        Box::new(Analytic::new(RIDGE)),
        Box::new(WithHead::new(Retrain::new(epochs), Analytic::new(RIDGE))),
        Box::new(WithHead::new(
            sliced("APA(ND), our partition", Partition::Ours, apa(Mixing::Nd)),
            Analytic::new(RIDGE),
        )),
        Box::new(E2urec::new(epochs, 1.0)),
    ]
}

/// Every partition, for the ablation.
pub(crate) const PARTITIONS: [Partition; 8] = [
    Partition::Apa,
    Partition::Bekm,
    Partition::Ubp,
    Partition::Ibp,
    Partition::Inbp,
    Partition::Ours,
    Partition::Random,
    Partition::ByUser,
];
