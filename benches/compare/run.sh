#!/usr/bin/env bash
# Compares the engine with PyTorch, transformers and llama.cpp on this machine.
#
#   benches/compare/run.sh [--json FILE] [--only WORK]... [--runs N] [--samples N] [--test N]
#
# Works: lora_step tallrec_epoch rank100 rank100_quant generate64 train_memory device_side split_overhead.
# The first run makes a Python environment below target/compare (several GB) and builds llama.cpp with the machine's
# compiler. --samples and --test shorten the training job (1024 and 1000 when absent; all works take about an hour).
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=${LETHE_COMPARE:-$root/target/compare}
samples=1024 test=1000 pass=()
while (($#)); do
  case $1 in
    --samples) samples=$2; shift 2 ;;
    --test) test=$2; shift 2 ;;
    *) pass+=("$1"); shift ;;
  esac
done
cargo build --release --manifest-path "$root/Cargo.toml" -p lethe-benches
if ! cmp -s "$root/benches/compare/requirements.txt" "$work/installed"; then
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" install --quiet --requirement "$root/benches/compare/requirements.txt"
  cp "$root/benches/compare/requirements.txt" "$work/installed"
fi
binary=${CARGO_TARGET_DIR:-$root/target}/release/bench-compare
"$binary" export "$work/job" --samples "$samples" --test "$test"
exec "$work/venv/bin/python" "$root/benches/compare/compare.py" --binary "$binary" --job "$work/job" ${pass[@]+"${pass[@]}"}
