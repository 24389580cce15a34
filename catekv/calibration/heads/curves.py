"""Measured loss curves of all heads of a model, from one prefill per text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from catekv.calibration.head_masks.reference import REFERENCE_STREAM, build_samples
from catekv.calibration.heads.gradients import output_gradients
from catekv.calibration.heads.head_scores import HeadScores
from catekv.calibration.heads.layer_errors import layer_errors
from catekv.calibration.relevance.reading import Text, texts_of, visit_layers
from catekv.errors import UserError
from catekv.evaluation.columns.specification import parse_method
from catekv.evaluation.fidelity.passages import pieces_of
from catekv.evaluation.fidelity.settings import PROSE
from catekv.evaluation.options import COUNT, MOST_SAMPLES, option, refuse_source_twice
from catekv.evaluation.records.environment import versions
from catekv.methods import create
from catekv.methods.base import Observed
from catekv.methods.budgeted import Budgeted
from catekv.methods.wrapped import scorer_from
from catekv.models.shape import config_hash
from catekv.tasks.registry import available

if TYPE_CHECKING:
    from catekv.model import CateKVModel

KIND = "loss_curves"
LOSSES = ("gradient", "output")
#: Kept shares at which losses are measured; straight lines between them.
SHARES = (0, 1 / 64, 1 / 32, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
#: What a selector may ask for: the rest is gathered over the later tokens too.
_REFUSED_NEEDS = ("column_sums", "query_moments", "rotation", "all_layers")


@dataclass(frozen=True)
class CurveSettings:
    """On what curves are measured, and how."""

    texts: tuple[str, ...] = option(
        (PROSE, "ruler/niah_multikey_1"),
        "files, tasks (prompt, question and the full model's own answer), or prose, which is "
        "generated (default: {default})",
        metavar="TEXT",
        verbatim=True,
    )
    length: int = option(1536, "tokens of a text (default: {default})", **COUNT)
    samples: int = option(4, "of every text (default: {default})", least=1, most=MOST_SAMPLES)
    later: int = option(
        64,
        "last tokens of a text, whose outputs are compared; of a task at most so many of the "
        "answer (default: {default})",
        **COUNT,
    )
    selector: str = option(
        "snapkv",
        "method whose scores say what a head keeps, NAME[:option=value,...] (default: {default})",
        metavar="METHOD",
    )
    loss: str = option(
        LOSSES[0],
        "gradient: first-order estimate of what the error of the layer's attention output does to "
        "the likelihood of the later tokens, from one backward pass (default); output: that error "
        "itself, in less memory",
        choices=LOSSES,
    )
    seed: int = option(42, "of the texts (default: {default})")


def selector_of(text: str) -> Budgeted:
    """The method that scores tokens.

    Raises:
        UserError: one that gives no scores, or scores by more than the last queries.
    """
    written = parse_method(text)
    method = scorer_from(create(written.name, **written.options))
    asked = [need for need in _REFUSED_NEEDS if getattr(method.needs, need)]
    if asked:
        raise UserError(
            f"{written.name} scores tokens by {asked[0]}, which the texts' later tokens would "
            "change; use one that looks at the last queries or at the entries themselves, such as "
            "snapkv, tova or keydiff"
        )
    return method


def _is_task(source: str) -> bool:
    return source in available() or source.endswith((".json", ".jsonl"))


def read_texts(
    model: CateKVModel, settings: CurveSettings, chat_template: str = "auto"
) -> list[Text]:
    """The texts as contexts and what follows them.

    Raises:
        UserError: an unknown task, a text that is too short or given twice, or a template that no
            task takes.
    """
    refuse_source_twice("--texts", settings.texts)
    if chat_template != "auto" and not any(map(_is_task, settings.texts)):
        raise UserError("--chat-template is for tasks, and --texts has none; leave it out")
    if settings.later >= settings.length:
        raise UserError(
            f"--later {settings.later} leaves no context in a length of {settings.length}; give a "
            "larger --length"
        )
    found: list[Text] = []
    for source in settings.texts:
        if _is_task(source):
            built = build_samples(
                source, model.tokenizer, settings.length, settings.samples, settings.seed,
                REFERENCE_STREAM, chat_template,
            )  # fmt: skip
            found += texts_of(model, built, settings.later, chat_template)
            continue
        pieces = pieces_of(
            source, settings.length, settings.samples, settings.seed, model.tokenizer,
            REFERENCE_STREAM,
        )  # fmt: skip
        found += [
            Text(tuple(ids[: -settings.later]), tuple(ids[-settings.later :])) for ids in pieces
        ]
    return found


def measure_curves(
    model: CateKVModel,
    texts: Sequence[Text],
    settings: CurveSettings,
    *,
    origin: dict[str, Any] | None = None,
    advance: Callable[[], object] = lambda: None,
) -> HeadScores:
    """Losses of all heads of all texts. A head's importance is the area under its curve.

    By gradient a loss is the first-order estimate of :func:`layer_errors`: nats per later token. By
    output it is the squared error of the layer's attention output, over the squared norm of the
    hidden states that it is added to: losses of different layers may be summed. ``errors`` of
    the file are over the squared norm of the output itself, ``weights`` what they are multiplied
    with for that.

    Args:
        origin: what the recipe says of the model besides its configuration.
        advance: called after every text.

    Raises:
        UserError: a context that the selector keeps whole, or a model without layers to compress.
    """
    selector = selector_of(settings.selector)
    wall, processor = time.perf_counter(), time.process_time()
    rows, errors, weights = [], [], []
    for text in texts:
        if len(text.context) <= selector.edges() + len(SHARES):
            raise UserError(
                f"a context of {len(text.context)} tokens leaves nothing to choose from behind the "
                f"{selector.edges()} always kept; give a larger --length"
            )
        read = _read(model, text, selector, settings.loss)
        errors.append(read.errors)
        weights.append(read.weights)
        rows.append(read.losses)
        advance()
    losses = np.stack(rows)
    areas = (losses[..., 1:] + losses[..., :-1]) / 2 @ np.diff(SHARES)
    recipe = {
        "kind": KIND,
        **asdict(settings),
        "context_tokens": [len(text.context) for text in texts],
        "config_hash": config_hash(model.config),
        **(origin or {}),
        "seconds": round(time.perf_counter() - wall, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        "versions": versions(),
    }
    arrays = {
        "shares": np.array(SHARES),
        "losses": losses.mean(axis=0),
        "errors": np.stack(errors).astype(np.float32),
        "weights": np.stack(weights),
    }
    return HeadScores(areas, recipe, arrays)


class _Read(NamedTuple):
    """Of one text: errors and losses [layers, kv_heads, shares], weights [layers]; 0 in layers that
    are not compressed."""

    errors: Any
    weights: Any
    losses: Any


def _read(model: CateKVModel, text: Text, selector: Budgeted, loss: str) -> _Read:
    errors = np.zeros((model.shape.layers, model.shape.kv_heads, len(SHARES)))
    found = _Read(errors, np.zeros(model.shape.layers), np.zeros_like(errors))
    gradients = output_gradients(model, text) if loss == "gradient" else {}

    def visit(observed: Observed) -> None:
        layer = observed.layer
        one = layer_errors(observed, len(text.context), selector, SHARES, gradients.get(layer))
        found.errors[layer], found.weights[layer] = one.errors.numpy(), one.weight
        lost = one.errors * one.weight if one.changes is None else one.changes
        found.losses[layer] = lost.numpy()

    needs = replace(
        selector.needs,
        window=selector.needs.window + len(text.later),
        hidden_states=True,
        output_projection=True,
    )
    visit_layers(model, text, visit, needs=needs)
    if not found.weights.any():
        raise UserError(
            "no layer of this model attends to the whole context, so nothing is compressed and no "
            "head has a curve; use a model with full attention"
        )
    return found
