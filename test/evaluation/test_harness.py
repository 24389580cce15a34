"""catekv as a model of lm-evaluation-harness, beside the harness's own Hugging Face model."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import save_tiny_checkpoint

from catekv.commands import lm_eval as lm_eval_command
from catekv.errors import UserError

pytest.importorskip("lm_eval", reason="the harness is the extra `lm-eval`")

WORDS = "farmer sailor baker king river horse note ask 12 47 88 the old found walked .".split()  # noqa: SIM905
TASK = {
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "{{context}}",
    "metadata": {"version": 1},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def tasks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One local task of every kind of request."""
    import yaml

    folder = tmp_path_factory.mktemp("tasks")
    draw = random.Random(0)
    rows = []
    for number in range(6):
        text = " ".join(draw.choices(WORDS, k=20 + 5 * number))
        choices = [" " + word for word in draw.sample(WORDS, 3)]
        rows.append({"context": text, "choices": choices, "gold": number % 3, "target": text[-20:]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {**TASK, "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
    kinds = {
        "local_choice": {
            "output_type": "multiple_choice", "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{gold}}",
            "metric_list": [{"metric": "acc"}],
        },
        "local_generate": {
            "output_type": "generate_until", "doc_to_target": "{{target}}",
            "generation_kwargs": {"until": [" ."], "max_gen_toks": 12},
            "metric_list": [{"metric": "exact_match"}],
        },
        "local_rolling": {
            "output_type": "loglikelihood_rolling", "doc_to_text": "",
            "doc_to_target": "{{context}}",
            "metric_list": [{"metric": "word_perplexity"}],
        },
    }  # fmt: skip
    for name, kind in kinds.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **kind}))
    return folder


def evaluate(model: Any, folder: Path, **options: Any) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    return simple_evaluate(
        model=model,
        tasks=["local_choice", "local_generate", "local_rolling"],
        # the harness's own tasks would be read for a minute
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
        **options,
    )


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def model(checkpoint: Path, **options: Any) -> Any:
    from catekv.evaluation.harness import HarnessModel

    return HarnessModel(str(checkpoint), device="cuda:0", **options)


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_full_attention_equals_the_hugging_face_model(
    checkpoint: Path, tasks_folder: Path, batch: int
) -> None:
    from lm_eval.models.huggingface import HFLM

    stock = HFLM(str(checkpoint), device="cpu", dtype="float32", batch_size=batch)
    expected = evaluate(stock, tasks_folder)
    measured = evaluate(model(checkpoint, batch_size=batch), tasks_folder)
    for name, samples in expected["samples"].items():
        for wanted, sample in zip(samples, measured["samples"][name], strict=True):
            if name == "local_generate":
                assert sample["resps"] == wanted["resps"]
                continue
            for (got,), (right,) in zip(sample["resps"], wanted["resps"], strict=True):
                pairs = zip(got, right, strict=True) if isinstance(got, tuple) else [(got, right)]
                for value, reference in pairs:
                    assert value == pytest.approx(reference, abs=1e-4)
    for name, results in expected["results"].items():
        for metric, value in results.items():
            found = measured["results"][name][metric]
            # what the harness prints is the same; a context that is read once and shared by its
            # choices is summed in another order than each choice with its context
            same = f"{found:.4f}" == f"{value:.4f}" if isinstance(value, float) else found == value
            assert same, (name, metric, found, value)
    assert measured["config"]["catekv_kept_share"] == 1
    assert measured["config"]["catekv_uncompressed_contexts"] == 1


def test_a_compressed_context_serves_all_choices(checkpoint: Path, tasks_folder: Path) -> None:
    full = evaluate(model(checkpoint), tasks_folder)
    with pytest.warns(UserWarning, match="rolling likelihood is that of the full cache"):
        kept = evaluate(model(checkpoint, method="streaming_llm", budget=8), tasks_folder)
    config = kept["config"]
    assert 0 < config["catekv_kept_share"] < 0.5
    assert config["catekv_method"]["name"] == "streaming_llm"
    assert config["catekv_uncompressed_contexts"] < 1
    # what has no context is scored by the full cache, the rest by what was kept
    assert kept["results"]["local_rolling"] == full["results"]["local_rolling"]


def test_the_first_token_is_scored_against_what_was_kept_in_strict_mode(checkpoint: Path) -> None:
    context, continuation = " ".join(WORDS * 4), " farmer"
    arguments = [type("Request", (), {"args": (context, continuation)})()]
    options = {"method": "streaming_llm", "budget": 8}
    full = model(checkpoint).loglikelihood(arguments, disable_tqdm=True)[0][0]
    exact = model(checkpoint, **options).loglikelihood(arguments, disable_tqdm=True)[0][0]
    strict = model(checkpoint, strict=True, **options).loglikelihood(arguments, disable_tqdm=True)
    assert exact == pytest.approx(full, abs=1e-5)
    assert abs(strict[0][0] - full) > 1e-5


def test_the_question_behind_a_marker_is_not_compressed(checkpoint: Path) -> None:
    marked = model(checkpoint, method="streaming_llm", budget=8, marker=" ask")
    context, question = marked._parted("the old farmer found . ask king")
    assert marked.tokenizer.decode(question).strip() == "ask king"
    assert marked._parted("the old farmer")[1] == []
    assert len(context) == len(marked.tok_encode("the old farmer found ."))


def test_what_cannot_be_asked_is_refused(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="batch_size='auto'"):
        model(checkpoint, batch_size="auto")
    with pytest.raises(UserError, match="unknown method"):
        model(checkpoint, method="none")
    short = model(checkpoint, max_length=10)
    request = type("Request", (), {"args": (" ".join(WORDS), " the")})()
    with pytest.raises(UserError, match="window has 10"):
        short.loglikelihood([request], disable_tqdm=True)


@pytest.mark.parametrize(
    ("words", "model"),
    [
        ("", "catekv"),
        ("run --tasks piqa", "catekv"),
        ("--model=hf --tasks piqa", "hf"),
        ("-M hf", "hf"),
        ("run --config {settings}", "hf"),
        ("--config={settings}", "hf"),
        ("-C {settings} --model dummy", "dummy"),
    ],
)
def test_the_harness_runs_the_model_that_is_named(words: str, model: str, tmp_path: Path) -> None:
    from lm_eval._cli.harness import HarnessCLI
    from lm_eval.config.evaluate_config import EvaluatorConfig

    settings = tmp_path / "settings.yaml"
    settings.write_text("model: hf\ntasks: [piqa]\n")
    made = lm_eval_command.with_our_model(words.format(settings=settings).split())
    parsed = HarnessCLI()._parser.parse_args(made if made[0] == "run" else ["run", *made])
    config = EvaluatorConfig.load_yaml_config(parsed.config) if parsed.config else {}
    assert (parsed.model or config["model"]) == model


@pytest.mark.parametrize("words", ["ls tasks", "run --help", "--help", "validate --tasks piqa"])
def test_what_runs_no_model_is_passed_on_as_it_is(words: str) -> None:
    assert lm_eval_command.with_our_model(words.split()) == words.split()


@pytest.mark.slow  # the command looks through thousands of tasks
def test_the_command_runs_the_harness(
    checkpoint: Path, tasks_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from catekv.commands.cli import main

    words = ["lm-eval", "--tasks", "local_choice", "--include_path", str(tasks_folder)]
    words += ["--model_args", f"pretrained={checkpoint},method=snapkv,budget=8,window=4"]
    assert main(words) == 0
    assert "local_choice" in capsys.readouterr().out


def test_a_tokenizer_that_ends_texts_scores_what_it_would_without(checkpoint: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    requests = [type("Request", (), {"args": (" ".join(WORDS), " king river")})()]
    plain, ending = model(checkpoint), model(checkpoint)
    own = ending.tokenizer
    special = [
        (token, own.convert_tokens_to_ids(token)) for token in (own.bos_token, own.eos_token)
    ]
    ending.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{own.bos_token} $A {own.eos_token}", special_tokens=special
    )
    assert own.encode("the")[-1] == own.eos_token_id
    assert ending.tok_encode("the") == plain.tok_encode("the")
    scores = [known.loglikelihood(requests, disable_tqdm=True) for known in (plain, ending)]
    assert scores[0] == scores[1]
