"""The sharpness in a run's record: the same for the same weights, and never the end of a run."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folder_for_tests import edit_json, write_run_folder
from runs_for_tests import SMALL, settings

from rts_hf import ModelArguments, RTSTrainer, RTSTrainingArguments, build_model, load_data, train
from rts_hf.reports import sharpness as run_sharpness
from rts_hf.reports.card import render_card
from rts_hf.reports.run_folder import read_record
from rts_hf.reports.sharpness import cross_entropy_sum, hessian_eigenvalue, measure_run_sharpness
from rts_hf.runs.console import summary

MEASURED = {
    "hessian_eigenvalue": 4.832, "hessian_iterations": 3, "hessian_converged": True, "worst_case_increase": 0.0956,
    "loss": 0.0032, "radius": 0.2, "ball": "adaptive", "steps": 4, "images": 128, "split": "train",
}  # fmt: skip


def quick(folder: Path, **changes: Any) -> RTSTrainingArguments:
    return settings(folder, opt="sgd", max_steps=2, draw_figures=False, **changes)


def digits_model() -> tuple[torch.nn.Module, Any]:
    data = load_data("digits", image_size=8)
    torch.manual_seed(0)
    names = {"label_names": data.label_names, "image_size": 8, "mean": data.mean, "std": data.std}
    return build_model("test_resnet", **names), data.train.without_augmentation()


def test_measured_on_images_from_all_over_the_training_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_sharpness, "IMAGES", 20)
    model, images = digits_model()
    random = torch.get_rng_state()
    found, reason = measure_run_sharpness(model, images, image_size=8)
    assert torch.equal(torch.get_rng_state(), random)
    assert reason is None
    assert found is not None
    assert found.keys() == MEASURED.keys()
    assert json.loads(json.dumps(found)) == found
    assert (found["images"], found["split"], found["ball"]) == (20, "train", "adaptive")
    chosen = [index * len(images) // 20 for index in range(20)]
    batch = images.__getitems__(chosen).tensors
    with torch.no_grad():
        loss = cross_entropy_sum(model.eval(), batch).item() / 20
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    exact = hessian_eigenvalue(model, [batch], iterations=20, tolerance=1e-4)
    assert found["hessian_eigenvalue"] == pytest.approx(exact.value, rel=0.1)
    assert found["worst_case_increase"] > 0
    assert measure_run_sharpness(model, images, image_size=8)[0] == found


def test_what_is_not_finite_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_sharpness, "IMAGES", 4)
    model, images = digits_model()
    with torch.no_grad():
        next(model.parameters())[0] = math.nan
    found, reason = measure_run_sharpness(model, images, image_size=8)
    assert reason is None
    assert found is not None
    assert [found[name] for name in ("hessian_eigenvalue", "worst_case_increase", "loss")] == [None] * 3
    assert "Hessian is not finite (power iteration)" in card_with(found)


def test_a_run_records_it_and_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = train(ModelArguments(model="test_resnet"), SMALL, quick(tmp_path, measure_sharpness=True))
    measured = record["sharpness"]
    assert measured == read_record(tmp_path)["sharpness"]
    assert measured["images"] == 120
    assert measured["worst_case_increase"] > 0
    assert "Sharpness             Hessian's largest eigenvalue " in capsys.readouterr().out
    assert "Sharpness of the weights kept, w, on 120 training images" in (tmp_path / "README.md").read_text("utf-8")


def test_a_failure_costs_the_figure_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("derivative for aten::x is not implemented\nmore")

    monkeypatch.setattr(run_sharpness, "hessian_eigenvalue", fail)
    record = train(ModelArguments(model="test_resnet"), SMALL, quick(tmp_path, measure_sharpness=True))
    assert (record["status"], record["sharpness"]) == ("complete", None)
    assert record["warnings"] == ["Sharpness was not measured: derivative for aten::x is not implemented"]
    monkeypatch.setattr(RTSTrainer, "predict", fail)  # nothing is measured again
    again = quick(tmp_path, measure_sharpness=False, resume_from_checkpoint="last")
    assert train(ModelArguments(model="test_resnet"), SMALL, again) == record


def test_it_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_sharpness, "hessian_eigenvalue", None)
    off = quick(tmp_path, measure_sharpness=False)
    record = train(ModelArguments(model="test_resnet"), SMALL, off)
    assert record["sharpness"] is None
    assert "--measure_sharpness False" in record["command"]
    assert "Sharpness of the weights" not in (tmp_path / "README.md").read_text("utf-8")


def card_with(measured: dict[str, Any] | None, kind: str = "rts_pugd") -> str:
    with tempfile.TemporaryDirectory() as folder:
        run = write_run_folder(Path(folder) / "run", kind)
        edit_json(run / "run.json", lambda record: record.update({"sharpness": measured}))
        return render_card(run)


@pytest.mark.parametrize("kind", ["rts_pugd", "sgd"])
def test_the_card_says_what_it_is(kind: str) -> None:
    card = card_with(MEASURED, kind)
    optimizer = card[card.index("### The optimizer") : card.index("## Limits")]
    assert (
        "\n\nSharpness of the weights kept, w, on 128 training images without augmentation: the largest eigenvalue of "
        "the loss's\nHessian is 4.832 (power iteration), and the highest loss found where ‖ε/|w|‖ ≤ 0.2 is 0.0956 "
        "higher at w + ε\nthan at w (gradient ascent, 4 steps; loss at w: 0.0032).\n"
    ) in optimizer
    assert "\n\n\n" not in optimizer.replace("```\n\n\n", "")
    assert "Hessian is at least 4.832" in card_with({**MEASURED, "hessian_converged": False}, kind)
    assert "where ‖ε‖ ≤ 0.2" in card_with({**MEASURED, "ball": "plain"}, kind)
    without = card_with(None, kind)
    assert "Sharpness of the weights" not in without
    assert card.replace(card[card.index("\nSharpness of the weights") : card.index("0.0032).\n") + 9], "") == without


def test_the_console_shows_a_dash_for_none(tmp_path: Path) -> None:
    record = read_record(write_run_folder(tmp_path / "run"))
    assert "Sharpness" not in summary(record, "run")
    text = summary({**record, "sharpness": {**MEASURED, "hessian_eigenvalue": None}}, "run")
    assert "Sharpness             Hessian's largest eigenvalue –, worst loss found nearby 0.096 higher" in text


@pytest.mark.parametrize(
    ("seconds", "images", "told"), [(math.inf, 128, "21.9 s"), (8.0, 128, "7.6 s"), (6.0, 64, "5.8 s"), (0.9, None, "")]
)
def test_it_takes_no_longer_than_it_may(
    monkeypatch: pytest.MonkeyPatch, seconds: float, images: int | None, told: str
) -> None:
    """At a millisecond an image; the Hessian itself is not asked for."""
    monkeypatch.setattr(run_sharpness, "_seconds_of_an_image", lambda *args: 0.001)
    asked: list[int] = []

    def stop(*args: Any, iterations: int, **kwargs: Any) -> None:
        asked.append(iterations)
        raise RuntimeError("enough")

    monkeypatch.setattr(run_sharpness, "hessian_eigenvalue", stop)
    said: list[str] = []
    model, train_images = digits_model()
    found, reason = measure_run_sharpness(model, train_images, image_size=8, seconds=seconds, tell=said.append)
    assert found is None
    if images is None:
        assert said == asked == []
        assert str(reason).startswith("Sharpness was not measured: on 16 images it would take about 0.9 s, longer than")
    else:
        assert said == [f"Measuring sharpness on {images} training images, {told} at most"]
        assert asked == [{math.inf: 40, 8.0: 12, 6.0: 20}[seconds]]


def test_a_short_run_measures_none_by_default_and_all_on_demand(tmp_path: Path) -> None:
    """A tenth of a second of training leaves none for it, or next to none."""
    record = train(ModelArguments(model="test_resnet"), SMALL, quick(tmp_path, measure_sharpness=None))
    assert record["sharpness"] is None or record["sharpness"]["images"] < 120 or record["seconds"] > 3
    assert "--measure_sharpness" not in record["command"]
