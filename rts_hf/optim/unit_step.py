"""The base optimizer's step on a gradient that is divided by its global norm."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rts_hf.optim.perturbation import global_norm, is_sharded, is_unusable, unit_gradients

# Devices whose fused optimizers are known to divide by grad_scale.
_DIVIDING_DEVICES = frozenset({"cpu", "cuda"})


def take_unit_step(
    base: Optimizer,
    params: list[Tensor],
    grads: list[Tensor],
    divisor: Tensor,
    buffers: Callable[[], list[Tensor]],
) -> Tensor:
    """Let ``base`` take its step on ``grads`` divided by ``divisor``; return whether that is unusable, as a scalar.

    A fused base divides by itself, in the pass over memory that it makes anyway, and leaves an infinite or NaN gradient
    out as it does for a gradient scaler: weights and state stay. So torch's SGD is fused here unless it was told
    otherwise. Any other base gets the quotient as ``param.grad``, which is zero where the divisor is unusable.

    Args:
        base: Optimizer of ``params``.
        params: Parameters that have a gradient.
        grads: Their gradients, in place as ``param.grad``; they may be divided in place.
        divisor: What they are divided by, a scalar tensor: their global norm, or 1 in place of a longer one.
        buffers: Returns tensors like ``params`` to work in; their contents are lost.
    """
    if torch.compiler.is_compiling():  # which looks into neither fused kernels nor a changed param.grad
        unusable = is_unusable(divisor)
        for grad, unit in zip(grads, torch._foreach_div(grads, divisor), strict=True):
            grad.copy_(unit.masked_fill(unusable, 0.0))
        step_base(base)
        return unusable
    if divides(base, params, grads, divisor):
        unusable = is_unusable(divisor)
        base.grad_scale = divisor.masked_fill(unusable, 1.0)  # type: ignore[attr-defined]
        base.found_inf = (divisor.clamp(max=torch.finfo(divisor.dtype).max) != divisor).float()  # type: ignore[attr-defined]
        try:
            step_base(base, fused=True)
        finally:
            del base.grad_scale, base.found_inf  # type: ignore[attr-defined]
        return unusable
    units = buffers()
    if [param.dtype for param in params] != [grad.dtype for grad in grads]:
        units = [torch.empty_like(param, dtype=grad.dtype) for param, grad in zip(params, grads, strict=True)]
    unusable = unit_gradients(grads, units, divisor)
    try:
        for param, unit in zip(params, units, strict=True):
            param.grad = unit
        step_base(base)
    finally:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
    return unusable


def step_base(base: Optimizer, *, fused: bool | None = None) -> None:
    """Let ``base`` take its step.

    Args:
        base: The optimizer.
        fused: Whether by its fused kernel; None: as it was told. Before a compiler, which cannot look into such
            kernels, it steps without, and without the wrappers that torch puts around a step, which break the graph:
            what they do, the caller's own have done.
    """
    is_compiling = torch.compiler.is_compiling()
    told = [group.get("fused") for group in base.param_groups]
    wanted = False if is_compiling else fused
    try:
        for group, told_one in zip(base.param_groups, told, strict=True):
            if wanted is not None and told_one != wanted and "fused" in group:
                group["fused"] = wanted
        inspect.unwrap(type(base).step)(base) if is_compiling else base.step()
    finally:
        for group, told_one in zip(base.param_groups, told, strict=True):
            if "fused" in group:
                group["fused"] = told_one


def divides(base: Optimizer, params: list[Tensor], grads: list[Tensor], divisor: Tensor) -> bool:
    """Return whether ``base`` itself can divide these gradients in its step.

    It can if it is fused, on plain tensors of one type that lie in memory as their gradients do. In the first step of a
    parameter it may not: torch's fused SGD would leave its momentum uninitialized if it skipped that one.
    """
    return (
        is_fused(base)
        and divisor.dtype == torch.float32
        and not is_sharded(params)
        and {device.type for device in {param.device for param in params}} <= _DIVIDING_DEVICES
        and [param.dtype for param in params] == [grad.dtype for grad in grads]
        and [param.stride() for param in params] == [grad.stride() for grad in grads]
        and all(map(base.state.get, params))
    )


def is_fused(base: Optimizer) -> bool:
    """Return whether ``base`` is to take unit steps by one kernel: as it was told, or torch's SGD where it was not.

    Before the switch SGD steps as torch has it by default, whose rounding differs from the kernel's.
    """
    if getattr(base, "_step_supports_amp_scaling", False):
        return all(group.get("fused") for group in base.param_groups)
    return type(base) is torch.optim.SGD and all(
        group["fused"] is None and not (group["foreach"] or group["differentiable"]) for group in base.param_groups
    )


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
    if _scalers_call() is not None:
        raise RuntimeError(
            "step(closure) under a gradient scaler: it has looked for overflow, and unscaled, before the closure "
            "makes the gradients, so the step would take scaled ones. Call backward(), then the second pass inside "
            "`with optimizer.perturbed():`, then the scaler's (or accelerate's) step() without a closure."
        )


def run_scaled(run: Callable[[], None], gradients: Callable[[], list[Tensor]]) -> bool:
    """Run a second pass in ``step()``; return whether its gradients may be used.

    Under a gradient scaler the first pass's gradients are unscaled by then, and those of the second come scaled: so the
    first are scaled again, and their sum is unscaled. Where that is not finite, the scaler hears of it as of an
    overflow in the first pass, which waits for the device as its own look does.

    Args:
        run: Adds the second pass's gradients.
        gradients: Returns those that are in place.
    """
    call = _scalers_call()
    if call is None:
        run()
        return True
    scale = call["self"]._scale
    torch._foreach_mul_(gradients(), float(scale))
    try:
        run()
    finally:
        grads = gradients()
        torch._foreach_mul_(grads, float(scale.double().reciprocal().float()))  # as the scaler itself has it
    if torch.isfinite(global_norm(grads)):
        return True
    for found in call["optimizer_state"]["found_inf_per_device"].values():
        found.fill_(1.0)
    return False


def _scalers_call() -> dict[str, Any] | None:
    """Return the local variables of the gradient scaler's call of ``step()``, or None without a scaler."""
    frame = sys._getframe(2)
    for _ in range(_FARTHEST_CALLER):
        if frame.f_code.co_name == _SCALERS_CALL:
            return frame.f_locals
        if frame.f_back is None:
            break
        frame = frame.f_back
    return None
