"""Losses of subclasses, functions and models, in RTSTrainer and in transformers' own Trainer, on one process or two."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from distributed_worker import run_on_two
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot
from training_for_tests import Images, freeze_imports, make_model
from transformers import PrinterCallback, Trainer, TrainingArguments

from rts_hf import RTSTrainer, RTSTrainingArguments

LOSSES = ("calls super", "does not", "function", "none")
LABELS = ("hard", "soft", "smoothed")
CASES = [*itertools.product(LOSSES, (1, 4), LABELS)]
ACCUMULATED = [case for case in CASES if case[1] == 4]
SMOOTHING = 0.2


class Soft(Images):
    """Labels that are shares of the classes, as MixUp makes them."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = super().__getitem__(index)
        return {**item, "labels": 0.8 * one_hot(item["labels"], 3).float() + 0.2 * torch.tensor([0.5, 0.3, 0.2])}


def _own(self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
    outputs = model(pixel_values=inputs["pixel_values"])
    loss = 1.5 * cross_entropy(outputs.logits, inputs["labels"], label_smoothing=self.args.label_smoothing_factor)
    return (loss, outputs) if return_outputs else loss


def function(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
    """A loss for ``compute_loss_func``, which transformers hands the numbers in the labels of the whole update."""
    if num_items_in_batch is None:
        return cross_entropy(outputs.logits, labels)
    return cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


def _made(base: type[Trainer], loss: str, labels: str) -> type[Trainer]:
    if loss == "does not" or (loss in ("calls super", "none") and labels == "soft" and base is Trainer):
        factor = (
            1.5 if loss != "none" else 1.0
        )  # of soft labels, transformers itself would make many yes-or-no questions

        class Own(base):  # type: ignore[misc, valid-type]
            def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
                loss, outputs = _own(self, model, inputs, True)
                return (loss * factor / 1.5, outputs) if return_outputs else loss * factor / 1.5

        return Own
    if loss == "calls super":

        class Super(base):  # type: ignore[misc, valid-type]
            def compute_loss(self, *args: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
                loss, outputs = super().compute_loss(*args, return_outputs=True, **kwargs)
                return (1.5 * loss, outputs) if return_outputs else 1.5 * loss

        return Super
    return base


def train(kind: type[Trainer], loss: str, accumulation: int, labels: str, processes: int = 1, **settings: Any) -> Any:
    """Train two updates of 8 images, evaluate on hard labels, and return the trainer."""
    freeze_imports()
    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": 8 // accumulation // processes,
        "gradient_accumulation_steps": accumulation,
        "label_smoothing_factor": SMOOTHING if labels == "smoothed" else 0.0,
        "learning_rate": 0.05, "weight_decay": 0.0, "max_grad_norm": 0.0, "max_steps": 2, "logging_steps": 1, "seed": 3,
        "lr_scheduler_type": "constant", "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no",
        "load_best_model_at_end": False, "metric_for_best_model": None, "report_to": "none", "disable_tqdm": True,
        "use_cpu": True, "ddp_find_unused_parameters": False, "remove_unused_columns": False,
        "per_device_eval_batch_size": 6, **{name: settings.pop(name) for name in ("eval_steps",) if name in settings},
    }  # fmt: skip
    is_ours = issubclass(kind, RTSTrainer)
    more = {"opt": "momentum", "momentum": 0.0, **settings} if is_ours else {"optim": "sgd"}
    trainer = _made(kind, loss, labels)(
        model=make_model("test_vit"),
        args=(RTSTrainingArguments if is_ours else TrainingArguments)(**common, **more),
        train_dataset=(Soft if labels == "soft" else Images)(16),
        eval_dataset=Images(12, seed=1),
        compute_loss_func=function if loss == "function" else None,
    )
    trainer.remove_callback(PrinterCallback)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    return trainer


def differences(loss: str, accumulation: int, labels: str, processes: int = 1) -> dict[str, float]:
    """Return how far RTSTrainer is from transformers' Trainer: the largest difference of each kind of number."""
    ours = train(RTSTrainer, loss, accumulation, labels, processes)
    plain = train(Trainer, loss, accumulation, labels, processes)
    weights = zip(ours.model.parameters(), plain.model.parameters(), strict=True)
    found = {"weights": max(float((a - b).detach().abs().max()) for a, b in weights)}
    for key in ("loss", "grad_norm", "eval_loss"):
        pairs = [[e[key] for e in trainer.state.log_history if key in e] for trainer in (ours, plain)]
        found[key] = max(abs(a - b) for a, b in zip(*pairs, strict=True))
    logged = [entry for entry in ours.state.log_history if "train_loss" in entry and "eval_loss" in entry]
    found["train_loss is missing"] = float(not logged)
    return found


def on_two_processes() -> None:
    """Write what differs in each case to the file that the first argument names."""
    found = {repr(case): differences(*case, processes=2) for case in ACCUMULATED}
    if torch.distributed.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    run_on_two(on_two_processes)
