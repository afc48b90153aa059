"""The two files of a run folder that everything made from a run is made from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

RECORD_NAME = "run.json"
STATE_NAME = "trainer_state.json"
FORMAT = 1


def write_record(folder: str | Path, record: dict[str, Any]) -> Path:
    """Write ``run.json`` so that a reader sees the old file or the new one, never half of one."""
    path = Path(folder) / RECORD_NAME
    draft = path.with_suffix(".json.tmp")
    draft.write_text(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(draft, path)
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


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"run_dir={str(path.parent)!r} has no {path.name}; pass the folder that a finished training run wrote."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); it may have been cut off: run the training again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, but a run's record is a JSON object.")
    return content
