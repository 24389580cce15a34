#!/usr/bin/env bash
# Measures docs/results/methods_2026.md: the methods of 2025 and 2026 beside CateKV, SnapKV, AdaKV and
# random choice, at a fifth, a third and half of the cache. Gates, head mask and loss curves are made
# for the model first. It takes hours on two cores (an estimate: one for the embedded model, four for
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

curve_columns="curvekv:curves=$curves curvekv-output=curvekv:curves=$output_curves"
all="catekv random_attention snapkv adakv keydiff knorm tova chunkkv expected_attention criticalkv
  criticalkv-adakv=criticalkv:base=adakv defensivekv defensivekv-layers=defensivekv:across_layers=true
  kvzip kvzip-plus=kvzip:plus=true kvzap:predictor=$gates attention_matching $curve_columns"

# every method keeps the same share of the entries of all heads together
table() { # NAME SHARE QUESTION LENGTH TASKS METHODS
  local name=$1 share=$2 question=$3 length=$4 tasks=$5 method
  local columns=(full)
  for method in $6; do
    case $method in
      *:*) columns+=("$method,keep=$share") ;;
      *) columns+=("$method:keep=$share") ;;
    esac
  done
  # shellcheck disable=SC2086
  "$PYTHON" -m catekv evaluate --model "$model" --tasks $tasks --lengths "$length" \
    --samples "$samples" --question "$question" $options --mask "$mask" --joint-decode \
    --methods "${columns[@]}" --output "$results/$name"
}

for question in after inside; do
  for keep in 0.2 0.35 0.5; do
    table "$question-$keep" "$keep" "$question" 1024 "$tasks" "$all"
  done
done
if [ "$which" = smollm2 ]; then
  # the other task that it solves, and longer prompts with the mask and the curves of 1024 tokens
  some="catekv random_attention snapkv adakv keydiff streaming_llm $curve_columns"
  table single_1-0.35 0.35 after 1024 ruler/niah_single_1 "h2o $some"
  table after-2048-0.35 0.35 after 2048 "$tasks" "$some"
  table after-4096-0.35 0.35 after 4096 "$tasks" "$some"
fi

closeness() { # NAME METHODS [OPTION...]
  local name=$1 methods=$2
  shift 2
  # shellcheck disable=SC2086
  "$PYTHON" -m catekv fidelity --model "$model" --tasks ruler/niah_single_2 --lengths 1024 \
    --samples "$samples" --forced 32 --ratios 0.2 0.35 0.5 --methods $methods --output "$results/$name" "$@"
}
closeness fidelity "catekv random_attention adakv $curve_columns" \
  --mask "$mask" --budget 128 --init-tokens 16 --recent-tokens 32

if [ "$which" = smollm2 ]; then
  # those of scripts/real_model_tables.sh are measured there
  closeness fidelity-others "kvzip tova chunkkv criticalkv criticalkv-adakv=criticalkv:base=adakv
    defensivekv defensivekv-layers=defensivekv:across_layers=true expected_attention knorm
    kvzip-plus=kvzip:plus=true kvzap:predictor=$gates attention_matching"

  # curves of one kind of text each
  for text in prose ruler/niah_multikey_1; do
    one=$results/curves-${text##*/}.npz
    [ -e "$one" ] ||
      "$PYTHON" -m catekv heads curves "$model" --length 1024 --texts "$text" --samples 8 --output "$one"
    for keep in 0.2 0.35; do
      table "curves-${text##*/}-$keep" "$keep" after 1024 "$tasks" "curvekv:curves=$one"
    done
    closeness "fidelity-curves-${text##*/}" "curvekv:curves=$one"
  done
fi

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
