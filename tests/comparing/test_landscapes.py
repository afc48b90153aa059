"""Landscapes of finished runs: the model and its images come back from the folder as the run had them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from run_folder_for_tests import edit_json, write_run_folder
from runs_for_tests import settings

from rts_hf import DataArguments, ModelArguments, train
from rts_hf.comparing.landscapes import batches_of, lines_of_runs, load_run, load_run_data, surface_of_run
from rts_hf.reports.run_folder import read_record

DATA = DataArguments(max_train_samples=60, max_eval_samples=20, image_size=8, label_noise=0.3, split_seed=7)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = [tmp_path_factory.mktemp(opt) for opt in ("sgd", "sam")]
    for folder in folders:
        arguments = settings(folder, opt=folder.name[:3], num_train_epochs=1, draw_figures=False)
        train(ModelArguments(model="test_resnet"), DATA, arguments)
    return folders


def test_the_middle_of_the_surface_is_the_run_itself(runs: list[Path], tmp_path: Path) -> None:
    recorded = read_record(runs[0])["metrics"]["train"]
    surface = surface_of_run(runs[0], tmp_path / "s.npz", points=3, progress=False)
    assert surface.loss[1, 1] == pytest.approx(recorded["loss"], rel=1e-5), "label noise, split seed, image size"
    assert surface.accuracy[1, 1] == pytest.approx(recorded["accuracy"])
    again = surface_of_run(runs[0], tmp_path / "s.npz", points=3, progress=False)
    assert np.array_equal(again.loss, surface.loss)


def test_line_joins_the_runs(runs: list[Path], tmp_path: Path) -> None:
    (line,) = lines_of_runs(runs, [tmp_path / "l.npz"], points=3, margin=0.0, progress=False)
    (back,) = lines_of_runs(runs[::-1], [tmp_path / "b.npz"], points=3, margin=0.0, progress=False)
    assert line.loss == pytest.approx(back.loss[::-1], rel=1e-4)
    assert line.loss[0] != line.loss[2]


def test_images_are_those_of_the_run_without_augmentation(runs: list[Path]) -> None:
    data = load_run_data(runs[0], load_run(runs[0]))
    assert data.split_sizes == {"train": 60, "validation": 20, "test": 20}
    batches = batches_of(data, images=25)
    assert [len(batch["labels"]) for batch in batches] == [25]
    everything = data.train.without_augmentation().__getitems__(range(60)).tensors
    assert torch.equal(batches[0]["pixel_values"][1], everything["pixel_values"][2])
    assert sum(len(batch["labels"]) for batch in batches_of(data, images=999, split="validation")) == 20
    for arguments, message in (({"images": 0}, "images=0"), ({"images": 5, "split": "test"}, "read once")):
        with pytest.raises(ValueError, match=message):
            batches_of(data, **arguments)


def test_what_cannot_be_loaded_again_is_said(runs: list[Path], tmp_path: Path) -> None:
    records = write_run_folder(tmp_path / "records")
    with pytest.raises(FileNotFoundError, match=r"records' holds no model\.safetensors"):
        surface_of_run(records, tmp_path / "s.npz")
    with pytest.raises(FileNotFoundError, match=r"no run\.json"):
        surface_of_run(tmp_path, tmp_path / "s.npz")
    with pytest.raises(ValueError, match="differ in model architecture"):
        lines_of_runs([runs[0], records], [tmp_path / "l.npz"])
    model = load_run(runs[0])
    edit_json(runs[1] / "run.json", lambda record: record["data"].update(label_names=["cat", "dog"]))
    with pytest.raises(ValueError, match="trained on other data than 'digits'"):
        load_run_data(runs[1], model)
