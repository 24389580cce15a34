#!/usr/bin/env bash
# Evaluate CateKV against full attention and print the table (also in results/).
#
#   ./run_catekv.sh                     embedded model, built-in data, a few minutes on a CPU
#   ./run_catekv.sh MODEL --paper       local folder or hub name, published settings: 12 tasks,
#                                       96 samples, 131072 tokens, r 0.4, eta 1, budget 2048
#   ./run_catekv.sh MODEL --lengths 32768 --samples 20 --mask FOLDER
#
# Environment (or the options of `catekv evaluate`, which may follow MODEL):
#   MODEL LENGTHS TASKS SAMPLES MASK RATIO ETA BUDGET OUTPUT
# Without MASK the masks are taken from select_headmask/<name of the model>; ./run_headmask.sh
# MODEL makes them. Set GPUS=N to spread the samples over N processes.
set -euo pipefail
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$REPOSITORY/scripts/environment.sh"
help_if_asked "$0" "$@"
. "$REPOSITORY/scripts/evaluate.sh"
METHODS=${METHODS:-full catekv}
evaluate "$@"
