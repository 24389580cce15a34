"""The model card, written from the files beside the model so that it never says more than they."""

from __future__ import annotations

import math
from pathlib import Path

from catekv.errors import UserError
from catekv.evaluation.tables import markdown_table
from catekv.files import read_json, write_atomically

_TEXT = """\
# Model card: the embedded model

A {parameters:.2f} M parameter Llama with a word-level tokenizer, trained by this repository so that
head-wise cache compression can be tried on heads that really retrieve, without a download. It reads
a toy language only; it is an instrument, not a language model.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("ckpt/embedded")
    tokenizer = AutoTokenizer.from_pretrained("ckpt/embedded")

## Shape
`LlamaForCausalLM`, {layers} layers, hidden size {hidden}, {heads} query and {kv_heads} key-value
heads of {dim} dimensions, MLP {mlp}, vocabulary {vocabulary}, untied output, rope theta {theta:g},
positions up to {positions}; weights stored in bfloat16 and loaded as float32 by default,
{megabytes:.1f} MB.

## Language
Words separated by white space (`catekv/tasks/wording/vocabulary.py`): needles
`note KEY 47 03 88 .`, chains `pass SOURCE NAME .`, coded words for the frequency task, filler and a
small prose grammar. There are 1400 names, so a text of nothing but facts stays free of repetition
up to about 6000 tokens (variable tracking) or 8000 (needles). Values have three tokens.

## Initialisation
Training did not start from random weights alone, because induction emerges too late on two CPU
cores. Set at the start (`experiments/embedded/initialise.py`) and free to change afterwards:
- one constant embedding dimension, of opposite sign for BOS: the means for an attention sink;
- layer 0: six query heads that look 1 to 6 tokens back;
- layers 1 and 2: in each, two query heads of different key-value heads that match the current token
  (layer 2: the last two) with earlier ones and copy what followed.
All other heads, the MLPs and all codes are random. No head was made consistent or adaptive in a
compression method's sense, none is frozen, and nothing was chosen by looking at compression.

## Training
`python -m experiments.embedded.train --seed {seed} --steps {steps} --cooldown {cooldown}
--long-steps {long_steps}`: {steps} steps of about {tokens} tokens (documents of 64 to
4096 tokens, several questions in each; random jumps of the positions train distances that
short documents do not have) and {long_steps}
on longer documents (512 to 4096), Muon on matrices, AdamW on the rest, loss on the
answers plus {language_weight} times the language loss on the other words, products in
{training_dtype}. {minutes:.0f} minutes on two shared CPU cores (torch {torch}).
Losses and quick probes at 512 tokens: `curve.csv`; the whole recipe: `training.json`.
{notes}
Training documents, probes, calibration samples and test samples come from random streams with
different names (`embedded-training`, `embedded-probe`, and those of `catekv.tasks`), so none is
shared. The checkpoint is the last step; it was not selected among others.

## Measured with full attention
Real task builders (`catekv.tasks`, wording small-1, seed {test_seed}, stream `{stream}`), greedy
decoding in float32 with transformers' own cache, nothing compressed. Score: mean share of
references found as whole words, in %; in brackets the share of samples without any error and its
95 % interval (Wilson); n samples a cell.
{measured}
{table}

{shortfall}

`python -m experiments.embedded.evaluate` repeats this.
"""


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share by Wilson's formula; it stays honest at 0 and 100 %."""
    z = 1.959964
    share = right / count
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    low = 0.0 if right == 0 else (centre - spread) / scale
    high = 1.0 if right == count else (centre + spread) / scale
    return low, high


def accuracy_table(scores: dict[str, dict[str, list[float]]]) -> tuple[str, str]:
    """Markdown table of ``"task length"`` cells, and a sentence on the cells below 95."""
    cells = {tuple(name.split()): values["strict"] for name, values in scores.items()}
    lengths = sorted({int(length) for _, length in cells})
    header = ["task", *(name for length in lengths for name in (f"{length} tokens", "n"))]
    rows = []
    below = []
    for task in sorted({task for task, _ in cells}):
        row = [task]
        for length in lengths:
            values = cells.get((task, str(length)), [])
            if not values:
                row += ["-", "0"]
                continue
            mean = 100 * sum(values) / len(values)
            right = sum(value == 1.0 for value in values)
            low, high = wilson(right, len(values))
            share = 100 * right / len(values)
            row += [f"{mean:.1f} ({share:.0f}: {100 * low:.0f} to {100 * high:.0f})"]
            row += [str(len(values))]
            if mean < 95:
                below.append(f"{task} at {length} ({mean:.1f})")
        rows.append(row)
    table = markdown_table(header, rows)
    if below:
        return table, "Below 95 %: " + ", ".join(below) + "."
    return table, "Every cell is at 95 % or above."


def write_card(folder: Path) -> None:
    """Write ``MODEL_CARD.md`` from ``config.json``, ``training.json`` and ``evaluation.json``.

    Raises ``UserError`` if one of them is missing or damaged.
    """
    try:
        text = _text(folder)
    except UserError as error:
        raise UserError(f"{error}; train and evaluate first") from error
    except (LookupError, TypeError, ValueError, AttributeError, OSError) as error:
        raise UserError(
            f"config.json, training.json or evaluation.json in {folder} is damaged "
            f"({type(error).__name__}: {error}); train and evaluate again"
        ) from error
    write_atomically(folder / "MODEL_CARD.md", text)


def _text(folder: Path) -> str:
    config, training, evaluation = (
        read_json(folder / name) for name in ("config.json", "training.json", "evaluation.json")
    )
    recipe = training["recipe"]
    table, shortfall = accuracy_table(evaluation["scores"])
    size = (folder / "model.safetensors").stat().st_size
    return _TEXT.format(
        parameters=size / 2 / 1e6,
        megabytes=size / 1e6,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        dim=config["head_dim"],
        mlp=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        theta=config["rope_parameters"]["rope_theta"],
        positions=config["max_position_embeddings"],
        seed=recipe["seed"],
        steps=recipe["steps"],
        cooldown=recipe["cooldown"],
        long_steps=recipe["long_steps"],
        tokens=recipe["tokens"],
        language_weight=recipe["language_weight"],
        training_dtype=recipe["dtype"],
        minutes=training["seconds"] / 60,
        torch=training["torch"],
        notes="".join(f"\n{note}\n" for note in training.get("notes", [])),
        test_seed=evaluation["seed"],
        stream=evaluation["stream"],
        measured="".join(f"\n{note}\n" for note in evaluation.get("notes", [])),
        table=table,
        shortfall=shortfall,
    )
