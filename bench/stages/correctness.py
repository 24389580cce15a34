"""Every kernel against its definition in float32, on fresh random inputs; and whole models."""

from __future__ import annotations

import torch

from bench.cases import Case, Stage
from bench.checks import decode, model, prompt


def cases(stage: Stage) -> list[Case]:
    """Decode kernels first, then those of the prompt, then whole models."""
    # other numbers in every run
    print(f"seed {torch.seed()}")
    return [*decode.cases(stage), *prompt.cases(stage), *model.cases(stage)]
