#!/usr/bin/env bash
# CoKV against SnapKV, PyramidKV, AdaKV and HeadKV at equal memory on LongBench: scores and alpha
# from the validation samples, results on the test samples.
#   bash experiments/cokv/run_longbench.sh [MODEL]
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
# shellcheck disable=SC2086
split_and_score "$RESULTS" $TASKS
# shellcheck disable=SC2086
"$python" experiments/cokv/longbench.py "${common[@]}" --tasks $TASKS --capacities $CAPACITIES \
    --alphas $ALPHAS --scores "$RESULTS/scores" --split "$RESULTS/split.json" ${LIMIT:+--limit $LIMIT} \
    --output "$RESULTS/longbench"
