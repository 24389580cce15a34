"""GGUF files are taken wherever a model is, and refused in one line where they cannot be read."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_gguf import save_tiny_gguf, tiny_llama

from catekv.commands.cli import main
from catekv.errors import UserError
from catekv.evaluation.columns import defaults
from catekv.evaluation.records.environment import model_identity
from catekv.evaluation.run.request import Request
from catekv.loading import read_config
from catekv.model import CateKVModel
from catekv.models import source
from catekv.models.source import model_source, short_name

pytest.importorskip("gguf", reason="needs the extra gguf")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.Q8.gguf", tiny_llama())


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_the_weights_are_those_of_the_model(written: Path):
    model = CateKVModel.from_pretrained(written, "full", device="cpu")
    ids = torch.arange(2, 26).view(1, -1)
    with torch.no_grad():
        expected = tiny_llama()(ids).logits
        torch.testing.assert_close(model.model(ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert model.tokenizer.decode(model.tokenizer("the a").input_ids) == "the a"
    assert read_config(str(written)).num_hidden_layers == 2


def test_a_log_holds_no_bar_of_its_tensors(written: Path, capfd: pytest.CaptureFixture[str]):
    CateKVModel.from_pretrained(written, method="full")
    assert "%" not in capfd.readouterr().err


def test_it_is_compressed_and_generates(written: Path):
    model = CateKVModel.from_pretrained(written, "snapkv", budget=64, device="cpu")
    context = model.prefill("the a " * 60)
    assert context.kept_share() < 1
    answer = model.generate_ids([33], context, 3, stop_token_ids=[])
    assert len(answer.tokens) == 3


def test_every_command_takes_it(
    written: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", str(written), "--length", "256", "--method", "snapkv"]) == 0
    assert main(["doctor", "--model", str(written)]) == 0
    assert "2 layers, 4 query heads, 2 KV heads of 8" in capsys.readouterr().out
    Path("text.txt").write_text("the a " * 60)
    generate = ["generate", "--model", str(written), "--context", "text.txt"]
    assert main([*generate, "--question", "the", "--method", "full", "--max-new-tokens", "2"]) == 0


def test_names_and_hashes(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert Request(model=str(written)).model_name == "tiny.Q8"
    assert short_name("org/name:file-Q4.GGUF") == "file-Q4"
    assert short_name("org/name") == "name"
    monkeypatch.chdir(tmp_path)
    (Path("results") / "headmask-tiny.Q8" / "chosen").mkdir(parents=True)
    assert defaults.shipped_masks(Request(model=str(written)).model_name) is not None
    copy = shutil.copy(written, tmp_path / "other.gguf")
    assert model_identity(copy) == model_identity(written)
    other = save_tiny_gguf(tmp_path / "tiny.Q8.gguf", tiny_llama(seed=1))
    assert model_identity(other) != model_identity(written)


def test_a_file_of_a_hub_repository():
    found = model_source("org/name:folder/file.gguf")
    assert (found.place, found.file) == ("org/name", "folder/file.gguf")
    assert not found.local


def test_missing_and_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    missing = str(tmp_path / "none.gguf")
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("a")
    for arguments in (
        ["evaluate", "--model", missing, "--methods", "full"],
        ["calibrate", "--model", missing],
        ["plan", missing, "--length", "64"],
        ["generate", "--model", missing, "--context", "text.txt", "--question", "b"],
    ):
        assert "there is no GGUF file" in refused(arguments, capsys), arguments
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"")
    with pytest.raises(UserError, match=r"is a file; pass the folder of a checkpoint or a \.gguf"):
        CateKVModel.from_pretrained(weights, "full")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.1, 0.3, 0.6, 0.99])
def test_a_torn_file(
    share: float, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    content = written.read_bytes()
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(content[: int(len(content) * share)])
    line = refused(["evaluate", "--model", str(torn), "--methods", "full"], capsys)
    assert "GGUF file" in line
    assert "give a complete one" in line


def test_another_architecture_or_other_weights(tmp_path: Path):
    unknown = save_tiny_gguf(tmp_path / "a.gguf", tiny_llama(), architecture="mamba9")
    with pytest.raises(UserError, match=r"mamba9.*an architecture that transformers reads"):
        read_config(str(unknown))
    more = save_tiny_gguf(tmp_path / "b.gguf", tiny_llama(), layers=3)
    with pytest.raises(UserError, match="no checkpoint of its configuration"):
        CateKVModel.from_pretrained(more, "full")


def test_a_file_without_tokenizer_takes_token_ids(tmp_path: Path):
    file = save_tiny_gguf(tmp_path / "ids.gguf", tiny_llama(), tokenizer=False)
    model = CateKVModel.from_pretrained(file, "full", device="cpu")
    assert model.tokenizer is None
    assert model.prefill(torch.arange(2, 26).view(1, -1)).kept_share() == 1


def test_without_the_packages(written: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(source, "_PACKAGES", ("no_such_package_here",))
    assert importlib.util.find_spec("no_such_package_here") is None
    with pytest.raises(UserError, match=r"no_such_package_here; .*pip install 'catekv\[gguf\]'"):
        read_config(str(written))


def test_a_folder_still_needs_its_configuration(tmp_path: Path):
    (tmp_path / "notes.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"has no config\.json"):
        CateKVModel.from_pretrained(tmp_path, "full")


def test_a_hub_that_does_not_answer_is_asked_for_nothing(monkeypatch: pytest.MonkeyPatch):
    answers = {"no/such": [], "no/such:a.gguf": ["gguf_file"]}
    for name, always in answers.items():
        monkeypatch.setattr(source, "hub_answers", lambda: True)
        assert list(source.model_source(name).options) == always
        monkeypatch.setattr(source, "hub_answers", lambda: False)
        assert list(source.model_source(name).options) == [*always, "local_files_only"]
    with pytest.raises(UserError, match=r"no readable configuration.*filled cache"):
        read_config("no/such")
