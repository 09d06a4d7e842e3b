#!/usr/bin/env bash
# Where a training step spends its processor time, by kernel: samples of perf (Debian: linux-perf), summed by the module
# that the code is of. Arguments go to bench-step: `benches/profile.sh --bf16`; LETHE_DEVICE=cpu:compact profiles that
# engine. docs/engine.md has its table.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# Names of functions with what they are generic over: most loops are closures inside of rayon's functions.
export RUSTFLAGS="-C symbol-mangling-version=v0"
export CARGO_TARGET_DIR=$root/target/profile
cargo build --release --manifest-path "$root/Cargo.toml" -p lethe-benches --bin bench-step --quiet
data=$CARGO_TARGET_DIR/perf.data
perf record --quiet --event cpu-clock --freq 999 --output "$data" "$CARGO_TARGET_DIR/release/bench-step" "$@"
# What perf warns of (symbols of the kernel that it may not read) is of interest only if it fails.
perf report --input "$data" --stdio --no-children --fields overhead,sym --percent-limit 0 >"$data.txt" 2>"$data.err" ||
    { cat "$data.err" >&2; exit 1; }
python3 "$root/benches/profile.py" <"$data.txt"
