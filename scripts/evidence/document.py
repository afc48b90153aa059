"""What the page of the evidence shows: tables, sentences and pictures, made from the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, cast

from evidence.records import (
    DEFAULT_RATE,
    METHODS,
    OWN,
    PRETRAINED_RATES,
    RATES,
    STUDIES,
    Evidence,
    check_landscapes,
    names,
    read_evidence,
    read_study,
)

from rts_hf.comparing.figures import COLOURS, MARKS, draw_comparison
from rts_hf.comparing.pictures import draw_landscapes
from rts_hf.files import replace_part, write_text
from rts_hf.reports.comparison import CONFIDENCE, cautions, difference, holm, outwards, spread, summarise, to_markdown
from rts_hf.reports.curves import draw_figure, draw_strategies
from rts_hf.reports.landscape import Line, Surface, read_landscape
from rts_hf.reports.text import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What the authors' published run records say of their method over plain PUGD, and over SGD
RECORDED = (
    "+0.7 points on CIFAR-10 and +0.9 on CIFAR-100 (UPANets), +1.3 at best (ViT-B fine-tuned on CIFAR-100); one seed, "
    "best test epoch",
    "three SGD runs on CIFAR-10 were annealed once: 0.6353 after 2 epochs, 0.8531 after 10, 0.9237 after 50; plain "
    "PUGD has 0.8636 after 10, 0.9354 after 50, 0.9211 after 100, 0.9217 after 200, with twice the gradients an epoch. "
    "The longer SGD runs went through two cosine periods",
)
BEGIN, END = "<!-- made by scripts/evidence: begin -->", "<!-- made by scripts/evidence: end -->"


def write_evidence(folder: str | Path) -> list[Path]:
    """Make every table and picture of the evidence anew from its records, and return what was written.

    Args:
        folder: Of the records; pictures go into ``figures`` there, and the part of its README between :data:`BEGIN` and
            :data:`END` is replaced.

    Raises:
        ValueError: If there are no records, the landscapes are of other runs, or the README has no such part.
    """
    target = Path(folder)
    page, figures, landscape = target / "README.md", target / "figures", target / "landscape"
    found, studies = read_evidence(target), read_study(target)
    if landscape.is_dir():
        check_landscapes(target)
    replace_part(page, BEGIN, END, markdown(found, studies))
    paths = [page]
    tables = {each.name: each.comparison for each in found}
    for name, comparison in {**tables, **{f"study-{budget}": study for budget, study in studies.items()}}.items():
        write_text(target / name / "table.md", to_markdown(comparison))
        paths.append(target / name / "table.md")
    for each in found:
        paths += draw_comparison(target / each.name, each.comparison, each.rows, each.curves)
    figures.mkdir(exist_ok=True)
    draw = partial(_draw_differences, found=found)
    paths += draw_figure(figures / "differences", draw, height=1.3 + 0.95 * len(found))
    paths += draw_figure(figures / "strategies", draw_strategies, height=4.8)
    if landscape.is_dir():
        surfaces = {name: cast(Surface, read_landscape(landscape / f"surface-{name}.npz")) for name in ("sgd", OWN)}
        line = cast(Line, read_landscape(landscape / f"line-sgd-{OWN}.npz"))
        paths += draw_landscapes(landscape, surfaces, {OWN: line})
    return paths


def markdown(found: Sequence[Evidence], studies: Mapping[int, Mapping[str, Any]] | None = None) -> str:
    """Return the tables of the evidence, and what can be read off them, in Markdown.

    Args:
        found: The comparisons.
        studies: Those of the method's settings, by their budgets.
    """
    shown = [name for name in METHODS if any(row["method"] == name for each in found for row in each.rows)]
    others = [name for name in shown if name != OWN]
    accuracies = [
        f"| benchmark | budget | learning rates | seeds | {' | '.join(shown)} |",
        f"| --- | ---: | --- | ---: |{' ---: |' * len(shown)}",
    ]
    differences = [
        f"| benchmark | budget | learning rates | {' | '.join(f'− {name}' for name in others)} |",
        f"| --- | ---: | --- |{' ---: |' * len(others)}",
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
        rates = "chosen" if each.comparison["tuning"] else f"{DEFAULT_RATE} for all"
        what = f"| `{each.benchmark.name}` | {each.budget} | {rates} |"
        accuracies.append(f"{what} {told} | {' | '.join(cells)} |")
        cells = [difference(paired(each, name)) for name in others]
        differences.append(f"{what} {' | '.join(cells)} |")
    tuned = [each for each in found if each.comparison["tuning"]]
    if len(tuned) > 1:
        means = [_mean_differences(tuned, name) for name in others]
        cells = [f"{round(fmean(each), 2) + 0.0:+.2f}" if each else "–" for each in means]
        differences.append(f"| mean of these with chosen rates | | | {' | '.join(cells)} |")
    kept = {each.name for each in found}
    missing = [f"`{benchmark.name}` at {budget}" for name, benchmark, budget, is_tuned in names()
               if is_tuned and name not in kept]  # fmt: skip
    titles = {each.benchmark.name: each.benchmark.title for each in found}
    lines = [
        "",
        "",
        *[f"- `{name}`: {title}" for name, title in titles.items()],
        "",
        *accuracies,
        "",
        "Test accuracy in percent, mean ± standard deviation over seeds, highest mean in bold. A budget is so many",
        "passes over the training images; a perturbed update takes two gradients. Learning rates that were chosen are",
        "each method's own: the highest accuracy on the validation split, of equal ones the lowest loss there, over a",
        f"grid of {', '.join(RATES)} (from pretrained weights {', '.join(PRETRAINED_RATES)}) that grows, by √10 at a",
        "time, where the best value lies at its end.",
        "",
        f"What {OWN} has over each of the others, in points:",
        "",
        *differences,
        "",
        "Pairs of runs with the same seed, with 95 % intervals (Student's, rounded outwards, not corrected for their",
        "number). Seeds vary initial weights and the order of images, not which images and wrong labels there are.",
        "",
        *[f"- {told}" for told in [*verdict(found), *standing(found), *_norms_told(found)]],
        "",
        *_best_told(found, shown),
        *_devices_told(
            {each.told: each.comparison for each in found}
            | {f"the settings' table at {budget}": study for budget, study in (studies or {}).items()}
        ),
        *([f"Not measured yet: {', '.join(missing)}.", ""] if missing else []),
        "| | the paper's claim | the authors' records, at equal epochs | measured here, at equal gradients |",
        "| --- | --- | --- | --- |",
        f"| over plain PUGD | +3.2 % on average | {RECORDED[0]} | {_range(found, 'pugd')} |",
        f"| over SGD | | {RECORDED[1]} | {_range(found, 'sgd')} |",
        "",
        *_study_told(studies or {}),
        "",
    ]
    return "\n".join(lines)


def _mean_differences(found: Sequence[Evidence], other: str) -> list[float]:
    """Return the method's mean difference to another in each comparison that has both, in points."""
    return [100 * ends[0] for each in found if (ends := paired(each, other)) is not None and ends[0] is not None]


def _best_told(found: Sequence[Evidence], shown: Sequence[str]) -> list[str]:
    """Return the table of each method's highest mean over budgets and learning rates, and the fewest passes to it."""
    lines = []
    for benchmark in dict.fromkeys(each.benchmark for each in found):
        rows = [
            (method["test_accuracy"][0], -each.budget, method["method"])
            for each in found
            if each.benchmark == benchmark
            for method in each.comparison["methods"]
            if method["test_accuracy"][0] is not None
        ]
        best = [max((row for row in rows if row[2] == name), default=None) for name in shown]
        cells = ["–" if row is None else f"{100 * row[0]:.2f} ({-row[1]})" for row in best]
        lines.append(f"| `{benchmark.name}` | {' | '.join(cells)} |")
    return [
        "The highest mean of each method over these budgets and learning rates, with its passes, since more passes are",
        "not better for every method (chosen by test accuracy, so these flatter):",
        "",
        f"| benchmark | {' | '.join(shown)} |",
        f"| --- |{' ---: |' * len(shown)}",
        *lines,
        "",
    ]


def _norms_told(found: Sequence[Evidence]) -> list[str]:
    """Return in a sentence how long gradients were when the switch fired."""
    norms = [(each.told, each.comparison.get("norm_at_switch")) for each in found]
    told = [f"{median(values):.2g} on {name}" for name, values in norms if values]
    if not told:
        return []
    return [f"When the switch of {OWN} fired, the norm of its gradients had been, in the median, {', '.join(told)}."]


def _study_told(studies: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Return the table of what the method's settings do on validation."""
    if not studies:
        return []
    settings = list(dict.fromkeys(row["method"] for study in studies.values() for row in study["methods"]))
    lines = [
        f"| setting | {' | '.join(f'{budget} passes' for budget in studies)} |",
        f"| --- |{' ---: |' * len(studies)}",
    ]
    for name in settings:
        cells = []
        for study in studies.values():
            row = next((row for row in study["methods"] if row["method"] == name), None)
            cells.append("–" if row is None else spread(row["validation_accuracy"]))
        told = f"`{name.removeprefix(OWN).strip()}`" if name.startswith(f"{OWN} ") else name
        lines.append(f"| {f'{OWN}, its defaults' if name == OWN else told} | {' | '.join(cells)} |")
    rates = ", ".join(f"{STUDIES[f'study-{budget}'][1]} at {budget}" for budget in studies)
    most = max(row["seeds"] for study in studies.values() for row in study["methods"])
    # How many evaluations each setting chose its weights from stands in the tables beside the records.
    qualified = [
        f"With {budget} passes: {told[0].lower()}{told[1:]}"
        for budget, study in studies.items()
        for told in cautions({**study, "evaluations": None}, _code)
    ]
    return [
        "What other settings of the method do, in validation accuracy, with 40 % of the training labels wrong and at",
        f"equal gradients ({counted(most, 'run')} each with seeds of their own; learning rate {rates}). The test split",
        "was not read; the validation split chose each run's weights too, so these figures flatter, and most those",
        "with many updates, which have more evaluations to choose from (`table.md` beside the records tells how many).",
        "",
        *lines,
        "",
        *[f"- {told}" for told in qualified],
        *([""] if qualified else []),
    ]


def _code(name: str) -> str:
    return f"`{name}`"


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


def paired(each: Evidence, other: str) -> list[float | None] | None:
    """Return the interval of the method's difference to another in pairs of one seed, or None without a pair."""
    return next((row["difference"] for row in summarise(each.rows, other) if row["method"] == OWN), None)


def verdict(found: Sequence[Evidence]) -> list[str]:
    """Return in sentences where the method is better than SGD, worse, or neither, by the intervals of differences.

    An interval that is shown with an end at 0.00 decides nothing.
    """
    better, worse, edge, open_, single = list[str](), list[str](), list[str](), list[str](), list[str]()
    chances = dict[str, float]()
    for each in found:
        ends = paired(each, "sgd") or [None] * 4
        low, high = outwards(ends[2], ends[3])
        if low is None or high is None:
            group = single
        elif low > 0 or high < 0:
            group = better if low > 0 else worse
        else:
            group = edge if 0 in (low, high) else open_
        group.append(each.told)
        if each.comparison["tuning"] and (chance := two_sided(each, "sgd")) is not None:
            chances[each.told] = chance
    sentences = {
        f"{OWN} is better than SGD, with an interval that excludes zero, on": better,
        f"{OWN} is worse than SGD, with an interval that excludes zero, on": worse,
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
        f"Corrected for the {len(chances)} comparisons with chosen learning rates (Holm), {OWN} differs from SGD by "
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


def _range(found: Sequence[Evidence], other: str) -> str:
    """Return between which values the method's mean difference to another lies, where learning rates were chosen."""
    chosen = [each for each in found if each.comparison["tuning"]] or found
    means = _mean_differences(chosen, other)
    if not means:
        return "–"
    if len(means) == 1:
        return f"{means[0]:+.2f} points in 1 comparison"
    return (
        f"{fmean(means):+.2f} points in the mean of {counted(len(means), 'comparison')}, from {min(means):+.2f} to "
        f"{max(means):+.2f}"
    )


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
    labels = [
        f"{each.benchmark.name}\n{each.budget} passes" + ("" if each.comparison["tuning"] else f", lr {DEFAULT_RATE}")
        for each in found
    ]
    axes.set_yticks(range(len(found)), labels)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
    axes.set_xlabel("test accuracy − SGD's with the same seed (points), with 95 % interval")
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper center", ncols=len(others))
