"""What a comparison found: one row a run, and for every method mean, spread, interval and the difference in pairs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

from rts_hf.reports.text import counted, number, text

FORMAT = 1
CONFIDENCE = 0.95
COLUMNS = (
    "method", "seed", "learning_rate", "updates", "gradient_evaluations", "epochs", "switched_at",
    "validation_accuracy", "test_accuracy", "test_loss", "sharpness", "seconds", "folder",
    "sharpness_images",
)  # fmt: skip


class Interval(NamedTuple):
    """A mean with its confidence interval, of Student's t distribution.

    Args:
        mean: Of the values.
        deviation: Their standard deviation (of a sample); None of a single one.
        low: Lower end; None of a single value.
        high: Upper end; None of a single value.
    """

    mean: float
    deviation: float | None
    low: float | None
    high: float | None


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return mean, standard deviation and confidence interval of the mean.

    >>> found = interval([0.9, 0.92, 0.94])
    >>> [round(value, 4) for value in found]
    [0.92, 0.02, 0.8703, 0.9697]

    Args:
        values: At least one.
        confidence: In (0, 1).
    """
    from scipy import stats

    mean = fmean(values)
    if len(values) < 2:
        return Interval(mean, None, None, None)
    deviation = stdev(values)
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * deviation / math.sqrt(len(values))
    return Interval(mean, deviation, mean - half, mean + half)


def run_row(record: Mapping[str, Any], method: str, folder: str) -> dict[str, Any]:
    """Return what a comparison tells of one run; of one that diverged, there are no accuracies.

    Args:
        record: Its ``run.json``.
        method: What the comparison calls its method.
        folder: Where it lies, from the comparison's folder.
    """
    metrics = {split: found or {} for split, found in record["metrics"].items()}
    optimizer, sharpness = record["optimizer"], record.get("sharpness") or {}
    values = (
        method, record["seed"], optimizer["learning_rate"], record["updates"], record["gradient_evaluations"],
        record["epochs"], (optimizer.get("switch") or {}).get("step"), metrics["validation"].get("accuracy"),
        metrics["test"].get("accuracy"), metrics["test"].get("loss"),
        sharpness.get("worst_case_increase"), record["seconds"], folder, sharpness.get("images"),
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def summarise(rows: Iterable[Mapping[str, Any]], reference: str, split: str = "test") -> list[dict[str, Any]]:
    """Return one row a method, in the order they first come in, over its runs that did not diverge.

    Args:
        rows: Those of :func:`run_row`.
        reference: The method that the others are compared with in pairs: two runs of the same seed.
        split: Whose accuracy counts: ``test``, or ``validation`` where the test split was left unread.

    Returns:
        For each method ``method``, ``learning_rate``, ``seeds``, ``diverged`` (runs), ``updates`` (median),
        ``gradient_evaluations`` (mean), ``least_and_most`` (of these), ``seconds`` (median), ``sharpness`` (mean; None
        where runs did not measure it, or not on as many images), ``<split>_accuracy`` (an :class:`Interval` as a list;
        of None if all diverged) and ``difference`` (the same of the differences to the reference; None for the
        reference itself).
    """
    by_method: dict[str, dict[int, Mapping[str, Any]]] = {}
    sharpness_images = set[Any]()
    for row in rows:
        if row["sharpness"] is not None:
            sharpness_images.add(row.get("sharpness_images"))
        by_method.setdefault(row["method"], {})[row["seed"]] = row
    key = f"{split}_accuracy"
    whole = {
        name: {seed: run for seed, run in runs.items() if run[key] is not None} for name, runs in by_method.items()
    }
    base = whole.get(reference, {})
    summary = []
    for name, all_runs in by_method.items():
        runs = whole[name]
        common = sorted(set(runs) & set(base))
        pairs = [runs[seed][key] - base[seed][key] for seed in common]
        sharpness = [run["sharpness"] for run in runs.values() if run["sharpness"] is not None]
        first = next(iter((runs or all_runs).values()))
        accuracies = [run[key] for run in runs.values()]
        summary.append(
            {
                "method": name,
                "learning_rate": first["learning_rate"],
                "seeds": len(runs),
                "diverged": len(all_runs) - len(runs),
                "updates": round(median(run["updates"] for run in (runs or all_runs).values())),
                "gradient_evaluations": fmean(run["gradient_evaluations"] for run in (runs or all_runs).values()),
                "least_and_most": [
                    find(run["gradient_evaluations"] for run in (runs or all_runs).values()) for find in (min, max)
                ],
                "seconds": median(run["seconds"] for run in (runs or all_runs).values()),
                "sharpness": fmean(sharpness) if sharpness and len(sharpness_images) == 1 else None,
                key: list(interval(accuracies)) if accuracies else [None] * 4,
                "difference": list(interval(pairs)) if pairs and name != reference else None,
            }
        )
    return summary


def to_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """Return rows as CSV with a head line."""
    target = io.StringIO()
    writer = csv.DictWriter(target, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return target.getvalue()


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a ``results.csv``, with the types that they had before they were written.

    Args:
        path: The file, as :func:`to_csv` made it.
    """
    texts, counts = ("method", "folder"), ("seed", "updates", "gradient_evaluations", "switched_at")
    kinds: dict[str, Callable[[str], Any]] = {
        name: str if name in texts else count_in if name in counts else float for name in COLUMNS
    }
    with Path(path).open(encoding="utf-8", newline="") as file:
        return [
            {name: kinds[name](value) if value != "" else None for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


def count_in(text: str) -> int | float:
    """Return the number that a text holds: of gradient evaluations, some are not whole.

    >>> count_in("630"), count_in("630.5")
    (630, 630.5)
    """
    return int(text) if text.isdecimal() else float(text)


def table_rows(comparison: Mapping[str, Any], shown: Callable[[str], str] = str) -> list[dict[str, str]]:
    """Return the table of a comparison, each cell as text by its heading.

    Args:
        comparison: What ``comparison.json`` holds.
        shown: Makes a name safe for where the table is shown.
    """
    split, reference = split_of(comparison), comparison["reference"]
    return [
        {
            "method": shown(row["method"]),
            "learning rate": number(row["learning_rate"]),
            "seeds": number(row["seeds"]),
            f"{split} accuracy, %": spread(row[f"{split}_accuracy"]),
            "95 % interval": bounds(row[f"{split}_accuracy"]),
            f"points over {shown(reference)}": difference(row["difference"]),
            "gradient evaluations": f"{row['gradient_evaluations']:,.0f}",
            "updates": number(row["updates"]),
            "seconds": f"{row['seconds']:.0f}",
            "sharpness": number(row["sharpness"]),
        }
        for row in comparison["methods"]
    ]


def split_of(comparison: Mapping[str, Any]) -> str:
    """Return the split that a comparison is made on: test, or validation where the test split was left unread."""
    return str(comparison.get("split", "test"))


def to_markdown(comparison: Mapping[str, Any]) -> str:
    """Return ``table.md``: the summary, and how it came about.

    Args:
        comparison: What ``comparison.json`` holds.
    """
    return f"# {text(task(comparison))}, equal gradient budgets\n\n{section(comparison)}\n"


def task(comparison: Mapping[str, Any]) -> str:
    """Return what a comparison is of, for its headings: the model, the data, and what was done to these.

    >>> task({"model": "resnet18", "data": "digits", "label_noise": {"fraction": 0.4}})
    'resnet18 on digits, 40 % of the training labels wrong'

    Args:
        comparison: What ``comparison.json`` holds.
    """
    fewer, noise = comparison.get("train_fraction"), comparison.get("label_noise")
    kept = [f"{fewer['images']:,} of {fewer['of']:,} training images"] if fewer else []
    wrong = [f"{100 * noise['fraction']:.3g} % of the training labels wrong"] if noise else []
    return ", ".join([f"{comparison['model']} on {comparison['data']}", *kept, *wrong])


def section(comparison: Mapping[str, Any]) -> str:
    """Return the table of a comparison with its notes, in Markdown, as a card shows it.

    Args:
        comparison: What ``comparison.json`` holds.

    Raises:
        ValueError: If it has a format that this version does not know.
    """
    if comparison.get("format") != FORMAT:
        raise ValueError(f"comparison.json has format {comparison.get('format')!r}; this version reads {FORMAT}.")
    rows = table_rows(comparison, shown=text)
    lines = [f"| {' | '.join(rows[0])} |", f"| --- |{' ---: |' * (len(rows[0]) - 1)}"]
    lines += [f"| {' | '.join(row.values())} |" for row in rows]
    return "\n".join([*lines, "", *[f"- {note}" for note in notes(comparison, shown=text)]])


def notes(comparison: Mapping[str, Any], shown: Callable[[str], str] = str) -> list[str]:
    """Return what a reader of the table must know, as sentences.

    Args:
        comparison: What ``comparison.json`` holds.
        shown: As for :func:`table_rows`.
    """
    reference = shown(comparison["reference"])
    budget = f"{number(comparison['gradient_evaluations'])} gradient evaluations a run"
    found = [
        f"Budget: {budget} ({number(comparison['budget'])} passes over the training images); an update takes one, a "
        "perturbed update two. Learning rate and α schedules span each method's own number of updates.",
        f"Mean ± standard deviation over seeds. Intervals are Student's, at 95 %; those of the difference to "
        f"{reference} are of pairs of runs with the same seed, and not corrected for the number of methods.",
        "Seconds are medians, measured beside as many other runs as were made at a time.",
        "The test split was read once a run, at its end."
        if split_of(comparison) == "test"
        else "Accuracies are those on the validation split, which also chose each run's weights, so they flatter; the "
        "test split was not read.",
    ]
    tuning = comparison.get("tuning")
    if tuning:
        trials = counted(tuning["trials"], "trial")
        source = f", which the comparison {tuning['source']} has left" if "source" in tuning else ""
        found.append(
            f"Learning rates were chosen on the validation split: {trials} of {counted(tuning['seeds'], 'run')} each, "
            f"with seeds of their own; all are in trials.csv{source}."
        )
        ends = [shown(name) for name in tuning["at_an_end"]]
        if ends:
            found.append(f"The best learning rate lay at an end of the grid for {', '.join(ends)}.")
    else:
        found.append("Learning rates were not tuned: each is the training command's default, or as given.")
    return [*found, *cautions(comparison, shown)]


def cautions(comparison: Mapping[str, Any], shown: Callable[[str], str] = str) -> list[str]:
    """Return in sentences where the methods of a comparison were not alike: diverged runs, evaluations, budgets.

    Args:
        comparison: What ``comparison.json`` holds.
        shown: As for :func:`table_rows`.
    """
    found = []
    broken = [
        f"{row['diverged']} of {counted(row['seeds'] + row['diverged'], 'run')} of {shown(row['method'])}"
        for row in comparison["methods"]
        if row.get("diverged")
    ]
    if broken:
        found.append(f"Diverged, and left out of means and differences: {', '.join(broken)}.")
    looks = comparison.get("evaluations") or {}
    if len(set(looks.values())) > 1:
        told = ", ".join(f"{shown(name)} {count}" for name, count in looks.items())
        found.append(
            "A run keeps the weights of its best evaluation on validation, and more updates bring more of these: "
            f"{told}."
        )
    off = []
    for row in comparison["methods"]:
        least, most = row.get("least_and_most") or [row["gradient_evaluations"]] * 2
        if row["seeds"] and any(abs(count / comparison["gradient_evaluations"] - 1) > 0.02 for count in (least, most)):
            off.append(f"{shown(row['method'])} ({number(least)} to {number(most)})")
    if off:
        found.append(f"More than 2 % off the budget, in gradient evaluations: {', '.join(off)}.")
    return found


def spread(found: Sequence[float | None]) -> str:
    """Format a mean with its deviation, in percent."""
    mean, deviation = found[0], found[1]
    if mean is None:
        return "–"
    return f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def bounds(found: Sequence[float | None]) -> str:
    """Format an interval of a share, in percent: never below 0 or above 100."""
    low, high = found[2], found[3]
    return "–" if low is None or high is None else f"{100 * max(low, 0.0):.2f} to {100 * min(high, 1.0):.2f}"


def difference(found: Sequence[float | None] | None) -> str:
    """Format a difference with its interval, in percentage points.

    >>> difference([0.0208, 0.003, 0.0035, 0.0381]), difference([0.0069, 0.0, 0.0069, 0.0069])
    ('+2.08 (+0.35 to +3.81)', '+0.69 (no spread)')
    """
    if found is None or found[0] is None:
        return "–"
    low, high = outwards(found[2], found[3])
    ends = "" if low is None or high is None else f" ({low:+.2f} to {high:+.2f})"
    if found[1] is not None and found[1] < 1e-9:  # of accuracies that are whole numbers of images
        ends = " (no spread)"
    return f"{round(100 * found[0], 2) + 0.0:+.2f}{ends}"


def outwards(low: float | None, high: float | None) -> tuple[float | None, float | None]:
    """Return the ends of an interval in percentage points, rounded to two places so that it never gets narrower.

    >>> outwards(0.00008, 0.0155)
    (0.0, 1.55)
    """
    if low is None or high is None:
        return None, None
    return math.floor(round(1e4 * low, 6)) / 100, math.ceil(round(1e4 * high, 6)) / 100


def holm(chances: Sequence[float]) -> list[float]:
    """Return p values corrected for their number, as Holm does (Scandinavian Journal of Statistics 6, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, least = [0.0] * len(chances), 0.0
    for rank, place in enumerate(sorted(range(len(chances)), key=lambda index: chances[index])):
        least = max(least, min(1.0, (len(chances) - rank) * chances[place]))
        corrected[place] = least
    return corrected
