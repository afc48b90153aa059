"""RTS-PUGD for timm and the HuggingFace stack; importing it registers its optimizers and models with timm."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rts_hf.models.small_image import SMALL_IMAGE_VARIANTS  # its import registers the models with timm
from rts_hf.optim import (
    PAPER,
    RTSPUGD,
    AlphaSchedule,
    FixedSwitch,
    GeneralizationGapSwitch,
    GradientVarianceSwitch,
    PhaseSwitch,
    RandomState,
    StagedSwitch,
    attach_second_pass,
    keep_buffers,
    register_with_timm,
    unwrap_optimizer,
)

if TYPE_CHECKING:
    from rts_hf.data.loading import collate, load_data
    from rts_hf.models.classifiers import build_model
    from rts_hf.publishing.hub import publish
    from rts_hf.recipes.recipe import Recipe
    from rts_hf.recipes.recorded import RECIPES
    from rts_hf.runs.arguments import CommandArguments, recipe_arguments
    from rts_hf.runs.run import train
    from rts_hf.training.arguments import DataArguments, ModelArguments, RTSTrainingArguments
    from rts_hf.training.faults import TrainingFault
    from rts_hf.training.trainer import RTSTrainer

__all__ = [
    "PAPER",
    "RECIPES",
    "RTSPUGD",
    "SMALL_IMAGE_VARIANTS",
    "AlphaSchedule",
    "CommandArguments",
    "DataArguments",
    "FixedSwitch",
    "GeneralizationGapSwitch",
    "GradientVarianceSwitch",
    "ModelArguments",
    "PhaseSwitch",
    "RTSTrainer",
    "RTSTrainingArguments",
    "RandomState",
    "Recipe",
    "StagedSwitch",
    "TrainingFault",
    "attach_second_pass",
    "build_model",
    "collate",
    "keep_buffers",
    "load_data",
    "publish",
    "recipe_arguments",
    "train",
    "unwrap_optimizer",
]

__version__ = "0.1.0"

# These need transformers, datasets or torchvision, which take seconds to import: they are looked up when asked for.
_LATE = {
    "CommandArguments": "runs.arguments",
    "DataArguments": "training.arguments",
    "ModelArguments": "training.arguments",
    "RECIPES": "recipes.recorded",
    "RTSTrainer": "training.trainer",
    "RTSTrainingArguments": "training.arguments",
    "Recipe": "recipes.recipe",
    "TrainingFault": "training.faults",
    "build_model": "models.classifiers",
    "collate": "data.loading",
    "load_data": "data.loading",
    "publish": "publishing.hub",
    "recipe_arguments": "runs.arguments",
    "train": "runs.run",
}

register_with_timm()


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(importlib.import_module(f"rts_hf.{_LATE[name]}"), name)
    raise AttributeError(f"module 'rts_hf' has no attribute {name!r}")
