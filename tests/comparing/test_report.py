"""Every figure of a report comes from the run folders, and no name in it is markup."""

import json
from pathlib import Path
from typing import Any

from comparison_for_tests import small_pictures  # noqa: F401
from run_folder_for_tests import edit_json, write_run_folder

from rts_hf.comparing.report import write_report

NASTY = "sam --opt_args '<script>alert(1)</script>'"


def report(folder: Path, methods: tuple[str, ...] = ("sgd", NASTY)) -> dict[str, Any]:
    runs = []
    for place, method in enumerate(methods):
        for seed in range(2):
            run = folder / "runs" / str(place) / f"seed-{seed}"
            if not run.exists():
                write_run_folder(run, epochs=2, switch_step=20)
                edit_json(run / "run.json", lambda record, seed=seed: record.update(seed=seed))  # type: ignore[misc]
            runs.append((method, run))
    facts = {"command": "python scripts/compare.py", "model": "resnet18", "data": "pets <b>", "budget": 1.0}
    return write_report(folder, runs, {**facts, "gradient_evaluations": 500, "reference": "sgd", "tuning": None})


def test_figures_come_from_the_run_folders(tmp_path: Path) -> None:
    report(tmp_path)
    edit_json(
        tmp_path / "runs" / "0" / "seed-1" / "run.json",
        lambda record: record["metrics"]["test"].update(accuracy=0.123),
    )
    found = report(tmp_path)
    assert "0.123" in (tmp_path / "results.csv").read_text()
    assert found["methods"][0]["difference"] is None
    mean = found["methods"][0]["test_accuracy"][0]
    assert f"| {100 * mean:.2f} ±" in (tmp_path / "table.md").read_text()
    assert f"<td>{100 * mean:.2f} ±" in (tmp_path / "report.html").read_text()
    copies = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/*/comparison.json")]
    assert copies == [found] * 4


def test_names_are_no_markup(tmp_path: Path) -> None:
    report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page
    assert "pets <b>" not in page
    assert "&lt;script&gt;" in page


def test_the_same_runs_give_the_same_files(tmp_path: Path) -> None:
    report(tmp_path)
    names = ("results.csv", "table.md", "report.html", "comparison.json", "figures/accuracy.svg")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    report(tmp_path)
    assert before == {name: (tmp_path / name).read_bytes() for name in before}
