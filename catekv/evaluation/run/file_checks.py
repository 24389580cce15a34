"""Whether the samples of a file can stand in one run."""

from __future__ import annotations

from collections.abc import Sequence

from catekv.errors import UserError
from catekv.evaluation.columns.settings import RunSettings
from catekv.tasks.core.sample import Sample


def check_file(path: str, samples: Sequence[Sample], settings: RunSettings) -> None:
    """``UserError`` for equal indices, several tasks, or, in all samples, an unknown end of the
    context that the question mode needs."""
    seen: dict[int, int] = {}
    for position, sample in enumerate(samples):
        if sample.index in seen:
            raise UserError(
                f"{path}: samples {seen[sample.index] + 1} and {position + 1} both have index "
                f"{sample.index}; the file may be two files in one, build it again"
            )
        seen[sample.index] = position
        if sample.task != samples[0].task:
            raise UserError(
                f"{path} mixes {samples[0].task} and {sample.task}; give every task a file"
            )
    unmarked = all(sample.metadata.get("query_aware_only") for sample in samples)
    if unmarked and "agnostic" in settings.questions:
        raise UserError(
            f"{path} does not mark where the question begins; run it with --question aware"
        )


def tokenizer_warning(path: str, samples: Sequence[Sample], own: str) -> tuple[str, ...]:
    """Refuses a file of several tokenizers; warns about one made for another model."""
    made = {
        str(known): str(sample.metadata.get("tokenizer", ""))
        for sample in samples
        if (known := sample.metadata.get("tokenizer_hash"))
    }
    if len(made) > 1:
        raise UserError(
            f"{path} mixes samples built for {len(made)} tokenizers; build it again for one"
        )
    if not made or own in made:
        return ()
    name = next(iter(made.values())) or "another one"
    return (
        f"{path} was built for another tokenizer ({name}); its samples are longer or shorter than "
        "their target in tokens of this model",
    )
