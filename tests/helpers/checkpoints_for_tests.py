"""Folders that look like checkpoints."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rts_hf.training.checkpoints import (
    mark_complete,
)

OWN: dict[str, Any] = {
    "model": {"model": "resnet18", "pretrained": False},
    "data": {"dataset": "digits", "split_seed": 42, "cache_dir": None},
    "training": {
        "opt": "rts_pugd", "base": None, "radius": None, "learning_rate": 0.1, "seed": 42, "processes": 1,
        "momentum": 0.9, "per_device_train_batch_size": 64, "metric_for_best_model": "accuracy",
    },
}  # fmt: skip


def make(folder: Path, step: int, *, own: bool = True, marked: bool = True, arguments: Any = None) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    attributes = {"attributes": {"arguments": arguments or OWN}}
    state = {"global_step": step, "stateful_callbacks": {"RTSTrainer": attributes} if own else {}}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    save_file({"weight": torch.ones(3)}, checkpoint / "model.safetensors")
    torch.save({"state": {}}, checkpoint / "optimizer.pt")
    torch.save({}, checkpoint / "scheduler.pt")
    if marked:
        mark_complete(checkpoint)
    return checkpoint
