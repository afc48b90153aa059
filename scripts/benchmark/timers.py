"""What the method costs: figures measured side by side, their targets, and the table of them."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

import torch
from torch.utils.benchmark import timer

FORMAT = 1
BEGIN, END = "<!-- made by scripts/benchmark: begin -->", "<!-- made by scripts/benchmark: end -->"


@dataclass(frozen=True)
class Figure:
    """A figure with its target.

    Args:
        name: One word for the command line and the record.
        words: What it is, in a table's cell.
        value: What was measured.
        target: What was wanted.
        sense: Whether ``value`` is to be at most or at least ``target``.
        note: What the figure rests on, or why it misses.
        details: What was measured for it, as JSON takes it; times in seconds.
    """

    name: str
    words: str
    value: float
    target: float
    sense: Literal["at most", "at least"] = "at most"
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def is_met(self) -> bool:
        """Whether the value is on the right side of the target."""
        return self.value <= self.target if self.sense == "at most" else self.value >= self.target


def interleaved(sides: Mapping[str, Callable[[], Any]], *, repeats: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Return the seconds of every call of each side, made in turns, so that a slow moment meets them all.

    Args:
        sides: What is timed, by name.
        repeats: Timed calls of each, at least 1.
        warm_up: Calls of each before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warm_up + repeats):
        for name, call in sides.items():
            begin = timer()  # waits for an accelerator
            call()
            took = timer() - begin
            if turn >= warm_up:
                seconds[name].append(took)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], one: str, other: str) -> float:
    """Return the median of the ratios of two sides that were timed in turns.

    >>> ratio({"mine": [2.0, 9.0, 4.0], "theirs": [1.0, 3.0, 2.0]}, "mine", "theirs")
    2.0
    """
    return median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median of each side, in seconds to four digits."""
    return {name: float(f"{median(values):.4g}") for name, values in seconds.items()}


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return what the figures depend on: processor, threads, versions."""
    return {
        "device": torch.get_device_module(device).get_device_name() if device != "cpu" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def record(figures: Sequence[Figure], device: str = "cpu", **more: Any) -> dict[str, Any]:
    """Return what is kept of a benchmark, as JSON takes it."""
    return {"format": FORMAT, "machine": machine(device), "figures": [asdict(each) for each in figures], **more}


def read_figures(kept: Mapping[str, Any]) -> list[Figure]:
    """Return the figures of a record.

    Raises:
        ValueError: If another version wrote it.
    """
    if kept.get("format") != FORMAT:
        raise ValueError(f"format={kept.get('format')!r} of the record is not {FORMAT}; measure again.")
    return [Figure(**each) for each in kept["figures"]]


def table(figures: Sequence[Figure]) -> str:
    """Return the figures with their targets as a table in Markdown."""
    lines = ["| figure | target | measured | |", "| --- | ---: | ---: | --- |"]
    for each in figures:
        sign = "≤" if each.sense == "at most" else "≥"
        verdict = "met" if each.is_met else "**missed**"
        note = f": {each.note}" if each.note else ""
        lines.append(f"| {each.words} | {sign} {each.target:g} | {_shown(each.value)} | {verdict}{note} |")
    return "\n".join(lines)


def _shown(value: float) -> str:
    return f"{value:g}" if value == int(value) else f"{value:.3g}" if value < 0.1 else f"{value:.2f}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
