#!/usr/bin/env bash
# Evaluate CateKV against full attention and print the table (also in results/).
#
#   ./run_catekv.sh                     embedded model, built-in data, a few minutes on a CPU
#   ./run_catekv.sh MODEL --paper       local folder or hub name, published settings: 12 tasks,
#                                       96 samples, 131072 tokens, r 0.4, eta 1, budget 2048
#   ./run_catekv.sh MODEL --lengths 32768 --samples 20 [--mask FOLDER]
#
# Environment (or the options of `catekv evaluate`, which may follow MODEL):
#   MODEL LENGTHS TASKS SAMPLES MASK RATIO ETA BUDGET OUTPUT
# Without MASK the masks are those that come with the model or that ./run_headmask.sh MODEL made;
# where there are none, some are made first, quickly. Set GPUS=N to spread the samples over N
# processes, which need masks that are there.
set -euo pipefail
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$REPOSITORY/scripts/environment.sh"
help_if_asked "$0" "$@"
. "$REPOSITORY/scripts/evaluate.sh"
METHODS=${METHODS:-full catekv}
evaluate "$@"
