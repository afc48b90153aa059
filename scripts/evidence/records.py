"""The comparisons that this project's claims rest on: which there are, what is kept of them, and reading that again."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rts_hf.files import read_json_object, write_text
from rts_hf.reports.comparison import FORMAT, count_in, read_rows, summarise, to_csv
from rts_hf.reports.run_folder import COMPARISON_NAME, read_log, read_record

OWN, PAPER = "rts_pugd", "paper"
METHODS = ("sgd", "sam", "asam", "pugd", "temperon", PAPER, OWN)
HISTORIES = ("method", "seed", "gradient_evaluations", "validation_accuracy")
# Every method's learning rate is the best of these, and of what the grid grows by, on the validation split
RATES, PRETRAINED_RATES = ("0.05", "0.1", "0.2", "0.4"), ("0.003", "0.01", "0.03")


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
        return f"`{self.benchmark.name}` at {self.budget}"


def names() -> Iterator[tuple[str, Benchmark, int]]:
    """Return the name of every comparison of the evidence, its benchmark and budget."""
    for benchmark in BENCHMARKS:
        for budget in benchmark.budgets:
            yield f"{benchmark.name}-{budget}", benchmark, budget


def commands(
    output_dir: str, *, methods: Sequence[str] = METHODS, seeds: int | None = None, jobs: int = 2
) -> Iterator[tuple[str, list[str]]]:
    """Return the name of every comparison of the evidence, and the words of scripts/compare.py that make it.

    Args:
        output_dir: Folder of their folders.
        methods: Some of :data:`METHODS`.
        seeds: Of each method; None: 10, or 5 where pretrained weights are trained.
        jobs: Runs at a time.
    """
    opts = [name for name in methods if name != PAPER]
    compared = [*(["--opts", *opts] if opts else []), *(["--recipes", PAPER] if PAPER in methods else [])]
    for name, benchmark, budget in names():
        runs, tune, rates = (5, 1, PRETRAINED_RATES) if benchmark.is_pretrained else (10, 2, RATES)
        own = [*compared, "--seeds", str(seeds or runs), "--budget", str(budget)]
        own += ["--tune", str(tune), "--learning_rates", *rates]
        where = ["--output_dir", str(Path(output_dir) / name), "--jobs", str(jobs)]
        yield name, [*own, *where, *benchmark.words, "--channels_last", "--draw_figures", "false"]


def keep(comparison_dir: str | Path, target: str | Path) -> None:
    """Keep what the evidence needs of a finished comparison: results, trials, facts and histories, no weights.

    Records of methods that the comparison has not run stay as they are.

    Args:
        comparison_dir: Folder that scripts/compare.py wrote.
        target: Folder of the records.

    Raises:
        FileNotFoundError: If the comparison is not finished.
        ValueError: If its learning rates were chosen elsewhere, or the records that would stay are of another task.
    """
    source, folder = Path(comparison_dir), Path(target)
    if not (source / COMPARISON_NAME).is_file():
        raise FileNotFoundError(f"comparison {str(source)!r} is not finished; the command that began it goes on.")
    facts = read_json_object(source / COMPARISON_NAME)
    if "source" in (facts["tuning"] or {}):
        raise ValueError(f"comparison {str(source)!r} took its learning rates from another, whose runs are not there.")
    tables: dict[str, list[dict[str, str]]] = {
        name: _read(source / name) for name in ("results.csv", "trials.csv") if (source / name).is_file()
    }
    runs = {source / row["folder"]: row for row in tables["results.csv"]}
    tables["histories.csv"] = [
        {
            "method": row["method"],
            "seed": row["seed"],
            "gradient_evaluations": str(entry["gradient_evaluations"]),
            "validation_accuracy": str(round(entry["eval_accuracy"], 5)),
        }
        for path, row in runs.items()
        if read_record(path)["status"] != "diverged"
        for entry in read_log(path)
        if entry.get("eval_accuracy") is not None
    ]
    kept = {name: value for name, value in facts.items() if name not in ("methods", "command", "evaluations")}
    kept["devices"] = {
        "runs": _devices(runs),
        "tuning": _devices(path.parent for path in source.glob("tuning/*/*/*/run.json")),
    }
    if (folder / COMPARISON_NAME).is_file():
        _join(folder, {row["method"] for row in runs.values()}, kept, tables)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        if rows or name == "histories.csv":
            write_text(folder / name, to_csv(rows, list(rows[0]) if rows else HISTORIES))
    write_text(folder / COMPARISON_NAME, json.dumps(kept, indent=2, ensure_ascii=False) + "\n")


def _join(folder: Path, made: set[str], kept: dict[str, Any], tables: dict[str, list[dict[str, str]]]) -> None:
    """Add what records hold of other methods than were ``made`` to the facts and tables of those."""
    known = read_json_object(folder / COMPARISON_NAME)
    tables.setdefault("trials.csv", [])  # which a comparison without tuning does not have
    old = {
        name: [row for row in _read(folder / name) if row["method"] not in made] if (folder / name).is_file() else []
        for name in tables
    }
    if not old["results.csv"]:
        return
    for name in ("model", "data", "gradient_evaluations", "words"):
        before, now = (
            [word for word in facts[name] if word != "--channels_last"] if name == "words" else facts[name]
            for facts in (known, kept)
        )  # which is a matter of rounding
        if before != now:
            others = ", ".join(dict.fromkeys(row["method"] for row in old["results.csv"]))
            raise ValueError(
                f"the records in {str(folder)!r} are of another task ({name} {before!r}, not {now!r}); run {others} "
                "again too."
            )
    order = {method: place for place, method in enumerate(METHODS)}
    for name, rows in tables.items():
        joined = sorted([*old[name], *rows], key=lambda row: order.get(row["method"], len(order)))
        columns = dict.fromkeys(column for row in joined for column in row)
        tables[name] = [{column: row.get(column, "") for column in columns} for row in joined]
    kept |= {"reference": known["reference"], "words": known["words"]}
    for kind, devices in kept["devices"].items():
        kept["devices"][kind] = sorted({*devices, *known.get("devices", {}).get(kind, ["cpu"])})
    if kept["tuning"] and known["tuning"]:
        ends = [name for name in known["tuning"]["at_an_end"] if name not in made]
        kept["tuning"] |= {"trials": len(tables["trials.csv"]), "at_an_end": [*ends, *kept["tuning"]["at_an_end"]]}


def _devices(runs: Iterable[Path]) -> list[str]:
    """Return the kinds of device that runs were trained on: an accelerator's name, or cpu."""
    hardware = (read_record(run)["hardware"] for run in runs)
    return sorted({each.get("accelerator") or each["device"] for each in hardware})


def read_evidence(folder: str | Path) -> list[Evidence]:
    """Return the comparisons that are kept in a folder, in the order of :data:`BENCHMARKS`.

    Args:
        folder: Folder of the records.

    Raises:
        ValueError: If none is there.
    """
    found = [
        _read_one(Path(folder) / name, benchmark, budget)
        for name, benchmark, budget in names()
        if (Path(folder) / name).is_dir()
    ]
    if not found:
        raise ValueError(f"folder {str(folder)!r} holds no records; scripts/evidence --rerun makes them.")
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
