"""The base optimizers that take the actual steps, by the names timm knows them by."""

from __future__ import annotations

from typing import Any

import timm.optim
from torch.optim import Optimizer

from rts_hf.optim.parallelism import check_parameters, check_requests
from rts_hf.optim.timing import TimedOptimizer


def create_base(params: Any, base: str, lr: Any, base_kwargs: dict[str, Any]) -> Optimizer:
    """Create the optimizer that takes the actual steps.

    Args:
        params: Parameters or parameter groups.
        base: A name timm knows.
        lr: Learning rate; None takes the optimizer's default.
        base_kwargs: Further arguments, as :func:`timm.optim.create_optimizer_v2` takes them.

    Raises:
        ValueError: For a name timm does not know, an optimizer that cannot take a gradient made by another, complex
            parameters, or a way to train on several devices that leaves no room for a second pass.
        TypeError: For arguments that the optimizer does not take.
    """
    if base.lower().startswith("lookahead_"):
        raise ValueError(
            f"base={base!r}: Lookahead goes around this optimizer, not inside; use opt='lookahead_rts_pugd'."
        )
    name = base.lower().split("_")[-1]
    if name not in timm.optim.list_optimizers():
        raise ValueError(f"base={base!r} is not an optimizer timm knows; see timm.optim.list_optimizers().")
    info = timm.optim.get_optimizer_info(name)
    if isinstance(info.opt_class, type) and issubclass(info.opt_class, TimedOptimizer):
        raise ValueError(f"base={base!r} is itself a two-pass optimizer; choose a plain one, for instance base='sgd'.")
    if info.second_order:
        raise ValueError(f"base={base!r} differentiates the gradient it gets, which here has no graph; choose another.")
    try:
        optimizer = timm.optim.create_optimizer_v2(params, opt=base, lr=lr, **base_kwargs)
    except TypeError as error:
        raise TypeError(f"base={base!r} refuses its arguments {sorted(base_kwargs)}: {error}") from error
    check_requests()
    check_parameters(optimizer.param_groups)
    if any(param.is_complex() for group in optimizer.param_groups for param in group["params"]):
        raise ValueError(
            "params holds complex tensors, which RTSPUGD does not support; hold their real and imaginary "
            "parts as two real ones."
        )
    return optimizer
