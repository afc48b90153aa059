"""The training command's arguments, from a command line or a file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser, TrainingArguments

from rts_hf.recipes.recorded import find_recipe, recipes_table
from rts_hf.runs.arguments import CommandArguments, fit_learning_rate
from rts_hf.training.arguments import DataArguments, ModelArguments, RTSTrainingArguments

_READERS: dict[str, Callable[[str], Any]] = {".json": json.loads, ".yaml": yaml.safe_load, ".yml": yaml.safe_load}
# The twenty that people use; --help_all shows the others, of this package and of transformers' Trainer.
_USUAL = frozenset(
    {
        "dataset", "model", "pretrained", "checkpoint",
        "opt", "base", "recipe", "radius_beta_max", "switch", "switch_at", "perturb_every",
        "learning_rate", "weight_decay", "num_train_epochs", "per_device_train_batch_size", "bf16",
        "seed", "output_dir", "resume_from_checkpoint", "push_to_hub",
    }
)  # fmt: skip
# What other training scripts call an argument
_SAID_ELSEWHERE = {
    "--arch": "--model",
    "--batch_size": "--per_device_train_batch_size",
    "--data": "--dataset",
    "--epochs": "--num_train_epochs",
    "--lr": "--learning_rate",
    "--model_name_or_path": "--model",
    "--optimizer": "--opt",
    "--resume": "--resume_from_checkpoint",
    "--rho": "--radius_beta_max",
    "--smoothing": "--label_smoothing_factor",
    "--wd": "--weight_decay",
}
# Said of transformers' Trainer, whose command means something else by it
_HELP = {"push_to_hub": "Publish the run on the Hub when it is complete."}
_METAVARS = {"metric_for_best_model": "METRIC"}


def parse_arguments(
    words: Sequence[str], description: str | None = None, program: str | None = None
) -> tuple[ModelArguments, DataArguments, CommandArguments]:
    """Return the arguments that a command line gives; it may begin with a YAML or JSON file of settings.

    A ``recipe`` fills in what neither the words nor that file say. Without ``output_dir``, the run goes to the first
    free folder of ``runs/<dataset>-<model>-<opt>``, ``...-2``, ...
    >>> model, data, training = parse_arguments(["--opt", "sam", "--dataset", "cifar10", "--output_dir", "out"])
    >>> (training.opt, data.dataset, training.output_dir)
    ('sam', 'cifar10', 'out')

    Args:
        words: The command line, without the program's name.
        description: Shown above the arguments by ``--help``.
        program: What help and errors call the command.

    Raises:
        ValueError: For arguments that are unknown, contradict each other or lie outside their range.
    """
    types: list[Any] = [ModelArguments, DataArguments, CommandArguments]
    parser = HfArgumentParser(
        types,
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        prog=program,
        usage="%(prog)s [arguments]",
    )
    parser.add_argument("--help_all", action="help", help="Show all arguments, those of transformers' Trainer too.")
    parser.add_argument(
        "--list_recipes", action=_ListRecipes, nargs=0, dest=argparse.SUPPRESS, default=argparse.SUPPRESS,
        help="Show the recipes and their figures.",
    )  # fmt: skip
    for action in parser._actions:
        action.help = _HELP.get(action.dest, action.help)
    if "--help_all" not in words:
        _hide_unusual(parser)
    _group_optimizer(parser)
    words = list(words)
    settings = _read_settings(parser, Path(words.pop(0))) if words and Path(words[0]).suffix in _READERS else {}
    parser.set_defaults(**settings)
    _take_recipe(parser, words, settings)
    *parsed, unknown = parser.parse_args_into_dataclasses(
        args=words, return_remaining_strings=True, look_for_args_file=False
    )
    _refuse_unknown(parser, [word for word in unknown if word.startswith("--")] or unknown, "argument")
    model_args, data_args, training_args = parsed
    fit_learning_rate(model_args, training_args)
    return model_args, data_args, training_args


def _read_settings(parser: argparse.ArgumentParser, path: Path) -> dict[str, Any]:
    """Return a file's settings by name, as the command line would have read them."""
    try:
        settings = _READERS[path.suffix](path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"settings file {str(path)!r} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"settings file {str(path)!r} must hold names and values, as in 'opt: rts_pugd'.")
    actions = {action.dest: action for action in parser._actions}
    _refuse_unknown(parser, [f"--{name}" for name in settings if name not in actions], f"setting in {path}")
    return {name: _checked(actions[name], value, path) for name, value in settings.items()}


def _take_recipe(parser: argparse.ArgumentParser, words: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Make the settings of a recipe that is named the defaults of all that neither a file's settings nor words give."""
    if settings.get("recipe") is None and not any(word.split("=")[0] == "--recipe" for word in words):
        return
    unset = object()
    namespace = argparse.Namespace(**{action.dest: unset for action in parser._actions})
    given, _ = parser.parse_known_args(words, namespace)
    values = {**settings, **{name: value for name, value in vars(given).items() if value is not unset}}
    if values.get("recipe") is not None:
        parser.set_defaults(**find_recipe(values["recipe"]).defaults(values))


def _checked(action: argparse.Action, value: Any, path: Path) -> Any:
    """Return a file's value as the command line would have read it."""
    if value is None:
        return value
    if isinstance(value, dict):
        if not action.dest.endswith(("args", "kwargs", "config")):
            raise ValueError(f"setting {action.dest}={value!r} in {path} must be a single value.")
        return value
    if isinstance(value, list):
        if action.nargs not in ("+", "*") and action.dest != "report_to":
            raise ValueError(f"setting {action.dest}={value!r} in {path} must be a single value, not a list.")
        return value
    word = str(value).lower() if isinstance(value, bool) else str(value)
    try:
        read = action.type(word) if callable(action.type) else word
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        raise ValueError(f"setting {action.dest}={value!r} in {path} cannot be read: {error}.") from error
    if action.choices is not None and read not in action.choices:
        raise ValueError(
            f"setting {action.dest}={value!r} in {path} must be one of {', '.join(map(str, action.choices))}."
        )
    return [read] if action.nargs in ("+", "*") else read


def _refuse_unknown(parser: argparse.ArgumentParser, words: list[str], kind: str) -> None:
    if not words:
        return
    known = [option for action in parser._actions for option in action.option_strings if "-" not in option[2:]]
    word = words[0].split("=")[0]
    near = [_SAID_ELSEWHERE[word]] if word in _SAID_ELSEWHERE else get_close_matches(word, known, n=3, cutoff=0.7)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(f"unknown {kind} {words[0]}{hint or '.'} --help lists what there is.")


def _group_optimizer(parser: argparse.ArgumentParser) -> None:
    """Show the optimizer's own arguments in a group of their own, before the Trainer's, and recipes before all."""
    own = set(RTSTrainingArguments.__annotations__) - {f.name for f in fields(TrainingArguments)} - {"recipe"}
    training = next(group for group in parser._action_groups if group.title == "training")
    optimizer = parser.add_argument_group("optimizer")
    optimizer._group_actions += [action for action in training._group_actions if action.dest in own]
    parser._optionals._group_actions += [action for action in training._group_actions if action.dest == "recipe"]
    training._group_actions = [action for action in training._group_actions if action.dest not in {*own, "recipe"}]
    parser._action_groups.remove(optimizer)
    parser._action_groups.insert(parser._action_groups.index(training), optimizer)


def _hide_unusual(parser: argparse.ArgumentParser) -> None:
    shown = _USUAL | {"help", "help_all", "list_recipes"}
    for action in parser._actions:
        if action.option_strings[0].removeprefix("--") not in shown and action.dest not in ("help",):
            action.help = argparse.SUPPRESS


class _ListRecipes(argparse.Action):
    """Shows the recipes and leaves, as ``--help`` does."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(recipes_table())
        parser.exit()


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """One spelling of each argument, and its default where there is one."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        option = action.option_strings[0] if action.option_strings else action.dest
        if action.option_strings == ["-h", "--help"]:
            option = "-h, --help"
        if action.choices is not None:
            return f"{option} {{{','.join(map(str, action.choices))}}}"
        metavar = _METAVARS.get(action.dest, action.dest.split("_")[-1].upper())
        return option if action.nargs in (0, "?") else f"{option} {metavar}"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = " ".join((action.help or "").split())
        if action.default in (None, argparse.SUPPRESS, False) or action.help is None:
            return text
        return f"{text} (default: %(default)s)"
