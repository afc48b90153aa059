"""What a comparison compares: an optimizer or a recipe with its settings, and how a command line names it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from rts_hf.optim.switches import FixedSwitch, PhaseSwitch
from rts_hf.recipes.recorded import find_recipe


@dataclass(frozen=True)
class Method:
    """One optimizer, or recipe, with its settings.

    Args:
        label: What tables call it, as a command line would have it.
        words: Its options of the training command.
        learning_rate: Peak learning rate; None until it is known.
        updates: Of a run within the budget; None until it is known.
    """

    label: str
    words: tuple[str, ...]
    learning_rate: float | None = None
    updates: int | None = None

    @property
    def folder(self) -> str:
        """Its name as that of a folder."""
        return re.sub(r"[^\w.+=-]+", "_", self.label).strip("_")


def parse_method(text: str) -> Method:
    """Return the method that a text names: an optimizer, and options of the training command that it goes with.

    >>> parse_method("rts_pugd --switch_at 0.9").words
    ('--opt', 'rts_pugd', '--switch_at', '0.9')
    >>> parse_method("sgd  --opt_args '{}'").label
    "sgd --opt_args '{}'"

    Raises:
        ValueError: If the text does not begin with a name.
    """
    words = shlex.split(text)
    if not words or words[0].startswith("-"):
        raise ValueError(f"opts: {text!r} must begin with an optimizer's name, as in 'rts_pugd --switch_at 0.9'.")
    return Method(shlex.join(words), ("--opt", *words))


def parse_recipe(text: str) -> Method:
    """Return the method that a recipe is, with the options that it goes with, if any.

    >>> parse_recipe("cifar10_pugd --weight_decay 1e-3").words
    ('--recipe', 'cifar10_pugd', '--weight_decay', '1e-3')

    Raises:
        ValueError: If the text does not begin with a recipe's name.
    """
    words = shlex.split(text)
    if not words or words[0].startswith("-"):
        raise ValueError(f"recipes: {text!r} must begin with a recipe's name; --list_recipes of train.py has them all.")
    find_recipe(words[0])
    return Method(shlex.join(words), ("--recipe", *words))


def option(word: str) -> str | None:
    """Return the name of the option that a word of a command line is, as the training command's arguments have it.

    >>> option("--learning-rate=0.1"), option("0.1")
    ('learning_rate', None)
    """
    return word.removeprefix("--").split("=")[0].replace("-", "_") if word.startswith("--") else None


def gradient_evaluations(
    updates: int, switch: PhaseSwitch | None, *, perturb_every: int = 1, second_pass: float = 1
) -> float | None:
    """Return how many gradient evaluations a run of so many updates takes, each at one batch.

    An update takes one gradient, a perturbed one two, or one and a share.

    >>> gradient_evaluations(630, FixedSwitch(0.8)), gradient_evaluations(630, FixedSwitch(0.8), second_pass=0.25)
    (756, 661.5)

    Args:
        updates: Optimizer steps of the whole run, at least 0.
        switch: What starts the perturbed phase; None where there is no second pass.
        perturb_every: One update in this many is perturbed after the switch, at least 1.
        second_pass: What a second pass costs of a gradient evaluation, in (0, 1].

    Returns:
        The number, or None where the switch waits for what only the run itself can tell.
    """
    if switch is None:
        return updates
    if not isinstance(switch, FixedSwitch):
        return None
    start = switch.start(updates)
    perturbed = 0 if start is None or start >= updates else -(-(updates - start) // perturb_every)
    return round(updates + perturbed * second_pass, 6)


def updates_within(
    budget: int, switch: PhaseSwitch | None, *, perturb_every: int = 1, second_pass: float = 1
) -> int | None:
    """Return the most updates that so many gradient evaluations pay for.

    >>> updates_within(756, FixedSwitch(0.8)), updates_within(756, FixedSwitch(0)), updates_within(756, None)
    (630, 378, 756)

    Args:
        budget: Gradient evaluations, at least 1.
        switch, perturb_every, second_pass: As for :func:`gradient_evaluations`.

    Returns:
        The number, or None where the switch waits for what only the run itself can tell.
    """
    if gradient_evaluations(budget, switch) is None:
        return None
    low, high = 0, budget  # the cost does not fall with the number of updates
    while low < high:
        middle = (low + high + 1) // 2
        cost = gradient_evaluations(middle, switch, perturb_every=perturb_every, second_pass=second_pass)
        low, high = (middle, high) if cost is not None and cost <= budget else (low, middle - 1)
    return low


def next_length(tried: Mapping[int, float], budget: int) -> int:
    """Return the updates that may meet a budget, by the runs that came nearest to it from below and from above.

    >>> next_length({300: 400}, 300), next_length({300: 400, 225: 250}, 300)
    (225, 250)

    Args:
        tried: Gradient evaluations of at least one run, by its updates.
        budget: Gradient evaluations, at least 1.
    """
    costs = sorted((cost, updates) for updates, cost in tried.items())
    below = [each for each in costs if each[0] <= budget][-1:]
    above = [each for each in costs if each[0] > budget][:1]
    if not below or not above:
        ((cost, updates),) = below or above
        return max(1, round(updates * budget / cost))
    (low, shorter), (high, longer) = below[0], above[0]
    return max(1, round(shorter + (longer - shorter) * (budget - low) / (high - low)))
