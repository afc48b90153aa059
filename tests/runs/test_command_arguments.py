"""The training command's defaults, and a run with transformers' defaults instead."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from runs_for_tests import SMALL

from rts_hf import CommandArguments, DataArguments, ModelArguments, RTSTrainingArguments, recipe_arguments, train
from rts_hf.runs.arguments import fit_learning_rate
from rts_hf.runs.command_line import parse_arguments
from rts_hf.runs.plan import make_plan
from rts_hf.training.arguments import settings_of

# Written down: a run that is repeated or resumed must find them as they were.
DEFAULTS = {
    "output_dir": None, "resume_from_checkpoint": None, "lr_scheduler_type": "cosine", "weight_decay": 5e-4,
    "num_train_epochs": 30, "per_device_train_batch_size": 64, "per_device_eval_batch_size": 256,
    "eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 2, "logging_steps": 10,
    "load_best_model_at_end": True, "metric_for_best_model": "accuracy", "report_to": "none",
    "remove_unused_columns": False,
}  # fmt: skip
ALWAYS_TOLD = {
    "batchnorm_first_pass_only": True, "base": None, "draw_figures": True, "early_stopping_patience": None,
    "eval_strategy": "epoch", "learning_rate": 0.2, "load_best_model_at_end": True, "logging_steps": 10,
    "lr_scheduler_type": "cosine", "max_grad_norm": 0.0, "max_skipped_updates": 25, "measure_sharpness": None,
    "metric_for_best_model": "accuracy", "momentum": 0.9, "num_train_epochs": 30, "opt": "rts_pugd", "opt_args": None,
    "override_schedule": False, "per_device_eval_batch_size": 256, "per_device_train_batch_size": 64,
    "perturb_every": None, "perturb_fraction": 1.0, "radius": None, "radius_beta_max": None, "radius_beta_min": None,
    "recipe": None, "remove_unused_columns": False, "report_to": [], "same_dropout": True, "save_strategy": "epoch",
    "save_total_limit": 2, "scale": None, "scale_beta_max": None, "scale_beta_min": None, "switch": None,
    "switch_at": None, "switch_base_epochs": None, "switch_every": None, "switch_gamma": None,
    "switch_init_steps": None, "switch_mu": None, "switch_unit_from": None, "switch_window": None,
    "sync_first_pass": True, "weight_decay": 5e-4,
}  # fmt: skip
HELP = [
    "--num_train_epochs EPOCHS Passes over the training images. (default: 30)",
    "--per_device_train_batch_size SIZE Images a micro-batch and device. (default: 64)",
    "--weight_decay DECAY Weight decay of weights that are not 1-d. (default: 0.0005)",
    "--output_dir DIR Run folder. Default: the first free one of runs/<dataset>-<model>-<opt>.",
    "--resume_from_checkpoint CHECKPOINT Go on with the run in output_dir: 'last', or a checkpoint's folder.",
]
HELP_ALL = [
    "--lr_scheduler_type TYPE Any scheduler of transformers. (default: cosine)",
    "--eval_strategy STRATEGY no, steps or epoch. (default: epoch)",
    "--save_total_limit LIMIT Checkpoints kept. (default: 2)",
    "--max_grad_norm NORM Clip gradients to this norm; 0 is off. A perturbed update has length 1 anyway.",
    "--metric_for_best_model METRIC What makes a checkpoint the best, on validation data. (default: accuracy)",
]


def test_the_commands_own_defaults_are_these() -> None:
    known = {field.name: field for field in fields(CommandArguments)}
    assert {name: known[name].default for name in CommandArguments.__annotations__} == DEFAULTS
    assert all(known[name].metadata["help"] for name in DEFAULTS)


@pytest.mark.parametrize("make", [lambda: parse_arguments(["--output_dir", "out"])[2], CommandArguments])
def test_a_record_tells_them_all(make: Any) -> None:
    arguments = make()
    assert isinstance(arguments, CommandArguments)
    assert settings_of(arguments) == ALWAYS_TOLD
    assert settings_of(arguments, only_changed=True) == {}
    assert arguments.ddp_find_unused_parameters is False


@pytest.mark.parametrize(("words", "rate"), [
    (["--pretrained"], 0.01), (["--checkpoint", "weights.safetensors"], 0.01), (["--opt", "sgd", "--pretrained"], 0.01),
    (["--base", "adamw", "--pretrained"], 5e-5), (["--pretrained", "--learning_rate", "0.2"], 0.2), ([], 0.2),
])  # fmt: skip
def test_trained_weights_are_moved_more_slowly(words: list[str], rate: float) -> None:
    arguments = parse_arguments([*words, "--output_dir", "out"])
    assert arguments[2].learning_rate == rate
    fit_learning_rate(arguments[0], arguments[2])  # a second time, as a run does
    assert arguments[2].learning_rate == rate


def test_a_learning_rate_that_was_set_afterwards_stays(tmp_path: Path) -> None:
    arguments = CommandArguments(output_dir=str(tmp_path / "run"))
    for model, rate in ((ModelArguments(pretrained=True), 0.01), (ModelArguments(), 0.2)):
        make_plan(model, DataArguments(), arguments, measure_test=True)
        assert arguments.learning_rate == rate
    arguments.learning_rate = 0.05
    make_plan(ModelArguments(pretrained=True), DataArguments(), arguments, measure_test=True)
    assert arguments.learning_rate == 0.05


def test_a_recipe_fills_in_the_commands_arguments() -> None:
    arguments = recipe_arguments("digits", output_dir="out", num_train_epochs=2)[2]
    assert isinstance(arguments, CommandArguments)
    assert (arguments.logging_steps, arguments.num_train_epochs) == (10, 2)


@pytest.mark.parametrize(("option", "lines"), [("--help", HELP), ("--help_all", [*HELP, *HELP_ALL])])
def test_help_tells_them(
    option: str, lines: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        parse_arguments([option])
    shown = " ".join(capsys.readouterr().out.split())
    assert [line for line in lines if line not in shown] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_train": True}, "do_train=True cannot be set: the training command always trains"),
        ({"do_predict": True}, "do_predict=True cannot be set: the test split is always measured"),
        ({"hub_always_push": True}, "hub_always_push=True cannot be set: the run is published once, at its end"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha=5.0 cannot be set: image classifiers have no token"),
        ({"neftune_noise_alpha": 0.0}, "neftune_noise_alpha=0.0 cannot be set"),
        ({"remove_unused_columns": True}, "remove_unused_columns=True cannot be set"),
        ({"eval_strategy": "no"}, "eval_strategy='no' leaves nothing to tell the best weights by"),
        ({"save_strategy": "no"}, "save_strategy='no' with eval_strategy='epoch'"),
    ],
)
def test_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CommandArguments(output_dir=str(tmp_path), use_cpu=True, **settings)
    if "cannot be set" in message and "remove" not in message:
        arguments = RTSTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)
        with pytest.raises(ValueError, match=message):
            train(ModelArguments(), SMALL, arguments)


def test_a_run_with_transformers_defaults_keeps_its_last_weights(tmp_path: Path) -> None:
    arguments = RTSTrainingArguments(
        output_dir=str(tmp_path / "run"), opt="sgd", num_train_epochs=1, use_cpu=True, measure_sharpness=True,
        draw_figures=False, disable_tqdm=True,
    )  # fmt: skip
    record = train(ModelArguments(model="test_resnet"), SMALL, arguments)
    assert (record["status"], record["best"], record["updates"]) == ("complete", None, 15)
    assert all(0 <= record["metrics"][split]["accuracy"] <= 1 for split in ("train", "validation", "test"))
    told = record["arguments"]["training"]
    assert told.keys() == {*ALWAYS_TOLD, "use_cpu", "disable_tqdm"}
    assert (told["eval_strategy"], told["weight_decay"], told["per_device_train_batch_size"]) == ("no", 0.0, 8)
    *_, again = parse_arguments([*record["command"].split()[5:], "--output_dir", str(tmp_path / "again")])
    unsayable = {"metric_for_best_model", "save_total_limit", "remove_unused_columns"}  # None, None, and of no effect
    repeated = settings_of(again)
    assert {name for name in told if told[name] != repeated[name]} == unsayable
