#!/usr/bin/env bash
# Evaluate full attention and the baselines; all compressed methods get the memory CateKV uses.
#
#   ./run_baseline.sh                            embedded model: full, catekv, snapkv, streaming_llm
#   ./run_baseline.sh MODEL                      the same for a local folder or hub name
#   ./run_baseline.sh MODEL "full snapkv"        other methods (`catekv methods` lists them)
#
# Environment and further options: see run_catekv.sh.
set -euo pipefail
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$REPOSITORY/scripts/environment.sh"
. "$REPOSITORY/scripts/evaluate.sh"
BASELINES="full catekv snapkv streaming_llm"
if [ $# -ge 2 ] && [ "${1#-}" = "$1" ] && [ "${2#-}" = "$2" ]; then
  model=$1
  METHODS=$2
  shift 2
  set -- "$model" "$@"
fi
METHODS=${METHODS:-$BASELINES}
evaluate "$@"
