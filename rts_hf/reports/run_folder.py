"""The two files of a run folder that everything made from a run is made from, and how their log is read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from rts_hf.files import read_json_object, write_text

RECORD_NAME = "run.json"
STATE_NAME = "trainer_state.json"
COMPARISON_NAME = "comparison.json"
FORMAT = 1


def write_record(folder: str | Path, record: dict[str, Any]) -> Path:
    """Write ``run.json`` so that a reader sees the old file or the new one, never half of one."""
    path = Path(folder) / RECORD_NAME
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    # rows of whole numbers, such as those of a confusion matrix, each on one line; in texts there are no line ends
    text = re.sub(r"\[\n\s*(-?\d+(?:,\n\s*-?\d+)*)\n\s*\]", lambda row: f"[{' '.join(row[1].split())}]", text)
    write_text(path, text + "\n")
    return path


def read_record(folder: str | Path) -> dict[str, Any]:
    """Return what ``run.json`` holds: arguments, versions, data, model, optimizer, metrics.

    Raises:
        FileNotFoundError: If the folder has no ``run.json``.
        ValueError: If it is not a JSON object, or has a format that this version does not know.
    """
    record = _read(Path(folder) / RECORD_NAME)
    if record.get("format") != FORMAT:
        raise ValueError(
            f"{Path(folder) / RECORD_NAME} has format {record.get('format')!r}, but this version of rts_hf reads "
            f"{FORMAT}."
        )
    return record


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """Return the log of the run, oldest entry first, from ``trainer_state.json``.

    Raises:
        FileNotFoundError: If the folder has no ``trainer_state.json``.
        ValueError: If it is not a JSON object.
    """
    return _read(Path(folder) / STATE_NAME).get("log_history") or []


def was_perturbed(entry: Mapping[str, Any], optimizer: Mapping[str, Any]) -> bool:
    """Return whether the update that an entry of the log was written after was perturbed.

    Args:
        entry: One entry of the log.
        optimizer: What ``run.json`` holds of the optimizer.
    """
    switch = optimizer.get("switch") or {}
    if entry.get("phase") != 1 or ("step" in switch and switch["step"] is None):
        return False
    # The update that the switch fired after is the last plain one; some logs already say phase 1 there.
    position = int(entry.get("step") or 0) - 1 - (switch.get("step") or 0)
    every = optimizer.get("perturb_every") or 1
    if position < 0 or every == 1:
        return position >= 0
    norm = entry.get("epsilon_norm")
    if is_finite(norm) and (norm or entry.get("alpha_r")):
        # The surer sign: a gradient scaler that skips updates moves the position. With α_r = 0 it tells nothing.
        return norm > 0
    return position % every == 0


def perturbed_since(log: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """Return for every entry of the log that has a sharpness how many perturbed updates that is the mean of.

    Those since the training entry before, each of which took one gradient evaluation more than a plain update; None
    where the log does not tell.
    """
    counts: list[int | None] = []
    before: int | None = 0
    for entry in log:
        if "loss" not in entry and "sharpness" not in entry:
            continue
        evaluations, step = entry.get("gradient_evaluations"), entry.get("step")
        second_passes = int(evaluations - step) if is_finite(evaluations) and is_finite(step) else None
        if "sharpness" in entry:
            count = None if second_passes is None or before is None else second_passes - before
            counts.append(count if count and count > 0 else None)
        before = second_passes
    return counts


def is_finite(value: Any) -> TypeGuard[int | float]:
    """Return whether a value read from JSON is a number that is neither infinite nor NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"run_dir={str(path.parent)!r} has no {path.name}; pass the folder that a finished training run wrote."
        )
    return read_json_object(path)
