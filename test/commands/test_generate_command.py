"""``catekv generate``: what the model reads, and what is refused."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import save_tiny_checkpoint
from transformers import AutoTokenizer

from catekv.commands import cli
from catekv.model import CateKVModel


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


CHAT = (
    "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}anna is{% endif %}"
)


def test_generate_asks_in_the_tokenizers_template(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "chat")
    (folder / "chat_template.jinja").write_text(CHAT)
    text = tmp_path / "text.txt"
    text.write_text("the road is long . " * 20)
    asked: list[list[int]] = []
    answer = CateKVModel.generate

    def spy(self: CateKVModel, ids: list[int], context: Any, **options: Any) -> Any:
        asked.append([*context.input_ids[0].tolist(), *ids])
        return answer(self, ids, context=context, **options)

    monkeypatch.setattr(CateKVModel, "generate", spy)
    words = ["generate", "--model", str(folder), "--context", str(text), "--question", "rain",
             "--method", "full", "--max-new-tokens", "1"]  # fmt: skip
    for more in (
        [],
        ["--system", "soft"],
        ["--chat-template", "none"],
        ["--chat-template", "base"],
    ):
        assert cli.main([*words, *more]) == 0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    user = {"role": "user", "content": text.read_text() + "rain"}
    chats = [[user], [{"role": "system", "content": "soft"}, user]]
    for chat, ids in zip(chats, asked, strict=False):
        assert ids == tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=False
        )
    plain = tokenizer(user["content"]).input_ids
    assert asked[2:] == [plain, plain]
    capsys.readouterr()
    assert cli.main([*words, "--system", "soft", "--chat-template", "none"]) == 2
    assert "no place for a system message" in capsys.readouterr().err
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no\\nway') }}")
    evaluate = ["evaluate", "--model", str(folder), "--methods", "full", "--tasks", "ruler/vt",
                "--lengths", "512", "--output", str(tmp_path / "run")]  # fmt: skip
    for command in (words, evaluate):
        assert cli.main(command) == 2
        error = capsys.readouterr().err
        assert "does not take these messages: no way; choose a chat template by name, or" in error
        assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            "--method snapkv:budget=32 --budget 16",
            "--budget and the option budget of the method say",
        ),
        (
            "--method catekv:init_tokens=1 --init-tokens 0",
            "--init-tokens and the option init_tokens of",
        ),
        ("--max-new-tokens 0", "'0' is out of range"),
        ("--context empty.txt", "empty.txt holds no text"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_text_is_read(
    more: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CateKVModel, "from_pretrained", None)
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("the road is long")
    (tmp_path / "empty.txt").write_text(" \r\n")
    words = ["generate", "--context", str(text), "--question", "rain", *more.split()]
    with contextlib.suppress(SystemExit):
        assert cli.main(words) == 2
    assert message in capsys.readouterr().err


def test_a_model_without_masks_is_told_what_to_do_before_it_is_loaded(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loaded(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(CateKVModel, "from_pretrained", loaded)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the road is long")
    of_text = ["--context", "text.txt", "--question", "rain"]
    for command in (["generate", *of_text], ["evaluate"], ["fidelity"], ["efficiency"]):
        assert cli.main([*command, "--model", str(checkpoint)]) == 2
        error = capsys.readouterr().err
        assert "take a method without, e.g. snapkv (`catekv methods` lists them)" in error
        assert f"`catekv calibrate --model {checkpoint} --quick`" in error
    with pytest.raises(SystemExit):
        cli.main(["generate", "--help"])
    first = capsys.readouterr().out.partition("usage:")[0]
    for words in ("--method snapkv:", "catekv calibrate --model MODEL --quick", "minutes"):
        assert words in first
    assert max(map(len, first.splitlines())) <= 80
