"""What training arguments may not say, alone or together."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import get_scheduler
from transformers.optimization import GreedyLR


class _Range(NamedTuple):
    """What numbers are legal; ``above`` where the lowest one itself is not."""

    low: float = 0
    high: float = math.inf
    whole: bool = False
    above: bool = False


_RANGES = {
    "learning_rate": _Range(),
    "weight_decay": _Range(),
    "momentum": _Range(high=1),
    "max_grad_norm": _Range(),
    "label_smoothing_factor": _Range(high=1),
    "num_train_epochs": _Range(above=True),
    "gradient_accumulation_steps": _Range(1, whole=True),
    "per_device_train_batch_size": _Range(1, whole=True),
    "per_device_eval_batch_size": _Range(1, whole=True),
    "early_stopping_patience": _Range(1, whole=True),
    "max_skipped_updates": _Range(1, whole=True),
    "save_total_limit": _Range(1, whole=True),
    "dataloader_num_workers": _Range(whole=True),
    "seed": _Range(high=2**32 - 1, whole=True),
}


def check_ranges(args: Any) -> None:
    """Raise ValueError for a number outside its range, or an interval that is not positive."""
    for name, legal in _RANGES.items():
        value = getattr(args, name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int if legal.whole else (int, float)):
            raise ValueError(f"{name}={value!r} must be a {'whole ' if legal.whole else ''}number.")
        is_high_enough = value > legal.low if legal.above else value >= legal.low
        if not is_high_enough or value > legal.high or not math.isfinite(value):
            bound = f"{'greater than' if legal.above else 'at least'} {legal.low}"
            limit = "" if math.isinf(legal.high) else f" and at most {legal.high}"
            raise ValueError(f"{name}={value!r} must be {bound}{limit}.")
    if args.max_steps == 0 or args.max_steps < -1:
        raise ValueError(f"max_steps={args.max_steps!r} must be at least 1, or -1 to go by num_train_epochs.")
    for kind in ("eval", "save", "logging"):
        every = getattr(args, f"{kind}_steps")
        if _text(getattr(args, f"{kind}_strategy")) == "steps" and every is not None and not every > 0:
            raise ValueError(f"{kind}_steps={every!r} must be greater than 0 with {kind}_strategy='steps'.")


def check_scheduler(args: Any) -> None:
    """Raise ValueError for a learning rate schedule that cannot be built or followed, on one of ten updates."""
    given = (
        f"lr_scheduler_type={_text(args.lr_scheduler_type)!r} cannot be built with lr_scheduler_kwargs="
        f"{args.lr_scheduler_kwargs!r}"
    )
    remedy = "give settings that it takes there, as JSON, or choose another"
    rates = []
    try:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
        scheduler = get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs or {}),
        )
        metric = [0.0] if isinstance(scheduler, ReduceLROnPlateau | GreedyLR) else []
        for _ in range(10):
            optimizer.step()
            scheduler.step(*metric)
            rates.append(float(optimizer.param_groups[0]["lr"]))
    except Exception as error:  # of any kind: what the settings are is seen only where they are used
        raise ValueError(f"{given}: {error}; {remedy}.") from error
    for rate in rates:
        if not 0 <= rate < math.inf:
            raise ValueError(f"{given}: the learning rate would become {rate:g}; {remedy}.")


def check_best_model(args: Any) -> None:
    """Raise ValueError where the best weights, or the lack of better ones, would not be measured."""
    evaluates, saves = _text(args.eval_strategy), _text(args.save_strategy)
    if args.early_stopping_patience is not None and (evaluates == "no" or args.metric_for_best_model is None):
        raise ValueError(
            f"early_stopping_patience={args.early_stopping_patience!r} waits for better evaluations, but eval_strategy="
            f"{evaluates!r} and metric_for_best_model={args.metric_for_best_model!r}; set both, or leave it out."
        )
    if not args.load_best_model_at_end:
        return
    if evaluates == "no":
        raise ValueError(
            "eval_strategy='no' leaves nothing to tell the best weights by; add load_best_model_at_end=False "
            "(--no_load_best_model_at_end), or evaluate."
        )
    if saves not in (evaluates, "best"):
        raise ValueError(
            f"save_strategy={saves!r} with eval_strategy={evaluates!r} would not save what was evaluated, as "
            "load_best_model_at_end needs it; give both alike, or load_best_model_at_end=False "
            "(--no_load_best_model_at_end)."
        )


def warn_of_a_single_image(args: Any, images: int) -> None:
    """Warn where the last batch of every epoch is a single image.

    Args:
        args: Training arguments.
        images: Of the training split.
    """
    batch = args.train_batch_size
    if args.world_size == 1 and images > 1 < batch and images % batch == 1 and not args.dataloader_drop_last:
        alone = math.ceil(images / batch) % args.gradient_accumulation_steps == 1 % args.gradient_accumulation_steps
        step = "a unit step goes as far on it as on a whole batch, and " if alone else ""
        warnings.warn(
            f"per_device_train_batch_size={args.per_device_train_batch_size} leaves a single one of the {images} "
            f"training images for the last batch of every epoch: {step}BatchNorm's statistics follow it; set "
            "dataloader_drop_last, or another batch size.",
            UserWarning,
            stacklevel=2,
        )


def check_without_metrics(args: Any, model: str) -> None:
    """Raise ValueError where the best weights are to be chosen by what is not measured of a kind of model."""
    if args.load_best_model_at_end and args.metric_for_best_model not in ("loss", "eval_loss"):
        raise ValueError(
            f"metric_for_best_model={args.metric_for_best_model!r} is not measured: {model} is not known to give "
            "logits of classes; pass compute_metrics, or metric_for_best_model='loss'."
        )


def check_together(args: Any) -> None:
    """Raise ValueError for arguments that contradict each other."""
    if not args.sync_first_pass and (args.fsdp or args.ddp_static_graph):
        given = f"fsdp={args.fsdp!r}" if args.fsdp else "ddp_static_graph=True"
        raise ValueError(
            f"sync_first_pass=False leaves gradients on their process, which {given} does not allow; use plain "
            "DistributedDataParallel, or sync_first_pass=True."
        )
    if args.switch == "gradient_variance" and args.max_grad_norm > 0:
        raise ValueError(
            f"max_grad_norm={args.max_grad_norm!r} clips the gradients whose norms switch='gradient_variance' "
            "listens to; set max_grad_norm=0 (a unit gradient needs no clipping), or use another switch."
        )
    if args.switch == "generalization_gap" and args.eval_strategy == "no":
        raise ValueError(
            "switch='generalization_gap' listens to evaluations, but eval_strategy='no'; use eval_strategy='epoch'."
        )
    if args.overwrite and args.resume_from_checkpoint:
        raise ValueError(
            f"overwrite=True deletes the run that resume_from_checkpoint={args.resume_from_checkpoint!r} continues"
            "; leave one out."
        )


def _text(value: Any) -> str:
    """Return what the command line calls a value: before the base class has read it, it is that already."""
    return str(getattr(value, "value", value))


_INSTEAD = "leave torch_compile out, or try torch_compile_backend='aot_eager' (no compiler needed)"


def check_backend(name: str | None) -> None:
    """Refuse a ``torch_compile_backend`` that torch or accelerate does not have here.

    >>> check_backend("aot_eager")

    Raises:
        ValueError: With the names that both have.
    """
    if name is None:
        return
    from accelerate.utils import DynamoBackend

    known = sorted({backend.value.lower() for backend in DynamoBackend} & set(torch.compiler.list_backends(())))
    if name.lower() not in known:
        raise ValueError(
            f"torch_compile_backend={name!r} is not a backend of this torch and accelerate ({', '.join(known)}); "
            "choose one of these, or leave torch_compile out."
        )


@contextmanager
def refusals_explained(name: str | None) -> Iterator[None]:
    """Raise RuntimeError, with what to do, where a backend refuses a model inside the ``with`` block.

    Args:
        name: The backend, where the training arguments name it.
    """
    try:
        yield
    except Exception as error:
        dynamo = sys.modules.get("torch._dynamo.exc")  # loaded by the first compilation
        if dynamo is None or not isinstance(error, dynamo.TorchDynamoException):
            raise
        backend = f"torch_compile_backend={name!r}" if name else "torch.compile"
        reason = " ".join(str(error).split("\n\n")[0].split())  # what follows are hints at torch's own debugging
        raise RuntimeError(
            f"{backend} cannot compile this model ({type(error).__name__}: {reason}); {_INSTEAD}. The weights are "
            "those of the last update."
        ) from error
