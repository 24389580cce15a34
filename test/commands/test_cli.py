"""The command line: what each command prints, and one line with exit code 2 for every mistake."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint

from catekv import methods, tasks
from catekv.commands import cli
from catekv.commands.method_list import EFFECTS
from catekv.commands.schema import add_options
from catekv.methods.head_mask import HeadMask

REPOSITORY = Path(__file__).resolve().parents[2]
EDGES = "catekv:init_tokens=8,recent_tokens=16,guard_tokens=8,window=16"
COMMANDS = (
    "evaluate", "fidelity", "efficiency", "calibrate", "heads", "mask", "tasks", "methods",
    "generate", "plan", "report", "doctor",
)  # fmt: skip

Run = Callable[..., int]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masks")
    HeadMask(torch.tensor([[1, 0], [0, 1]]), {"ratio": 0.5, "recipe": {"k": 0.99}}).save(folder)
    return folder


def exit_code(action: Callable[[], int]) -> int:
    try:
        return action()
    except SystemExit as left:
        return int(left.code or 0)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail: exit code 2, one line on stderr, nothing else."""

    def run(*words: object, main: Callable[..., int] = cli.main) -> str:
        capsys.readouterr()
        assert exit_code(lambda: main([str(word) for word in words])) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("error: ")
        assert output.err.count("\n") == 1, output.err
        assert "Traceback" not in output.err
        return output.err

    return run


@pytest.fixture
def evaluate(checkpoint: Path, masks: Path, tmp_path: Path) -> Callable[..., list[object]]:
    """Words of a small evaluation; options given replace or extend them."""

    def words(**options: object) -> list[object]:
        values: dict[str, object] = {
            "model": checkpoint,
            "tasks": "ruler/vt",
            "lengths": 192,
            "samples": 1,
            "methods": f"full {EDGES}",
            "mask": masks,
            "ratio": 0.5,
            "budget": 64,
            "max-new-tokens": 2,
            "output": tmp_path / "run",
            **{name.replace("_", "-"): value for name, value in options.items()},
        }
        found: list[object] = ["evaluate", "--quiet"]
        for name, value in values.items():
            if value is not None:
                found += [f"--{name}", *str(value).split()]
        return found

    return words


def published(name: str) -> ModuleType:
    """One of the thin scripts beside the tests."""
    path = REPOSITORY / "test" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"published_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- help ----------------------------------------------------------------------------------------


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from catekv.commands import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), 'heavy import'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: cli.main([command, "--help"])) == 0
    about, usage, _ = capsys.readouterr().out.partition(f"usage: catekv {command} ")
    assert about.strip()
    assert usage


@pytest.mark.parametrize("name", ["eval_acc", "eval_efficiency"])
def test_the_published_flags_are_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: published(name).main(["--help"])) == 0
    text = capsys.readouterr().out
    for flag in (
        "model_name", "head_classification_path", "batch_size", "datalen", "method",
        "sparse_budget", "chunk_size", "last_q", "init_tokens", "recent_tokens", "top_threshold",
        "top_fraction", "cv_threshold", "full_fraction", "minference",
    ):  # fmt: skip
        assert f"--{flag}" in text
    if name == "eval_acc":
        assert "--dataset_name" in text
        assert "--num_samples" in text


# --- mistakes ------------------------------------------------------------------------------------


def test_no_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "evaluate" in capsys.readouterr().out


def test_statistics_of_no_text_are_not_made(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    output = tmp_path / "statistics.pt"
    words = ["--text", str(tmp_path / "empty.txt"), "--output", str(output)]
    assert "empty.txt holds no text" in refused("triattention", *words)
    assert not output.exists()


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["evaluat"], "invalid choice"),
        (
            ["evaluate", "--no-such-flag"],
            "unrecognized arguments: --no-such-flag; see `catekv evaluate --help`",
        ),
        (
            ["mask", "show", "a", "--no-such-flag"],
            "unrecognized arguments: --no-such-flag; see `catekv mask show --help`",
        ),
        (["evaluate", "--task-option", "a=1", "--task-option", "a=2"], "--task-option a is given"),
        (
            ["plan", "--length", "9", "--method", "snapkv:budget=8", "--budget", "4"],
            "--budget and the option budget of the method say the same",
        ),
        (
            ["plan", "--length", "9", "--method", "snapkv:budget=8", "--option", "budget=4"],
            "--budget and the option budget of the method say the same",
        ),
        (
            ["plan", "--length", "9", "--budget", "8", "--option", "budget=4"],
            "--budget and --option budget say the same",
        ),
        (["efficiency", "--throughput", "--batch-sizes", "3"], "the largest batch and --batch-"),
        (["efficiency", "--batch-sizes", "max", "3"], "the largest batch and --batch-sizes 3"),
        (["efficiency", "--throughput", "--fill", "prefill"], "leave out --fill prefill"),
        (["evaluate", "--samples", "many"], "invalid int value"),
        (["mask"], "ACTION"),
        (["tasks", "--build", "ruler/absent"], "unknown task 'ruler/absent'; available: ruler/"),
        (["methods", "absent"], "unknown method 'absent'; available: adakv, "),
        (["plan", "--length", "0"], "give a whole number from 1 to"),
        (["plan", "--length", "9", "--ratio", "2"], "ratio 2.0 is outside (0, 1]"),
        (["plan", "--length", "9", "--model", "absent"], "known: "),
        (["report", "absent"], "no run directory"),
        (["mask", "show", "absent"], "no head mask at absent"),
        (
            ["generate", "--context", "absent", "--question", "?"],
            "cannot read absent: No such file",
        ),
        (["generate", "--context", "a", "--question", "?", "--top-p", "2"], "top_p 2.0 must be"),
        (["generate", "--context", "a", "--question", "?", "--stop", ""], "--stop is empty"),
    ],
)
def test_mistakes_without_a_model(
    words: list[str], cause: str, refused: Callable[..., str], checkpoint: Path
) -> None:
    if words[0] == "tasks":
        words = [*words, "--model", str(checkpoint)]
    assert cause in refused(*words)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"model": "/absent/model"}, "/absent/model"),
        ({"tasks": "ruler/absent"}, "unknown task 'ruler/absent'; available: ruler/"),
        ({"tasks": "ruler/qa_1"}, "qa_1"),
        ({"methods": "absent"}, "unknown method 'absent'; available: adakv, "),
        (
            {"methods": "snapkv:budgett=3"},
            "no option 'budgett' (did you mean 'budget'?); valid options: ",
        ),
        ({"methods": "snapkv:budget"}, "write option=value"),
        ({"methods": "full full"}, "label 'full' is used twice"),
        ({"ratio": 0}, "ratio 0.0 is outside (0, 1]"),
        ({"ratio": 1.5}, "ratio 1.5 is outside (0, 1]"),
        ({"retention": 0}, "retention 0.0 is outside (0, 1]"),
        ({"retention": 1.01}, "retention 1.01 is outside (0, 1]"),
        ({"budget": 16}, "budget 16 is smaller than the edges it includes"),
        ({"lengths": 2048}, "length 2048 exceeds the model's window of 1024"),
        ({"lengths": "4k"}, "--lengths takes whole numbers of tokens, not '4k'"),
        ({"lengths": 16}, "needs a length of at least"),
        ({"samples": 0}, "whole number from 1"),
        ({"dtype": "float99"}, "unknown dtype 'float99'"),
        ({"device": "abacus"}, "unknown device 'abacus'"),
        ({"attention": "absent"}, "unknown attention 'absent'"),
        ({"chat_template": "absent"}, "unknown chat template 'absent'"),
        ({"mask": "/absent/mask"}, "no head mask at /absent/mask"),
        ({"mask": None}, "take a method without, e.g. snapkv (`catekv methods` lists them)"),
        ({"mask": "reversed"}, "needs a first mask"),
        ({"task_option": "hops"}, "--task-option takes NAME=VALUE, not 'hops'"),
        ({"task_option": "hops=3"}, "has an option 'hops'; valid options: begin_answer, dense"),
    ],
)
def test_mistakes_in_an_evaluation(
    options: dict[str, object],
    cause: str,
    refused: Callable[..., str],
    evaluate: Callable[..., list[object]],
    tmp_path: Path,
) -> None:
    assert cause in refused(*evaluate(**options))
    assert not (tmp_path / "run").exists()


def test_a_foreign_checkpoint(
    refused: Callable[..., str], evaluate: Callable[..., list[object]], tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "it has no config.json" in refused(*evaluate(model=empty))
    (empty / "config.json").write_text('{"model_type": "absent"}')
    assert "no readable configuration" in refused(*evaluate(model=empty))
    (empty / "config.json").write_text("{")
    assert "no readable configuration" in refused(*evaluate(model=empty))


def test_a_checkpoint_without_tokenizer(
    refused: Callable[..., str],
    evaluate: Callable[..., list[object]],
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((checkpoint / name).read_bytes())
    assert "tokenizer" in refused(*evaluate(model=folder))


def test_a_mask_of_another_shape(
    refused: Callable[..., str], evaluate: Callable[..., list[object]], tmp_path: Path
) -> None:
    HeadMask(torch.ones(3, 4), {"ratio": 0.5}).save(tmp_path / "other")
    message = refused(*evaluate(mask=tmp_path / "other"))
    assert "3 layers x 4 KV heads but the model has 2 layers x 2 KV heads" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_but_absent(
    refused: Callable[..., str], evaluate: Callable[..., list[object]]
) -> None:
    assert "0 CUDA devices are usable" in refused(*evaluate(device="cuda"))


def test_unreadable_and_torn_sample_files(
    refused: Callable[..., str], evaluate: Callable[..., list[object]], tmp_path: Path
) -> None:
    assert "absent.jsonl" in refused(*evaluate(tasks="/absent.jsonl"))
    path = tmp_path / "vt" / "validation.jsonl"
    path.parent.mkdir()
    path.write_text('{"index": 0, "input": "a b c\\nwhat is it", "outp')
    assert "line 1" in refused(*evaluate(tasks=path))
    path.write_text('{"index": 0}\n')
    assert "line 1: field" in refused(*evaluate(tasks=path))


def test_a_folder_of_another_configuration_keeps_its_records(
    refused: Callable[..., str],
    evaluate: Callable[..., list[object]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([str(word) for word in evaluate()]) == 0
    samples = tmp_path / "run" / "samples.jsonl"
    before = samples.read_bytes()
    assert "different: seed" in refused(*evaluate(seed=43))
    assert "method 'catekv' with other options" in refused(*evaluate(budget=72))
    assert "--no-resume was given" in refused(*evaluate(), "--no-resume")
    assert samples.read_bytes() == before
    lines = before.splitlines(keepends=True)
    samples.write_bytes(lines[0][:40] + b"\n" + lines[1])
    assert "line 1 is no record" in refused(*evaluate())
    assert "line 1 is no record" in refused("report", tmp_path / "run")
    (tmp_path / "run" / "manifest.json").write_text("{")
    assert "cannot be read as JSON" in refused(*evaluate())
    assert "cannot be read as JSON" in refused(*evaluate(), "--overwrite")
    assert samples.exists()


def test_no_write_permission(
    refused: Callable[..., str], evaluate: Callable[..., list[object]], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    message = refused(*evaluate(output=tmp_path / "file" / "run"))
    assert "cannot write results to" in message
    assert "--output" in message


def test_an_interruption_keeps_the_records(
    evaluate: Callable[..., list[object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from catekv.model import CateKVModel

    generate_ids = CateKVModel.generate_ids
    calls = iter(range(100))

    def interrupted(self: CateKVModel, *arguments: object, **options: object) -> object:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return generate_ids(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(CateKVModel, "generate_ids", interrupted)
    assert cli.main([str(word) for word in evaluate()]) == 130
    assert "records are kept" in capsys.readouterr().err
    assert (tmp_path / "run" / "samples.jsonl").read_bytes().count(b"\n") == 1


def test_failed_samples_lead_to_exit_code_1(
    evaluate: Callable[..., list[object]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from catekv.model import CateKVModel

    def broken(*arguments: object, **options: object) -> object:
        raise RuntimeError("planted")

    monkeypatch.setattr(CateKVModel, "generate_ids", broken)
    assert cli.main([str(word) for word in evaluate()]) == 1
    output = capsys.readouterr()
    assert "2 measurements failed, the first with RuntimeError: planted" in output.err
    assert "2 measurements failed" in output.out


def test_published_flags_that_cannot_be_honoured(
    refused: Callable[..., str], checkpoint: Path, masks: Path
) -> None:
    accuracy, efficiency = published("eval_acc").main, published("eval_efficiency").main
    for main in (accuracy, efficiency):
        assert "sparse prefill" in refused("--minference", main=main)
        assert "unknown method 'Quest9'" in refused("--method", "Quest9", main=main)
    assert "--num_samples -2" in refused("--num_samples", -2, main=accuracy)
    message = refused(
        "--model_name", checkpoint, "--head_classification_path", masks, "--cv_threshold", 0.5,
        "--top_fraction", 0.984, "--dataset_name", "ruler/vt", "--datalen", 192, main=accuracy,
    )  # fmt: skip
    assert "was made with k 0.99, not 0.984" in message


def test_the_published_batch_size_is_ours() -> None:
    from catekv.commands.published_flags import ACCURACY, accuracy_request

    parser = cli.Parser()
    add_options(parser, ACCURACY)
    assert accuracy_request(parser.parse_args(["--batch_size", "4"])).batch_size == 4
    assert accuracy_request(parser.parse_args([])).batch_size == 1


# --- what commands print -------------------------------------------------------------------------


def test_evaluate_prints_the_table_and_resumes(
    evaluate: Callable[..., list[object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(word) for word in evaluate(question="both")]
    assert cli.main(words) == 0
    first = capsys.readouterr().out
    assert first.count("score x 100") == 2
    assert "wording small-1" in first
    assert "had been measured before" not in first
    assert cli.main(words) == 0
    assert "had been measured before" in capsys.readouterr().out
    assert cli.main(["report", str(tmp_path / "run"), "--rescore", "--official"]) == 0
    assert "score x 100" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["starts"][0]["command"].startswith("catekv evaluate --quiet")


def test_eval_acc_puts_the_method_beside_full(
    checkpoint: Path, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = published("eval_acc").main
    words = [
        "--model_name", str(checkpoint), "--head_classification_path", str(masks),
        "--method", "CateKV", "--dataset_name", "ruler/vt,ruler/niah_multikey_1",
        "--cv_threshold", "0.5", "--full_fraction", "1.0", "--num_samples", "1",
        "--datalen", "192", "--sparse_budget", "64", "--init_tokens", "8",
        "--recent_tokens", "16", "--output", str(tmp_path / "run"),
    ]  # fmt: skip
    assert main(words) == 0
    header = next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("score x 100")
    )
    assert header.split()[-2:] == ["full", "catekv"]


def test_eval_efficiency_compares_with_every_full_attention(
    checkpoint: Path, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = published("eval_efficiency").main
    words = [
        "--model_name", str(checkpoint), "--head_classification_path", str(masks),
        "--method", "CateKV", "--cv_threshold", "0.5", "--datalen", "600",
        "--sparse_budget", "384", "--gen_len", "2", "--repeats", "2",
        "--batch_size", "1", "2", "--output", str(tmp_path),
    ]  # fmt: skip
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "full, flash-attn: absent, flash_attn is not installed" in output
    assert "prefill s" in output
    assert "random weights" not in output
    assert "are not fused: the model is on cpu" in output
    written = json.loads((tmp_path / "efficiency.json").read_text())
    assert written["command"].startswith("test/eval_efficiency.py --model_name")
    assert len(written["results"]) == 2 * 7
    for result in written["results"]:
        if result["status"] == "absent":
            continue
        assert len(result["step_seconds"]) == 2 * 2
        assert result["full_bytes"] == 600 * 2 * 2 * 2 * 8 * 4 * result["batch"]
        ours = result["variant"] == "catekv"
        assert (result["stored_bytes"] < 0.9 * result["full_bytes"]) == ours
        assert (result["ideal"] > 1.0) == ours
    assert {file.name for file in tmp_path.iterdir()} == {
        "efficiency.json", "efficiency.md", "efficiency.png"
    }  # fmt: skip


def test_a_known_shape_needs_a_gpu_or_a_scale(
    refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    main = published("eval_efficiency").main
    words = [
        "--model_name", "llama3-8b-1m", "--datalen", "512000", "--method", "CateKV",
        "--cv_threshold", "0.4", "--full_fraction", "1.0", "--device", "cpu",
    ]  # fmt: skip
    assert "none is used here; add --scale 0.1" in refused(*words, main=main)
    small = [
        "--scale",
        "0.005",
        "--gen_len",
        "1",
        "--repeats",
        "1",
        "--lengths",
        "256000",
        "512000",
        "--fused_step",
        "on",
    ]
    assert main([*words, *small]) == 0
    output = capsys.readouterr().out
    assert "2560 tokens, batch size 1" in output
    assert "Steps are fused (few launches a layer), those of full attention too." in output
    assert "time of a step depends on shapes and lengths, not on the values" in output
    assert "Scaled by 0.005: 5 layers, 8 query heads, 2 KV heads of 128" in output


def test_a_busy_machine_is_reported(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "efficiency", "--model", str(checkpoint), "--methods", "full", "--length", "64",
        "--device", "cpu", "--baselines", "kernel", "--new-tokens", "1", "--repeats", "1",
    ]  # fmt: skip
    for load, reported in ((0.0, False), (1000.0, True)):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, load, load))
        assert cli.main(words) == 0
        assert ("not to be trusted" in capsys.readouterr().out) == reported


def test_throughput_finds_the_largest_batches(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "efficiency", "--model", "llama3-8b-1m", "--device", "cpu", "--scale", "0.005",
        "--length", "512000", "--batch-sizes", "max", "--memory", "0.2", "--new-tokens", "1",
        "--repeats", "1", "--ratio", "0.1",
    ]  # fmt: skip
    assert cli.main(words) == 0
    output = capsys.readouterr().out
    assert "2560 tokens, largest batch that fits" in output
    rows = {line.split("  ")[0]: line.split()[-16:] for line in output.splitlines()}
    assert int(rows["catekv"][0]) > int(rows["full, our kernel"][0]) > 1


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["--layers", "1"], "--layers changes a known shape"),
        (["--scale", "0.1"], "--scale changes a known shape"),
        (["--random-weights"], "--random-weights needs the name of a known shape, not None"),
        (["--model", "llama3-8b-1m", "--scale", "2"], "--scale 2 is outside (0, 1]"),
        (["--model", "llama3-8b-1m", "--lengths", "0"], "give a whole number from 1 to"),
        (["--lengths", "many"], "--lengths takes whole numbers of tokens, not 'many'"),
        (["--memory", "0"], "--memory 0 must be above 0 GiB"),
        (["--baselines", "quick"], "invalid choice: 'quick'"),
    ],
)
def test_efficiency_refuses(
    refused: Callable[..., str], checkpoint: Path, words: list[str], cause: str
) -> None:
    own = [] if "--model" in words or "--random-weights" in words else ["--model", checkpoint]
    assert cause in refused("efficiency", *own, *words, "--methods", "full", "--device", "cpu")


def test_masks_are_shown_converted_and_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ["mask", "random", str(tmp_path), "--layers", "4", "--kv-heads", "4", "--ratio", "0.25"]
    assert cli.main(made) == 0
    path = capsys.readouterr().out.strip()
    assert cli.main(["mask", "show", path]) == 0
    assert "4 of 16 KV heads adaptive" in capsys.readouterr().out
    pattern = tmp_path / "full_attention_heads.tsv"
    pattern.write_text("0.9\t0.1\n0.2\t0.8\n")
    assert (
        cli.main(["mask", "convert", str(pattern), str(tmp_path / "out"), "--ratios", "0.5"]) == 0
    )
    assert (tmp_path / "out" / "head_type_p50.csv").read_text() == "1,0\n0,1\n"


def test_tasks_are_listed_and_built(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tasks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line} >= set(tasks.available())
    assert cli.main(["tasks", "ruler/vt"]) == 0
    assert "num_hops = 4" in capsys.readouterr().out
    assert cli.main(["tasks", "ruler/vt", "--json"]) == 0
    (described,) = json.loads(capsys.readouterr().out)
    assert described["options"]["num_hops"] == 4
    assert described["max_new_tokens"] == 30
    words = ["tasks", "--build", "ruler/vt", "--model", str(checkpoint), "--length", "192",
             "--samples", "2", "--output", str(tmp_path)]  # fmt: skip
    assert cli.main(words) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    assert path == tmp_path / checkpoint.name / "192" / "vt" / "validation.jsonl"
    lines = path.read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == [0, 1]


def test_methods_are_listed_with_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods"]) == 0
    listed = capsys.readouterr().out
    table, _, advice = listed.partition("\n\n")
    lines = [line.split(maxsplit=1) for line in table.splitlines()[1:]]
    assert [name for name, _ in lines] == methods.available()
    said = {name: " ".join(rest.split()) for name, rest in lines}
    assert said["full"] == "nothing (keeps everything)"
    assert said["snapkv"] == "nothing budget + window"
    assert said["catekv"] == "a head mask ratio*T+(1-ratio)*(budget+tail)"
    assert "catekv methods NAME" in advice
    assert cli.main(["methods", "--details"]) == 0
    details = capsys.readouterr().out
    assert all(f"\n{name}: " in f"\n{details}" for name in methods.available())
    assert "tokens kept besides the window; an int, or one per KV head." in details
    assert max(map(len, (listed + details).splitlines())) <= 80
    assert not re.search(r"``|:(class|func|mod|meth):`", details)
    for method in json_of_all(capsys):
        unsaid = {name for name in method["options"] if not method["meanings"].get(name)}
        assert not unsaid, f"{method['name']} does not say what {unsaid} mean"
        assert not any(text.startswith("as in ") for text in method["meanings"].values())


def json_of_all(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert cli.main(["methods", "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_one_method_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods", "AdaKV"]) == 0
    text = capsys.readouterr().out
    assert "frees memory; needs last 32 queries" in text
    assert "  budget = 1024" in text
    assert "  exact = false  [true]" in text
    assert "  pyramid  beta=20 short_prompt=uniform" in text


def test_methods_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    listed = json_of_all(capsys)
    assert [method["name"] for method in listed] == methods.available()
    assert all(method["effect"] in EFFECTS for method in listed)
    assert cli.main(["methods", "h2o", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["needs"] == ["all queries"]
    assert found["options"]["budget"] == 1024


def test_generate_answers_about_a_file(
    checkpoint: Path, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the road is long . the rain is soft . " * 20)
    words = ["generate", "--model", str(checkpoint), "--context", str(text), "--question", "the",
             "--question", "rain", "--method", f"{EDGES},budget=64", "--mask", str(masks),
             "--ratio", "0.5", "--max-new-tokens", "3"]  # fmt: skip
    assert cli.main(words) == 0
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 2
    assert "tokens read" in output.err
    assert cli.main([*words, "--stream"]) == 0
    assert capsys.readouterr().out == output.out
    drawn = [*words, "--temperature", "1.5", "--top-k", "50", "--top-p", "0.9", "--seed", "4"]
    assert cli.main(drawn) == 0
    first = capsys.readouterr().out
    assert cli.main([*drawn, "--stream"]) == 0
    assert capsys.readouterr().out == first != output.out
    cut = output.out.split()[1]
    assert cli.main([*words, "--stop", cut, "--stop", "absent"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == output.out.split(cut)[0]


def test_doctor_names_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in ("torch", "transformers", "cuda", "[extras]"):
        assert word in text


def ended(*words: str, output: int) -> subprocess.CompletedProcess[str]:
    """A command with its standard output at a file descriptor."""
    command = [sys.executable, "-m", "catekv", *words]
    return subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, timeout=120)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("methods",), marks=pytest.mark.slow),
        ("tasks",),
        pytest.param(("doctor",), marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_behind_the_standard_output_is_one_line(words: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        process = ended(*words, output=full.fileno())
    assert process.returncode == 2
    assert process.stderr.startswith("error: cannot use the output: No space left on device")
    assert process.stderr.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    process = ended("methods", output=write)
    os.close(write)
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluate", "--output", ""), "--output is empty"),
        (("evaluate", "--tasks", ""), "--tasks is empty"),
        (("evaluate", "--tasks", "ruler/vt", "--lengths", " "), "is empty"),
        (("evaluate", "--output="), "--output is empty"),
        (("evaluate", "--tasks", ","), "names nothing"),
        (("plan", "--model", ""), "--model is empty"),
        (("report", ""), "an argument is empty"),
        (("evaluate", "--seed", "9" * 20), "give a whole number from"),
        (("evaluate", "--samples", "9" * 5000), "give a whole number from"),
        (("evaluate", "--lengths", "9" * 5000), "give a whole number up to"),
        (("evaluate", "--ratio", "nan"), "give a finite number"),
        (("evaluate", "--ratio", "1e999"), "give a finite number"),
        (("plan", "--length", "1e3"), "invalid int value"),
        (("mask", "random", "m", "--ratio", "0.4", "--layers", "5000", "--kv-heads", "4"), "4096"),
        (("mask", "random", "m", "--ratio", "0.4", "--layers", "4", "--kv-heads", "5000"), "4096"),
        (("evaluate", "--samples", "99999999999"), "65536"),
        (("calibrate", "--held-out-samples", "99999999999"), "65536"),
        (("cokv", "score", "--samples", "99999999999"), "65536"),
        (("cokv", "score", "--samples", "0"), "65536"),
        (("calibrate", "--samples", "0"), "65536"),
        (("fidelity", "--samples", "0"), "65536"),
        (("atskv", "train", "--samples", "0"), "65536"),
        (("tasks", "build", "ruler/vt", "--samples", "99999999999"), "65536"),
    ],
)
def test_values_of_no_use_are_refused_before_anything_is_loaded(
    refused: Callable[..., str], words: tuple[str, ...], message: str
) -> None:
    error = refused(*words)
    assert message in error
    assert len(error) < 300


def test_a_foreign_error_of_the_system_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied() -> int:
        raise PermissionError(13, "Permission denied", "/somewhere/file")

    assert cli.run_safely(denied) == 2
    assert capsys.readouterr().err == (
        "error: cannot use /somewhere/file: Permission denied; change its permissions or choose "
        "another place\n"
    )

    def without_number() -> int:
        raise OSError("a defect of ours")

    with pytest.raises(OSError, match="defect"):
        cli.run_safely(without_number)


def test_words_that_are_no_text_are_refused(
    refused: Callable[..., str], checkpoint: Path, tmp_path: Path
) -> None:
    """A shell hands bytes that are no UTF-8 over as halves of characters."""
    (tmp_path / "context.txt").write_text("a text")
    words = ["--model", checkpoint, "--method", "full", "--question", "q\udcff?"]
    words += ["--context", tmp_path / "context.txt"]
    assert "a --question holds half a character, '\\udcff' at 1" in refused("generate", *words)


def test_the_largest_batch_of_a_cpu_needs_a_memory(refused: Callable[..., str]) -> None:
    assert "--memory GIB" in refused("efficiency", "--batch-sizes", "max", "--device", "cpu")


def test_weights_without_permission_are_named(
    capsys: pytest.CaptureFixture[str],
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    """Readers of weights call a file missing that they may not read."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    weights = folder / "model.safetensors"
    # permissions do not bind every user that runs the tests
    weights.write_bytes(b"")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != weights and access(path, mode))
    assert cli.main(["doctor", "--model", str(folder)]) == 1
    assert f"no permission to read {weights}" in capsys.readouterr().out
    error = refused(
        "evaluate", "--model", folder, "--methods", "full", "--output", tmp_path / "run"
    )
    assert f"no permission to read {weights}" in error


def test_names_that_no_terminal_can_show_are_printed_all_the_same(
    capsys: pytest.CaptureFixture[str], checkpoint: Path
) -> None:
    assert cli.main(["doctor", "--model", str(checkpoint), "--mask", "half\ud800"]) == 1
    assert "half\\ud800" in capsys.readouterr().out


def test_a_plan_for_a_memory_without_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--length", "512", "--device-memory", "1000000000", "--json"]) == 0
    capsys.readouterr()


def test_more_passes_than_a_training_can_make(refused: Callable[..., str]) -> None:
    assert "10000" in refused("atskv", "train", "--epochs", "1000000000")
