#!/usr/bin/env bash
# Evaluate full attention and the baselines; all compressed methods get the memory CateKV uses.
#
#   ./run_baseline.sh                            embedded model: full, catekv and twelve baselines
#   ./run_baseline.sh MODEL                      a local folder or hub name: full, catekv and the four
#                                                baselines of the papers' tables
#   ./run_baseline.sh MODEL "full snapkv"        other methods (`catekv methods` lists them)
#   ./run_baseline.sh --all [SAMPLES]            embedded model: every method, three memory sizes,
#                                                CateKV also with a random and the reversed mask
#
# Environment and further options: see run_catekv.sh.
set -euo pipefail
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$REPOSITORY/scripts/environment.sh"
help_if_asked "$0" "$@"
. "$REPOSITORY/scripts/evaluate.sh"
BASELINES="full catekv streaming_llm snapkv pyramidkv adakv"
# those that score by all queries read the whole attention matrix, and some keep everything
MORE="h2o dynamickv cam keepkv simcalkv rocketkv quest shadowkv"
if [ "${1:-}" = --all ]; then
  exec "$REPOSITORY/scripts/embedded_baselines.sh" "${@:2}"
fi
if [ $# -ge 2 ] && [ "${1#-}" = "$1" ] && [ "${2#-}" = "$2" ]; then
  model=$1
  METHODS=$2
  shift 2
  set -- "$model" "$@"
fi
if [ -z "${MODEL:-}" ] && { [ $# -eq 0 ] || [ "${1#-}" != "$1" ]; }; then
  BASELINES="$BASELINES $MORE"
fi
METHODS=${METHODS:-$BASELINES}
evaluate "$@"
