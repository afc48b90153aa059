"""What a run is told: arguments about the model, the data and the training, checked before any work starts."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import timm.optim
import torch
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from rts_hf.data.splits import check_label_noise, check_train_fraction
from rts_hf.models.packaged import PACKAGED, find_packaged
from rts_hf.models.weights import checkpoint_architecture
from rts_hf.optim.parallelism import check_requests
from rts_hf.optim.schedules import STRATEGIES
from rts_hf.optim.switches import SWITCHES
from rts_hf.training.checks import (
    check_backend,
    check_best_model,
    check_ranges,
    check_scheduler,
    check_together,
)
from rts_hf.training.optimizers import (
    RTS_FIELDS,
    check_optimizer_name,
    default_learning_rate,
    is_two_pass,
    stepping_name,
    timm_name,
)
from rts_hf.training.window import check_perturb_fraction

DEFAULT_MODEL = "resnet_micro_small"
# Arguments of optimizers, and the training arguments that they are made of where the names differ. Those of Adam may be
# given in opt_args too: not every optimizer has two betas, and a default of TrainingArguments counts as not given.
_ARGUMENT_OF = {"lr": "learning_rate", "total_steps": "max_steps or num_train_epochs"}
_ADAM = {"betas": ("adam_beta1", "adam_beta2"), "eps": ("adam_epsilon",)}


@dataclass
class ModelArguments:
    """Which backbone is trained, and from which weights.

    Raises:
        ValueError: For ``pretrained`` beside ``checkpoint``, ``model_args`` that are not a JSON object, a name that
            is empty, or a checkpoint whose ``config.json`` is damaged or whose package is not installed.
    """

    _argument_group_name = "model"

    model: str | None = field(
        default=None,
        metadata={"help": f"Any timm classification backbone. Default: {DEFAULT_MODEL}, or the checkpoint's own."},
    )
    pretrained: bool = field(default=False, metadata={"help": "Start from timm's weights on the Hub."})
    checkpoint: str | None = field(
        default=None,
        metadata={
            "help": f"Start from a safetensors file, a run folder, or a package's weights ({', '.join(PACKAGED)}); a "
            "head of another size is new."
        },
    )
    small_image_stem: bool | None = field(
        default=None,
        metadata={
            "help": "Give a ResNet a 3x3 stride-1 stem without max-pool. Default: up to 64 pixels, if not pretrained."
        },
    )
    model_args: dict | str | None = field(
        default=None, metadata={"help": "Arguments of timm.create_model as JSON, e.g. '{\"drop_path_rate\": 0.1}'."}
    )
    channels_last: bool = field(default=False, metadata={"help": "Channels innermost in memory: faster for convnets."})

    def __post_init__(self) -> None:
        _check_texts(self)
        self.model_args = _json_object("model_args", self.model_args)
        if self.checkpoint in PACKAGED:
            find_packaged(str(self.checkpoint))
        if self.model is None:
            self.model = checkpoint_architecture(self.checkpoint) if self.checkpoint is not None else None
            self.model = self.model or DEFAULT_MODEL
        if self.pretrained and self.checkpoint is not None:
            raise ValueError(
                f"pretrained=True and checkpoint={self.checkpoint!r} both name the starting weights; leave one out."
            )

    @property
    def pretrained_weights(self) -> str | None:
        """The name of the pretrained weights that the model starts from, for ``pretrained_data_config``; or None."""
        return self.model if self.pretrained else self.checkpoint if self.checkpoint in PACKAGED else None


@dataclass
class DataArguments:
    """Which images are learned, and how they are split.

    Raises:
        ValueError: For a fraction or a count outside its range, or a name that is empty.
    """

    _argument_group_name = "data"

    dataset: str = field(
        default="digits",
        metadata={
            "help": "digits, photo_patches or mnist_5k (embedded), cifar10, cifar100, tiny_imagenet, any Hub id, or a "
            "local folder (image folder, parquet files, or saved with save_to_disk)."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration name of a Hub data set."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the images. Default: the only one."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the labels. Default: the only one."})
    train_split: str | None = field(default=None, metadata={"help": "Split to train on. Default: train."})
    validation_split: str | None = field(
        default=None, metadata={"help": "Split to validate on. Default: a part held out of the training split."}
    )
    test_split: str | None = field(
        default=None, metadata={"help": "Split to test on, once, at the end. Default: test."}
    )
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the training split held out for validation, stratified, in (0, 1)."}
    )
    split_seed: int = field(
        default=42, metadata={"help": "Seed of the validation split, of train_fraction and label_noise."}
    )
    image_size: int | None = field(default=None, metadata={"help": "Side of the square input in pixels."})
    augmentation: str = field(
        default="auto",
        metadata={
            "help": "none, crop (each image its own), crop_flip, timm (timm's training transform), or auto: cropping "
            "up to 64 pixels, timm above.",
            "choices": ["auto", "none", "crop", "crop_flip", "timm"],
        },
    )
    skip_bad_images: bool = field(
        default=False, metadata={"help": "Leave unreadable images out and count them, instead of stopping."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on this many images at most."})
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Validate and test on this many images each at most."}
    )
    train_fraction: float = field(
        default=1.0, metadata={"help": "Share of the training images kept, in (0, 1]; the other splits stay whole."}
    )
    label_noise: float = field(
        default=0.0, metadata={"help": "Share of training labels made wrong, in [0, 1); the other splits stay clean."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloaded data sets are kept."})

    def __post_init__(self) -> None:
        _check_texts(self)
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction={self.validation_fraction!r} must lie between 0 and 1, for instance 0.1."
            )
        check_train_fraction(self.train_fraction)
        check_label_noise(self.label_noise)
        for name in ("image_size", "max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value!r} must be at least 1.")


@dataclass(repr=False)  # a generated one would show tokens, which transformers' own hides
class RTSTrainingArguments(TrainingArguments):
    """:class:`transformers.TrainingArguments` with the optimizer's settings.

    What both have has the same default, but for ``learning_rate`` (None: one for the kind of optimizer) and
    ``max_grad_norm`` (0); on a CPU no memory is pinned. A setting of RTS-PUGD that is None stays at the optimizer's own
    default. The training command has defaults of its own: :class:`rts_hf.CommandArguments`. ``recipe``, ``overwrite``,
    ``early_stopping_patience``, ``measure_sharpness`` and ``draw_figures`` act there and in :func:`rts_hf.train` alone.

    Raises:
        ValueError: For an unknown optimizer, settings it does not take or refuses, or arguments that contradict each
            other.
    """

    _argument_group_name = "training"

    recipe: str | None = field(default=None, metadata={"help": "Settings for what is not given; see --list_recipes."})
    opt: str = field(
        default="rts_pugd",
        metadata={
            "help": "rts_pugd, pugd (plain, from the first step), sam, asam, temperon, or any optimizer timm knows."
        },
    )
    base: str | None = field(
        default=None, metadata={"help": "Base optimizer of a two-pass one, any name timm knows. Default: sgd."}
    )
    radius: str | None = field(default=None, metadata={"help": "Strategy of the radius α_r.", "choices": [*STRATEGIES]})
    radius_beta_min: float | None = field(default=None, metadata={"help": "β_min of the radius."})
    radius_beta_max: float | None = field(default=None, metadata={"help": "β_max of the radius."})
    scale: str | None = field(default=None, metadata={"help": "Strategy of the scale α_s.", "choices": [*STRATEGIES]})
    scale_beta_min: float | None = field(default=None, metadata={"help": "β_min of the scale."})
    scale_beta_max: float | None = field(default=None, metadata={"help": "β_max of the scale."})
    switch: str | None = field(
        default=None, metadata={"help": "What starts the perturbed phase. Default: staged.", "choices": [*SWITCHES]}
    )
    switch_window: int | None = field(default=None, metadata={"help": "gradient_variance: steps in a window."})
    switch_init_steps: int | None = field(
        default=None, metadata={"help": "gradient_variance: first steps, which give the initial variance."}
    )
    switch_gamma: float | None = field(
        default=None, metadata={"help": "gradient_variance: share of the initial variance below which it fires."}
    )
    switch_base_epochs: int | None = field(
        default=None, metadata={"help": "generalization_gap, staged: evaluations that give the base gap."}
    )
    switch_every: int | None = field(
        default=None, metadata={"help": "generalization_gap, staged: evaluations between comparisons."}
    )
    switch_mu: float | None = field(
        default=None,
        metadata={"help": "generalization_gap, staged: multiple of the base gap above which it fires."},
    )
    switch_at: str | None = field(
        default=None,
        metadata={"help": "fixed, which it chooses: a step (e.g. 100), or a share of the run (e.g. 0.8)."},
    )
    switch_unit_from: str | None = field(
        default=None, metadata={"help": "staged: unit steps from this step, or share of the run, on (e.g. 0.5)."}
    )
    perturb_every: int | None = field(default=None, metadata={"help": "Perturb one step in so many after the switch."})
    perturb_fraction: float = field(
        default=1.0,
        metadata={
            "help": "Share of each micro-batch that the second pass takes, in (0, 1]; cheaper, beyond the paper."
        },
    )
    momentum: float = field(default=0.9, metadata={"help": "Momentum of optimizers that have one."})
    opt_args: dict | str | None = field(
        default=None, metadata={"help": "Further arguments of the optimizer as JSON, e.g. '{\"nesterov\": false}'."}
    )
    batchnorm_first_pass_only: bool = field(
        default=True, metadata={"help": "Take BatchNorm statistics from the first pass only."}
    )
    same_dropout: bool = field(
        default=True, metadata={"help": "Draw the same dropout and stochastic depth in both passes."}
    )
    sync_first_pass: bool = field(
        default=True,
        metadata={
            "help": "Average the first pass's gradients over processes. Without it each climbs its own "
            "(m-sharpness), and an update averages once, not twice."
        },
    )
    override_schedule: bool = field(
        default=False,
        metadata={"help": "Resume with other optimizer settings or another length than the checkpoint's."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a better one."}
    )
    max_skipped_updates: int = field(
        default=25,
        metadata={"help": "Stop after this many updates in a row whose gradient is NaN or infinite; they are skipped."},
    )
    measure_sharpness: bool | None = field(
        default=None,
        metadata={
            "help": "Measure at the end all training images, and on 128 how sharp the minimum is. Default: what fits "
            "with the pictures into a tenth of the run's time."
        },
    )
    draw_figures: bool = field(
        default=True,
        metadata={"help": "Draw the run's pictures at its end; rts_hf.reports.figures draws them later as well."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Delete the run that output_dir holds and start anew."})

    # The two defaults that differ from those of TrainingArguments
    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Peak learning rate. Default: 0.2 for optimizers without betas, 0.001 for those with; the training "
            "command takes a twentieth of it from pretrained weights or a checkpoint."
        },
    )
    max_grad_norm: float = field(
        default=0.0, metadata={"help": "Clip gradients to this norm; 0 is off. A perturbed update has length 1 anyway."}
    )

    def __post_init__(self) -> None:
        # What was asked for, before defaults are filled in: the command that repeats the run.
        defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(self)}
        given = {name: getattr(self, name) for name in defaults if getattr(self, name) != defaults[name]}
        self.given = {name: value for name, value in given.items() if not name.endswith("_token")}
        self.opt_args = _json_object("opt_args", self.opt_args)
        self.switch_at = _step_or_share("switch_at", self.switch_at)
        self.switch_unit_from = _step_or_share("switch_unit_from", self.switch_unit_from)
        check_optimizer_name(self)
        self._check_opt_args()
        if self.learning_rate is None:
            self.learning_rate = default_learning_rate(self.opt, self.base)
        check_ranges(self)
        check_perturb_fraction(self.perturb_fraction, self.per_device_train_batch_size)
        check_best_model(self)
        if self.is_two_pass or self.deepspeed:
            check_requests(self)  # before transformers looks for packages that this needs not
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # there is no transfer to speed up, only a warning to earn
        check_ranges(self)  # also what the base class has worked out
        check_scheduler(self)
        self._check_optimizer()
        check_backend(self.torch_compile_backend)
        self._check_together()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle or a copy holds: all but tokens, because transformers writes one beside every model."""
        return {name: None if name.endswith("_token") else value for name, value in self.__dict__.items()}

    @property
    def is_two_pass(self) -> bool:
        """Whether the optimizer takes a second gradient."""
        return is_two_pass(self.opt)

    def timm_name(self) -> str:
        """Return the name that timm's registry knows the optimizer by."""
        return timm_name(self.opt)

    def optimizer_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments for :func:`timm.optim.create_optimizer_v2`, besides the parameters."""
        settings = {name: getattr(self, name) for name in RTS_FIELDS if getattr(self, name) is not None}
        defaults = {f.name: f.default for f in fields(TrainingArguments)}
        for argument, names in _ADAM.items():
            values = tuple(getattr(self, name) for name in names)
            if values != tuple(defaults[name] for name in names):  # else the optimizer's own default holds
                settings[argument] = values if len(values) > 1 else values[0]
        if self.momentum == 0 and stepping_name(self.opt, self.base) == "sgd":
            settings["nesterov"] = False  # without momentum it is the same, and torch refuses it
        return {
            "opt": self.timm_name(),
            "lr": self.learning_rate,
            "weight_decay": self.weight_decay,
            "momentum": self.momentum,
            **settings,
            **(self.opt_args or {}),  # type: ignore[dict-item]
        }

    def _check_opt_args(self) -> None:
        """Raise ValueError for what has an argument of its own, which records and a resume look at, or no effect."""
        own = {f.name: f.name for f in fields(self)} | _ARGUMENT_OF
        held: dict[str, Any] = self.opt_args or {}  # type: ignore[assignment]
        for name, value in held.items():
            if name in own:
                raise ValueError(f"opt_args holds {name}={value!r}, which has an argument of its own: {own[name]}.")
        for name, adam in _ADAM.items():
            given = [f"{each}={self.given[each]!r}" for each in adam if each in self.given]
            if given and name in held:
                raise ValueError(f"opt_args holds {name}={held[name]!r} beside {', '.join(given)}; leave one out.")
            stepping = stepping_name(self.opt, self.base)
            if (given or name in held) and not getattr(timm.optim.get_optimizer_info(stepping), f"has_{name}"):
                told = ", ".join(given) or f"opt_args={held!r}"
                raise ValueError(f"{told}: {stepping} has no {name}, so it would do nothing; leave it out.")

    def _check_optimizer(self) -> None:
        """Let the optimizer itself refuse its settings, on a parameter of one element."""
        try:
            timm.optim.create_optimizer_v2([torch.nn.Parameter(torch.zeros(1))], **self.optimizer_arguments())
        except (TypeError, AssertionError, ImportError) as error:
            raise ValueError(f"opt={self.opt!r} cannot be created: {error}") from error

    def _check_together(self) -> None:
        if self.optim != OptimizerNames(TrainingArguments.__dataclass_fields__["optim"].default):
            raise ValueError(
                f"optim={OptimizerNames(self.optim).value!r} has no effect here; name the optimizer with opt."
            )
        if self.is_two_pass:
            check_requests(self)  # again: a file of fsdp_config has been read since
        check_together(self)


def _check_texts(arguments: Any) -> None:
    for f in fields(arguments):
        value = getattr(arguments, f.name)
        if isinstance(value, str) and not value.strip():
            raise ValueError(f"{f.name}={value!r} is empty; name one, or leave it out.")


def _json_object(name: str, value: dict | str | None) -> dict | None:
    if value is None or isinstance(value, dict):
        return value
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}={value!r} is not JSON ({error}); write it as '{{\"name\": value}}'.") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{name}={value!r} must be a JSON object, as in '{{\"name\": value}}'.")
    return parsed


def _step_or_share(name: str, value: Any) -> Any:
    """Return an int for a step and a float for a share: a command line gives text, a file gives numbers."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    raise ValueError(f"{name}={value!r} must be a step (e.g. 100) or a share of the run (e.g. 0.8).")


# Places, and arguments whose default the command line spells otherwise than the class
_LEFT_OUT = frozenset(
    {
        "accelerator_config",
        "cache_dir",
        "debug",
        "include_num_input_tokens_seen",
        "output_dir",
        "overwrite",
        "resume_from_checkpoint",
    }
)

# Arguments of transformers' Trainer that are told even at their default: the training command's is another.
_TOLD = frozenset(
    {
        "eval_strategy",
        "load_best_model_at_end",
        "logging_steps",
        "lr_scheduler_type",
        "metric_for_best_model",
        "num_train_epochs",
        "per_device_eval_batch_size",
        "per_device_train_batch_size",
        "remove_unused_columns",
        "report_to",
        "save_strategy",
        "save_total_limit",
        "weight_decay",
    }
)


def settings_of(arguments: Any, *, only_changed: bool = False) -> dict[str, Any]:
    """Return the arguments by name, or those that are not at their default; never places or secrets.

    Args:
        arguments: Of one of the three classes above. Of the many of transformers' Trainer, those that this package has
            a default of its own for are always told, and the others where they are not at their default.
        only_changed: Leave out what is at its default.
    """
    defaults = {f.name: f.default for f in fields(arguments) if f.init}
    if isinstance(arguments, RTSTrainingArguments):
        own = [name for name in defaults if name in RTSTrainingArguments.__annotations__ or name in _TOLD]
        values = {**({} if only_changed else {name: getattr(arguments, name) for name in own}), **arguments.given}
    else:
        values = {name: getattr(arguments, name) for name in defaults}
        if only_changed:
            values = {name: value for name, value in values.items() if value != defaults[name]}
    return {
        name: getattr(value, "value", value)
        for name, value in values.items()
        if name not in _LEFT_OUT and not name.endswith("_token")
    }


def trajectory_settings(args: RTSTrainingArguments) -> dict[str, Any]:
    """Return the training arguments and what else decides which updates a run takes: the number of processes."""
    return {**settings_of(args), "processes": args.world_size}
