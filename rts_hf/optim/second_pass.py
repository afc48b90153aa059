"""What a second pass over the same batch must repeat or leave alone: random numbers and BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class RandomState:
    """The state of torch's random generators at one moment, to draw the same dropout masks again.

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
        self._accelerator = None if device.type == "cpu" else torch.get_device_module(device)
        self._device = device
        if self._accelerator is not None:
            self._accelerated = self._accelerator.get_rng_state(device)

    def restore(self) -> None:
        """Put the generators into this state."""
        torch.set_rng_state(self._cpu)
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
