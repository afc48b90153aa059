"""The records of comparisons: which are made, what is kept of one, and that pictures are of the runs they stand by."""

from __future__ import annotations

import csv
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from evidence.document import write_evidence
from evidence.records import BENCHMARKS, METHODS, STUDIES, commands, keep, measure_landscapes, read_evidence
from run_folder_for_tests import edit_json
from runs_for_tests import SMALL, settings
from test_evidence import FACTS, ROOT, readme, write_comparison

from rts_hf import ModelArguments, train
from rts_hf.comparing.method import parse_method
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
    made = dict(commands(str(tmp_path), seeds=2, jobs=1))
    tuned = [f"{each.name}-{budget}" for each in BENCHMARKS for budget in each.budgets]
    assert [name for name, words in made.items() if "--tune" in words] == tuned
    at_default = {f"{name}-default" for name in (
        "digits-30", "digits_noise-30", "digits_noise-100", "digits_few-200", "photo_patches-15",
    )}  # fmt: skip
    assert set(made) - set(tuned) == at_default | set(STUDIES)
    assert {name for name, words in made.items() if "--validation_only" in words} == set(STUDIES)
    for name, words in commands(str(tmp_path)):
        is_pretrained = name.startswith("finetune_")
        assert ("--checkpoint" in words, "0.003" in words) == (is_pretrained, is_pretrained)
        assert name in STUDIES or words[words.index("--seeds") + 1] == ("5" if is_pretrained else "10")
    for words in made.values():  # all of them can be made
        arguments = words[words.index("--opts") + 1 :]
        for text in arguments[: next(place for place, word in enumerate(arguments) if word == "--seeds")]:
            parse_arguments([*parse_method(text).words, "--use_cpu", "--output_dir", str(tmp_path / "run")])
    called: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "rts_hf.comparing.compare.compare", lambda opts, **settings: called.append({"opts": opts, **settings})
    )
    write_comparison(tmp_path / "digits_noise-100", {"sgd": [0.9, 0.8], "rts_pugd": [0.9, 0.8]})
    readme(tmp_path / "records")
    words = ["--rerun", "digits_noise-100", "--seeds", "4", "--output_dir", str(tmp_path)]
    measured: list[Path] = []  # the landscapes that README shows are of this comparison's runs
    monkeypatch.setattr("evidence.records.measure_landscapes", lambda source, target: measured.append(source))
    monkeypatch.setattr(sys, "argv", ["evidence", *words, "--records", str(tmp_path / "records")])
    runpy.run_path(str(ROOT / "scripts" / "evidence" / "__main__.py"), run_name="__main__")
    (call,) = called
    assert measured == [tmp_path / "digits_noise-100"]
    assert (call["opts"], call["budget"], call["seeds"]) == ([*METHODS], 100, 4)
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
        monkeypatch.setattr(name, lambda path: made.append(Path(path)) or [])
    monkeypatch.setattr(sys, "argv", ["evidence"])
    runpy.run_path(str(ROOT / "scripts" / "evidence" / "__main__.py"), run_name="__main__")
    cards = ROOT / "model_cards"
    assert made == [cards / "evidence", cards / "benchmark" / "benchmark.json", cards / "digits_rts_pugd"]


def test_landscapes_are_drawn_from_what_was_measured(tmp_path: Path) -> None:
    for name in ("sgd", "rts_pugd"):
        words: dict[str, Any] = {"opt": name, "max_steps": 2, "eval_strategy": "no", "save_strategy": "no"}
        words |= {"load_best_model_at_end": False, "metric_for_best_model": None, "draw_figures": False}
        train(ModelArguments(model="test_resnet"), SMALL, settings(tmp_path / "c" / "runs" / name / "seed-0", **words))
    records = tmp_path / "records"
    weights = tmp_path / "c" / "runs" / "sgd" / "seed-0" / "model.safetensors"
    write_comparison(tmp_path / "d", {"sgd": [0.9], "rts_pugd": [0.9]})
    for name in ("sgd", "rts_pugd"):
        shutil.copy(tmp_path / "c" / "runs" / name / "seed-0" / weights.name, tmp_path / "d" / "runs" / name / "seed-0")
    keep(tmp_path / "d", records / "digits_noise-100")
    measure_landscapes(tmp_path / "c", records / "landscape", progress=False)
    shutil.copytree(records, tmp_path / "old")
    edit_json(tmp_path / "old" / "landscape" / "weights.json", lambda digests: digests.update(sgd="of another run"))
    with pytest.raises(ValueError, match=r"are of other weights .* --rerun landscape measures them"):
        write_evidence(tmp_path / "old")
    shutil.rmtree(tmp_path / "c")
    readme(records)
    names = {path.name for path in write_evidence(records)}
    assert names >= {"surface-sgd.png", "surface-rts_pugd.png", "lines.png"}


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no records; scripts/evidence --rerun makes them"):
        read_evidence(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not finished"):
        keep(tmp_path, tmp_path / "records")
    keep(write_comparison(tmp_path / "c", {"sgd": [0.9], "rts_pugd": [0.9]}), tmp_path / "records" / "digits-30")
    (tmp_path / "records" / "README.md").write_text("# Mine\n")
    with pytest.raises(ValueError, match="there must be one part between"):
        write_evidence(tmp_path / "records")
