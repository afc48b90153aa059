"""The two passes over memory of a perturbation, as two kernels on all tensors at once, where Triton is there.

Multi-tensor operations of torch make a pass for each operation: 11 transfers of all weights where these make 7.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from rts_hf.optim.capture import is_capturing
from rts_hf.optim.perturbation import TwoPassMethod, quotient

_CHUNK = 16384  # elements of one program
_BLOCK = 1024  # of them at a time


@triton.jit
def _tensor(table, index):
    return tl.load(table + index).to(tl.pointer_type(tl.float32))


@triton.jit
def _place(program, table, count, sizes, owners, starts):
    owner = tl.load(owners + program)
    return (
        owner,
        tl.load(starts + program),
        tl.load(sizes + owner),
        _tensor(table, owner),
        _tensor(table, count + owner),
    )


@triton.jit
def _save_and_measure(
    table,
    count,
    sizes,
    owners,
    starts,
    squares,
    MEASURED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    owner, start, size, weights, gradients = _place(program, table, count, sizes, owners, starts)
    copies = _tensor(table, 2 * count + owner)
    of_g, of_product = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for offset in range(0, CHUNK, BLOCK):
        at = start + offset + tl.arange(0, BLOCK)
        inside = at < size
        w = tl.load(weights + at, mask=inside, other=0.0)
        g = tl.load(gradients + at, mask=inside, other=0.0)
        tl.store(copies + at, w, mask=inside)
        of_g += g * g
        if MEASURED:
            of_product += (w * g) * (w * g)
    tl.store(squares + 2 * program, tl.sum(of_g))
    tl.store(squares + 2 * program + 1, tl.sum(of_product))


@triton.jit
def _perturb(
    table,
    count,
    sizes,
    owners,
    starts,
    factor,
    scale,
    squares,
    POWER: tl.constexpr,
    MEASURED: tl.constexpr,
    SCALED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    _, start, size, weights, gradients = _place(program, table, count, sizes, owners, starts)
    by, of_epsilon = tl.load(factor), tl.zeros([BLOCK], tl.float32)
    if SCALED == "by a tensor":
        scale = tl.load(scale)
    for offset in range(0, CHUNK, BLOCK):
        at = start + offset + tl.arange(0, BLOCK)
        inside = at < size
        w = tl.load(weights + at, mask=inside, other=0.0)
        g = tl.load(gradients + at, mask=inside, other=0.0)
        epsilon = g * by
        if POWER == 1:
            epsilon = tl.abs(w) * g * by
        if POWER == 2:
            epsilon = w * g * w * by
        tl.store(weights + at, w + epsilon, mask=inside)
        if SCALED != "not":
            tl.store(gradients + at, g * scale, mask=inside)
        if MEASURED:
            of_epsilon += epsilon * epsilon
    if MEASURED:
        tl.store(squares + program, tl.sum(of_epsilon))


class Lists:
    """Weights, their gradients and room for a copy of the weights, as the kernels see them: addresses and chunks.

    Holds no tensor of the lists. Whether it still describes them is asked at every update.

    Args:
        params: The weights w, in float32 on one device, each without gaps in its memory.
        grads: Their gradients g, with the same type and strides.
        saved: Tensors like ``params``.
    """

    def __init__(self, params: list[Tensor], grads: list[Tensor], saved: list[Tensor]) -> None:
        device = params[0].device
        sizes = [param.numel() for param in params]
        chunks = [(owner, start) for owner, size in enumerate(sizes) for start in range(0, size, _CHUNK)]
        self.sizes = sizes
        self._addresses = _addresses(params, grads, saved)
        self._table = _to_device(self._addresses, device)
        self._sizes = _to_device(sizes, device)
        self._owners, self._starts = (_to_device(column, device) for column in zip(*chunks, strict=True))

    def describe(self, params: list[Tensor], grads: list[Tensor], saved: list[Tensor]) -> bool:
        """Return whether these are the lists, after it has looked where their tensors lie now."""
        if self._sizes.device != params[0].device or self.sizes != [param.numel() for param in params]:
            return False
        addresses = _addresses(params, grads, saved)
        if addresses != self._addresses:
            if is_capturing():  # a graph would copy from where the host has other numbers by then
                warnings.warn(
                    "gradients lie elsewhere in this CUDA graph than before it, so Triton's kernels are left out of "
                    "it; clear them by zero_grad(set_to_none=False), in the updates before it too.",
                    UserWarning,
                    stacklevel=2,
                )
                return False
            self._addresses, self._table = addresses, _to_device(addresses, self._sizes.device)
        return True

    def tensors(self) -> list[Tensor]:
        """Return what a captured launch reads."""
        return [self._table, self._sizes, self._owners, self._starts]

    def save_and_measure(self, method: TwoPassMethod) -> tuple[Tensor, Tensor]:
        """Copy w, bit for bit, and return ‖g‖ and the norm that ε is divided by, as scalar tensors."""
        squares = self._sizes.new_empty((len(self._owners), 2), dtype=torch.float32)
        self._launch(_save_and_measure, squares, MEASURED=method.norm_power == 1)
        norms = squares.sum(0).sqrt()
        return norms[0], norms[method.norm_power]

    def perturb_(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        divisor: Tensor,
        radius: Tensor | float,
        scale: Tensor | float,
        method: TwoPassMethod,
    ) -> Tensor:
        """Move w to w + ε, multiply g by α_s, both in place, and return ‖ε‖ as a scalar tensor."""
        factor = quotient(radius, divisor)
        is_measured = method.weight_power != method.norm_power
        squares = self._sizes.new_empty(len(self._owners) if is_measured else 0, dtype=torch.float32)
        scaled = "by a tensor" if isinstance(scale, Tensor) else "not" if scale == 1 else "by a number"
        self._launch(_perturb, factor, scale, squares, POWER=method.weight_power, MEASURED=is_measured, SCALED=scaled)
        # autograd must see that they have changed, as torch's own operations tell it
        torch.autograd.graph.increment_version(params if scaled == "not" else [*params, *grads])
        return squares.sum().sqrt() if is_measured else factor * divisor

    def _launch(self, kernel: Any, *arguments: Any, **constants: Any) -> None:
        lists = (self._table, len(self.sizes), self._sizes, self._owners, self._starts)
        with torch.cuda.device_of(self._table):  # Triton launches on the current device
            kernel[(len(self._owners),)](*lists, *arguments, CHUNK=_CHUNK, BLOCK=_BLOCK, **constants)


def lists_for(params: list[Tensor], grads: list[Tensor], saved: list[Tensor], last: Lists | None) -> Lists | None:
    """Return the lists as the kernels see them, ``last`` where it still describes them, or None where they may not.

    They may on a GPU, for plain float32 tensors that lie in memory without gaps, gradients as their weights do.

    Args:
        params, grads, saved: As for :class:`Lists`.
        last: What the last update had.
    """
    if not all(
        type(grad) is Tensor
        and type(param) in (Tensor, nn.Parameter)
        and grad.dtype is param.dtype is torch.float32
        and grad.device == params[0].device
        and grad.stride() == param.stride() == copy.stride()
        for param, grad, copy in zip(params, grads, saved, strict=True)
    ):
        return None
    if last is not None and last.describe(params, grads, saved):
        return last
    if is_capturing() or not works_on(params[0].device):
        return None
    if not all(map(torch.ops.aten.is_non_overlapping_and_dense, params)) or not sum(map(Tensor.numel, params)):
        return None
    return Lists(params, grads, saved)


@lru_cache
def works_on(device: torch.device) -> bool:
    """Return whether the kernels can be made and do what torch does on this device; says so once where not."""
    try:
        generator = torch.Generator().manual_seed(0)
        weights, gradients = (torch.randn(_CHUNK + 3, generator=generator).to(device) for _ in range(2))
        expected = weights + 0.5 * weights.abs() * gradients, 0.25 * gradients
        copy = torch.empty_like(weights)  # held here, since the lists hold addresses alone
        lists = Lists([weights], [gradients], [copy])
        method = TwoPassMethod(1, 1, True, "")
        _, divisor = lists.save_and_measure(method)
        lists.perturb_([weights], [gradients], divisor, 0.5 * divisor, 0.25, method)
        torch.testing.assert_close((weights, gradients), expected)
    except Exception as error:
        warnings.warn(
            f"Triton's kernels do not work on {device} ({error}), so torch's multi-tensor operations perturb, which "
            "takes longer.",
            UserWarning,
            stacklevel=2,
        )
        return False
    return True


def _addresses(*lists: list[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensors in lists for tensor in tensors]


def _to_device(numbers: Sequence[int], device: torch.device) -> Tensor:
    host = torch.tensor(numbers)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
