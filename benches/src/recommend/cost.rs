//! What it costs: fold, solve, forget, snapshot, memory; one axis at a time.

use std::time::Instant;

use lethe_parts::contribution::Contribution;
use lethe_parts::score::{Options, Ranker, Request};
use lethe_parts::snapshot::{Packing, decode, delta, encode};
use lethe_parts::solve::{Before, Settings, solve, solve_again};
use lethe_parts::sums::Sums;
use rayon::prelude::*;

use crate::made_up::MadeUp;
use lethe_benches::figures::Row;

/// People who are folded in together: a bound on the memory of the measurement itself.
const CHUNK: usize = 20_000;

/// One size: everybody folded, solved, one person forgotten, lists made.
pub(crate) fn measure(people: usize, items: usize, axis: &'static str) -> anyhow::Result<Row> {
    let fleet = MadeUp::new(items);
    let content = fleet.content();
    let mut sums = Sums::new(items);
    let mut fold = 0.0;
    let mut start = 0;
    while start < people {
        let end = (start + CHUNK).min(people);
        let chunk: anyhow::Result<Vec<Contribution>> = (start..end)
            .into_par_iter()
            .map(|person| fleet.contribution(person as u32, 0))
            .collect();
        let chunk = chunk?;
        let began = Instant::now();
        sums.fold_all(&chunk)?;
        fold += began.elapsed().as_secs_f64();
        start = end;
    }
    let settings = Settings::default();
    let began = Instant::now();
    let solved = solve(&sums, &content, &settings, 900)?;
    let solving = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let bytes = encode(&solved.tables, &Packing::default())?;
    let packing = began.elapsed().as_secs_f64();
    let leaver = fleet.contribution(7, 0)?;
    let began = Instant::now();
    sums.unfold(&leaver)?;
    let unfold = began.elapsed().as_secs_f64();
    let before = Before {
        solved: &solved,
        touched: leaver.distinct(),
    };
    let again = solve_again(&before, &sums, &content, &settings, 900)?;
    let after = encode(&again.tables, &Packing::default())?;
    let forgotten = began.elapsed().as_secs_f64();
    let memory = resident();
    let changed = delta(&bytes, &after)?.len();
    let sum_bytes = sums.memory();
    let columns = again.columns_solved;
    drop((sums, solved, again));
    let device = decode(&after)?;
    let mut times = vec![];
    let mut ranker = Ranker::default();
    for person in 0..100 {
        let history = fleet.history(person);
        let request = Request {
            history: &history,
            today: 901,
        };
        let began = Instant::now();
        let page = ranker.page(&device, &content, &request, &Options::default());
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        anyhow::ensure!(page.items.len() == 10, "a list of {}", page.items.len());
    }
    times.sort_by(f64::total_cmp);
    Ok(
        Row::new("cost", axis, format!("{people} people, {items} items"), 0)
            .with("01 fold, s", fold)
            .with("02 solve, s", solving)
            .with("03 snapshot, s", packing)
            .with("04 unfold one, s", unfold)
            .with("05 deletion to snapshot, s", forgotten)
            .with("06 columns solved again", columns as f64)
            .with("07 sums, MB", sum_bytes as f64 / 1e6)
            .with("08 resident, MB", memory)
            .with("09 snapshot, MB", after.len() as f64 / 1e6)
            .with("10 delta, MB", changed as f64 / 1e6)
            .with("11 list p50, ms", times[49])
            .with("12 list p99, ms", times[98]),
    )
}

/// Resident memory of this process, in MB; 0 where the system does not say.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmRSS:"));
    let number = line.and_then(|l| l.split_whitespace().nth(1)?.parse::<f64>().ok());
    number.unwrap_or(0.0) / 1000.0
}
