"""The arithmetic of two-pass optimizers on lists of tensors: perturb, restore, normalize.

Every function works on whole lists with multi-tensor kernels and never waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.sgd import sgd


@dataclass(frozen=True)
class TwoPassMethod:
    """How a two-pass method builds ε from w and g, and what it hands to the base optimizer.

    ``ε = α_r · |w|^weight_power ⊙ g / ‖ |w|^norm_power ⊙ g ‖``

    Attributes:
        weight_power: Exponent of ``|w|`` in the direction of ε.
        norm_power: Exponent of ``|w|`` in the norm that ε is divided by.
        unit_gradient: Whether the base optimizer receives the gradient divided by its norm.
        source: Where the method was published.
    """

    weight_power: int
    norm_power: int
    unit_gradient: bool
    source: str


# Saved optimizers name an entry by its place: append, never reorder.
METHODS: Mapping[str, TwoPassMethod] = MappingProxyType(
    {
        "pugd": TwoPassMethod(1, 1, True, "Perturbated Unit Gradient Descent, Tseng et al., 2022"),
        "sam": TwoPassMethod(0, 0, False, "Sharpness-Aware Minimization, Foret et al., ICLR 2021"),
        "asam": TwoPassMethod(2, 1, False, "Adaptive Sharpness-Aware Minimization, Kwon et al., ICML 2021"),
    }
)


_LOW_PRECISION = (torch.float16, torch.bfloat16)
# Devices with a fused kernel of SGD, whose overflow guard is what unit_gradients needs of it.
_FUSED_DEVICES = frozenset({"cpu", "cuda", "xpu", "mps", "mtia", "hpu"})


def global_norm(tensors: list[Tensor]) -> Tensor:
    """Return the L2 norm over all elements of all tensors, as a scalar tensor on the first one's device.

    It is accumulated in float32, or in float64 where a tensor is float64, whatever the tensors' own type; for sharded
    tensors it is the norm over all shards.

    Raises:
        RuntimeError: If some tensors are sharded and others are not.
    """
    sharded = sum(isinstance(tensor, DTensor) for tensor in tensors)
    if sharded:
        if sharded < len(tensors):
            raise RuntimeError(
                f"{sharded} of {len(tensors)} parameters are sharded and the others are not; shard them all: RTSPUGD "
                "does not support fully_shard's ignored_params."
            )
        # the sharding rule of the list norm does not take a dtype
        norms = torch._foreach_norm([t.float() if t.dtype in _LOW_PRECISION else t for t in tensors], 2)
    else:
        dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
        norms = torch._foreach_norm(tensors, 2, dtype=dtype)
    if any(norm.device != norms[0].device for norm in norms):
        norms = tuple(norm.to(norms[0].device) for norm in norms)
    norm = torch.linalg.vector_norm(torch.stack(norms))
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def copy_(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy every source into its target, bit for bit."""
    if any(isinstance(target, DTensor) for target in targets):  # has no multi-tensor copy
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)
    elif targets:
        torch._foreach_copy_(targets, sources)


def perturb_(
    params: list[Tensor], grads: list[Tensor], saved: list[Tensor], radius: float, method: TwoPassMethod
) -> Tensor:
    """Move ``params`` from w to w + ε in place and return ‖ε‖ as a scalar tensor.

    Where the norm that ε is divided by is zero, ε is zero. A gradient with NaN or infinity gives a perturbation that
    is not finite either; the weights come back from ``saved``.

    Args:
        params: The weights w; they double as working memory, so that none is allocated.
        grads: Their gradients g, at any common scale: ε does not depend on it.
        saved: A copy of w.
        radius: α_r ≥ 0.
        method: How ε is built.
    """
    if any(param.dtype in _LOW_PRECISION for param in params):
        # |w|⊙g would underflow or round coarsely: build w + ε in float32 and let only the sum be rounded.
        weights = [weight.float() for weight in saved]
        copies = [weight.clone() for weight in weights]
        epsilon_norm = perturb_(weights, [grad.float() for grad in grads], copies, radius, method)
        copy_(params, weights)
        return epsilon_norm

    if method.weight_power == 0:
        copy_(params, grads)
    else:
        if method.weight_power == 1:
            torch._foreach_abs_(params)
        torch._foreach_mul_(params, grads)  # for |w|² this is w⊙g, which has the norm of |w|⊙g
    divisor = global_norm(params)
    if method.weight_power == 2:
        torch._foreach_mul_(params, saved)
    factor = torch.where(divisor == 0, divisor, radius / divisor)
    torch._foreach_mul_(params, factor)
    epsilon_norm = factor * divisor if method.weight_power == method.norm_power else global_norm(params)
    torch._foreach_add_(params, saved)
    return epsilon_norm


def scale_(grads: list[Tensor], factor: float) -> None:
    """Multiply the gradients in place; a factor of 0 makes NaN of infinity, so that it hides no overflow."""
    if factor != 1 and grads:
        torch._foreach_mul_(grads, factor)


def unit_gradients(grads: list[Tensor], buffers: list[Tensor], norm: Tensor) -> Tensor:
    """Write every gradient, divided by the global norm, into its buffer.

    Where the norm is zero, infinite or NaN the buffers are zero, so that no such gradient reaches the weights.
    ``grads`` may be divided in place too.

    Args:
        grads: The gradients.
        buffers: A tensor of each parameter's shape, strides and type; gradients may differ in the latter two.
        norm: The gradients' global norm, a scalar tensor.

    Returns:
        Whether the norm is unusable, as a scalar tensor.
    """
    limits = torch.finfo(norm.dtype)
    # zero and infinity lie outside the limits, and NaN differs from itself
    unusable = norm.clamp(limits.smallest_normal * limits.eps, limits.max) != norm
    grads, buffers = _local_shards(grads), _local_shards(buffers)
    # the fused kernel below walks through memory, so a gradient must lie there as its buffer does
    grads = [
        grad if grad.stride() == buffer.stride() and grad.dtype == buffer.dtype else buffer.clone().copy_(grad)
        for grad, buffer in zip(grads, buffers, strict=True)
    ]
    torch._foreach_div_(grads, norm.masked_fill(unusable, 1.0))
    if any(buffer.device.type not in _FUSED_DEVICES for buffer in buffers):
        for grad, buffer in zip(grads, buffers, strict=True):
            buffer.copy_(torch.where(unusable, torch.zeros_like(grad), grad))
        return unusable
    torch._foreach_zero_(buffers)
    # buffer ← buffer + grad, or nothing where the norm is unusable. Multiplying by zero would keep a NaN; the overflow
    # guard of the fused kernel is the one multi-tensor operation that decides on the device.
    sgd(
        buffers,
        grads,
        [None] * len(buffers),
        fused=True,
        found_inf=unusable.float(),
        lr=-1.0,
        weight_decay=0.0,
        momentum=0.0,
        dampening=0.0,
        nesterov=False,
        maximize=False,
    )
    return unusable


def _local_shards(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
