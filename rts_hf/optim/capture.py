"""An update that a CUDA graph or a compiler takes over: where the run stands, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rts_hf.optim.perturbation import dtypes
from rts_hf.optim.schedules import progress_at
from rts_hf.optim.timing import TimedOptimizer


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


class CapturableOptimizer(TimedOptimizer):
    """A timed optimizer whose position lies on the device too, where it is capturable, from the first update on.

    A subclass sets ``capturable``, and gives the schedules' values and the memory that its update writes to.
    """

    capturable = False
    _position: DevicePosition | None = None
    _has_graph = False
    _unusable: Tensor | int = 0
    _held_for_graphs: list[Any]

    def _alphas_at(self, progress: float) -> tuple[float, float]:
        """Return (α_r, α_s)."""
        raise NotImplementedError

    def _memory(self) -> tuple[Any, ...]:
        """Return what holds the tensors that an update works in, besides parameters and state."""
        raise NotImplementedError

    def _forget_transient(self) -> None:
        """Begin without a position on the device, at construction and after a load."""
        self.__dict__.setdefault("_held_for_graphs", [])  # which may be replayed after a load, too
        self._unusable, self._has_graph, self._position = 0, False, None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "capturable": self.capturable}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._let_go()
        super().__setstate__(state)

    def _device_position(self, params: list[Tensor]) -> DevicePosition | None:
        """Return where the run stands on the device, made anew where it is not what the groups say; None if not asked.

        Raises:
            RuntimeError: If a graph is captured before it can be.
        """
        is_captured = is_capturing()
        if is_captured and (not self.capturable or self._position is None or self.perturbs_from is None):
            raise RuntimeError(
                f"a CUDA graph is captured with capturable={self.capturable}, phase={self.phase!r} and "
                f"step={self._lead['rts_step']}: construct RTSPUGD with capturable=True, and capture once it perturbs, "
                "after at least one update that was not captured."
            )
        if not self.capturable or not params:
            return None
        if is_captured:
            self._has_graph = True
            # a graph knows addresses, which must not become another tensor's
            self._held_for_graphs.append((self._position, *self._memory()))
        elif self._position is None or not self._position.stands_at(self._lead["rts_step"], self._schedule_entries()):
            done = [self._lead["rts_step"], self._lead["rts_gradient_evaluations"], self._unusable_gradients()]
            total = self.total_steps
            alphas = [self._alphas_at(progress_at(step, total)) for step in range(total or 1)]
            self._let_go()
            self._position = DevicePosition(done, alphas, self._schedule_entries(), params)
        return self._position

    def _schedule_entries(self) -> list[float]:
        lead = self._lead
        return [lead[key] for key in lead if key.startswith(("rts_radius", "rts_scale", "rts_total_steps"))]

    def _unusable_gradients(self) -> int:
        return int(self._unusable) if self._position is None else self._position.read()[2]

    def _catch_up(self) -> None:
        if self._has_graph and self._position is not None and not is_taken_over():
            steps, evaluations, _ = self._position.read()
            self._position.step = steps
            self._set(rts_step=steps, rts_gradient_evaluations=evaluations)
            if not self._position.stands_at(steps, self._schedule_entries()):
                self._warn_once(
                    "the schedules have changed since an update was captured: its graph goes on with the old ones, and "
                    "after the next update without it no longer moves this optimizer's position. Capture anew."
                )

    def _let_go(self) -> None:
        if self._position is not None:
            self._unusable = self._unusable_gradients()
        self._has_graph, self._position = False, None


def is_capturing() -> bool:
    """Return whether a CUDA graph is being captured."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def is_taken_over() -> bool:
    """Return whether what runs is captured, or traced by a compiler, so that no number may be looked at."""
    return torch.compiler.is_compiling() or is_capturing()
