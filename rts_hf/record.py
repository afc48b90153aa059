"""What a run leaves behind about itself: run.json, from which figures and cards are made."""

from __future__ import annotations

import json
import math
import platform
import shlex
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from rts_hf.config import DataArguments, ModelArguments, RTSTrainingArguments
from rts_hf.data import DataBundle
from rts_hf.models import needs_rts_hf
from rts_hf.run_folder import FORMAT
from rts_hf.trainer import RTSTrainer

# Places, and arguments whose default the command line spells otherwise than the class
_LEFT_OUT = frozenset(
    {
        "accelerator_config",
        "cache_dir",
        "debug",
        "include_num_input_tokens_seen",
        "output_dir",
        "overwrite",
        "resume_from_checkpoint",
    }
)
_PACKAGES = ("torch", "timm", "transformers", "accelerate", "datasets", "evaluate", "rts_hf")


def describe_run(
    trainer: RTSTrainer,
    data: DataBundle,
    model_args: ModelArguments,
    data_args: DataArguments,
    metrics: dict[str, dict[str, float] | None],
    seconds: float,
) -> dict[str, Any]:
    """Return the record of a finished run, as plain values that JSON can hold.

    Args:
        trainer: After ``train``.
        data: What it was trained on.
        model_args, data_args: What the run was told, besides the trainer's own arguments.
        metrics: Loss and metrics of ``train``, ``validation`` and ``test``; None where there is no such split.
        seconds: Wall-clock time of the whole run.
    """
    args, state, model = trainer.args, trainer.state, trainer.accelerator.unwrap_model(trainer.model)
    config = model.config
    optimizer = describe_optimizer(trainer)
    best = None
    if state.best_metric is not None and args.load_best_model_at_end:
        best = {"metric": args.metric_for_best_model, "value": state.best_metric, "step": state.best_global_step}
    return _plain(
        {
            "format": FORMAT,
            "status": "complete",
            "command": command_line(model_args, data_args, args),
            "arguments": {
                "model": _settings(model_args, only_changed=False),
                "data": _settings(data_args, only_changed=False),
                "training": _settings(args, only_changed=False),
            },
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
            "seed": args.seed,
            "hardware": {
                "device": args.device.type,
                "processes": args.world_size,
                "cpu_threads": torch.get_num_threads(),
                "accelerator": torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else None,
            },
            "data": {
                "name": data.name,
                "source": data.source,
                "label_names": list(data.label_names),
                "image_size": data.image_size,
                "augmentation": data.augmentation,
                "splits": {"test": None, **data.split_sizes},
                "skipped": data.skipped,
                "mean": data.mean,
                "std": data.std,
            },
            "model": {
                "architecture": config.architecture,
                "parameters": sum(p.numel() for p in model.parameters()),
                "pretrained": model_args.pretrained,
                "checkpoint": Path(model_args.checkpoint).name if model_args.checkpoint else None,
                "needs_rts_hf": needs_rts_hf(config.architecture),
            },
            "optimizer": optimizer,
            "updates": state.global_step,
            "gradient_evaluations": trainer.gradient_evaluations,
            "floating_point_operations": state.total_flos,
            "epochs": round(state.epoch or 0, 6),
            "seconds": round(seconds, 1),
            "metrics": metrics,
            "best": best,
            "warnings": trainer.remarks(),
        }
    )


def describe_optimizer(trainer: RTSTrainer) -> dict[str, Any]:
    """Return the optimizer's settings and what its switch did."""
    args, rts, state = trainer.args, trainer.two_pass_optimizer, trainer.state
    optimizer: Any = trainer.optimizer
    described: dict[str, Any] = {
        "name": args.opt,
        "base": None if rts is None else args.base or "sgd",
        "learning_rate": args.learning_rate,
        "weight_decay": args.weight_decay,
        "momentum": optimizer.param_groups[0].get("momentum"),
        "total_steps": state.max_steps,
        **dict.fromkeys(("method", "radius", "scale", "perturb_every", "switch")),
    }
    if rts is None:
        return described
    schedules = {"radius": rts.radius_schedule, "scale": rts.scale_schedule}
    step = trainer.switched_at()
    return {
        **described,
        "total_steps": rts.total_steps,
        "method": rts.method,
        **{
            name: {"strategy": schedule.strategy, "beta_min": schedule.beta_min, "beta_max": schedule.beta_max}
            for name, schedule in schedules.items()
        },
        "perturb_every": rts.param_groups[0]["rts_perturb_every"],
        "switch": {
            "kind": rts.switch.name,
            "settings": rts.switch.settings(),
            "state": rts.switch.state_dict(),
            "step": step,
            "epoch": None if step is None else round(step * (state.epoch or 0) / max(state.global_step, 1), 3),
        },
    }


def command_line(model_args: ModelArguments, data_args: DataArguments, args: RTSTrainingArguments) -> str:
    """Return the command that runs this again: what, on what, with what, every other argument that is not at its
    default, and no token."""
    words = ["accelerate", "launch", "scripts/train.py"]
    always = {"model": model_args.model, "dataset": data_args.dataset, "opt": args.opt, "seed": args.seed}
    changed = [_settings(arguments, only_changed=True) for arguments in (model_args, data_args, args)]
    for name, value in {**always, **changed[0], **changed[1], **changed[2]}.items():
        if value is None:
            continue  # a command line cannot say None, and where it is not the default it came from one
        words.append(f"--{name}")
        words += [*map(str, value)] if isinstance(value, list) else [_word(value)]
    return shlex.join(words)


def _settings(arguments: Any, *, only_changed: bool) -> dict[str, Any]:
    """Return the arguments by name, or those that are not at their default; never places or secrets."""
    defaults = {f.name: f.default for f in fields(arguments) if f.init}
    if isinstance(arguments, RTSTrainingArguments):
        # of the Trainer's many arguments, those that this package sets itself are always worth telling
        own = [name for name in defaults if name in type(arguments).__annotations__]
        values = {**({} if only_changed else {name: getattr(arguments, name) for name in own}), **arguments.given}
    else:
        values = {name: getattr(arguments, name) for name in defaults}
        if only_changed:
            values = {name: value for name, value in values.items() if value != defaults[name]}
    return {
        name: getattr(value, "value", value)
        for name, value in values.items()
        if name not in _LEFT_OUT and not name.endswith("_token")
    }


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    """Return the value as JSON can hold it: NaN and infinity, which it cannot, become None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
