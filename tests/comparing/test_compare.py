"""The whole command, on runs of a few updates: choose learning rates, run, report, go on."""

import csv
import json
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from comparison_for_tests import PAPER, SMALL, small_pictures  # noqa: F401
from evidence.records import keep
from run_folder_for_tests import edit_json

from rts_hf.cli import main
from rts_hf.comparing.backends import Job, run_job
from rts_hf.comparing.compare import compare
from rts_hf.reports.card import render_card
from rts_hf.reports.run_folder import read_record
from rts_hf.runs.command_line import parse_arguments
from rts_hf.runs.run import train
from rts_hf.training.faults import TrainingFault

WORDS = [*SMALL, "--image_size", "8", "--measure_sharpness", "false", "--draw_figures", "false"]
OPTS = ["sgd", PAPER]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that were run, in this process, which spares each worker its imports."""
    jobs: list[Job] = []

    def run_jobs(wanted: Sequence[Job], **settings: Any) -> Iterator[tuple[Job, str | None]]:
        for job in wanted:
            jobs.append(job)
            run_job(job)
            yield job, None

    monkeypatch.setattr("rts_hf.comparing.comparison.run_jobs", run_jobs)
    return jobs


def run_command(*words: str) -> None:
    main(["compare", "--opts", *OPTS, *words, *WORDS])


def test_a_comparison_from_its_command_to_its_page(
    tmp_path: Path, made: list[Job], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rts_hf.comparing.tuning.EXTENSIONS", 0)
    folder = tmp_path / "comparison"
    words = ["--seeds", "2", "--budget", "2", "--output_dir", str(folder)]
    run_command(*words, "--tune", "1", "--learning_rates", "0.01", "0.5")
    assert all(job.measure_test is ("runs" in job.words[-1].split("/")) for job in made)  # read once, at the end
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["seed"]) for row in rows] == [
        (OPTS[0], "0"), (OPTS[1], "0"), (OPTS[0], "1"), (OPTS[1], "1"),
    ]  # fmt: skip
    for row in rows:
        record = read_record(folder / row["folder"])
        assert float(row["test_accuracy"]) == record["metrics"]["test"]["accuracy"]
        assert int(row["gradient_evaluations"]) == record["gradient_evaluations"]
        assert record["optimizer"]["total_steps"] == record["updates"] == int(row["updates"])
        assert 9 <= record["gradient_evaluations"] <= 10  # of a budget of 2 epochs of 5 batches
    found = json.loads((folder / "comparison.json").read_text())
    with (folder / "trials.csv").open() as file:
        trials = list(csv.DictReader(file))
    assert found["tuning"]["trials"] == len(trials) == len(made) - 4
    for method in found["methods"]:
        (chosen,) = [row for row in trials if row["method"] == method["method"] and row["chosen"] == "True"]
        assert float(chosen["learning_rate"]) == method["learning_rate"]
    shown = capsys.readouterr().out
    table = (folder / "table.md").read_text()
    assert table in shown
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched from elsewhere
    assert PAPER in page
    assert "--learning_rates 0.01 0.5" in page

    before, results = len(made), (folder / "results.csv").read_bytes()
    compare(OPTS, seeds=2, budget=2, output_dir=folder, words=WORDS, tune=1, learning_rates=[0.01, 0.5])
    assert len(made) == before  # all of it was there
    assert (folder / "results.csv").read_bytes() == results

    again = tmp_path / "again"  # with what was chosen there, and nothing tried anew
    command = ["--seeds", "1", "--budget", "2", "--output_dir", str(again), "--trials", str(folder / "trials.csv")]
    run_command(*command)
    assert len(made) == before + 2
    assert (again / "trials.csv").read_bytes() == (folder / "trials.csv").read_bytes()
    tuning = json.loads((again / "comparison.json").read_text())["tuning"]
    assert tuning == {**found["tuning"], "source": "comparison"}
    assert "all are in trials.csv, which the comparison comparison has left" in (again / "table.md").read_text()
    other: dict[str, Any] = {"output_dir": tmp_path / "other", "words": WORDS, "trials": folder / "trials.csv"}
    with pytest.raises(ValueError, match=r"is of another task \(gradient_evaluations 10, not 15\); give tune"):
        compare(OPTS, seeds=1, budget=3, **other)
    for words in (["--label_noise", "0.4"], ["--weight_decay", "0.1"]):
        with pytest.raises(ValueError, match=r"is of runs with other common options \(.*, not .*" + words[0]):
            compare(OPTS, seeds=1, budget=2, **{**other, "words": [*WORDS, *words]})
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="seeds: 1000 is one that learning rates are chosen with"):
        compare(OPTS, seeds=1, first_seed=1000, budget=2, **other)
    assert (again / "results.csv").read_text().splitlines()[1].split(",")[:9] == (
        results.decode().splitlines()[1].split(",")[:9]
    )

    run = folder / rows[1]["folder"]
    card = render_card(run)
    assert "Compared with other optimizers" in card
    (sgd,) = (row["test_accuracy"][0] for row in found["methods"] if row["method"] == "sgd")
    assert f" of 7 updates, 10 gradients; plain SGD's mean test accuracy for as many is {sgd:.4f}." in card
    assert next(line for line in table.splitlines() if line.startswith("| rts_pugd")) in card
    command = [*WORDS, "--opt", "sgd", "--max_steps", "2", "--output_dir", str(run), "--overwrite"]
    train(*parse_arguments(command))
    assert "Compared with" not in render_card(run)  # of another run, which has taken its place


def test_commands_for_any_scheduler(tmp_path: Path, made: list[Job], capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "comparison"
    words = ["--seeds", "2", "--budget", "1", "--output_dir", str(folder)]
    run_command(*words, "--print_commands")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert not made
    assert lines[1].startswith("accelerate launch -m rts_hf train ")
    # Run elsewhere, they are what the comparison goes on from.
    main(["train", *lines[0].split()[5:]])
    capsys.readouterr()
    run_command(*words, "--print_commands")
    assert capsys.readouterr().out.splitlines() == lines[1:]
    # One that was cut off goes on: from its checkpoint, or else over what it left.
    words_of_run = shlex.split(lines[1])
    run = Path(words_of_run[words_of_run.index("--output_dir") + 1])
    every = ["--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1"]
    main(["train", *words_of_run[5:], *every])
    capsys.readouterr()
    command = lines[1].split(" --output_dir ")[0]
    edit_json(run / "run.json", lambda record: record.update(status="training", command=command))
    run_command(*words, "--print_commands")
    listed = capsys.readouterr().out.splitlines()
    assert listed[:2] == lines[2:]  # what nobody has begun yet
    assert listed[2:] == [
        "# begun, to go on with if no longer running:", f"{lines[1]} --resume_from_checkpoint last",
    ]  # fmt: skip
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    run_command(*words, "--print_commands")
    again = capsys.readouterr().out.splitlines()[-1]
    assert again == f"{lines[1]} --overwrite"
    main(["train", *shlex.split(again)[5:]])
    assert read_record(run)["status"] == "complete"
    capsys.readouterr()
    with pytest.raises(SystemExit, match="--print_commands cannot choose learning rates"):
        run_command(*words, "--print_commands", "--tune", "1")


def test_commands_of_pilots_come_before_those_of_the_runs_that_they_are_for(
    tmp_path: Path, made: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    listens = "rts_pugd --switch gradient_variance --switch_window 2 --switch_init_steps 2 --switch_gamma 1e9"
    wanted = ["compare", "--opts", "sgd", listens, "--seeds", "2", "--budget", "3", *WORDS, "--output_dir"]
    folder, rounds = tmp_path / "by hand", list[list[str]]()
    for _ in range(12):
        main([*wanted, str(folder), "--print_commands"])
        lines = capsys.readouterr().out.splitlines()
        if not lines:
            break
        rounds.append(lines)
        for line in lines:
            if not line.startswith("#"):
                main(["train", *shlex.split(line)[5:]])
        capsys.readouterr()
    assert sum(line.startswith("#") for line in rounds[0]) == 1
    assert len(rounds[0]) == 4  # two runs of SGD, a remark, and the first seed's first pilot
    assert all("/pilots/" in line for lines in rounds[1:-1] for line in lines[-1:])
    assert ["/runs/" in line for line in rounds[-1]] == [True] * len(rounds[-1])
    before = len(made)
    main([*wanted, str(folder)])
    assert len(made) == before  # nothing is left to do
    main([*wanted, str(tmp_path / "at once")])
    of_runs = [
        [(row["method"], row["seed"], row["updates"], row["test_accuracy"]) for row in csv.DictReader(file)]
        for file in ((path / "results.csv").open() for path in (folder, tmp_path / "at once"))
    ]
    assert of_runs[0] == of_runs[1]


def test_runs_that_diverge_are_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Job] = []

    def run_jobs(wanted: Sequence[Job], **settings: Any) -> Iterator[tuple[Job, str | None]]:
        for job in wanted:
            made.append(job)
            try:
                run_job(job)
            except (TrainingFault, ValueError) as error:
                yield job, str(error)
            else:
                yield job, None

    monkeypatch.setattr("rts_hf.comparing.comparison.run_jobs", run_jobs)
    # One is stopped by its gradients, the other by what it says of the validation images.
    wild = ["sgd --learning_rate 1e30 --max_skipped_updates 2", "sgd --learning_rate 1e30"]
    told: list[str] = []
    folder = tmp_path / "comparison"
    call: dict[str, Any] = {"seeds": 2, "budget": 2, "output_dir": folder, "words": WORDS, "tell": told.append}
    found = compare(["sgd", *wild], **call)
    assert [line.split(": ")[1] for line in told].count("diverged") == 4
    assert "max_skipped_updates=2" in told[1]
    assert "not a number (NaN)" in told[2]
    summary = {row["method"]: row for row in found["methods"]}
    assert [(summary[name]["seeds"], summary[name]["diverged"]) for name in ("sgd", *wild)] == [(2, 0), (0, 2), (0, 2)]
    table = (folder / "table.md").read_text()
    for name in wild:
        assert f"2 of 2 runs of {name}" in table.replace("\\_", "_")
        assert summary[name]["test_accuracy"] == [None] * 4
    assert "off the budget" not in table
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["test_accuracy"] == "" for row in rows] == [row["method"] != "sgd" for row in rows]
    card = (folder / rows[1]["folder"] / "README.md").read_text()
    assert "max_skipped_updates=2" in card
    keep(folder, tmp_path / "record")
    with (tmp_path / "record" / "histories.csv").open() as file:
        assert {row["method"] for row in csv.DictReader(file)} == {"sgd"}
    before = len(made)
    compare(["sgd", *wild], **call)
    assert len(made) == before == 6


def test_settings_can_be_chosen_without_the_test_split(
    tmp_path: Path, made: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    words = ["--seeds", "2", "--budget", "1", "--output_dir", str(folder)]
    run_command(*words, "--validation_only")
    assert len(made) == 4
    assert not any(job.measure_test for job in made)
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    records = [read_record(folder / row["folder"]) for row in rows]
    assert [record["metrics"]["test"] for record in records] == [None] * 4
    assert [float(row["validation_accuracy"]) for row in rows] == [
        record["metrics"]["validation"]["accuracy"] for record in records
    ]
    assert {row["test_accuracy"] for row in rows} == {""}
    table = (folder / "table.md").read_text()
    assert "| validation accuracy, % |" in table
    assert "the test split was not read" in table
    assert "Diverged" not in table
    mean = 50 * sum(float(row["validation_accuracy"]) for row in rows if row["method"] == "sgd")
    assert f"| {mean:.2f} ± " in next(line for line in table.splitlines() if line.startswith("| sgd"))
    assert "Validation accuracy by method" in (folder / "report.html").read_text()
    card = (folder / rows[1]["folder"] / "README.md").read_text()
    assert "| validation accuracy, % |" in card
    # Runs that left it unread are none of a comparison on it.
    with pytest.raises(SystemExit, match=r"holds another comparison \(validation_only True, not False\)"):
        run_command(*words)
    with pytest.raises(SystemExit, match="the training command reads the test split; leave --validation_only out"):
        run_command(*words, "--validation_only", "--print_commands")


@pytest.mark.parametrize(
    ("opts", "settings", "message"),
    [
        (OPTS, {"seeds": 0}, "seeds=0 must be at least 1"),
        (OPTS, {"jobs": 0}, "jobs=0 must be at least 1"),
        (OPTS, {"tune": -1}, "tune=-1 must be at least 0"),
        (OPTS, {"learning_rates": [0.1]}, "learning_rates need tune"),
        (OPTS, {"tune": 1, "learning_rates": [0.0]}, r"learning_rates=\[0.0\] must be greater than 0"),
        (["sgd --learning-rate=0.1"], {"tune": 1}, "has a learning rate, and tune=1 would choose another"),
        (["sgd --learning_rate 0.1"], {"tune": 1}, "has a learning rate, and tune=1 would choose another"),
        (["sgd --learning_rate 0.1"], {"trials": "t.csv"}, "has a learning rate, and trials='t.csv' would choose"),
        (OPTS, {"trials": "t.csv", "tune": 2}, "trials='t.csv' has chosen the learning rates, and tune=2 would"),
        (OPTS, {"trials": "nothing.csv"}, "trials='nothing.csv' is not the trials.csv of a comparison"),
        (OPTS, {"backend": "slurm"}, "backend='slurm' is unknown"),
        ([], {}, "opts and recipes name nothing to compare"),
        (
            OPTS,
            {"recipes": ["cifar10_pugd"]},
            r"'cifar10_pugd' has another model or data than 'sgd' \(model 'resnet18', not .*\); give --model for all",
        ),
        (
            OPTS,
            {"recipes": ["digits_short"]},
            r"than 'sgd' \(channels_last True, not False\); give --channels_last for all",
        ),
        (OPTS, {"recipes": ["digit"]}, "recipe='digit' is unknown"),
        (OPTS, {"recipes": ["--recipe digits"]}, "must begin with a recipe's name"),
    ],
)
def test_refused(tmp_path: Path, opts: list[str], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(opts, output_dir=tmp_path / "c", words=WORDS, **settings)
    assert not (tmp_path / "c").exists()
