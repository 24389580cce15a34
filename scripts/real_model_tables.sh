#!/usr/bin/env bash
# Measures docs/results/smollm2.md on SmolLM2-135M-Instruct: its head masks, needles at half, a third
# and a fifth of the cache with the question after and inside what is compressed, at 1024 to 4096
# tokens, and fidelity to the full cache on text and on its own answers.
# Two quiet cores need about eight hours for 50 samples (an estimate); stopped at any moment, it goes on where it was.
#   scripts/real_model_tables.sh [SAMPLES]         (default: 50 per task)
set -euo pipefail
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$REPOSITORY/scripts/environment.sh"
help_if_asked "$0" "$@"
"$REPOSITORY/scripts/real_model.sh"
prepare_environment gguf
cd "$REPOSITORY"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

samples=${1:-50}
model=ckpt/SmolLM2-135M-Instruct.Q4_1.gguf
results=results/smollm2
masks=$results/masks
edges=init_tokens=16,recent_tokens=32
others="snapkv pyramidkv adakv h2o streaming_llm keydiff simcalkv quest"
scores=$results/cokv predictor=$results/atskv ablation=$results/ablation

# tasks that the full cache solves at this length; the others decide nothing
if [ ! -e "$masks/report.md" ]; then
  "$PYTHON" -m catekv calibrate --model "$model" --length 1024 --samples 12 --budget 128 \
    --init-tokens 16 --recent-tokens 32 --held-out-samples 4 --output "$masks" \
    --held-out-tasks ruler/niah_single_2 ruler/niah_single_3 ruler/niah_multikey_1
fi

# what CoKV, ATSKV and the per-head ablation have to know of the model, from samples of other seeds
[ -e "$scores/scores.npz" ] ||
  "$PYTHON" -m catekv cokv score --model "$model" --task ruler/niah_single_2 --length 320 --samples 4 \
    --slices 30 45 --max-draws 15 --question agnostic --batch-size 16 --seed 7 --output "$scores"
[ -e "$predictor/predictor.json" ] ||
  "$PYTHON" -m catekv atskv train --model "$model" --task ruler/niah_single_2 --lengths 512 \
    --samples 12 --held-out 2 --seed 7 --no-plot --output "$predictor"
[ -e "$ablation/report.md" ] ||
  "$PYTHON" -m catekv calibrate --model "$model" --length 512 --samples 4 --budget 128 \
    --init-tokens 16 --recent-tokens 32 --references ruler/vt_dense --k 0.986 --alpha 0.8 \
    --held-out-samples 2 --held-out-tasks ruler/niah_single_2 --oracle --output "$ablation"

# the answer is a number of seven digits, one token each, and comes first or not at all: 32 tokens
# instead of the task's 128
needles() { # RATIO BUDGET QUESTION
  # shellcheck disable=SC2086
  "$PYTHON" -m catekv evaluate --model "$model" --tasks ruler/niah_single_2 --lengths 1024 \
    --samples "$samples" --question "$3" --ratio "$1" --budget "$2" --joint-decode --max-new-tokens 32 \
    --methods full "catekv:$edges" $others --mask chosen="$masks/chosen" --mask reversed \
    --mask random:0 --mask random:1 --mask random:2 --output "$results/needles-r$1-$3"
}
trained() { # RATIO BUDGET QUESTION
  "$PYTHON" -m catekv evaluate --model "$model" --tasks ruler/niah_single_2 --lengths 1024 \
    --samples "$samples" --question "$3" --ratio "$1" --budget "$2" --joint-decode --max-new-tokens 32 \
    --methods full "catekv:$edges" "cokv:scores=$scores/scores.npz" \
    "atskv:predictor=$predictor,preset=recommended" --mask ablation="$ablation/oracle" \
    --output "$results/trained-r$1-$3"
}

# r, and b beside the 48 edges: about 50, 35 and 20 % of 1024 tokens
needles 0.4 128 after
needles 0.4 128 inside
needles 0.25 96 after
needles 0.1 64 after
trained 0.4 128 after
trained 0.4 128 inside
trained 0.25 96 after
trained 0.1 64 after

# longer texts: masks, predictor and scores as above, every column at three shares of the entries
longer() { # LENGTH QUESTION
  local share method columns=(full)
  for share in 20 35 50; do
    for method in chosen reversed random-0 random-1 random-2 ablation; do
      columns+=("catekv-$method-$share=catekv:mask=$method,$edges,keep=0.$share")
    done
    for method in $others; do
      columns+=("$method-$share=$method:keep=0.$share")
    done
    columns+=("cokv-$share=cokv:scores=$scores/scores.npz,keep=0.$share"
      "atskv-$share=atskv:predictor=$predictor,preset=recommended,keep=0.$share")
  done
  "$PYTHON" -m catekv evaluate --model "$model" --tasks ruler/niah_single_2 --lengths "$1" \
    --samples "$samples" --question "$2" --budget 128 --joint-decode --max-new-tokens 16 \
    --methods "${columns[@]}" --mask chosen="$masks/chosen" --mask reversed \
    --mask random:0 --mask random:1 --mask random:2 --mask ablation="$ablation/oracle" \
    --output "$results/long-$1-$2"
}
for question in after inside; do
  for length in 2048 4096; do
    longer "$length" "$question"
  done
done

# how far every column is from the full cache, on prose and on the full model's own answers: at three
# shares of the entries, and CateKV in the layout of the needles at 19 %
closeness() { # NAME METHODS [OPTION...]
  local name=$1 methods=$2
  shift 2
  # shellcheck disable=SC2086
  "$PYTHON" -m catekv fidelity --model "$model" --tasks ruler/niah_single_2 --lengths 1024 \
    --samples "$samples" --forced 32 --methods $methods --mask chosen="$masks/chosen" --mask reversed \
    --mask random:0 --mask random:1 --mask random:2 --mask ablation="$ablation/oracle" \
    --output "$results/$name" "$@"
}
closeness fidelity "catekv:$edges $others cokv:scores=$scores/scores.npz
  atskv:predictor=$predictor,preset=recommended" --ratios 0.2 0.35 0.5 --budget 128
columns=()
for mask in chosen reversed random-0 random-1 random-2 ablation; do
  columns+=("$mask-r0.1=catekv:mask=$mask,ratio=0.1,budget=64,$edges")
done
closeness fidelity-r0.1 "${columns[*]}"
