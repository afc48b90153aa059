#!/usr/bin/env python
"""Take one part after the other out of the default, and measure on validation what that costs.

python scripts/evidence/ablation.py --jobs 2     # goes on where the committed records end, most of an hour
python scripts/evidence/ablation.py --page       # only the page's table, from the records

Three of the search's benchmarks, seeds of its own, equal gradients, final weights. One seed chooses each variant's
learning rate on each benchmark, of three, and two others measure it there. The test split is never read.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from evidence.candidates import ABLATIONS, DEFAULT, SGD  # noqa: E402
from evidence.choosing import Run, accuracies, best_rate  # noqa: E402
from evidence.search import RUNS_NAME, Task, make_runs, read_runs  # noqa: E402

from rts_hf.files import replace_part  # noqa: E402

RECORDS = ROOT / "model_cards" / "evidence" / "ablation"
BENCHMARKS = (("digits_noise", 100), ("digits_few", 200), ("photo_patches", 15))
RATES, CHOOSING, SEEDS = (0.1, 0.2, 0.4), 4000, range(4001, 4003)
BEGIN, END = "<!-- ablation, made by scripts/evidence/ablation.py: begin -->", "<!-- ablation: end -->"


def tasks(runs: Sequence[Run]) -> list[Task]:
    """Return the runs that are still to be made: those that choose learning rates, or then the others, seed by seed."""
    done = {run.key for run in runs}
    lengths = {(run.setting, *run.benchmark, run.learning_rate): run.updates / run.gradients for run in runs}
    pairs = [(setting, benchmark) for benchmark in BENCHMARKS for setting in (SGD, *ABLATIONS.values())]
    choosing = [Task(setting, *benchmark, rate, CHOOSING) for setting, benchmark in pairs for rate in RATES]
    if left := [task for task in choosing if task.key not in done]:
        return left
    rates = chosen(runs)
    keys = [(setting, *benchmark, rates[setting, benchmark]) for setting, benchmark in pairs]
    measuring = [Task(*key, seed, lengths[key]) for seed in SEEDS for key in keys]
    return [task for task in measuring if task.key not in done]


def chosen(runs: Sequence[Run]) -> dict[tuple[str, tuple[str, int]], float]:
    """Return the learning rate of each setting on each benchmark, by the runs that choose it."""
    found = accuracies(run for run in runs if run.seed == CHOOSING)
    return {(setting, benchmark): best_rate(by[benchmark]) for setting, by in found.items() for benchmark in by}


def table(runs: Sequence[Run]) -> str:
    """Return the table in Markdown: points of validation accuracy over the whole default, with their standard errors.

    Pairs of one seed, of those that chose no learning rate; a variant without runs on every benchmark is left out.
    """
    rates = chosen(runs)
    found: dict[str, dict[tuple[str, int], dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        if run.seed != CHOOSING and run.learning_rate == rates[run.setting, run.benchmark]:
            found[run.setting][run.benchmark][run.seed] = 100 * run.accuracy
    names: Mapping[str, str] = {"plain SGD": SGD, **ABLATIONS}
    heads = [f"`{data}` {passes}" for data, passes in BENCHMARKS]
    lines = [f"| taken out | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for name, setting in names.items():
        if not {*BENCHMARKS} <= found[setting].keys():
            continue
        cells = []
        for benchmark in BENCHMARKS:
            own, whole = found[setting][benchmark], found[ABLATIONS[DEFAULT]][benchmark]
            if setting == ABLATIONS[DEFAULT]:
                cells.append(f"{fmean(whole.values()):.2f} %")
                continue
            pairs = [own[seed] - whole[seed] for seed in own.keys() & whole.keys()]
            error = f" ± {stdev(pairs) / math.sqrt(len(pairs)):.2f}" if len(pairs) > 1 else ""
            cells.append(f"{fmean(pairs):+.2f}{error}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(["", "", *lines, "", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="Runs at a time (default: %(default)s).")
    parser.add_argument("--page", action="store_true", help="Make no run, only the table from the records.")
    arguments = parser.parse_args()
    path = RECORDS / RUNS_NAME
    if not arguments.page:
        os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started
        RECORDS.mkdir(parents=True, exist_ok=True)
        while left := tasks(read_runs(path)):
            make_runs(left, path, jobs=arguments.jobs)
    replace_part(RECORDS.parent / "README.md", BEGIN, END, table(read_runs(path)))
    print(RECORDS.parent / "README.md")


if __name__ == "__main__":
    main()
