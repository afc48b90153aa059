"""What the Trainer writes opens without running code, and holds no token."""

from __future__ import annotations

import copy
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from training_for_tests import make_arguments, make_trainer

TOKEN = "hf_thisIsASecretOfTheTests"


def test_every_file_opens_without_pickles_and_none_holds_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}OfTheEnvironment")
    trainer = make_trainer(
        tmp_path, max_steps=2, save_strategy="steps", save_steps=1, hub_token=TOKEN, switch="fixed", switch_at="0",
        report_to="tensorboard",
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= names
    for path in files:
        assert TOKEN.encode() not in path.read_bytes(), path
        if path.suffix in (".pt", ".pth", ".bin", ".pkl"):
            torch.load(path, weights_only=True)
        else:
            assert path.suffix in (".json", ".safetensors") or "tfevents" in path.name, path
    printed = capfd.readouterr()
    assert TOKEN not in printed.out + printed.err + repr(trainer.args) + str(trainer.args)
    assert trainer.args.hub_token == TOKEN  # it is still there to push with


def test_pickles_and_copies_of_the_arguments_hold_no_token(tmp_path: Path) -> None:
    arguments = make_arguments(tmp_path, hub_token=TOKEN, radius="constant")
    assert TOKEN.encode() not in pickle.dumps(arguments)
    copied = copy.deepcopy(arguments)
    assert (copied.hub_token, copied.radius, copied.given["radius"]) == (None, "constant", "constant")
    assert arguments.hub_token == TOKEN
    assert "hub_token" not in arguments.given


def test_random_states_come_back_as_they_were(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer._save_rng_state(str(tmp_path))
    expected = random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()
    trainer._load_rng_state(str(tmp_path))
    assert (random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["rng_state.pth"]
