"""Small text files: JSON objects read with a clear error, and writing that leaves the old file or the new one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def read_json_object(path: str | Path) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, is not JSON, or holds something else than an object.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except ValueError as error:  # also of bytes that are not UTF-8
        raise ValueError(f"{path} is not valid JSON: {error}; it may have been cut off") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a JSON object")
    return content


def write_text(path: str | Path, text: str) -> None:
    """Write a text file as a whole: a reader, or a run that is killed, finds the old one or the new one."""
    path = Path(path)
    draft = path.with_name(f"{path.name}.tmp")
    draft.write_text(text, encoding="utf-8", newline="\n")
    os.replace(draft, path)


def replace_part(path: str | Path, begin: str, end: str, part: str) -> None:
    """Replace what stands between two marks in a text file, if it differs.

    Raises:
        ValueError: If the marks are not there once each, in this order.
    """
    text = Path(path).read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{path}: there must be one part between {begin} and {end}.")
    before, rest = text.split(begin)
    old, after = rest.split(end)
    if old != part:
        write_text(path, f"{before}{begin}{part}{end}{after}")
