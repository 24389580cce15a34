#!/usr/bin/env bash
# Measures docs/results/smollm2.md on SmolLM2-135M-Instruct: its head masks, needles at half of the
# cache with the question after and inside what is compressed, and fidelity to the full cache.
# Two quiet cores need about two hours for 50 samples; stopped at any moment, it goes on where it was.
#   scripts/real_model_tables.sh [SAMPLES]         (default: 50 per task)
set -euo pipefail
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in
  -h | --help) sed -n '2,/^set -e/p' "$0" | grep '^#' | cut -c 3- && exit ;;
esac
"$REPOSITORY/scripts/real_model.sh"
. "$REPOSITORY/scripts/environment.sh"
prepare_environment gguf
cd "$REPOSITORY"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

samples=${1:-50}
model=ckpt/SmolLM2-135M-Instruct.Q4_1.gguf
results=results/smollm2
masks=$results/masks
edges=(--init-tokens 16 --recent-tokens 32)

# tasks that the full cache solves at this length; the others decide nothing
if [ ! -e "$masks/report.md" ]; then
  "$PYTHON" -m catekv calibrate --model "$model" --length 1024 --samples 12 --budget 128 \
    "${edges[@]}" --held-out-samples 4 --output "$masks" \
    --held-out-tasks ruler/niah_single_2 ruler/niah_single_3 ruler/niah_multikey_1
fi

# r 0.4 and 128 + 48 tokens: half of 1024
for question in agnostic aware; do
  "$PYTHON" -m catekv evaluate --model "$model" --tasks ruler/niah_single_2 ruler/niah_single_3 \
    --lengths 1024 --samples "$samples" --question "$question" --ratio 0.4 --budget 128 \
    --methods full catekv:init_tokens=16,recent_tokens=32 snapkv adakv streaming_llm quest \
    --mask chosen="$masks/chosen" --mask reversed --mask random:0 --mask random:1 \
    --output "$results/needles-$question"
done
