"""The commands of experiments/simcalkv, end to end on the embedded model."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from catekv import tasks
from catekv.models import embedded
from catekv.tasks.core.prompt import encode
from experiments.simcalkv.results import COLUMNS

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "simcalkv"
MODEL = str(embedded.path())


def script(name: str) -> ModuleType:
    """A command's file as a module."""
    specification = importlib.util.spec_from_file_location(
        f"simcalkv_{name}", FOLDER / f"{name}.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run(name: str, *words: object) -> int:
    arguments = ["--model_name", MODEL, "--device", "cpu", *map(str, words)]
    return int(script(name).main(arguments))


@pytest.fixture
def articles(tmp_path: Path) -> Path:
    """Local rows of CNN/DailyMail in words that the model knows."""
    file = tmp_path / "data" / "cnn_dailymail.jsonl"
    file.parent.mkdir()
    rows = [
        {
            "id": f"story-{number}",
            "article": f"the farmer found a book near the river . {'the dog slept . ' * 30}",
            "highlights": "the farmer found a book .",
        }
        for number in range(4)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_the_published_command_from_local_rows(articles: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CATEKV_DATA", str(articles.parent))
    output = tmp_path / "out"
    code = run(
        "llama_eval", "--dataset", "cnn_dailymail", "--split", "test[1:3]", "--compress_ratio", 0.4,
        "--kv_method", "SimCalKV", "--max_new_tokens", 8, "--output_dir", output,
    )  # fmt: skip
    assert code == 0
    with (output / "llama_results_cnn_dailymail_SimCalKV_0.4.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    assert [row["id"] for row in rows] == ["story-1", "story-2"]
    assert {row["reference"] for row in rows} == {"the farmer found a book ."}
    assert {row["ratio"] for row in rows} == {"0.4"}
    for row in rows:
        assert float(row["memory_after_MB"]) < 0.7 * float(row["memory_before_MB"])
        assert float(row["time_before_s"]) > 0
        assert row["answer_before"]
    found = json.loads((output / "llama_cnn_dailymail_SimCalKV_0.4.json").read_text())
    assert set(found["metrics_before"]["rouge"]) == {"rouge1", "rouge2", "rougeL", "rougeLsum"}
    assert found["kept_share"] == pytest.approx(0.6, abs=0.01)
    assert found["settings"]["data"].startswith("file:cnn_dailymail.jsonl:")
    assert found["means"]["time_after_s"] == pytest.approx(found["sums"]["time_after_s"] / 2)


def test_ratio_nothing_is_the_identity(tmp_path: Path) -> None:
    for method in ("SimCalKV", "simcalkv_pyramidinfer"):
        code = run(
            "llama_eval", "--dataset", "trec", "--source", "built-in", "--split", "test[:2]",
            "--compress_ratio", 0, "--kv_method", method, "--max_input_tokens", 200,
            "--max_new_tokens", 6, "--output_dir", tmp_path,
        )  # fmt: skip
        assert code == 0
        (name,) = tmp_path.glob(f"llama_trec_{method}_0.json")
        found = json.loads(name.read_text())
        assert found["same_answers"] == 2
        assert found["metrics_before"] == found["metrics_after"]


def test_a_run_that_was_cut_short_goes_on(tmp_path: Path, monkeypatch, capsys) -> None:
    from experiments.simcalkv import comparison

    words = [
        "llama_eval", "--dataset", "piqa", "--source", "built-in", "--split", "test[:3]",
        "--compress_ratio", 0.4, 0.4, "--output_dir", tmp_path,
    ]  # fmt: skip
    measure, read = comparison.measure, []

    def counted(model, example, method):
        read.append(example.identifier)
        if len(read) == stop:
            raise KeyboardInterrupt
        return measure(model, example, method)

    monkeypatch.setattr(comparison, "measure", counted)
    stop = 8  # the first row twice as warm-up and twice measured, the second, half of the third
    assert run(*words) == 130
    assert read == ["0", "0", "0", "0", "1", "1", "2", "2"]
    (journal,) = tmp_path.iterdir()
    first, second = journal.read_text().splitlines()
    journal.write_text(f"{first}\n{second}\n{second[:40]}")  # killed while it wrote
    read.clear()
    stop = 0
    assert run(*words, "--seed", 1) == 0  # another run: nothing of the first is taken or lost
    assert read == ["0", "0", "0", "0", "1", "1", "2", "2"]
    assert journal.exists()
    read.clear()
    assert run(*words) == 0
    assert read == ["0", "0", "2", "2"]
    assert not journal.exists()
    details = (tmp_path / "llama_results_piqa_SimCalKV_0.4.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in details]
    assert [sample["id"] for sample in kept] == ["0", "1", "2"]
    assert [kept[0]["before"], kept[0]["after"]] == json.loads(first)["value"]
    assert json.loads((tmp_path / "llama_piqa_SimCalKV_0.4.json").read_text())["samples"] == 3


def test_memory_counts_the_answer_too(tmp_path: Path) -> None:
    code = run(
        "llama_eval", "--dataset", "hotpotqa", "--source", "built-in", "--split", "test[:1]",
        "--compress_ratio", 0.5, "--max_input_tokens", 200, "--max_new_tokens", 5,
        "--output_dir", tmp_path,
    )  # fmt: skip
    assert code == 0
    (details,) = tmp_path.glob("*.jsonl")
    sample = json.loads(details.read_text())
    tokens, steps = sample["prompt_tokens"], sample["before"]["steps"]
    # 4 layers with 4 heads of size 32 in float32
    per_token = 2 * 4 * 4 * 32 * 4 / 2**20
    bookkeeping = 0.01 * tokens * per_token
    before, after = sample["before"]["memory_mb"], sample["after"]["memory_mb"]
    assert 0 <= before - (tokens + steps) * per_token < bookkeeping
    steps = sample["after"]["steps"]
    kept = tokens - tokens // 2 + steps
    assert 0 <= after - kept * per_token < bookkeeping


def test_choices_are_answered_from_the_context(tmp_path: Path) -> None:
    code = run(
        "llama_eval", "--dataset", "piqa", "--source", "built-in", "--split", "test[:4]",
        "--compress_ratio", 0.4, "--calibration", "all", "--output_dir", tmp_path,
    )  # fmt: skip
    assert code == 0
    summaries = sorted(path.name for path in tmp_path.glob("*.json"))
    assert summaries == [
        "llama_piqa_SimCalKV-logit_0.4.json",
        "llama_piqa_SimCalKV-none_0.4.json",
        "llama_piqa_SimCalKV_0.4.json",
    ]
    for name in summaries:
        found = json.loads((tmp_path / name).read_text())
        assert found["metrics_before"] == {"accuracy": 1.0}
    details = (tmp_path / "llama_results_piqa_SimCalKV_0.4.jsonl").read_text().splitlines()
    for line in details:
        sample = json.loads(line)
        right = sample["choices"].index(sample["references"][0])
        scores = sample["before"]["choice_scores"]
        assert max(scores) == scores[right] < 0


def test_prompts_are_read_whole_and_once(tmp_path: Path) -> None:
    """The compressed prompt is what encoding the task's sample gives."""
    from experiments.simcalkv.benchmarks import Reading, load
    from experiments.simcalkv.split import Split

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    reading = Reading(200, 6, source="built-in")
    (example,) = load("2wikimqa", Split.parse("test[1:2]"), tokenizer, reading)
    sample = tasks.build(
        "longbench/2wikimqa", tokenizer, 206, 2, source="built-in", max_answer_tokens=6
    )[1]
    assert example.context_ids == encode(sample, tokenizer).ids
    assert len(example.context_ids) <= 200


@pytest.mark.parametrize(
    ("kind", "name"), [("qwen3", "qwen"), ("mistral", "mistral"), ("gemma3_text", "gemma3_text")]
)
def test_any_causal_model(kind: str, name: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    config = AutoConfig.for_model(
        kind,
        vocab_size=2029,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=7 if kind == "gemma3_text" else 2,  # one layer of full attention
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    words = ["--model_name", folder, "--source", "built-in", "--split", "test[:1]"]
    words += ["--calibration", "logit", "--max_input_tokens", 200, "--max_new_tokens", 6]
    for dataset in ("hotpotqa", "winogrande"):
        code = script("llama_eval").main(
            [*map(str, words), "--dataset", dataset, "--output_dir", str(tmp_path)]
        )
        assert code == 0
        found = json.loads((tmp_path / f"{name}_{dataset}_SimCalKV-logit_0.4.json").read_text())
        assert found["kept_share"] == pytest.approx(0.6, abs=0.02)
        assert not found["failed"]


def test_the_sweep_draws_scores_against_the_ratio(tmp_path: Path) -> None:
    code = run(
        "sweep", "--dataset", "xsum", "--source", "built-in", "--split", "test[:2]",
        "--compress_ratio", 0.2, 0.8, "--kv_method", "SimCalKV", "KeepKV", "PyramidInfer",
        "--calibration", "none", "logit", "--max_input_tokens", 200, "--max_new_tokens", 8,
        "--output_dir", tmp_path,
    )  # fmt: skip
    assert code == 0
    with (tmp_path / "sweep_xsum.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["method"], row["ratio"]) for row in rows] == [
        ("full", "0.0"),
        ("SimCalKV-none", "0.2"),
        ("SimCalKV-logit", "0.2"),
        ("SimCalKV-none", "0.8"),
        ("SimCalKV-logit", "0.8"),
        ("KeepKV", "0.2"),
        ("KeepKV", "0.8"),
        ("PyramidInfer", "0.2"),
        ("PyramidInfer", "0.8"),
    ]
    assert all(row["rouge1"] for row in rows[:7])
    assert rows[8]["rouge1"] == ""  # four layers: its first ones keep too much
    assert float(rows[3]["kept_share"]) == pytest.approx(0.2, abs=0.01)
    lines = [json.loads(x) for x in (tmp_path / "sweep_xsum.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["0", "1"]
    assert [one["method"] for one in lines[0]["answers"]] == [row["method"] for row in rows[:7]]
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {
        f"sweep_xsum_{kind}.png" for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum")
    }


def test_a_sweep_that_was_cut_short_goes_on(tmp_path: Path, monkeypatch, capsys) -> None:
    from experiments.simcalkv import sweep_command

    words = [
        "sweep", "--dataset", "piqa", "--source", "built-in", "--split", "test[:2]", "--no_plots",
        "--compress_ratio", 0.5, "--output_dir", tmp_path,
    ]  # fmt: skip
    answer, read = sweep_command.answer_of, []

    def counted(model, context, example):
        read.append(example.identifier)
        if len(read) == stop:
            raise KeyboardInterrupt
        return answer(model, context, example)

    monkeypatch.setattr(sweep_command, "answer_of", counted)
    stop = 4
    assert run(*words) == 130
    assert read == ["0", "0", "1", "1"]
    read.clear()
    stop = 0
    assert run(*words) == 0
    assert read == ["1", "1"]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"sweep_piqa.csv", "sweep_piqa.json", "sweep_piqa.jsonl"}
    found = json.loads((tmp_path / "sweep_piqa.json").read_text())
    found["model_name"] = "another"
    (tmp_path / "sweep_piqa.json").write_text(json.dumps(found))
    assert run(*words) == 2
    assert "holds results of another, not of" in capsys.readouterr().err


def test_evidence_that_was_cut_short_goes_on(tmp_path: Path, monkeypatch, capsys) -> None:
    from experiments.simcalkv import evidence_accuracy

    chosen = ("simcalkv, logit", "snapkv")
    few = {name: evidence_accuracy.COMPARED[name] for name in chosen}
    monkeypatch.setattr(evidence_accuracy, "COMPARED", few)
    monkeypatch.setattr(evidence_accuracy, "EMBEDDED_TASKS", ("ruler/niah_single_1", "ruler/vt"))
    score, read = evidence_accuracy.score_methods, []

    def counted(model, samples, compared, questions):
        read.append((samples[0].task, questions[0]))
        if len(read) == stop:
            raise KeyboardInterrupt
        return score(model, samples, compared, questions)

    monkeypatch.setattr(evidence_accuracy, "score_methods", counted)
    stop = 3
    words = ["accuracy", "--samples", "1", "--output_dir", str(tmp_path)]
    assert script("evidence").main(words) == 130
    read.clear()
    stop = 0
    assert script("evidence").main(words) == 0
    assert read == [("ruler/vt", "agnostic"), ("ruler/vt", "aware")]
    assert [path.name for path in tmp_path.iterdir()] == ["accuracy.json"]
    rows = json.loads((tmp_path / "accuracy.json").read_text())["rows"]
    assert {(row["method"], row["ratio"]) for row in rows} == {
        (name, ratio) for name in chosen for ratio in (0.4, 0.8)
    }
    assert len(rows) == 8
    assert {row["samples"] for row in rows} == {2}


def test_the_analyses_write_numbers_and_pictures(tmp_path: Path) -> None:
    code = run(
        "analyse", "--dataset", "openbookqa", "--source", "built-in", "--layer", 1, "--head", 3,
        "--decode_tokens", 5, "--output_dir", tmp_path,
    )  # fmt: skip
    assert code == 0
    found = json.loads((tmp_path / "analysis.json").read_text())
    assert (found["decoded_tokens"], found["layer"], found["kv_head"]) == (5, 1, 3)
    tokens = found["prompt_tokens"] + 5
    assert found["attention"]["weights"] == tokens * (tokens + 1) // 2
    with (tmp_path / "query_sums.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 4 * 8
    with (tmp_path / "similar_keys.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == tokens
    assert float(rows[9]["cosine_1"]) >= float(rows[9]["cosine_5"])
    pictures = {path.stem for path in tmp_path.glob("*.png")}
    assert pictures == {
        "attention_histogram", "attention_map", "key_cosine", "key_distance", "query_sums",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "squad"], "unknown dataset 'squad'"),
        (["--compress_ratio", "1.5"], "ratio 1.5 is outside [0, 1]"),
        (["--similarity_threshold", "1.2"], "threshold 1.2 is outside [-1, 1]"),
        (["--kv_method", "KeepCV"], "unknown method 'keepcv'"),
        (["--kv_method", "KeepKV", "CaM", "--calibration", "logit"], "KeepKV has no calibration"),
        (["--split", "test[8]"], "write it like test[:100]"),
        (["--split", "test[5:5]", "--source", "built-in"], "holds no row"),
        (["--split", "test", "--source", "built-in"], "say how many"),
        (["--split", "test[:99999999999]", "--source", "built-in"], "at most 65536"),
        (["--data_path", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["--dataset", "xsum"], "give --data_path FILE"),
        (["--dataset", "piqa"], "--source built-in takes generated rows"),
        (["--model_name", "no/such/model"], "there is no checkpoint folder"),
        (["--max_input_tokens", "99999", "--source", "built-in"], "exceed the model's window"),
    ],
)
def test_wrong_input_is_one_line(
    words: list[str], message: str, capsys, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.delenv("CATEKV_DATA", raising=False)
    monkeypatch.setattr("catekv.tasks.rows.sources.hub_answers", lambda: False)
    output = tmp_path / "out"
    assert run("llama_eval", *words, "--output_dir", output) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not output.exists()


def test_missing_columns_are_named(tmp_path: Path, capsys) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"article": "the dog slept ."}))
    words = ["--dataset", "cnn_dailymail", "--data_path", file, "--output_dir", tmp_path / "out"]
    assert run("llama_eval", *words) == 2
    error = capsys.readouterr().err
    assert f"{file}, line 1" in error
    assert "article and highlights" in error


def test_prompts_too_long_for_a_map_are_refused_before_they_are_read(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    from experiments.simcalkv import analyse_command

    monkeypatch.setattr(analyse_command, "MAP_TOKENS", 50)
    words = ["--dataset", "openbookqa", "--source", "built-in", "--output_dir", tmp_path / "out"]
    assert run("analyse", "attention", "keys", "--no_plots", *words) == 2
    assert "maps of all keys are made up to 50 tokens" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_places_that_the_model_does_not_have(tmp_path: Path, capsys) -> None:
    words = ["--dataset", "openbookqa", "--source", "built-in", "--output_dir", tmp_path]
    for flags, message in (
        (["--layer", 9], "none of the layers that are compressed: 0, 1, 2, 3"),
        (["--head", 4], "none of the 4 KV heads"),
    ):
        assert run("analyse", *words, *flags) == 2
        assert message in capsys.readouterr().err
