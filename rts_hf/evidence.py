"""This project's own evidence: the comparisons it rests on, their records, and what README shows of them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from rts_hf.card_text import counted
from rts_hf.comparison_figures import COLOURS, MARKS, draw_comparison
from rts_hf.comparison_tables import FORMAT, count_in, difference, read_rows, spread, summarise, to_csv, to_markdown
from rts_hf.figures_of_runs import draw_figure, draw_strategies
from rts_hf.files import read_json_object, replace_part, write_text
from rts_hf.landscape import Line, Surface, read_landscape
from rts_hf.pictures_of_runs import draw_landscapes
from rts_hf.run_folder import COMPARISON_NAME, read_log, read_record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("sgd", "sam", "asam", "pugd", "temperon", "rts_pugd")
OWN = "rts_pugd"
HISTORIES = ("method", "seed", "gradient_evaluations", "validation_accuracy")
# What the authors' published run records say of their method over plain PUGD, and over SGD
RECORDED = (
    "+0.7 points on CIFAR-10 and +0.9 on CIFAR-100 (UPANets), +1.3 at best (ViT-B fine-tuned on CIFAR-100); one seed, "
    "best test epoch",
    "one SGD run was annealed once: 0.9237 after 50 epochs on CIFAR-10; plain PUGD has 0.9354 after 50, 0.9211 after "
    "100, 0.9217 after 200, with twice the gradients an epoch. The longer SGD runs went through two cosine periods",
)
BEGIN, END = "<!-- made by scripts/evidence.py: begin -->", "<!-- made by scripts/evidence.py: end -->"
# Every method's learning rate is the best of these, and of what the grid grows by, on the validation split
TUNING = ("--tune", "2", "--learning_rates", "0.05", "0.1", "0.2", "0.4")
LANDSCAPE = "digits_noise-100"  # the comparison whose runs of seed 0 the surfaces and the line are of


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


# With three updates an epoch, evaluating after each epoch would cost more than training.
_RARELY = ("--eval_strategy", "steps", "--eval_steps", "15", "--save_strategy", "steps", "--save_steps", "15")
_FEW = ("--train_fraction", "0.1", *_RARELY)
BENCHMARKS = (
    Benchmark("digits", "as they are", (), (30, 100)),
    Benchmark("digits_noise", "40 % of the training labels wrong", ("--label_noise", "0.4"), (30, 100)),
    Benchmark("digits_few", "a tenth of the training images", _FEW, (200, 600)),
    Benchmark("photo_patches", "patches of ten photographs", ("--dataset", "photo_patches"), (15, 45)),
)


class Evidence(NamedTuple):
    """A comparison that was kept.

    Args:
        benchmark: What on.
        budget: Passes over the training images.
        comparison: What ``comparison.json`` holds, its summary made anew from ``rows``.
        rows: One a run, as :func:`rts_hf.comparison_tables.run_row` gives them.
        curves: For each method, its runs' lists of (gradient evaluations, validation accuracy).
    """

    benchmark: Benchmark
    budget: int
    comparison: dict[str, Any]
    rows: list[dict[str, Any]]
    curves: dict[str, list[list[tuple[float, float]]]]


def commands(output_dir: str, *, seeds: int = 10, jobs: int = 2) -> Iterator[tuple[str, list[str]]]:
    """Return the name of every comparison of the evidence, and the words of scripts/compare.py that make it.

    Args:
        output_dir: Folder of their folders.
        seeds: Of each method.
        jobs: Runs at a time.
    """
    for benchmark in BENCHMARKS:
        for budget in benchmark.budgets:
            name = f"{benchmark.name}-{budget}"
            own = ["--opts", *METHODS, "--seeds", str(seeds), "--budget", str(budget), *TUNING]
            where = ["--output_dir", str(Path(output_dir) / name), "--jobs", str(jobs)]
            yield name, [*own, *where, *benchmark.words, "--channels_last", "--draw_figures", "false"]


def keep(comparison_dir: str | Path, target: str | Path) -> None:
    """Keep what README's evidence needs of a finished comparison: results, trials, facts and histories, no weights.

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
    write_text(folder / COMPARISON_NAME, json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
    points = [
        {
            "method": row["method"],
            "seed": row["seed"],
            "gradient_evaluations": entry["gradient_evaluations"],
            "validation_accuracy": round(entry["eval_accuracy"], 5),
        }
        for row in _read(source / "results.csv")
        for entry in read_log(source / row["folder"])
        if entry.get("eval_accuracy") is not None
    ]
    write_text(folder / "histories.csv", to_csv(points, HISTORIES))


def _devices(runs: Iterable[Path]) -> list[str]:
    """Return the kinds of device that runs were trained on: an accelerator's name, or cpu."""
    hardware = (read_record(run)["hardware"] for run in runs)
    return sorted({each.get("accelerator") or each["device"] for each in hardware})


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
    from rts_hf.landscapes_of_runs import lines_of_runs, surface_of_run

    folder = Path(comparison_dir) / "landscape"
    folder.mkdir(parents=True, exist_ok=True)
    runs = [Path(comparison_dir) / "runs" / name / "seed-0" for name in ("sgd", OWN)]
    for name, run in zip(("sgd", OWN), runs, strict=True):
        surface_of_run(run, folder / f"surface-{name}.npz", progress=progress)
    lines_of_runs(runs, [folder / f"line-sgd-{OWN}.npz"], progress=progress)
    Path(target).mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.npz"):
        shutil.copy(path, target)


def _draw_landscapes(folder: Path) -> list[Path]:
    """Draw the surfaces and the line that are kept in a folder."""
    surfaces = {name: cast(Surface, read_landscape(folder / f"surface-{name}.npz")) for name in ("sgd", OWN)}
    line = cast(Line, read_landscape(folder / f"line-sgd-{OWN}.npz"))
    return draw_landscapes(folder, surfaces, {OWN: line})


def read_evidence(folder: str | Path) -> list[Evidence]:
    """Return the comparisons that are kept in a folder, in the order of :data:`BENCHMARKS`.

    Args:
        folder: Folder of the records.

    Raises:
        ValueError: If none is there.
    """
    found = []
    for benchmark in BENCHMARKS:
        for budget in benchmark.budgets:
            kept = Path(folder) / f"{benchmark.name}-{budget}"
            if kept.is_dir():
                found.append(_read_one(kept, benchmark, budget))
    if not found:
        raise ValueError(f"folder {str(folder)!r} holds no records; scripts/evidence.py --rerun makes them.")
    return found


def _read_one(kept: Path, benchmark: Benchmark, budget: int) -> Evidence:
    rows = read_rows(kept / "results.csv")
    facts = read_json_object(kept / COMPARISON_NAME)
    comparison = {**facts, "format": FORMAT, "methods": summarise(rows, facts["reference"])}
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for point in _read(kept / "histories.csv"):
        run = curves.setdefault(point["method"], {}).setdefault(point["seed"], [])
        run.append((count_in(point["gradient_evaluations"]), float(point["validation_accuracy"])))
    return Evidence(benchmark, budget, comparison, rows, {name: list(runs.values()) for name, runs in curves.items()})


def write_evidence(folder: str | Path, readme: str | Path) -> list[Path]:
    """Make every table and picture of README's evidence anew from the records, and return what was written.

    Args:
        folder: Folder of the records; the pictures go into ``figures`` there.
        readme: Its part between :data:`BEGIN` and :data:`END` is replaced.

    Raises:
        ValueError: If there are no records, or the README has no such part.
    """
    target, page = Path(folder), Path(readme)
    found = read_evidence(target)
    paths = [page]
    for each in found:
        name = f"{each.benchmark.name}-{each.budget}"
        write_text(target / name / "table.md", to_markdown(each.comparison))
        paths += [target / name / "table.md", *draw_comparison(target / name, each.comparison, each.rows, each.curves)]
    figures = target / "figures"
    figures.mkdir(exist_ok=True)
    paths += draw_figure(
        figures / "differences", partial(_draw_differences, found=found), height=1.3 + 0.95 * len(found)
    )
    paths += draw_figure(figures / "strategies", draw_strategies, height=4.8)
    if (target / "landscape").is_dir():
        paths += _draw_landscapes(target / "landscape")
    replace_part(page, BEGIN, END, markdown(found))
    return paths


def markdown(found: Sequence[Evidence]) -> str:
    """Return the tables of the evidence, and what can be read off them, in Markdown."""
    names = [name for name in METHODS if any(row["method"] == name for each in found for row in each.rows)]
    accuracies = [
        f"| benchmark | budget | learning rates | seeds | {' | '.join(names)} |",
        f"| --- | ---: | --- | ---: |{' ---: |' * len(names)}",
    ]
    differences = [
        f"| benchmark | budget | {OWN} − sgd | {OWN} − pugd | {OWN} − the best other |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for each in found:
        present = {row["method"]: row for row in each.comparison["methods"]}
        highest = max(row["test_accuracy"][0] for row in present.values())
        cells = []
        for name in names:
            shown = spread(present[name]["test_accuracy"]) if name in present else "–"
            is_best = name in present and present[name]["test_accuracy"][0] == highest
            cells.append(f"**{shown}**" if is_best else shown)
        seeds = sorted({row["seeds"] for row in present.values()})
        told = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        what = f"| `{each.benchmark.name}`: {each.benchmark.title} | {each.budget} |"
        rates = "chosen" if each.comparison["tuning"] else "as given"
        accuracies.append(f"{what} {rates} | {told} | {' | '.join(cells)} |")
        best = _best_other(each)
        cells = [difference(paired(each, other)) for other in ("sgd", "pugd", best)]
        differences.append(f"| `{each.benchmark.name}` | {each.budget} | {' | '.join(cells)} ({best}) |")
    missing = [
        f"`{benchmark.name}` at {budget}"
        for benchmark in BENCHMARKS
        for budget in benchmark.budgets
        if not any((each.benchmark, each.budget) == (benchmark, budget) for each in found)
    ]
    lines = [
        "",
        "",
        *accuracies,
        "",
        "Test accuracy in percent, mean ± standard deviation over seeds, highest mean in bold. A budget is so many",
        "passes over the training images; a perturbed update takes two gradients. Learning rates that were chosen are",
        "each method's own, the best on the validation split of a grid from 0.05 to 0.4, which grows where the best",
        "value lies at its end; others are 0.1 for all.",
        "",
        *differences,
        "",
        "Differences in points, of pairs of runs with the same seed, with 95 % intervals (Student's, not corrected for",
        f"the number of comparisons). {verdict(found)}",
        "",
        *_devices_told(found),
        *([f"Not measured yet: {', '.join(missing)}.", ""] if missing else []),
        "| | the paper's claim | the authors' records, at equal epochs | measured here, at equal gradients |",
        "| --- | --- | --- | --- |",
        f"| over plain PUGD | +3.2 % on average | {RECORDED[0]} | {_range(found, 'pugd')} |",
        f"| over SGD | | {RECORDED[1]} | {_range(found, 'sgd')} |",
        "",
        "",
    ]
    return "\n".join(lines)


def _devices_told(found: Sequence[Evidence]) -> list[str]:
    """Return in sentences which runs were made elsewhere than on a CPU; older records do not say, and were not."""
    elsewhere = dict[tuple[str, str], list[str]]()
    for each in found:
        for kind, names in each.comparison.get("devices", {}).items():
            for name in names:
                if name != "cpu":
                    elsewhere.setdefault((kind, name), []).append(f"`{each.benchmark.name}` at {each.budget}")
    runs = {"runs": "Runs", "tuning": "Runs that only chose learning rates"}
    told = [f"{runs[kind]} of {', '.join(where)} were made on an {name}." for (kind, name), where in elsewhere.items()]
    return [f"{' '.join(told)} All others were made on a CPU.", ""] if told else []


def paired(each: Evidence, other: str) -> list[float | None] | None:
    """Return the interval of the method's difference to another in pairs of one seed, or None without a pair."""
    return next((row["difference"] for row in summarise(each.rows, other) if row["method"] == OWN), None)


def verdict(found: Sequence[Evidence]) -> str:
    """Return in sentences where the method is better than SGD, worse, or neither, by the intervals of differences."""
    better, worse, open_, single = list[str](), list[str](), list[str](), list[str]()
    for each in found:
        _, _, low, high = paired(each, "sgd") or [None] * 4
        decided = better if low is not None and low > 0 else worse if high is not None and high < 0 else open_
        group = single if low is None else decided
        group.append(f"`{each.benchmark.name}` at {each.budget}")
    sentences = {
        f"{OWN} is better than SGD, with an interval that excludes zero, on": better,
        f"{OWN} is worse than SGD, with an interval that excludes zero, on": worse,
        "The interval of its difference to SGD holds zero on": open_,
        "There is no interval on": single,
    }
    return " ".join(f"{begin} {', '.join(names)}." for begin, names in sentences.items() if names)


def _best_other(each: Evidence) -> str:
    others = [row for row in each.comparison["methods"] if row["method"] != OWN]
    return str(max(others, key=lambda row: row["test_accuracy"][0])["method"])


def _range(found: Sequence[Evidence], other: str) -> str:
    """Return between which values the method's mean difference to another lies over the benchmarks."""
    means = [100 * ends[0] for each in found if (ends := paired(each, other)) is not None and ends[0] is not None]
    if not means:
        return "–"
    span = f"{min(means):+.2f}" if len(means) == 1 else f"{min(means):+.2f} to {max(means):+.2f}"
    return f"{span} points in {counted(len(means), 'comparison')}"


def _draw_differences(figure: Figure, found: Sequence[Evidence]) -> None:
    """Draw each method's difference to SGD with its interval, for every benchmark and budget."""
    axes = figure.subplots()
    others = [name for name in METHODS if name != "sgd"]
    for row, each in enumerate(found):
        for place, name in enumerate(others, start=1):
            method = next((m for m in each.comparison["methods"] if m["method"] == name), None)
            if method is None or method["difference"] is None:
                continue
            mean, _, low, high = method["difference"]
            height = row + (place - (len(others) + 1) / 2) * 0.15
            look: dict[str, Any] = {"color": COLOURS[place], "linewidth": 2.2 if name == OWN else 1.2}
            if low is not None:
                axes.plot([100 * low, 100 * high], [height, height], solid_capstyle="butt", **look)
            label = name if row == 0 else None
            axes.plot([100 * mean], [height], MARKS[place], label=label, markersize=6 if name == OWN else 4.5, **look)
    axes.axvline(0, color=COLOURS[0], linewidth=0.9)
    labels = [f"{each.benchmark.name}\n{each.budget} passes" for each in found]
    axes.set_yticks(range(len(found)), labels)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
    axes.set_xlabel("test accuracy − SGD's with the same seed (points), with 95 % interval")
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper center", ncols=len(others))


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
