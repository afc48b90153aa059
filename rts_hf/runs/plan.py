"""What a run is going to do: every argument checked, where it writes and publishes known, and nothing touched yet."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rts_hf.publishing.hub import check_access, check_name
from rts_hf.recipes.recorded import find_recipe
from rts_hf.runs.arguments import check_effects, fit_learning_rate
from rts_hf.runs.folder import TRAINERS_DEFAULT, choose_folder, on_main_process
from rts_hf.training.arguments import (
    DataArguments,
    ModelArguments,
    RTSTrainingArguments,
    settings_of,
    trajectory_settings,
)

_MEASURED = ("loss", "accuracy", "f1_macro", "top5_accuracy")


@dataclass(frozen=True)
class Plan:
    """A run's arguments, complete and checked.

    Args:
        model_args: Which backbone.
        data_args: Which images, and how they are split.
        training_args: How to train; its ``output_dir`` is the run's folder.
        measure_test: Whether the test split is read at the end.
        repository: Where the run is to be published, ``user/name``, or None.
        started: ``time.monotonic()`` when the run began.
    """

    model_args: ModelArguments
    data_args: DataArguments
    training_args: RTSTrainingArguments
    measure_test: bool
    repository: str | None
    started: float

    @property
    def folder(self) -> Path:
        return Path(str(self.training_args.output_dir))

    def arguments(self) -> dict[str, Any]:
        """Return what a checkpoint keeps to tell whether it is of the same run."""
        return {"model": settings_of(self.model_args), "data": settings_of(self.data_args)}

    def all_arguments(self) -> dict[str, Any]:
        """Return that and the settings of the training that decide where the weights go."""
        return {**self.arguments(), "training": trajectory_settings(self.training_args)}


def make_plan(
    model_args: ModelArguments, data_args: DataArguments, training_args: RTSTrainingArguments, *, measure_test: bool
) -> Plan:
    """Check all arguments, and fill in what they leave open: the folder, the repository.

    Raises:
        ValueError: For what is not legal, contradicts itself, or may not be published.
    """
    started = time.monotonic()
    check_command(training_args)
    fit_learning_rate(model_args, training_args)
    choose_folder(training_args, f"{data_args.dataset}-{model_args.model}-{training_args.opt}")
    _check_starting_weights(model_args, training_args)
    return Plan(model_args, data_args, training_args, measure_test, _repository(training_args), started)


def check_command(training_args: RTSTrainingArguments, num_classes: int | None = None) -> None:
    """Refuse what the training command cannot do, or would do otherwise than it reads.

    Args:
        training_args: How to train.
        num_classes: Of the data, once they are known: five or fewer have no top-5 accuracy.

    Raises:
        ValueError: With the argument, its value and the remedy.
    """
    check_effects(training_args)
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
