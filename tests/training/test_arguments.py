"""Arguments: defaults, what reaches the optimizer, and errors before any work starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from rts_hf import DataArguments, ModelArguments, RTSTrainingArguments
from rts_hf.training.arguments import settings_of
from rts_hf.training.optimizers import RTS_FIELDS


def make(tmp_path: Path, **settings: Any) -> RTSTrainingArguments:
    return RTSTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_only_what_was_set_reaches_the_optimizer(tmp_path: Path) -> None:
    plain = make(tmp_path).optimizer_arguments()
    assert plain == {"opt": "rts_pugd", "lr": 0.2, "weight_decay": 0.0, "momentum": 0.9}
    full = make(
        tmp_path, opt="rts_pugd", base="adamw", radius="sine_heating", radius_beta_min=0.1, radius_beta_max=0.4,
        scale="constant", scale_beta_max=0.5, switch="gradient_variance", switch_window=5, switch_init_steps=5,
        switch_gamma=0.3, perturb_every=2, learning_rate=0.01, weight_decay=0.2, momentum=0.8, adam_beta1=0.7,
        opt_args='{"amsgrad": true}',
    ).optimizer_arguments()  # fmt: skip
    assert full == {
        "opt": "rts_pugd", "base": "adamw", "radius": "sine_heating", "radius_beta_min": 0.1, "radius_beta_max": 0.4,
        "scale": "constant", "scale_beta_max": 0.5, "switch": "gradient_variance", "switch_window": 5,
        "switch_init_steps": 5, "switch_gamma": 0.3, "perturb_every": 2, "lr": 0.01, "weight_decay": 0.2,
        "momentum": 0.8, "betas": (0.7, 0.999), "amsgrad": True,
    }  # fmt: skip


def test_adams_settings_may_stand_in_opt_args(tmp_path: Path) -> None:
    """Not every optimizer has two betas, and one that is at TrainingArguments' default is left to the optimizer."""
    for opt, betas in (("adan", [0.9, 0.9, 0.9]), ("lion", [0.9, 0.999])):
        assert make(tmp_path, opt=opt, opt_args={"betas": betas}).optimizer_arguments()["betas"] == betas


@pytest.mark.parametrize(("text", "value"), [("100", 100), ("0.5", 0.5), ("0", 0), (0.25, 0.25), (7, 7)])
def test_switch_at_is_a_step_or_a_share(tmp_path: Path, text: Any, value: float) -> None:
    read = make(tmp_path, switch="fixed", switch_at=text).switch_at
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("opt", "base", "rate"),
    [("rts_pugd", None, 0.2), ("sgd", None, 0.2), ("adamw", None, 1e-3), ("sam", "adamw", 1e-3), ("lion", None, 1e-3)],
)
def test_learning_rate_follows_the_kind_of_optimizer(tmp_path: Path, opt: str, base: str | None, rate: float) -> None:
    assert make(tmp_path, opt=opt, base=base).learning_rate == rate
    assert make(tmp_path, opt=opt, base=base, learning_rate=0.7).learning_rate == 0.7


@pytest.mark.parametrize(
    ("opt", "timm_name"),
    [("pugd", "plainpugd"), ("rts_pugd", "rts_pugd"), ("lookahead_rts_pugd", "lookahead_rts_pugd"), ("sgd", "sgd")],
)
def test_pugd_on_the_command_line_is_the_plain_one(tmp_path: Path, opt: str, timm_name: str) -> None:
    assert make(tmp_path, opt=opt).timm_name() == timm_name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"opt": "rts_pug"}, "opt='rts_pug' is not an optimizer timm knows. Did you mean rts_pugd"),
        ({"base": "adamz"}, "base='adamz' is not an optimizer timm knows"),
        ({"opt": "sgd", "radius": "constant"}, "radius='constant': opt='sgd' has no second pass"),
        ({"opt": "adamw", "switch_at": "5"}, "switch_at=5: opt='adamw'"),
        ({"radius_beta_min": 3.0}, "radius_beta_min=3.0 is greater than radius_beta_max"),
        ({"scale": "inverse_sine_annealing", "scale_beta_min": 0.0}, "scale_beta_min=0.0 makes"),
        ({"switch": "fixed", "switch_mu": 3.0}, "switch_mu=3.0 is not a setting of switch='fixed'"),
        ({"switch": "fixed", "switch_at": "half"}, "switch_at='half'"),
        ({"switch": "gradient_variance", "switch_window": 20}, "init_steps=10 must be at least window=20"),
        ({"perturb_every": 0}, "perturb_every=0"),
        ({"opt_args": "nesterov"}, "opt_args='nesterov' is not JSON"),
        ({"opt_args": "[1]"}, "must be a JSON object"),
        ({"opt": "adamw", "opt_args": '{"nonsense": 1}'}, "opt='adamw' cannot be created: .*nonsense"),
        *(
            ({**opt, "opt_args": {name: 1}}, f"opt_args holds {name}=1, which has an argument of its own: {own}")
            for opt in ({}, {"opt": "sgd"})
            for name, own in [
                ("lr", "learning_rate"),
                ("total_steps", "max_steps or num_train_epochs"),
                *((name, name) for name in ("opt", "base", "weight_decay", "momentum", *RTS_FIELDS)),
            ]
        ),
        ({"opt": "adamw", "opt_args": {"eps": 1e-3}, "adam_epsilon": 1e-4}, "opt_args holds eps=0.001 beside adam_eps"),
        ({"adam_beta1": 0.8}, "adam_beta1=0.8: sgd has no betas, so it would do nothing"),
        ({"opt": "sgd", "adam_epsilon": 1e-4}, "adam_epsilon=0.0001: sgd has no eps"),
        ({"opt": "momentum", "opt_args": {"eps": 1e-3}}, "opt_args={'eps': 0.001}: momentum has no eps"),
        ({"opt": "adahessian"}, "opt='adahessian' differentiates the gradient"),
        ({"opt": "lookahead_adahessian"}, "opt='lookahead_adahessian' differentiates"),
        ({"base": "adahessian"}, "base='adahessian' differentiates"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0 must be at least 0"),
        ({"optim": "sgd"}, "optim='sgd' has no effect here"),
        (
            {"switch": "generalization_gap", "eval_strategy": "no", "load_best_model_at_end": False},
            "eval_strategy='no'",
        ),
        ({"switch": "gradient_variance", "max_grad_norm": 1.0}, "max_grad_norm=1.0 clips the gradients"),
        ({"sync_first_pass": False, "ddp_static_graph": True}, "ddp_static_graph=True does not allow"),
        ({"overwrite": True, "resume_from_checkpoint": "last"}, "overwrite=True deletes"),
    ],
)
def test_training_arguments_are_refused(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **settings)


@pytest.mark.parametrize(
    ("make_arguments", "message"),
    [
        (lambda: ModelArguments(pretrained=True, checkpoint="x"), "both name the starting weights"),
        (lambda: ModelArguments(model_args="{"), "model_args='{' is not JSON"),
        (lambda: ModelArguments(model=""), "model='' is empty; name one, or leave it out"),
        (lambda: ModelArguments(checkpoint=" "), "checkpoint=' ' is empty"),
        (lambda: DataArguments(dataset=""), "dataset='' is empty"),
        (lambda: DataArguments(validation_fraction=1.0), "validation_fraction=1.0"),
        (lambda: DataArguments(image_size=0), "image_size=0"),
        (lambda: DataArguments(train_fraction=0.0), "train_fraction=0.0: legal are"),
        (lambda: DataArguments(label_noise=1.0), "label_noise=1.0: legal are"),
        (lambda: DataArguments(max_train_samples=-5), "max_train_samples=-5"),
    ],
)
def test_model_and_data_arguments_are_refused(make_arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_arguments()


def test_every_argument_has_a_help_text() -> None:
    for cls in (ModelArguments, DataArguments, RTSTrainingArguments):
        own = cls.__dataclass_fields__
        missing = [name for name in cls.__annotations__ if name in own and not own[name].metadata.get("help")]
        assert missing == []


def test_settings_hold_what_matters_and_no_secret(tmp_path: Path) -> None:
    arguments = RTSTrainingArguments(output_dir=str(tmp_path), use_cpu=True, hub_token="hf_secret", warmup_steps=7)
    settings = settings_of(arguments)
    assert settings["warmup_steps"] == 7
    assert settings["weight_decay"] == 0.0  # at transformers' default, but not at the training command's
    assert "gradient_accumulation_steps" not in settings  # at transformers' default
    assert "hf_secret" not in json.dumps(settings)
    assert str(tmp_path) not in json.dumps(settings)
    assert settings_of(ModelArguments(pretrained=True), only_changed=True) == {
        "model": "resnet_micro_small", "pretrained": True,
    }  # fmt: skip
    assert settings_of(DataArguments(dataset="x"), only_changed=True) == {"dataset": "x"}
