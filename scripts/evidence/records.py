"""The comparisons that this project's claims rest on: which there are, what is kept of them, and reading that again."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from rts_hf.files import read_json_object, write_text
from rts_hf.reports.comparison import FORMAT, count_in, read_rows, summarise, to_csv
from rts_hf.reports.run_folder import COMPARISON_NAME, read_log, read_record

METHODS = ("sgd", "sam", "asam", "pugd", "temperon", "rts_pugd")
OWN = "rts_pugd"
HISTORIES = ("method", "seed", "gradient_evaluations", "validation_accuracy")
# Every method's learning rate is the best of these, and of what the grid grows by, on the validation split
TUNING = ("--tune", "2", "--learning_rates")
RATES, PRETRAINED_RATES = ("0.05", "0.1", "0.2", "0.4"), ("0.003", "0.01", "0.03")
DEFAULT_RATE = 0.1  # of the training command, for all of METHODS
LANDSCAPE = "digits_noise-100"  # the comparison whose runs of seed 0 the surfaces and the line are of
NOISY = "digits_noise"  # compared at one learning rate for all too at every budget, where others are at the short one


class Benchmark(NamedTuple):
    """A task of the evidence.

    Args:
        name: Of its records.
        title: What sets it apart.
        words: Options of the training command.
        budgets: Short and long, in passes over the training images.
    """

    name: str
    title: str
    words: tuple[str, ...]
    budgets: tuple[int, ...]

    @property
    def is_pretrained(self) -> bool:
        """Whether it starts from pretrained weights: with learning rates and a number of seeds of its own."""
        return "--checkpoint" in self.words


# ImageNet weights from a package, all of them trained. 500 images are 15 batches of 32 and one of 20.
_PRETRAINED = (
    "--checkpoint", "efficientnet_lite0", "--image_size", "64", "--max_train_samples", "500",
    "--per_device_train_batch_size", "32", "--eval_strategy", "steps", "--eval_steps", "48", "--save_strategy", "steps",
    "--save_steps", "48",
)  # fmt: skip
# With two updates an epoch, evaluating after each epoch would cost more than training.
_RARELY = ("--eval_strategy", "steps", "--eval_steps", "15", "--save_strategy", "steps", "--save_steps", "15")
# Two whole batches of 64: of a tenth, 129 images, every third update would see a single one, which moves a method of
# unit steps as far as 64 do, and BatchNorm's statistics too.
_FEW = ("--train_fraction", "0.099", *_RARELY)
BENCHMARKS = (
    Benchmark(
        "finetune_mnist_5k",
        "ImageNet weights fine-tuned on 500 images of handwritten digits",
        ("--dataset", "mnist_5k", *_PRETRAINED),
        (4, 9),
    ),
    Benchmark(
        "finetune_photo_patches",
        "ImageNet weights fine-tuned on 500 patches of ten photographs",
        ("--dataset", "photo_patches", *_PRETRAINED),
        (4, 9),
    ),
    Benchmark("digits", "as they are", (), (30, 100)),
    Benchmark("digits_noise", "40 % of the training labels wrong", ("--label_noise", "0.4"), (30, 100)),
    Benchmark("digits_few", "128 of the 1,293 training images", _FEW, (200, 600)),
    Benchmark("photo_patches", "patches of ten photographs", ("--dataset", "photo_patches"), (15, 45)),
)


# Settings of the method that its defaults can be held against, on validation accuracy alone
STUDY = (
    "sgd", "rts_pugd", "rts_pugd --switch_at 0", "rts_pugd --switch_at 0.25", "rts_pugd --switch_at 0.75",
    "rts_pugd --switch_at 0.9", "rts_pugd --switch gradient_variance",
    "rts_pugd --switch gradient_variance --switch_gamma 0.5", "rts_pugd --switch generalization_gap",
    "rts_pugd --switch generalization_gap --switch_mu 1.2", "rts_pugd --radius_beta_max 1",
    "rts_pugd --radius_beta_max 4", "rts_pugd --radius sine_heating --radius_beta_max 2",
    "rts_pugd --scale sine_heating", "rts_pugd --scale constant --scale_beta_max 0", "rts_pugd --perturb_every 2",
    # with a switch at half of the updates, the learning rate anneals anew from there on
    "rts_pugd --lr_scheduler_type cosine_with_restarts --lr_scheduler_kwargs '{\"num_cycles\": 2}'",
)  # fmt: skip
# Its budgets, and the learning rate of each: what validation chose for the method there
STUDIES = {f"study-{budget}": (budget, rate) for budget, rate in ((30, 0.4), (100, 0.1))}


class Evidence(NamedTuple):
    """A comparison that was kept.

    Args:
        name: Of its folder among the records.
        benchmark: What on.
        budget: Passes over the training images.
        comparison: What ``comparison.json`` holds, its summary made anew from ``rows``.
        rows: One a run, as :func:`rts_hf.reports.comparison.run_row` gives them.
        curves: For each method, its runs' lists of (gradient evaluations, validation accuracy).
    """

    name: str
    benchmark: Benchmark
    budget: int
    comparison: dict[str, Any]
    rows: list[dict[str, Any]]
    curves: dict[str, list[list[tuple[float, float]]]]

    @property
    def told(self) -> str:
        """What sentences call it."""
        rates = "" if self.comparison["tuning"] else f" (learning rate {DEFAULT_RATE} for all)"
        return f"`{self.benchmark.name}` at {self.budget}{rates}"


def names() -> Iterator[tuple[str, Benchmark, int, bool]]:
    """Return the name of every comparison of the evidence, its benchmark and budget, and whether it chooses rates."""
    for benchmark in BENCHMARKS:
        for budget in benchmark.budgets:
            yield f"{benchmark.name}-{budget}", benchmark, budget, True
            if not benchmark.is_pretrained and (benchmark.name == NOISY or budget == benchmark.budgets[0]):
                yield f"{benchmark.name}-{budget}-default", benchmark, budget, False


def commands(output_dir: str, *, seeds: int | None = None, jobs: int = 2) -> Iterator[tuple[str, list[str]]]:
    """Return the name of every comparison of the evidence, and the words of scripts/compare.py that make it.

    Args:
        output_dir: Folder of their folders.
        seeds: Of each method; None: 10, or 5 where pretrained weights are trained. The study has three of its own.
        jobs: Runs at a time.
    """
    for name, benchmark, budget, is_tuned in names():
        runs = seeds or (5 if benchmark.is_pretrained else 10)
        rates = (*TUNING, *(PRETRAINED_RATES if benchmark.is_pretrained else RATES)) if is_tuned else ()
        own = ["--opts", *METHODS, "--seeds", str(runs), "--budget", str(budget), *rates]
        where = ["--output_dir", str(Path(output_dir) / name), "--jobs", str(jobs)]
        yield name, [*own, *where, *benchmark.words, "--channels_last", "--draw_figures", "false"]
    (noisy,) = (benchmark for benchmark in BENCHMARKS if benchmark.name == NOISY)
    for name, (budget, rate) in STUDIES.items():
        own = ["--opts", *STUDY, "--seeds", "3", "--first_seed", "2000", "--budget", str(budget), "--validation_only"]
        where = ["--output_dir", str(Path(output_dir) / name), "--jobs", str(jobs)]
        common = ["--learning_rate", str(rate), "--channels_last", "--draw_figures", "false"]
        yield name, [*own, *where, *noisy.words, *common]


def keep(comparison_dir: str | Path, target: str | Path) -> None:
    """Keep what the evidence needs of a finished comparison: results, trials, facts and histories, no weights.

    Args:
        comparison_dir: Folder that scripts/compare.py wrote.
        target: Folder of the records; emptied before.

    Raises:
        FileNotFoundError: If the comparison is not finished.
        ValueError: If its learning rates were chosen elsewhere.
    """
    source, folder = Path(comparison_dir), Path(target)
    if not (source / COMPARISON_NAME).is_file():
        raise FileNotFoundError(f"comparison {str(source)!r} is not finished; the command that began it goes on.")
    facts = read_json_object(source / COMPARISON_NAME)
    if "source" in (facts["tuning"] or {}):
        raise ValueError(f"comparison {str(source)!r} took its learning rates from another, whose runs are not there.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("results.csv", "trials.csv"):
        if (source / name).is_file():
            shutil.copy(source / name, folder)
    kept = {name: value for name, value in facts.items() if name not in ("methods", "command")}
    kept["devices"] = {
        "runs": _devices(source / row["folder"] for row in _read(source / "results.csv")),
        "tuning": _devices(path.parent for path in source.glob("tuning/*/*/*/run.json")),
    }
    norms = [_norm_at_switch(source / row["folder"]) for row in _read(source / "results.csv") if row["method"] == OWN]
    kept["norm_at_switch"] = [norm for norm in norms if norm is not None]
    kept["weights"] = {name: _digest(run) for name, run in zip(("sgd", OWN), _drawn_runs(source), strict=True)}
    write_text(folder / COMPARISON_NAME, json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
    points = [
        {
            "method": row["method"],
            "seed": row["seed"],
            "gradient_evaluations": entry["gradient_evaluations"],
            "validation_accuracy": round(entry["eval_accuracy"], 5),
        }
        for row in _read(source / "results.csv")
        if read_record(source / row["folder"])["status"] != "diverged"
        for entry in read_log(source / row["folder"])
        if entry.get("eval_accuracy") is not None
    ]
    write_text(folder / "histories.csv", to_csv(points, HISTORIES))


def _devices(runs: Iterable[Path]) -> list[str]:
    """Return the kinds of device that runs were trained on: an accelerator's name, or cpu."""
    hardware = (read_record(run)["hardware"] for run in runs)
    return sorted({each.get("accelerator") or each["device"] for each in hardware})


def _norm_at_switch(run: Path) -> float | None:
    """Return the mean of the last five gradient norms that a run logged before its switch fired, or None."""
    record = read_record(run)
    step = ((record["optimizer"] or {}).get("switch") or {}).get("step")
    if not step or record["status"] == "diverged":
        return None
    norms = [float(entry["grad_norm"]) for entry in read_log(run) if "grad_norm" in entry and entry["step"] <= step]
    norms = [norm for norm in norms if math.isfinite(norm)]
    return fmean(norms[-5:]) if norms else None


def _drawn_runs(comparison_dir: Path) -> list[Path]:
    """Return the run folders that landscapes are of."""
    return [comparison_dir / "runs" / name / "seed-0" for name in ("sgd", OWN)]


def _digest(run: Path) -> str | None:
    """Return what tells a run's weights from others, or None where they are not kept."""
    weights = run / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:16] if weights.is_file() else None


def measure_landscapes(comparison_dir: str | Path, target: str | Path, *, progress: bool = True) -> None:
    """Measure the loss around the weights of SGD's and the method's runs of seed 0, and on the line between them.

    Args:
        comparison_dir: Folder of the comparison :data:`LANDSCAPE`, with its runs.
        target: Folder of the .npz files; what is there is replaced. What is measured is kept in ``landscape`` of the
            comparison's folder too, from where the same call goes on.
        progress: Whether to show progress bars.

    Raises:
        FileNotFoundError: If the runs, or their weights, are not there.
    """
    from rts_hf.comparing.landscapes import lines_of_runs, surface_of_run

    folder = Path(comparison_dir) / "landscape"
    folder.mkdir(parents=True, exist_ok=True)
    runs = _drawn_runs(Path(comparison_dir))
    for name, run in zip(("sgd", OWN), runs, strict=True):
        surface_of_run(run, folder / f"surface-{name}.npz", progress=progress)
    lines_of_runs(runs, [folder / f"line-sgd-{OWN}.npz"], progress=progress)
    Path(target).mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.npz"):
        shutil.copy(path, target)
    digests = {name: _digest(run) for name, run in zip(("sgd", OWN), runs, strict=True)}
    write_text(Path(target) / "weights.json", json.dumps(digests, indent=2) + "\n")


def check_landscapes(records: Path) -> None:
    """Refuse landscapes of other runs than those of the record that the page shows beside them."""
    told = records / "landscape" / "weights.json"
    record = records / LANDSCAPE / COMPARISON_NAME
    measured = read_json_object(told) if told.is_file() else None
    kept = read_json_object(record).get("weights") if record.is_file() else None
    if kept and kept != measured:
        raise ValueError(
            f"the landscapes in {str(told.parent)!r} are of other weights ({measured}) than the record of {LANDSCAPE} "
            f"({kept}); scripts/evidence --rerun landscape measures them."
        )


def read_evidence(folder: str | Path) -> list[Evidence]:
    """Return the comparisons that are kept in a folder, in the order of :data:`BENCHMARKS`.

    Args:
        folder: Folder of the records.

    Raises:
        ValueError: If none is there.
    """
    found = [
        _read_one(Path(folder) / name, benchmark, budget)
        for name, benchmark, budget, _ in names()
        if (Path(folder) / name).is_dir()
    ]
    if not found:
        raise ValueError(f"folder {str(folder)!r} holds no records; scripts/evidence --rerun makes them.")
    return found


def read_study(folder: str | Path) -> dict[int, dict[str, Any]]:
    """Return what ``comparison.json`` holds of the studies that are kept in a folder, by their budgets.

    Args:
        folder: Folder of the records.
    """
    kept = {budget: Path(folder) / name for name, (budget, _) in STUDIES.items()}
    found = {}
    for budget, records in kept.items():
        if records.is_dir():
            facts = read_json_object(records / COMPARISON_NAME)
            summary = summarise(read_rows(records / "results.csv"), facts["reference"], "validation")
            found[budget] = {**facts, "format": FORMAT, "methods": summary}
    return found


def _read_one(kept: Path, benchmark: Benchmark, budget: int) -> Evidence:
    rows = read_rows(kept / "results.csv")
    facts = read_json_object(kept / COMPARISON_NAME)
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for point in _read(kept / "histories.csv"):
        run = curves.setdefault(point["method"], {}).setdefault(point["seed"], [])
        run.append((count_in(point["gradient_evaluations"]), float(point["validation_accuracy"])))
    by_method = {name: list(runs.values()) for name, runs in curves.items()}
    evaluations = {name: max(map(len, runs)) for name, runs in by_method.items()}
    summary = summarise(rows, facts["reference"])
    comparison = {**facts, "format": FORMAT, "evaluations": evaluations, "methods": summary}
    return Evidence(kept.name, benchmark, budget, comparison, rows, by_method)


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
