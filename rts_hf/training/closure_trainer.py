"""A trainer for baselines that compute their second gradient inside ``step()``."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from temperon import cosine_tail, wsd
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers.trainer_utils import SchedulerType

from rts_hf.optim.second_pass import RandomState, keep_buffers
from rts_hf.training.temperon import TemperonOptimizer
from rts_hf.training.trainer import RTSTrainer


class ClosureTrainer(RTSTrainer):
    """An :class:`rts_hf.RTSTrainer` that trains with :class:`rts_hf.training.temperon.TemperonOptimizer`.

    Temperon's authors found that the tail must own a whole anneal of the learning rate: it stays at its peak until the
    tail begins and then falls by a cosine, or linearly with ``lr_scheduler_type="linear"``, by the package's own
    schedules. The second pass takes the first one's dropout masks and leaves BatchNorm's statistics alone, as for the
    other methods. The package knows neither accumulated gradients nor several processes nor gradient scaling.

    A gradient of either pass that is not finite is dropped and counted, as :class:`rts_hf.RTSTrainer` does.

    Raises:
        ValueError: For what the package does not know, or ``tail_frac=0``, which is SGD without an anneal.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        refused = {
            "gradient_accumulation_steps": self.args.gradient_accumulation_steps > 1,
            "fp16": self.args.fp16,
            "max_grad_norm": self.args.max_grad_norm > 0,
            "warmup_steps": self.args.get_warmup_steps(1000) > 0,
        }
        for name, is_set in refused.items():
            if is_set:
                raise ValueError(f"{name}={getattr(self.args, name)!r} is not there for opt='temperon'; leave it out.")
        if self.args.world_size > 1:
            raise ValueError(f"{self.args.world_size} processes are too many for opt='temperon'; start one.")
        if (self.args.opt_args or {}).get("tail_frac") == 0:  # type: ignore[union-attr]
            raise ValueError("tail_frac=0 leaves opt='temperon' neither tail nor anneal; use opt='sgd'.")
        if self.args.lr_scheduler_type not in (SchedulerType.COSINE, SchedulerType.LINEAR):
            raise ValueError(
                f"lr_scheduler_type={self.args.lr_scheduler_type!r} is not one of opt='temperon': cosine, linear."
            )

    @property
    def temperon(self) -> TemperonOptimizer:
        """The optimizer, inside what wraps it."""
        optimizer: Any = self.optimizer
        while not isinstance(optimizer, TemperonOptimizer):
            optimizer = optimizer.optimizer
        return optimizer

    @property
    def gradient_evaluations(self) -> int:
        """Passes over an update's images so far: one an update, two in the tail."""
        return 0 if self.optimizer is None else self.temperon.gradient_evaluations + self._lost_evaluations

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Create the package's schedule, and tell the optimizer how long the run is."""
        self.temperon.total_steps = num_training_steps
        if self.state.global_step == 0:
            self.temperon.restart()  # a second call of train(), or another try with a smaller batch
        tail = self.temperon.tail_frac
        is_linear = self.args.lr_scheduler_type == SchedulerType.LINEAR
        shape = wsd(num_training_steps, 0, tail) if is_linear else cosine_tail(num_training_steps, tail)
        self.lr_scheduler = LambdaLR(self.temperon if optimizer is None else optimizer, shape)
        return self.lr_scheduler

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run the first pass, and leave the optimizer the means for a second."""
        state = RandomState(self.args.device)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.temperon.second_pass = functools.partial(self._run_again, model, inputs, num_items_in_batch, state)
        return loss

    def _run_again(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None, state: RandomState
    ) -> Tensor:
        self.temperon.zero_grad()
        self._in_second_pass = True
        try:
            with keep_buffers(model), state.replayed():
                loss = super(RTSTrainer, self).training_step(model, inputs, num_items_in_batch)
            size = float(get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
            if not math.isfinite(size):
                self.temperon.zero_grad()  # weights are put back, and the base optimizer has nothing to step on
                self.faults.observe_norm(size, update=self.state.global_step + 1)
            return loss
        finally:
            self._in_second_pass = False
