"""One run from its arguments to its folder."""

from __future__ import annotations

import itertools
import logging
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint

from rts_hf.config import DataArguments, ModelArguments, RTSTrainingArguments
from rts_hf.console import ConsoleCallback, quiet_progress_bars, summary
from rts_hf.data import DataBundle, collate, load_data
from rts_hf.figures import draw_run_figures
from rts_hf.hub import write_card
from rts_hf.models import build_model, pretrained_data_config
from rts_hf.record import describe_run
from rts_hf.run_folder import RECORD_NAME, STATE_NAME, write_record
from rts_hf.trainer import RTSTrainer

logger = logging.getLogger(__name__)

_TRAINERS_DEFAULT_FOLDER = "trainer_output"
# What a run writes: found in a folder, they tell that it is taken; nothing else is ever deleted.
_OWN_FILES = (RECORD_NAME, STATE_NAME, "model.safetensors", "config.json", "README.md", "training_args.bin")
_OWN_FOLDERS = re.compile(r"figures|runs|checkpoint-\d+")


@quiet_progress_bars()
def train(model_args: ModelArguments, data_args: DataArguments, training_args: RTSTrainingArguments) -> dict[str, Any]:
    """Train a classifier and leave a complete run folder at ``training_args.output_dir``.

    The folder holds the model with its preprocessing (``config.json``, ``model.safetensors``), ``trainer_state.json``,
    ``run.json``, ``figures/`` and the card ``README.md``. The test split is read once, after training.

    Args:
        model_args: Which backbone, and from which weights.
        data_args: Which images, and how they are split.
        training_args: How to train.

    Returns:
        The record that ``run.json`` holds.

    Raises:
        ValueError: For arguments that are not legal, a folder that holds another run, or data that cannot be used.
    """
    started = time.monotonic()
    if training_args.output_dir == _TRAINERS_DEFAULT_FOLDER:
        training_args.output_dir = free_folder(f"{data_args.dataset}-{model_args.model}-{training_args.opt}")
    checkpoint = prepare_folder(training_args)
    set_seed(training_args.seed)
    preprocessing = pretrained_data_config(model_args.model) if model_args.pretrained else {}
    with training_args.main_process_first(desc="loading the data"):
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
            cache_dir=data_args.cache_dir,
            **preprocessing,
        )
    model = build_model(
        model_args.model,
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
    trainer = create_trainer(model, data, training_args)
    if trainer.is_world_process_zero():
        print(_introduction(model, data, training_args), flush=True)
    clear_folder(training_args)  # not before: an argument that is refused must cost nobody a run
    trainer.train(resume_from_checkpoint=checkpoint)

    splits = {"train": data.train.without_augmentation(), "validation": data.validation, "test": data.test}
    metrics = {name: None if split is None else _measure(trainer, split, name) for name, split in splits.items()}
    trainer.save_model()
    trainer.save_state()
    record = describe_run(trainer, data, model_args, data_args, metrics, time.monotonic() - started)
    if trainer.is_world_process_zero():
        folder = Path(str(training_args.output_dir))
        write_record(folder, record)
        draw_run_figures(folder)
        write_card(folder)
        print(summary(record, os.path.relpath(folder)), flush=True)
    trainer.accelerator.wait_for_everyone()
    return record


def create_trainer(model: Any, data: DataBundle, training_args: RTSTrainingArguments) -> RTSTrainer:
    """Return the trainer of a run, with its metrics and its console output."""
    callbacks: list[Any] = []
    if training_args.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(training_args.early_stopping_patience))
    trainer = RTSTrainer(
        model=model,
        args=training_args,
        train_dataset=data.train,
        eval_dataset=data.validation,
        data_collator=collate,
        callbacks=callbacks,
    )
    for chatty in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(chatty)
    trainer.add_callback(ConsoleCallback())
    return trainer


def free_folder(name: str) -> str:
    """Return the first of ``runs/<name>``, ``runs/<name>-2``, ... that does not exist, the same on all processes."""
    stem = Path("runs") / re.sub(r"[^\w.-]+", "_", name).strip("._")
    numbered = (stem.with_name(f"{stem.name}-{number}") for number in itertools.count(2))
    chosen: list[Any] = [str(next(path for path in itertools.chain([stem], numbered) if not path.exists()))]
    return broadcast_object_list(chosen)[0]


def prepare_folder(training_args: RTSTrainingArguments) -> str | None:
    """Make sure that the output folder is free, and return the checkpoint to go on from, or None.

    Raises:
        ValueError: If the folder holds a run and neither ``overwrite`` nor ``resume_from_checkpoint`` is set, or if
            there is no checkpoint to resume from.
    """
    folder = Path(str(training_args.output_dir))
    wanted = training_args.resume_from_checkpoint
    if wanted is not None:
        if wanted not in ("last", "True", "true"):
            if not Path(wanted).is_dir():
                raise ValueError(f"resume_from_checkpoint={wanted!r} is not a folder; name one, or use 'last'.")
            return wanted
        last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        if last is None:
            raise ValueError(f"resume_from_checkpoint='last', but output_dir={str(folder)!r} holds no checkpoint.")
        return last
    error: list[Any] = [None]
    if training_args.process_index == 0:
        error[0] = _obstacle(folder, training_args.overwrite)
    if broadcast_object_list(error)[0] is not None:
        raise ValueError(error[0])
    return None


def _obstacle(folder: Path, overwrite: bool) -> str | None:
    """Return what is in the way of a run in the folder, or None."""
    own = []
    if folder.is_dir():
        own = [path for path in folder.iterdir() if path.name in _OWN_FILES or _is_own_folder(path)]
    elif folder.exists():
        return f"output_dir={str(folder)!r} is a file; name a folder."
    if own and not overwrite:
        return (
            f"output_dir={str(folder)!r} holds another run ({', '.join(sorted(path.name for path in own)[:4])}); name "
            "another folder, go on with --resume_from_checkpoint last, or delete that run with --overwrite."
        )
    is_run = any((folder / name).exists() for name in (RECORD_NAME, STATE_NAME)) or any(map(_is_checkpoint, own))
    if own and not is_run:
        return (
            f"output_dir={str(folder)!r} holds no run, but files that this one would replace "
            f"({', '.join(sorted(path.name for path in own))}); name another folder, or move them away."
        )
    return None


def clear_folder(training_args: RTSTrainingArguments) -> None:
    """Delete the run that :func:`prepare_folder` found, where ``overwrite`` is set; called when all else is ready."""
    folder = Path(str(training_args.output_dir))
    if training_args.process_index == 0 and training_args.overwrite and folder.is_dir():
        for path in [path for path in folder.iterdir() if path.name in _OWN_FILES or _is_own_folder(path)]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _is_own_folder(path: Path) -> bool:
    return path.is_dir() and _OWN_FOLDERS.fullmatch(path.name) is not None


def _is_checkpoint(path: Path) -> bool:
    return path.is_dir() and path.name.startswith("checkpoint-")


def _measure(trainer: RTSTrainer, split: Dataset[Any], name: str) -> dict[str, float]:
    """Return loss and metrics of a split, without a trace in the training log."""
    measured = trainer.predict(split, metric_key_prefix=name).metrics or {}
    unwanted = ("runtime", "per_second", "preparation_time")
    return {key.removeprefix(f"{name}_"): value for key, value in measured.items() if not key.endswith(unwanted)}


def _introduction(model: Any, data: DataBundle, training_args: RTSTrainingArguments) -> str:
    sizes = ", ".join(f"{count} {name}" for name, count in data.split_sizes.items())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"{model.config.architecture} ({parameters / 1e6:.2f} M parameters) on {data.name} ({sizes} images of "
        f"{data.image_size} pixels, {len(data.label_names)} classes) with {training_args.opt}"
    )
