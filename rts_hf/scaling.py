"""What a gradient scaler (fp16) does between the passes of an update and its step."""

from __future__ import annotations

import math
import sys

from torch import Tensor

# How torch's scaler calls an optimizer's step() where it has looked for overflow; switched off, it calls it otherwise.
_SCALERS_CALL = "_maybe_opt_step"
# step() is called through a decorator and a wrapper of torch's, and perhaps accelerate's and a scheduler's.
_FARTHEST_CALLER = 16


def factor_between(before: Tensor | float, after: Tensor | float) -> float:
    """Return what a gradient of norm ``before`` has been multiplied by since, now that its norm is ``after``.

    Where one of them is zero, infinite or NaN this cannot be told, and counts as 1. Waits for the device.

    >>> factor_between(512.0, 2.0)
    0.00390625
    >>> factor_between(0.0, 0.0)
    1.0
    """
    before, after = float(before), float(after)
    return after / before if 0 < before < math.inf and 0 < after < math.inf else 1.0


def refuse_closure() -> None:
    """Raise RuntimeError if a gradient scaler is among the callers.

    :class:`torch.amp.GradScaler` itself refuses a closure only where it comes by keyword; accelerate passes it by
    position.
    """
    frame = sys._getframe(1)
    for _ in range(_FARTHEST_CALLER):
        if frame.f_code.co_name == _SCALERS_CALL:
            raise RuntimeError(
                "step(closure) under a gradient scaler: it has looked for overflow, and unscaled, before the closure "
                "makes the gradients, so the step would take scaled ones. Call backward(), then the second pass inside "
                "`with optimizer.perturbed():`, then the scaler's (or accelerate's) step() without a closure."
            )
        if frame.f_back is None:
            return
        frame = frame.f_back
