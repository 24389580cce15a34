# Sourced by run_catekv.sh and run_baseline.sh after environment.sh: turns MODEL, the environment
# variables and further options into one `catekv evaluate` command.

evaluate() {
  local model=${MODEL:-} gpus=${GPUS:-1} arguments=()
  if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    [ -n "$1" ] || fail 'MODEL is empty; give a folder, a .gguf file or a hub name, or leave it out'
    model=$1
    shift
  fi
  help_if_asked "$0" "$@"
  case $gpus in
    0* | *[!0-9]*) fail "GPUS=$gpus is no number of processes; give 1 or more" ;;
  esac
  # paths mean what they mean where the script was called
  if [ "$PWD" != "$REPOSITORY" ]; then
    [ ! -e "$model" ] || model=$(realpath "$model")
    [ ! -e "${MASK:-}" ] || MASK=$(realpath "$MASK")
    [ -z "${OUTPUT:-}" ] || case $OUTPUT in /*) ;; *) OUTPUT=$PWD/$OUTPUT ;; esac
  fi
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
  if [ "$gpus" -gt 1 ]; then
    exec "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$gpus" \
      -m catekv evaluate "${arguments[@]}" "$@"
  fi
  exec "$PYTHON" -m catekv evaluate --make-masks "${arguments[@]}" "$@"
}
