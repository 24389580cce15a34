#!/usr/bin/env bash
# Measures docs/results/methods_2026.md: the methods of 2025 and 2026 beside CateKV, SnapKV, AdaKV and
# random choice, at a fifth, a third and half of the cache. Gates, head mask and loss curves are made
# for the model first. It takes hours on two cores (an estimate: one for the embedded model, three for
# SmolLM2); stopped at any moment, it goes on where it was.
#   scripts/recent_methods.sh embedded [SAMPLES]     (default: 50 per task)
#   scripts/recent_methods.sh smollm2 [SAMPLES]
set -euo pipefail
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$REPOSITORY/scripts/environment.sh"
help_if_asked "$0" "$@"
which=${1:-}
samples=${2:-50}
results=results/recent-methods/$which
cd "$REPOSITORY"
case $which in
  embedded)
    prepare_environment
    model=ckpt/embedded
    mask=select_headmask/embedded/chosen
    tasks="ruler/niah_single_2 ruler/niah_multikey_1 ruler/niah_multivalue ruler/vt"
    options="--budget 128"
    ;;
  smollm2)
    scripts/real_model.sh
    prepare_environment gguf
    model=ckpt/SmolLM2-135M-Instruct.Q4_1.gguf
    mask=$results/masks/chosen
    tasks=ruler/niah_single_2 # solved by the full cache, as niah_single_1; the others decide little
    # answers are a number of seven tokens, which comes first or not at all
    options="--budget 128 --init-tokens 16 --recent-tokens 32 --max-new-tokens 16"
    # what scripts/real_model_tables.sh chooses among all k and alpha
    [ -e "$mask/meta.json" ] ||
      "$PYTHON" -m catekv calibrate --model "$model" --length 1024 --samples 12 --budget 128 \
        --init-tokens 16 --recent-tokens 32 --references ruler/vt_dense --k 0.986 --alpha 0.8 \
        --held-out-samples 1 --held-out-tasks ruler/niah_single_2 --output "$results/masks"
    ;;
  *) fail "which model: embedded or smollm2; see $0 --help" ;;
esac
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

curves=$results/curves.npz
[ -e "$curves" ] || "$PYTHON" -m catekv heads curves "$model" --length 1024 --output "$curves"
output_curves=$results/curves-output.npz
[ -e "$output_curves" ] ||
  "$PYTHON" -m catekv heads curves "$model" --length 1024 --loss output --output "$output_curves"
gates=$results/kvzap
[ -e "$gates/config.json" ] ||
  "$PYTHON" -m catekv kvzap train --model "$model" --text prose --length 1024 --samples 48 --output "$gates"

# every method keeps the same share of the entries of all heads together
columns() { # SHARE
  printf '%s ' full
  local method
  for method in catekv random_attention snapkv adakv keydiff knorm tova chunkkv expected_attention \
    criticalkv criticalkv-adakv=criticalkv:base=adakv defensivekv \
    defensivekv-layers=defensivekv:across_layers=true kvzip kvzip-plus=kvzip:plus=true \
    "kvzap:predictor=$gates" attention_matching "curvekv:curves=$curves" \
    "curvekv-output=curvekv:curves=$output_curves"; do
    case $method in
      *:*) printf '%s,keep=%s ' "$method" "$1" ;;
      *) printf '%s:keep=%s ' "$method" "$1" ;;
    esac
  done
}

for question in after inside; do
  for keep in 0.2 0.35 0.5; do
    # shellcheck disable=SC2046,SC2086
    "$PYTHON" -m catekv evaluate --model "$model" --tasks $tasks --lengths 1024 --samples "$samples" \
      --question "$question" $options --mask "$mask" --joint-decode --methods $(columns "$keep") \
      --output "$results/$question-$keep"
  done
done

# shellcheck disable=SC2086
"$PYTHON" -m catekv fidelity --model "$model" --tasks ruler/niah_single_2 --lengths 1024 \
  --samples "$samples" --forced 32 --ratios 0.2 0.35 0.5 --mask "$mask" --budget 128 --init-tokens 16 \
  --recent-tokens 32 --methods catekv random_attention adakv "curvekv:curves=$curves" \
  "curvekv-output=curvekv:curves=$output_curves" --output "$results/fidelity"

# decoding in bounded memory: only the embedded model solves tasks of long answers, in their short form
[ "$which" = embedded ] || exit 0
statistics=$results/triattention.pt
[ -e "$statistics" ] || "$PYTHON" -m catekv triattention --text docs/evaluation.md --output "$statistics"
bounded() { # BUDGET EVERY
  local method
  printf 'streaming_llm:budget=%s random=decoding:base=random_attention,budget=%s,every=%s ' "$1" "$1" "$2"
  for method in keydiff knorm snapkv tova; do
    printf '%s=decoding:base=%s,budget=%s,every=%s ' "$method" "$method" "$1" "$2"
  done
  printf 'r_kv:budget=%s,every=%s ' "$1" "$2"
  printf 'triattention:budget=%s,every=%s,protect_prompt=false,statistics=%s' "$1" "$2" "$statistics"
}
# shellcheck disable=SC2046
"$PYTHON" -m catekv evaluate --tasks reasoning/copy_long reasoning/reverse reasoning/add_chain --lengths 512 \
  --samples "$samples" --joint-decode --methods full h2o:budget=128 $(bounded 128 4) --output "$results/long-128"
# shellcheck disable=SC2046
"$PYTHON" -m catekv fidelity --text prose --tasks none --lengths 896 --samples "$samples" --forced 640 \
  --batch-size 10 --methods $(bounded 192 32) --output "$results/bounded"
