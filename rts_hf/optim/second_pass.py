"""What a second pass over the same batch must repeat or leave alone: random numbers, inputs, BatchNorm statistics."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map


class RandomState:
    """The state of the random generators of torch, Python and numpy at one moment, to draw the same masks again.

    >>> import torch
    >>> state = RandomState(torch.device("cpu"))
    >>> first = torch.rand(2)
    >>> with state.replayed():
    ...     again = torch.rand(2)
    >>> torch.equal(first, again)
    True

    Args:
        device: The device the model runs on; the CPU's generator is always included.
    """

    def __init__(self, device: torch.device) -> None:
        self._cpu = torch.get_rng_state()
        self._python = random.getstate()
        self._numpy = sys.modules.get("numpy.random")  # nobody draws from what was never imported
        if self._numpy is not None:
            self._drawn_by_numpy = self._numpy.get_state()
        self._accelerator = None if device.type == "cpu" else torch.get_device_module(device)
        self._device = device
        if self._accelerator is not None:
            self._accelerated = self._accelerator.get_rng_state(device)

    def restore(self) -> None:
        """Put the generators into this state."""
        torch.set_rng_state(self._cpu)
        random.setstate(self._python)
        if self._numpy is not None:
            self._numpy.set_state(self._drawn_by_numpy)
        if self._accelerator is not None:
            self._accelerator.set_rng_state(self._accelerated, self._device)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw from this state inside the ``with`` block, and go on from where the generators were after it."""
        now = RandomState(self._device)
        self.restore()
        try:
            yield
        finally:
            now.restore()


@dataclass(frozen=True)
class _Kept:
    inputs: Any
    tensors: list[Tensor]
    versions: list[int]
    copies: Any  # None where none were made


class Originals:
    """Keeps the inputs of a pass for another one, as they were, where the pass changes them in place.

    Copies are made of the first passes' inputs, and from the first pass on that changed its own.

    >>> import torch
    >>> originals, images = Originals(), torch.ones(2)
    >>> kept = originals.keep({"images": images})
    >>> _ = images.mul_(0.5)
    >>> originals.settle(kept)
    {'images': tensor([1., 1.])}
    """

    _WATCHED = 20  # passes: timm's Mixup leaves some batches as they are

    def __init__(self) -> None:
        self._seen = 0
        self._changes = False

    def keep(self, inputs: Any) -> _Kept:
        """Return what :meth:`settle` takes, before the pass; ``inputs`` are tensors in tuples, lists and dicts."""
        tensors = [leaf for leaf in tree_flatten(inputs)[0] if _is_data(leaf)]
        self._seen += 1
        makes_copies = self._changes or self._seen <= self._WATCHED
        copies = tree_map(_copy, inputs) if makes_copies else None
        # the containers are new: a pass may take entries out of a dict, or a loop use it again
        again = tree_map(lambda leaf: leaf, inputs)
        return _Kept(again, tensors, [tensor._version for tensor in tensors], copies)

    def settle(self, kept: _Kept, *, is_needed: bool = True) -> Any:
        """Return the inputs as they were when they were kept, after the pass; warn where it is too late for that.

        Args:
            kept: What :meth:`keep` returned.
            is_needed: Whether there is another pass; if not, what is learned is only whether passes change inputs.
        """
        if [tensor._version for tensor in kept.tensors] == kept.versions:
            return kept.inputs
        is_late, self._changes = not self._changes and kept.copies is None, True
        if is_late and is_needed:
            warnings.warn(
                "A forward pass changed its inputs in place, as timm's Mixup does, for the first time after "
                f"{self._seen} that did not: the second pass of this update sees the changed ones. From now on each "
                "pass gets tensors of its own.",
                UserWarning,
                stacklevel=2,
            )
        return kept.inputs if kept.copies is None else kept.copies


def _is_data(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter) and not leaf.is_inference()


def _copy(leaf: Any) -> Any:
    return leaf.detach().clone().requires_grad_(leaf.requires_grad) if _is_data(leaf) else leaf


class BufferSnapshot:
    """A copy of a model's saved buffers: BatchNorm's running statistics and counters.

    Args:
        model: Any module. Buffers that its ``state_dict`` leaves out are left alone: they hold constants.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers: list[Tensor] = []
        for module in every_module(model):  # named_buffers is slow, and this is asked twice an update
            if module._buffers:
                constants = module._non_persistent_buffers_set
                self._buffers += [b for name, b in module._buffers.items() if b is not None and name not in constants]
        with torch.no_grad():
            self._saved = [buffer.clone() for buffer in self._buffers]

    def restore(self) -> None:
        """Put the buffers back to what they were."""
        with torch.no_grad():
            if self._buffers:
                torch._foreach_copy_(self._buffers, self._saved)


@contextmanager
def keep_buffers(model: nn.Module) -> Iterator[None]:
    """Give the model back its saved buffers (BatchNorm's running statistics and counters) after the ``with`` block.

    >>> import torch
    >>> norm = torch.nn.BatchNorm1d(2)
    >>> with keep_buffers(norm):
    ...     _ = norm(torch.rand(4, 2))
    >>> int(norm.num_batches_tracked)
    0

    Args:
        model: Any module. Buffers that its ``state_dict`` leaves out are left alone: they hold constants.
    """
    snapshot = BufferSnapshot(model)
    try:
        yield
    finally:
        snapshot.restore()


def every_module(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a model and all modules inside it, in any order, one that stands in several places several times.

    ``nn.Module.modules`` makes each one's name and keeps them apart, which takes several times as long.

    >>> import torch
    >>> len([*every_module(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.ReLU())))])
    4

    Args:
        model: Any module.
    """
    waiting = [model]
    while waiting:
        module = waiting.pop()
        waiting += [child for child in module._modules.values() if child is not None]
        yield module
