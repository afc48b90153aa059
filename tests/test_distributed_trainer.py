"""RTSTrainer takes the same updates in one batch, accumulated, and on two processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import trainer_worker

WORKER = Path(__file__).parent / "trainer_worker.py"
COMMON = {"learning_rate": 0.05, "num_train_epochs": 1, "weight_decay": 1e-3}
SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {"opt": "sgd"},
    "from the start": {"switch": "fixed", "switch_at": "0", "radius_beta_max": 0.5},
    "variance": {"switch": "gradient_variance", "switch_window": 2, "switch_init_steps": 2, "switch_gamma": 100.0},
    "gap": {
        "switch": "generalization_gap", "switch_base_epochs": 1, "switch_every": 1, "switch_mu": 1e-6,
        "eval_strategy": "steps", "eval_steps": 2,
    },
}  # fmt: skip


def run(folder: Path, processes: int, **settings: Any) -> tuple[list[torch.Tensor], dict[str, Any]]:
    folder.mkdir()
    settings = {**COMMON, **settings}
    if processes == 1:
        trainer_worker.run(folder, settings)
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        result = subprocess.run(
            [*launcher, "--master_port", port, str(WORKER), str(folder), json.dumps(settings)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        )
        # the exit code is not asked: gloo sometimes aborts while the processes end, after all their work
        assert (folder / "found.json").is_file(), result.stdout + result.stderr
    return torch.load(folder / "weights.pt", weights_only=True), json.loads((folder / "found.json").read_text())


def difference(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    a, b = (torch.cat([tensor.flatten() for tensor in tensors]).double() for tensors in (left, right))
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("name", SWITCHES)
def test_batch_accumulation_and_processes_give_the_same_updates(tmp_path: Path, name: str) -> None:
    settings = SWITCHES[name]
    whole, found = run(tmp_path / "whole", 1, per_device_train_batch_size=8, **settings)
    assert found["updates"] == 6
    variants = {
        "4x2": run(tmp_path / "4x2", 1, per_device_train_batch_size=4, gradient_accumulation_steps=2, **settings),
        "2x4": run(tmp_path / "2x4", 1, per_device_train_batch_size=2, gradient_accumulation_steps=4, **settings),
        "2 processes": run(tmp_path / "two", 2, per_device_train_batch_size=4, **settings),
    }
    for variant, (weights, other) in variants.items():
        assert difference(weights, whole) <= 1e-5, variant
        assert other["switched_at"] == found["switched_at"], variant
        for mine, theirs in zip(other["logs"], found["logs"], strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5), variant
    if name in ("variance", "gap"):
        assert found["switched_at"] == 4


def test_bytes_sent_between_processes(tmp_path: Path) -> None:
    perturbed = {**SWITCHES["from the start"], "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    plain = {**SWITCHES["plain"], "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    _, sgd = run(tmp_path / "sgd", 2, **plain)
    _, twice = run(tmp_path / "twice", 2, **perturbed)
    _, once = run(tmp_path / "once", 2, sync_first_pass=False, **perturbed)
    assert sgd["bytes"] > 0
    assert twice["bytes"] / sgd["bytes"] <= 2.04
    assert once["bytes"] / sgd["bytes"] <= 1.02
