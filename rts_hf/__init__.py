"""RTS-PUGD for timm and the HuggingFace stack; importing it registers its optimizers and models with timm."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rts_hf.optimizer import RTSPUGD
from rts_hf.registration import register_with_timm
from rts_hf.schedules import AlphaSchedule
from rts_hf.second_pass import RandomState, keep_buffers
from rts_hf.small_image import SMALL_IMAGE_VARIANTS  # its import registers the models with timm
from rts_hf.switching import FixedSwitch, GeneralizationGapSwitch, GradientVarianceSwitch, PhaseSwitch
from rts_hf.unwrapping import unwrap_optimizer

if TYPE_CHECKING:
    from rts_hf.config import DataArguments, ModelArguments, RTSTrainingArguments
    from rts_hf.data import collate, load_data
    from rts_hf.faults import TrainingFault
    from rts_hf.models import build_model
    from rts_hf.publishing import publish
    from rts_hf.recipe import Recipe
    from rts_hf.recipes import RECIPES, recipe_arguments
    from rts_hf.runs import train
    from rts_hf.trainer import RTSTrainer

__all__ = [
    "RECIPES",
    "RTSPUGD",
    "SMALL_IMAGE_VARIANTS",
    "AlphaSchedule",
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
    "TrainingFault",
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
    "DataArguments": "config",
    "ModelArguments": "config",
    "RECIPES": "recipes",
    "RTSTrainer": "trainer",
    "RTSTrainingArguments": "config",
    "Recipe": "recipe",
    "TrainingFault": "faults",
    "build_model": "models",
    "collate": "data",
    "load_data": "data",
    "publish": "publishing",
    "recipe_arguments": "recipes",
    "train": "runs",
}

register_with_timm()


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(importlib.import_module(f"rts_hf.{_LATE[name]}"), name)
    raise AttributeError(f"module 'rts_hf' has no attribute {name!r}")
