# Sourced by run_catekv.sh and run_baseline.sh after environment.sh: turns MODEL, the environment
# variables and further options into one `catekv evaluate` command.

evaluate() {
  local model=${MODEL:-} arguments=()
  if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    model=$1
    shift
  fi
  help_if_asked "$0" "$@"
  prepare_environment
  # word splitting is meant below: these variables hold lists
  # shellcheck disable=SC2206
  {
    [ -z "$model" ] || arguments+=(--model "$model")
    arguments+=(--methods $METHODS)
    [ -z "${TASKS:-}" ] || arguments+=(--tasks $TASKS)
    [ -z "${LENGTHS:-}" ] || arguments+=(--lengths $LENGTHS)
    [ -z "${SAMPLES:-}" ] || arguments+=(--samples "$SAMPLES")
    [ -z "${MASK:-}" ] || arguments+=(--mask "$MASK")
    [ -z "${RATIO:-}" ] || arguments+=(--ratio "$RATIO")
    [ -z "${ETA:-}" ] || arguments+=(--retention "$ETA")
    [ -z "${BUDGET:-}" ] || arguments+=(--budget "$BUDGET")
    [ -z "${OUTPUT:-}" ] || arguments+=(--output "$OUTPUT")
  }
  cd "$REPOSITORY"
  if [ "${GPUS:-1}" -gt 1 ]; then
    exec "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$GPUS" \
      -m catekv evaluate "${arguments[@]}" "$@"
  fi
  exec "$PYTHON" -m catekv evaluate --make-masks "${arguments[@]}" "$@"
}
