"""RTS-PUGD for timm and the HuggingFace stack; importing it registers its optimizers and models with timm."""

from __future__ import annotations

from rts_hf.optimizer import RTSPUGD
from rts_hf.registration import register_with_timm
from rts_hf.schedules import AlphaSchedule
from rts_hf.switching import FixedSwitch, GeneralizationGapSwitch, GradientVarianceSwitch, PhaseSwitch

__all__ = [
    "RTSPUGD",
    "AlphaSchedule",
    "FixedSwitch",
    "GeneralizationGapSwitch",
    "GradientVarianceSwitch",
    "PhaseSwitch",
]

__version__ = "0.1.0"

register_with_timm()
