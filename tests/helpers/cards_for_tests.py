"""Alter a run folder by the name of an entry, and read the metadata of its card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from run_folder_for_tests import edit_json


def change(folder: Path, keys: str, value: object, file: str = "run.json") -> None:
    """Set one entry, named by its keys with dots between."""

    def edit(content: dict[str, Any]) -> None:
        *path, last = keys.split(".")
        for key in path:
            content = content[key]
        content[last] = value

    edit_json(folder / file, edit)


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
