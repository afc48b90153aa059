"""Tiny images, models and trainers that the tests share."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainerCallback

from rts_hf import RTSTrainer, RTSTrainingArguments, build_model
from rts_hf.recipes.recorded import find_recipe

_MADE = itertools.count()
LABELS = ("cat", "dog", "owl")
SIZE = 16


class Images(Dataset[dict[str, Tensor]]):
    """Random images whose labels can be learned: the brightest third tells the class."""

    def __init__(self, count: int = 26, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % len(LABELS)
        self.pixels = torch.randn(count, 3, SIZE, SIZE, generator=generator)
        for index, label in enumerate(self.labels):
            self.pixels[index, int(label)] += 1.0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


class SignalAt(TrainerCallback):
    """Sends SIGTERM to this process during an update."""

    def __init__(self, update: int) -> None:
        self.update = update

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.update:
            os.kill(os.getpid(), signal.SIGTERM)


class StopAt(TrainerCallback):
    """Ends the run with a checkpoint after an update."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_save = control.should_training_stop = state.global_step == self.step
        return control


def make_model(name: str = "test_vit", seed: int = 0, **model_args: Any) -> Any:
    torch.manual_seed(seed)
    depth = {"depth": 2} if name == "test_vit" else {}  # of 6: the second drops paths where the first cannot
    changes = {**depth, **model_args} or None
    return build_model(name, label_names=LABELS, image_size=SIZE, mean=[0.5] * 3, std=[0.5] * 3, model_args=changes)


def make_arguments(folder: Path, **settings: Any) -> RTSTrainingArguments:
    """Return arguments of the paper's method where the settings say nothing else, whatever the defaults are."""
    opt = settings.get("opt", "rts_pugd").removeprefix("lookahead_")
    paper = find_recipe("paper").defaults({**settings, "opt": opt})
    quiet = {
        "save_strategy": "no",
        "lr_scheduler_type": "cosine",
        "weight_decay": 5e-4,
        "disable_tqdm": True,
        "logging_steps": 1,
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 0.05,
        "seed": 3,
    }
    return RTSTrainingArguments(output_dir=str(folder), **{**quiet, **paper, **settings})


def freeze_imports() -> None:
    """Keep what was imported from being collected: accelerate does so before each training, a third of its time."""
    if next(_MADE) < 3:
        gc.collect()
        gc.freeze()


def make_trainer(folder: Path, model: Any = None, train: Dataset | None = None, **settings: Any) -> RTSTrainer:
    freeze_imports()
    keywords = {name: settings.pop(name) for name in ("callbacks", "optimizers", "compute_metrics") if name in settings}
    return RTSTrainer(
        model=make_model() if model is None else model,
        args=make_arguments(folder, **settings),
        train_dataset=Images() if train is None else train,
        eval_dataset=Images(12, seed=1),
        **keywords,
    )


def stopped(folder: Path, step: int, **settings: Any) -> str:
    """Return the checkpoint of a run that ended early."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_trainer(folder, callbacks=[StopAt(step)], **settings).train()
    return str(folder / f"checkpoint-{step}")


def training_logs(trainer: RTSTrainer) -> list[dict[str, Any]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]
