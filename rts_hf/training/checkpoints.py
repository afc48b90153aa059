"""Checkpoints that a run can go on from: whole ones, of the same run."""

from __future__ import annotations

import json
import logging
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME as STATE_NAME
from transformers.trainer_utils import rotate_checkpoints, sort_checkpoints

from rts_hf.files import read_json_object, write_text
from rts_hf.training.arguments import DataArguments, ModelArguments, RTSTrainingArguments
from rts_hf.training.optimizers import TWO_PASS_FIELDS, is_two_pass, stepping_name

logger = logging.getLogger(__name__)

MARKER_NAME = "checkpoint_complete.json"  # lists the files once all are there, and says until then that they are not
STATE_KEY = "RTSTrainer"  # the trainer's own entries in trainer_state.json, beside the callbacks'

# Training arguments that may change from one command of a run to the next: they leave the weights alone.
FREE_SETTINGS = frozenset(
    {
        "disable_tqdm", "draw_figures", "early_stopping_patience", "enable_jit_checkpoint", "hub_model_id",
        "hub_private_repo", "hub_revision", "hub_strategy", "log_level", "log_level_replica", "logging_dir",
        "logging_first_step", "max_skipped_updates", "measure_sharpness", "output_dir", "override_schedule",
        "overwrite", "push_to_hub", "recipe", "remove_unused_columns", "report_to", "resume_from_checkpoint",
        "run_name", "save_steps", "save_strategy", "save_total_limit", "use_cpu",
        "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
    }
)  # fmt: skip
_PARTS = {"model": ("model", ModelArguments), "data": ("data set", DataArguments)}
# What a checkpoint brings with it: another value on the command line would have no effect, or spoil its state.
_KEPT = ("learning_rate", "weight_decay", "momentum", "opt_args", "adam_beta1", "adam_beta2", "adam_epsilon")
# What the position in the data, or the best evaluation so far, would no longer fit.
_COUNTED = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "dataloader_drop_last", "processes", "seed",
    "data_seed", "metric_for_best_model", "greater_is_better",
)  # fmt: skip


def mark_begun(checkpoint: str | Path) -> None:
    """Make the folder of a checkpoint, marked as this package's and not complete.

    What this package left there before is deleted, the marker first: a kill leaves drafts of files under names of their
    own, which nothing would overwrite. Files of somebody else's stay.
    """
    folder = Path(checkpoint)
    if _is_own(folder):
        (folder / MARKER_NAME).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / MARKER_NAME, json.dumps({"files": None}) + "\n")


def mark_complete(checkpoint: str | Path) -> None:
    """Write the marker that says that all files of a checkpoint are there, with their sizes."""
    folder = Path(checkpoint)
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MARKER_NAME
    }
    write_text(folder / MARKER_NAME, json.dumps({"files": files}, indent=2) + "\n")


def what_is_missing(checkpoint: str | Path) -> str | None:
    """Return why a run cannot go on from a checkpoint, or None if it can.

    One without the marker, as transformers' own Trainer writes it, is whole if what it needs is there and readable.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return "it is not a folder"
    cut_off = _what_was_cut_off(folder)
    if cut_off is not None:
        return cut_off
    if not any(folder.rglob("*optim*")):
        return "optimizer.pt is missing"
    if (folder / MARKER_NAME).is_file():
        return None
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*fsdp*")):
        return "model.safetensors is missing"
    if (folder / "optimizer.pt").is_file() and not (folder / "scheduler.pt").is_file():
        return "scheduler.pt is missing"
    for name in ("optimizer.pt", "scheduler.pt"):
        path = folder / name
        if path.is_file() and not zipfile.is_zipfile(path):
            return f"{name} cannot be read"
    return None


def last_checkpoint(run_dir: str | Path) -> str:
    """Return the newest whole checkpoint of a run; newer ones that are not whole are passed over with a message.

    Raises:
        ValueError: If there is none.
    """
    folder = Path(run_dir)
    broken: list[tuple[str, str]] = []
    for checkpoint in reversed(sort_checkpoints(str(folder)) if folder.is_dir() else []):
        missing = what_is_missing(checkpoint)
        if missing is None:
            for name, reason in broken:
                logger.warning("%s is not whole (%s): going on from %s.", name, reason, Path(checkpoint).name)
            return checkpoint
        broken.append((Path(checkpoint).name, missing))
    reasons = "; ".join(f"{name}: {reason}" for name, reason in broken)
    raise ValueError(
        f"resume_from_checkpoint='last', but output_dir={str(folder)!r} holds no "
        + (
            f"whole checkpoint ({reasons}); start the run again, over the old one with --overwrite."
            if broken
            else "checkpoint; a finished run needs none, another starts anew with --overwrite."
        )
    )


def checkpoint_meant(wanted: str | bool | None, run_dir: str | Path) -> str | None:
    """Return the checkpoint that ``resume_from_checkpoint`` means, or None if it means none.

    Args:
        wanted: Its folder; True or ``"last"`` for the newest whole one of the run; None or False.
        run_dir: Where the run's checkpoints lie.

    Raises:
        ValueError: If there is no such checkpoint, or a run cannot go on from it.
    """
    if wanted is None or wanted is False:
        return None
    if means_last(wanted):
        return last_checkpoint(run_dir)
    if not Path(str(wanted)).is_dir():
        raise ValueError(f"resume_from_checkpoint={wanted!r} is not a folder; name one, or use 'last'.")
    missing = what_is_missing(str(wanted))
    if missing is not None:
        raise ValueError(
            f"resume_from_checkpoint={wanted!r} is not a whole checkpoint ({missing}); name another, or take its "
            "weights for a new run."
        )
    return str(wanted)


def means_last(wanted: str | bool) -> bool:
    """Return whether ``resume_from_checkpoint`` asks for the newest checkpoint, in whatever spelling."""
    return wanted in (True, "last", "True", "true")


def rotate(run_dir: str | Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints until at most ``limit`` whole ones are left; the best and the newest always stay.

    Those that a kill cut off go first: one that is newer than the one that was resumed must not take the place of one
    that can be. Folders that this package did not write are counted, but taken to be as they should be.
    """
    if limit is None or limit <= 0:
        return
    for checkpoint in sort_checkpoints(str(run_dir)):
        folder = Path(checkpoint)
        is_named = re.fullmatch(r"checkpoint-\d+", folder.name)  # the sorting takes checkpoint-5-mine as well
        if is_named and _is_own(folder) and _what_was_cut_off(folder) is not None:
            shutil.rmtree(folder, ignore_errors=True)
    rotate_checkpoints(str(run_dir), save_total_limit=limit, best_model_checkpoint=best)


def read_state(checkpoint: str | Path) -> dict[str, Any]:
    """Return a checkpoint's ``trainer_state.json``.

    Raises:
        ValueError: If it is missing or not a JSON object.
    """
    try:
        return read_json_object(Path(checkpoint) / STATE_NAME)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error


def is_plain(checkpoint: str | Path) -> bool | None:
    """Return whether an optimizer without a second pass wrote a checkpoint, or None where it does not say."""
    kept = own_state(read_state(checkpoint)).get("arguments") or {}
    return not is_two_pass(kept["training"]["opt"]) if "training" in kept else None


def own_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what RTSTrainer keeps in ``trainer_state.json``; empty where another Trainer wrote it."""
    kept = (state.get("stateful_callbacks") or {}).get(STATE_KEY) or {}
    return dict(kept.get("attributes") or {})


def check_same_run(checkpoint: str, arguments: Mapping[str, Mapping[str, Any]], *, override: bool) -> str | None:
    """Refuse to go on from a checkpoint with other arguments than the run it belongs to was given.

    Args:
        checkpoint: Its folder.
        arguments: The present ``model``, ``data`` and ``training`` arguments by name; a part that the checkpoint does
            not know, or that is not given here, is not compared.
        override: Whether another schedule, switch or length is meant.

    Returns:
        What changed from the checkpoint's settings to the present ones, or None.

    Raises:
        ValueError: With every difference, and what to do.
    """
    kept = own_state(read_state(checkpoint)).get("arguments") or {}
    for part, (noun, argument_class) in _PARTS.items():
        if part in kept and part in arguments:
            then = _completed(kept[part], arguments[part], argument_class)
            changed = _differences(then, arguments[part], leave_out=frozenset({"cache_dir"}))
            if changed:
                raise ValueError(
                    f"resume_from_checkpoint={checkpoint!r} belongs to a run with another {noun} "
                    f"({_shown(changed)}); give the same arguments, or start a new run"
                    + (" with --checkpoint for its weights." if part == "data" else ".")
                )
    if "training" not in kept or "training" not in arguments:
        return None
    now = dict(arguments["training"])
    then = _completed(kept["training"], now, RTSTrainingArguments)
    changed = _differences(then, now, leave_out=FREE_SETTINGS)
    before, after = (stepping_name(training["opt"], training.get("base")) for training in (then, now))
    if before != after:
        raise ValueError(
            f"resume_from_checkpoint={checkpoint!r} holds the state of {before}, which {after} "
            f"cannot use ({_shown(changed)}); give the same arguments, or start anew with --checkpoint for its weights."
        )
    is_late_start = not is_two_pass(then["opt"]) and now.get("opt") == "rts_pugd"
    meant = {name for name in changed if is_late_start and name in (*TWO_PASS_FIELDS, "opt")}
    stuck = {name: values for name, values in changed.items() if name in (*_KEPT, *_COUNTED)}
    if "opt" in changed and not is_late_start:
        stuck["opt"] = changed["opt"]
    if stuck:
        raise ValueError(
            f"resume_from_checkpoint={checkpoint!r} was trained with other settings ({_shown(stuck)}), which cannot "
            "change within a run; give the same, or start a new run with --checkpoint for its weights."
        )
    if changed.keys() - meant and not override:
        raise ValueError(
            f"resume_from_checkpoint={checkpoint!r} was trained with other settings ({_shown(changed)}); use the same, "
            "or set override_schedule=True (--override_schedule) if the change is meant."
        )
    return _shown(changed) or None


def reconcile(optimizer: Any, wanted: Mapping[str, Any], checkpoint: str, *, override: bool) -> None:
    """Refuse to go on with other settings of the optimizer than the checkpoint's, unless that is meant.

    Args:
        optimizer: An :class:`rts_hf.RTSPUGD`, with the settings that the checkpoint brought.
        wanted: Its ``settings()`` before that.
        checkpoint: The checkpoint's folder.
        override: Whether the change is meant; the optimizer then gets back what was wanted.

    Raises:
        ValueError: With every difference, and what to do.
    """
    loaded = optimizer.settings()
    changed = {name: (loaded.get(name), wanted[name]) for name in wanted if wanted[name] != loaded.get(name)}
    if not changed:
        return
    if not override:
        difference = ", ".join(f"{name} {then} → {now}" for name, (then, now) in changed.items())
        raise ValueError(
            f"resume_from_checkpoint={checkpoint!r} was trained with other settings ({difference}); use the same, "
            "or set override_schedule=True (--override_schedule) if the change is meant."
        )
    optimizer.apply_settings(wanted)


def _is_own(folder: Path) -> bool:
    """Return whether this package wrote a checkpoint, or began to."""
    if (folder / MARKER_NAME).is_file():
        return True
    try:
        return STATE_KEY in (read_state(folder).get("stateful_callbacks") or {})
    except ValueError:
        return False


def _what_was_cut_off(folder: Path) -> str | None:
    """Return what a checkpoint lacks of what was written or was to be written to it, or None."""
    marker = folder / MARKER_NAME
    try:
        if not marker.is_file():
            is_own = STATE_KEY in (read_state(folder).get("stateful_callbacks") or {})
            return f"{MARKER_NAME} is missing: it was not written to its end" if is_own else None
        content = read_json_object(marker)
        sizes = content.get("files")
        if "files" in content and sizes is None:
            return "it was not written to its end"
        if not isinstance(sizes, dict):
            return f"{MARKER_NAME} lists no files"
        for name, size in sizes.items():
            found = folder / name
            if not found.is_file():
                return f"{name} is missing"
            if found.stat().st_size != size:
                return f"{name} has {found.stat().st_size} bytes of {size}"
        read_state(folder)
    except (OSError, ValueError) as error:
        return str(error).removeprefix(f"{folder}/")
    return None


def _completed(kept: Mapping[str, Any], now: Mapping[str, Any], argument_class: Any) -> dict[str, Any]:
    """Return a checkpoint's arguments with those that it does not know, because there were none such, by default."""
    known = {field.name: field.default for field in fields(argument_class) if field.default is not MISSING} | dict(kept)
    return {name: known[name] for name in (*kept, *now) if name in known}


def _differences(
    then: Mapping[str, Any], now: Mapping[str, Any], leave_out: frozenset[str]
) -> dict[str, tuple[Any, Any]]:
    names = [*then, *(name for name in now if name not in then)]
    return {
        name: (then.get(name), now.get(name))
        for name in names
        if name not in leave_out and then.get(name) != now.get(name)
    }


def _shown(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name} {_value(name, then)} → {_value(name, now)}" for name, (then, now) in changed.items())


def _value(name: str, value: Any) -> str:
    """Return a value as it is told; of one that was not given, the default where there is one to name."""
    default = next((f.default for f in fields(RTSTrainingArguments) if f.name == name), None)
    value = default if value is None and default is not MISSING else value
    return "default" if value is None else str(getattr(value, "value", value))
