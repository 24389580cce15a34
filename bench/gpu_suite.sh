#!/usr/bin/env bash
# Correctness and speed of everything that needs a GPU, in under ten minutes.
#   bench/gpu_suite.sh                                all stages, results in results/gpu
#   bench/gpu_suite.sh --stages correctness,decode    some stages
#   bench/gpu_suite.sh --output DIR                   results elsewhere
#   bench/gpu_suite.sh --budget-seconds 560           time for everything
#   bench/gpu_suite.sh --resume results/gpu/suite.json     skip what that run finished
#   bench/gpu_suite.sh --plan                         what would run, for how long, with what goals
#   bench/gpu_suite.sh --scale tiny                   every stage with tiny shapes on the CPU
# Needs a checkout and a Python with torch, triton and transformers (PYTHON=..., default python3);
# nothing is installed and no network is used. Exit code 0, 1 (wrong results or errors), 2 (no GPU).
set -euo pipefail
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$REPOSITORY/scripts/environment.sh"
help_if_asked "$0" "$@"
export PYTHONPATH="$REPOSITORY${PYTHONPATH:+:$PYTHONPATH}"
# modules come from this checkout, whatever lies in the current folder
export PYTHONSAFEPATH=1
export PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m bench.suite "$@"
