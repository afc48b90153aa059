"""What a person sees while a run trains, and at its end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging as transformers_logging

from rts_hf.models.classifiers import plain_name
from rts_hf.optim.registration import unwrap_optimizer
from rts_hf.reports.text import spent, why_not_perturbed
from rts_hf.training.faults import KINDS
from rts_hf.training.temperon import NAME as TEMPERON

_HEADER = "  epoch   train loss    acc   valid loss    acc   phase    α_r    gradients"


class ConsoleCallback(TrainerCallback):
    """A progress bar over the updates, and a row at every evaluation."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._rows = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        self._rows = 0
        hidden = True if args.disable_tqdm else None  # None: hidden where the output is not a terminal
        self._bar = tqdm(
            total=state.max_steps, initial=state.global_step, unit="update", leave=False, disable=hidden, ncols=80
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar is None:
            return
        evaluation = next((entry for entry in reversed(state.log_history) if "eval_loss" in entry), {})
        rts = unwrap_optimizer(kwargs.get("optimizer"))
        begun = None if rts is None else rts.perturbs_from
        perturbs = rts is not None and begun is not None and begun < rts.stats()["step"]
        plain = "" if rts is None else "unit" if rts.last_phase == "pugd" else "sgd"
        cells = (
            _cell(evaluation.get("train_loss"), 12),
            _cell(evaluation.get("train_accuracy"), 7, decimals=3),
            _cell(evaluation.get("eval_loss"), 12),
            _cell(evaluation.get("eval_accuracy"), 7, decimals=3),
            f"{rts.method if rts is not None and perturbs else plain:>7}",
            _cell(rts.stats()["alpha_r"], 7, decimals=3) if rts is not None and perturbs else " " * 7,
            f"{round(evaluation.get('gradient_evaluations', 0)):12d}",
        )
        if self._rows % 20 == 0:
            self._bar.write(_HEADER)
        self._rows += 1
        self._bar.write(f"{state.epoch or 0:7.2f}" + " ".join(("", *cells)))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def quiet_progress_bars() -> Iterator[None]:
    """Hide the progress bars of loading and saving inside the ``with`` block; they would cut through the table."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def introduction(model: Any, data: Any, opt: str) -> str:
    """Return what stands above a run: model, images and where they come from.

    Args:
        model: A classifier of :func:`rts_hf.build_model`.
        data: The :class:`rts_hf.DataBundle`.
        opt: The optimizer's name.
    """
    sizes = ", ".join(f"{count} {name}" for name, count in data.split_sizes.items())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sources = [
        f"{part}: {'held out of' if source['held_out'] else 'split'} {source['split']}"
        for part, source in data.split_sources.items()
        if source is not None
    ]
    fewer, noise = data.train_fraction, data.label_noise
    sources += [f"kept {fewer['images']} of {fewer['of']} training images"] if fewer else []
    sources += [f"changed {noise['flipped']} of {noise['of']} training labels to another class"] if noise else []
    return (
        f"{plain_name(model.config.architecture)} ({parameters / 1e6:.2f} M parameters) on {data.name} ({sizes} images "
        f"of {data.image_size} pixels, {len(data.label_names)} classes) with {opt}\n"
        f"{'; '.join(sources)}; mean and standard deviation: {data.normalisation}; augmentation: {data.augmentation}"
    )


def summary(record: Mapping[str, Any], folder: str) -> str:
    """Return the table that closes a run.

    Args:
        record: What ``run.json`` holds.
        folder: Where the run lies, as the user wrote it.
    """
    sizes, images = record["data"]["splits"], {}
    for split in ("train", "validation", "test"):
        metrics = record["metrics"].get(split)
        if metrics is not None:
            part = f"{metrics['images']} of " if "images" in metrics else ""
            images[split] = f"{part}{sizes[split]}"
    width = max(map(len, ("images", *images.values()))) + 2
    lines = ["", f"{'':12}{'images':>{width}}{'loss':>10}{'accuracy':>10}"]
    for split, text in images.items():
        metrics = record["metrics"][split]
        lines.append(f"{split:12}{text:>{width}}{_cell(metrics['loss'], 10)}{_cell(metrics['accuracy'], 10)}")
    lines += [
        "",
        *_recipe(record),
        f"{'Switch':22}{_switch(record)}",
        f"{'Cost':22}{spent(record)}, {_count(record['epochs'], 'epoch')}",
        *([f"{'Sharpness':22}{_sharpness(record['sharpness'])}"] if record.get("sharpness") else []),
        f"{'Seconds':22}{record['seconds']:.0f}",
        *(
            f"{label:22}{_count(record['faults'][kind], 'time')}"
            for kind, label in KINDS.items()
            if (record.get("faults") or {}).get(kind)
        ),
        *(f"{'Note':22}{remark}" for remark in record["warnings"] if not remark.startswith("The switch ")),
        f"{'Run folder':22}{folder}",
    ]
    return "\n".join(lines)


def _sharpness(measured: Mapping[str, Any]) -> str:
    eigenvalue, increase = (_cell(measured[name], 0, 3) for name in ("hessian_eigenvalue", "worst_case_increase"))
    least = "" if measured["hessian_converged"] else "at least "
    return f"Hessian's largest eigenvalue {least}{eigenvalue}, worst loss found nearby {increase} higher"


def _recipe(record: Mapping[str, Any]) -> list[str]:
    """Return what was recorded and measured with the recipe of a run, beside what the run itself measured."""
    recipe = record.get("recipe")
    if not recipe:
        return []
    changes = f", but for {', '.join(recipe['differs_in'])}" if recipe["differs_in"] else ""
    lines = [f"{'Recipe':22}{recipe['name']}{changes}"]
    recorded, measured = recipe["recorded"], recipe["measured"]
    if recorded:
        lines.append(
            f"{'Recorded':22}{recorded['best']:.4f} at best, {recorded['final']:.4f} at the end: the authors' test "
            f"accuracy of {recorded['model']}, {_count(recorded['epochs'], 'epoch')}"
        )
    if measured:
        seeds, interval = measured["seeds"], measured["interval"]
        spread = "" if interval is None else f" ± {interval:.4f}"
        runs = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of {len(seeds)} seeds"
        lines.append(f"{'Measured before':22}{measured['accuracy']:.4f}{spread}: test accuracy, {runs}")
    accuracy = (record["metrics"].get("test") or {}).get("accuracy")
    model = f"{record['model']['architecture']}, {_count(record['epochs'], 'epoch')}, seed {record['seed']}"
    lines.append(f"{'Measured here':22}{_cell(accuracy, 0)}: test accuracy of {model}")
    if recipe["caveats"]:
        lines.append(f"{'Caveats':22}the card tells what to know before these are compared")
    return [*lines, ""]


def _switch(record: Mapping[str, Any]) -> str:
    optimizer = record["optimizer"]
    switch = optimizer["switch"]
    if switch is None:
        tail = optimizer["name"] == TEMPERON
        return "Temperon's own, at its tail" if tail else f"none: {optimizer['name']} has one phase"
    settings = ", ".join(f"{name} {value}" for name, value in switch["settings"].items())
    if switch["kind"] == "staged" and switch["unit_step"] is not None:
        begun = f"unit steps after {_count(switch['unit_step'], 'update')}, "
        if switch["step"] is None:
            return f"{begun}none perturbed: {why_not_perturbed(switch)}"
        return f"{begun}perturbed ones after {_count(switch['step'], 'update')}: the generalization gap grew"
    if switch["step"] is None:
        return f"never: {switch['kind']} ({settings}) did not fire, so this was plain {optimizer['base']} throughout"
    if switch["step"] == 0:
        return f"{optimizer['method']} from the first update"
    return f"epoch {switch['epoch']:.1f}, after {_count(switch['step'], 'update')} ({switch['kind']})"


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}" + ("" if number == 1 else "s")


def _cell(value: Any, width: int, decimals: int = 4) -> str:
    """Return a number right-aligned, short also where it is huge; a dash for what is no number."""
    if not isinstance(value, int | float) or math.isnan(value):
        return f"{'–':>{width}}"
    return f"{value:{width}.{decimals}f}" if abs(value) < 1e4 else f"{value:{width}.3g}"
