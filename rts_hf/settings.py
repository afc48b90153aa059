"""A run's arguments as plain values: to tell them, to repeat them, to compare them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from rts_hf.config import RTSTrainingArguments

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


def settings_of(arguments: Any, *, only_changed: bool = False) -> dict[str, Any]:
    """Return the arguments by name, or those that are not at their default; never places or secrets.

    Args:
        arguments: One of the three argument classes of :mod:`rts_hf.config`. Of the many of transformers' Trainer,
            those that this package sets itself are always told, and the others where they are not at their default.
        only_changed: Leave out what is at its default.
    """
    defaults = {f.name: f.default for f in fields(arguments) if f.init}
    if isinstance(arguments, RTSTrainingArguments):
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


def trajectory_settings(args: RTSTrainingArguments) -> dict[str, Any]:
    """Return the training arguments and what else decides which updates a run takes: the number of processes."""
    return {**settings_of(args), "processes": args.world_size}
