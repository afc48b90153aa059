"""What a run leaves behind about itself: run.json, from which figures and cards are made."""

from __future__ import annotations

import json
import math
import platform
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from rts_hf.data.loading import DataBundle
from rts_hf.models.classifiers import needs_rts_hf, plain_name
from rts_hf.recipes.recorded import find_recipe
from rts_hf.reports.run_folder import FORMAT
from rts_hf.runs.arguments import changed_settings
from rts_hf.training.arguments import DataArguments, ModelArguments, RTSTrainingArguments, settings_of
from rts_hf.training.checkpoints import FREE_SETTINGS
from rts_hf.training.trainer import RTSTrainer

_PACKAGES = ("torch", "timm", "transformers", "accelerate", "datasets", "evaluate", "rts_hf")


def describe_run(
    trainer: RTSTrainer,
    data: DataBundle,
    model_args: ModelArguments,
    data_args: DataArguments,
    metrics: dict[str, dict[str, float] | None],
    seconds: float,
    status: str = "complete",
) -> dict[str, Any]:
    """Return the record of a run, as plain values that JSON can hold.

    Args:
        trainer: After ``train``, or, for a run that is not ``complete``, before it.
        data: What it was trained on.
        model_args, data_args: What the run was told, besides the trainer's own arguments.
        metrics: Loss and metrics of ``train``, ``validation`` and ``test``; None where there is no such split.
        seconds: Wall-clock time of the whole run, all its commands together.
        status: ``training``, ``interrupted`` (by SIGTERM), ``diverged`` (too many updates in a row were skipped),
            ``stopped`` (by any other error) or ``complete``.
    """
    args, state, model = trainer.args, trainer.state, trainer.accelerator.unwrap_model(trainer.model)
    config = model.config
    optimizer = describe_optimizer(trainer)
    changes = [f"Resumed with other settings at {change}." for change in trainer.changes]
    best = None
    if state.best_metric is not None and args.load_best_model_at_end:
        best = {"metric": args.metric_for_best_model, "value": state.best_metric, "step": state.best_global_step}
    return _plain(
        {
            "format": FORMAT,
            "status": status,
            "command": command_line(model_args, data_args, args),
            "arguments": {
                "model": settings_of(model_args),
                "data": settings_of(data_args),
                "training": settings_of(args),
            },
            "recipe": describe_recipe(model_args, data_args, args),
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
                "revision": data.revision,
                "package": data.package,
                "label_names": list(data.label_names),
                "image_size": data.image_size,
                "augmentation": data.augmentation,
                "splits": {"test": None, **data.split_sizes},
                "split_sources": data.split_sources,
                "skipped": data.skipped,
                "train_fraction": data.train_fraction,
                "label_noise": data.label_noise,
                "mean": data.mean,
                "std": data.std,
                "normalisation": data.normalisation,
            },
            "model": {
                "architecture": plain_name(config.architecture),
                "parameters": sum(p.numel() for p in model.parameters()),
                "pretrained": model_args.pretrained_weights is not None,
                "checkpoint": Path(model_args.checkpoint).name if model_args.checkpoint else None,
                "needs_rts_hf": needs_rts_hf(config.architecture),
            },
            "optimizer": optimizer,
            "updates": state.global_step,
            "gradient_evaluations": trainer.gradient_evaluations,
            "floating_point_operations": state.total_flos,
            "epochs": round(state.epoch or 0, 6),
            "seconds": round(seconds, 1),
            "resumed_at": trainer.resumed_at,
            "faults": trainer.faults.counts,
            "metrics": {**dict.fromkeys(("train", "validation", "test")), **metrics},
            "best": best,
            "warnings": [*trainer.remarks(), *changes] if status == "complete" else changes,
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
        "momentum": None if optimizer is None else optimizer.param_groups[0].get("momentum"),
        "total_steps": state.max_steps,
        **dict.fromkeys(("method", "radius", "scale", "perturb_every", "perturb_fraction", "switch")),
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
        "perturb_fraction": args.perturb_fraction,
        "switch": {
            "kind": rts.switch.name,
            "settings": rts.switch.settings(),
            "fired": step is not None,
            "state": {key: value for key, value in rts.switch.state_dict().items() if key != "fired"},
            "step": step,
            "unit_step": rts.switch_step,
            "epoch": None if step is None else round(step * (state.epoch or 0) / max(state.global_step, 1), 3),
        },
    }


def describe_recipe(
    model_args: ModelArguments, data_args: DataArguments, args: RTSTrainingArguments
) -> dict[str, Any] | None:
    """Return the recipe of a run with its figures, and by which arguments the run is not it; None without a recipe."""
    if args.recipe is None:
        return None
    recipe = find_recipe(args.recipe)
    changed = _changed(model_args, data_args, args)
    differs_in = recipe.differences(
        _present(model_args, data_args, args), changed.keys() - (FREE_SETTINGS - {"early_stopping_patience"})
    )
    return recipe.facts([*differs_in, "processes"] if args.world_size > 1 else differs_in)


def _present(*arguments: Any) -> dict[str, Any]:
    return {name: value for group in arguments for name, value in settings_of(group).items()}


def _changed(model_args: ModelArguments, data_args: DataArguments, args: RTSTrainingArguments) -> dict[str, Any]:
    """Return the arguments that are not at the training command's default."""
    changed = [settings_of(arguments, only_changed=True) for arguments in (model_args, data_args)]
    return {**changed[0], **changed[1], **changed_settings(args)}


def command_line(model_args: ModelArguments, data_args: DataArguments, args: RTSTrainingArguments) -> str:
    """Return the command that runs this again: what, on what, with what, every other argument that is not at its
    default, and no token."""
    words = ["accelerate", "launch", "-m", "rts_hf", "train"]
    if args.world_size > 1 and args.device.type == "cpu":  # accelerate launch starts one process on a CPU
        words = ["torchrun", "--nproc_per_node", str(args.world_size), "-m", "rts_hf", "train"]
    elif args.world_size > 1:
        words[2:2] = ["--num_processes", str(args.world_size)]
    always = {"model": model_args.model, "dataset": data_args.dataset, "opt": args.opt, "seed": args.seed}
    told = {**always, **_changed(model_args, data_args, args)}
    if args.recipe is not None:
        recipe, present = find_recipe(args.recipe), _present(model_args, data_args, args)
        told |= {name: present[name] for name in recipe.differences(present, ()) if present[name] is not None}
        if any(present[name] != value for name, value in recipe.defaults(told).items()):
            del told["recipe"]  # it would fill in what this run left out, and a command line cannot say so
    for name, value in told.items():
        if value is None:
            continue  # a command line cannot say None, and where it is not the default it came from one
        words.append(f"--{name}")
        words += [*map(str, value)] if isinstance(value, list) else [_word(value)]
    return shlex.join(words)


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
