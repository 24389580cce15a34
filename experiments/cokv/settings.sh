# Defaults of all experiments; sourced by run_*.sh with the model as first argument. Every value can
# be set from outside: SAMPLES=20 TASKS="longbench/qasper longbench/lcc" bash run_longbench.sh
set -euo pipefail
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
. "$REPOSITORY/scripts/environment.sh"
help_if_asked "$0" "$@"
cd "$REPOSITORY"
model="${1:-}"
[ -n "${PYTHON:-}" ] || prepare_environment
python=$PYTHON
all_tasks="narrativeqa qasper multifieldqa_en hotpotqa 2wikimqa musique gov_report qmsum multi_news"
all_tasks="$all_tasks trec triviaqa samsum passage_count passage_retrieval_en lcc repobench-p"
longbench() { for task in $1; do printf 'longbench/%s ' "$task"; done; }

if [ -z "$model" ] || [ "$(basename "$model")" = embedded ]; then
    # the embedded model: rows made by this repository, in minutes on two cores
    : "${TASKS:=$(longbench "$all_tasks")}"
    : "${LENGTH:=512}" "${SAMPLES:=60}" "${CAPACITIES:=16 24 32 64}" "${ALPHAS:=1 2 4 8 12 14}"
    : "${NEEDLE_LENGTHS:=256 512 768 1024 1536 2048}" "${NEEDLE_SCORED:=512 1024}" "${DEPTHS:=10}"
    : "${TASK_OPTIONS=--task-option source=built-in}" "${QUESTION:=agnostic}" "${BATCH:=64}"
    : "${LATENCY_PROMPT:=4096}" "${LATENCY_OUTPUTS:=1 64 128 256}" "${LATENCY_CONTEXTS:=1024 2048 4096}"
    : "${MAX_DRAWS:=60}"
    name=embedded
else
    : "${TASKS:=$(longbench "$all_tasks")}"
    : "${LENGTH:=8000}" "${SAMPLES:=200}" "${CAPACITIES:=64 128 256 512 1024}"
    : "${ALPHAS:=1 5 10 15 20 30 40}"
    : "${NEEDLE_LENGTHS:=$(seq -s ' ' 1000 1000 31000)}" "${NEEDLE_SCORED:=$(seq -s ' ' 1000 2500 31000)}"
    : "${DEPTHS:=10}" "${TASK_OPTIONS=}" "${QUESTION:=published}" "${BATCH:=16}"
    : "${LATENCY_PROMPT:=28000}" "${LATENCY_OUTPUTS:=1 512 1024 2048 4096}"
    : "${LATENCY_CONTEXTS:=1000 2000 4000 8000 16000 32000}" "${MAX_DRAWS:=500}"
    name="$(basename "$model")"
fi
: "${SEED:=42}" "${RESULTS:=results/cokv/$name}" "${TOLERANCE:=}"
model_arguments=()
if [ -n "$model" ]; then model_arguments=(--model "$model"); fi
common=("${model_arguments[@]}" --seed "$SEED" --question "$QUESTION" --batch-size "$BATCH")
tolerance=()
if [ -n "$TOLERANCE" ]; then tolerance=(--tolerance "$TOLERANCE"); fi

split_and_score() {
    # $1 folder, then the tasks: the split, and the scores of its validation samples
    local folder="$1"; shift
    # shellcheck disable=SC2086
    "$python" experiments/cokv/split.py "${model_arguments[@]}" --tasks "$@" --length "$LENGTH" \
        --samples "$SAMPLES" --seed "$SEED" $TASK_OPTIONS --output "$folder/split.json"
    "$python" experiments/cokv/score.py "${common[@]}" --tasks "$@" --split "$folder/split.json" \
        --max-draws "$MAX_DRAWS" "${tolerance[@]}" --output "$folder/scores"
}
