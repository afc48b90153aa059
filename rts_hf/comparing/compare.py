"""One command that compares optimizers: choose learning rates, make the runs, tell what they found."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rts_hf.comparing.backends import check_backend_is_there, going_on
from rts_hf.comparing.comparison import Cell, Comparison, make_runs
from rts_hf.comparing.method import option, parse_method, parse_recipe
from rts_hf.comparing.report import write_report
from rts_hf.comparing.tuning import check_optuna_is_there, check_seeds, read_trials, search


def compare(
    opts: Sequence[str] = (),
    *,
    recipes: Sequence[str] = (),
    seeds: int = 5,
    first_seed: int = 0,
    budget: float = 30.0,
    output_dir: str | Path,
    words: Sequence[str] = (),
    tune: int = 0,
    learning_rates: Sequence[float] | None = None,
    trials: str | Path | None = None,
    jobs: int = 1,
    backend: str = "local",
    validation_only: bool = False,
    command: str = "",
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Compare optimizers at an equal budget of gradient evaluations, and return what ``comparison.json`` holds.

    Every method makes as many updates as the budget pays for, so that its learning rate and α schedules span exactly
    its own run. The same call goes on where an earlier one stopped; more seeds or methods may be asked for.

    Args:
        opts: Optimizers, each with options of the training command that are its own: ``"rts_pugd --switch_at 0.9"``.
            Differences are taken to ``"sgd"``, or without it to the first.
        recipes: Recipes, each with options of its own, as ``opts``; their data, model and batch must be the others'.
        seeds: Runs of each method, at least 1.
        first_seed: Of them; the others follow.
        budget: Gradient evaluations of a run, in passes over the training images, greater than 0.
        output_dir: Where everything goes; see :class:`rts_hf.comparing.comparison.Comparison`.
        words: Options of the training command for all methods.
        tune: Runs for each learning rate that is tried for each method, on the validation split; 0 takes each method's
            default, or what its options say.
        learning_rates: Those that are tried; None: multiples of each method's default.
        trials: The ``trials.csv`` of an earlier comparison, whose choices are taken in place of ``tune``.
        jobs: Runs at a time.
        backend: ``local``, or ``ray`` for a cluster.
        validation_only: Leave the test split unread and compare on the validation split: to choose settings.
        command: What the report tells as the command of the comparison.
        tell: Gets one line as each run ends.

    Raises:
        ValueError: For arguments that are not legal, or a folder that holds something else; before any run.
        RuntimeError: If runs failed, after all the others were made.
    """
    comparison = plan(
        opts, recipes=recipes, seeds=seeds, first_seed=first_seed, budget=budget, output_dir=output_dir, words=words,
        tune=tune, learning_rates=learning_rates, trials=trials, jobs=jobs, backend=backend,
        validation_only=validation_only,
    )  # fmt: skip
    known = list[dict[str, Any]]()
    if trials is not None:
        _, known = read_trials(comparison.methods, trials)
        check_seeds(comparison, max(row["runs"] for row in known))
    make = functools.partial(make_runs, comparison, at_once=jobs, backend=backend, tell=tell)
    blind = functools.partial(make, measure_test=False)
    comparison.settle_lengths(blind, every_seed=not tune)
    searches = search(comparison, blind, seeds=tune, learning_rates=learning_rates) if tune else []
    if tune:
        comparison.settle_lengths(blind)
    cells = comparison.cells()
    (blind if validation_only else make)(cells)
    return write_report(
        comparison.folder,
        [(cell.method.label, cell.folder) for cell in cells],
        {
            "command": command,
            "model": comparison.architecture,
            "data": comparison.data_name,
            "budget": budget,
            "gradient_evaluations": comparison.gradient_evaluations,
            "reference": reference(comparison),
            "split": "validation" if validation_only else "test",
            "words": list(comparison.words),
            "train_fraction": comparison.train_fraction,
            "label_noise": comparison.label_noise,
            "tuning": _tuning(known or [row for each in searches for row in each.table()], trials),
        },
        known or [row for each in searches for row in each.table()],
    )


def plan(
    opts: Sequence[str],
    *,
    recipes: Sequence[str] = (),
    seeds: int,
    first_seed: int,
    budget: float,
    output_dir: str | Path,
    words: Sequence[str],
    tune: int,
    learning_rates: Sequence[float] | None,
    trials: str | Path | None,
    jobs: int,
    backend: str,
    validation_only: bool = False,
) -> Comparison:
    """Return a comparison whose arguments are legal, and whose methods have lengths where no pilot is needed."""
    for name, value, least in (
        ("seeds", seeds, 1),
        ("first_seed", first_seed, 0),
        ("tune", tune, 0),
        ("jobs", jobs, 1),
    ):
        if value < least:
            raise ValueError(f"{name}={value!r} must be at least {least}.")
    if learning_rates is not None and not tune:
        raise ValueError("learning_rates need tune: runs for each of them, for instance 2.")
    if learning_rates is not None and not all(rate > 0 for rate in learning_rates):
        raise ValueError(f"learning_rates={list(learning_rates)!r} must be greater than 0.")
    if trials is not None and tune:
        raise ValueError(f"trials={str(trials)!r} has chosen the learning rates, and tune={tune} would; leave one out.")
    check_backend_is_there(backend)
    if tune:
        check_optuna_is_there(tune)
    methods = [*(parse_method(text) for text in opts), *(parse_recipe(text) for text in recipes)]
    if tune or trials is not None:
        chooser = f"tune={tune}" if tune else f"trials={str(trials)!r}"
        for method in methods:
            if any(option(word) == "learning_rate" for word in (*method.words, *words)):
                raise ValueError(f"{method.label!r} has a learning rate, and {chooser} would choose another.")
    if trials is not None:
        methods, _ = read_trials(methods, trials)
    every_seed = range(first_seed, first_seed + seeds)
    comparison = Comparison(
        methods, seeds=every_seed, budget=budget, output_dir=output_dir, words=words, trials=trials,
        validation_only=validation_only,
    )  # fmt: skip
    if tune:
        check_seeds(comparison, tune)
    return comparison


def reference(comparison: Comparison) -> str:
    """Return the label of the method that the others are compared with."""
    labels = [method.label for method in comparison.methods]
    return "sgd" if "sgd" in labels else labels[0]


def _tuning(trials: Sequence[Mapping[str, Any]], source: str | Path | None) -> dict[str, Any] | None:
    """Return how many trials chose the learning rates, of how many runs, whose best value lies at an end, and where."""
    if not trials:
        return None
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for row in trials:
        by_method.setdefault(row["method"], []).append(row)
    ends = {
        name: [find(row["learning_rate"] for row in rows) for find in (min, max)] for name, rows in by_method.items()
    }
    at_an_end = [row["method"] for row in trials if row["chosen"] and row["learning_rate"] in ends[row["method"]]]
    counts = {"trials": len(trials), "seeds": max(row["runs"] for row in trials), "at_an_end": at_an_end}
    return counts if source is None else {**counts, "source": Path(source).resolve().parent.name}


_NEW = ""
_PILOTS = (
    "# pilots, which tell how long runs with a listening switch may be; give this command again when they have run:"
)
_BEGUN = "# begun, to go on with if no longer running:"


def missing_commands(opts: Sequence[str], **settings: Any) -> list[str]:
    """Return the commands of the runs that a comparison lacks, for any scheduler; those begun come last.

    Where a switch listens, these are first the pilots that tell how long its runs may be. What follows from them is
    told by the next call, when they have run.

    Args:
        opts: As in :func:`compare`.
        settings: Likewise.

    Raises:
        ValueError: Where learning rates are to be chosen, or the test split is not to be read.
    """
    if settings["tune"]:
        raise ValueError("--print_commands cannot choose learning rates; name one in --opts 'NAME --learning_rate LR'.")
    if settings["validation_only"]:
        raise ValueError("--print_commands: the training command reads the test split; leave --validation_only out.")
    comparison = plan(opts, **settings)
    pilots = list[Cell]()
    comparison.settle_lengths(pilots.extend)
    pilots = [cell for cell in pilots if comparison.job(cell) is not None]
    waiting = {(cell.method.label, cell.seed) for cell in pilots}
    settled = [cell for cell in comparison.cells() if cell.method.updates is not None]
    runs = [cell for cell in settled if (cell.method.label, cell.seed) not in waiting]
    parts: dict[str, list[str]] = {_NEW: [], _PILOTS: [], _BEGUN: []}
    for cell in (*runs, *pilots):
        job = comparison.job(cell)
        if job is not None:
            left = going_on(job.folder)
            part = _BEGUN if left else _PILOTS if cell in pilots else _NEW
            where = shlex.join(["--output_dir", str(job.folder), *left])
            parts[part].append(f"{comparison.command(cell)} {where}")
    return [line for head, lines in parts.items() if lines for line in ([head, *lines] if head else lines)]
