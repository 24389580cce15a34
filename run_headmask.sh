#!/usr/bin/env bash
# Make head masks for a model: a reference pass, a sweep of percentile k and scale alpha over
# several reference texts, a score for every candidate on held-out samples, masks, and a report
# with a picture of the heads.
#
#   ./run_headmask.sh                   embedded model
#   ./run_headmask.sh MODEL --length 131072 --samples 50
#
# Options of `catekv calibrate` may follow MODEL; `catekv calibrate --help` lists them.
set -euo pipefail
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$REPOSITORY/scripts/environment.sh"
help_if_asked "$0" "$@"
prepare_environment
MODEL=${MODEL:-}
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
  MODEL=$1
  shift
fi
cd "$REPOSITORY"
exec "$PYTHON" -m catekv calibrate ${MODEL:+--model "$MODEL"} "$@"
