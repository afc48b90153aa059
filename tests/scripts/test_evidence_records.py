"""The records of comparisons: which are made, what is kept of one, and that pictures are of the runs they stand by."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from evidence.document import write_evidence
from evidence.records import BENCHMARKS, METHODS, commands, keep, read_evidence
from run_folder_for_tests import edit_json
from test_evidence import FACTS, ROOT, readme, write_comparison

from rts_hf.comparing.method import parse_method, parse_recipe
from rts_hf.comparing.report import write_report
from rts_hf.reports.run_folder import read_log
from rts_hf.runs.command_line import parse_arguments


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


def test_the_commands_are_those_of_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, opts = dict(commands(str(tmp_path), seeds=2, jobs=1)), [name for name in METHODS if name != "paper"]
    assert list(made) == [f"{each.name}-{budget}" for each in BENCHMARKS for budget in each.budgets]
    for name, words in commands(str(tmp_path)):
        is_pretrained = name.startswith("finetune_")
        assert ("--checkpoint" in words, "0.003" in words) == (is_pretrained, is_pretrained)
        assert words[words.index("--seeds") + 1] == ("5" if is_pretrained else "10")
        assert words[: words.index("--seeds")] == ["--opts", *opts, "--recipes", "paper"]
    for method in (*map(parse_method, opts), parse_recipe("paper")):
        parse_arguments([*method.words, "--use_cpu", "--output_dir", str(tmp_path / "run")])  # all can be made
    called: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "rts_hf.comparing.compare.compare", lambda opts, **settings: called.append({"opts": opts, **settings})
    )
    write_comparison(tmp_path / "digits_noise-100", {"sgd": [0.9, 0.8], "rts_pugd": [0.9, 0.8]})
    readme(tmp_path / "records")
    words = ["--rerun", "digits_noise-100", "--seeds", "4", "--output_dir", str(tmp_path), "--methods", "rts_pugd"]
    monkeypatch.setattr(sys, "argv", ["evidence", *words, "--records", str(tmp_path / "records")])
    runpy.run_path(str(ROOT / "scripts" / "evidence" / "__main__.py"), run_name="__main__")
    (call,) = called
    assert (call["opts"], call["recipes"], call["budget"], call["seeds"]) == (["rts_pugd"], [], 100, 4)
    assert (call["tune"], call["learning_rates"]) == (2, [0.05, 0.1, 0.2, 0.4])
    assert call["words"] == ["--label_noise", "0.4", "--channels_last", "--draw_figures", "false"]
    with (tmp_path / "records" / "digits_noise-100" / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4


def test_one_command_makes_all_that_readme_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    for name in (
        "evidence.document.write_evidence",
        "benchmark.report.write_page",
        "rts_hf.reports.figures.draw_run_figures",
    ):
        monkeypatch.setattr(name, lambda *paths: made.extend(map(Path, paths)) or [])
    monkeypatch.setattr(sys, "argv", ["evidence"])
    runpy.run_path(str(ROOT / "scripts" / "evidence" / "__main__.py"), run_name="__main__")
    cards = ROOT / "model_cards"
    pages = [cards / "evidence", ROOT / "README.md"]
    assert made == [*pages, cards / "benchmark" / "benchmark.json", cards / "digits_rts_pugd"]


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no records; scripts/evidence --rerun makes them"):
        read_evidence(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not finished"):
        keep(tmp_path, tmp_path / "records")
    keep(write_comparison(tmp_path / "c", {"sgd": [0.9], "rts_pugd": [0.9]}), tmp_path / "records" / "digits-30")
    (tmp_path / "records" / "README.md").write_text("# Mine\n")
    with pytest.raises(ValueError, match="there must be one part between"):
        write_evidence(tmp_path / "records")
