"""The optimizers of this package as entries of timm's registry."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rts_hf.optim.optimizer import RTSPUGD
from rts_hf.upstream import take

logger = logging.getLogger(__name__)

# The paper's method, written out whole: radius, timing and scale, every update after the switch perturbed. The defaults
# of RTSPUGD are what a search on validation data chose instead.
PAPER: Mapping[str, Any] = MappingProxyType(
    {
        "radius": "cosine_annealing",
        "radius_beta_min": 0.0,
        "radius_beta_max": 2.0,
        "scale": "cosine_annealing",
        "scale_beta_min": 0.0,
        "scale_beta_max": 1.0,
        "switch": "fixed",
        "switch_at": 0.5,
        "perturb_every": 1,
    }
)

_TWO_PASS_FROM_THE_START = {
    "switch": None,
    "radius": "constant",
    "radius_beta_min": 0.0,
    "scale": "constant",
    "scale_beta_min": 0.0,
    "perturb_every": 1,
}

# timm looks up only what follows the last "_" of a name: "rts_pugd" is found as "pugd", which is why the entry has both
# names, and why plain PUGD needs a name without "_".
ENTRIES: dict[str, tuple[str, dict[str, Any] | None]] = {
    "rts_pugd": ("Perturbated Unit Gradient Descent with scheduled radius, timing and scale", None),
    "pugd": ("The same as rts_pugd (plain PUGD is plainpugd)", None),
    "plainpugd": (
        "Perturbated Unit Gradient Descent from the first step, constant radius and scale",
        {**_TWO_PASS_FROM_THE_START, "method": "pugd", "radius_beta_max": 1.0, "scale_beta_max": 1.0},
    ),
    "sam": (
        "Sharpness-Aware Minimization around a base optimizer",
        {**_TWO_PASS_FROM_THE_START, "method": "sam", "radius_beta_max": 0.05, "scale_beta_max": 0.0},
    ),
    "asam": (
        "Adaptive Sharpness-Aware Minimization around a base optimizer",
        {**_TWO_PASS_FROM_THE_START, "method": "asam", "radius_beta_max": 0.5, "scale_beta_max": 0.0},
    ),
}


def register_with_timm() -> None:
    """Add :data:`ENTRIES` to timm's registry; names that timm itself has stay timm's.

    Raises:
        ImportError: If timm has moved its registry.
    """
    registry, entry = take("timm", "default_registry"), take("timm", "OptimInfo")
    taken = set(registry.list_optimizers())
    for name, (description, defaults) in ENTRIES.items():
        if name in taken:
            logger.debug("timm has an optimizer named %s already; it stays as it is.", name)
            continue
        registry.register(
            entry(
                name=name,
                opt_class=RTSPUGD,
                description=description,
                has_eps=True,  # these three go on to the base optimizer, which takes those it knows
                has_momentum=True,
                has_betas=True,
                defaults=defaults,
            )
        )


def unwrap_optimizer(optimizer: Any) -> RTSPUGD | None:
    """Return the RTSPUGD inside accelerate's or timm's wrappers, or None where there is none.

    >>> import timm, torch
    >>> wrapped = timm.optim.create_optimizer_v2(torch.nn.Linear(2, 2), opt="lookahead_rts_pugd", lr=0.1)
    >>> type(unwrap_optimizer(wrapped)).__name__
    'RTSPUGD'
    """
    while optimizer is not None and not isinstance(optimizer, RTSPUGD):
        optimizer = getattr(optimizer, "optimizer", None) or getattr(optimizer, "_base_optimizer", None)
    return optimizer
