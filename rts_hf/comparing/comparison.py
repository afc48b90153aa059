"""Optimizers compared at an equal budget of gradients: which runs are made, and with which learning rates."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rts_hf.comparing.backends import Job, check_backend_is_there, run_jobs
from rts_hf.comparing.method import Method, next_length, option, updates_within
from rts_hf.files import read_json_object, write_text
from rts_hf.optim.registration import unwrap_optimizer
from rts_hf.optim.switches import PhaseSwitch
from rts_hf.reports.run_folder import COMPARISON_NAME, RECORD_NAME, read_record
from rts_hf.runs.command_line import parse_arguments
from rts_hf.runs.record import command_line
from rts_hf.runs.stages import load_run_data
from rts_hf.training.arguments import RTSTrainingArguments, settings_of, trajectory_settings
from rts_hf.training.checkpoints import FREE_SETTINGS
from rts_hf.training.checks import warn_of_a_single_image
from rts_hf.training.window import share_taken

PLAN_NAME = "plan.json"
TUNING_SEED = 1000  # the first seed of the runs that only choose a learning rate
PILOTS = 5  # runs to settle the length of a run whose switch listens
CLOSE_ENOUGH = 0.02  # share of the budget
ENDED = ("complete", "diverged")  # a run that diverged would do so again
_OWN = (
    "max_steps", "num_train_epochs", "opt", "output_dir", "overwrite", "push_to_hub", "resume_from_checkpoint", "seed",
)  # fmt: skip


class Cell(NamedTuple):
    """One run of a comparison."""

    method: Method
    seed: int
    folder: Path


class Comparison:
    """Runs of several methods with several seeds, each of as many gradient evaluations, in one folder.

    The folder holds ``plan.json``, the run folders (``runs/<method>/seed-<n>``), those that chose the learning rates
    (``tuning/``) and those that settled a length (``pilots/``), and what they printed (``logs/``). The same comparison
    goes on where it stood: runs that are complete are not made again. Seeds and methods may be added.

    Args:
        methods: What is compared, all labels different.
        seeds: Of the runs, which give initial weights and the order of images; the same for every method, so that
            differences can be taken in pairs.
        budget: Gradient evaluations of a run, in passes over the training images, greater than 0.
        output_dir: The folder.
        words: Options of the training command for all: data, model, batch.
        trials: The file of an earlier comparison that has chosen the methods' learning rates, if one has.
        validation_only: Whether the test split is left unread.

    Raises:
        ValueError: For methods that are not legal or do not share data, model and batch, options that a comparison sets
            itself, trials of another task, or a folder that holds another comparison.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        *,
        seeds: Iterable[int],
        budget: float,
        output_dir: str | Path,
        words: Sequence[str] = (),
        trials: str | Path | None = None,
        validation_only: bool = False,
    ) -> None:
        self.folder, self.words, self.seeds, self.budget = Path(output_dir), tuple(words), tuple(seeds), budget
        if not methods:
            raise ValueError("opts and recipes name nothing to compare; give optimizers' names.")
        if not self.seeds:
            raise ValueError("seeds=0 makes no runs; give at least 1, and 2 for a spread.")
        if not budget > 0:
            raise ValueError(f"budget={budget!r} must be greater than 0: passes over the training images.")
        folders = [method.folder for method in methods]
        for method in methods:
            if folders.count(method.folder) > 1:
                raise ValueError(f"{method.label!r} is there twice; leave one out.")
            self._check_words(method)
        parsed = [parse_arguments(self._words(method)) for method in methods]
        for method, arguments in zip(methods, parsed, strict=True):
            for mine, first in zip(arguments[:2], parsed[0][:2], strict=True):
                now, then = vars(mine), vars(first)
                if others := [name for name in now if now[name] != then[name]]:
                    told = ", ".join(f"{name} {now[name]!r}, not {then[name]!r}" for name in others)
                    raise ValueError(
                        f"{method.label!r} has another model or data than {methods[0].label!r} ({told}); give "
                        f"{', '.join(f'--{name}' for name in others)} for all."
                    )
            if _batch(arguments[2]) != _batch(parsed[0][2]):
                raise ValueError(
                    f"{method.label!r} has another batch than {methods[0].label!r}; give "
                    "--per_device_train_batch_size for all."
                )
        data = load_run_data(*parsed[0][:2])
        self.validation_only = validation_only
        if data.test is None and not validation_only:
            raise ValueError(
                f"dataset={data.name!r} has no test split to compare on; validation_only compares on the validation "
                "split."
            )
        self.data_name, self.architecture = data.name, str(parsed[0][0].model)
        self.train_fraction, self.label_noise = data.train_fraction, data.label_noise
        warn_of_a_single_image(parsed[0][2], len(data.train))
        whole = len(data.train) / parsed[0][2].train_batch_size
        batches = max(1, math.floor(whole) if parsed[0][2].dataloader_drop_last else math.ceil(whole))
        self.updates_an_epoch = math.ceil(batches / parsed[0][2].gradient_accumulation_steps)
        self.gradient_evaluations = max(1, round(budget * self.updates_an_epoch))
        self.methods = [self._with_length(method, args[2]) for method, args in zip(methods, parsed, strict=True)]
        self._listening = {method.label for method in self.methods if method.updates is None}
        self._lengths: dict[tuple[str, int], int] = {}  # of a listening method's runs, by label and seed
        if trials is not None:
            self._check_task(trials)
        self._check_folder()

    # ---- What is made ----

    def settle_lengths(self, run: Callable[[Sequence[Cell]], None], *, every_seed: bool = True) -> None:
        """Find, by pilot runs, how long a run may be whose switch waits for what only a run can tell.

        A pilot is made with the length that would fit if as large a share of its updates were perturbed as of the one
        before (or with one between, where some were too short and some too long), until the budget is met within 2 %,
        or after five pilots; the closest one counts. The first seed's comes first, and the others' begin with its
        length. When the switch fires depends on the learning rate, so a call after one was chosen settles the lengths
        for it.

        Args:
            run: Makes the runs it is given; those of all methods and seeds side by side. What waits for one that it has
                not made is left open.
            every_seed: Whether each seed's length is settled, and not the first's only, which then counts for all.
        """
        for seeds in (self.seeds[:1], self.seeds[1:] if every_seed else ()):
            self._settle(run, seeds)

    def _settle(self, run: Callable[[Sequence[Cell]], None], seeds: Sequence[int]) -> None:
        budget = self.gradient_evaluations
        tried: dict[tuple[int, int], dict[int, float]] = {
            (place, seed): {}
            for place, method in enumerate(self.methods)
            for seed in seeds
            if method.label in self._listening and (seed == self.seeds[0] or method.updates is not None)
        }
        wanted = {pair: self.methods[pair[0]].updates or budget for pair in tried}
        for _ in range(PILOTS):
            pilots = {
                (place, seed): self._pilot_cell(self.methods[place], seed, updates)
                for (place, seed), updates in wanted.items()
            }
            if not pilots:
                break
            run(list(pilots.values()))
            for pair, cell in pilots.items():
                updates = wanted.pop(pair)
                if self.job(cell) is not None:
                    del tried[pair]
                    continue
                record = read_record(cell.folder)
                if record["status"] == "diverged":  # it tells nothing of when the switch fires
                    continue
                tried[pair][updates] = record["gradient_evaluations"]
                length = next_length(tried[pair], budget)
                if abs(tried[pair][updates] / budget - 1) > CLOSE_ENOUGH and length not in tried[pair]:
                    wanted[pair] = length
        for (place, seed), found in tried.items():
            method = self.methods[place]
            best = min(found, key=lambda length: abs(found[length] - budget), default=method.updates or budget)
            self._lengths[method.label, seed] = best
            if seed == self.seeds[0]:
                self.methods[place] = replace(method, updates=best)

    def cells(self) -> list[Cell]:
        """Return the runs of the comparison itself, seed by seed, so that an early stop leaves whole pairs."""
        return [
            Cell(
                replace(method, updates=self._lengths.get((method.label, seed), method.updates)),
                seed,
                self.folder / "runs" / method.folder / f"seed-{seed}",
            )
            for seed in self.seeds
            for method in self.methods
        ]

    def tuning_cell(self, method: Method, learning_rate: float, seed: int) -> Cell:
        """Return a run that only tells how a learning rate does on the validation split."""
        folder = self.folder / "tuning" / method.folder / f"lr-{learning_rate:g}" / f"seed-{seed}"
        return Cell(replace(method, learning_rate=learning_rate), seed, folder)

    def command(self, cell: Cell) -> str:
        """Return the command that makes a run, as it stands in its record."""
        return command_line(*parse_arguments(self._cell_words(cell)))

    def job(self, cell: Cell, *, measure_test: bool = True) -> Job | None:
        """Return what is left to do of a run, or None if it is complete, or has diverged.

        Raises:
            ValueError: If its folder holds another run.
        """
        words = self._cell_words(cell)
        log = self.folder / "logs" / f"{'-'.join(cell.folder.relative_to(self.folder).parts)}.txt"
        if (cell.folder / RECORD_NAME).is_file():
            record = read_record(cell.folder)
            if record["command"] != self.command(cell):
                raise ValueError(
                    f"{cell.folder} holds another run ({record['command']}, not {self.command(cell)}); take another "
                    "output_dir, for instance if an earlier version settled another length."
                )
            if record["status"] in ENDED:
                return None
        return Job(tuple(words), log, measure_test)

    def default_learning_rate(self, method: Method) -> float:
        """Return the learning rate that the training command takes for a method: the one given, or its default."""
        return float(parse_arguments(self._words(method))[2].learning_rate or 0.0)

    # ---- Behind it ----

    def _pilot_cell(self, method: Method, seed: int, updates: int) -> Cell:
        folder = self.folder / "pilots" / method.folder
        if method.learning_rate is not None:
            folder /= f"lr-{method.learning_rate:g}"
        pilot = replace(method, updates=updates)
        return Cell(pilot, seed, folder / f"updates-{updates}-seed-{seed}")

    def _words(self, method: Method) -> list[str]:
        return [*self.words, *method.words, "--output_dir", str(self.folder / "runs" / method.folder)]

    def _cell_words(self, cell: Cell) -> list[str]:
        method = cell.method
        words = [*self.words, *method.words, "--max_steps", str(method.updates), "--seed", str(cell.seed)]
        if method.learning_rate is not None:
            words += ["--learning_rate", f"{method.learning_rate:g}"]
        return [*words, "--output_dir", str(cell.folder)]

    def _check_words(self, method: Method) -> None:
        for word in (*self.words, *method.words[2:]):
            if option(word) in _OWN:
                raise ValueError(f"{word} is set by the comparison itself; leave it out.")
        if self.words and not self.words[0].startswith("-"):
            raise ValueError(f"{self.words[0]!r}: a comparison takes no file of settings; give its options as words.")

    def _with_length(self, method: Method, args: RTSTrainingArguments) -> Method:
        optimizer = _optimizer(args)
        switch: PhaseSwitch | None = getattr(optimizer, "switch", None)
        updates = updates_within(self.gradient_evaluations, switch, **_cost(args, optimizer))
        if updates == 0:
            raise ValueError(f"budget={self.budget!r} pays for no update of {method.label!r}; give more.")
        return replace(method, updates=updates)

    def _check_task(self, trials: str | Path) -> None:
        """Refuse trials of another task, budget or common options, by the ``comparison.json`` that lies beside them."""
        try:
            known = read_json_object(Path(trials).with_name(COMPARISON_NAME))
        except (OSError, ValueError) as error:
            raise ValueError(f"trials={str(trials)!r} has no {COMPARISON_NAME} beside it to tell its task.") from error
        wanted = {
            "model": self.architecture, "data": self.data_name, "gradient_evaluations": self.gradient_evaluations,
        }  # fmt: skip
        for name, value in wanted.items():
            if known.get(name) != value:
                raise ValueError(
                    f"trials={str(trials)!r} is of another task ({name} {known.get(name)!r}, not {value!r}); give tune."
                )
        words = known.get("words")
        if words is None or _what_trains(words) != _what_trains(self.words):
            told = "not told" if words is None else repr(shlex.join(words))
            raise ValueError(
                f"trials={str(trials)!r} is of runs with other common options ({told}, not "
                f"{shlex.join(self.words)!r}); give tune."
            )

    def _check_folder(self) -> None:
        """Refuse a folder that holds something else, and note what this one holds."""
        plan = {
            "budget": self.budget, "words": list(self.words), "gradient_evaluations": self.gradient_evaluations,
            "validation_only": self.validation_only,
        }  # fmt: skip
        path = self.folder / PLAN_NAME
        if path.is_file():
            known = read_json_object(path)
            for name, value in plan.items():
                if known.get(name, False) != value:
                    raise ValueError(
                        f"output_dir={str(self.folder)!r} holds another comparison ({name} {known.get(name)!r}, not "
                        f"{value!r}); name another folder."
                    )
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(f"output_dir={str(self.folder)!r} is not empty and holds no comparison; name another.")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(plan, indent=2) + "\n")


def _what_trains(words: Sequence[str]) -> tuple[Any, ...]:
    """Return what common options say of the runs' outcome."""
    model, data, training = parse_arguments([*words, "--output_dir", "."])
    free = FREE_SETTINGS - {"early_stopping_patience", "max_skipped_updates", "save_strategy", "save_steps"}
    trained = {name: value for name, value in trajectory_settings(training).items() if name not in free}
    return settings_of(model), settings_of(data), trained


def _optimizer(args: RTSTrainingArguments) -> Any:
    import timm.optim
    import torch

    optimizer = timm.optim.create_optimizer_v2([torch.nn.Parameter(torch.zeros(1))], **args.optimizer_arguments())
    return unwrap_optimizer(optimizer) or optimizer


def _cost(args: RTSTrainingArguments, optimizer: Any) -> dict[str, Any]:
    """Return how often an update is perturbed, and what a second pass costs."""
    return {
        "perturb_every": optimizer.param_groups[0].get("rts_perturb_every", 1),
        "second_pass": share_taken(args.perturb_fraction, args.train_batch_size),
    }


def _batch(args: RTSTrainingArguments) -> int:
    return args.train_batch_size * args.gradient_accumulation_steps


def make_runs(
    comparison: Comparison,
    cells: Sequence[Cell],
    *,
    at_once: int = 1,
    backend: str = "local",
    measure_test: bool = True,
    tell: Callable[[str], None] = print,
) -> None:
    """Make the runs that are not complete yet.

    Args:
        comparison: Whose they are.
        cells: Which.
        at_once: As many at a time.
        backend: As for :func:`rts_hf.comparing.backends.run_jobs`.
        measure_test: Read the test split at the end of each.
        tell: Gets one line as each run ends.

    Raises:
        ValueError: If a folder holds another run; before any is made.
        RuntimeError: If runs failed, after all the others were made. One that diverged did not fail: it is a result.
    """
    check_backend_is_there(backend)
    jobs = {job: cell for cell in cells if (job := comparison.job(cell, measure_test=measure_test)) is not None}
    failures = []
    for count, (job, error) in enumerate(run_jobs(list(jobs), at_once=at_once, backend=backend), start=1):
        cell = jobs[job]
        where = f"[{count}/{len(jobs)}] {cell.folder.relative_to(comparison.folder)}"
        record = read_record(cell.folder) if (cell.folder / RECORD_NAME).is_file() else {}
        status = record.get("status")
        if error is not None and status == "diverged":
            tell(f"{where}: diverged: {error}")
            continue
        if error is not None or status not in ENDED:  # one that a signal has stopped goes on when the comparison does
            failures.append(f"{cell.folder.relative_to(comparison.folder)} ({error or status}; see {job.log})")
            tell(f"{where}: failed: {error or status}")
            continue
        shown = [
            f"{split} accuracy {record['metrics'][split]['accuracy']:.4f}"
            for split in ("validation", "test")
            if (record["metrics"].get(split) or {}).get("accuracy") is not None
        ]
        tell(f"{where}: {', '.join(shown)}, {record['seconds']:.0f} s")
    if failures:
        listed = "; ".join(failures[:3])
        raise RuntimeError(
            f"{len(failures)} of {len(jobs)} runs failed: {listed}. The others are complete; the same command makes "
            "only what is missing."
        )
