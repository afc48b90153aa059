"""The real command, killed at every kind of moment on one process and two, and gone on with each time.

Each case is one run that is killed several times in a row and must end as the uninterrupted run did: weights,
momentum, schedules, generators, log, record, pictures, and no file more or less.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands_for_tests import RESUME, Ended, differences, launch, start, words_of

from rts_hf.reports.run_folder import read_record
from rts_hf.training.checkpoints import what_is_missing

pytestmark = pytest.mark.slow

Kill = tuple[str, int, int]  # what is happening, for which time since the command started, on which rank

# 24 updates; checkpoints of "variance" at 5, 10, 15, 20, 24, of "best" at every 4th, of "gap" at every 8th
CHAINS: dict[str, tuple[str, int, list[Kill]]] = {
    "half-filled window": ("variance", 1, [("update", 7, 0), ("update", 3, 0), ("switched", 1, 0)]),
    "two passes": ("variance", 1, [("perturbed", 1, 0), ("perturbed", 4, 0), ("evaluating", 1, 0)]),
    "files": ("variance", 1, [
        ("saving model.safetensors", 2, 0), ("saving optimizer.pt", 2, 0), ("saving scheduler.pt", 1, 0),
        ("saving rng_state.pth", 1, 0), ("saving trainer_state.json", 2, 0),
    ]),
    "marker": ("variance", 1, [
        ("unmarked", 2, 0), ("clearing", 1, 0), ("marker", 1, 0), ("marked", 1, 0), ("rotating", 1, 0),
    ]),
    "end": ("variance", 1, [
        ("final model.safetensors", 1, 0), ("final trainer_state.json", 1, 0), ("record", 2, 0), ("drawing", 1, 0),
    ]),
    "best": ("best", 1, [("perturbed", 5, 0), ("saving optimizer.pt", 2, 0), ("rotating", 1, 0), ("marked", 1, 0)]),
    "gap": ("gap", 1, [("update", 13, 0), ("perturbed", 3, 0), ("saving model.safetensors", 1, 0)]),
    "two processes": ("variance", 2, [("update", 7, 1), ("switched", 1, 0), ("perturbed", 2, 1)]),
    "files of two": ("variance", 2, [
        ("saving rng_state_1.pth", 2, 1), ("saving optimizer.pt", 1, 0), ("unmarked", 1, 0), ("rotating", 1, 0),
    ]),
    "best of two": ("best", 2, [("perturbed", 5, 0), ("saving model.safetensors", 1, 0), ("evaluating", 2, 1)]),
}  # fmt: skip
Whole = Callable[[str, int], Path]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The folder of an uninterrupted run of a setting on a number of processes."""
    known: dict[tuple[str, int], Path] = {}

    def run(setting: str, processes: int) -> Path:
        if (setting, processes) not in known:
            folder = tmp_path_factory.mktemp(f"{setting}{processes}")
            succeed(launch(folder, words_of(setting, processes), processes=processes))
            known[setting, processes] = folder / "run"
        return known[setting, processes]

    return run


def succeed(ended: Ended) -> Ended:
    assert ended.codes == [0], ended.output
    return ended


def further(folder: Path) -> list[str]:
    """Return what the next command needs besides the arguments of the first."""
    if not (folder / "run").exists():
        return []
    checkpoints = (folder / "run").glob("checkpoint-*")
    return RESUME if any(what_is_missing(path) is None for path in checkpoints) else ["--overwrite"]


@pytest.mark.parametrize("name", CHAINS)
def test_a_run_killed_again_and_again_ends_as_the_uninterrupted_one(whole: Whole, tmp_path: Path, name: str) -> None:
    setting, processes, kills = CHAINS[name]
    for moment, at, rank in kills:
        words = words_of(setting, processes, *further(tmp_path))
        ended = launch(tmp_path, words, {"moment": moment, "at": at, "rank": rank}, processes)
        assert f"[ended here: {moment}]" in ended.output, ended.output
        assert ended.codes != [0]
    succeed(launch(tmp_path, words_of(setting, processes, *further(tmp_path)), processes=processes))
    assert differences(whole(setting, processes), tmp_path / "run") == []


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("setting", "processes"), [("variance", 1), ("best", 1), ("variance", 2), ("best", 2)])
def test_a_run_killed_from_outside_at_any_time(
    whole: Whole, tmp_path: Path, setting: str, processes: int, seed: int
) -> None:
    expected = whole(setting, processes)
    draw = random.Random(f"{setting} {processes} {seed}")
    kills = 0
    for attempt in range(20):
        process, pids = begin(tmp_path, words_of(setting, processes, *further(tmp_path)), processes, attempt)
        time.sleep(draw.uniform(0, 0.5) * read_record(expected)["seconds"])
        victims = draw.choice([pids, pids[-1:]])  # all of them, or one
        is_running = process.poll() is None
        for pid in victims if is_running else []:
            os.kill(pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=300)
        kills += is_running
        if not is_running:
            succeed(Ended([process.returncode], output))
            break
        if kills == 2:
            succeed(launch(tmp_path, words_of(setting, processes, *further(tmp_path)), processes=processes))
            break
    assert kills
    assert differences(expected, tmp_path / "run") == []


def begin(folder: Path, words: list[str], processes: int, attempt: int) -> tuple[subprocess.Popen[str], list[int]]:
    """Start the command, and return it and its training processes once the run is about to begin."""
    told = folder / f"pids-{attempt}"
    told.mkdir()
    began = time.time()
    process = start(folder, words, {"pids": str(told)}, processes)
    record = folder / "run" / "run.json"
    while process.poll() is None and not (record.is_file() and record.stat().st_mtime > began):
        time.sleep(0.02)
    # one that has ended already found the run finished: the kill before came after its record was written
    return process, [int(path.read_text()) for path in sorted(told.iterdir())]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("moment", "at", "update"), [("update", 6, 7), ("perturbed", 2, 14)])
def test_sigterm_to_one_process_saves_and_ends_well(
    whole: Whole, tmp_path: Path, processes: int, moment: str, at: int, update: int
) -> None:
    expected = whole("variance", processes)
    plan = {"moment": moment, "at": at, "rank": processes - 1, "signal": "SIGTERM"}
    ended = succeed(launch(tmp_path, words_of("variance", processes), plan, processes))
    assert re.findall(r"^Stopped by .*$", ended.output, re.M) == [
        f"Stopped by SIGTERM after update {update} of 24; go on with --output_dir run --resume_from_checkpoint last"
    ]
    assert "Traceback" not in ended.output
    assert read_record(tmp_path / "run")["status"] == "interrupted"
    assert what_is_missing(tmp_path / "run" / f"checkpoint-{update}") is None
    succeed(launch(tmp_path, words_of("variance", processes, *RESUME), processes=processes))
    assert differences(expected, tmp_path / "run") == []
