"""Pictures of a comparison: final accuracy by method, and accuracy along the gradients spent."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rts_hf.reports.comparison import split_of, task
from rts_hf.reports.figures import INK, STYLE, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, and marks that tell more methods than there are colours apart.
COLOURS = ("#404040", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKS = "osD^vPX"


def draw_comparison(
    folder: str | Path, comparison: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], curves: Mapping[str, Any]
) -> list[Path]:
    """Draw ``accuracy`` and ``histories`` as PNG and SVG into a folder, and return their paths.

    Args:
        folder: Where; made if it does not exist.
        comparison: What ``comparison.json`` holds.
        rows: One a run, as :func:`rts_hf.reports.comparison.run_row` gives them.
        curves: For each method, its runs' lists of (gradient evaluations, validation accuracy in [0, 1]).
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    target, paths = Path(folder), list[Path]()
    target.mkdir(parents=True, exist_ok=True)
    count = len(comparison["methods"])
    with matplotlib.style.context(["default", STYLE]):
        for name, height in (("accuracy", 1.5 + 0.42 * count), ("histories", 4.2 + 0.12 * count)):
            figure = Figure(figsize=(8.0, height), layout="constrained")
            figure.suptitle(
                f"{task(comparison)}\n{comparison['gradient_evaluations']:,} gradient evaluations a run",
                fontsize=11,
                color=INK,
            )
            axes = figure.subplots()
            if name == "accuracy":
                _draw_accuracy(axes, comparison, rows)
            else:
                _draw_histories(axes, comparison, curves)
            paths += save_figure(figure, target / name)
    return paths


def _draw_accuracy(axes: Axes, comparison: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    methods, split = comparison["methods"], split_of(comparison)
    for place, method in enumerate(methods):
        colour, mark = _look(place)
        mean, _, low, high = method[f"{split}_accuracy"]
        if mean is None:  # all its runs diverged
            continue
        seen = [
            100 * row[f"{split}_accuracy"]
            for row in rows
            if row["method"] == method["method"] and row[f"{split}_accuracy"] is not None
        ]
        axes.plot(seen, np.full(len(seen), place + 0.18), "|", color=colour, alpha=0.7, markersize=8)
        if low is not None:
            ends = [100 * max(low, 0.0), 100 * min(high, 1.0)]
            axes.plot(ends, [place, place], color=colour, solid_capstyle="butt")
        axes.plot([100 * mean], [place], mark, color=colour)
        if method["method"] == comparison["reference"]:
            axes.axvline(100 * mean, color=INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(methods)), [textwrap.fill(method["method"], 30) for method in methods])
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_xlabel(f"{split} accuracy (%)")
    axes.grid(axis="y", visible=False)


def _draw_histories(axes: Axes, comparison: Mapping[str, Any], curves: Mapping[str, Any]) -> None:
    lows = []
    for place, method in enumerate(comparison["methods"]):
        runs = [run for run in curves.get(method["method"], []) if run]
        length = min(map(len, runs), default=0)
        if not length:
            continue
        colour, mark = _look(place)
        spent = [point[0] for point in runs[0][:length]]
        values = 100 * np.array([[point[1] for point in run[:length]] for run in runs])
        axes.plot(
            spent,
            values.mean(axis=0),
            color=colour,
            marker=mark,
            markersize=4,
            markevery=max(1, length // 8),
            label=method["method"],
        )
        axes.fill_between(spent, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.12, linewidth=0)
        lows.append(float(values.mean(axis=0)[length // 3 :].min()))
    axes.set_xlabel("gradient evaluations")
    axes.set_ylabel("validation accuracy (%)")
    if lows:
        # The first third of a training would press the part that tells methods apart together.
        axes.set_ylim(max(0.0, min(lows) - 2), min(axes.get_ylim()[1], 100.5))  # there is nothing above 100
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def _look(place: int) -> tuple[str, str]:
    return COLOURS[place % len(COLOURS)], MARKS[(place // len(COLOURS) + place) % len(MARKS)]
