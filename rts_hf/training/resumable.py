"""A Trainer whose resumed run is the uninterrupted one: weights, logs and counters."""

from __future__ import annotations

import hashlib
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import DistributedType
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import SaveStrategy, has_length

from rts_hf.data.batches import collate, collate_for_device
from rts_hf.training.arguments import RTSTrainingArguments, trajectory_settings
from rts_hf.training.checkpoints import (
    STATE_KEY,
    check_same_run,
    checkpoint_meant,
    mark_begun,
    mark_complete,
    own_state,
    read_state,
    rotate,
)
from rts_hf.training.stopping import SaveAfterEvaluation, StopOnSigterm
from rts_hf.training.sums import DeviceSums
from rts_hf.upstream import check_internals, take

check_internals("transformers", "accelerate")


class SafeSavingTrainer(Trainer):
    """A Trainer whose folders hold safetensors, JSON, and tensors and plain values.

    transformers also writes its training arguments, as a pickle that only ``weights_only=False`` opens and that nothing
    reads: it is left out. Of the random generators' states it writes numpy's as an array, which asks for numpy's own
    classes when it is loaded: it is written as a list.
    """

    def _save(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        super()._save(output_dir, *args, **kwargs)
        self._leave_out_arguments(output_dir)

    def _push_from_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        pushed = super()._push_from_checkpoint(*args, **kwargs)
        self._leave_out_arguments(self.args.output_dir)
        return pushed

    def _leave_out_arguments(self, folder: str | None) -> None:
        if self.args.should_save:
            Path(str(self.args.output_dir if folder is None else folder), TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        name = "rng_state.pth" if self.args.world_size <= 1 else f"rng_state_{self.args.process_index}.pth"
        path = Path(output_dir, name)
        state = torch.load(path, weights_only=False)  # written a moment ago, by this process
        kind, keys, *rest = state["numpy"]
        state["numpy"] = (kind, [int(key) for key in keys], *rest)
        part = path.with_suffix(".part")  # a run that is killed now must not leave half a file under the name
        torch.save(state, part)
        os.replace(part, path)


class SeededDraws(Dataset[Any]):
    """A map-style data set whose random draws hang on the seed, the epoch and the samples fetched, and on nothing else.

    Batches are fetched ahead of the update that uses them, so the state of the generators in a checkpoint is already
    behind the draws for the next batch: a resumed run could not draw them again. Here each fetch seeds the generators
    of torch (on the CPU), numpy and Python, and puts their states back afterwards. Worker processes draw the same.

    >>> class Noise(Dataset):
    ...     def __len__(self): return 4
    ...     def __getitem__(self, index): return round(float(torch.rand(())), 6)
    >>> noise = SeededDraws(Noise(), seed=0)
    >>> first = noise.__getitems__([2, 0])
    >>> noise.__getitems__([2, 0]) == first
    True
    >>> noise.begin_epoch(1)
    >>> noise.__getitems__([2, 0]) == first
    False

    Args:
        dataset: Any data set with ``__len__`` and ``__getitem__``; its other attributes are reached through this one.
        seed: Of the run.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that persist must hear of it

    def begin_epoch(self, epoch: int) -> None:
        """Let the fetches from now on belong to this epoch, counted from 0."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        with self._seeded([index]):
            return self.dataset[index]

    def __getitems__(self, indices: Sequence[int]) -> Any:
        with self._seeded(indices):
            if callable(getattr(self.dataset, "__getitems__", None)):
                return self.dataset.__getitems__(indices)
            return [self.dataset[index] for index in indices]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # asked for while this is copied to a worker
            raise AttributeError(name)
        return getattr(self.dataset, name)

    @contextmanager
    def _seeded(self, indices: Sequence[int]) -> Iterator[None]:
        text = f"{self.seed} {int(self._epoch)} {[_plain(index) for index in indices]}"
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")
        states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            torch.default_generator.set_state(states[0])
            np.random.set_state(states[1])
            random.setstate(states[2])


def _plain(index: Any) -> Any:
    """Return an index as it is written the same in every process, whatever kind of number it is."""
    return int(index) if isinstance(index, int | np.integer | torch.Tensor) else index


_PATIENCE = "early_stopping_patience_counter"


class ResumableTrainer(SafeSavingTrainer):
    """A :class:`transformers.Trainer` that keeps in its checkpoints what transformers leaves out of them.

    That is: the losses since the last log entry and before it, a subclass's own sums and counters, the time spent, and
    the arguments, which must be the same when the run goes on. A marker written last tells a whole checkpoint from one
    that was cut off, and older checkpoints are deleted only after it.

    Attributes:
        run_arguments: Arguments of the model and the data by name, kept in checkpoints and compared on resume.
        resumed_at: Updates done when the run was resumed, each time.
        changes: What was changed then, as texts that begin with the update.
        preparation_seconds: What this command spent before training, to be counted too.
    """

    args: RTSTrainingArguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(SaveAfterEvaluation())
        if self.args.enable_jit_checkpoint:  # transformers' own saves inside an update, which cannot be gone on with
            self.remove_callback(take("transformers", "JITCheckpointCallback"))
            if not any(isinstance(callback, StopOnSigterm) for callback in self.callback_handler.callbacks):
                self.add_callback(StopOnSigterm())
        self.run_arguments: dict[str, dict[str, Any]] = {}
        self.resumed_at: list[int] = []
        self.changes: list[str] = []
        self.preparation_seconds = 0.0
        self._seconds_before = 0.0
        self._started = time.monotonic()
        self._device_sums: dict[str, DeviceSums] = {}
        self._resumed_loss: dict[str, Any] | None = None
        self._draws: SeededDraws | None = None
        self._loads_from = ""
        self._loses_columns = False

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the run so far, without the time between two commands of a resumed one."""
        return self._seconds_before + self.preparation_seconds + time.monotonic() - self._started

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as :meth:`transformers.Trainer.train` does.

        Args:
            resume_from_checkpoint: A checkpoint's folder; True or ``"last"`` for the newest whole one of
                ``args.output_dir``; None to start anew.
            *args, **kwargs: As for :meth:`transformers.Trainer.train`.

        Raises:
            ValueError: If there is no such checkpoint, or a run cannot go on from it.
        """
        checkpoint = checkpoint_meant(resume_from_checkpoint, str(self.args.output_dir))
        self._started = time.monotonic()
        self._seconds_before = 0.0
        self.resumed_at = []
        self.changes = []
        evaluates_first = self.args.eval_on_start
        self.args.eval_on_start = evaluates_first and checkpoint is None  # the run had that evaluation at its start
        try:
            output = super().train(checkpoint, *args, **kwargs)
        finally:
            self.args.eval_on_start = evaluates_first
        return output._replace(training_loss=output.metrics.get("train_loss", output.training_loss))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the Trainer does, with the mean loss of all updates of the run, also those before it was resumed."""
        if "train_loss" in logs and "train_runtime" in logs and self.state.global_step:
            logs["train_loss"] = self._total_loss_scalar / self.state.global_step
        super().log(logs, *args, **kwargs)

    # ---- Data ----

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        self._loses_columns = isinstance(dataset, datasets.Dataset)
        is_map_style = hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset)
        if kwargs.get("is_training") and is_map_style:
            if self._loses_columns:
                dataset = self._remove_unused_columns(dataset, description=kwargs["description"])
            if kwargs.get("sampler_fn") is not None:  # which may look at what kind of data set it is
                kwargs["sampler_fn"] = partial(_sampler_of, kwargs["sampler_fn"], dataset)
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            dataset = self._draws = SeededDraws(dataset, seed)
        return super()._get_dataloader(dataset, *args, **kwargs)

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        # of a data set that has lost its columns the collator gets all; this package's own takes what a model knows
        if data_collator is collate:
            parallel = self.accelerator
            is_moved_whole = not parallel.dispatch_batches and parallel.distributed_type != DistributedType.XLA
            return collate_for_device if is_moved_whole else collate
        if self._loses_columns:
            return data_collator
        return super()._get_collator_with_removed_columns(data_collator, description)

    # ---- What a subclass keeps besides its sums ----

    def _counters(self) -> dict[str, Any]:
        """Return further state as plain values; :meth:`_set_counters` takes it back."""
        return {}

    def _set_counters(self, counters: dict[str, Any]) -> None:
        pass

    # ---- Saving ----

    def _save_checkpoint(self, model: Any, trial: Any, *args: Any, **kwargs: Any) -> None:
        states: Any = self.state.stateful_callbacks
        states[STATE_KEY] = {"args": {}, "attributes": self._describe_state()}
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            if self.args.should_save:
                mark_begun(folder)
            self.accelerator.wait_for_everyone()  # before that no process may write its part
            super()._save_checkpoint(model, trial, *args, **kwargs)
            self.accelerator.wait_for_everyone()  # now each process has written its part
            if self.args.should_save:
                mark_complete(folder)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise OSError(
                f"{folder} could not be saved: {error}. The earlier checkpoints are as they were; make room if the "
                "disk is full, and go on with resume_from_checkpoint='last'."
            ) from error
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate(folder.parent, limit, self.state.best_model_checkpoint)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Take the latest of equally good evaluations for the best: its learning rate is the most annealed."""
        is_best = super()._determine_best_metric(metrics, trial)
        # under save_strategy="best" the Trainer saves only what this calls best; a signal's checkpoint is due anyhow
        must_save = any(isinstance(c, StopOnSigterm) and c.stops for c in self.callback_handler.callbacks)
        name = self.args.metric_for_best_model
        if is_best or name is None:
            return is_best or must_save
        is_equal = metrics[name if name.startswith("eval_") else f"eval_{name}"] == self.state.best_metric
        if is_equal and self.args.save_strategy != SaveStrategy.NO:
            self.state.best_global_step = self.state.global_step
        return is_equal or must_save

    def _describe_state(self) -> dict[str, Any]:
        return {
            "arguments": self._all_arguments(),
            "sums": {name: sums.by_process(self.accelerator) for name, sums in self._device_sums.items()},
            "loss": {
                "unlogged": self.accelerator.gather(self._tr_loss.float().reshape(1)).tolist(),
                "total": self._total_loss_scalar,
                "last_logged": self._globalstep_last_logged,
            },
            "counters": self._counters(),
            "seconds": round(self.seconds, 3),
            "resumed_at": self.resumed_at,
            "changes": self.changes,
        }

    # ---- Going on ----

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        self._loads_from = resume_from_checkpoint
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)

    def _load_best_model(self) -> None:
        self._loads_from = str(self.state.best_model_checkpoint)
        super()._load_best_model()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Read weights as ``from_pretrained`` does where they were saved under other names than the model's own.

        transformers saves some models, ViT among them, under the names of older releases, which the Trainer's own way
        to load them passes over with a warning.
        """
        if load_result.missing_keys and isinstance(self.model, PreTrainedModel):
            saved = type(self.model).from_pretrained(self._loads_from)
            load_result = self.model.load_state_dict(saved.state_dict(), strict=False)
        super()._issue_warnings_after_load(load_result)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Return the passes done and the batches of the present one: the Trainer takes a stream for one long pass."""
        passes, batches = super()._init_training_state(*args, **kwargs)
        checkpoint = kwargs.get("resume_from_checkpoint", args[3] if len(args) > 3 else None)
        if checkpoint is None or has_length(self.train_dataset) or self.args.ignore_data_skip:
            return passes, batches
        saved = read_state(checkpoint)
        passes = max(0, math.ceil(saved["epoch"]) - 1)  # of a whole number of passes, the last was the present one
        share = saved["epoch"] - passes
        return passes, round(share * saved["max_steps"] * self.args.gradient_accumulation_steps)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        # a second call of train(), or another try with a smaller batch: nothing of the first may be left
        for sums in self._device_sums.values():
            sums.clear()
        self._resumed_loss = None
        return super()._prepare_for_training(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        changed = check_same_run(checkpoint, self._all_arguments(), override=self.args.override_schedule)
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except (ValueError, KeyError) as error:  # of torch, where the groups differ, or of an optimizer's own check
            raise ValueError(
                f"resume_from_checkpoint={checkpoint!r} holds an optimizer state that opt={self.args.opt!r} cannot "
                f"use ({str(error).rstrip('.')}); take its weights for a new run."
            ) from error
        kept = own_state(read_state(checkpoint))
        if kept:
            for name, sums in self._device_sums.items():
                sums.restore(kept["sums"][name], self.accelerator)
            self._set_counters(kept["counters"])
            self._seconds_before = kept["seconds"]
            self._resumed_loss = kept["loss"]
        step = self.state.global_step
        self.resumed_at = [*kept.get("resumed_at", []), step]
        self.changes = [*kept.get("changes", []), *([f"update {step}: {changed}"] if changed else [])]
        states: Any = self.state.stateful_callbacks or {}
        waited = ((states.get("EarlyStoppingCallback") or {}).get("attributes") or {}).get(_PATIENCE, 0)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):  # the Trainer restores it only on request, made anew
                setattr(callback, _PATIENCE, waited)

    def _all_arguments(self) -> dict[str, dict[str, Any]]:
        return {**self.run_arguments, "training": trajectory_settings(self.args)}

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self._draws is not None:
            self._draws.begin_epoch(kwargs["epoch"])
        self._take_resumed_loss()
        if self.resumed_at and self._is_over():  # its last checkpoint; the Trainer looks only after another update
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self._take_resumed_loss()  # where the checkpoint was the run's last, and no epoch was left
        limit = self.args.save_total_limit
        if not self._is_over():  # with a limit of 1, the Trainer would now delete what is to be resumed
            self.args.save_total_limit = None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _is_over(self) -> bool:
        """Return whether nothing is left to do of the run: all updates were done, or early stopping ended it."""
        return self.state.global_step >= self.state.max_steps or any(
            getattr(callback, _PATIENCE) >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )

    def _take_resumed_loss(self) -> None:
        """Go on with the checkpoint's sums of losses, which the Trainer has set to zero."""
        if self._resumed_loss is not None:
            unlogged = self._resumed_loss["unlogged"]
            is_mine = len(unlogged) == self.args.world_size
            self._tr_loss += unlogged[self.args.process_index] if is_mine else sum(unlogged) / len(unlogged)
            self._total_loss_scalar = self._resumed_loss["total"]
            self._globalstep_last_logged = self._resumed_loss["last_logged"]
            self._resumed_loss = None


def _sampler_of(make: Callable[[Any], Any], dataset: Any, wrapped: Any) -> Any:
    return make(dataset)
