"""Sums over the updates since some moment, kept on the device of each process until they are asked for."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from rts_hf.optim.perturbation import global_norm
from rts_hf.optim.second_pass import every_module


class DeviceSums:
    """Named sums that stay on their device: reading one waits for the device, so all are read at once.

    Args:
        *names: Of the sums, which start at zero.
    """

    def __init__(self, *names: str) -> None:
        self._sums: dict[str, Tensor | float] = dict.fromkeys(names, 0.0)

    def add(self, **values: Tensor | float) -> None:
        """Add to the sums of this process."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value

    def clear(self) -> None:
        """Start again at zero."""
        self._sums = dict.fromkeys(self._sums, 0.0)

    def take(self, accelerator: Any) -> dict[str, float]:
        """Return the sums over all processes as Python numbers, and start again at zero."""
        total = self.total(accelerator)
        self.clear()
        return total

    def total(self, accelerator: Any) -> dict[str, float]:
        """Return the sums over all processes as Python numbers."""
        processes = self.by_process(accelerator)
        return {name: sum(sums[name] for sums in processes) for name in self._sums}

    def by_process(self, accelerator: Any) -> list[dict[str, float]]:
        """Return the sums of each process as Python numbers, in the order of their ranks, the same on all of them."""
        values = [
            torch.as_tensor(value, dtype=torch.float32, device=accelerator.device) for value in self._sums.values()
        ]
        rows = accelerator.gather(torch.stack(values)[None]).tolist()
        return [dict(zip(self._sums, row, strict=True)) for row in rows]

    def restore(self, processes: list[dict[str, float]], accelerator: Any) -> None:
        """Go on from what :meth:`by_process` returned; of another number of processes, the main one takes it all."""
        if len(processes) == accelerator.num_processes:
            mine = processes[accelerator.process_index]
        else:
            whole = {name: sum(sums[name] for sums in processes) for name in self._sums}
            mine = whole if accelerator.is_main_process else {}
        self._sums = {name: mine.get(name, 0.0) for name in self._sums}


_WHOLE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def unclipped_norm(accelerator: Accelerator, model: nn.Module, known: Tensor | None = None) -> Tensor | None:
    """Return the gradients' norm, unscaled where a gradient scaler scaled them, or None where they are sharded.

    accelerate's own way to it clips to infinity, and so reads and writes every gradient once more.

    Args:
        accelerator: That trains.
        model: Whose gradients are complete.
        known: Their norm where they were clipped, which is returned as it is.
    """
    if known is not None or accelerator.distributed_type not in _WHOLE:
        return known
    params = {id(param): param for module in every_module(model) for param in module._parameters.values()}  # tied: once
    grads = [param.grad for param in params.values() if param is not None and param.grad is not None]
    if not grads:
        return None
    accelerator.unscale_gradients()
    return global_norm(grads)
