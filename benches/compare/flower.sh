#!/usr/bin/env bash
# Rounds of `lethe fleet` and of Flower with the same number of clients and values, one after the other on this machine.
#
#   benches/compare/flower.sh CLIENTS ROUNDS FOLDER
#
# The first run makes a Python environment below target/compare. FOLDER gets peer.json, f32.json and int8.json.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=${LETHE_COMPARE:-$root/target/compare}
clients=${1:-1000} rounds=${2:-10} out=${3:-$work/fleet}
mkdir -p "$out" "$work"
cargo build --release --manifest-path "$root/Cargo.toml" -p lethe-cli -p lethe-coordinator
if ! cmp -s "$root/benches/compare/requirements-flower.txt" "$work/installed-flower"; then
  python3 -m venv "$work/flower"
  "$work/flower/bin/pip" install --quiet --requirement "$root/benches/compare/requirements-flower.txt"
  cp "$root/benches/compare/requirements-flower.txt" "$work/installed-flower"
fi
"$work/flower/bin/python" "$root/benches/compare/flower.py" --clients "$clients" --rounds "$rounds" --json "$out/peer.json"
for updates in f32 int8; do
  "${CARGO_TARGET_DIR:-$root/target}/release/lethe" fleet --clients "$clients" --rounds "$rounds" --updates "$updates" \
    --peer "$out/peer.json" --json "$out/$updates.json"
done
