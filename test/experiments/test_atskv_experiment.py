"""ATSKV's experiment: files, numbers, refusals, and the component checks."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from catekv import tasks
from catekv.commands import cli
from catekv.errors import UserError
from catekv.methods.atskv.files import PredictorSet, load_predictors, save_predictors
from catekv.methods.atskv.relevance import PredictorConfig, untrained_predictor
from catekv.model import CateKVModel
from catekv.models import embedded
from catekv.tasks.core.prompt import encode
from experiments.atskv import selftest
from experiments.atskv.cells import METRICS, MORE, Cell, reduction
from experiments.atskv.choices import (
    METHODS,
    Predictor,
    benchmark,
    check_predictor,
    method,
    samples_of,
    shipped_predictor,
)
from experiments.atskv.measuring import answer_loss, measure, perplexity
from experiments.atskv.outputs import Output
from experiments.atskv.report import results_text

ROOT = Path(__file__).resolve().parents[2]


def script(name: str) -> ModuleType:
    path = ROOT / "experiments" / "atskv" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"atskv_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model() -> CateKVModel:
    return CateKVModel.from_pretrained(embedded.path(), method="full", device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("atskv") / "out"
    words = ["--model_name", "embedded", "--context_sizes", "256", "9000", "600"]
    words += ["--max_seq_len", "512", "--examples", "1", "--max_new_tokens", "12"]
    words += ["--benchmarks", "LongBench", "Synthetic", "--output_dir", str(folder)]
    return folder, script("run_experiment").main(words)


def results(folder: Path, benchmark: str, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{benchmark}_{name}_results.json").read_text())


def test_all_published_files_are_written(run: tuple[Path, int]) -> None:
    folder, code = run
    assert code == 0
    for slug in ("longbench", "synthetic"):
        for name in METHODS:
            assert set(METRICS) < set(results(folder, slug, name))
        for metric in METRICS:
            assert (folder / "results" / slug / f"{metric}.png").stat().st_size > 5000
    for name in ("memory_reduction_comparison", "accuracy_comparison", "throughput_comparison",
                 "performance_vs_efficiency"):  # fmt: skip
        assert (folder / "results" / f"{name}.png").exists()
    summary = json.loads((folder / "experiment_summary.json").read_text())
    assert set(summary) == {"configuration", "duration", "timestamp"}
    assert summary["configuration"]["rows"] == "built-in"
    assert set(json.loads((folder / "all_results_summary.json").read_text())["longbench"]) == set(
        METHODS
    )
    assert (folder / "log.txt").read_text().count("accuracy") == 2 * 5
    thresholds = folder / "relevance_predictor" / "threshold_controller_params.json"
    assert len(json.loads(thresholds.read_text())["layer_quantiles"]) == 4


def test_the_relevance_of_one_prompt_is_written(run: tuple[Path, int]) -> None:
    found = json.loads((run[0] / "atskv_metrics.json").read_text())
    tokens = found["sample"]["tokens"]
    assert [len(layer) for layer in found["relevance_scores"]] == [tokens] * 4
    for layer, threshold in zip(found["relevance_scores"], found["thresholds"], strict=True):
        above = sum(value > threshold for value in layer)
        assert above / tokens == pytest.approx(0.3, abs=0.02)
    assert 0.5 < found["sparsity_level"] < 0.7


def test_sizes_beyond_the_limit_are_null_with_a_reason(run: tuple[Path, int]) -> None:
    found = results(run[0], "longbench", "atskv")
    assert found["context_lengths"] == [256, 9000, 600]
    for name in (*METRICS, *MORE):
        assert [value is None for value in found[name]] == [False, True, True]
    assert found["reasons"][0] is None
    assert found["reasons"][1] == "9000 tokens exceed --max_seq_len 512"
    assert "9000 tokens exceed --max_seq_len 512" in (run[0] / "results.md").read_text()


def test_a_size_beyond_the_window_is_null_with_a_reason(tmp_path: Path) -> None:
    words = ["--model_name", "embedded", "--context_sizes", "9000", "--max_seq_len", "10000"]
    words += ["--methods", "full", "--no_plots", "--output_dir", str(tmp_path)]
    assert script("run_experiment").main(words) == 0
    found = results(tmp_path, "synthetic", "full")
    assert found["reasons"] == ["9000 tokens exceed the model's window of 8192"]
    assert found["accuracy"] == [None]


def test_memory_is_that_of_the_same_context(run: tuple[Path, int]) -> None:
    full, own = (results(run[0], "longbench", name) for name in ("full", "atskv"))
    full, own = ({name: found[name][0] for name in (*METRICS, *MORE)} for found in (full, own))
    assert full["memory_usage"] == pytest.approx(full["memory_full"], rel=1e-2)
    assert own["memory_full"] == pytest.approx(full["memory_full"])
    wanted = 100 * (1 - own["memory_usage"] / own["memory_full"])
    assert own["memory_reduction"] == pytest.approx(wanted)
    tiers = own["memory_active"] + own["memory_features"]
    assert own["memory_usage"] == pytest.approx(tiers)
    assert own["memory_total"] == pytest.approx(tiers + own["memory_passive"])
    assert own["memory_passive"] > 0.5 * own["memory_full"]
    assert reduction(1.0, 8.0) == 87.5


def test_the_text_says_what_the_numbers_say(run: tuple[Path, int]) -> None:
    text = (run[0] / "results.md").read_text()
    accuracy = results(run[0], "longbench", "atskv")["accuracy"]
    mean = 100 * sum(value for value in accuracy if value is not None)
    row = next(line for line in text.splitlines() if line.startswith("| atskv | "))
    assert f"| {mean:.2f} |" in row
    assert "X%" not in text
    assert "Data of LongBench: built-in" in text
    assert "data marked built-in is generated" in text.lower()
    for part in ("# Measured", "## Set-up", "## LongBench", "## Analysis", "## Conclusion"):
        assert part in text


def test_accuracy_is_of_the_new_tokens_and_perplexity_of_the_right_answer(
    model: CateKVModel,
) -> None:
    sample = samples_of(benchmark("Synthetic", "built-in"), model.tokenizer, 512, 1, 42, 50)[0]
    found = measure(model, sample, method("full", Predictor()), 50)
    assert found.accuracy == 1.0
    prompt = encode(sample, model.tokenizer)
    answer = model.tokenizer.encode(sample.outputs[0], add_special_tokens=False)
    ids = torch.tensor([[*prompt.ids, *answer]])
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(embedded.path(), dtype=torch.float32)
    with torch.no_grad():
        scores = plain(ids).logits[0, len(prompt) - 1 : -1].log_softmax(dim=-1)
    loss = -float(scores.gather(-1, torch.tensor(answer)[:, None]).sum())
    assert found.loss == pytest.approx(loss, abs=1e-3)
    assert found.answer_tokens == len(answer)
    context = model.prefill(prompt.context_ids, method="full")
    assert answer_loss(model, context, prompt.question_ids, sample)[0] == pytest.approx(found.loss)
    assert perplexity([(2.0, 1), (4.0, 2)]) == pytest.approx(math.exp(2.0))
    assert perplexity([]) is None


SHORT = ["--model_name", "embedded", "--context_sizes", "256", "--no_plots"]


@pytest.mark.parametrize("broken", [0, 1])
def test_a_failed_example_is_counted_and_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    def failing(model: Any, sample: Any, *arguments: Any) -> Any:
        if sample.index == broken:
            raise UserError("out of order")
        return measure(model, sample, *arguments)

    monkeypatch.setattr("experiments.atskv.measuring.measure", failing)
    words = [*SHORT, "--examples", "2", "--benchmarks", "Synthetic", "--methods", "full"]
    assert script("run_experiment").main([*words, "--output_dir", str(tmp_path)]) == 1
    found = results(tmp_path, "synthetic", "full")
    assert found["samples"] == [1]
    assert found["failed"] == [["out of order"]]


def test_an_interrupted_run_leaves_the_sizes_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopping(model: Any, sample: Any, *arguments: Any) -> Any:
        if sample.length > 256:
            raise KeyboardInterrupt
        return measure(model, sample, *arguments)

    monkeypatch.setattr("experiments.atskv.measuring.measure", stopping)
    words = [*SHORT, "--context_sizes", "256", "300", "--examples", "1", "--methods", "full"]
    words += ["--benchmarks", "Synthetic", "--output_dir", str(tmp_path)]
    assert script("run_experiment").main(words) == 130
    assert results(tmp_path, "synthetic", "full")["context_lengths"] == [256]
    assert "Synthetic 256 full: accuracy" in (tmp_path / "log.txt").read_text()
    assert "interrupted" in capsys.readouterr().err


def test_missing_data_is_noticed_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "experiments.atskv.measuring.measure", lambda *arguments: pytest.fail("measured")
    )
    words = [*SHORT, "--benchmarks", "Synthetic", "LongBench", "--methods", "full"]
    words += ["--data", str(tmp_path / "nowhere.jsonl"), "--output_dir", str(tmp_path / "out")]
    assert script("run_experiment").main(words) == 2


def test_means_are_over_sizes_that_all_methods_were_measured_at(tmp_path: Path) -> None:
    def cell(name: str, size: int, accuracy: float | None) -> Cell:
        values = {**dict.fromkeys([*METRICS, *MORE], 1.0), "accuracy": accuracy}
        measured = () if accuracy is None else ("an example",)
        return Cell("A", "a", name, size, values, None, "", measured)  # type: ignore[arg-type]

    cells = [cell("full", 1, 1.0), cell("full", 2, 0.0), cell("atskv", 1, 1.0)]
    cells += [cell("atskv", 2, None), cell("never", 1, None), cell("never", 2, None)]
    output = Output(tmp_path, cells)
    assert [one.size for one in output.compared("a", "full")] == [1]
    text = results_text(output, [])
    assert "Means are over the sizes at which every method could be measured" in text
    assert "full 100.0%" in text
    cells[3] = cell("atskv", 2, 0.5)
    assert [one.size for one in Output(tmp_path, cells).compared("a", "full")] == [1, 2]
    assert "Means are over" not in results_text(Output(tmp_path, cells), [])


def test_random_weights_are_named_in_the_text(tmp_path: Path) -> None:
    output = Output(tmp_path, [], {"untrained": True})
    assert "random weights" in results_text(output, [])
    assert "random weights" not in results_text(Output(tmp_path, []), [])


def test_atskv_may_stand_beside_one_with_a_predictor_of_its_own(tmp_path: Path) -> None:
    words = [*SHORT, "--examples", "1", "--benchmarks", "Synthetic", "--output_dir", str(tmp_path)]
    words += ["--methods", "atskv", "atskv:untrained=true"]
    assert script("run_experiment").main(words) == 0
    assert results(tmp_path, "synthetic", "atskv")["samples"] == [1]


def test_any_task_and_any_method_may_be_compared(tmp_path: Path) -> None:
    words = ["--model_name", "ckpt/embedded", "--context_sizes", "256", "--examples", "1"]
    words += ["--benchmarks", "ruler/vt", "--methods", "full", "snapkv:budget=32,window=8"]
    words += ["--no_plots", "--output_dir", str(tmp_path)]
    assert script("run_experiment").main(words) == 0
    found = results(tmp_path, "ruler_vt", "snapkv-budget-32-window-8")
    assert found["memory_reduction"][0] > 50
    assert found["data"] == ["built-in"]


def test_a_predictor_may_be_trained_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = tasks.build
    monkeypatch.setattr(
        tasks, "build", lambda name, tokenizer, length, count, *a, **k: built(
            name, tokenizer, length, min(count, 2), *a, **k)
    )  # fmt: skip
    words = ["--model_name", "embedded", "--context_sizes", "256", "--examples", "1", "--train"]
    words += ["--benchmarks", "Synthetic", "--methods", "atskv", "--no_plots"]
    assert script("run_experiment").main([*words, "--output_dir", str(tmp_path)]) == 0
    assert (tmp_path / "relevance_predictor" / "predictor.safetensors").exists()


def test_predictors_of_other_models_are_refused(tmp_path: Path) -> None:
    config = PredictorConfig(256, 8)
    layers = tuple(untrained_predictor(config, 0, layer) for layer in range(4))
    save_predictors(tmp_path, PredictorSet(layers, meta={"model_hash": "0" * 16}))
    with pytest.raises(UserError, match="were trained for another model"):
        check_predictor(str(tmp_path), "1" * 16)
    words = ["--model_name", "embedded", "--context_sizes", "256", "--methods", "atskv"]
    words += ["--no_plots", "--output_dir", str(tmp_path / "out")]
    assert script("run_experiment").main([*words, "--predictor", str(tmp_path)]) == 2
    words[words.index("atskv")] = f"atskv:predictor={tmp_path}"
    assert script("run_experiment").main(words) == 2


def test_predictors_of_other_models_are_refused_in_evaluations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shipped_predictor()
    assert folder is not None
    layers = load_predictors(folder).layers
    save_predictors(tmp_path, PredictorSet(layers, meta={"model_hash": "0" * 16}))
    words = ["evaluate", "--tasks", "ruler/vt", "--lengths", "256", "--samples", "1", "--quiet"]
    words += ["--methods", f"atskv:predictor={tmp_path}", "--output", str(tmp_path / "run")]
    assert cli.main(words) == 2
    assert "were trained for another model" in capsys.readouterr().err


def test_the_shipped_predictor_is_of_the_embedded_model() -> None:
    from catekv.evaluation.records.environment import model_identity

    folder = shipped_predictor()
    assert folder is not None
    check_predictor(folder, model_identity(embedded.path()))
    assert sum(path.stat().st_size for path in Path(folder).iterdir()) < 2**20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "full", "fancy_kv"], "unknown method 'fancy_kv'"),
        (["--benchmarks", "LongCrunch"], "unknown benchmark 'LongCrunch'; use LongBench"),
        (["--model_name", "some/model", "--methods", "atskv"], "needs a trained relevance"),
        (["--predictor", "nowhere", "--methods", "atskv"], "nowhere holds no relevance predictors"),
        (["--predictor", "x", "--untrained"], "give one of --predictor, --untrained"),
        (["--methods", "full", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--use_api", "--api_max_cost", "1"], "--api_max_cost needs --api_prices"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    first = ["--model_name", "embedded", "--context_sizes", "256", "--no_plots"]
    code = script("run_experiment").main([*first, "--output_dir", str(tmp_path / "o"), *words])
    errors = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert message in errors[-1]
    assert errors[-1].startswith("error: ")


def test_an_unwritable_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    words = ["--model_name", "embedded", "--no_plots", "--output_dir", str(tmp_path / "file" / "o")]
    assert script("run_experiment").main(words) == 2
    assert f"cannot write to {tmp_path / 'file' / 'o'}: Not a directory" in capsys.readouterr().err


def test_the_published_defaults_are_honoured() -> None:
    from experiments.atskv import experiment

    parser = argparse.ArgumentParser()
    experiment.add_arguments(parser)
    found = parser.parse_args([])
    assert found.model_name == "meta-llama/Llama-2-7b-hf"
    assert (found.max_seq_len, found.use_fp16, found.seed) == (4096, False, 42)
    assert found.methods == ["full", "sliding_window", "dynamic_kv", "rocket_kv", "atskv"]
    assert found.context_sizes == [512, 1024, 2048, 4096]
    assert (found.output_dir, found.use_api) == ("./outputs", False)
    assert found.api_model == "claude-3-7-sonnet-20250219"


def test_all_component_checks_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("run_test").main(["--output_dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("PASS") == len(selftest.CHECKS)
    assert (tmp_path / "test_log.txt").read_text() == printed


def test_a_broken_component_fails_its_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("catekv.methods.atskv.control.quantile_level", lambda pressure: 0.5)
    names = ("threshold controller", "momentum mask")
    monkeypatch.setattr(selftest, "CHECKS", {name: selftest.CHECKS[name] for name in names})
    assert script("run_test").main([]) == 1
    printed = capsys.readouterr().out
    assert "FAIL  threshold controller" in printed
    assert "1 of 2 checks passed" in printed
