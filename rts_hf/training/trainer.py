"""RTSTrainer: transformers' Trainer with the second pass, the switch and their figures in the logs."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Mapping
from typing import Any

import timm.optim
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from transformers import TimmWrapperForImageClassification
from transformers.trainer_utils import IntervalStrategy

from rts_hf.optim.optimizer import RTSPUGD
from rts_hf.optim.parallelism import check_accelerator, name_blocks
from rts_hf.optim.registration import unwrap_optimizer
from rts_hf.optim.second_pass import BufferSnapshot, Originals, RandomState, keep_buffers
from rts_hf.optim.switches import StagedSwitch
from rts_hf.training.arguments import RTSTrainingArguments
from rts_hf.training.checkpoints import is_plain, reconcile
from rts_hf.training.checks import check_without_metrics, refusals_explained
from rts_hf.training.faults import FaultCounter
from rts_hf.training.metrics import is_classifier, mean_cross_entropy, metrics_of_classes
from rts_hf.training.resumable import ResumableTrainer
from rts_hf.training.sums import DeviceSums, unclipped_norm
from rts_hf.training.window import (
    OperationCounts,
    check_same_dropout,
    classes_of,
    first_images,
    is_soft,
    replay,
    share_taken,
)


class RTSTrainer(ResumableTrainer):
    """A :class:`transformers.Trainer` that trains with RTSPUGD, or with any optimizer timm knows.

    Where the optimizer wants a second pass, it is run at the end of ``training_step`` on the micro-batch at which
    gradients are synchronized: the weights move to w + ε, the window's micro-batches are replayed, and the weights come
    back. Everything else of the Trainer's loop (accumulation, clipping, scaler, scheduler, callbacks) runs once and
    unchanged. The training logs gain ``accuracy``, ``phase`` (0 = sgd, 1 = pugd), ``alpha_r``, ``alpha_s``,
    ``gradient_norm`` (‖g‖), ``epsilon_norm`` (‖ε‖), ``sharpness`` (``L(w + ε) − L(w)``, mean since the last entry),
    ``gradient_evaluations``, and ``skipped_updates`` once there are any; the evaluations gain ``train_loss`` and
    ``train_accuracy`` (of the first passes since the last one, over their images, and not smoothed for timm's models)
    and ``gradient_evaluations``.

    With ``args.perturb_fraction`` below 1 the second pass takes the first images of each micro-batch, and there is no
    ``sharpness``, because the two losses would be of different images. Dropout cannot be drawn again for fewer images:
    a model that has some needs ``same_dropout=False``. A loss of one's own is to be a mean, or a sum divided by the
    ``num_items_in_batch`` that it is given, which in the second pass counts those images.

    A subclass may override ``compute_loss``, which then runs twice a micro-batch where the update perturbs. An override
    of ``training_step`` calls this one, and ``create_optimizer`` makes what ``args.opt`` names.

    An update whose gradient is NaN or infinite is skipped: weights, momentum, schedules and BatchNorm statistics stay
    as they were. ``args.max_skipped_updates`` of them in a row end the training with a :class:`TrainingFault`.

    Args:
        *args, **kwargs: As for :class:`transformers.Trainer`; ``args`` is an :class:`RTSTrainingArguments`. An
            optimizer given as ``optimizers=(RTSPUGD(...), None)`` is used as it is. Without ``compute_metrics``, the
            accuracy, the top-5 accuracy (for more than five classes) and the macro F1 are measured.

    Raises:
        ValueError: If the training arguments are not an :class:`RTSTrainingArguments`, or do not fit the model.
    """

    args: RTSTrainingArguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, RTSTrainingArguments):
            raise ValueError(
                f"args is a {type(self.args).__name__}, but RTSTrainer needs an RTSTrainingArguments; it takes the "
                "same arguments and more."
            )
        if self.args.is_two_pass:
            check_accelerator(self.accelerator, self.args)
            check_same_dropout(self.args, self.model)
        if self.is_fsdp_enabled:
            name_blocks(self.model)
        if self.args.switch == "generalization_gap" and isinstance(self.eval_dataset, dict):
            raise ValueError(
                f"eval_dataset holds {len(self.eval_dataset)} data sets, but switch='generalization_gap' compares with "
                "one validation loss; pass one data set."
            )
        config = getattr(self.model, "config", None)
        num_labels = getattr(config, "num_labels", 0)
        if self.compute_metrics is None and not self.args.batch_eval_metrics and is_classifier(self.model):
            self.compute_metrics = metrics_of_classes(num_labels)
        if self.compute_metrics is None:
            check_without_metrics(self.args, type(self.model).__name__)
        is_plain = getattr(config, "problem_type", None) in (None, "single_label_classification") and num_labels >= 2
        is_timm = isinstance(self.model, TimmWrapperForImageClassification)
        self._takes_soft_labels = is_timm and is_plain and self.compute_loss_func is None
        # a subclass's loss is its own, and the Trainer's to average over micro-batches
        if self._takes_soft_labels and type(self).compute_loss is RTSTrainer.compute_loss:
            self.compute_loss_func = self._mean_over_images
        self.faults = FaultCounter(self.args.max_skipped_updates)
        self._window: list[tuple[dict[str, Any], RandomState | None]] = []
        self._window_perturbs = self._in_second_pass = self._window_is_open = False
        self._operations = OperationCounts()
        self._originals = Originals()
        self._window_loss: Tensor | float = 0.0
        self._norm = 0.0
        self._sharpness: Tensor | float | None = None
        self._since_log = DeviceSums("correct", "seen", "sharpness", "perturbed_updates", "nonfinite_losses")
        self._since_evaluation = DeviceSums("loss", "counted", "correct", "seen")
        self._device_sums = {"since_log": self._since_log, "since_evaluation": self._since_evaluation}
        self._lost_evaluations = 0
        self._spared_evaluations = 0.0
        self._training_figures: dict[str, float] = {}
        self._sets_horizon = False

    @property
    def _owns_loss(self) -> bool:
        return self.compute_loss_func == self._mean_over_images

    @property
    def two_pass_optimizer(self) -> RTSPUGD | None:
        """The RTSPUGD that trains, inside whatever wraps it, or None."""
        return unwrap_optimizer(self.optimizer)

    # ---- Optimizer and horizon ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer that ``args.opt`` names, with timm's groups: no decay on 1-d parameters.

        With ``opt_args={"layer_decay": ...}`` each group has a share of the learning rate, ``lr_scale``, that only
        timm's own schedulers look at: here the group's ``lr`` is that share.
        """
        if self.optimizer is None and self.optimizer_cls_and_kwargs is None:
            module: Any = self.model if model is None else model
            backbone: Any = getattr(module, "timm_model", None)
            # the wrapper's prefix would hide the names in the backbone's own no_weight_decay list
            is_all = isinstance(backbone, nn.Module) and set(backbone.parameters()) == set(module.parameters())
            self.optimizer = timm.optim.create_optimizer_v2(
                backbone if is_all else module, **self.args.optimizer_arguments()
            )
            for group in self.optimizer.param_groups:
                group["lr"] *= group.get("lr_scale", 1.0)
        return super().create_optimizer(model)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Create the learning rate's scheduler, and tell the optimizer how long the run is."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        rts = self.two_pass_optimizer
        if rts is not None and (rts.total_steps is None or self._sets_horizon):
            if self._sets_horizon and self.state.global_step == 0:
                rts.restart()  # a second call of train(), or another try with a smaller batch
            self._sets_horizon = True
            rts.total_steps = num_training_steps
        by_epoch = self.args.eval_strategy == IntervalStrategy.EPOCH and self.args.max_steps <= 0
        if rts is not None and by_epoch:
            reason = rts.switch.cannot_fire(num_epochs=math.ceil(self.args.num_train_epochs))
            if reason is not None:
                warnings.warn(f"This run will never perturb: {reason}", UserWarning, stacklevel=2)
        return scheduler

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as :meth:`transformers.Trainer.train` does, and warn where the switch never fired."""
        self.faults = FaultCounter(self.args.max_skipped_updates)
        with refusals_explained(self.args.torch_compile_backend if self.args.torch_compile else None):
            output = super().train(*args, **kwargs)
        rts = self.two_pass_optimizer
        if rts is not None and self.switched_at() is None:
            for remark in self.remarks():
                warnings.warn(remark, UserWarning, stacklevel=2)
        return output

    @property
    def gradient_evaluations(self) -> float:
        """Passes over an update's images so far: one an update, and where it was perturbed a second or a share of it.

        The share is that of a whole micro-batch, rounded up to whole images; without one, the number is an int.
        """
        rts = self.two_pass_optimizer
        if rts is None:
            return self.state.global_step
        passes = int(rts.stats()["gradient_evaluations"]) + self._lost_evaluations
        return round(passes - self._spared_evaluations, 6) if self._spared_evaluations else passes

    def switched_at(self) -> int | None:
        """Return the updates done when perturbing began, or None if no update was perturbed."""
        rts = self.two_pass_optimizer
        step = None if rts is None else rts.perturbs_from
        # the optimizer's own count: a step that a gradient scaler skipped is an update of the Trainer's all the same
        return step if rts is not None and step is not None and step < rts.stats()["step"] else None

    def remarks(self) -> list[str]:
        """Return what a reader of the finished run must know."""
        rts, switched_at, best = self.two_pass_optimizer, self.switched_at(), self.state.best_global_step
        if rts is None:
            return []
        if switched_at is None:
            if rts.last_phase == "pugd" and isinstance(rts.switch, StagedSwitch):  # which has fired, for unit steps
                heard, first = rts.switch.epochs_seen, rts.switch.first_comparison
                told = f"{heard} evaluation{'' if heard == 1 else 's'}, and {first} are needed"
                remark = f"The switch had nothing to compare, so no update was perturbed: {told}."
                return [remark] if heard < first else []
            return [f"The switch {rts.switch!r} never fired: this run was plain {self.args.base or 'sgd'} throughout."]
        if self.args.load_best_model_at_end and best is not None and best <= switched_at > 0:
            return [f"The weights kept are those of update {best}, before the switch: no perturbed update shaped them."]
        return []

    # ---- Checkpoints ----

    def _counters(self) -> dict[str, Any]:
        evaluations = {"lost_evaluations": self._lost_evaluations, "spared_evaluations": self._spared_evaluations}
        return {"faults": self.faults.state_dict(), **evaluations}

    def _set_counters(self, counters: dict[str, Any]) -> None:
        self.faults.load_state_dict(counters["faults"])
        self._lost_evaluations = counters["lost_evaluations"]
        self._spared_evaluations = counters.get("spared_evaluations", 0.0)  # older checkpoints do not know it

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        self._lost_evaluations, self._spared_evaluations = 0, 0.0
        return super()._prepare_for_training(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        rts = self.two_pass_optimizer
        wanted = None if rts is None else rts.settings()
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and rts is not None and wanted is not None:
            reconcile(rts, wanted, checkpoint, override=self.args.override_schedule)
            was_plain = is_plain(checkpoint)
            if was_plain or (was_plain is None and rts.stats()["step"] == 0):
                rts.join(self.state.global_step - self._lost_evaluations)  # one was lost with each skipped update

    # ---- The two passes ----

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch the micro-batches of the next update; forget those of an update that was broken off.

        So are those at the end of an epoch of a data set without length, where they are too few for an update: their
        gradients would otherwise be added to those of the next epoch's first update.
        """
        rts = self.two_pass_optimizer
        if self._window_is_open and self.optimizer is not None:
            self.optimizer.zero_grad()
        self._window_is_open = False
        self._window = []
        self._window_loss = 0.0
        self._sharpness = None
        model: Any = self.model
        self._buffers = BufferSnapshot(model)
        self._window_perturbs = rts is not None and rts.perturbing
        return super().get_batch_samples(*args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run the first pass over a micro-batch and, at the end of the update's window, the second over them all."""
        state = RandomState(self.args.device) if self._window_perturbs and self.args.same_dropout else None
        stays_local = self._window_perturbs and not self.args.sync_first_pass
        ends_window = self.accelerator.sync_gradients
        self._window_is_open = not ends_window
        rts = self.two_pass_optimizer
        kept = None if rts is None else self._originals.keep(inputs)
        try:
            with self.accelerator.no_sync(model) if stays_local else contextlib.nullcontext():
                loss = self._pass(model, inputs, num_items_in_batch)
            self._window_loss = self._window_loss + loss
            if rts is not None and kept is not None:
                inputs = self._originals.settle(kept, is_needed=self._window_perturbs)
            if rts is not None and self._window_perturbs:
                self._window.append((first_images(inputs, self.args.perturb_fraction), state))
                if ends_window:
                    self._run_second_pass(rts, model, num_items_in_batch)
        except RuntimeError as error:
            if should_reduce_batch_size(error):
                self.faults.count("out_of_memory", self.state.global_step + 1)
            raise
        if ends_window:
            is_finite = torch.isfinite(torch.as_tensor(self._window_loss))
            self._since_log.add(nonfinite_losses=(~is_finite).float())
            if not self._owns_loss:
                total = torch.where(is_finite, self._window_loss, 0.0)
                self._since_evaluation.add(loss=total, counted=is_finite.float())
        return loss

    def _pass(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None) -> Tensor:
        if self._owns_loss:
            self.loss_is_scaled_for_ga = False  # unless it is made below of the images of the whole update
        elif num_items_in_batch is None and self._takes_soft_labels and isinstance(inputs, Mapping):
            labels = inputs.get("labels")  # to a subclass's loss: what the Trainer averages over is a mean
            num_items_in_batch = None if labels is None else len(labels)
        return super().training_step(model, inputs, num_items_in_batch)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | int | None:
        """Count images: the Trainer would count the numbers in soft labels (N, C)."""
        first = batch_samples[0] if batch_samples else None
        if self._owns_loss and isinstance(first, Mapping) and is_soft(first.get("labels")):
            batch_samples = [{**batch, "labels": batch["labels"][:, 0]} for batch in batch_samples]
        return super()._get_num_items_in_batch(batch_samples, device)

    def _run_second_pass(self, rts: RTSPUGD, model: nn.Module, num_items_in_batch: Tensor | int | None) -> None:
        window, self._window = self._window, []
        is_whole = self.args.perturb_fraction == 1
        if not is_whole:  # as the Trainer counts them, in all processes
            num_items_in_batch = self._get_num_items_in_batch([inputs for inputs, _ in window], self.args.device)
        buffers = keep_buffers(model) if self.args.batchnorm_first_pass_only else contextlib.nullcontext()
        run = functools.partial(self._pass, model, num_items_in_batch=num_items_in_batch)
        self._in_second_pass = True
        try:
            with rts.perturbed(), buffers:
                second_loss = replay(window, run, model, self.accelerator)
        finally:
            self._in_second_pass = False
        if is_whole:
            self._sharpness = second_loss - self._window_loss
        else:
            self._spared_evaluations += 1 - share_taken(self.args.perturb_fraction, self._train_batch_size)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return the gradient's norm just before the step, and leave the step nothing to take if it is not finite."""
        norm = super()._get_grad_norm(model, unclipped_norm(self.accelerator, model, grad_norm))
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self._norm = size = float(norm)
        optimizer, update = self.optimizer, self.state.global_step + 1
        if math.isfinite(size):
            if self._sharpness is not None:
                self._since_log.add(sharpness=self._sharpness, perturbed_updates=1)
        elif optimizer is not None:
            self._lost_evaluations += 2 if self._window_perturbs else 1
            self._buffers.restore()
            optimizer.zero_grad()  # a gradient scaler has seen them, and lowers its scale
        if isinstance(optimizer, AcceleratedOptimizer):
            # The Trainer asks it whether the learning rate's schedule goes on. A gradient scaler answers in the step.
            optimizer._is_overflow = not math.isfinite(size)
        self.faults.observe_norm(size, update=update)
        return norm

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss, and count the first pass's correct predictions for the training accuracy."""
        labels = inputs.get("labels") if isinstance(inputs, Mapping) else None
        if self._takes_soft_labels and not self._owns_loss and is_soft(labels):  # the model would take them for many
            outputs: Any = model(**{name: value for name, value in inputs.items() if name != "labels"})
            loss = self._mean_over_images(outputs, inputs["labels"])
        else:
            loss, outputs = super().compute_loss(
                model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        logits = outputs.get("logits") if isinstance(outputs, dict) else None
        if model.training and not self._in_second_pass and labels is not None and logits is not None:
            self._count_images(logits.detach(), labels)
        return (loss, outputs) if return_outputs else loss

    def _count_images(self, logits: Tensor, labels: Tensor) -> None:
        """Count a first pass's images: how many were right, and their loss as evaluations measure it, not smoothed."""
        labels = classes_of(labels)
        valid = labels.ne(-100)
        if labels.shape == logits.shape[:-1]:
            counts: dict[str, Tensor | float] = {"correct": (logits.argmax(-1) == labels).sum(), "seen": valid.sum()}
            self._since_log.add(**counts)
            self._since_evaluation.add(**counts)
        if self._owns_loss and labels.shape in (logits.shape, logits.shape[:-1]):
            plain = cross_entropy(logits.float(), labels, reduction="sum")
            is_finite = torch.isfinite(plain)
            total = torch.where(is_finite, plain, 0.0)
            images = valid.sum() if labels.ndim < logits.ndim else len(labels)
            self._since_evaluation.add(loss=total, counted=is_finite * images)

    def _mean_over_images(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Return the cross-entropy of a micro-batch, over the images of the whole update where it belongs to one.

        Without it, each micro-batch of an update would count the same, however many images it has, and a short last
        one would weigh more when it is accumulated than in one batch.
        """
        kind = "mean" if num_items_in_batch is None else "sum"
        smoothing = self.args.label_smoothing_factor if self.model is not None and self.model.training else 0.0
        labels = classes_of(labels)
        if self._owns_loss:  # else a subclass says how its own is scaled
            self.loss_is_scaled_for_ga = num_items_in_batch is not None
        loss = cross_entropy(outputs["logits"].float(), labels, reduction=kind, label_smoothing=smoothing)
        return loss if num_items_in_batch is None else loss / num_items_in_batch

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return the operations of both passes over a micro-batch; the Trainer asks once for each."""
        count, fraction = super().floating_point_ops, self.args.perturb_fraction
        if not isinstance(inputs, Mapping):
            return count(inputs)
        second = [first_images(inputs, fraction)] if self._window_perturbs else []
        return sum(self._operations.of(each, count) for each in (inputs, *second))

    # ---- Logs and the gap switch ----

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the Trainer does, with the gradients spent, and the optimizer's figures beside a training loss."""
        if "loss" in logs:
            logs.update(self._figures())
        elif self.is_in_train and "eval_loss" in logs:
            logs.update(self._training_figures, gradient_evaluations=self.gradient_evaluations)
        super().log(logs, *args, **kwargs)

    def _figures(self) -> dict[str, float]:
        sums = self._since_log.take(self.accelerator)
        figures: dict[str, float] = {}
        if sums["seen"]:
            figures["accuracy"] = sums["correct"] / sums["seen"]
        self.faults.count("nonfinite_loss", self.state.global_step, int(sums["nonfinite_losses"]))
        if self.faults.counts["nonfinite_gradient"]:
            figures["skipped_updates"] = self.faults.counts["nonfinite_gradient"]
        figures["gradient_evaluations"] = self.gradient_evaluations
        rts = self.two_pass_optimizer
        if rts is None:
            return figures
        stats = rts.stats()
        figures["phase"] = 0 if rts.last_phase == "sgd" else 1
        for name in ("alpha_r", "alpha_s", "gradient_norm", "epsilon_norm"):
            figures[name] = stats[name]
        if self.args.max_grad_norm > 0:  # the optimizer knows it after clipping
            figures["gradient_norm"] *= max(1.0, self._norm / self.args.max_grad_norm)
        if sums["perturbed_updates"]:
            figures["sharpness"] = sums["sharpness"] / sums["perturbed_updates"]
        return figures

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        sums = self._since_evaluation.take(self.accelerator)
        self._training_figures = {}
        if sums["counted"]:
            self._training_figures["train_loss"] = sums["loss"] / sums["counted"]
        if sums["seen"]:
            self._training_figures["train_accuracy"] = sums["correct"] / sums["seen"]
        metrics = super()._evaluate(*args, **kwargs)
        rts = self.two_pass_optimizer
        if rts is not None and sums["counted"] and "eval_loss" in metrics:
            rts.observe_losses(train_loss=self._training_figures["train_loss"], eval_loss=metrics["eval_loss"])
        return metrics

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Evaluate as the Trainer does, with the loss of exactly the images there are.

        The Trainer's own counts images that fill up a batch on several processes twice. A model of another kind than
        timm's, or a ``compute_loss_func``, keeps its loss.
        """
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        loss = mean_cross_entropy(output.predictions, output.label_ids) if self._owns_loss else None
        if loss is not None and output.metrics is not None:
            output.metrics[f"{metric_key_prefix}_loss"] = loss
        return output
