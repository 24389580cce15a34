#!/usr/bin/env bash
# Build RULER files for a model:  data/ruler/create_dataset.sh MODEL TEMPLATE [options of prepare.py]
# Example: data/ruler/create_dataset.sh meta-llama/Llama-3.1-8B-Instruct llama-3 --lengths 32768
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [[ $# -lt 2 && "${1:-}" != "-h" && "${1:-}" != "--help" ]]; then
    echo "usage: data/ruler/create_dataset.sh MODEL TEMPLATE [options]; TEMPLATE may be auto" >&2
    exit 2
fi
python="${PYTHON:-}"
if [[ -z "$python" ]]; then
    python="$here/../../.venv/bin/python"
    if [[ -n "${VIRTUAL_ENV:-}" || -n "${CONDA_PREFIX:-}" || ! -x "$python" ]]; then
        python=python3
    fi
fi
exec "$python" "$here/prepare.py" "$@"
