//! What larger cells and a higher threshold cost: lists as served, and people who wait.

use lethe_benches::figures::Row;
use lethe_benches::lists::next::{
    Event, Fleet as Ranked, PLAIN, Variant, ranks, targets, training,
};
use lethe_benches::lists::world::{World, sum};
use lethe_parts::contribution::Contribution;
use lethe_parts::score::Weights;
use lethe_parts::snapshot::{Packing, decode, encode};
use lethe_parts::solve::{Settings, solve};
use lethe_recsys::evaluation::Ranking;

use super::fleet::{CLIP, Fleet};

/// HR@10 and NDCG@10 of everybody's last event, from those who are in cells.
pub(super) fn measure(
    world: &World,
    fleet: &Fleet,
    size: usize,
    k: u64,
    seed: u64,
) -> anyhow::Result<Row> {
    let counting: Vec<usize> = fleet.cells(size, seed).into_iter().flatten().collect();
    let all = training(world, CLIP)?;
    let counted: Vec<Contribution> = counting.iter().map(|p| all[*p].clone()).collect();
    let settings = Settings { k, ..PLAIN };
    let sums = sum(world.items(), &counted)?;
    let tables = solve(&sums, &world.content, &settings, 0)?.tables;
    let mut ranked = Ranked {
        tables: decode(&encode(&tables, &Packing::default())?)?,
        sums: &sums,
        content: &world.content,
        k,
    };
    let composition = [Variant::composition("composition", Weights::PUBLIC)];
    let found = ranks(&mut ranked, &targets(world, Event::Test), &composition);
    let lists = Ranking::of(&found[0]);
    let name = format!("n {size}, k {k}");
    let waiting = fleet.people.len() - counting.len();
    Ok(Row::new("snapshots: price", &world.name, name, seed)
        .with("01 HR@10", lists.hr)
        .with("02 NDCG@10", lists.ndcg)
        .with("03 people who wait", waiting as f64))
}
