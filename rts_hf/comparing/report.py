"""The files that a comparison leaves: every run in a table, the summary, pictures, and one page with them all."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rts_hf.comparing.figures import draw_comparison
from rts_hf.files import write_text
from rts_hf.reports.card import write_card
from rts_hf.reports.comparison import FORMAT, notes, run_row, split_of, summarise, table_rows, task, to_csv, to_markdown
from rts_hf.reports.run_folder import COMPARISON_NAME, read_log, read_record

TEMPLATE = Path(__file__).with_name("comparison_page.html.jinja")
CAPTIONS = {
    "accuracy": "{split} accuracy by method: mean with its 95 % interval, and below it a tick for every run",
    "histories": "Validation accuracy along the gradients spent: mean and range over seeds",
}


def write_report(
    folder: str | Path,
    runs: Sequence[tuple[str, Path]],
    facts: Mapping[str, Any],
    trials: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Write what a comparison found, and return the summary.

    That is ``results.csv``, ``trials.csv``, ``table.md``, ``comparison.json``, ``figures/`` and ``report.html``.
    Every figure comes from the run folders; the same runs give the same files. Each run folder gets a copy of
    ``comparison.json``, and a card that shows it.

    Args:
        folder: The comparison's folder.
        runs: Method and folder of each complete run.
        facts: ``command``, ``model``, ``data``, ``train_fraction``, ``label_noise``, ``words``, ``budget``,
            ``gradient_evaluations``, ``reference``, ``tuning`` and ``split`` of the comparison.
        trials: What was tried to choose learning rates, one row a trial.
    """
    target = Path(folder)
    records = {path: read_record(path) for _, path in runs}
    rows = [run_row(records[path], method, path.relative_to(target).as_posix()) for method, path in runs]
    curves: dict[str, list[list[tuple[int, float]]]] = {}
    for method, path in runs:
        if records[path]["status"] == "diverged":
            continue
        points = [
            (entry["gradient_evaluations"], entry["eval_accuracy"])
            for entry in read_log(path)
            if entry.get("eval_accuracy") is not None and entry.get("gradient_evaluations") is not None
        ]
        curves.setdefault(method, []).append(points)
    evaluations = {method: max(map(len, points)) for method, points in curves.items()}
    summary = summarise(rows, facts["reference"], split_of(facts))
    comparison = {"format": FORMAT, **facts, "evaluations": evaluations, "methods": summary}
    write_text(target / "results.csv", to_csv(rows))
    if trials:
        write_text(target / "trials.csv", to_csv(trials, list(trials[0])))
    write_text(target / "table.md", to_markdown(comparison))
    text = json.dumps(comparison, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(target / COMPARISON_NAME, text)
    draw_comparison(target / "figures", comparison, rows, curves)
    commands = [records[path]["command"] for _, path in runs]
    write_text(target / "report.html", _page(target, comparison, commands, trials))
    for _, path in runs:
        write_text(path / COMPARISON_NAME, text)
        write_card(path)
    return comparison


def _page(
    folder: Path, comparison: Mapping[str, Any], commands: Sequence[str], trials: Sequence[Mapping[str, Any]]
) -> str:
    from jinja2 import Environment

    rows = table_rows(comparison)
    split = split_of(comparison)
    figures = [
        {
            "caption": caption.format(split=split.capitalize()),
            "data": base64.b64encode((folder / "figures" / f"{name}.png").read_bytes()).decode(),
        }
        for name, caption in CAPTIONS.items()
    ]
    template = Environment(autoescape=True, trim_blocks=False).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=f"{task(comparison)}: optimizers at equal gradient budgets",
        columns=list(rows[0]),
        rows=[
            {"cells": list(row.values()), "reference": method["method"] == comparison["reference"]}
            for row, method in zip(rows, comparison["methods"], strict=True)
        ],
        notes=notes(comparison),
        figures=figures,
        command=comparison["command"],
        commands=commands,
        trials=trials,
    )
