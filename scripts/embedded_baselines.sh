#!/usr/bin/env bash
# Measures docs/results/embedded_baselines.md: every method that needs no file of its own, at the
# memory that CateKV takes with three head masks, on the embedded model at 1024 tokens.
# About half an hour on two cores; stopped at any moment, it goes on where it was.
#   scripts/embedded_baselines.sh [SAMPLES]        (default: 20 per task)
set -euo pipefail
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$REPOSITORY/scripts/environment.sh"
help_if_asked "$0" "$@"
prepare_environment
cd "$REPOSITORY"
export OMP_NUM_THREADS=1

samples=${1:-20}
masks=select_headmask/embedded
methods="full catekv streaming_llm sliding_window h2o snapkv pyramidkv adakv dynamickv cam keepkv
  simcalkv simcalkv-recommended=simcalkv:preset=recommended rocketkv quest shadowkv
  atskv_dynamic_kv atskv_rocket_kv simcalkv_pyramidinfer simcalkv_keepkv simcalkv_cam"

table() { # RATIO BUDGET QUESTION
  local folder=results/embedded-baselines/r$1-$3
  rm -f "$folder/summary.json"
  # shellcheck disable=SC2086
  "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node 2 -m catekv evaluate \
    --lengths 1024 --question "$3" --samples "$samples" --ratio "$1" --budget "$2" --methods $methods \
    --mask chosen="$masks/chosen" --mask reversed --mask random:0 \
    --output "$folder" || [ -e "$folder/summary.json" ]
  # where a method refused so small a size the table says so; torchrun has one exit code for that and
  # for what ends a run before there is a table
}

# about 15, 27 and 42 % of the cache
for question in agnostic aware; do
  table 0.05 64 "$question"
  table 0.1 128 "$question"
  table 0.3 128 "$question"
done
