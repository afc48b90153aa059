"""An update that a CUDA graph or a compiler takes over: where the run stands, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rts_hf.optim.perturbation import dtypes


class DevicePosition:
    """Steps done, and the α of the coming one, in tensors that a graph's replay moves on by itself.

    Args:
        done: Steps, gradient evaluations and unusable gradients so far.
        alphas: (α_r, α_s) of every step of the run, one at least; steps beyond its end have the last.
        schedules: What those were made of.
        params: Parameters of the run; on the first one's device it all lies.
    """

    def __init__(
        self,
        done: Sequence[int],
        alphas: Sequence[tuple[float, float]],
        schedules: Sequence[float],
        params: list[Tensor],
    ) -> None:
        device = params[0].device
        self.step = done[0]  # as far as the host has gone with it
        self._schedules = schedules
        self._done = torch.tensor(done, device=device)
        self._table = torch.tensor(
            alphas, dtype=torch.float64 if torch.float64 in dtypes(params) else torch.float32, device=device
        )
        self._increments = {count: torch.tensor([1, count], device=device) for count in (1, 2)}

    def stands_at(self, step: int, schedules: Sequence[float]) -> bool:
        """Return whether this is the position after ``step`` steps of a run with these schedules."""
        return self.step == step and self._schedules == schedules

    def alphas(self) -> tuple[Tensor, Tensor]:
        """Return α_r and α_s of the coming step as scalar tensors."""
        row = self._table[self._done[:1].clamp(max=len(self._table) - 1)].view(2)
        return row[0], row[1]

    def advance(self, gradient_evaluations: int, unusable: Tensor | int) -> None:
        """Count one step."""
        self.step += 1
        self._done[:2] += self._increments[gradient_evaluations]
        self._done[2] += unusable

    def read(self) -> list[int]:
        """Return steps, gradient evaluations and unusable gradients; waits for the device."""
        return self._done.tolist()


def is_capturing() -> bool:
    """Return whether a CUDA graph is being captured."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def is_taken_over() -> bool:
    """Return whether what runs is captured, or traced by a compiler, so that no number may be looked at."""
    return torch.compiler.is_compiling() or is_capturing()
