"""The learning rate of each compared method, chosen on the validation split."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rts_hf.comparing.comparison import TUNING_SEED, Cell, Comparison
from rts_hf.comparing.method import Method
from rts_hf.reports.run_folder import read_record

GRID = (0.1, 0.3, 1.0, 3.0)  # of the default learning rate
GROWTH = 10**0.5  # between the values that a grid grows by
EXTENSIONS = 3  # values that it may grow by, where its best value lies at an end
_PARAMETER = "learning_rate"


class Search:
    """What was tried for one method, as a study of optuna: a trial is a learning rate, its value an accuracy.

    Args:
        method: The method, without a learning rate.
    """

    def __init__(self, method: Method) -> None:
        import optuna

        self.method, self.study = method, optuna.create_study(direction="maximize", study_name=method.label)
        self._open: dict[float, Any] = {}

    @property
    def rates(self) -> list[float]:
        """The learning rates that were tried, in ascending order."""
        return sorted(trial.params[_PARAMETER] for trial in self.study.get_trials(deepcopy=False))

    @property
    def best(self) -> float:
        """The learning rate with the highest accuracy; of equal ones that with the lower loss, then the lower one."""
        trials = self.study.get_trials(deepcopy=False)

        def rank(trial: Any) -> tuple[float, float, float]:
            return trial.value, -trial.user_attrs["loss"], -trial.params[_PARAMETER]

        return max(trials, key=rank).params[_PARAMETER]

    @property
    def at_an_end(self) -> bool:
        """Whether the best value is the lowest or the highest that was tried."""
        return self.best in (self.rates[0], self.rates[-1])

    def ask(self, rate: float) -> None:
        """Begin a trial."""
        from optuna.distributions import FloatDistribution

        self.study.enqueue_trial({_PARAMETER: rate})
        self._open[rate] = self.study.ask({_PARAMETER: FloatDistribution(1e-9, 1e9, log=True)})

    def tell(self, rate: float, cells: Sequence[Cell]) -> None:
        """End a trial with the means over its runs."""
        nothing: dict[str, Any] = {"accuracy": 0.0, "loss": None}  # of a run that diverged
        found = [read_record(cell.folder)["metrics"]["validation"] or nothing for cell in cells]
        trial = self._open.pop(rate)
        losses = [float("inf") if each["loss"] is None else each["loss"] for each in found]
        trial.set_user_attr("loss", fmean(losses))
        trial.set_user_attr("runs", len(cells))
        self.study.tell(trial, fmean(each["accuracy"] for each in found))

    def table(self) -> list[dict[str, Any]]:
        """Return one row a trial: method, learning rate, mean accuracy and loss, runs."""
        trials = sorted(self.study.get_trials(deepcopy=False), key=lambda trial: trial.params[_PARAMETER])
        return [
            {
                "method": self.method.label,
                "learning_rate": trial.params[_PARAMETER],
                "validation_accuracy": trial.value,
                "validation_loss": trial.user_attrs["loss"],
                "runs": trial.user_attrs["runs"],
                "chosen": trial.params[_PARAMETER] == self.best,
            }
            for trial in trials
        ]


def search(
    comparison: Comparison,
    run: Callable[[Sequence[Cell]], None],
    *,
    seeds: int,
    learning_rates: Sequence[float] | None = None,
) -> list[Search]:
    """Choose the learning rate of every method of a comparison, and set it there.

    Every method gets the same effort: a grid around its default learning rate, the same seeds, its own length of run.
    Where the best value lies at an end of the grid, the grid grows by a value there, at most :data:`EXTENSIONS` times.
    The test split is not read.

    Args:
        comparison: Its methods get their learning rates.
        run: Makes the runs it is given, without the test split.
        seeds: Runs for each value, at least 1; none of them a seed of the comparison itself.
        learning_rates: The grid; None: multiples of each method's default, :data:`GRID`.

    Raises:
        ValueError: If optuna is not installed, or a seed of the comparison is one of tuning.
    """
    check_optuna_is_there(seeds)
    tuning_seeds = range(TUNING_SEED, TUNING_SEED + seeds)
    check_seeds(comparison, seeds)
    searches = [Search(method) for method in comparison.methods]
    wanted = [
        list(learning_rates or [share * comparison.default_learning_rate(each.method) for share in GRID])
        for each in searches
    ]
    for extension in range(EXTENSIONS + 1):
        cells = {
            (place, rate): [comparison.tuning_cell(each.method, rate, seed) for seed in tuning_seeds]
            for place, each in enumerate(searches)
            for rate in wanted[place]
        }
        for place, rate in cells:
            searches[place].ask(rate)
        run([cell for group in cells.values() for cell in group])
        for (place, rate), group in cells.items():
            searches[place].tell(rate, group)
        wanted = [_next_value(each) if extension < EXTENSIONS else [] for each in searches]
        if not any(wanted):
            break
    for place, each in enumerate(searches):
        comparison.methods[place] = comparison.tuning_cell(each.method, each.best, 0).method
    return searches


def read_trials(methods: Sequence[Method], path: str | Path) -> tuple[list[Method], list[dict[str, Any]]]:
    """Return methods with the learning rates that an earlier comparison chose for them, and its trials.

    Args:
        methods: By their labels.
        path: The earlier comparison's ``trials.csv``.

    Raises:
        ValueError: If the file cannot be read, or holds no choice for a method.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows: list[dict[str, Any]] = [
                {
                    **row,
                    "learning_rate": float(row["learning_rate"]),
                    "validation_accuracy": float(row["validation_accuracy"]),
                    "validation_loss": float(row["validation_loss"]),
                    "runs": int(row["runs"]),
                    "chosen": row["chosen"] == "True",
                }
                for row in csv.DictReader(file)
            ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"trials={str(path)!r} is not the trials.csv of a comparison ({error!r}); name one that --tune has left."
        ) from error
    if unusable := [row["learning_rate"] for row in rows if not 0 < row["learning_rate"] < math.inf]:
        raise ValueError(f"trials={str(path)!r} holds the learning rate {unusable[0]!r}, which none can have.")
    rates = {row["method"]: row["learning_rate"] for row in rows if row["chosen"]}
    missing = [method.label for method in methods if method.label not in rates]
    if missing:
        raise ValueError(
            f"trials={str(path)!r} chose no learning rate for {', '.join(missing)}; leave it out, and give tune."
        )
    labels = {method.label for method in methods}
    chosen = [replace(method, learning_rate=rates[method.label]) for method in methods]
    return chosen, [row for row in rows if row["method"] in labels]


def check_seeds(comparison: Comparison, count: int) -> None:
    """Raise ValueError if a seed of a comparison is one of those that its learning rates are chosen with."""
    if taken := set(range(TUNING_SEED, TUNING_SEED + count)) & set(comparison.seeds):
        raise ValueError(f"seeds: {min(taken)} is one that learning rates are chosen with; take others.")


def check_optuna_is_there(seeds: int) -> None:
    """Raise ValueError if the package that keeps the trials is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ValueError(f"tune={seeds} needs optuna ({error}); pip install 'rts_hf[compare]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _next_value(searched: Search) -> list[float]:
    if not searched.at_an_end:
        return []
    rate = searched.best
    return [float(f"{rate * GROWTH if rate == searched.rates[-1] else rate / GROWTH:.2g}")]
