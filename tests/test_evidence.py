"""README's evidence is what the committed records say, and the records are what comparisons left."""

from __future__ import annotations

import csv
import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from run_folder_for_tests import edit_json, write_run_folder
from runs_for_tests import SMALL, settings

from rts_hf import ModelArguments, train
from rts_hf.comparison_report import write_report
from rts_hf.comparison_tables import run_row
from rts_hf.evidence import (
    BEGIN,
    BENCHMARKS,
    END,
    METHODS,
    commands,
    keep,
    markdown,
    measure_landscapes,
    read_evidence,
    write_evidence,
)
from rts_hf.run_folder import read_log, read_record

ROOT = Path(__file__).parents[1]
FACTS = {
    "command": "python scripts/compare.py", "model": "resnet_micro_small", "data": "digits", "budget": 30,
    "gradient_evaluations": 680, "reference": "sgd", "tuning": None,
}  # fmt: skip


def write_comparison(folder: Path, accuracies: dict[str, list[float]], **facts: Any) -> Path:
    """Write the folder of a finished comparison whose runs have these test accuracies."""
    runs = []
    for method, values in accuracies.items():
        for seed, value in enumerate(values):
            run = write_run_folder(folder / "runs" / method / f"seed-{seed}")

            def edit(record: dict[str, Any], seed: int = seed, value: float = value) -> None:
                record["seed"] = seed
                record["metrics"]["test"]["accuracy"] = value

            edit_json(run / "run.json", edit)
            runs.append((method, run))
    write_report(folder, runs, {**FACTS, **facts})
    return folder


def readme(folder: Path) -> Path:
    path = folder / "README.md"
    path.write_text(f"# Mine\n\n{BEGIN}old{END}\n\nThe end.\n")
    return path


def test_the_readme_is_what_the_records_say() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(f"{re.escape(BEGIN)}(.*){re.escape(END)}", text, re.DOTALL)
    assert shown is not None
    assert shown[1] == markdown(read_evidence(ROOT / "model_cards" / "evidence"))


def test_from_a_comparison_to_the_readme(tmp_path: Path) -> None:
    comparison = write_comparison(
        tmp_path / "comparison", {"sgd": [0.90, 0.91, 0.92], "pugd": [0.8, 0.8, 0.8], "rts_pugd": [0.93, 0.945, 0.95]}
    )
    records = tmp_path / "records"
    keep(comparison, records / "digits_noise-30")
    assert not list(records.rglob("*.safetensors"))
    assert "command" not in json.loads((records / "digits_noise-30" / "comparison.json").read_text())
    (found,) = read_evidence(records)
    assert (found.benchmark.name, found.budget) == ("digits_noise", 30)
    runs = [(m, comparison / "runs" / m / f"seed-{s}") for m in ("sgd", "pugd", "rts_pugd") for s in range(3)]
    assert found.rows == [run_row(read_record(run), m, run.relative_to(comparison).as_posix()) for m, run in runs]
    assert found.comparison["methods"] == json.loads((comparison / "comparison.json").read_text())["methods"]
    logged = [e["gradient_evaluations"] for e in read_log(runs[0][1]) if e.get("eval_accuracy") is not None]
    assert [point[0] for point in found.curves["sgd"][0]] == logged

    paths = write_evidence(records, readme(tmp_path))
    assert all(path.stat().st_size > 100 for path in paths)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# Mine\n")
    assert text.endswith("\n\nThe end.\n")
    lines = text.splitlines()
    what = "| `digits_noise`: 40 % of the training labels wrong | 30 | as given | 3 |"
    assert f"{what} 91.00 ± 1.00 | 80.00 ± 0.00 | **94.17 ± 1.04** |" in lines
    assert (
        "| `digits_noise` | 30 | +3.17 (+2.45 to +3.88) | +14.17 (+11.58 to +16.75) | +3.17 (+2.45 to +3.88) (sgd) |"
    ) in lines
    assert "rts_pugd is better than SGD, with an interval that excludes zero, on `digits_noise` at 30." in text
    assert "Not measured yet: `digits` at 30, `digits` at 100, `digits_noise` at 100, " in text
    assert "| over plain PUGD | +3.2 % on average |" in text
    assert "| +14.17 points in 1 comparison |" in text
    first = {path: path.read_bytes() for path in paths}
    assert {path: path.read_bytes() for path in write_evidence(records, tmp_path / "README.md")} == first


def test_runs_on_an_accelerator_are_told(tmp_path: Path) -> None:
    comparison = write_comparison(tmp_path / "digits-30", {"sgd": [0.9], "rts_pugd": [0.93]})
    trial = comparison / "tuning" / "sgd" / "lr-0.1" / "seed-1000"
    write_run_folder(trial)
    keep(comparison, tmp_path / "records" / "digits-30")
    assert "made on" not in markdown(read_evidence(tmp_path / "records"))
    edit_json(trial / "run.json", lambda record: record["hardware"].update(device="cuda", accelerator="H100"))
    keep(comparison, tmp_path / "records" / "digits-30")
    told = markdown(read_evidence(tmp_path / "records"))
    line = "Runs that only chose learning rates of `digits` at 30 were made on an H100. All others were made on a CPU."
    assert line in told.splitlines()


def test_gradient_evaluations_that_are_not_whole_are_kept(tmp_path: Path) -> None:
    comparison = write_comparison(tmp_path / "digits-30", {"sgd": [0.9], "rts_pugd": [0.93]})
    run = comparison / "runs" / "rts_pugd" / "seed-0"
    edit_json(run / "run.json", lambda record: record.update(gradient_evaluations=661.5))

    def edit(state: dict[str, Any]) -> None:
        for entry in state["log_history"]:
            entry["gradient_evaluations"] = entry["step"] * 1.0625

    edit_json(run / "trainer_state.json", edit)
    write_report(comparison, [(m, comparison / "runs" / m / "seed-0") for m in ("sgd", "rts_pugd")], FACTS)
    keep(comparison, tmp_path / "records" / "digits-30")
    (found,) = read_evidence(tmp_path / "records")
    assert [type(row["gradient_evaluations"]) for row in found.rows] == [int, float]
    assert found.rows[1]["gradient_evaluations"] == 661.5
    logged = [e["gradient_evaluations"] for e in read_log(run) if e.get("eval_accuracy") is not None]
    assert [point[0] for point in found.curves["rts_pugd"][0]] == logged


def test_a_loss_is_told_as_one(tmp_path: Path) -> None:
    for name, own in (("digits-30", [0.80, 0.81, 0.83]), ("digits-100", [0.90, 0.93, 0.91])):
        keep(
            write_comparison(tmp_path / name, {"sgd": [0.90, 0.91, 0.92], "sam": [0.99] * 3, "rts_pugd": own}),
            tmp_path / "records" / name,
        )
    text = markdown(read_evidence(tmp_path / "records"))
    assert "rts_pugd is worse than SGD, with an interval that excludes zero, on `digits` at 30." in text
    assert "The interval of its difference to SGD holds zero on `digits` at 100." in text
    assert "(sam) |" in text
    keep(write_comparison(tmp_path / "one", {"sgd": [0.9], "rts_pugd": [0.8]}), tmp_path / "one-seed" / "digits-30")
    assert "There is no interval on `digits` at 30." in markdown(read_evidence(tmp_path / "one-seed"))
    assert "better than" not in text


def test_the_commands_are_those_of_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = dict(commands(str(tmp_path), seeds=2, jobs=1))
    assert list(made) == [f"{each.name}-{budget}" for each in BENCHMARKS for budget in each.budgets]
    called: list[dict[str, Any]] = []
    monkeypatch.setattr("rts_hf.compare.compare", lambda opts, **settings: called.append({"opts": opts, **settings}))
    write_comparison(tmp_path / "digits_noise-100", {"sgd": [0.9, 0.8], "rts_pugd": [0.9, 0.8]})
    words = [
        "--rerun",
        "digits_noise-100",
        "--seeds",
        "4",
        "--output_dir",
        str(tmp_path),
        "--records",
        str(tmp_path / "records"),
    ]
    monkeypatch.setattr(sys, "argv", ["evidence.py", *words, "--readme", str(readme(tmp_path))])
    runpy.run_path(str(ROOT / "scripts" / "evidence.py"), run_name="__main__")
    (call,) = called
    assert (call["opts"], call["budget"], call["seeds"]) == ([*METHODS], 100, 4)
    assert (call["tune"], call["learning_rates"]) == (2, [0.05, 0.1, 0.2, 0.4])
    assert call["words"] == ["--label_noise", "0.4", "--channels_last", "--draw_figures", "false"]
    with (tmp_path / "records" / "digits_noise-100" / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4


def test_landscapes_are_drawn_from_what_was_measured(tmp_path: Path) -> None:
    for name in ("sgd", "rts_pugd"):
        words: dict[str, Any] = {"opt": name, "max_steps": 2, "eval_strategy": "no", "save_strategy": "no"}
        words |= {"load_best_model_at_end": False, "metric_for_best_model": None, "draw_figures": False}
        train(ModelArguments(model="test_resnet"), SMALL, settings(tmp_path / "c" / "runs" / name / "seed-0", **words))
    records = tmp_path / "records"
    keep(write_comparison(tmp_path / "d", {"sgd": [0.9], "rts_pugd": [0.9]}), records / "digits-30")
    measure_landscapes(tmp_path / "c", records / "landscape", progress=False)
    shutil.rmtree(tmp_path / "c")
    names = {path.name for path in write_evidence(records, readme(tmp_path))}
    assert names >= {"surface-sgd.png", "surface-rts_pugd.png", "lines.png"}


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no records; scripts/evidence.py --rerun makes them"):
        read_evidence(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not finished"):
        keep(tmp_path, tmp_path / "records")
    keep(write_comparison(tmp_path / "c", {"sgd": [0.9], "rts_pugd": [0.9]}), tmp_path / "records" / "digits-30")
    (tmp_path / "README.md").write_text("# Mine\n")
    with pytest.raises(ValueError, match="there must be one part between"):
        write_evidence(tmp_path / "records", tmp_path / "README.md")
