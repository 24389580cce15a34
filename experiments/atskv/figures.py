"""Figures of the experiment."""

from __future__ import annotations

import statistics
from typing import Any

from catekv.errors import UserError
from catekv.evaluation.figure_files import write_figure
from catekv.evaluation.plots import lines
from catekv.evaluation.report.styles import COLOURS
from experiments.atskv.cells import METRICS
from experiments.atskv.outputs import Output

TITLES = {
    "memory_usage": "Memory on the device",
    "time_to_first_token": "Time to first token",
    "generation_time": "Generation time",
    "tokens_per_second": "Throughput",
    "accuracy": "Accuracy",
    "perplexity": "Perplexity of the right answer",
}
#: figures over all benchmarks: file name -> metric and axis
COMPARISONS = {
    "memory_reduction_comparison": ("memory_reduction", "memory reduction on the device (%)"),
    "accuracy_comparison": ("accuracy", "accuracy"),
    "throughput_comparison": ("tokens_per_second", "tokens/s"),
}


def draw(output: Output) -> list[str]:
    """All figures that have numbers; returns their paths relative to the folder."""
    drawn = []
    for slug, name in output.benchmarks().items():
        for metric, unit in METRICS.items():
            curves = {}
            for method in output.methods():
                points = [
                    (float(cell.size), value)
                    for cell in output.of(slug, method)
                    if (value := cell.values[metric]) is not None
                ]
                if points:
                    places, values = zip(*points, strict=True)
                    curves[method] = (places, values)
            if curves:
                path = f"results/{slug}/{metric}.png"
                _save(output, path, lines, curves, f"{name}: {TITLES[metric]}",
                      "context size (tokens)", unit or TITLES[metric])  # fmt: skip
                drawn.append(path)
    for file, (metric, label) in COMPARISONS.items():
        groups = _means(output, metric)
        if groups:
            path = f"results/{file}.png"
            _save(output, path, _bars, groups, output.methods(), label)
            drawn.append(path)
    both = _means(output, "memory_reduction"), _means(output, "accuracy")
    if all(both):
        path = "results/performance_vs_efficiency.png"
        _save(output, path, _scatter, *both, output.methods())
        drawn.append(path)
    return drawn


def _save(output: Output, path: str, function: Any, *arguments: Any) -> None:
    target = output.folder / path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        function(target, *arguments)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from error


def _means(output: Output, metric: str) -> dict[str, dict[str, float]]:
    """Per benchmark and method the mean over the sizes that every method was measured at."""
    found: dict[str, dict[str, float]] = {}
    for slug, name in output.benchmarks().items():
        for method in output.methods():
            values = [
                value
                for cell in output.compared(slug, method)
                if (value := cell.values[metric]) is not None
            ]
            if values:
                found.setdefault(name, {})[method] = statistics.fmean(values)
    return found


def _figure(width: float) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.8), layout="constrained")
    return figure


def _bars(path: Any, groups: dict[str, dict[str, float]], methods: list[str], label: str) -> None:
    figure = _figure(max(6.4, 1.6 + 1.8 * len(groups)))
    axis = figure.subplots()
    axis.set_prop_cycle(color=COLOURS)
    width = 0.8 / len(methods)
    for place, method in enumerate(methods):
        known = [(at, group[method]) for at, group in enumerate(groups.values()) if method in group]
        axis.bar([at + (place + 0.5) * width - 0.4 for at, _ in known],
                 [value for _, value in known], width, label=method)  # fmt: skip
    axis.set_xticks(range(len(groups)), list(groups))
    axis.set_ylabel(label)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    write_figure(path, figure)


def _scatter(
    path: Any,
    memory: dict[str, dict[str, float]],
    accuracy: dict[str, dict[str, float]],
    methods: list[str],
) -> None:
    figure = _figure(6.4)
    axis = figure.subplots()
    axis.set_prop_cycle(color=COLOURS)
    for method in methods:
        shared = [name for name in memory if method in memory[name] and method in accuracy[name]]
        if shared:
            axis.scatter([memory[name][method] for name in shared],
                         [accuracy[name][method] for name in shared], label=method)  # fmt: skip
    axis.set(xlabel="memory reduction on the device (%)", ylabel="accuracy",
             title="a point per benchmark")  # fmt: skip
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    write_figure(path, figure)
