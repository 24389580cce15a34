"""How long building takes: 100 samples of 32,768 tokens of every generated task in a minute."""

from __future__ import annotations

import time

import pytest
import ruler_tokenizers

from catekv import tasks
from catekv.tasks.registry import available, find
from catekv.tasks.rows.sources import DataOptions
from catekv.tasks.wording.tokenizer import build_tokenizer

LENGTH = 32768
#: a fifth of the samples in a fifth of the time, what is done once for all of them included
SAMPLES, SECONDS = 20, 12.0

#: problems and texts that nobody can make up
_READ = (
    *(f"reasoning/{name}" for name in ("math500", "aime24", "aime25")),
    *(f"scbench/{name}" for name in ("qa_chn", "passkey", "kv_hard", "hashhop", "kv_compressible")),
)
TASKS = [task for task in available() if task not in _READ]
#: what the embedded model's vocabulary cannot say is built with the other one alone
CASES = [
    (task, kind)
    for task in TASKS
    for kind in ("byte_level", "embedded")
    if kind == "byte_level" or find(task).small
]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "kind"), CASES)
def test_building_takes_no_longer(task: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``-rP`` prints the seconds of the processor."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # one core
    tokenizer = build_tokenizer() if kind == "embedded" else ruler_tokenizers.byte_level()
    natural = isinstance(find(task).options, DataOptions) and find(task).natural
    options = {"source": "built-in"} if natural else {}
    before = time.process_time()
    samples = tasks.build(task, tokenizer, LENGTH, SAMPLES, **options)
    seconds = time.process_time() - before
    print(f"{task}, {kind}: {seconds * 100 / SAMPLES:.1f} s for 100 samples of {LENGTH} tokens")
    # turns of mixed sessions have allowances of two sizes, and share the text of the longer
    assert all(LENGTH * 0.97 <= sample.length <= LENGTH for sample in samples)
    assert seconds < SECONDS
