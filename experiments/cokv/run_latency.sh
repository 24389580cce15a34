#!/usr/bin/env bash
# Time against cache size and output length, memory against context length.
#   bash experiments/cokv/run_latency.sh [MODEL]
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
task="${TASKS%% *}"
split_and_score "$RESULTS" "$task"
# shellcheck disable=SC2086
"$python" experiments/cokv/latency.py "${model_arguments[@]}" --scores "$RESULTS/scores/${task##*/}/scores.npz" \
    --capacities ${LATENCY_CAPACITIES:-128} --outputs $LATENCY_OUTPUTS --contexts $LATENCY_CONTEXTS \
    --prompt "$LATENCY_PROMPT" --output "$RESULTS/latency"
