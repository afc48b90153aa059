"""What the page of the evidence shows: tables, sentences and pictures, made from the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from evidence.records import METHODS, OWN, PAPER, PRETRAINED_RATES, RATES, Evidence, names, read_evidence

from rts_hf.comparing.figures import COLOURS, MARKS
from rts_hf.files import replace_part, write_text
from rts_hf.reports.comparison import CONFIDENCE, difference, holm, outwards, spread, summarise, to_markdown
from rts_hf.reports.curves import draw_figure
from rts_hf.reports.text import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What the authors' published run records say of their method over plain PUGD, and over SGD
RECORDED = (
    "+0.7 points on CIFAR-10 and +0.9 on CIFAR-100 (UPANets), +1.3 at best (ViT-B fine-tuned on CIFAR-100); one seed, "
    "best test epoch",
    "three SGD runs on CIFAR-10 were annealed once: 0.6353 after 2 epochs, 0.8531 after 10, 0.9237 after 50; plain "
    "PUGD has 0.8636 after 10, 0.9354 after 50, 0.9211 after 100, 0.9217 after 200, with twice the gradients an epoch. "
    "The longer SGD runs went through two cosine periods",
)
KINDS = (("fine-tuning", True), ("from scratch", False))
SUMMARY, RESULTS = (
    (f"<!-- {part}, made by scripts/evidence: begin -->", f"<!-- {part}, made by scripts/evidence: end -->")
    for part in ("summary", "results")
)


def write_evidence(folder: str | Path, readme: str | Path | None = None) -> list[Path]:
    """Make every table and picture of the evidence anew from its records, and return what was written.

    Args:
        folder: Of the records. Pictures go into ``figures`` there, and the parts of its README between the marks
            :data:`SUMMARY` and :data:`RESULTS` are replaced.
        readme: A page with a summary too.

    Raises:
        ValueError: If there are no records, or a page has no such part.
    """
    target = Path(folder)
    page, figures, found = target / "README.md", target / "figures", read_evidence(target)
    paths = [page] if readme is None else [page, Path(readme)]
    replace_part(page, *RESULTS, results(found))
    for path in paths:
        replace_part(path, *SUMMARY, summary(found))
    for each in found:
        paths.append(target / each.name / "table.md")
        write_text(paths[-1], to_markdown(each.comparison))
    figures.mkdir(exist_ok=True)
    draw = partial(_draw_differences, found=found)
    return paths + draw_figure(figures / "differences", draw, height=1.9 + 0.42 * len(found))


def summary(found: Sequence[Evidence]) -> str:
    """Return the table that the page begins with, in Markdown: a row a benchmark, both its budgets side by side."""
    most = max(len(each.benchmark.budgets) for each in found)
    heads = ["data", *["passes", "SGD, %", f"`{OWN}` − SGD"] * most]
    lines = [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    for benchmark in dict.fromkeys(each.benchmark for each in found):
        cells = [f"`{benchmark.name}`"]
        for budget in benchmark.budgets:
            each = next((each for each in found if (each.benchmark, each.budget) == (benchmark, budget)), None)
            sgd = None if each is None else _row(each, "sgd")
            cells += [
                str(budget),
                "–" if sgd is None else f"{100 * sgd['test_accuracy'][0]:.2f}",
                difference(None if each is None else paired(each, "sgd")),
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(["", "", *lines, "", ""])


def results(found: Sequence[Evidence]) -> str:
    """Return all other tables of the evidence, and what can be read off them, in Markdown."""
    shown = [name for name in METHODS if any(row["method"] == name for each in found for row in each.rows)]
    others = [name for name in shown if name != OWN]
    accuracies = [f"| data | passes | seeds | {' | '.join(shown)} |", f"| --- | ---: | ---: |{' ---: |' * len(shown)}"]
    differences = [
        f"| data | passes | {' | '.join(f'− {name}' for name in others)} |",
        f"| --- | ---: |{' ---: |' * len(others)}",
    ]
    for each in found:
        present = {row["method"]: row for row in each.comparison["methods"]}
        highest = max(row["test_accuracy"][0] or 0.0 for row in present.values())
        cells = []
        for name in shown:
            value = spread(present[name]["test_accuracy"]) if name in present else "–"
            is_best = name in present and present[name]["test_accuracy"][0] == highest
            lost = present[name]["diverged"] if name in present else 0
            cells.append((f"**{value}**" if is_best else value) + (f" ({lost} diverged)" if lost else ""))
        seeds = sorted({row["seeds"] for row in present.values()})
        told = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        what = f"| `{each.benchmark.name}` | {each.budget} |"
        accuracies.append(f"{what} {told} | {' | '.join(cells)} |")
        differences.append(f"{what} {' | '.join(difference(paired(each, name)) for name in others)} |")
    for kind, some in _kinds(found).items():
        means = [_mean_differences(some, name) for name in others]
        cells = [f"{round(fmean(each), 2) + 0.0:+.2f}" if each else "–" for each in means]
        differences.append(f"| mean, {kind} | | {' | '.join(cells)} |")
    kept = {each.name for each in found if _row(each, OWN)}
    missing = [f"`{benchmark.name}` at {budget}" for name, benchmark, budget in names() if name not in kept]
    lines = [
        "",
        "",
        *[f"- `{each.name}`: {each.title}" for each in dict.fromkeys(each.benchmark for each in found)],
        "",
        *accuracies,
        "",
        "Test accuracy in percent, mean ± standard deviation over seeds, highest mean in bold. A budget is so many",
        "passes over the training images; a perturbed update takes two gradients. Learning rates are each method's",
        "own: the highest accuracy on the validation split, of equal ones the lowest loss there, over a grid of",
        f"{', '.join(RATES)} (from pretrained weights {', '.join(PRETRAINED_RATES)}) that grows, by √10 at a time,",
        "where the best value lies at its end.",
        "",
        f"What {OWN} has over each of the others, in points:",
        "",
        *differences,
        "",
        "Pairs of runs with the same seed, with 95 % intervals (Student's, rounded outwards, not corrected for their",
        "number). Seeds vary initial weights and the order of images, not which images and wrong labels there are.",
        "",
        *[f"- {told}" for told in [*verdict(found), *standing(found)]],
        "",
        *_devices_told({each.told: each.comparison for each in found}),
        *([f"{OWN} is not measured yet on {', '.join(missing)}.", ""] if missing else []),
        "| | the paper's claim | the authors' records, at equal epochs | measured here, at equal gradients |",
        "| --- | --- | --- | --- |",
        f"| over plain PUGD | +3.2 % on average | {RECORDED[0]} | {_range(found, PAPER, 'pugd')} |",
        f"| over SGD | | {RECORDED[1]} | {_range(found, PAPER, 'sgd')} |",
        "",
        "",
    ]
    return "\n".join(lines)


def _kinds(found: Sequence[Evidence]) -> dict[str, list[Evidence]]:
    """Return those that fine-tune and those that do not, each kind by what it is called."""
    kinds = {
        kind: [each for each in found if each.benchmark.is_pretrained == is_pretrained] for kind, is_pretrained in KINDS
    }
    return {kind: some for kind, some in kinds.items() if some}


def _row(each: Evidence, method: str) -> dict[str, Any] | None:
    return next((row for row in each.comparison["methods"] if row["method"] == method), None)


def _mean_differences(found: Sequence[Evidence], other: str, own: str = OWN) -> list[float]:
    """Return a method's mean difference to another in each comparison that has both, in points."""
    return [100 * ends[0] for each in found if (ends := paired(each, other, own)) is not None and ends[0] is not None]


def _devices_told(comparisons: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return in sentences which runs were made elsewhere than on a CPU; older records do not say, and were not."""
    elsewhere = dict[tuple[str, str, str], list[str]]()
    for told, comparison in comparisons.items():
        for kind, devices in comparison.get("devices", {}).items():
            for name in devices:
                if name != "cpu":
                    share = "Some runs" if len(devices) > 1 else "Runs"
                    elsewhere.setdefault((share, kind, name), []).append(told)
    what = {"runs": "", "tuning": " that only chose learning rates"}
    sentences = [
        f"{share}{what[kind]} of {', '.join(where)} were made on an {name}."
        for (share, kind, name), where in elsewhere.items()
    ]
    return [*(f"- {each}" for each in sentences), "- All others were made on a CPU.", ""] if sentences else []


def paired(each: Evidence, other: str, own: str = OWN) -> list[float | None] | None:
    """Return the interval of a method's difference to another in pairs of one seed, or None without a pair."""
    return next((row["difference"] for row in summarise(each.rows, other) if row["method"] == own), None)


def verdict(found: Sequence[Evidence]) -> list[str]:
    """Return in sentences where the method is better than SGD, worse, or neither, by the intervals of differences.

    An interval that is shown with an end at 0.00 decides nothing.
    """
    better, worse, equal, edge, open_, single = (list[str]() for _ in range(6))
    chances = dict[str, float]()
    for each in found:
        if (ends := paired(each, "sgd")) is None:
            continue
        low, high = outwards(ends[2], ends[3])
        if low is None or high is None:
            group = single
        elif low > 0 or high < 0:
            group = better if low > 0 else worse
        elif low == high:
            group = equal
        else:
            group = edge if 0 in (low, high) else open_
        group.append(each.told)
        if (chance := two_sided(each, "sgd")) is not None:
            chances[each.told] = chance
    sentences = {
        f"{OWN} is better than SGD, with an interval that excludes zero, on": better,
        f"{OWN} is worse than SGD, with an interval that excludes zero, on": worse,
        "It has SGD's accuracy in every run on": equal,
        "The interval of its difference to SGD ends at 0.00, which decides nothing, on": edge,
        "The interval of its difference to SGD holds zero on": open_,
        "There is no interval on": single,
    }
    told = [f"{begin} {', '.join(names)}." for begin, names in sentences.items() if names]
    if len(chances) < 2:
        return told
    corrected = dict(zip(chances, holm(list(chances.values())), strict=True))
    left = [f"{name} (p {chance:.2g})" for name, chance in corrected.items() if chance < 1 - CONFIDENCE]
    return [
        *told,
        f"Corrected for the {len(chances)} comparisons (Holm), {OWN} differs from SGD by "
        f"more than chance on {', '.join(left) or 'none'}.",
    ]


def two_sided(each: Evidence, other: str) -> float | None:
    """Return the p value of the method's difference to another, of Student's t test in pairs; None without spread."""
    from scipy import stats

    values: dict[str, dict[int, float]] = {OWN: {}, other: {}}
    for row in each.rows:
        if row["method"] in values and row["test_accuracy"] is not None:
            values[row["method"]][row["seed"]] = row["test_accuracy"]
    pairs = [(values[OWN][seed], values[other][seed]) for seed in sorted(set(values[OWN]) & set(values[other]))]
    if len(pairs) < 2 or len({own - base for own, base in pairs}) == 1:
        return None
    return float(stats.ttest_rel(*zip(*pairs, strict=True)).pvalue)


def standing(found: Sequence[Evidence]) -> list[str]:
    """Return in sentences where the method has the highest mean, and where another has a higher one."""
    highest, below = list[str](), list[str]()
    for each in found:
        means = {row["method"]: row["test_accuracy"][0] or 0.0 for row in each.comparison["methods"]}
        if OWN not in means:
            continue
        above = [name for name, mean in means.items() if mean > means[OWN]]
        if above:
            below.append(f"{', '.join(above)} on {each.told}")
        else:
            highest.append(each.told)
    parts = []
    if highest:
        parts.append(f"No method has a higher mean than {OWN} on {', '.join(highest)}.")
    if below:
        parts.append(f"These have a higher one: {'; '.join(below)}.")
    return parts


def _range(found: Sequence[Evidence], own: str, other: str) -> str:
    """Return a method's mean difference to another in each kind of comparison, and between which values it lies."""
    told = []
    for kind, some in _kinds(found).items():
        if means := _mean_differences(some, other, own):
            reach = f", from {min(means):+.2f} to {max(means):+.2f}" if len(means) > 1 else ""
            told.append(f"{kind} {fmean(means):+.2f} points in {counted(len(means), 'comparison')}{reach}")
    return "; ".join(told) or "–"


def _draw_differences(figure: Figure, found: Sequence[Evidence]) -> None:
    """Draw each method's difference to SGD for every benchmark and budget, the method's own with its interval."""
    kinds = _kinds(found)
    panels = figure.subplots(len(kinds), squeeze=False, height_ratios=[*map(len, kinds.values())])[:, 0]
    for axes, (kind, some) in zip(panels, kinds.items(), strict=True):
        _draw_kind(axes, some)
        axes.set_title(kind, loc="left")
    told = f"test accuracy − SGD's at equal gradients (points);\nof {OWN} with its 95 % interval"
    figure.supxlabel(told, fontsize="medium")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(METHODS) - 1)


def _draw_kind(axes: Axes, found: Sequence[Evidence]) -> None:
    for place, name in enumerate([name for name in METHODS if name != "sgd"], start=1):
        colour = {OWN: COLOURS[1], PAPER: COLOURS[2]}.get(name, COLOURS[0])
        look: dict[str, Any] = {"color": colour, "label": name}
        rows = [(row, ends) for row, each in enumerate(found) if (ends := paired(each, "sgd", name)) is not None]
        means = [100 * (ends[0] or 0.0) for _, ends in rows]
        heights = [row for row, _ in rows]
        if name != OWN:
            axes.plot(means, heights, MARKS[place], markersize=4.5, alpha=0.55, markerfacecolor="none", **look)
            continue
        axes.plot(means, heights, MARKS[0], markersize=7, zorder=3, **look)
        for height, (_, ends) in zip(heights, rows, strict=True):
            if ends[2] is not None and ends[3] is not None:
                axes.plot([100 * ends[2], 100 * ends[3]], [height, height], color=colour, linewidth=2.4)
    axes.axvline(0, color=COLOURS[0], linewidth=0.9)
    axes.set_yticks(range(len(found)), [f"{each.benchmark.name}, {each.budget} passes" for each in found])
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
    axes.grid(axis="y", visible=False)
