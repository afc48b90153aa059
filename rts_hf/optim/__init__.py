"""The method itself: schedules, switches, the perturbation, the unit step, and the optimizer that puts them together
for timm, accelerate and any loop.

Imports torch and timm alone.
"""

from rts_hf.optim.attached import attach_second_pass
from rts_hf.optim.optimizer import RTSPUGD
from rts_hf.optim.registration import PAPER, register_with_timm, unwrap_optimizer
from rts_hf.optim.schedules import AlphaSchedule
from rts_hf.optim.second_pass import RandomState, keep_buffers
from rts_hf.optim.switches import (
    FixedSwitch,
    GeneralizationGapSwitch,
    GradientVarianceSwitch,
    PhaseSwitch,
    StagedSwitch,
)

__all__ = [
    "PAPER",
    "RTSPUGD",
    "AlphaSchedule",
    "FixedSwitch",
    "GeneralizationGapSwitch",
    "GradientVarianceSwitch",
    "PhaseSwitch",
    "RandomState",
    "StagedSwitch",
    "attach_second_pass",
    "keep_buffers",
    "register_with_timm",
    "unwrap_optimizer",
]
