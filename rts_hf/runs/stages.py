"""The stages of a run between its folder and its end, in the order in which :func:`rts_hf.train` walks them."""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Subset
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from rts_hf.data.loading import DataBundle, collate, load_data
from rts_hf.data.splits import TEST_SEED, cap
from rts_hf.models.classifiers import base_model_id, build_model, pretrained_data_config
from rts_hf.publishing.hub import publish
from rts_hf.reports.run_folder import COMPARISON_NAME, write_record
from rts_hf.reports.sharpness import measure_run_sharpness
from rts_hf.runs.console import ConsoleCallback, introduction, summary
from rts_hf.runs.folder import Folder, clear_folder, make_report, on_main_process, remove_drafts
from rts_hf.runs.plan import Plan, check_command
from rts_hf.runs.record import describe_run
from rts_hf.training.arguments import DataArguments, ModelArguments, RTSTrainingArguments
from rts_hf.training.checks import warn_of_a_single_image
from rts_hf.training.faults import NotANumber, TrainingFault
from rts_hf.training.metrics import class_counts
from rts_hf.training.stopping import StopOnSigterm
from rts_hf.training.temperon import NAME as TEMPERON
from rts_hf.training.trainer import RTSTrainer

_DIVERGENCE = (TrainingFault, NotANumber)


@dataclass(frozen=True)
class Training:
    """What trains: the trainer, the data and model it holds, and what listens for SIGTERM."""

    trainer: RTSTrainer
    data: DataBundle
    stop: StopOnSigterm


@dataclass(frozen=True)
class Measured:
    """What was found at the weights that a run kept.

    Args:
        metrics: Loss and metrics of ``train``, ``validation`` and ``test``; None where there is no such split or it was
            not measured. Of a split that was measured in part, ``images`` says on how many.
        classes: Counts by class of ``validation`` and ``test``.
        sharpness: See :func:`rts_hf.reports.sharpness.measure_run_sharpness`; None where it was not measured.
        remarks: What else the record is to say.
    """

    metrics: dict[str, Any] = field(default_factory=dict)
    classes: dict[str, Any] = field(default_factory=dict)
    sharpness: dict[str, Any] | None = None
    remarks: list[str] = field(default_factory=list)


def load_planned_data(plan: Plan) -> DataBundle:
    """Load the images, one process first, and check what only they can tell.

    Raises:
        ValueError: For data that cannot be used, or arguments that do not fit them.
    """
    set_seed(plan.training_args.seed)
    with plan.training_args.main_process_first(desc="loading the data"):
        data = load_run_data(plan.model_args, plan.data_args)
    check_command(plan.training_args, num_classes=len(data.label_names))
    return data


def load_run_data(model_args: ModelArguments, data_args: DataArguments) -> DataBundle:
    """Return the data that a run with these arguments trains on, prepared as pretrained weights want it.

    Raises:
        ValueError: As :func:`rts_hf.load_data` does.
    """
    weights = model_args.pretrained_weights
    preprocessing = {} if weights is None else pretrained_data_config(weights)
    data = load_data(
        data_args.dataset,
        dataset_config=data_args.dataset_config,
        image_column=data_args.image_column,
        label_column=data_args.label_column,
        train_split=data_args.train_split,
        validation_split=data_args.validation_split,
        test_split=data_args.test_split,
        validation_fraction=data_args.validation_fraction,
        seed=data_args.split_seed,
        image_size=data_args.image_size,
        augmentation=data_args.augmentation,
        skip_bad_images=data_args.skip_bad_images,
        max_train_samples=data_args.max_train_samples,
        max_eval_samples=data_args.max_eval_samples,
        train_fraction=data_args.train_fraction,
        label_noise=data_args.label_noise,
        cache_dir=data_args.cache_dir,
        **preprocessing,
    )
    return data if weights is None else replace(data, normalisation="pretrained weights")


def make_model(plan: Plan, data: DataBundle) -> Any:
    """Build the classifier for these data.

    Raises:
        ValueError: For a name, arguments or weights that do not fit.
    """
    args = plan.model_args
    model: Any = build_model(
        str(args.model),
        label_names=data.label_names,
        image_size=data.image_size,
        mean=data.mean,
        std=data.std,
        interpolation=data.interpolation,
        pretrained=args.pretrained,
        checkpoint=args.checkpoint,
        small_image_stem=args.small_image_stem,
        model_args=args.model_args,  # type: ignore[arg-type]
    )
    return model.to(memory_format=torch.channels_last) if args.channels_last else model


def make_trainer(plan: Plan, data: DataBundle, model: Any) -> Training:
    """Make the trainer, which from now on saves and stops in order when SIGTERM comes.

    Raises:
        ValueError: As :func:`create_trainer` does.
    """
    stop = StopOnSigterm()
    trainer = create_trainer(model, data, plan.training_args, stop)
    trainer.run_arguments = plan.arguments()
    trainer.preparation_seconds = time.monotonic() - plan.started
    if trainer.is_world_process_zero():
        print(introduction(model, data, plan.training_args.opt), flush=True)
    return Training(trainer, data, stop)


def create_trainer(model: Any, data: DataBundle, training_args: RTSTrainingArguments, *callbacks: Any) -> RTSTrainer:
    """Return the trainer of a run, with its metrics and its console output.

    Raises:
        ValueError: If ``report_to`` names something that is not installed.
    """
    warn_of_a_single_image(training_args, len(data.train))
    own: list[Any] = list(callbacks)
    if training_args.early_stopping_patience is not None:
        own.append(EarlyStoppingCallback(training_args.early_stopping_patience))
    try:
        trainer = _trainer_class(training_args)(
            model=model,
            args=training_args,
            train_dataset=data.train,
            eval_dataset=data.validation,
            data_collator=collate,
            callbacks=own,
        )
    except (RuntimeError, ImportError) as error:
        if not training_args.report_to:
            raise
        raise ValueError(
            f"report_to={training_args.report_to!r} cannot be used: {error}; install it, or use report_to='none'."
        ) from error
    for chatty in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(chatty)
    trainer.add_callback(ConsoleCallback())
    return trainer


def _trainer_class(training_args: RTSTrainingArguments) -> type[RTSTrainer]:
    if training_args.opt == TEMPERON:
        from rts_hf.training.closure_trainer import ClosureTrainer  # whose package is an extra

        return ClosureTrainer
    return RTSTrainer


class _WhenReady(TrainerCallback):
    """Calls a function when all is ready and the first update comes: what is refused must cost nobody a run."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self.has_come = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._function()
        self.has_come = True


def fit(plan: Plan, folder: Folder, training: Training) -> str:
    """Train, and leave a record in the folder whatever happens.

    Returns:
        ``complete``, or ``interrupted`` after a SIGTERM before the last update.

    Raises:
        rts_hf.TrainingFault: If too many updates in a row had to be skipped.
        ValueError: If a checkpoint is of another run.
    """
    trainer, stop = training.trainer, training.stop

    def begin() -> None:
        if trainer.is_world_process_zero():
            clear_folder(plan.training_args)
            folder.path.mkdir(parents=True, exist_ok=True)
            (folder.path / COMPARISON_NAME).unlink(missing_ok=True)  # it is of the run as it was
        record(plan, training, "training")

    ready = _WhenReady(begin)
    trainer.add_callback(ready)
    try:
        with warnings.catch_warnings():
            # the closing table and the card say it too
            warnings.filterwarnings("ignore", message=r"The switch (.* never fired|had nothing to compare)")
            trainer.train(resume_from_checkpoint=folder.checkpoint)
    except (Exception, KeyboardInterrupt) as error:
        if ready.has_come:
            with contextlib.suppress(OSError):  # a full disk must not hide what came before it
                _record_the_end(plan, training, error)
        raise
    finally:
        stop.close()
    if not stop.stops or trainer.state.global_step >= trainer.state.max_steps:
        return "complete"
    if trainer.is_world_process_zero():
        print(
            f"Stopped by SIGTERM after update {trainer.state.global_step} of {trainer.state.max_steps}; go on with "
            f"--output_dir {os.path.relpath(folder.path)} --resume_from_checkpoint last",
            flush=True,
        )
    return "interrupted"


def _record_the_end(plan: Plan, training: Training, error: BaseException) -> None:
    diverged = isinstance(error, _DIVERGENCE)
    if diverged:
        training.trainer.save_state()  # how it came to that
    remark = f"Stopped after update {training.trainer.state.global_step}: {error or 'interrupted'}"
    record(plan, training, "diverged" if diverged else "stopped", Measured(remarks=[remark]))


# What follows the training, but for measuring validation and test, may take this share of the run's time, unless all of
# it is asked for. Pictures come first, about as long whatever was trained; then training images, with half of what is
# left, but a second at any rate, so that of a small data set all are measured each time; then sharpness.
_SHARE_OF_TIME, _PICTURES_SECONDS, _LEAST_SECONDS = 0.1, 1.7, 1.0
_LEAST_IMAGES = 128  # on fewer training images an accuracy would tell little


def measure(plan: Plan, training: Training) -> Measured:
    """Measure the weights that the run kept, and save them.

    Validation and test are measured whole. Of the training images and their sharpness, as much is measured as fits
    with the pictures into a tenth of the run's time; with ``measure_sharpness=True`` all.

    Raises:
        rts_hf.training.faults.NotANumber: If their outputs are none.
    """
    trainer, args = training.trainer, plan.training_args
    allowed = trainer.seconds * _SHARE_OF_TIME - (_PICTURES_SECONDS if _draws(plan) else 0)
    allowed = math.inf if args.measure_sharpness else allowed
    try:
        splits, remarks = _measure_splits(plan, training, max(allowed / 2, _LEAST_SECONDS))
    except NotANumber as error:  # of a run without evaluations: whatever its last weights are, they are what it kept
        _record_the_end(plan, training, error)
        raise
    if trainer.is_world_process_zero():
        remove_drafts(plan.folder)
    trainer.save_model()
    trainer.save_state()
    sharpness = None
    if plan.measure_test and args.measure_sharpness is not False:
        left = allowed - (splits["train"].seconds if "train" in splits else 0)
        sharpness, reason = on_main_process(args, lambda: _sharpness(trainer, training.data, max(left, 0)))
        remarks += [reason] if reason else []
    return Measured(
        metrics={name: split.metrics for name, split in splits.items()},
        classes={name: split.classes for name, split in splits.items() if name != "train"},
        sharpness=sharpness,
        remarks=remarks,
    )


class _Split(NamedTuple):
    """Loss and metrics of a split, its counts by class, and the seconds that they took."""

    metrics: dict[str, float]
    classes: dict[str, Any]
    seconds: float


def _measure_splits(plan: Plan, training: Training, seconds: float) -> tuple[dict[str, _Split], list[str]]:
    """Measure validation, test, and as many training images as may take so long; and say where they are too few."""
    trainer, data = training.trainer, training.data
    whole = {"validation": data.validation}
    if plan.measure_test and data.test is not None:
        whole["test"] = data.test
    found = {name: _measure(trainer, split, name) for name, split in whole.items()}
    image_seconds = min(found[name].seconds / len(split) for name, split in whole.items())
    total = len(data.train)
    count = on_main_process(plan.training_args, lambda: _images_within(seconds / image_seconds, total))
    if not count:
        return found, [
            f"Training images were not measured: {min(total, _LEAST_IMAGES)} would take about "
            f"{min(total, _LEAST_IMAGES) * image_seconds:.1f} s, longer than the {seconds:.1f} s that a tenth of the "
            "run leaves for them; --measure_sharpness measures all."
        ]
    train: Dataset[Any] = data.train.without_augmentation()
    if count < total:
        if trainer.is_world_process_zero():
            print(f"Measuring {count:,} of {total:,} training images, {count * image_seconds:.1f} s", flush=True)
        train = Subset(train, cap(np.arange(total), data.train.labels.numpy(), count, TEST_SEED).tolist())
    found["train"] = _measure(trainer, train, "train")
    if count < total:
        found["train"].metrics["images"] = count
    return found, []


def _images_within(affordable: float, total: int) -> int:
    """Return how many training images are measured: all, else a power of two, so that like runs measure as many; or 0.

    >>> _images_within(math.inf, 1000), _images_within(900.0, 1000), _images_within(90.0, 1000)
    (1000, 512, 0)

    Args:
        affordable: Images that time is left for.
        total: Images that there are.
    """
    if affordable >= total:
        return total
    count = 2 ** int(math.log2(max(affordable, 1)))
    return count if count >= _LEAST_IMAGES else 0


def _measure(trainer: RTSTrainer, split: Dataset[Any], name: str) -> _Split:
    """Measure a split without a trace in the training log."""
    started = time.monotonic()
    output = trainer.predict(split, metric_key_prefix=name)
    unwanted = ("runtime", "per_second", "preparation_time")
    measured = (output.metrics or {}).items()
    metrics = {key.removeprefix(f"{name}_"): value for key, value in measured if not key.endswith(unwanted)}
    classes = class_counts(output.predictions, output.label_ids, trainer.model.config.num_labels)  # type: ignore[union-attr, arg-type]
    return _Split(metrics, classes, time.monotonic() - started)


def _sharpness(trainer: RTSTrainer, data: DataBundle, seconds: float) -> tuple[dict[str, Any] | None, str | None]:
    """Return the sharpness of the weights that are kept, in their own precision, and why there is none."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False, keep_torch_compile=False)
    images = data.train.without_augmentation()
    return measure_run_sharpness(
        model, images, image_size=data.image_size, device=trainer.args.device, seconds=seconds, tell=print
    )


def _draws(plan: Plan) -> bool:
    return plan.training_args.draw_figures and plan.measure_test


def record(plan: Plan, training: Training, status: str, measured: Measured | None = None) -> dict[str, Any]:
    """Write ``run.json`` and return what it holds.

    Args:
        plan: What the run was told.
        training: As it stands.
        status: ``training``, ``interrupted``, ``diverged``, ``stopped`` or ``complete``.
        measured: What is known of the weights by now.
    """
    found, trainer, model_args = measured or Measured(), training.trainer, plan.model_args
    described = describe_run(
        trainer, training.data, model_args, plan.data_args, found.metrics, trainer.seconds, status=status
    )
    weights = model_args.pretrained_weights
    described["model"]["base_model"] = None if weights is None else base_model_id(weights)
    described["classes"] = found.classes
    described["sharpness"] = found.sharpness
    described["warnings"] += found.remarks
    if trainer.is_world_process_zero():
        write_record(plan.folder, described)
    return described


def report(plan: Plan, training: Training, complete: dict[str, Any]) -> None:
    """Draw the pictures, write the card, and print the closing table; all of it from the folder and its record."""
    if training.trainer.is_world_process_zero():
        make_report(plan.folder, _draws(plan))
        print(summary(complete, os.path.relpath(plan.folder)), flush=True)
    training.trainer.accelerator.wait_for_everyone()


def publish_run(plan: Plan) -> None:
    """Send a complete run to the Hub, where the plan says so.

    Raises:
        ValueError: If that fails, with the command that tries again; the run itself is whole.
    """
    args = plan.training_args
    if plan.repository is None or args.process_index != 0:
        return
    try:
        published = publish(
            plan.folder,
            plan.repository,
            private=args.hub_private_repo,
            revision=args.hub_revision,
            include_checkpoints=args.hub_strategy in ("checkpoint", "all_checkpoints"),
            token=args.hub_token,
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{error} The run itself is complete: publish it with rts-hf publish {args.output_dir} "
            f"--repo {plan.repository}"
        ) from error
    print(f"Published             {published.url or f'{plan.repository}, which holds it all already'}", flush=True)
