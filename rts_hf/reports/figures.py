"""Pictures of a run, drawn from its folder alone: curves, schedules, sharpness and confusion."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rts_hf.optim.schedules import AlphaSchedule, progress_at
from rts_hf.reports.confusion import confusion_split, draw_confusion
from rts_hf.reports.run_folder import is_finite, perturbed_since, read_log, read_record, was_perturbed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart also by people with a colour vision deficiency.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
INK, SHADE = "#404040", "#E6E6E6"

STYLE = {
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "rts_hf",  # otherwise the ids in the file are drawn anew each time
    "text.parse_math": False,  # names of data sets and models may hold dollar signs
}
DPI = 200  # 8 inches are then 1600 pixels: sharp when shown 800 wide
LOG_RANGE = 20.0  # a schedule that spans more than this factor gets a logarithmic axis
BLOWN_UP = 1000.0  # and so does a curve that rises to more than this factor of its lower quartile


def draw_run_figures(run_dir: str | Path) -> list[Path]:
    """Draw a run's figures into ``run_dir/figures`` and return their paths.

    ``history`` (loss and accuracy by epoch) for every run; for two-pass optimizers also ``schedules`` (α_r and α_s
    of the perturbed updates) and, where any was logged, ``sharpness`` (L(w+ε) − L(w)); and ``confusion``, the confusion
    matrix of the test split, or without one of the validation split. Each as PNG and SVG. The same run gives the same
    bytes. A picture of these names that this run has not got, left over from another, is deleted.

    Args:
        run_dir: A run folder; ``run.json`` and ``trainer_state.json`` are read.

    Raises:
        FileNotFoundError: If one of the two files is missing.
        ValueError: If one is not JSON, or ``run.json`` has a format this version does not know.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    run = _Run.read(Path(run_dir))
    drawings: dict[str, tuple[Callable[[Figure, _Run], None], float, bool]] = {
        "history": (_draw_history, 3.8, True),
        "schedules": (_draw_schedules, 4.6, bool(run.optimizer.get("method"))),
        "sharpness": (_draw_sharpness, 3.6, run.has_sharpness),
        "confusion": (_draw_confusion, 6.4, confusion_split(run.record) is not None),
    }
    folder = Path(run_dir) / "figures"
    folder.mkdir(exist_ok=True)
    paths = []
    with matplotlib.style.context(["default", STYLE]):
        for name, (draw, height, is_drawn) in drawings.items():
            if not is_drawn:
                _remove(folder / name)
                continue
            figure = Figure(figsize=(8.0, height), layout="constrained")
            figure.suptitle(run.title(), fontsize=11, color=INK)
            draw(figure, run)
            paths += save_figure(figure, folder / name)
    return paths


def remove_run_figures(run_dir: str | Path) -> None:
    """Delete the pictures of a run folder that :func:`draw_run_figures` draws."""
    for name in ("history", "schedules", "sharpness", "confusion"):
        _remove(Path(run_dir) / "figures" / name)


def _remove(path: Path) -> None:
    for suffix in ("png", "svg"):
        path.with_name(f"{path.name}.{suffix}").unlink(missing_ok=True)


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG and SVG and return their paths; the same figure gives the same bytes.

    Args:
        figure: Drawn, and to be saved, under :data:`STYLE`.
        path: Of both, without a suffix.
    """
    paths = []
    figure.set_dpi(DPI)
    figure.draw_without_rendering()  # which lays it out, once for both
    figure.set_layout_engine(None)
    # The date and the drawing library's version would change the bytes of an unchanged picture.
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        paths.append(path.with_name(f"{path.name}.{suffix}"))
        figure.savefig(paths[-1], dpi=DPI, metadata=metadata)
    return paths


@dataclass(frozen=True)
class _Run:
    """What the figures need of a run folder."""

    record: dict[str, Any]
    log: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> _Run:
        return cls(read_record(folder), read_log(folder))

    @property
    def optimizer(self) -> dict[str, Any]:
        return self.record.get("optimizer") or {}

    @property
    def switch_step(self) -> int | None:
        step = (self.optimizer.get("switch") or {}).get("step")
        return None if step is None else int(step)

    @property
    def unit_step(self) -> int | None:
        """After how many updates unit steps began that were not perturbed; None where there were none."""
        switch = self.optimizer.get("switch") or {}
        step = switch.get("unit_step") if switch.get("kind") == "staged" else None
        return None if step is None or step == self.switch_step else int(step)

    @property
    def updates(self) -> int:
        return max([int(self.record.get("updates") or 0), 1, *(int(entry.get("step", 0)) for entry in self.log)])

    @property
    def epochs(self) -> float:
        seen = [float(entry.get("epoch") or 0) for entry in self.log]
        return max([float(self.record.get("epochs") or 0), *seen]) or 1.0

    @property
    def switch_epoch(self) -> float | None:
        if self.switch_step is None:
            return None
        epoch = self.optimizer["switch"].get("epoch")
        return self.switch_step / self.updates * self.epochs if epoch is None else float(epoch)

    @property
    def method(self) -> str:
        return str(self.optimizer.get("method") or "").upper()

    @property
    def base(self) -> str:
        base = _short(self.optimizer.get("base") or "base optimizer")
        return "SGD" if base == "sgd" else base

    @property
    def never_perturbed(self) -> bool:
        return bool(self.optimizer.get("switch")) and self.switch_step is None

    @property
    def has_sharpness(self) -> bool:
        perturbs = bool(self.optimizer.get("method")) and not self.never_perturbed
        return perturbs and any(map(math.isfinite, self.series("sharpness")[2]))

    @property
    def tested_epoch(self) -> float:
        """Where on the curve the weights that were tested lie: they are the best ones if those were put back."""
        step = (self.record.get("best") or {}).get("step")
        if step is None:
            return self.epochs
        evaluations = (entry for entry in self.log if entry.get("step") == step and "eval_loss" in entry)
        epoch = next((entry.get("epoch") for entry in evaluations), None)
        return step / self.updates * self.epochs if epoch is None else float(epoch)

    def title(self) -> str:
        names = self.record.get("model", {}).get("architecture"), self.record.get("data", {}).get("name")
        model, data = (_short(name) for name in names)
        title = f"{model} on {data}, {_short(self.optimizer.get('name'))}"
        if self.never_perturbed:
            title += f": {'never switched, ' if self.unit_step is None else ''}no update was perturbed"
        elif self.switch_step == 0:
            title += ": perturbed from the first update on"
        return title

    def series(self, key: str, *, perturbed: bool = False) -> tuple[list[float], list[float], list[float]]:
        """Return (updates, epochs, values) of the entries that hold ``key``, the first one of every update."""
        found: dict[float, tuple[float, float]] = {}
        for entry in self.log:
            if key not in entry or (perturbed and not was_perturbed(entry, self.optimizer)):
                continue
            # A second evaluation at the same update measures the weights that were put back at the end.
            found.setdefault(float(entry.get("step", 0)), (float(entry.get("epoch") or 0), _number(entry[key])))
        return list(found), [epoch for epoch, _ in found.values()], [value for _, value in found.values()]


def _draw_history(figure: Figure, run: _Run) -> None:
    test = (run.record.get("metrics") or {}).get("test") or {}
    best_step = (run.record.get("best") or {}).get("step")
    panels = {"loss": "loss (cross-entropy, nats)", "accuracy": "accuracy (share of images)"}
    for axes, (key, label) in zip(figure.subplots(1, 2, gridspec_kw={"wspace": 0.06}), panels.items(), strict=True):
        _draw_training_curve(axes, run, key)
        steps, epochs, validation = run.series(f"eval_{key}")
        if any(map(math.isfinite, validation)):
            axes.plot(epochs, validation, color=VERMILION, label="validation", **_markers(validation))
        for step, epoch, value in zip(steps, epochs, validation, strict=True):
            if step == best_step:
                ring = {"markersize": 10, "markerfacecolor": "none", "clip_on": False}
                axes.plot([epoch], [value], "o", color=VERMILION, label="best validation", **ring)
        if math.isfinite(_number(test.get(key))):
            diamond = {"markersize": 6, "clip_on": False, "zorder": 4}
            tested = f"test {test[key]:.4g} ({'last' if best_step is None else 'best'} weights)"
            axes.plot([run.tested_epoch], [test[key]], "D", color=GREEN, label=tested, **diamond)
        values = [*run.series(key)[2], *validation]
        if key == "loss" and _usual_size([*values, _number(test.get(key))]) is not None:
            _set_log_axis(axes)
        axes.set_ylabel(label)
        _set_horizontal_axis(axes, "epoch", run.epochs)
        if run.switch_step and run.switch_epoch is not None:
            text = f"switch to {run.method}, epoch {run.switch_epoch:.3g}"
            _mark_switch(axes, run.switch_epoch / run.epochs, run.switch_epoch, text)
        _mark_unit_steps(axes, run, run.epochs)
        if axes.get_legend_handles_labels()[0]:
            legend = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "ncols": 2}
            legend |= {"handlelength": 1.4, "handletextpad": 0.5, "columnspacing": 1.0}
            axes.legend(title=_gaps(values), title_fontsize=9, **legend)
        if not values:
            _note(axes, "nothing was logged")


def _draw_training_curve(axes: Axes, run: _Run, key: str) -> None:
    _, epochs, values = run.series(key)
    # the Trainer's closing entry also has a train_loss, but that is the mean over the whole run
    measured = [entry for entry in run.log if f"train_{key}" in entry and "eval_loss" in entry]
    if not measured:
        if any(map(math.isfinite, values)):
            axes.plot(epochs, values, color=BLUE, label="train", **_markers(values))
        return
    if len(values) > len(measured):
        axes.plot(epochs, values, color=BLUE, alpha=0.45, linewidth=0.8)
    ends = [float(entry.get("epoch") or 0) for entry in measured]
    means = [_number(entry[f"train_{key}"]) for entry in measured]
    axes.plot(ends, means, color=BLUE, label="train, epoch mean", **_markers(means))


def _draw_schedules(figure: Figure, run: _Run) -> None:
    panels = {}
    for name, key, label in (("radius", "alpha_r", "radius αᵣ"), ("scale", "alpha_s", "scale αₛ")):
        planned, used = _planned(run, name), run.series(key, perturbed=True)
        if any(planned[1]) or any(used[2]):  # SAM keeps nothing of the first gradient: 0 throughout is no schedule
            panels[label] = planned, used
    rows = list(figure.subplots(max(len(panels), 1), 1, sharex=True, squeeze=False)[:, 0])
    for axes, (label, ((steps, plan), (updates, _, values))) in zip(rows, panels.items(), strict=False):
        _show_phases(axes, run, labelled=axes is rows[0])
        if plan:
            axes.plot(steps, plan, "--", color=INK, linewidth=1.0, label="the schedule as set")
        if values:
            axes.plot(updates, values, color=BLUE, linewidth=2.6, label="used by perturbed updates", **_markers(values))
        finite = [value for value in [*plan, *values] if math.isfinite(value)]
        if finite and min(finite) > 0 and max(finite) > LOG_RANGE * min(finite):
            _set_log_axis(axes)
        elif finite:
            axes.set_ylim(-0.04 * max(finite), 1.1 * max(finite))  # room for the whole of a marker at 0
        axes.set_ylabel(f"{label} (no unit)")
    if not panels:
        _note(rows[0], "nothing was logged")
    _set_horizontal_axis(rows[-1], "update (optimizer step)", run.updates)
    _figure_legend(figure, rows)


def _draw_sharpness(figure: Figure, run: _Run) -> None:
    axes = figure.subplots()
    _show_phases(axes, run, labelled=True)
    axes.axhline(0, color=INK, linewidth=1.0)
    updates, _, values = run.series("sharpness")
    counts = sorted({count for count in perturbed_since(run.log) if count is not None})
    over = f"{counts[0]} to {counts[-1]} " if len(counts) > 1 else f"{counts[0]} " if counts else ""
    label = f"mean over the {over}perturbed update{'' if counts == [1] else 's'} since the log entry before"
    if len(values) >= 20:
        half = max(len(values) // 40, 2)
        windows = [values[max(i - half, 0) : i + half + 1] for i in range(len(values))]
        means = [sum(window) / len(window) for window in windows]
        axes.plot(updates, values, ".", color=BLUE, alpha=0.4, markersize=5, label=label)
        axes.plot(updates, means, color=BLUE, label=f"mean of {2 * half + 1} log entries")
    else:
        axes.plot(updates, values, "o-", color=BLUE, markersize=4, label=label)
    usual = _usual_size(values)
    if usual is not None:
        # Sharpness may be negative. A power of ten: the first tick is then the linear part's end, clear of that at 0.
        axes.set_yscale("symlog", linthresh=10.0 ** math.floor(math.log10(usual)))
        axes.yaxis.get_major_locator().set_params(numticks=8)  # type: ignore[call-arg]
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylabel("sharpness L(w+ε) − L(w) (nats)")
    _set_horizontal_axis(axes, "update (optimizer step)", run.updates)
    _figure_legend(figure, [axes], title=_gaps(values))


def _draw_confusion(figure: Figure, run: _Run) -> None:
    draw_confusion(figure, run.record, str(confusion_split(run.record)), _short)


def _planned(run: _Run, name: str) -> tuple[list[int], list[float]]:
    """Return updates, evenly over the run, and the values a schedule was set to take at them."""
    setting = run.optimizer.get(name)
    if not setting:
        return [], []
    schedule = AlphaSchedule(setting["strategy"], beta_min=setting["beta_min"], beta_max=setting["beta_max"])
    total = run.optimizer.get("total_steps")
    updates = sorted({1 + round((run.updates - 1) * index / 200) for index in range(201)})
    return updates, [schedule(progress_at(update - 1, total)) for update in updates]


def _show_phases(axes: Axes, run: _Run, *, labelled: bool) -> None:
    """Shade the updates before the switch and mark the switch, on an axis of updates."""
    plain_end = run.updates if run.never_perturbed else run.switch_step
    if plain_end:
        who = "" if run.unit_step is not None else f"{run.base} phase: "
        label = f"{who}not perturbed" if labelled else None
        axes.axvspan(0, plain_end, color=SHADE, zorder=0, linewidth=0, label=label)
    if run.switch_step:
        text = f"switch to {run.method}: update {run.switch_step}, epoch {run.switch_epoch:.3g}"
        _mark_switch(axes, run.switch_step / run.updates, run.switch_step, text if labelled else "")
    _mark_unit_steps(axes, run, run.updates, labelled=labelled)


def _mark_unit_steps(axes: Axes, run: _Run, width: float, *, labelled: bool = True) -> None:
    """Mark where unit steps began that were not perturbed, on an axis of that width."""
    if run.unit_step is not None:
        label = "unit steps begin" if labelled else None
        axes.axvline(run.unit_step / run.updates * width, color=INK, linewidth=1.2, linestyle=":", label=label)


def _mark_switch(axes: Axes, share: float, position: float, text: str) -> None:
    """Draw the line of the switch; ``share`` of the axis lies left of it, which says where its text has room."""
    axes.axvline(position, color=INK, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1.5)
    side = "left" if share < 0.3 else "right" if share > 0.7 else "center"
    place = axes.get_xaxis_transform()  # x in data, y in the axes' height
    axes.text(position, 1.02, text, transform=place, ha=side, va="bottom", color=INK, fontsize=9)


def _note(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=INK)


def _gaps(values: Sequence[float]) -> str | None:
    """Say how much of a curve cannot be shown, or None if all of it can."""
    missing = sum(not math.isfinite(value) for value in values)
    return f"{missing} of {len(values)} logged values are not finite" if missing else None


def _figure_legend(figure: Figure, rows: Sequence[Axes], title: str | None = None) -> None:
    """Explain all panels once, below them, where nothing can be hidden."""
    labels = {label: handle for axes in rows for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if labels:
        in_one_row = sum(len(str(label)) + 6 for label in labels) <= 100
        layout: dict[str, Any] = {"ncols": len(labels) if in_one_row else 2, "title": title, "title_fontsize": 9}
        figure.legend(labels.values(), labels.keys(), loc="outside lower center", **layout)


def _set_horizontal_axis(axes: Axes, label: str, end: float) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel=label, xlim=(0, 1.015 * end))  # room for the whole of the last marker
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=end >= 3))


def _set_log_axis(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 1e4 * low else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _usual_size(values: Sequence[float]) -> float | None:
    """Return the lower quartile of the sizes of a curve that blew up and would press all else flat, or None."""
    sizes = sorted(abs(value) for value in values if math.isfinite(value) and value != 0)
    usual = sizes[len(sizes) // 4] if sizes else 0.0
    return usual if sizes and sizes[-1] > BLOWN_UP * usual else None


def _markers(values: Sequence[float]) -> dict[str, Any]:
    """Mark the points of short curves; a curve of one point would not show at all."""
    return {"marker": "o", "markersize": 3.5} if len(values) <= 40 else {}


def _number(value: object) -> float:
    """Return a logged value as a float, NaN where it is none: NaN leaves a gap in a curve."""
    return float(value) if is_finite(value) else math.nan


def _short(name: object) -> str:
    """Return a name on one line, cut to what a title has room for, with "?" for what the font cannot show."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    text = " ".join("".join(c if c.isprintable() else " " for c in str(name)).split())
    text = "".join(c if ord(c) in known else "?" for c in text)
    return text if len(text) <= 40 else text[:39] + "…"
