"""A recipe: settings of the training command under a name, with what was recorded and measured with them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import timm.optim

from rts_hf.training.optimizers import TWO_PASS_FIELDS, bare_name, is_two_pass, stepping_name

_UNSET = object()
# An argument that is given otherwise than a recipe says it, and the recipe's settings that then have no sense.
_GIVE_WAY = {
    "opt": TWO_PASS_FIELDS,
    "switch": tuple(name for name in TWO_PASS_FIELDS if name.startswith("switch_")),
    "model": ("model_args",),
    "checkpoint": ("pretrained",),
}


@dataclass(frozen=True)
class Recorded:
    """What the method's authors recorded with a setting.

    Args:
        model: Their model.
        epochs: Of the run.
        best: Highest test accuracy over the run, in [0, 1].
        final: Test accuracy after the last epoch, in [0, 1].
        baseline: The ``best`` of plain PUGD with the same model and as many epochs; None for that itself.
    """

    model: str
    epochs: int
    best: float
    final: float
    baseline: float | None = None


@dataclass(frozen=True)
class Measured:
    """What this project measured with a setting.

    Args:
        accuracy: On the test split, read once; the mean over the seeds, in [0, 1].
        seeds: Of the runs.
        interval: Half the width of the mean's 95 % interval; None for one seed.
    """

    accuracy: float
    seeds: tuple[int, ...]
    interval: float | None = None


@dataclass(frozen=True)
class Recipe:
    """Settings of the training command under a name.

    Args:
        name: What the command calls it.
        purpose: What it is, in one line.
        settings: The command's arguments by name, as in a settings file.
        recorded: The authors' figures, or None for a recipe of this project's own.
        measured: This project's figures, or None where there are none.
        caveats: What to know before the figures are compared with others, a sentence or a few each.
    """

    name: str
    purpose: str
    settings: Mapping[str, Any]
    recorded: Recorded | None = None
    measured: Measured | None = None
    caveats: tuple[str, ...] = ()

    def defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that fill in what is not given.

        Settings of an optimizer, a switch or a model go with it: where another one is given, they are left out too. A
        base optimizer stays where the new one has one; a learning rate goes where one of SGD's kind is replaced by one
        of Adam's kind, or the other way round.

        >>> recipe = Recipe("mine", "", {"dataset": "cifar10", "num_train_epochs": 9, "opt": "sam", "base": "adamw"})
        >>> recipe.defaults({"num_train_epochs": 2})
        {'dataset': 'cifar10', 'opt': 'sam', 'base': 'adamw'}
        >>> recipe.defaults({"opt": "sgd"})
        {'dataset': 'cifar10', 'num_train_epochs': 9}

        Args:
            given: The arguments that were given, by name.
        """
        left_out = set(given)
        for name, others in _GIVE_WAY.items():
            own = self.settings.get(name)
            is_wrapped = (
                name == "opt" and own is not None and bare_name(str(given.get(name))) == own
            )  # lookahead_rts_pugd
            if name in given and given[name] != own and not is_wrapped:
                left_out.update(others)
        opt = given.get("opt", self.settings.get("opt"))
        if opt is not None and is_two_pass(opt) and "base" not in given:
            left_out.discard("base")  # the optimizer that takes the steps stays the same
        settings = {name: copy.deepcopy(value) for name, value in self.settings.items() if name not in left_out}
        if _has_betas({**settings, **given}) != _has_betas(self.settings):
            settings.pop("learning_rate", None)
        return settings

    def differences(self, present: Mapping[str, Any], changed: Iterable[str]) -> list[str]:
        """Return the names of the arguments by which a run is not the recipe's.

        Args:
            present: The run's arguments by name.
            changed: Those of them that are not at the training command's default.
        """
        others = {name for name in self.settings if present.get(name, _UNSET) != self.settings[name]}
        if "dataset" not in self.settings:
            return sorted(others)  # of the method alone: it says nothing of data, model and length
        return sorted(others | (set(changed) - set(self.settings) - {"recipe"}))

    def in_words(self) -> str:
        """Return the optimizer's setting in words.

        >>> Recipe("mine", "", {"opt": "rts_pugd", "switch": "fixed", "switch_at": "0.5"}).in_words()
        'radius and scale constant 1, perturbed after 50% of the run'
        """
        settings = self.settings
        if settings["opt"] != "rts_pugd":
            return f"plain {settings['opt'].upper()}, perturbed from the first update"
        parts = []
        for name in ("radius", "scale"):
            low, high = settings.get(f"{name}_beta_min"), settings.get(f"{name}_beta_max")
            if settings.get(name, "constant") != "constant":
                parts.append(f"{name} {settings[name]} (β_min {low:g}, β_max {high:g})")
        parts = parts or ["radius and scale constant 1"]
        switch = {name.removeprefix("switch_"): value for name, value in settings.items() if name.startswith("switch_")}
        if settings.get("switch") == "fixed":
            share = float(switch["at"])
            parts.append(f"perturbed after {share:.0%} of the run" if share else "perturbed from the first update")
        elif settings.get("switch") == "staged":
            share = float(switch["unit_from"])
            parts.append(f"unit steps after {share:.0%} of the run, perturbed once the generalization gap has grown")
        elif "switch" in settings:
            told = ", ".join(f"{name} {value:g}" for name, value in switch.items())
            parts.append(f"switch {settings['switch']} ({told})")
        return ", ".join(parts)

    def facts(self, differs_in: Sequence[str]) -> dict[str, Any]:
        """Return what ``run.json`` tells of it, as plain values.

        Args:
            differs_in: By which arguments the run is not the recipe's.
        """
        return {
            "name": self.name,
            "recorded": None if self.recorded is None else asdict(self.recorded),
            "measured": None if self.measured is None else {**asdict(self.measured), "seeds": [*self.measured.seeds]},
            "caveats": [*self.caveats],
            "differs_in": [*differs_in],
        }


def _has_betas(settings: Mapping[str, Any]) -> bool:
    """Return whether the optimizer that takes the steps is of Adam's kind, which wants another learning rate."""
    name = stepping_name(str(settings.get("opt", "rts_pugd")), settings.get("base"))
    return name in timm.optim.list_optimizers() and bool(timm.optim.get_optimizer_info(name).has_betas)
