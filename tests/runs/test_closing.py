"""What follows a training takes a tenth of its time, and more only where all of it was asked for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from runs_for_tests import settings
from torch import nn

from rts_hf import DataArguments, ModelArguments, train
from rts_hf.reports import sharpness
from rts_hf.runs import stages

DATA = DataArguments(max_train_samples=600, max_eval_samples=100, image_size=8)


def slow_run(folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, **changes: Any) -> dict[str, Any]:
    """Return the record of a short run whose model takes so long for each image that it does not train on."""

    def wait(model: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        if not model.training:
            time.sleep(seconds * len((*args, *inputs.values())[0]))

    def make_slow_model(*args: Any) -> Any:
        model = stages.make_model(*args)
        model.register_forward_pre_hook(wait, with_kwargs=True)
        return model

    monkeypatch.setattr("rts_hf.runs.run.make_model", make_slow_model)
    short = {"opt": "sgd", "max_steps": 2, "eval_strategy": "no", "save_strategy": "no", "draw_figures": False}
    short |= {"load_best_model_at_end": False, "metric_for_best_model": None, "measure_sharpness": None}
    return train(ModelArguments(model="test_resnet"), DATA, settings(folder, **{**short, **changes}))


def test_of_a_slow_model_some_training_images_are_measured_and_no_sharpness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stages, "_LEAST_SECONDS", 2.0)
    record = slow_run(tmp_path, monkeypatch, seconds=0.01)
    assert record["metrics"]["train"]["images"] == 128
    assert "images" not in {**record["metrics"]["validation"], **record["metrics"]["test"]}
    assert record["sharpness"] is None
    assert [warning.split(":")[0] for warning in record["warnings"]] == ["Sharpness was not measured"]
    shown = capsys.readouterr().out
    assert "Measuring 128 of 600 training images, " in shown
    assert "\ntrain         128 of 600    " in shown
    assert "| train | 128 of 600 | " in (tmp_path / "README.md").read_text("utf-8")


def test_where_even_the_fewest_take_too_long_none_are_and_a_note_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "_LEAST_SECONDS", 1.0)
    record = slow_run(tmp_path, monkeypatch, seconds=0.01)
    assert record["metrics"]["train"] is None
    assert record["metrics"]["test"].keys() >= {"loss", "accuracy"}
    note = record["warnings"][0]
    assert note.startswith("Training images were not measured: 128 would take about 1.")
    assert note.endswith(
        "longer than the 1.0 s that a tenth of the run leaves for them; --measure_sharpness measures all."
    )
    assert "| train |" not in (tmp_path / "README.md").read_text("utf-8")


@pytest.mark.parametrize("asked", [None, True])
def test_all_is_measured_where_it_fits_or_was_asked_for(
    asked: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharpness, "IMAGES", 8)
    if asked:  # nothing would fit
        monkeypatch.setattr(stages, "_LEAST_SECONDS", 0.0)
        monkeypatch.setattr(stages, "_SHARE_OF_TIME", 0.0)
    record = slow_run(tmp_path, monkeypatch, seconds=0.0, measure_sharpness=asked)
    assert record["metrics"]["train"].keys() == record["metrics"]["test"].keys()
    if asked:
        assert record["sharpness"]["images"] == 8
        assert not record["warnings"]
