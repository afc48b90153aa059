"""The arithmetic of two-pass optimizers on lists of tensors: perturb, restore, normalize.

Every function works on whole lists with multi-tensor kernels and never waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
# A CPU gets the sum of squares of many numbers of these types from BLAS in half of the time that torch's norm takes,
# and far more exactly, but by one operation a tensor where torch takes one a list. That pays for the pieces of long
# lists. For longer tensors it is done all the same: torch would round their norm in its fifth digit, or in its fourth.
_DOTTED = (torch.float32, torch.float64)
_DOTTED_FROM = 2**15
_ROUNDED_FROM = 2**22
# Elements of lists that are worked on as one, and of a part of longer ones where a copy in float32 is made of it.
_LONG = 2**25
# Elements of a part that stays in a CPU's cache from one operation to the next.
_CACHED = 2**18
# Devices with a fused kernel of SGD, whose overflow guard is what unit_gradients needs of it.
_FUSED_DEVICES = frozenset({"cpu", "cuda", "xpu", "mps", "mtia", "hpu"})


def global_norm(tensors: list[Tensor]) -> Tensor:
    """Return the L2 norm over all elements of all tensors, as a scalar tensor on the first one's device.

    It is accumulated in float32, or in float64 where a tensor is float64, whatever the tensors' own type; for sharded
    tensors it is the norm over all shards.

    Raises:
        RuntimeError: If some tensors are sharded and others are not.
    """
    return _total([norm for (part,) in _parts(tensors) for norm in _norms(part)])


def _norms(tensors: list[Tensor]) -> list[Tensor]:
    """Return norms, in float32 at least, whose own norm is that of all tensors: of each, or of pieces of long ones."""
    if len(tensors) == 1 and _is_piece(tensors[0]):
        return [torch.dot(tensors[0], tensors[0]).sqrt()]
    if is_sharded(tensors):
        sharded = sum(isinstance(tensor, DTensor) for tensor in tensors)
        if sharded < len(tensors):
            raise RuntimeError(
                f"{sharded} of {len(tensors)} parameters are sharded and the others are not; shard them all: RTSPUGD "
                "does not support fully_shard's ignored_params."
            )
        # the sharding rule of the list norm does not take a dtype
        return [*torch._foreach_norm(_in_float(tensors), 2)]
    dtype = torch.float64 if torch.float64 in dtypes(tensors) else torch.float32
    dotted = [
        t for t in tensors if t.numel() >= _ROUNDED_FROM and t.is_cpu and t.dtype in _DOTTED and t.is_contiguous()
    ]
    if not dotted:
        return [*torch._foreach_norm(tensors, 2, dtype=dtype)]
    pieces = [piece for tensor in dotted for piece in tensor.detach().view(-1).split(_CACHED)]
    kept = {*map(id, dotted)}
    rest = [tensor for tensor in tensors if id(tensor) not in kept]
    return [*(torch.dot(p, p).sqrt() for p in pieces), *(torch._foreach_norm(rest, 2, dtype=dtype) if rest else [])]


def _total(norms: list[Tensor]) -> Tensor:
    """Return the norm of what has these norms, as a scalar tensor on the first one's device."""
    if len({norm.device for norm in norms}) > 1:
        norms = [norm.to(norms[0].device) for norm in norms]
    if len(dtypes(norms)) > 1:  # of parts, some in float32 and some in float64
        norms = [norm.double() for norm in norms]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def probe(tensors: list[Tensor]) -> Tensor:
    """Return the smallest tensor with a 64th of all elements, or the largest: by its norm, how all were scaled."""
    sizes = [*map(Tensor.numel, tensors)]
    enough = sum(sizes) / 64
    return tensors[sizes.index(min((size for size in sizes if size >= enough), default=max(sizes)))]


def copy_(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy every source into its target, bit for bit."""
    if is_sharded(targets):  # has no multi-tensor copy
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)
    elif targets:
        torch._foreach_copy_(targets, sources)


def save_and_measure(
    params: list[Tensor], grads: list[Tensor], saved: list[Tensor], method: TwoPassMethod
) -> tuple[Tensor, Tensor | None]:
    """Copy w into ``saved``, bit for bit, and return ‖g‖ and the norm that ε is divided by, as scalar tensors.

    The second is None where :func:`perturb_` works it out for less.

    Args:
        params: The weights w.
        grads: Their gradients g.
        saved: Tensors like ``params``.
        method: How ε is built.
    """
    goes_by_parts = _goes_by_parts(params)
    gradient_norms, divisors = list[Tensor](), list[Tensor]()
    for weights, gradients, copies in _parts(params, grads, saved) if goes_by_parts else [(params, grads, saved)]:
        copy_(copies, weights)
        gradient_norms += _norms(gradients)
        if goes_by_parts and method.norm_power:
            divisors += _norms(_products(weights, gradients))  # which has the norm of |w|⊙g
    norm = _total(gradient_norms)
    return norm, norm if not method.norm_power else _total(divisors) if divisors else None


def perturb_(
    params: list[Tensor],
    grads: list[Tensor],
    saved: list[Tensor],
    divisor: Tensor | None,
    radius: Tensor | float,
    scale: Tensor | float,
    method: TwoPassMethod,
) -> Tensor:
    """Move ``params`` from w to w + ε, multiply ``grads`` by α_s, both in place, and return ‖ε‖ as a scalar tensor.

    Where the norm that ε is divided by is zero, ε is zero. A gradient with NaN or infinity gives a perturbation that
    is not finite either; the weights come back from ``saved``. A scale of 0 makes NaN of infinity, so that it hides no
    overflow.

    Args:
        params: The weights w.
        grads: Their gradients g, at any common scale: ε does not depend on it.
        saved: A copy of w.
        divisor: The norm that ε is divided by, as :func:`save_and_measure` returned it.
        radius: α_r ≥ 0, a number or a scalar tensor.
        scale: α_s ≥ 0, likewise.
        method: How ε is built.
    """
    if not _goes_by_parts(params):
        epsilon_norm = _perturb_whole_(params, grads, saved, divisor, radius, method)
        _scale_(grads, scale)
        return epsilon_norm
    if divisor is None:
        raise ValueError("divisor is None, but save_and_measure returns one for these params; pass that.")
    factor = quotient(radius, divisor)
    factors = factor.reshape(1)
    epsilon_norms = list[Tensor]()
    for weights, gradients in _parts(params, grads):
        if method.weight_power == method.norm_power == 1 and factor.is_cpu and not _is_low_precision(weights):
            magnitudes = torch._foreach_abs(weights)
            torch._foreach_addcmul_(weights, magnitudes, gradients, factors.expand(len(weights)).contiguous())
        else:
            epsilon_norms += _add_epsilon(weights, gradients, factor, method)
        _scale_(gradients, scale)
    return _total(epsilon_norms) if epsilon_norms else factor * divisor


def _add_epsilon(weights: list[Tensor], gradients: list[Tensor], factor: Tensor, method: TwoPassMethod) -> list[Tensor]:
    """Move ``weights`` to w + ε, with ε in tensors of its own, and return its norms where only they tell ‖ε‖."""
    epsilon = _scaled_directions(weights, gradients, method.weight_power)
    torch._foreach_mul_(epsilon, factor)
    if _is_low_precision(weights):
        # |w|⊙g would underflow or round coarsely, so only the sum is rounded
        norms = _norms(epsilon) if method.weight_power != method.norm_power else []
        torch._foreach_add_(epsilon, [weight.float() for weight in weights])
        copy_(weights, epsilon)
        return norms
    torch._foreach_add_(weights, epsilon)
    return _norms(epsilon) if method.weight_power != method.norm_power else []


def _perturb_whole_(
    params: list[Tensor],
    grads: list[Tensor],
    saved: list[Tensor],
    divisor: Tensor | None,
    radius: Tensor | float,
    method: TwoPassMethod,
) -> Tensor:
    """Move ``params`` to w + ε, with no other working memory than themselves, and return ‖ε‖."""
    if method.weight_power == 0:
        copy_(params, grads)
    else:
        if method.weight_power == 1:
            torch._foreach_abs_(params)
        torch._foreach_mul_(params, grads)
    if divisor is None:
        divisor = global_norm(params)  # for |w|² this is w⊙g, which has the norm of |w|⊙g
    if method.weight_power == 2:
        torch._foreach_mul_(params, saved)
    factor = quotient(radius, divisor)
    torch._foreach_mul_(params, factor)
    epsilon_norm = factor * divisor if method.weight_power == method.norm_power else global_norm(params)
    torch._foreach_add_(params, saved)
    return epsilon_norm


def _scale_(tensors: list[Tensor], factor: Tensor | float) -> None:
    if isinstance(factor, Tensor) and _is_low_precision(tensors):
        copy_(tensors, [*torch._foreach_mul(_in_float(tensors), factor)])  # in place, the factor would be rounded too
    elif isinstance(factor, Tensor) or factor != 1:
        torch._foreach_mul_(tensors, factor)


def quotient(radius: Tensor | float, divisor: Tensor) -> Tensor:
    """Return α_r over the norm that ε is divided by, as a scalar tensor: 0 where that is zero."""
    return divisor.reciprocal().nan_to_num(nan=torch.nan, posinf=0.0) * radius


def _goes_by_parts(params: list[Tensor]) -> bool:
    """Return whether to make ε in memory of its own, part by part.

    Low precision wants it in float32. On a CPU, lists much longer than its cache are read and written less often so;
    shorter ones are faster as one, and on a GPU many operations on small parts cost more than they save.
    """
    return _is_low_precision(params) or (not is_sharded(params) and _is_long_on_cpu(params))


def _is_long_on_cpu(tensors: list[Tensor]) -> bool:
    return sum(map(Tensor.numel, tensors)) > _LONG and all(tensor.is_cpu for tensor in tensors)


# What a list's tensors are is asked often, and a walk over a thousand of them takes Python longer than a GPU needs for
# the arithmetic: so these walk as fast as it can.


def is_sharded(tensors: list[Tensor]) -> bool:
    """Return whether any of the tensors is one of FSDP2's shards."""
    return any(issubclass(kind, DTensor) for kind in {*map(type, tensors)})


def dtypes(tensors: list[Tensor]) -> set[torch.dtype]:
    """Return the types of the tensors' elements."""
    return {tensor.dtype for tensor in tensors}


def _is_piece(tensor: Tensor) -> bool:
    return (
        type(tensor) is Tensor
        and tensor.ndim == 1
        and tensor.is_cpu
        and tensor.dtype in _DOTTED
        and _DOTTED_FROM <= tensor.numel() <= _CACHED
    )


def _is_low_precision(tensors: list[Tensor]) -> bool:
    return not dtypes(tensors).isdisjoint(_LOW_PRECISION)


def _scaled_directions(weights: list[Tensor], gradients: list[Tensor], weight_power: int) -> list[Tensor]:
    """Return ``|w|^weight_power ⊙ g`` in new tensors, in float32 at least."""
    if weight_power == 0:
        return [*torch._foreach_mul(_in_float(gradients), 1.0)]
    if weight_power == 1:
        directions = [*torch._foreach_abs(_in_float(weights))]
        torch._foreach_mul_(directions, _in_float(gradients))
        return directions
    directions = _products(weights, gradients)
    torch._foreach_mul_(directions, _in_float(weights))  # w⊙w⊙g
    return directions


def _products(weights: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    """Return w ⊙ g in new tensors, in float32 at least."""
    return [*torch._foreach_mul(_in_float(weights), _in_float(gradients))]


def _in_float(tensors: list[Tensor]) -> list[Tensor]:
    if not _is_low_precision(tensors):
        return tensors
    return [tensor.float() if tensor.dtype in _LOW_PRECISION else tensor for tensor in tensors]


def _parts(*lists: list[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """Yield lists of tensors that belong together in parts, so that what is made of a part stays small.

    Args:
        *lists: Lists whose tensors at one place have the same shape.
    """
    if any(is_sharded(tensors) for tensors in lists):
        yield lists
        return
    size = _CACHED if _is_long_on_cpu(lists[0]) else _LONG
    if sum(map(Tensor.numel, lists[0])) <= size:
        if lists[0]:
            yield lists
        return
    part: tuple[list[Tensor], ...] = tuple([] for _ in lists)
    held = 0
    for tensors in zip(*lists, strict=True):
        count = tensors[0].numel()
        if count > size and all(tensor.is_contiguous() for tensor in tensors):
            for pieces in zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True):
                yield tuple([piece] for piece in pieces)
            continue
        if held and held + count > size:
            yield part
            part, held = tuple([] for _ in lists), 0
        for members, tensor in zip(part, tensors, strict=True):
            members.append(tensor)
        held += count
    if part[0]:
        yield part


def is_unusable(norm: Tensor) -> Tensor:
    """Return whether a norm is zero, infinite or NaN, as a scalar tensor."""
    limits = torch.finfo(norm.dtype)
    # zero and infinity lie outside the limits, and NaN differs from itself
    return norm.clamp(limits.smallest_normal * limits.eps, limits.max) != norm


def lengthening_divisor(norm: Tensor) -> Tensor:
    """Return what lengthens gradients of this norm to 1 and leaves longer ones as they are, as a scalar tensor.

    A norm that is zero, infinite or NaN is returned as it is.
    """
    return norm.masked_fill((norm > 1) & norm.isfinite(), 1.0)


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
    unusable = is_unusable(norm)
    grads, buffers = _local_shards(grads), _local_shards(buffers)
    # the fused kernel below walks through memory, so a gradient must lie there as its buffer does
    grads = [
        grad if grad.stride() == buffer.stride() and grad.dtype == buffer.dtype else buffer.clone().copy_(grad)
        for grad, buffer in zip(grads, buffers, strict=True)
    ]
    torch._foreach_div_(grads, norm.masked_fill(unusable, 1.0))
    if not {device.type for device in {buffer.device for buffer in buffers}} <= _FUSED_DEVICES:
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
    if not is_sharded(tensors):
        return tensors
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
