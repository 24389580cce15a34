"""``results.md``: every sentence follows from the numbers beside it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from catekv.evaluation.tables import markdown_table
from experiments.atskv.cells import Cell
from experiments.atskv.outputs import Output

#: figures per benchmark in the text, as published
SHOWN = ("memory_usage", "time_to_first_token", "tokens_per_second", "accuracy")


def mean(cells: Sequence[Cell], name: str) -> float | None:
    """Mean of a value over the cells that have it."""
    known = [value for cell in cells if (value := cell.values[name]) is not None]
    return statistics.fmean(known) if known else None


def method_table(output: Output, slug: str) -> str:
    """The published table, with what all tiers save and perplexity beside it."""
    rows = []
    for method in output.methods():
        cells = output.compared(slug, method)
        accuracy = mean(cells, "accuracy")
        rows.append(
            [
                method,
                _text(mean(cells, "memory_reduction"), 1),
                _text(mean(cells, "memory_reduction_all_tiers"), 1),
                _text(mean(cells, "time_to_first_token"), 3),
                _text(mean(cells, "tokens_per_second"), 2),
                _text(None if accuracy is None else 100 * accuracy, 2),
                _text(mean(cells, "perplexity"), 3),
            ]
        )
    header = [
        "Method", "Memory Reduction (%)", "of all tiers (%)", "Avg. Time to First Token (s)",
        "Avg. Throughput (tokens/s)", "Avg. Accuracy (%)", "Avg. Perplexity",
    ]  # fmt: skip
    return markdown_table(header, rows)


def all_tables(output: Output) -> str:
    """All benchmarks as text."""
    return "\n\n".join(
        f"{name}\n{method_table(output, slug)}" for slug, name in output.benchmarks().items()
    )


def size_table(output: Output, slug: str) -> str:
    """Accuracy and memory at every size."""
    rows = []
    for method in output.methods():
        for cell in output.of(slug, method):
            accuracy = cell.values["accuracy"]
            rows.append(
                [
                    method,
                    str(cell.size),
                    _text(None if accuracy is None else 100 * accuracy, 2),
                    _text(cell.values["memory_usage"], 3),
                    _text(cell.values["memory_total"], 3),
                    _text(cell.values["memory_full"], 3),
                    cell.reason or "",
                ]
            )
    header = ["Method", "Size", "Accuracy (%)", "Device MiB", "All tiers MiB", "Full MiB", "Note"]
    return markdown_table(header, rows, left=(0, -1))


def results_text(output: Output, drawn: Sequence[str]) -> str:
    """The whole text in Markdown."""
    configuration = output.configuration
    sizes = sorted({cell.size for cell in output.cells})
    counts = sorted({len(cell.measurements) for cell in output.cells if cell.measurements})
    parts = [
        "# Measured: KV cache methods at several context sizes",
        f"Every number was measured on {configuration.get('model')} "
        f"({configuration.get('dtype')}, {configuration.get('device')}); none is from a formula. "
        "Memory reduction is 1 - method/full at the same context, of what must lie on the device; "
        "the second column counts passive tiers too.",
        "## Set-up",
        f"- Benchmarks: {', '.join(output.benchmarks().values())}\n"
        f"- Methods: {', '.join(output.methods())}\n"
        f"- Context sizes: {', '.join(map(str, sizes))} tokens of prompt and answer\n"
        f"- Examples per benchmark and size: {', '.join(map(str, counts)) or 'none'}; "
        f"seed {configuration.get('seed')}\n" + _data_lines(output),
    ]
    for slug, name in output.benchmarks().items():
        figures = [path for path in drawn if path.startswith(f"results/{slug}/")
                   and path.rpartition("/")[2].removesuffix(".png") in SHOWN]  # fmt: skip
        parts += [f"## {name}", _images(figures), method_table(output, slug),
                  size_table(output, slug)]  # fmt: skip
    across = [path for path in drawn if path.count("/") == 1]
    if across:
        parts += ["## Across benchmarks", _images(across)]
    parts += [
        "## Analysis",
        "### Key findings",
        _findings(output),
        "### Limitations",
        _limitations(output),
        "## Conclusion",
        _conclusion(output),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _data_lines(output: Output) -> str:
    found: dict[str, set[str]] = {}
    for cell in output.cells:
        if cell.data:
            found.setdefault(cell.benchmark, set()).add(cell.data)
    return "\n".join(f"- Data of {name}: {', '.join(sorted(data))}" for name, data in found.items())


def _images(paths: Sequence[str]) -> str:
    return "\n".join(f"![{path.rpartition('/')[2].removesuffix('.png')}]({path})" for path in paths)


def _findings(output: Output) -> str:
    lines = []
    for slug, name in output.benchmarks().items():
        scores = {
            method: value
            for method in output.methods()
            if (value := mean(output.compared(slug, method), "accuracy")) is not None
        }
        if not scores:
            continue
        best = max(scores.values())
        leaders = [method for method, value in scores.items() if value == best]
        saved = {
            method: mean(output.compared(slug, method), "memory_reduction") for method in scores
        }
        least = max(saved, key=lambda method: saved[method] or 0.0)
        lines.append(
            f"- {name}: highest accuracy {100 * best:.1f}% ({', '.join(leaders)}); least memory on "
            f"the device with {least} ({_saved(saved[least])} than uncompressed, accuracy "
            f"{100 * scores[least]:.1f}%)."
        )
        if {"full", "atskv"} <= set(scores):
            gap = 100 * (scores["atskv"] - scores["full"])
            everything = mean(output.compared(slug, "atskv"), "memory_reduction_all_tiers")
            lines.append(
                f"  atskv against full: {gap:+.1f} points, {_saved(saved['atskv'])} on the "
                f"device, {_saved(everything)} over all tiers."
            )
    return "\n".join(lines) or "Nothing was measured."


def _limitations(output: Output) -> str:
    configuration = output.configuration
    counts = [len(cell.measurements) for cell in output.cells if cell.measurements]
    lines = []
    if counts:
        lines.append(
            f"- At least {min(counts)} examples a cell: one answer more or less changes "
            f"its accuracy by up to {100 / min(counts):.0f} points."
        )
    if configuration.get("untrained"):
        lines.append("- atskv's relevance comes from random weights: its quality means nothing.")
    if any(
        cell.measurements and cell not in output.compared(cell.slug, cell.method)
        for cell in output.cells
    ):
        lines.append("- Means are over the sizes at which every method could be measured.")
    if any(cell.data == "built-in" for cell in output.cells):
        lines.append(
            "- Data marked built-in is generated by this project, not taken from a benchmark's own "
            "rows."
        )
    if str(output.configuration.get("device", "")).startswith("cpu"):
        lines.append(
            "- On a CPU passive tiers lie in the same memory and nothing is copied: times say "
            "nothing about a GPU."
        )
    for reason in dict.fromkeys(cell.reason for cell in output.cells if cell.reason):
        lines.append(f"- Not measured: {reason}.")
    failed = sum(len(cell.failed) for cell in output.cells)
    if failed:
        lines.append(f"- {failed} measurements failed; the JSON files hold their errors.")
    return "\n".join(lines) or "- None that the data shows."


def _conclusion(output: Output) -> str:
    rows = []
    for method in output.methods():
        cells = [cell for slug in output.benchmarks() for cell in output.compared(slug, method)]
        accuracy, saved = mean(cells, "accuracy"), mean(cells, "memory_reduction")
        if accuracy is not None and saved is not None:
            rows.append(f"{method} {100 * accuracy:.1f}% at {_saved(saved)}")
    return "Mean accuracy and memory on the device over all benchmarks and sizes: " + (
        "; ".join(rows) + "." if rows else "nothing was measured."
    )


def _saved(percent: float | None) -> str:
    """A memory reduction in words."""
    value = 0.0 if percent is None else round(percent, 1)
    return f"{abs(value):.1f}% {'more' if value < 0 else 'less'}"


def _text(value: float | None, digits: int) -> str:
    if value is None:
        return "-"
    # a number that rounds to nothing has no sign
    return f"{round(value, digits) + 0.0:.{digits}f}"
