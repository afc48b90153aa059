"""A run of the training command that takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rts_hf import CommandArguments, DataArguments
from rts_hf.recipes.recorded import find_recipe

SMALL = DataArguments(max_train_samples=120, max_eval_samples=40, image_size=8)


def settings(folder: Path, **changes: Any) -> CommandArguments:
    """Return arguments of the paper's method where the changes say nothing else, whatever the defaults are."""
    paper = find_recipe("paper").defaults({"opt": "rts_pugd", **changes})
    quick = {"measure_sharpness": False}  # more work than such a training itself
    quiet = {"num_train_epochs": 3, "per_device_train_batch_size": 24, "logging_steps": 2, "disable_tqdm": True}
    return CommandArguments(output_dir=str(folder), use_cpu=True, **{**quick, **quiet, **paper, **changes})
