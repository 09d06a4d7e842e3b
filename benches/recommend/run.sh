#!/usr/bin/env bash
# Peers of the recommender on MovieLens-100K: kept packages, the bench's split, this machine's CPU.
#
#   benches/recommend/run.sh [--orders N...] [--peers NAME...]
#
# Adds what is missing to benches/recommend/peers.jsonl, which `lethe bench recommend` prints. The first run makes a
# Python environment below target/recommend (several GB); GRU4Rec takes the better part of an hour on two cores. The
# data must be there: `lethe fetch`.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=${LETHE_RECOMMEND:-$root/target/recommend}
home=${LETHE_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/lethe}
mkdir -p "$work"
if ! cmp -s "$root/benches/recommend/requirements.txt" "$work/installed"; then
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" install --quiet --requirement "$root/benches/recommend/requirements.txt"
  "$work/venv/bin/pip" install --quiet --no-deps recbole==1.2.1
  cp "$root/benches/recommend/requirements.txt" "$work/installed"
fi
export OPENBLAS_NUM_THREADS=1
cd "$work"
exec "$work/venv/bin/python" "$root/benches/recommend/peers.py" --data "$home/ml-100k" --work "$work" \
  --out "$root/benches/recommend/peers.jsonl" "$@"
