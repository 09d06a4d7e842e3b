#!/usr/bin/env bash
# Peers of the recommender on MovieLens-100K: kept packages, the bench's split, this machine's CPU.
#
#   benches/recommend/run.sh [--orders N...] [--peers NAME...]                  ALS, RecBole
#   benches/recommend/run.sh --sequential [--orders N...] [--peers NAME...]     RecTools
#
# Adds what is missing to benches/recommend/peers.jsonl, which `lethe bench recommend` prints. The
# first run of each makes a Python environment below target/recommend (several GB). RecTools takes
# about a quarter of an hour an order on two cores; RecBole's GRU4Rec and SASRec, which only run when
# they are named, most of an hour each. The data must be there: `lethe fetch`.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
here=$root/benches/recommend
work=${LETHE_RECOMMEND:-$root/target/recommend}
home=${LETHE_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/lethe}
program=peers.py
requirements=requirements.txt
if [ "${1:-}" = --sequential ]; then
  shift
  program=sequential.py
  requirements=requirements-sequential.txt
fi
venv=$work/venv-$program
mkdir -p "$work"
if ! cmp -s "$here/$requirements" "$venv/installed"; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --requirement "$here/$requirements"
  if [ "$program" = peers.py ]; then
    # Its own requirements ask for packages that are not used here, and for older ones.
    "$venv/bin/pip" install --quiet --no-deps recbole==1.2.1
  fi
  cp "$here/$requirements" "$venv/installed"
fi
export OPENBLAS_NUM_THREADS=1
cd "$work"
exec "$venv/bin/python" "$here/$program" --data "$home/ml-100k" --work "$work" \
  --out "$here/peers.jsonl" "$@"
