#!/usr/bin/env bash
# How one training step grows with batch, length, rank, adapted layers and threads, as CSV on standard output (about 4
# minutes on 2 cores). docs/figures/growth.csv is its output.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cargo build --release --manifest-path "$root/Cargo.toml" -p lethe-benches --quiet
step() { "${CARGO_TARGET_DIR:-$root/target}/release/bench-step" --csv --repeats 3 --pack 4096 "$@"; }
echo "batch,tokens,rank,layers,threads,arithmetic,min_s,median_s,max_s,peak_mib"
for n in 1 2 4 8 16; do step --batch $n; done
for n in 32 64 256 512; do step --batch 4 --tokens $n; done
for n in 4 16 32 64; do step --rank $n; done
for n in 6 10 20; do step --layers $n; done
for n in 1 2; do step --threads $n; step --threads $n --bf16; done
