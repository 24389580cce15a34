#!/usr/bin/env bash
# Importance of every KV head for LongBench tasks and the needle test, and how the tasks agree.
#   bash experiments/cokv/run_importance.sh [MODEL]
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
# shellcheck disable=SC2086
split_and_score "$RESULTS" $TASKS
# shellcheck disable=SC2086
"$python" experiments/cokv/importance.py "${common[@]}" --tasks $TASKS --scores "$RESULTS/scores" \
    --output "$RESULTS/importance"
