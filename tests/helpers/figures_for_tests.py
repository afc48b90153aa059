"""Draw the figures of a run folder as objects, and ask them what they show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from run_folder_for_tests import KINDS, edit_json

from rts_hf.reports import figures

ALL_NAMES = ("history", "schedules", "sharpness")


def names_of(kind: str) -> tuple[str, ...]:
    """Return which pictures a kind of run has."""
    if KINDS[kind].get("by_class"):
        return (*ALL_NAMES, "confusion")
    if not KINDS[kind].get("method", "pugd"):
        return ALL_NAMES[:1]
    return ALL_NAMES[:2] if KINDS[kind].get("switch_step", 0) is None else ALL_NAMES


@pytest.fixture(scope="module", autouse=True)
def small_pictures() -> Iterator[None]:
    """Draw with fewer pixels: what is tested does not depend on them, and the time does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DPI", 60)
        yield


def drawing(folder: Path, name: str, *, laid_out: bool = True) -> Figure:
    """Return one figure as an object, to ask it what it shows; laid out, unless it is going to be rendered anyway."""
    with mpl.rc_context(figures.STYLE):
        figure = Figure(figsize=(8, 4), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(figures._Run.read(folder).title(), fontsize=11)
        getattr(figures, f"_draw_{name}")(figure, figures._Run.read(folder))
        if laid_out:
            figure.draw_without_rendering()
    return figure


def line(axes: Axes, label: str) -> tuple[list[float], list[float]]:
    found = next(found for found in axes.get_lines() if found.get_label() == label)
    return list(map(float, np.asarray(found.get_xdata()))), list(map(float, np.asarray(found.get_ydata())))


def labels(axes: Axes) -> list[str]:
    return axes.get_legend_handles_labels()[1]


def log_of(folder: Path) -> list[dict[str, Any]]:
    return figures._Run.read(folder).log


def set_recorded(*keys: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        def edit(record: dict[str, Any]) -> None:
            for key in keys[:-1]:
                record = record[key]
            record[keys[-1]] = value

        edit_json(folder / "run.json", edit)

    return change
