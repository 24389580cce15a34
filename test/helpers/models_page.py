"""Writes docs/models.md: what becomes of every causal decoder of transformers.

python test/helpers/models_page.py            # the whole page, some minutes
python test/helpers/models_page.py llama glm4  # rows of some kinds, printed
"""

from __future__ import annotations

import sys
from pathlib import Path

import transformers
from decoder_walk import Finding, walk
from small_decoders import decoder_names

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
#: Longest difference of logits that counts as rounding.
ROUNDING = 2e-5
HEAD = f"""# Models

Every kind of causal language model that transformers {transformers.__version__} lists, tried
with a small configuration and random weights: a prompt of 48 tokens and six greedy tokens in fp32,
once by the stock model and once with a compressed cache that keeps everything; then with half of
the budget. `python test/helpers/models_page.py` writes this page, and the tests compare its rows.
Sizes, rotary scaling and quantisation do not matter; what counts is how the model's code attends.
Models that read pictures too (mistral3, qwen3_vl, ...) are loaded with their eyes and read text. A
kind that is not here, remote code for example, is tried when it is loaded: a few tokens say whether
its attention can be compressed, and it is refused with one sentence if not.

"""
RUNS = """## Compressed

The logits differ from the stock model's by what stands under *difference*, and the greedy tokens
are the same. Layers of other kinds keep what transformers keeps for them. *Fed in* says how many
tokens a forward may bring behind a cache: a model with some recurrent layers takes them one by one.
*Rows* of a batch may be of any length, or of one length only where the model counts padding as
tokens.

| model type | compressed layers | other layers | fed in | rows | difference |
|---|---|---|---|---|---|
"""
PLAIN = """
## As the stock model, nothing compressed

No layer of these keeps its keys and values in a layer of the cache that a method could choose from.
Layers that hold recurrent states beside keys and values would need a cache layer that compresses
the second and leaves the first.

| model type | layers | fed in | rows | difference |
|---|---|---|---|---|
"""
REFUSED = """
## Refused

Loading ends with this sentence, before any prompt is read. A second call of attention per update
(differential attention) would need both sets of queries observed; a bias in the mask would need to
be kept with every token that is kept; states outside of the cache, a copy for every context.
Rolling a compressed cache back (assisted and speculative decoding) is refused for all models: it
would need the entries that were dropped.

| model type | why, and what it would need |
|---|---|
"""
NOT_TRIED = """
## Not tried

| model type | why |
|---|---|
"""


def row(name: str, finding: Finding) -> str:
    """One line of the page, without its end."""
    if finding.reason is not None:
        return f"| `{name}` | {finding.reason} |"
    if not finding.same_tokens:
        raise ValueError(f"{name}: another answer than the stock model's")
    if finding.off > ROUNDING:
        raise ValueError(f"{name}: logits differ from the stock model's by {finding.off:.1e}")
    difference = "0" if finding.off == 0 else f"below {ROUNDING:.0e}"
    rows = "any length" if finding.hides_padding else "one length"
    end = f"{finding.continues_by} | {rows} | {difference} |"
    if not finding.compressed:
        return f"| `{name}` | {', '.join(finding.others)} | {end}"
    others = ", ".join(finding.others) or "none"
    return f"| `{name}` | {finding.compressed} of 4 | {others} | {end}"


def page(findings: dict[str, Finding]) -> str:
    """The page for findings by name."""

    def rows(wanted: object) -> str:
        return "".join(
            row(name, one) + "\n" for name, one in findings.items() if _place(one) == wanted
        )

    parts = [(RUNS, "runs"), (PLAIN, "plain"), (REFUSED, "refused"), (NOT_TRIED, "not tried")]
    return HEAD + "".join(title + rows(place) for title, place in parts)


def _place(finding: Finding) -> str:
    if finding.reason is not None:
        return "refused" if finding.tried else "not tried"
    return "runs" if finding.compressed else "plain"


def main() -> None:
    transformers.logging.set_verbosity_error()
    names = sys.argv[1:]
    if names:
        for name in names:
            print(row(name, walk(name)), flush=True)
        return
    findings = {}
    for name in decoder_names():
        print(name, flush=True)
        findings[name] = walk(name)
    PAGE.write_text(page(findings), encoding="utf-8")


if __name__ == "__main__":
    main()
