"""How the cost of an update grows with the parameters and with the number of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from benchmark.optimizer import ALWAYS
from benchmark.timers import interleaved, medians
from torch import nn

from rts_hf.optim.optimizer import RTSPUGD
from rts_hf.reports.curves import COLOURS, draw_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = (1e6, 3e6, 1e7, 3e7, 1e8, 3e8)
TENSORS = (10, 30, 100, 300, 1000, 3000)
_TENSORS_OF_SIZES = 100
_SIZE_OF_TENSORS = 1e7
_NAMES = {"perturbed": "perturbed", "plain": "SGD"}


def measure_scaling(
    device: str = "cpu",
    *,
    sizes: Sequence[float] = SIZES,
    tensors: Sequence[int] = TENSORS,
    repeats: int = 5,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, list[dict[str, float]]]:
    """Time the optimizer part of a perturbed update, and SGD's step, over parameters and over tensors.

    Args:
        device: Type of the device.
        sizes: Parameters, in 100 tensors.
        tensors: Numbers of tensors, of 10 million parameters together.
        repeats: Timed updates of each.
        progress: Called with a line for each that is timed.

    Returns:
        ``sizes`` and ``tensors``, each a list of parameters, tensors and the medians of seconds.
    """
    found: dict[str, list[dict[str, float]]] = {"sizes": [], "tensors": []}
    wanted = [("sizes", size, _TENSORS_OF_SIZES) for size in sizes]
    wanted += [("tensors", _SIZE_OF_TENSORS, count) for count in tensors]
    for kind, size, count in wanted:
        seconds = _time(int(size) // count, count, device, repeats)
        found[kind].append({"parameters": int(size), "tensors": count, **seconds})
        progress(f"{size:.3g} parameters in {count} tensors: {seconds['perturbed'] * 1e3:.3g} ms")
    return found


def slope(points: Sequence[dict[str, float]], over: str, name: str = "perturbed", *, last: int = 3) -> float:
    """Return the exponent b of seconds ∝ x^b, fitted by least squares over the logarithms of the last points.

    Args:
        points: As :func:`measure_scaling` returns them.
        over: ``parameters`` or ``tensors``.
        name: What was timed.
        last: Points that count: the first ones are those where the cost does not grow yet.
    """
    x, y = ([np.log(point[key]) for point in points[-last:]] for key in (over, name))
    return float(np.polyfit(x, y, 1)[0])


def draw_scaling(path: Path, measured: dict[str, list[dict[str, float]]]) -> list[Path]:
    """Draw both curves with their slopes, as PNG and SVG, and return their paths."""

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, kind, over, label in (
            (left, "sizes", "parameters", f"parameters (in {_TENSORS_OF_SIZES} tensors)"),
            (right, "tensors", "tensors", f"tensors (of {_SIZE_OF_TENSORS / 1e6:.0f} M parameters)"),
        ):
            points = measured[kind]
            for (name, words), colour, marker in zip(_NAMES.items(), COLOURS[1::-1], "os", strict=True):
                milliseconds = [1e3 * point[name] for point in points]
                fitted = slope(points, over, name)
                axes.loglog(
                    [point[over] for point in points],
                    milliseconds,
                    marker=marker,
                    color=colour,
                    label=f"{words}, slope {fitted:.2f}",
                )
            axes.set_xlabel(label)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M" if value >= 1e5 else f"{value:g}")
            axes.minorticks_off()
            axes.legend(loc="upper left")
        left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        left.set_ylabel("optimizer's part of an update (ms)")
        top = left.get_ylim()[1]
        left.set_ylim(top=top * 6)  # room for the legends

    return draw_figure(path, draw, height=3.6)


def _time(size: int, count: int, device: str, repeats: int) -> dict[str, float]:
    """Return the median seconds of both, for ``count`` tensors of ``size`` elements."""
    settings: dict[str, Any] = {"lr": 1e-6, "momentum": 0.9, "fused": True}
    params = [nn.Parameter(torch.randn(size, device=device)) for _ in range(count)]
    for param in params:
        param.grad = torch.randn_like(param) * 1e-3
    optimizer = RTSPUGD(params, base="momentum", **ALWAYS, **settings)

    def perturbed() -> None:
        with optimizer.perturbed():
            pass
        optimizer.step()

    # The base's own step: on the same parameters and momentum
    return medians(
        interleaved({"perturbed": perturbed, "plain": optimizer.base_optimizer.step}, repeats=repeats, warm_up=2)
    )
