"""README's evidence is what the committed records say, and the records are what comparisons left."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from evidence.document import RESULTS, SUMMARY, results, summary, write_evidence
from evidence.records import keep, read_evidence
from run_folder_for_tests import edit_json, write_run_folder
from scipy.stats import ttest_rel

from rts_hf.comparing.report import write_report
from rts_hf.reports.comparison import read_rows, run_row, to_csv
from rts_hf.reports.run_folder import read_log, read_record

ROOT = Path(__file__).parents[2]
FACTS = {
    "command": "python scripts/compare.py", "model": "resnet_micro_small", "data": "digits", "budget": 30,
    "gradient_evaluations": 680, "reference": "sgd", "tuning": None, "words": [],
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
    path.write_text(f"# Mine\n\n{''.join(SUMMARY)}\n\n{'old'.join(RESULTS)}\n\nThe end.\n")
    return path


def test_the_pages_are_what_the_records_say() -> None:
    records = ROOT / "model_cards" / "evidence"
    found = read_evidence(records)
    for page, marks, part in (
        (records / "README.md", RESULTS, results(found)),
        (records / "README.md", SUMMARY, summary(found)),
        (ROOT / "README.md", SUMMARY, summary(found)),
    ):
        shown = re.search(f"{re.escape(marks[0])}(.*){re.escape(marks[1])}", page.read_text("utf-8"), re.DOTALL)
        assert shown is not None
        assert shown[1] == part


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

    page = readme(records)
    paths = write_evidence(records)
    assert all(path.stat().st_size > 100 for path in paths)
    text = page.read_text()
    assert text.startswith("# Mine\n")
    assert text.endswith("\n\nThe end.\n")
    lines = text.splitlines()
    assert "- `digits_noise`: 40 % of the training labels wrong" in lines
    assert "| `digits_noise` | 30 | 91.00 | +3.17 (+2.44 to +3.89) | 100 | – | – |" in lines
    what = "| `digits_noise` | 30 | 3 |"
    assert f"{what} 91.00 ± 1.00 | 80.00 ± 0.00 | **94.17 ± 1.04** |" in lines
    assert (
        "| `digits_noise` | 30 | +3.17 (+2.44 to +3.89) | +14.17 (+11.58 to +16.76) |"
    ) in lines  # 2.449… to 3.884… and 11.581… to 16.751…: never narrower than they are
    where = "`digits_noise` at 30"
    assert f"rts_pugd is better than SGD, with an interval that excludes zero, on {where}." in text
    assert f"No method has a higher mean than rts_pugd on {where}." in text
    assert "`digits` at 30, `digits` at 100, `digits_noise` at 100, " in text
    assert "| over plain PUGD | +3.2 % on average |" in text
    first = {path: path.read_bytes() for path in paths}
    assert {path: path.read_bytes() for path in write_evidence(records)} == first


def test_runs_on_an_accelerator_are_told(tmp_path: Path) -> None:
    comparison = write_comparison(tmp_path / "digits-30", {"sgd": [0.9], "rts_pugd": [0.93]})
    trial = comparison / "tuning" / "sgd" / "lr-0.1" / "seed-1000"
    write_run_folder(trial)
    keep(comparison, tmp_path / "records" / "digits-30")
    assert "made on" not in results(read_evidence(tmp_path / "records"))
    edit_json(trial / "run.json", lambda record: record["hardware"].update(device="cuda", accelerator="H100"))
    keep(comparison, tmp_path / "records" / "digits-30")
    lines = results(read_evidence(tmp_path / "records")).splitlines()
    where = "- Runs that only chose learning rates of `digits` at 30 were made on an H100."
    assert lines[lines.index(where) + 1] == "- All others were made on a CPU."


def test_means_over_the_comparisons_are_shown(tmp_path: Path) -> None:
    scratch = [("digits-30", 0.9, 0.95), ("digits-100", 0.8, 0.95), ("digits_few-200", 0.7, 0.6)]
    for name, sgd, own in [*scratch, ("finetune_mnist_5k-4", 0.9, 0.9)]:
        runs = {"sgd": [sgd] * 2, "paper": [sgd - 0.1] * 2, "rts_pugd": [own] * 2}
        keep(write_comparison(tmp_path / name, runs), tmp_path / "records" / name)
    lines = results(read_evidence(tmp_path / "records")).splitlines()
    assert {"| mean, from scratch | | +3.33 | +13.33 |", "| mean, fine-tuning | | +0.00 | +10.00 |"} <= {*lines}
    assert "- It has SGD's accuracy in every run on `finetune_mnist_5k` at 4." in lines
    (over_sgd,) = [line for line in lines if line.startswith("| over SGD |")]  # the claims are about the paper's method
    each = "points in 3 comparisons, from -10.00 to -10.00 |"
    assert over_sgd.endswith(f"| fine-tuning -10.00 points in 1 comparison; from scratch -10.00 {each}")


def test_a_method_is_made_again_and_the_others_records_stay(tmp_path: Path) -> None:
    tuning = {"trials": 2, "seeds": 2, "at_an_end": ["sgd", "rts_pugd"]}
    trials = [{"method": name, "learning_rate": rate} for name in ("sgd", "rts_pugd") for rate in (0.1, 0.2)]
    both = write_comparison(tmp_path / "both", {"sgd": [0.9, 0.8], "rts_pugd": [0.7, 0.7]}, tuning=tuning)
    (both / "trials.csv").write_text(to_csv(trials, ["method", "learning_rate"]))
    keep(both, tmp_path / "records" / "digits-30")
    tuning |= {"at_an_end": ["sam"]}
    again = write_comparison(
        tmp_path / "again", {"rts_pugd": [0.9, 0.9, 0.9], "sam": [0.6]}, tuning=tuning, reference="rts_pugd"
    )
    (again / "trials.csv").write_text(to_csv([{"method": "sam", "learning_rate": 0.4}], ["method", "learning_rate"]))
    keep(again, tmp_path / "records" / "digits-30")
    rows = read_rows(tmp_path / "records" / "digits-30" / "results.csv")
    assert [(row["method"], row["test_accuracy"]) for row in rows] == [
        ("sgd", 0.9), ("sgd", 0.8), ("sam", 0.6), *[("rts_pugd", 0.9)] * 3,
    ]  # fmt: skip
    (found,) = read_evidence(tmp_path / "records")
    assert found.comparison["reference"] == "sgd"
    assert found.comparison["tuning"] == {"trials": 3, "seeds": 2, "at_an_end": ["sgd", "sam"]}
    assert list(found.curves) == ["sgd", "sam", "rts_pugd"]
    other = write_comparison(tmp_path / "other", {"sam": [0.5]}, gradient_evaluations=7)
    told = r"of another task \(gradient_evaluations 680, not 7\); run sgd, rts_pugd again"
    with pytest.raises(ValueError, match=told):
        keep(other, tmp_path / "records" / "digits-30")


def test_a_loss_is_told_as_one(tmp_path: Path) -> None:
    for name, own in (("digits-30", [0.80, 0.81, 0.83]), ("digits-100", [0.90, 0.93, 0.91])):
        runs = {"sgd": [0.90, 0.91, 0.92], "sam": [0.99] * 3, "rts_pugd": own}
        keep(write_comparison(tmp_path / name, runs), tmp_path / "records" / name)
    text = results(read_evidence(tmp_path / "records"))
    assert "rts_pugd is worse than SGD, with an interval that excludes zero, on `digits` at 30." in text
    assert "The interval of its difference to SGD holds zero on `digits` at 100." in text
    chances = [ttest_rel(own, [0.90, 0.91, 0.92]).pvalue for own in ([0.80, 0.81, 0.83], [0.90, 0.93, 0.91])]
    assert 2 * chances[0] < 0.05 < chances[1]
    assert "Corrected for the 2 comparisons (Holm), rts_pugd differs from SGD by " in text
    assert f"by more than chance on `digits` at 30 (p {2 * chances[0]:.2g})." in text
    assert "These have a higher one: sgd, sam on `digits` at 30; sgd, sam on `digits` at 100." not in text
    assert "These have a higher one: sgd, sam on `digits` at 30; sam on `digits` at 100." in text
    keep(write_comparison(tmp_path / "one", {"sgd": [0.9], "rts_pugd": [0.8]}), tmp_path / "one-seed" / "digits-30")
    assert "There is no interval on `digits` at 30." in results(read_evidence(tmp_path / "one-seed"))
    assert "better than" not in text
