"""One run from its arguments to its folder."""

from __future__ import annotations

from typing import Any

from rts_hf.runs.console import quiet_progress_bars
from rts_hf.runs.folder import open_folder
from rts_hf.runs.plan import make_plan
from rts_hf.runs.stages import (
    fit,
    load_planned_data,
    make_model,
    make_trainer,
    measure,
    publish_run,
    record,
    report,
)
from rts_hf.training.arguments import DataArguments, ModelArguments, RTSTrainingArguments


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
        training_args: How to train; :class:`rts_hf.CommandArguments` has the training command's defaults,
            :class:`rts_hf.RTSTrainingArguments` those of transformers, which keep the last weights.
        measure_test: Read the test split at the end; a run that only helps to choose settings must not. Then
            sharpness is not measured either, and no pictures are drawn.

    Returns:
        The record that ``run.json`` holds.

    Raises:
        ValueError: For arguments that are not legal, a folder that holds another run, a checkpoint of another run, or
            data that cannot be used.
        rts_hf.TrainingFault: If too many updates in a row had to be skipped.
    """
    plan = make_plan(model_args, data_args, training_args, measure_test=measure_test)
    folder = open_folder(plan.training_args, plan.all_arguments())
    if folder.finished is not None:
        publish_run(plan)
        return folder.finished
    data = load_planned_data(plan)
    model = make_model(plan, data)
    training = make_trainer(plan, data, model)
    status = fit(plan, folder, training)
    if status != "complete":
        return record(plan, training, status)
    measured = measure(plan, training)
    complete = record(plan, training, status, measured)
    report(plan, training, complete)
    publish_run(plan)
    return complete
