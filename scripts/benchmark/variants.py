"""Cheaper variants of the method: what an epoch costs, and the accuracy of runs that take as many gradients."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from benchmark.timers import interleaved, medians
from torch.nn.functional import cross_entropy

from rts_hf.data.batches import collate
from rts_hf.data.loading import load_data
from rts_hf.models.classifiers import build_model
from rts_hf.optim.optimizer import RTSPUGD
from rts_hf.optim.second_pass import keep_buffers
from rts_hf.reports.comparison import difference, spread, summarise
from rts_hf.reports.run_folder import COMPARISON_NAME
from rts_hf.training.window import first_images


class Variant(NamedTuple):
    """A way to run the method.

    Args:
        words: As scripts/compare.py takes them.
        switch_at: Share of the updates before the perturbed phase; 1 is SGD.
        every: Of the updates after it, one in so many is perturbed.
        fraction: Of the images, which the second pass takes.
    """

    words: str
    switch_at: float = 0.5
    every: int = 1
    fraction: float = 1.0

    def seconds(self, timed: Mapping[str, float]) -> float:
        """Return the mean seconds of an update over a run, from those of each kind of update."""
        second = timed["perturbed"] if self.fraction == 1 else timed[f"perturbed, {self.fraction:g}"]
        after = (second + (self.every - 1) * timed["unit step"]) / self.every
        return self.switch_at * timed["sgd"] + (1 - self.switch_at) * after

    def gradients(self) -> float:
        """Return the mean gradient evaluations of an update over a run."""
        return 1 + (1 - self.switch_at) * self.fraction / self.every


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "SGD": Variant("sgd", switch_at=1.0),
        "the default: perturbs in the second half": Variant("rts_pugd"),
        "`switch_at` 0.75": Variant("rts_pugd --switch_at 0.75", switch_at=0.75),
        "`switch_at` 0.9": Variant("rts_pugd --switch_at 0.9", switch_at=0.9),
        "`perturb_every` 2": Variant("rts_pugd --perturb_every 2", every=2),
        "`perturb_every` 5": Variant("rts_pugd --perturb_every 5", every=5),
        "`perturb_fraction` 0.5": Variant("rts_pugd --perturb_fraction 0.5", fraction=0.5),
        "`perturb_fraction` 0.25": Variant("rts_pugd --perturb_fraction 0.25", fraction=0.25),
    }
)
BUDGET = 30  # gradient evaluations of a run, in passes over the training images
# The benchmark and the learning rate that validation chose there for SGD and for the default
SETTINGS = ("--label_noise", "0.4", "--learning_rate", "0.4", "--channels_last", "--measure_sharpness", "false")


def command(output_dir: str, *, seeds: int = 10, jobs: int = 2) -> list[str]:
    """Return the words of scripts/compare.py that measure the variants' accuracy."""
    opts = [variant.words for variant in VARIANTS.values()]
    counts = ["--seeds", str(seeds), "--budget", str(BUDGET), "--jobs", str(jobs)]
    return ["--opts", *opts, *counts, "--output_dir", output_dir, *SETTINGS, "--draw_figures", "false"]


def keep(comparison_dir: str | Path, target: str | Path) -> None:
    """Keep the results of a finished comparison of the variants.

    Raises:
        FileNotFoundError: If it is not finished.
    """
    source = Path(comparison_dir)
    if not (source / COMPARISON_NAME).is_file():
        raise FileNotFoundError(f"comparison {str(source)!r} is not finished; the command that began it goes on.")
    Path(target).mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "results.csv", Path(target) / "variants.csv")


def time_updates(device: str = "cpu", *, repeats: int = 15, batch: int = 64) -> dict[str, float]:
    """Return the median seconds of each kind of update of the main job, timed in turns."""
    data = load_data("digits")
    loader = torch.utils.data.DataLoader(data.train, batch_size=batch, collate_fn=collate)
    inputs = {name: value.to(device) for name, value in next(iter(loader)).items()}
    torch.manual_seed(0)
    model: Any = build_model(
        "resnet_micro_small", label_names=data.label_names, image_size=data.image_size, mean=data.mean, std=data.std
    ).timm_model.to(device, memory_format=torch.channels_last)
    settings: dict[str, Any] = {"lr": 1e-6, "weight_decay": 5e-4, "total_steps": 2 * 10**6}

    def backward(fraction: float = 1.0) -> None:
        taken = first_images(inputs, fraction)
        cross_entropy(model(taken["pixel_values"]), taken["labels"]).backward()

    def update(switch_at: int, every: int = 1, fraction: float = 1.0) -> Callable[[], None]:
        timing: dict[str, Any] = {"switch": "fixed", "switch_at": switch_at, "perturb_every": every}
        optimizer = RTSPUGD(model.parameters(), **timing, **settings)
        if every > 1:  # the first update after the switch is the one that is perturbed
            backward()
            with optimizer.perturbed():
                backward()
            optimizer.step()
            optimizer.zero_grad()

        def call() -> None:
            backward()
            if optimizer.perturbing:
                with optimizer.perturbed(), keep_buffers(model):
                    backward(fraction)
            optimizer.step()
            optimizer.zero_grad()

        return call

    fractions = sorted({variant.fraction for variant in VARIANTS.values()} - {1.0})
    sides = {"sgd": update(10**6), "perturbed": update(0), "unit step": update(0, every=10**6)}
    sides |= {f"perturbed, {fraction:g}": update(0, fraction=fraction) for fraction in fractions}
    return medians(interleaved(sides, repeats=repeats, warm_up=3))


def table(rows: Sequence[Mapping[str, Any]], timed: Mapping[str, float]) -> str:
    """Return the variants in Markdown: cost, time that equal gradients take, and accuracy.

    Args:
        rows: Of the comparison, as :func:`rts_hf.reports.comparison.read_rows` returns them.
        timed: What :func:`time_updates` returned.

    Raises:
        ValueError: If the results lack a variant.
    """
    found = {row["method"]: row for row in summarise(rows, "sgd")}
    missing = [variant.words for variant in VARIANTS.values() if variant.words not in found]
    if missing:
        raise ValueError(f"the results have no {missing[0]!r}; run scripts/benchmark --rerun_variants.")
    lines = [
        "| variant | time of an epoch ÷ SGD's | time of these runs ÷ SGD's | test accuracy, % | points over SGD |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, variant in VARIANTS.items():
        row = found[variant.words]
        cost = variant.seconds(timed) / timed["sgd"]
        same = cost / variant.gradients()  # a run has as many gradients as SGD's, and so fewer updates
        over = difference(row["difference"]) if row["method"] != "sgd" else "–"
        lines.append(f"| {name} | {cost:.2f} | {same:.2f} | {spread(row['test_accuracy'])} | {over} |")
    return "\n".join(lines)
