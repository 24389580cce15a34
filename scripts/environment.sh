# Sourced by the run_*.sh scripts: makes or reuses a Python environment with this package in it.
# After `prepare_environment [EXTRAS]`, $PYTHON is the interpreter to use.
#
# That is .venv in the repository, made once. An activated virtual or conda environment is somebody's:
# it is used as it is where catekv is installed in it (catekv.yml), and filled with the pinned packages
# only if CATEKV_USE_ACTIVE=1 says so. A stamp inside the environment, named after the pins, makes
# later calls instant.

ALL_EXTRAS=dev # what the tests need

fail() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

# Where the first argument asks for help: prints the comment that the script opens with, and ends.
help_if_asked() { # SCRIPT [ARGUMENT...]
  case ${2:-} in
    -h | --help)
      sed -n '2,/^[^#]/p' "$1" | grep '^#' | cut -c 3-
      exit
      ;;
  esac
}

find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
}

prepare_environment() {
  local extras=${1:-} base stamp pins log active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
  if [ -n "$active" ] && [ "${CATEKV_USE_ACTIVE:-0}" != 1 ] && [ ! "$active" -ef "$REPOSITORY/.venv" ]; then
    PYTHON=$(find_python)
    ! (cd / && "$PYTHON" -c 'import catekv') >/dev/null 2>&1 || return 0
    printf 'Using .venv: catekv is not installed in %s (CATEKV_USE_ACTIVE=1 installs it there)\n' "$active" >&2
    active=
  fi
  if [ -n "$active" ]; then
    PYTHON=$(find_python)
    [ -n "$PYTHON" ] || fail "the activated environment has no Python 3.10 or newer; activate another one"
  else
    PYTHON=$REPOSITORY/.venv/bin/python
    if ! "$PYTHON" -c 'import pip' >/dev/null 2>&1; then
      base=$(find_python)
      [ -n "$base" ] || fail "Python 3.10 or newer was not found; install it and run this again"
      printf 'Making the virtual environment .venv with %s\n' "$("$base" --version 2>&1)"
      "$base" -m venv --clear "$REPOSITORY/.venv" >/dev/null 2>&1 ||
        fail "cannot make .venv (no write permission, or the venv module is missing: on Debian and Ubuntu install python3-venv)"
    fi
  fi

  pins=$(cat "$REPOSITORY/constraints.txt" "$REPOSITORY/pyproject.toml" | cksum | cut -d ' ' -f 1)
  stamp=$("$PYTHON" -c 'import sys; print(sys.prefix)')/.catekv
  # an environment for the tests holds everything that the other scripts need
  [ ! -e "$stamp-$ALL_EXTRAS-$pins" ] || extras=$ALL_EXTRAS
  stamp=$stamp-$extras-$pins
  if [ ! -e "$stamp" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$REPOSITORY" ]; then
    printf 'Installing catekv and its pinned dependencies (once; minutes, most of it is torch)\n'
    log=$(mktemp)
    "$PYTHON" -m pip install --disable-pip-version-check --no-warn-script-location \
      --constraint "$REPOSITORY/constraints.txt" --editable "$REPOSITORY${extras:+[$extras]}" 2>&1 |
      tee "$log" | { grep --line-buffered -E '^ *(Collecting|Downloading|Installing|ERROR)' || true; } |
      cut -c 1-100 ||
      fail "installation failed: $(grep -m 1 '^ERROR' "$log" || tail -n 1 "$log"); whole log: $log"
    rm -f "$log"
    printf '%s' "$REPOSITORY" >"$stamp" || fail "cannot write $stamp; make the environment writable"
  fi
}
