"""Alter a run folder by the name of an entry, render its card quickly, and read the card's metadata."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from run_folder_for_tests import edit_json


def change(folder: Path, keys: str, value: object, file: str = "run.json") -> None:
    """Set one entry, named by its keys with dots between."""
    edit_json(folder / file, lambda content: set_entry(content, keys, value))


def set_entry(content: dict[str, Any], keys: str, value: object) -> None:
    """Set one entry of what a file holds, named by its keys with dots between."""
    *path, last = keys.split(".")
    for key in path:
        content = content[key]
    content[last] = value


def metadata(card: str) -> dict[str, Any]:
    """Return the YAML head, read by a plain YAML parser rather than by the library that wrote it."""
    _, head, _ = re.split(r"^---$", card, maxsplit=2, flags=re.MULTILINE)
    content = yaml.safe_load(head)
    assert isinstance(content, dict)
    return content


def results_by_split(card: str) -> dict[str, dict[str, float]]:
    (model,) = metadata(card)["model-index"]
    return {
        result["dataset"]["split"]: {metric["type"]: metric["value"] for metric in result["metrics"]}
        for result in model["results"]
    }
