#!/usr/bin/env bash
# Set-up if needed, then lint, types and the test suite.
#   ./run_tests.sh            everything that is fast            (what CI calls)
#   ./run_tests.sh --slow     everything that is slow instead
#   ./run_tests.sh --oldest   kernel, cache and model tests on the oldest transformers and triton
#   other arguments go to pytest (-n 0: in one process)
set -euo pipefail
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$REPOSITORY/scripts/environment.sh"
help_if_asked "$0" "$@"
cd "$REPOSITORY"

OLDEST_TRANSFORMERS=5.17.0
OLDEST_TRITON=3.6.0
INTERPRETED_NUMPY="numpy<2.4" # the newest that the interpreter of that triton runs with
# tensors are tiny and kernels interpreted: processes share the cores, threads only wait
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
arguments=(--numprocesses auto --maxprocesses 8 --dist worksteal)
oldest=false
for argument in "$@"; do
  case $argument in
    --slow) arguments+=(-m "slow and not gpu") ;;
    --oldest) oldest=true ;;
    *) arguments+=("$argument") ;;
  esac
done

if $oldest; then
  # Its own environment: the newest and the oldest transformers cannot live in one.
  base=$(find_python)
  [ -n "$base" ] || fail "Python 3.10 or newer was not found; install it and run this again"
  [ -x .venv-oldest/bin/python ] || "$base" -m venv .venv-oldest
  # packages that transformers itself bounds come in the versions it wants
  grep -vE '^(transformers|huggingface_hub|hf-xet|tokenizers|safetensors|triton|numpy)==' constraints.txt \
    >.venv-oldest/constraints.txt
  .venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
    --constraint .venv-oldest/constraints.txt "transformers==$OLDEST_TRANSFORMERS" \
    "triton==$OLDEST_TRITON" "$INTERPRETED_NUMPY" --editable ".[dev]"
  exec .venv-oldest/bin/python -m pytest test/kernels test/models test/cache test/prefill test/decode \
    test/methods "${arguments[@]}"
fi

prepare_environment "$ALL_EXTRAS"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
"$PYTHON" -m pytest "${arguments[@]}"
