"""README's evidence is what the committed records say, and the records are what comparisons left."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

from evidence.document import BEGIN, END, markdown, write_evidence
from evidence.records import STUDIES, STUDY, keep, read_evidence, read_study
from run_folder_for_tests import edit_json, write_run_folder
from scipy.stats import ttest_rel

from rts_hf.comparing.report import write_report
from rts_hf.reports.comparison import run_row
from rts_hf.reports.run_folder import read_log, read_record

ROOT = Path(__file__).parents[2]
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
    folder.mkdir(exist_ok=True)
    path.write_text(f"# Mine\n\n{BEGIN}old{END}\n\nThe end.\n")
    return path


def test_the_readme_is_what_the_records_say() -> None:
    text = (ROOT / "model_cards" / "evidence" / "README.md").read_text(encoding="utf-8")
    shown = re.search(f"{re.escape(BEGIN)}(.*){re.escape(END)}", text, re.DOTALL)
    assert shown is not None
    records = ROOT / "model_cards" / "evidence"
    assert shown[1] == markdown(read_evidence(records), read_study(records))


def test_from_a_comparison_to_the_readme(tmp_path: Path) -> None:
    comparison = write_comparison(
        tmp_path / "comparison", {"sgd": [0.90, 0.91, 0.92], "pugd": [0.8, 0.8, 0.8], "rts_pugd": [0.93, 0.945, 0.95]}
    )
    records = tmp_path / "records"
    keep(comparison, records / "digits_noise-30-default")
    assert not list(records.rglob("*.safetensors"))
    assert "command" not in json.loads((records / "digits_noise-30-default" / "comparison.json").read_text())
    (found,) = read_evidence(records)
    assert (found.benchmark.name, found.budget) == ("digits_noise", 30)
    runs = [(m, comparison / "runs" / m / f"seed-{s}") for m in ("sgd", "pugd", "rts_pugd") for s in range(3)]
    assert found.rows == [run_row(read_record(run), m, run.relative_to(comparison).as_posix()) for m, run in runs]
    assert found.comparison["methods"] == json.loads((comparison / "comparison.json").read_text())["methods"]
    logged = [e["gradient_evaluations"] for e in read_log(runs[0][1]) if e.get("eval_accuracy") is not None]
    assert [point[0] for point in found.curves["sgd"][0]] == logged

    page = readme(records)
    paths = write_evidence(records)
    assert all(path.stat().st_size > 100 for path in paths)
    text = page.read_text()
    assert text.startswith("# Mine\n")
    assert text.endswith("\n\nThe end.\n")
    lines = text.splitlines()
    assert "- `digits_noise`: 40 % of the training labels wrong" in lines
    what = "| `digits_noise` | 30 | 0.1 for all | 3 |"
    assert f"{what} 91.00 ± 1.00 | 80.00 ± 0.00 | **94.17 ± 1.04** |" in lines
    assert (
        "| `digits_noise` | 30 | 0.1 for all | +3.17 (+2.44 to +3.89) | +14.17 (+11.58 to +16.76) |"
    ) in lines  # 2.449… to 3.884… and 11.581… to 16.751…: never narrower than they are
    where = "`digits_noise` at 30 (learning rate 0.1 for all)"
    assert f"rts_pugd is better than SGD, with an interval that excludes zero, on {where}." in text
    assert f"No method has a higher mean than rts_pugd on {where}." in text
    assert "`digits` at 30, `digits` at 100, `digits_noise` at 30, `digits_noise` at 100, " in text
    assert "| over plain PUGD | +3.2 % on average |" in text
    assert "| +14.17 points in 1 comparison |" in text
    first = {path: path.read_bytes() for path in paths}
    assert {path: path.read_bytes() for path in write_evidence(records)} == first


def test_runs_on_an_accelerator_are_told(tmp_path: Path) -> None:
    comparison = write_comparison(tmp_path / "digits-30", {"sgd": [0.9], "rts_pugd": [0.93]})
    trial = comparison / "tuning" / "sgd" / "lr-0.1" / "seed-1000"
    write_run_folder(trial)
    keep(comparison, tmp_path / "records" / "digits-30")
    assert "made on" not in markdown(read_evidence(tmp_path / "records"))
    edit_json(trial / "run.json", lambda record: record["hardware"].update(device="cuda", accelerator="H100"))
    keep(comparison, tmp_path / "records" / "digits-30")
    told = markdown(read_evidence(tmp_path / "records"))
    lines = told.splitlines()
    where = "- Runs that only chose learning rates of `digits` at 30 (learning rate 0.1 for all) were made on an H100."
    assert lines[lines.index(where) + 1] == "- All others were made on a CPU."
    study = write_comparison(tmp_path / "study", {"sgd": [0.9], "rts_pugd": [0.93]})
    edit_json(
        study / "runs" / "sgd" / "seed-0" / "run.json",
        lambda record: record["hardware"].update(device="cuda", accelerator="H100"),
    )
    keep(study, tmp_path / "records" / "study-30")
    lines = markdown(read_evidence(tmp_path / "records"), read_study(tmp_path / "records")).splitlines()
    assert "- Some runs of the settings' table at 30 were made on an H100." in lines


def test_the_best_of_the_budgets_and_the_mean_over_them_are_shown(tmp_path: Path) -> None:
    tuning = {"trials": 8, "seeds": 2, "at_an_end": []}
    for name, sgd, own in (("digits-30", 0.9, 0.95), ("digits-100", 0.8, 0.95), ("digits_few-200", 0.7, 0.6)):
        keep(write_comparison(tmp_path / name, {"sgd": [sgd] * 2, "rts_pugd": [own] * 2}, tuning=tuning),
             tmp_path / "records" / name)  # fmt: skip
    keep(write_comparison(tmp_path / "default", {"sgd": [0.92], "pugd": [0.5], "rts_pugd": [0.1]}),
         tmp_path / "records" / "digits_noise-30-default")  # fmt: skip
    lines = markdown(read_evidence(tmp_path / "records")).splitlines()
    assert "| mean of these with chosen rates | | | +3.33 | – |" in lines  # 5, 15 and -10
    table = lines[lines.index("| benchmark | sgd | pugd | rts_pugd |") + 2 :][:3]
    assert table == [
        "| `digits` | 90.00 (30) | – | 95.00 (30) |",
        "| `digits_noise` | 92.00 (30) | 50.00 (30) | 10.00 (30) |",
        "| `digits_few` | 70.00 (200) | – | 60.00 (200) |",
    ]
    (over_sgd,) = [line for line in lines if line.startswith("| over SGD |")]
    assert over_sgd.endswith("| +3.33 points in the mean of 3 comparisons, from -10.00 to +15.00 |")


def test_the_norm_of_the_gradient_at_the_switch_is_kept_and_shown(tmp_path: Path) -> None:
    comparison = write_comparison(tmp_path / "digits-30", {"sgd": [0.9] * 3, "rts_pugd": [0.93] * 3})
    for seed, norm in enumerate((0.2, 0.4, 0.3)):
        run = comparison / "runs" / "rts_pugd" / f"seed-{seed}"
        edit_json(run / "run.json", lambda record: record["optimizer"]["switch"].update(step=30))
        steps = [{"step": step, "grad_norm": norm if step > 5 else 9.0} for step in range(5, 31, 5)]
        after = [{"step": 35, "grad_norm": 7.0}]
        edit_json(run / "trainer_state.json", lambda state: state.update(log_history=[*steps, *after]))  # noqa: B023
    keep(comparison, tmp_path / "records" / "digits-30")
    (found,) = read_evidence(tmp_path / "records")
    assert [round(norm, 6) for norm in found.comparison["norm_at_switch"]] == [0.2, 0.4, 0.3]
    told = "the norm of its gradients had been, in the median, 0.3 on `digits` at 30 (learning rate 0.1 for all)."
    assert f"- When the switch of rts_pugd fired, {told}" in markdown([found]).splitlines()


def test_a_loss_is_told_as_one(tmp_path: Path) -> None:
    tuning = {"trials": 8, "seeds": 2, "at_an_end": []}
    for name, own in (("digits-30", [0.80, 0.81, 0.83]), ("digits-100", [0.90, 0.93, 0.91])):
        runs = {"sgd": [0.90, 0.91, 0.92], "sam": [0.99] * 3, "rts_pugd": own}
        keep(write_comparison(tmp_path / name, runs, tuning=tuning), tmp_path / "records" / name)
    text = markdown(read_evidence(tmp_path / "records"))
    assert "rts_pugd is worse than SGD, with an interval that excludes zero, on `digits` at 30." in text
    assert "The interval of its difference to SGD holds zero on `digits` at 100." in text
    chances = [ttest_rel(own, [0.90, 0.91, 0.92]).pvalue for own in ([0.80, 0.81, 0.83], [0.90, 0.93, 0.91])]
    assert 2 * chances[0] < 0.05 < chances[1]
    assert "Corrected for the 2 comparisons with chosen learning rates (Holm), rts_pugd differs from SGD by " in text
    assert f"by more than chance on `digits` at 30 (p {2 * chances[0]:.2g})." in text
    assert "These have a higher one: sgd, sam on `digits` at 30; sgd, sam on `digits` at 100." not in text
    assert "These have a higher one: sgd, sam on `digits` at 30; sam on `digits` at 100." in text
    keep(write_comparison(tmp_path / "one", {"sgd": [0.9], "rts_pugd": [0.8]}), tmp_path / "one-seed" / "digits-30")
    assert "There is no interval on `digits` at 30 (" in markdown(read_evidence(tmp_path / "one-seed"))
    assert "better than" not in text


def test_a_study_is_shown_by_its_validation_accuracy(tmp_path: Path) -> None:
    records = tmp_path / "records"
    keep(write_comparison(tmp_path / "c", {"sgd": [0.9], "rts_pugd": [0.9]}), records / "digits-30")
    before = markdown(read_evidence(records), read_study(records))
    assert "its defaults" not in before
    runs = {"sgd": [0.1, 0.2], "rts_pugd": [0.3, 0.4], "rts_pugd --switch_at 0.9": [0.5, 0.6]}
    study = write_comparison(tmp_path / "study", runs, split="validation")
    for row in csv.DictReader((study / "results.csv").open()):  # as such runs are: with the test split unread
        edit_json(study / row["folder"] / "run.json", lambda record: record["metrics"].update(test=None))
    accuracies = {"sgd": [0.6, 0.8], "rts_pugd": [0.9, 0.9], "rts_pugd --switch_at 0.9": [0.8, 0.9]}
    for method, values in accuracies.items():
        for seed, value in enumerate(values):
            edit_json(
                study / "runs" / method / f"seed-{seed}" / "run.json",
                lambda record: record["metrics"]["validation"].update(accuracy=value),  # noqa: B023
            )
    folders = [(m, study / "runs" / m / f"seed-{s}") for m in accuracies for s in range(2)]
    write_report(study, folders, {**FACTS, "split": "validation"})
    keep(study, records / "study-30")
    lines = markdown(read_evidence(records), read_study(records)).splitlines()
    table = lines[lines.index("| setting | 30 passes |") :]
    assert table[2:5] == [
        "| sgd | 70.00 ± 14.14 |",
        "| rts_pugd, its defaults | 90.00 ± 0.00 |",
        "| `--switch_at 0.9` | 85.00 ± 7.07 |",
    ]
    assert "validation accuracy" in (study / "table.md").read_text()


def test_a_study_holds_the_defaults_against_other_settings() -> None:
    assert STUDY[:2] == ("sgd", "rts_pugd")
    assert all(setting.startswith("rts_pugd --") for setting in STUDY[2:])
    assert [budget for budget, _ in STUDIES.values()] == [30, 100]
