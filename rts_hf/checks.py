"""What training arguments may not say, alone or together."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import get_scheduler

# Argument → lowest value, whether that itself is legal, highest value.
_RANGES: dict[str, tuple[float, bool, float]] = {
    "learning_rate": (0, True, math.inf),
    "weight_decay": (0, True, math.inf),
    "momentum": (0, True, 1),
    "max_grad_norm": (0, True, math.inf),
    "label_smoothing_factor": (0, True, 1),
    "num_train_epochs": (0, False, math.inf),
    "gradient_accumulation_steps": (1, True, math.inf),
    "per_device_train_batch_size": (1, True, math.inf),
    "per_device_eval_batch_size": (1, True, math.inf),
    "early_stopping_patience": (1, True, math.inf),
    "max_skipped_updates": (1, True, math.inf),
    "save_total_limit": (1, True, math.inf),
    "dataloader_num_workers": (0, True, math.inf),
    "seed": (0, True, 2**32 - 1),
}
_WHOLE = frozenset(
    {
        "gradient_accumulation_steps",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "early_stopping_patience",
        "max_skipped_updates",
        "save_total_limit",
        "dataloader_num_workers",
        "seed",
    }
)
# Arguments of TrainingArguments that do nothing here, and what to do instead.
_WITHOUT_EFFECT = {
    "do_train": "the training command always trains",
    "do_predict": "the test split is always measured at the end",
    "remove_unused_columns": "batches are ready as they are, and without their image column nothing could be trained",
}


def check_ranges(args: Any) -> None:
    """Raise ValueError for a number outside its range, or an interval that is not positive."""
    for name, (low, includes_low, high) in _RANGES.items():
        value = getattr(args, name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int if name in _WHOLE else (int, float)):
            raise ValueError(f"{name}={value!r} must be a {'whole ' if name in _WHOLE else ''}number.")
        is_high_enough = value >= low if includes_low else value > low
        if not is_high_enough or value > high or not math.isfinite(value):
            bound = f"at least {low}" if includes_low else f"greater than {low}"
            limit = "" if math.isinf(high) else f" and at most {high}"
            raise ValueError(f"{name}={value!r} must be {bound}{limit}.")
    if args.max_steps == 0 or args.max_steps < -1:
        raise ValueError(f"max_steps={args.max_steps!r} must be at least 1, or -1 to go by num_train_epochs.")
    for kind in ("eval", "save", "logging"):
        every = getattr(args, f"{kind}_steps")
        if str(getattr(getattr(args, f"{kind}_strategy"), "value", "")) == "steps" and not (every and every > 0):
            raise ValueError(f"{kind}_steps={every!r} must be greater than 0 with {kind}_strategy='steps'.")


def check_effects(given: dict[str, Any]) -> None:
    """Raise ValueError for an argument that would have no effect, or one that nothing could be trained with."""
    for name, reason in _WITHOUT_EFFECT.items():
        if given.get(name):
            raise ValueError(f"{name}={given[name]!r} cannot be set: {reason}; leave it out.")


def check_scheduler(args: Any) -> None:
    """Raise ValueError for a learning rate schedule that cannot be built, for instance for want of its settings."""
    try:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        arguments = dict(args.lr_scheduler_kwargs or {})
        get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=arguments,
        )
    except (TypeError, ValueError) as error:
        name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        raise ValueError(
            f"lr_scheduler_type={name!r} cannot be built with lr_scheduler_kwargs={args.lr_scheduler_kwargs!r}: "
            f"{error}; give its settings as JSON with lr_scheduler_kwargs, or choose another."
        ) from error


def check_best_model(args: Any) -> None:
    """Raise ValueError where the best weights, or the lack of better ones, would not be measured."""
    evaluates, saves = (str(getattr(value, "value", value)) for value in (args.eval_strategy, args.save_strategy))
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
