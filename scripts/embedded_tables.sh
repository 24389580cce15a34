#!/usr/bin/env bash
# Measures the tables of docs/results/embedded_model.md: every mask and baseline on the embedded
# model at 1024 and 4096 tokens, question asked after compression and before it.
# About 36 minutes on two cores; stopped at any moment, it goes on where it was.
#   scripts/embedded_tables.sh [SAMPLES]        (default: 100 per task)
set -euo pipefail
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$REPOSITORY/scripts/environment.sh"
help_if_asked "$0" "$@"
prepare_environment
cd "$REPOSITORY"
export OMP_NUM_THREADS=1

samples=${1:-100}
masks=select_headmask/embedded
lookups="ruler/niah_single_1 ruler/niah_single_2 ruler/niah_multikey_1 ruler/niah_multikey_2
  ruler/niah_multiquery ruler/niah_multivalue ruler/vt ruler/vt_dense"

table() { # LENGTH QUESTION TASKS...
  local length=$1 question=$2
  shift 2
  "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node 2 -m catekv evaluate \
    --lengths "$length" --question "$question" --samples "$samples" --tasks "$@" \
    --methods full catekv snapkv streaming_llm --joint-decode \
    --mask chosen="$masks/chosen" --mask published="$masks/vt" --mask oracle="$masks/oracle" \
    --mask reversed --mask random:0 --mask random:1 --mask random:2 \
    --output "results/embedded-table/$length-$question"
}

# shellcheck disable=SC2086
for length in 1024 4096; do
  for question in agnostic aware; do
    table "$length" "$question" $lookups
  done
done
