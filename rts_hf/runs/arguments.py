"""The training command's arguments: RTSTrainingArguments with defaults for image classifiers."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from rts_hf.recipes.recorded import find_recipe
from rts_hf.training.arguments import DataArguments, ModelArguments, RTSTrainingArguments, settings_of
from rts_hf.training.checks import check_scheduler
from rts_hf.training.optimizers import default_learning_rate

# Arguments of transformers' Trainer that do nothing in a run, and why
_WITHOUT_EFFECT = {
    "do_train": "the training command always trains",
    "hub_always_push": "the run is published once, at its end",
    "do_predict": "the test split is always measured at the end",
    "neftune_noise_alpha": "image classifiers have no token embeddings to add noise to",
    "remove_unused_columns": "batches are ready as they are, and without their image column nothing could be trained",
}


@dataclass(repr=False)  # a generated one would show tokens, which transformers' own hides
class CommandArguments(RTSTrainingArguments):
    """:class:`rts_hf.RTSTrainingArguments` with the training command's defaults, which suit image classifiers.

    Raises:
        ValueError: As there, and for an argument that has no effect in a run.
    """

    output_dir: str | None = field(
        default=None, metadata={"help": "Run folder. Default: the first free one of runs/<dataset>-<model>-<opt>."}
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "Go on with the run in output_dir: 'last', or a checkpoint's folder."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Any scheduler of transformers."})
    weight_decay: float = field(default=5e-4, metadata={"help": "Weight decay of weights that are not 1-d."})
    num_train_epochs: float = field(default=30, metadata={"help": "Passes over the training images."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Images a micro-batch and device."})
    per_device_eval_batch_size: int = field(default=256, metadata={"help": "Images a batch of evaluation."})
    eval_strategy: str = field(default="epoch", metadata={"help": "no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "no, steps, epoch or best."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    logging_steps: float = field(default=10, metadata={"help": "Updates between two entries of the log."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint's weights."})
    metric_for_best_model: str | None = field(
        default="accuracy", metadata={"help": "What makes a checkpoint the best, on validation data."}
    )
    report_to: list[str] | str | None = field(
        default="none", metadata={"help": "tensorboard, trackio, wandb, ... or none."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Leave it off: batches are ready as they are."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_effects(self)
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # a classifier uses all of them, and looking costs every update


def check_effects(args: RTSTrainingArguments) -> None:
    """Raise ValueError for an argument that was given and would have no effect in a run."""
    for name, reason in _WITHOUT_EFFECT.items():
        value = args.given.get(name)
        if value is not None and value is not False:
            raise ValueError(f"{name}={value!r} cannot be set: {reason}; leave it out.")


def fit_learning_rate(model_args: ModelArguments, args: RTSTrainingArguments) -> None:
    """Take the learning rate of trained weights, or of fresh ones, where none was given.

    Raises:
        ValueError: If the schedule cannot be followed from there.
    """
    is_trained = model_args.pretrained or model_args.checkpoint is not None
    wanted, other = (
        default_learning_rate(args.opt, args.base, is_trained=each) for each in (is_trained, not is_trained)
    )
    if "learning_rate" not in args.given and args.learning_rate == other:
        args.learning_rate = wanted
        check_scheduler(args)


def changed_settings(args: RTSTrainingArguments) -> dict[str, Any]:
    """Return the training arguments that are not at the training command's default, of whichever class they are."""
    changed = settings_of(args, only_changed=True)
    if isinstance(args, CommandArguments):
        return changed
    command, plain = ({f.name: f.default for f in fields(kind)} for kind in (CommandArguments, RTSTrainingArguments))
    others = {name: default for name, default in command.items() if default != plain[name]}
    told = {name: value for name, value in settings_of(args).items() if name in others} | changed
    return {
        name: value
        for name, value in told.items()
        if name not in _WITHOUT_EFFECT and (name not in others or value != others[name])
    }


def recipe_arguments(name: str, **given: Any) -> tuple[ModelArguments, DataArguments, CommandArguments]:
    """Return the three arguments of :func:`rts_hf.train` as a recipe and what is given besides say them.

    >>> model, data, training = recipe_arguments("cifar10_radius", output_dir="out", num_train_epochs=2)
    >>> (model.model, data.dataset, training.radius, training.num_train_epochs)
    ('resnet18', 'cifar10', 'inverse_cosine_heating', 2)

    Args:
        name: A key of :data:`rts_hf.RECIPES`.
        **given: Further arguments of any of the three classes; they go before the recipe's.

    Raises:
        ValueError: For a name or an argument that is unknown, or what the classes refuse.
    """
    values = {**find_recipe(name).defaults(given), **given, "recipe": name}
    arguments = []
    for argument_class in (ModelArguments, DataArguments, CommandArguments):
        known = {field.name for field in fields(argument_class) if field.init}
        arguments.append(argument_class(**{key: values.pop(key) for key in known & values.keys()}))
    if values:
        raise ValueError(f"{', '.join(values)}: no argument of the training command; its --help_all lists them.")
    return tuple(arguments)  # type: ignore[return-value]
