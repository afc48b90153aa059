"""FSDP2 on two processes, through accelerate and through the Trainer's own arguments, equals the unsharded update."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands_for_tests import run_worker
from fsdp_worker import SCENARIOS, TRAINER
from training_for_tests import Images, make_model, make_trainer, training_logs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def output(folder: Path) -> str:
    return run_worker("fsdp_worker.py", str(folder), ACCELERATE_TORCH_DEVICE="cpu")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(scenario: str, output: str) -> None:
    assert f"{scenario} passed" in output, output


@pytest.fixture(scope="module")
def unsharded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("unsharded")
    trainer = make_trainer(folder, make_model(), Images(48), per_device_train_batch_size=8, **TRAINER)
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", ["SHARDED_STATE_DICT", "FULL_STATE_DICT"])
def test_the_sharded_trainer_takes_the_unsharded_updates(kind: str, folder: Path, output: str, unsharded: Any) -> None:
    assert f"trainer_{kind.split('_')[0].lower()} passed" in output, output
    weights = torch.load(folder / f"{kind}.pt", weights_only=True)
    left = torch.cat([weight.flatten() for weight in weights]).double()
    right = torch.cat([p.detach().flatten() for p in unsharded.model.parameters()]).double()
    assert (left - right).norm() / right.norm() <= 1e-5
    for mine, theirs in zip(json.loads((folder / f"{kind}.json").read_text()), training_logs(unsharded), strict=True):
        for name, value in mine.items():
            expected = theirs.get(name)
            assert value == (expected if expected is None else pytest.approx(expected, rel=1e-4, abs=1e-4)), name


def test_a_full_checkpoint_holds_whole_weights_as_safetensors(folder: Path, output: str) -> None:
    from safetensors.torch import load_file

    saved = load_file(folder / "FULL_STATE_DICT" / "checkpoint-6" / "model.safetensors")
    weights = torch.load(folder / "FULL_STATE_DICT.pt", weights_only=True)
    assert sum(tensor.numel() for tensor in saved.values()) == sum(weight.numel() for weight in weights)
    left, right = (float(sum(t.detach().double().sum() for t in ts)) for ts in (saved.values(), weights))
    assert left == pytest.approx(right, rel=1e-9)
