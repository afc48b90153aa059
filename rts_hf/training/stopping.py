"""When a run saves and stops, so that a checkpoint is always one from which nothing is lost."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

logger = logging.getLogger(__name__)


class SaveAfterEvaluation(TrainerCallback):
    """Lets a checkpoint that is due at the last update of an epoch, or of the run, wait for the epoch's evaluation.

    A run that resumes there begins with the next epoch, so an evaluation that was not yet in the checkpoint would never
    take place: its best weights, its log entry and what the switch hears of it would be lost.
    """

    def __init__(self) -> None:
        self._waits = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_save and ends_epoch(state) and args.eval_strategy == IntervalStrategy.EPOCH:
            control.should_save = False
            self._waits = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._waits:
            control.should_save = True
            self._waits = False


class StopOnSigterm(TrainerCallback):
    """Saves a checkpoint and stops at the end of the update in which SIGTERM comes.

    Cluster schedulers send it before they take a machine away. Unlike transformers' just-in-time checkpoint, which is
    written inside an update, this one is what an uninterrupted run would have written, so resuming changes nothing. On
    several processes all stop after the same update, whichever of them got the signal.

    Attributes:
        stops: Whether the signal ends the training; the same on all processes.
    """

    def __init__(self) -> None:
        self.stops = False
        self._received = False  # on this process: another may not know of it yet
        self._stops_inside_epoch = False
        self._previous: Any = None
        self._is_installed = False
        self._group: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.stops = self._received = self._stops_inside_epoch = False
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # processes agree over a group on the CPU, so that no update waits for a GPU
            self._group = dist.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            self._previous = signal.signal(signal.SIGTERM, self._receive)
            self._is_installed = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        flag = torch.tensor(int(self._received))
        if self._group is not None:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        self.stops = bool(flag.item())
        if self.stops:
            control.should_training_stop = True
            # at the end of an epoch the checkpoint waits for the evaluation
            self._stops_inside_epoch = not ends_epoch(state)
            control.should_save = self._stops_inside_epoch

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._stops_inside_epoch:  # the Trainer takes a break inside an epoch for its end
            control.should_log = control.should_evaluate = control.should_save = False
        elif self.stops:
            control.should_save = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the signal back to whom it belonged before."""
        if self._is_installed:
            signal.signal(signal.SIGTERM, self._previous)
            self._is_installed = False
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def _receive(self, number: int, frame: Any) -> None:
        self._received = True
        logger.warning("SIGTERM: saving a checkpoint after this update, then stopping.")


def ends_epoch(state: TrainerState) -> bool:
    """Return whether the last update was the last one of its epoch, or of the run."""
    return state.epoch is not None and (float(state.epoch).is_integer() or state.global_step >= state.max_steps)
