"""What a comparison compares: an optimizer or a recipe with its settings, and how a command line names it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from rts_hf.recipes import find_recipe


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
