"""Pictures that compare runs: histories by gradient evaluations, α strategies, loss surfaces and lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rts_hf.optim.schedules import STRATEGIES, AlphaSchedule
from rts_hf.reports.figures import INK, STYLE, save_figure
from rts_hf.reports.run_folder import is_finite, read_log, read_record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow, which is faint on white; a marker as well tells more than seven apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LOG_RANGE = 20.0  # a loss that spans more than this factor gets a logarithmic axis

SAMPLES = 400  # of progress in the paper's Figure 3, and the two points that it labels
LABELLED = (("inverse_sine_annealing", 40), ("inverse_cosine_heating", 360))


@dataclass(frozen=True)
class History:
    """What the picture of several histories needs of one run.

    Args:
        name: For the legend.
        curves: By ``train_loss``, ``eval_loss``, ``train_accuracy`` and ``eval_accuracy``: gradient evaluations, and
            values in nats or as a share of images, NaN where one is not finite.
        switch: Gradient evaluations at which the perturbed phase began; None where there were not two phases.
        test_accuracy: Of the weights that were kept; None where it was not measured.
    """

    name: str
    curves: Mapping[str, tuple[list[float], list[float]]]
    switch: float | None = None
    test_accuracy: float | None = None

    @classmethod
    def read(cls, folder: str | Path, name: str) -> History:
        """Return the history of a run folder.

        Training loss and accuracy are the means over an epoch where evaluations hold them, and else those logged.

        Raises:
            FileNotFoundError: If the folder holds no run.
            ValueError: If its files cannot be read, or nothing in them tells the gradient evaluations.
        """
        record, log = read_record(folder), read_log(folder)
        two_pass = bool(record["optimizer"].get("method"))
        evaluations = [entry for entry in log if "eval_loss" in entry]
        training = evaluations if any("train_loss" in entry for entry in evaluations) else log
        prefix = "train_" if training is evaluations else ""
        if two_pass and any("gradient_evaluations" not in entry for entry in evaluations):
            raise ValueError(f"run {str(folder)!r} was logged without gradient evaluations; train it again.")
        curves = {}
        for key in ("loss", "accuracy"):
            curves[f"train_{key}"] = _curve(training, f"{prefix}{key}")
            curves[f"eval_{key}"] = _curve(evaluations, f"eval_{key}")
        step = (record["optimizer"].get("switch") or {}).get("step")
        test = ((record.get("metrics") or {}).get("test") or {}).get("accuracy")
        return cls(name, curves, float(step) if step else None, test if is_finite(test) else None)


def names_of_runs(folders: Sequence[str | Path]) -> list[str]:
    """Return a name for each run: its optimizer's, or its folder's where two have the same optimizer.

    Raises:
        FileNotFoundError: If a folder holds no run.
        ValueError: If two of them are one, or bear the same name and optimizer.
    """
    optimizers = [str(read_record(folder)["optimizer"]["name"]) for folder in folders]
    if len(set(optimizers)) == len(optimizers):
        return optimizers
    names = [Path(folder).resolve().name for folder in folders]
    for name, folder in zip(names, folders, strict=True):
        if names.count(name) > 1:
            raise ValueError(f"runs {str(folder)!r} and another bear the same name, {name!r}; rename one's folder.")
    return names


def draw_figure(path: Path, draw: Callable[[Figure], None], *, height: float) -> list[Path]:
    """Draw a picture of README's width and write it as PNG and SVG; the same input gives the same bytes.

    Args:
        path: Of both, without a suffix.
        draw: Draws on the figure it is given.
        height: Of the picture in inches; the width is 8.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(8.0, height), layout="constrained")
        draw(figure)
        return save_figure(figure, path)


def draw_histories(figure: Figure, histories: Sequence[History]) -> None:
    """Draw loss and accuracy of several runs over the gradient evaluations they have cost.

    An update that takes two gradients counts two, so that methods are compared at the same compute: the paper's
    Figure 1, which counts epochs, made fair.

    Args:
        figure: To draw on.
        histories: In the order of the legend.
    """
    panels = {"loss": "loss (cross-entropy, nats)", "accuracy": "accuracy (share of images)"}
    axes_of = dict(zip(panels, figure.subplots(1, 2, gridspec_kw={"wspace": 0.06}), strict=True))
    ends = [max((x[-1] for x, _ in history.curves.values() if x), default=0.0) for history in histories]
    for key, axes in axes_of.items():
        values: list[float] = []
        for index, history in enumerate(histories):
            # runs that began alike lie on one another: those below are wider, and markers stand at other places
            style: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)]}
            width = 1.5 + 1.1 * (len(histories) - 1 - index)
            x, y = history.curves[f"train_{key}"]
            axes.plot(x, y, linestyle=(0, (2, 1.5)), linewidth=1.0, alpha=0.8, **style)
            values += y
            x, y = history.curves[f"eval_{key}"]
            marks: dict[str, Any] = {"marker": MARKERS[index % len(MARKERS)], "markersize": 4}
            marks["markevery"] = (index, max(len(x) // 6, len(histories)))
            test = "" if history.test_accuracy is None else f" (test {history.test_accuracy:.4f})"
            axes.plot(x, y, linewidth=min(width, 4.0), label=f"{history.name}{test}", **style, **marks)
            values += y
            if history.switch is not None:
                axes.axvline(history.switch, linestyle=":", linewidth=1.2, zorder=1.5, **style)
        axes.set(ylabel=panels[key], xlabel="gradient evaluations (of one update's images)")
        axes.set_xlim(0, 1.015 * (max(ends, default=0.0) or 1.0))
        if key == "loss":
            _log_axis_where_wide(axes, values)
        else:
            axes.set_ylim(*_limits_of_late([y for history in histories for _, y in _of(history, key)]))
    from matplotlib.lines import Line2D

    handles, labels = axes_of["loss"].get_legend_handles_labels()
    keys: dict[str, dict[str, Any]] = {"validation": {}, "training": {"linestyle": (0, (2, 1.5)), "linewidth": 1.0}}
    if any(history.switch is not None for history in histories):
        keys["start of the perturbed phase"] = {"linestyle": ":", "linewidth": 1.2}
    handles += [Line2D([], [], color=INK, **style) for style in keys.values()]
    labels += [*keys]
    longest = max(map(len, labels))
    columns = 3 if longest <= 28 else 2 if longest <= 45 else 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=2.4)


def draw_strategies(figure: Figure, *, beta_min: float = 0.01, beta_max: float = 2.0, samples: int = SAMPLES) -> None:
    """Draw what α every strategy takes over training, with the two values that the paper's Figure 3 labels.

    Args:
        figure: To draw on.
        beta_min, beta_max: β of all strategies; the paper's are the defaults.
        samples: Points of progress from 0 to 1, more than 360.
    """
    axes = figure.subplots()
    for index, name in enumerate(STRATEGIES):
        values = strategy_samples(name, beta_min, beta_max, samples)
        dashes = (0, (5, 1.5)) if name == "constant" else "-"  # others begin and end on it
        axes.plot(range(samples), values, color=COLOURS[index], label=name, linestyle=dashes)
    for name, sample in LABELLED:
        value = strategy_samples(name, beta_min, beta_max, samples)[sample]
        is_early = sample < samples / 2
        axes.plot([sample], [value], "o", color=INK, markersize=4.5, zorder=4)
        axes.annotate(
            f"sample {sample}: {value:.3f}",
            (sample, value),
            xytext=(14 if is_early else -14, 10),
            textcoords="offset points",
            ha="left" if is_early else "right",
            va="bottom",
            fontsize=9,
            color=INK,
            arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.8, "shrinkB": 4},
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel=f"sample of progress u ({samples} from u = 0 to u = 1)", ylabel="α (no unit)")
    axes.set_xlim(0, samples - 1)
    axes.set_title(f"The strategies of radius and scale, β_min = {beta_min:g}, β_max = {beta_max:g}", fontsize=11)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)


def strategy_samples(strategy: str, beta_min: float, beta_max: float, samples: int = SAMPLES) -> list[float]:
    """Return α at evenly spaced progress, both ends included.

    >>> round(strategy_samples("inverse_sine_annealing", 0.01, 2.0)[40], 3)
    3.105
    >>> round(strategy_samples("inverse_cosine_heating", 0.01, 2.0)[360], 3)
    3.181
    """
    schedule = AlphaSchedule(strategy, beta_min=beta_min, beta_max=beta_max)
    return [schedule(index / (samples - 1)) for index in range(samples)]


def draw_surface(
    figure: Figure,
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    loss: np.ndarray,
    limits: tuple[float, float] | None = None,
) -> None:
    """Draw the loss on a plane through a model's weights, as a surface and as its contours.

    Heights and colours are logarithmic, as contours are spaced: what is near the minimum would else be one flat spot.

    Args:
        figure: To draw on.
        name: Of the model, for the title.
        x, y: Steps along the two directions, ``(G,)``.
        loss: ``(G, G)`` in nats; ``loss[i, j]`` belongs to ``y[i]`` and ``x[j]``.
        limits: Losses at which heights and colours begin and end, to compare several models; None: its own.
    """
    from matplotlib.ticker import FixedLocator, MaxNLocator

    heights = _log10(loss)
    low, high = np.nanmin(heights), np.nanmax(heights)
    if limits is not None:
        low, high = (math.log10(limit) for limit in limits)
    colours: dict[str, Any] = {"cmap": "cividis", "vmin": low, "vmax": high}
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=(1.0, 1.1)))
    surface, contour = left.add_subplot(projection="3d"), right.add_subplot()
    surface.plot_surface(*np.meshgrid(x, y), heights, rstride=1, cstride=1, linewidth=0.2, **colours)
    surface.set(xlabel="x", ylabel="y", zlim=(low, high))
    surface.view_init(elev=28, azim=-55)
    surface.set_box_aspect((1, 1, 0.8), zoom=0.95)
    surface.zaxis.set_major_locator(FixedLocator(_ticks(low, high)))
    surface.zaxis.set_major_formatter(lambda value, _: f"{10**value:.2g}")
    for axis in (surface.xaxis, surface.yaxis, contour.xaxis, contour.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=4))
    levels = np.linspace(low, high, 15) if high > low else np.array([low - 0.5, low + 0.5])
    filled = contour.contourf(x, y, heights, levels=levels, extend="both", **colours)
    contour.contour(x, y, heights, levels=levels, colors="white", linestyles="solid", linewidths=0.5, alpha=0.7)
    contour.plot([0], [0], "+", color="white", markersize=9, markeredgewidth=1.8)
    contour.set(xlabel="x (steps along d₁)", ylabel="y (steps along d₂)", aspect="equal")
    contour.grid(visible=False)
    bar = right.colorbar(filled, ax=contour, fraction=0.046, pad=0.04, extendfrac=0)
    bar.ax.yaxis.set_major_locator(FixedLocator(_ticks(levels[0], levels[-1])))
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{10**value:.2g}")
    bar.set_label("loss (cross-entropy, nats)")
    title = f"{name}: loss around the weights (+), along two random filter-normalised directions"
    figure.suptitle(title, fontsize=11, color=INK)


def _ticks(low: float, high: float) -> list[float]:
    """Return where round numbers lie between two on a logarithmic axis, all of these given as decimal logarithms.

    Of 1, 2 and 5 times a power of ten, the powers alone where the axis is long, and evenly spaced ones where it is so
    short that fewer than two round ones lie on it.
    """
    steps = (1,) if high - low > 3 else (1, 2, 5)
    powers = range(math.floor(low), math.ceil(high) + 1)
    found = [power + math.log10(step) for power in powers for step in steps]
    inside = [tick for tick in found if low - 1e-9 <= tick <= high + 1e-9]
    return inside if len(inside) > 1 else [float(tick) for tick in np.linspace(low, high, 4)]


def limits_of_surfaces(losses: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the lowest and the highest loss of several surfaces that a logarithm can show.

    >>> limits_of_surfaces([np.array([[0.5, 2.0]]), np.array([[1.0, np.inf]])])
    (0.5, 2.0)
    """
    shown = np.concatenate([loss[np.isfinite(loss) & (loss > 0)] for loss in losses])
    return float(shown.min()), float(shown.max())


def draw_lines(figure: Figure, first: str, lines: Mapping[str, Any]) -> None:
    """Draw loss and accuracy on the straight lines from one model's weights to others'.

    Args:
        figure: To draw on.
        first: Name of the model at 0.
        lines: By the name of the model at 1: an object with ``position``, ``loss`` and ``accuracy``, each ``(G,)``.
    """
    panels = {"loss": "loss (cross-entropy, nats)", "accuracy": "accuracy (share of images)"}
    for axes, (key, label) in zip(figure.subplots(1, 2, gridspec_kw={"wspace": 0.06}), panels.items(), strict=True):
        values: list[float] = []
        for index, (name, line) in enumerate(lines.items()):
            y = np.asarray(getattr(line, key))
            style = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "markersize": 3.5}
            axes.plot(line.position, y, label=f"{first} (0) to {name} (1)", **style)
            values += [float(value) for value in y]
        for end in (0, 1):
            axes.axvline(end, color=INK, linewidth=1.0, linestyle=(0, (4, 2)), zorder=1.5)
        axes.set(xlabel="position on the line: (1 − t)·w₀ + t·w₁", ylabel=label)
        if key == "loss":
            _log_axis_where_wide(axes, values)
        else:
            axes.set_ylim(min(*values, max(values) - 0.01) - 0.001, max(values) + 0.001)  # one image is no cliff
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(lines), 2))


def _log10(loss: np.ndarray) -> np.ndarray:
    """Return the logarithm, NaN for what has none."""
    return np.log10(np.where(np.isfinite(loss) & (loss > 0), loss, np.nan))


def _curve(entries: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Return gradient evaluations and values of the entries that hold ``key``, the first one of every update."""
    found: dict[int, tuple[float, float]] = {}
    for entry in entries:
        if key in entry:
            # a plain optimizer takes one gradient an update, whether its log counts them or not
            evaluations = float(entry.get("gradient_evaluations", entry["step"]))
            found.setdefault(entry["step"], (evaluations, float(entry[key]) if is_finite(entry[key]) else math.nan))
    return [x for x, _ in found.values()], [y for _, y in found.values()]


def _of(history: History, key: str) -> list[tuple[list[float], list[float]]]:
    return [history.curves[f"{part}_{key}"] for part in ("train", "eval")]


def _limits_of_late(curves: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return limits that show what curves of accuracy hold after their first fifth, which would press all else flat."""
    late = [value for curve in curves for value in curve[len(curve) // 5 :] if math.isfinite(value)]
    low, high = (np.quantile(late, 0.05), max(late)) if late else (0.0, 1.0)  # one bad epoch is not the picture
    margin = 0.05 * (high - low) or 0.05
    return float(low - margin), float(high + margin)


def _log_axis_where_wide(axes: Axes, values: Sequence[float]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) > LOG_RANGE * min(finite):
        axes.set_yscale("log")
        wide = max(finite) > 1e4 * min(finite)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
