"""One run from its arguments to its folder."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
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
from rts_hf.models.classifiers import base_model_id, build_model, pretrained_data_config
from rts_hf.models.weights import checkpoint_architecture
from rts_hf.publishing.hub import check_access, check_name, publish
from rts_hf.recipes.recorded import find_recipe
from rts_hf.reports.card import write_card
from rts_hf.reports.figures import draw_run_figures, remove_run_figures
from rts_hf.reports.run_folder import COMPARISON_NAME, RECORD_NAME, read_record, write_record
from rts_hf.reports.sharpness import measure_run_sharpness
from rts_hf.runs.console import ConsoleCallback, introduction, quiet_progress_bars, summary
from rts_hf.runs.folder import (
    TRAINERS_DEFAULT,
    choose_folder,
    clear_folder,
    on_main_process,
    prepare_folder,
    remove_drafts,
)
from rts_hf.runs.record import describe_run
from rts_hf.training.arguments import (
    DEFAULT_MODEL,
    DataArguments,
    ModelArguments,
    RTSTrainingArguments,
    settings_of,
    trajectory_settings,
)
from rts_hf.training.checkpoints import check_same_run
from rts_hf.training.checks import warn_of_a_single_image
from rts_hf.training.faults import NotANumber, TrainingFault
from rts_hf.training.metrics import class_counts
from rts_hf.training.stopping import StopOnSigterm
from rts_hf.training.temperon import NAME as TEMPERON
from rts_hf.training.trainer import RTSTrainer

logger = logging.getLogger(__name__)

_MEASURED = ("loss", "accuracy", "f1_macro", "top5_accuracy")
_DIVERGENCE = (TrainingFault, NotANumber)


@quiet_progress_bars()
def train(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: RTSTrainingArguments,
    *,
    measure_test: bool = True,
) -> dict[str, Any]:
    """Train a classifier and leave a complete run folder at ``training_args.output_dir``.

    The folder holds the model with its preprocessing (``config.json``, ``model.safetensors``), ``trainer_state.json``,
    ``run.json``, ``figures/`` and the card ``README.md``. The test split is read once, after training. SIGTERM ends
    the training after the running update, with a checkpoint to resume from; ``status`` in the record is then
    ``interrupted``.

    Args:
        model_args: Which backbone, and from which weights.
        data_args: Which images, and how they are split.
        training_args: How to train.
        measure_test: Read the test split at the end; a run that only helps to choose settings must not. Then
            sharpness is not measured either, and no pictures are drawn.

    Returns:
        The record that ``run.json`` holds.

    Raises:
        ValueError: For arguments that are not legal, a folder that holds another run, a checkpoint of another run, or
            data that cannot be used.
        rts_hf.TrainingFault: If too many updates in a row had to be skipped.
    """
    started = time.monotonic()
    _check_command(training_args)
    name = model_args.model or checkpoint_architecture(str(model_args.checkpoint)) or DEFAULT_MODEL
    model_args.model = name  # which the checkpoint may have had to say
    choose_folder(training_args, f"{data_args.dataset}-{name}-{training_args.opt}")
    _check_starting_weights(model_args, training_args)
    repository = _repository(training_args)
    checkpoint = prepare_folder(training_args)
    folder = Path(str(training_args.output_dir))
    arguments = {"model": settings_of(model_args), "data": settings_of(data_args)}
    if checkpoint is not None:
        everything = {**arguments, "training": trajectory_settings(training_args)}
        check_same_run(checkpoint, everything, override=training_args.override_schedule)
        finished = _finished_record(folder, training_args)
        if finished is not None:
            _publish(repository, training_args)
            return finished
    set_seed(training_args.seed)
    base_model = base_model_id(name) if model_args.pretrained else None
    with training_args.main_process_first(desc="loading the data"):
        data = load_run_data(model_args, data_args)
    _check_command(training_args, num_classes=len(data.label_names))
    model: Any = build_model(
        name,
        label_names=data.label_names,
        image_size=data.image_size,
        mean=data.mean,
        std=data.std,
        interpolation=data.interpolation,
        pretrained=model_args.pretrained,
        checkpoint=model_args.checkpoint,
        small_image_stem=model_args.small_image_stem,
        model_args=model_args.model_args,  # type: ignore[arg-type]
    )
    if model_args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    stop = StopOnSigterm()
    trainer = create_trainer(model, data, training_args, stop)
    trainer.run_arguments = arguments
    trainer.preparation_seconds = time.monotonic() - started

    def record(
        status: str,
        metrics: dict[str, Any] | None = None,
        classes: dict[str, Any] | None = None,
        remark: str | None = None,
        sharpness: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        described = describe_run(trainer, data, model_args, data_args, metrics or {}, trainer.seconds, status=status)
        described["model"]["base_model"] = base_model
        described["classes"] = classes or {}
        described["sharpness"] = sharpness
        described["warnings"] += [remark] if remark else []
        if trainer.is_world_process_zero():
            write_record(folder, described)
        return described

    def begin() -> None:
        if trainer.is_world_process_zero():
            clear_folder(training_args)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / COMPARISON_NAME).unlink(missing_ok=True)  # it is of the run as it was
        record("training")

    if trainer.is_world_process_zero():
        print(introduction(model, data, training_args.opt), flush=True)
    ready = _WhenReady(begin)
    trainer.add_callback(ready)
    try:
        with warnings.catch_warnings():
            # the closing table and the card say it too
            warnings.filterwarnings("ignore", message=r"The switch .* never fired")
            trainer.train(resume_from_checkpoint=checkpoint)
    except (Exception, KeyboardInterrupt) as error:
        if ready.has_come:
            with contextlib.suppress(OSError):  # a full disk must not hide what came before it
                if isinstance(error, _DIVERGENCE):
                    trainer.save_state()  # how it came to that
                status = "diverged" if isinstance(error, _DIVERGENCE) else "stopped"
                record(status, remark=f"Stopped after update {trainer.state.global_step}: {error or 'interrupted'}")
        raise
    finally:
        stop.close()
    if stop.stops and trainer.state.global_step < trainer.state.max_steps:
        interrupted = record("interrupted")
        if trainer.is_world_process_zero():
            print(
                f"Stopped by SIGTERM after update {trainer.state.global_step} of {trainer.state.max_steps}; go on with "
                f"--output_dir {os.path.relpath(folder)} --resume_from_checkpoint last",
                flush=True,
            )
        return interrupted

    test = data.test if measure_test else None
    splits = {"train": data.train.without_augmentation(), "validation": data.validation, "test": test}
    try:
        measured = {name: None if split is None else _measure(trainer, split, name) for name, split in splits.items()}
    except NotANumber as error:  # of a run without evaluations: whatever its last weights are, they are what it kept
        trainer.save_state()
        record("diverged", remark=f"Stopped after update {trainer.state.global_step}: {error}")
        raise
    metrics = {name: found and found[0] for name, found in measured.items()}
    classes = {name: found[1] for name, found in measured.items() if found and name != "train"}
    if trainer.is_world_process_zero():
        remove_drafts(folder)
    trainer.save_model()
    trainer.save_state()
    sharpness, reason = None, None
    if measure_test and training_args.measure_sharpness:
        sharpness, reason = on_main_process(training_args, lambda: _sharpness(trainer, data))
    complete = record("complete", metrics, classes, reason, sharpness)
    if trainer.is_world_process_zero():
        _show(folder, training_args.draw_figures and measure_test)
        print(summary(complete, os.path.relpath(folder)), flush=True)
    trainer.accelerator.wait_for_everyone()
    _publish(repository, training_args)
    return complete


def load_run_data(model_args: ModelArguments, data_args: DataArguments) -> DataBundle:
    """Return the data that a run with these arguments trains on, prepared as pretrained weights want it.

    Raises:
        ValueError: As :func:`rts_hf.load_data` does.
    """
    preprocessing = pretrained_data_config(str(model_args.model)) if model_args.pretrained else {}
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
    return replace(data, normalisation="pretrained weights") if model_args.pretrained else data


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


def _check_command(training_args: RTSTrainingArguments, num_classes: int | None = None) -> None:
    """Refuse what the training command cannot do, or would do otherwise than it reads."""
    if training_args.recipe is not None:
        find_recipe(training_args.recipe)
    if training_args.overwrite and training_args.output_dir == TRAINERS_DEFAULT:
        raise ValueError("overwrite=True needs output_dir: without one, a run goes to a folder that is free.")
    if training_args.fp16 and training_args.device.type == "cpu":
        raise ValueError("fp16=True would train in fp32 on a CPU; use bf16, or leave it out.")
    name = training_args.metric_for_best_model
    measured = [m for m in _MEASURED if num_classes is None or num_classes > 5 or m != "top5_accuracy"]
    if name is not None and name.removeprefix("eval_") not in measured:
        raise ValueError(f"metric_for_best_model={name!r} is not measured here; use one of {', '.join(measured)}.")
    if name is not None and training_args.greater_is_better not in (None, not name.endswith("loss")):
        raise ValueError(
            f"greater_is_better={training_args.greater_is_better!r} would keep the worst {name}; leave it out."
        )


def _check_starting_weights(model_args: ModelArguments, training_args: RTSTrainingArguments) -> None:
    """Refuse to delete, with the run that is overwritten, the weights that the new one starts from."""
    folder = Path(str(training_args.output_dir)).resolve()
    if training_args.overwrite and model_args.checkpoint is not None:
        weights = Path(model_args.checkpoint).expanduser().resolve()
        if weights == folder or folder in weights.parents:
            raise ValueError(
                f"checkpoint={model_args.checkpoint!r} lies in output_dir={training_args.output_dir!r}, whose run "
                "--overwrite deletes; write to another folder."
            )


def _repository(training_args: RTSTrainingArguments) -> str | None:
    """Return where the run is to be published, or None; whoever may not do that learns it before the training.

    The Trainer itself is told not to push: it would send a card of its own, and weights after every checkpoint.
    """
    if not training_args.push_to_hub:
        return None
    training_args.push_to_hub = False
    name = training_args.hub_model_id or Path(str(training_args.output_dir)).name
    user = on_main_process(training_args, lambda: check_access(name, training_args.hub_token))
    repository = name if "/" in name else f"{user}/{name}"
    check_name("hub_model_id", repository)
    return repository


def _publish(repository: str | None, training_args: RTSTrainingArguments) -> None:
    if repository is None or training_args.process_index != 0:
        return
    folder = str(training_args.output_dir)
    try:
        published = publish(
            folder,
            repository,
            private=training_args.hub_private_repo,
            revision=training_args.hub_revision,
            include_checkpoints=training_args.hub_strategy in ("checkpoint", "all_checkpoints"),
            token=training_args.hub_token,
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{error} The run itself is complete: publish it with scripts/publish.py {folder} --repo {repository}"
        ) from error
    print(f"Published             {published.url or f'{repository}, which holds it all already'}", flush=True)


def _finished_record(folder: Path, training_args: RTSTrainingArguments) -> dict[str, Any] | None:
    """Return the record of a run that needs no resuming, having said so, or None."""
    if training_args.override_schedule or not (folder / RECORD_NAME).is_file():
        return None
    record = read_record(folder)
    if record.get("status") != "complete":
        return None
    if training_args.process_index == 0:
        print(
            f"The run in {os.path.relpath(folder)} is already finished, after {record['updates']} updates; its record "
            "stays as it is. To train it for longer, give --num_train_epochs and --override_schedule.",
            flush=True,
        )
        card = folder / "README.md"  # written last; without it the run was cut off while pictures and card were made
        if not card.is_file() or card.stat().st_mtime < (folder / RECORD_NAME).stat().st_mtime:
            _show(folder, training_args.draw_figures)
    return record


def _show(folder: Path, draw: bool) -> None:
    """Make pictures and card of a run; those of what it was before do not stay."""
    (draw_run_figures if draw else remove_run_figures)(folder)
    write_card(folder)


def _measure(trainer: RTSTrainer, split: Dataset[Any], name: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Return loss and metrics of a split, and its counts by class, without a trace in the training log."""
    output = trainer.predict(split, metric_key_prefix=name)
    unwanted = ("runtime", "per_second", "preparation_time")
    measured = (output.metrics or {}).items()
    metrics = {key.removeprefix(f"{name}_"): value for key, value in measured if not key.endswith(unwanted)}
    return metrics, class_counts(output.predictions, output.label_ids, trainer.model.config.num_labels)  # type: ignore[union-attr, arg-type]


def _sharpness(trainer: RTSTrainer, data: DataBundle) -> tuple[dict[str, Any] | None, str | None]:
    """Return the sharpness of the weights that are kept, in their own precision, and why there is none."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False, keep_torch_compile=False)
    images = data.train.without_augmentation()
    return measure_run_sharpness(model, images, image_size=data.image_size, device=trainer.args.device)
