"""Choose alpha, the number of worst heads that get their window only, on validation samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catekv.calibration.cokv.comparison import compare_methods, compared_method, mean_score
from catekv.calibration.cokv.files import ScoreFile
from catekv.calibration.cokv.journal import ALPHA_FILE as ALPHA_FILE
from catekv.errors import UserError
from catekv.evaluation.run.cells import sample_hash
from catekv.files import read_json, write_json
from catekv.models.shape import config_hash

if TYPE_CHECKING:
    from catekv.model import CateKVModel
    from catekv.tasks.core.sample import Sample

#: The published grid.
ALPHAS = (1, 5, 10, 15, 20, 30, 40)


def default_alphas(players: int) -> tuple[int, ...]:
    """The published grid, as far as it leaves a head above the border."""
    return tuple(alpha for alpha in ALPHAS if alpha < players)


@dataclass(frozen=True)
class Tuned:
    """Mean validation scores by capacity and alpha."""

    scores: dict[int, dict[int, float]]

    def best(self, capacity: int) -> int:
        """The best alpha at a capacity; of equals the smallest, which changes least.

        Raises:
            UserError: a capacity that was not tuned.
        """
        if capacity not in self.scores:
            raise UserError(
                f"alpha was tuned at capacities of {', '.join(map(str, self.scores))}, not at "
                f"{capacity}; tune it there too"
            )
        found = self.scores[capacity]
        return max(sorted(found), key=lambda alpha: found[alpha])

    def write(self, path: str | Path, **origin: Any) -> Path:
        content = {
            **origin,
            "capacities": {
                str(capacity): {
                    "alpha": self.best(capacity),
                    "validation_scores": {str(alpha): one for alpha, one in by_alpha.items()},
                }
                for capacity, by_alpha in self.scores.items()
            },
        }
        return write_json(path, content, indent=1)

    @classmethod
    def read(cls, path: str | Path) -> Tuned:
        """Read what :meth:`write` wrote; ``UserError`` if it is not that."""
        try:
            content = read_json(path)["capacities"]
            return cls(
                {
                    int(capacity): {
                        int(alpha): float(score)
                        for alpha, score in entry["validation_scores"].items()
                    }
                    for capacity, entry in content.items()
                }
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"cannot read {path} ({type(error).__name__}: {error}); make it with `catekv cokv "
                "tune`"
            ) from error


def tune(
    model: CateKVModel,
    file: ScoreFile,
    samples: Sequence[Sample],
    capacities: Sequence[int],
    alphas: Sequence[int] = (),
    *,
    batch_size: int = 32,
    chunk_size: int = 8192,
    advance: Callable[[], object] = lambda: None,
) -> Tuned:
    """The method ``cokv`` with every alpha at every capacity, on validation samples.

    Args:
        file: scores of this model.
        samples: those that the scores were made on: a recipe that names others is refused, so that
            alpha cannot be chosen on a test set by mistake.
        capacities: mean entries per head, the window included; spent exactly.
        alphas: default :func:`default_alphas`.

    Raises:
        UserError: scores of another model, samples that are not the recipe's, or an alpha that
            the model does not have.
    """
    file.check_model(model.shape.layers, model.shape.kv_heads, config_hash(model.config))
    recipe = file.recipe
    _check_samples(samples, recipe.get("sample_hashes"))
    alphas = tuple(alphas) or default_alphas(file.layers * file.kv_heads)
    window = int(recipe.get("window", 8))
    methods = {
        f"{capacity}:{alpha}": (
            compared_method(
                "cokv", capacity, window, scores=file.estimates().tolist(), alpha=alpha
            ),
            capacity,
        )
        for capacity in capacities
        for alpha in alphas
    }
    answers = compare_methods(
        model,
        samples,
        methods,
        recipe.get("question", "published"),
        chat_template=recipe.get("chat_template", "auto"),
        batch_size=batch_size,
        chunk_size=chunk_size,
        advance=advance,
    )
    return Tuned(
        {
            capacity: {alpha: mean_score(answers[f"{capacity}:{alpha}"]) for alpha in alphas}
            for capacity in capacities
        }
    )


def _check_samples(samples: Sequence[Sample], hashes: Sequence[str] | None) -> None:
    """Refuse samples that the scores were not made on; old score files do not name theirs."""
    if hashes is None:
        return
    strange = [sample.index for sample in samples if sample_hash(sample) not in set(hashes)]
    if strange:
        raise UserError(
            f"sample {strange[0]} is not one of the validation samples that the scores were "
            "made on; alpha is chosen on validation samples only"
        )
