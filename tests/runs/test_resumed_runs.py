"""A run that SIGTERM stopped goes on where it was, and nothing else goes on in its folder."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from runs_for_tests import SMALL, settings
from safetensors.torch import load_file
from training_for_tests import SignalAt
from transformers import TrainerCallback

from rts_hf import DataArguments, ModelArguments, train
from rts_hf.reports.run_folder import read_record
from rts_hf.runs import stages as runs


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A run that got SIGTERM in its second epoch: (folder, record, what it printed)."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"

    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        create = runs.create_trainer

        def create_with_signal(*args: Any) -> Any:
            return create(*args, SignalAt(7))

        patch.setattr(runs, "create_trainer", create_with_signal)
        record = train(ModelArguments(model="test_resnet"), SMALL, settings(folder))
    return folder, record, printed.getvalue()


def test_sigterm_ends_a_run_with_a_checkpoint_and_a_record(interrupted: tuple[Path, dict, str]) -> None:
    folder, record, printed = interrupted
    assert (record["status"], record["updates"]) == ("interrupted", 7)
    assert read_record(folder)["status"] == "interrupted"
    assert re.search(r"Stopped by SIGTERM after update 7 of 15; go on with .*--resume_from_checkpoint last", printed)
    assert not (folder / "README.md").exists()


@pytest.mark.parametrize(
    ("model", "data", "changes", "message"),
    [
        ({"model": "test_vit"}, {}, {}, "another model .model test_resnet → test_vit"),
        ({}, {"split_seed": 7}, {}, "another data set .split_seed 42 → 7"),
        ({}, {"label_noise": 0.4}, {}, "another data set .label_noise 0.0 → 0.4"),
        ({}, {"dataset": "cifar10"}, {}, "another data set .dataset digits → cifar10"),
        ({}, {}, {"opt": "sgd"}, "other settings .opt rts_pugd → sgd"),
        ({}, {}, {"opt": "sam"}, "other settings .opt rts_pugd → sam"),
        ({}, {}, {"num_train_epochs": 9}, "num_train_epochs 3 → 9"),
        ({}, {}, {"seed": 5}, "seed 42 → 5"),
        ({}, {}, {"override_schedule": True, "opt": "sam"}, "opt rts_pugd → sam"),
    ],
)
def test_resuming_another_run_is_refused_before_any_work(
    interrupted: tuple[Path, dict, str], model: dict, data: dict, changes: dict, message: str
) -> None:
    folder, before, _ = interrupted
    arguments = (
        ModelArguments(**{"model": "test_resnet", **model}),
        DataArguments(**{**vars(SMALL), **data}),
        settings(folder, resume_from_checkpoint="last", **changes),
    )
    with pytest.raises(ValueError, match=message):
        train(*arguments)
    assert read_record(folder) == before


def test_a_resumed_run_is_the_whole_one_and_a_finished_one_is_left_alone(
    interrupted: tuple[Path, dict, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(interrupted[0], folder)
    asked = {"measure_sharpness": True, "draw_figures": False}  # of which the first command had not asked for one
    whole = train(ModelArguments(model="test_resnet"), SMALL, settings(tmp_path / "whole", **asked))
    resume = {"resume_from_checkpoint": "last", **asked}
    resumed = train(ModelArguments(model="test_resnet"), SMALL, settings(folder, **resume))
    differing = {key for key in whole if whole[key] != resumed[key]}
    assert whole["sharpness"]["hessian_eigenvalue"] > 0
    assert differing <= {"seconds", "resumed_at"}
    assert resumed["resumed_at"] == [7]
    assert resumed["seconds"] > interrupted[1]["seconds"]
    weights = [(path / "model.safetensors").read_bytes() for path in (folder, tmp_path / "whole")]
    assert weights[0] == weights[1]
    timed = ("runtime", "per_second")
    logs = [
        [
            {key: value for key, value in entry.items() if not key.endswith(timed)}
            for entry in json.loads((path / "trainer_state.json").read_text())["log_history"]
        ]
        for path in (folder, tmp_path / "whole")
    ]
    assert logs[0] == logs[1]
    assert "resumed after update 7" in (folder / "README.md").read_text()
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    again = train(ModelArguments(model="test_resnet"), SMALL, settings(folder, **resume))
    assert again == resumed
    assert "is already finished, after 15 updates" in capsys.readouterr().out
    assert files == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_change_of_settings_is_told(interrupted: tuple[Path, dict, str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(interrupted[0], folder)
    changed = {"switch_at": "0.6", "override_schedule": True, "resume_from_checkpoint": "last", "draw_figures": False}
    record = train(ModelArguments(model="test_resnet"), SMALL, settings(folder, **changed))
    told = "Resumed with other settings at update 7: switch_at 0.5 → 0.6."
    assert told in record["warnings"]
    assert "Resumed with other settings at update 7" in (folder / "README.md").read_text()


def test_a_run_with_channels_innermost_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers, create = [], runs.create_trainer
    callbacks: list[TrainerCallback] = []

    def create_and_note(*args: Any) -> Any:
        trainers.append(create(*args, *callbacks))
        return trainers[-1]

    monkeypatch.setattr(runs, "create_trainer", create_and_note)
    model = {"model": "test_resnet", "channels_last": True}
    train(ModelArguments(**model), SMALL, settings(tmp_path / "whole", draw_figures=False))
    callbacks.append(SignalAt(7))
    assert train(ModelArguments(**model), SMALL, settings(tmp_path / "halves"))["status"] == "interrupted"
    callbacks.clear()
    resume = {"resume_from_checkpoint": "last", "draw_figures": False}
    train(ModelArguments(**model), SMALL, settings(tmp_path / "halves", **resume))
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halves")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for trainer in trainers:
        maps = [param for param in trainer.model.parameters() if param.ndim == 4 and min(param.shape[1:]) > 1]
        assert maps
        for param in maps:
            assert param.is_contiguous(memory_format=torch.channels_last)
            assert trainer.optimizer.state[param]["momentum_buffer"].stride() == param.stride()
    assert "--channels_last" in read_record(tmp_path / "whole")["command"]
