#!/usr/bin/env bash
# Build RULER files for a model, in the official form.
#   data/ruler/create_dataset.sh MODEL TEMPLATE [options of prepare.py]      (TEMPLATE may be auto)
#   data/ruler/create_dataset.sh meta-llama/Llama-3.1-8B-Instruct llama-3 --lengths 32768
# The options are listed by: python data/ruler/prepare.py --help
set -euo pipefail
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
. "$REPOSITORY/scripts/environment.sh"
help_if_asked "$0" "$@"
[ $# -ge 2 ] || fail "give MODEL and TEMPLATE; see $0 --help"
[ -n "${PYTHON:-}" ] || prepare_environment
exec "$PYTHON" "$REPOSITORY/data/ruler/prepare.py" "$@"
