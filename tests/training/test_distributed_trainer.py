"""RTSTrainer takes the same updates in one batch, accumulated, and on two processes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import trainer_worker
from commands_for_tests import run_worker
from training_for_tests import Images, make_model, make_trainer

from rts_hf.optim.schedules import AlphaSchedule

COMMON = {"learning_rate": 0.05, "num_train_epochs": 1, "weight_decay": 1e-3}
ACCUMULATED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {"opt": "sgd"},
    "from the start": {"switch": "fixed", "switch_at": "0", "radius_beta_max": 0.5},
    "variance": {"switch": "gradient_variance", "switch_window": 2, "switch_init_steps": 2, "switch_gamma": 100.0},
    "gap": {
        "switch": "generalization_gap", "switch_base_epochs": 1, "switch_every": 1, "switch_mu": 1e-6,
        "eval_strategy": "steps", "eval_steps": 2,
    },
}  # fmt: skip


CLIMBING = {
    **SWITCHES["from the start"], **ACCUMULATED, "scale_beta_max": 0.7, "momentum": 0.0, "weight_decay": 0.0,
    "lr_scheduler_type": "constant",
}  # fmt: skip
# What two processes train, all in one launch
PAIRS: dict[str, dict[str, Any]] = {
    **{name: {**settings, "per_device_train_batch_size": 4} for name, settings in SWITCHES.items()},
    "sgd": {**SWITCHES["plain"], **ACCUMULATED},
    "half": {**SWITCHES["from the start"], "per_device_train_batch_size": 4, "perturb_fraction": 0.5},
    "together": {**CLIMBING, "sync_first_pass": True},
    "alone": {**CLIMBING, "sync_first_pass": False},
}
Found = tuple[list[torch.Tensor], dict[str, Any]]


def read(folder: Path) -> Found:
    return torch.load(folder / "weights.pt", weights_only=True), json.loads((folder / "found.json").read_text())


def run(folder: Path, **settings: Any) -> Found:
    folder.mkdir()
    trainer_worker.run(folder, {**COMMON, **settings})
    return read(folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """What two processes trained and sent."""
    folder = tmp_path_factory.mktemp("pairs")
    for name in PAIRS:
        (folder / name).mkdir()
    words = {name: COMMON | each for name, each in PAIRS.items()}
    output = run_worker("trainer_worker.py", str(folder), json.dumps(words), ACCELERATE_USE_CPU="true")
    missing = [name for name in PAIRS if not (folder / name / "found.json").is_file()]
    assert not missing, output
    return {name: read(folder / name) for name in PAIRS}


def difference(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    a, b = (torch.cat([tensor.flatten() for tensor in tensors]).double() for tensors in (left, right))
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("name", SWITCHES)
def test_batch_accumulation_and_processes_give_the_same_updates(
    tmp_path: Path, pairs: dict[str, Found], name: str
) -> None:
    settings = SWITCHES[name]
    whole, found = run(tmp_path / "whole", per_device_train_batch_size=8, **settings)
    assert found["updates"] == 6
    variants = {
        "4x2": run(tmp_path / "4x2", per_device_train_batch_size=4, gradient_accumulation_steps=2, **settings),
        "2 processes": pairs[name],
    }
    if name == "from the start":
        variants["2x4"] = run(
            tmp_path / "2x4", **settings, per_device_train_batch_size=2, gradient_accumulation_steps=4
        )
    for variant, (weights, other) in variants.items():
        assert difference(weights, whole) <= 1e-5, variant
        assert other["switched_at"] == found["switched_at"], variant
        for mine, theirs in zip(other["logs"], found["logs"], strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5), variant
    if name in ("variance", "gap"):
        assert found["switched_at"] == 4


def test_processes_share_the_images_of_a_second_pass(tmp_path: Path, pairs: dict[str, Found]) -> None:
    # two processes serve the micro-batches of one that accumulates two
    both, found = run(tmp_path / "both", **{**PAIRS["half"], "gradient_accumulation_steps": 2})
    whole, _ = run(tmp_path / "whole", **{**PAIRS["from the start"], "gradient_accumulation_steps": 2})
    assert pairs["half"][1]["updates"] == found["updates"] == 6
    assert difference(pairs["half"][0], both) <= 1e-5
    assert difference(both, whole) > 1e-3


def test_bytes_sent_between_processes(pairs: dict[str, Found]) -> None:
    sgd, twice, once = (pairs[name][1]["bytes"] for name in ("sgd", "together", "alone"))
    assert sgd > 0
    assert twice / sgd <= 2.04
    assert once / sgd <= 1.02


def climbing_alone(lr: float, radius: AlphaSchedule, scale: AlphaSchedule) -> list[torch.Tensor]:
    """Two processes that each climb their own gradient, with two micro-batches of two images, written out in one."""
    model, batches = make_model(), []
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Path(folder), model, Images(48), **COMMON, per_device_train_batch_size=2)
        batches = list(trainer.get_train_dataloader())  # of which each process takes every second one
    params = list(model.parameters())
    for update in range(6):
        progress, total = update / 5, [torch.zeros_like(p) for p in params]
        for process in range(2):
            mine = batches[4 * update + process : 4 * update + 4 : 2]

            def gradient(mine: list[dict[str, torch.Tensor]] = mine) -> tuple[torch.Tensor, ...]:
                loss = sum(model(**batch).loss for batch in mine) / 2
                return torch.autograd.grad(loss, params)

            g, start = gradient(), [p.detach().clone() for p in params]
            norm = torch.cat([(p * d).detach().flatten() for p, d in zip(params, g, strict=True)]).norm()
            with torch.no_grad():
                for p, d in zip(params, g, strict=True):
                    p.add_(radius(progress) * p.abs() * d / norm)
            g_star = gradient()
            with torch.no_grad():
                for p, w in zip(params, start, strict=True):
                    p.copy_(w)
            total = [t + (a + scale(progress) * b) / 2 for t, a, b in zip(total, g_star, g, strict=True)]
        norm = torch.cat([t.flatten() for t in total]).norm()
        with torch.no_grad():
            for p, t in zip(params, total, strict=True):
                p.sub_(lr * t / norm)
    return params


def test_each_process_climbs_its_own_gradient(pairs: dict[str, Found]) -> None:
    radius, scale = (AlphaSchedule("cosine_annealing", beta_min=0.0, beta_max=beta) for beta in (0.5, 0.7))
    expected = climbing_alone(COMMON["learning_rate"], radius, scale)
    assert difference(pairs["alone"][0], expected) <= 1e-6
    assert difference(pairs["together"][0], expected) > 1e-4
