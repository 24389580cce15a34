#!/usr/bin/env bash
# Needle in a haystack: heads scored on a coarse grid of lengths, methods tested on a fine one.
#   bash experiments/cokv/run_needle.sh [MODEL]
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
# shellcheck disable=SC2086
"$python" experiments/cokv/needle.py "${common[@]}" --scored $NEEDLE_SCORED --lengths $NEEDLE_LENGTHS \
    --depths "$DEPTHS" --capacities ${NEEDLE_CAPACITIES:-$CAPACITIES} --alphas $ALPHAS \
    --max-draws "$MAX_DRAWS" --output "$RESULTS/needle"
