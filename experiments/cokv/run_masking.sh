#!/usr/bin/env bash
# What a task loses when exactly k heads see the local window only: the most important ones, the
# least important ones, any; then with the heads that another task finds important.
#   bash experiments/cokv/run_masking.sh [MODEL]      (SOURCE=task, TARGETS="tasks" for the second)
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
: "${SOURCE:=longbench/hotpotqa}" "${TARGETS:=longbench/repobench-p}"
# shellcheck disable=SC2086
split_and_score "$RESULTS" $TASKS
scores=(--scores "$RESULTS/scores" --split "$RESULTS/split.json")
# shellcheck disable=SC2086
"$python" experiments/cokv/masking.py "${common[@]}" "${scores[@]}" --tasks $TASKS \
    ${LIMIT:+--limit $LIMIT} --output "$RESULTS/masking"
# shellcheck disable=SC2086
split_and_score "$RESULTS" $SOURCE $TARGETS
# shellcheck disable=SC2086
"$python" experiments/cokv/masking.py "${common[@]}" "${scores[@]}" --tasks $TARGETS \
    --source "$SOURCE" ${LIMIT:+--limit $LIMIT} --output "$RESULTS/masking_across"
