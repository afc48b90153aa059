"""Finding the two-pass optimizer inside what wraps it."""

from __future__ import annotations

from typing import Any

from rts_hf.optimizer import RTSPUGD


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
