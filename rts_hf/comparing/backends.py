"""Runs of the training command side by side: in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from rts_hf.reports.run_folder import RECORD_NAME, read_record
from rts_hf.training.checkpoints import last_checkpoint

BACKENDS = ("local", "ray")
TRIES = 4  # of a run whose machines are lost, one after another


class Job(NamedTuple):
    """One run of the training command.

    Args:
        words: Its command line, without the program's name and without what :func:`going_on` adds.
        log: File that what it prints is added to.
        measure_test: Whether the test split is read, at its end.
    """

    words: tuple[str, ...]
    log: Path
    measure_test: bool = True

    @property
    def folder(self) -> Path:
        """The run's."""
        return Path(self.words[self.words.index("--output_dir") + 1])


class Interrupted(RuntimeError):
    """A run has stopped in order, since its machine is taken away."""


def going_on(folder: Path) -> list[str]:
    """Return the options by which a run goes on with what an earlier try left: at its checkpoint, or else over it."""
    if not (folder / RECORD_NAME).is_file():
        return []
    try:
        last_checkpoint(folder)
    except (ValueError, OSError):
        return ["--overwrite"]
    return ["--resume_from_checkpoint", "last"]


def run_job(job: Job) -> None:
    """Run the training command in this process, or go on with it, its output in the job's log.

    Raises:
        ValueError, OSError, rts_hf.TrainingFault: As :func:`rts_hf.train` does.
    """
    from rts_hf.runs.command_line import parse_arguments
    from rts_hf.runs.run import train

    job.log.parent.mkdir(parents=True, exist_ok=True)
    with (
        job.log.open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        train(*parse_arguments([*job.words, *going_on(job.folder)]), measure_test=job.measure_test)


def run_jobs(jobs: Sequence[Job], *, at_once: int = 1, backend: str = "local") -> Iterator[tuple[Job, str | None]]:
    """Run jobs, so many at once, and give each with its error, or None, as it ends.

    Args:
        jobs: What to run; all of them are, also after one has failed.
        at_once: Processes on this machine, or tasks of the cluster, at a time; at least 1.
        backend: One of :data:`BACKENDS`. For ``ray``, the current folder and the jobs' lie where all machines of the
            cluster see them; each job gets a GPU, or an even share of one. One whose machine is lost goes on elsewhere;
            one that fails does not.

    Raises:
        ValueError: If Ray is asked for and not installed.
    """
    if not jobs:
        return
    yield from (_with_ray if backend == "ray" else _with_processes)(jobs, at_once)


def check_backend_is_there(backend: str) -> None:
    """Raise ValueError if a backend is not known, or its package not installed."""
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown; choose one of {', '.join(BACKENDS)}.")
    if backend == "ray":
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise ValueError(f"backend='ray' needs Ray ({error}); pip install 'rts_hf[ray]'.") from error


def _with_processes(jobs: Sequence[Job], at_once: int) -> Iterator[tuple[Job, str | None]]:
    threads = max(1, (os.cpu_count() or 1) // at_once)
    context = multiprocessing.get_context("spawn")  # a forked copy of torch's threads would hang
    with ProcessPoolExecutor(at_once, mp_context=context, initializer=_prepare_worker, initargs=(threads,)) as pool:
        running = {pool.submit(run_job, job): job for job in jobs}
        try:
            for done in as_completed(running):
                error = done.exception()
                yield running[done], None if error is None else _told(error)
        except BaseException:  # an interrupt: what has not begun does not begin
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _with_ray(jobs: Sequence[Job], at_once: int) -> Iterator[tuple[Job, str | None]]:
    import ray

    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    # A task whose resources name no GPU sees them all, and shares them with every other.
    gpus = int(ray.cluster_resources().get("GPU", 0))
    options: dict[str, Any] = {"num_gpus": gpu_share(gpus, at_once)} if gpus else {}
    options |= {"max_retries": TRIES - 1, "retry_exceptions": [Interrupted]}
    remote: Any = ray.remote(**options)(_run_in)
    waiting = list(jobs)
    running: dict[Any, Job] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            job = waiting.pop(0)
            running[remote.remote(str(Path.cwd()), job)] = job
        done, _ = ray.wait(list(running), num_returns=1)
        job = running.pop(done[0])
        try:
            ray.get(done[0])
        except Exception as error:
            yield job, _told(getattr(error, "cause", None) or error)
        else:
            yield job, None


def gpu_share(gpus: int, at_once: int) -> float:
    """Return the share of one GPU that each of some tasks may take, so that all of them run at a time.

    >>> gpu_share(1, 2), gpu_share(2, 3), gpu_share(4, 2)
    (0.5, 0.5, 1.0)

    Args:
        gpus: Of the cluster, at least 1.
        at_once: Tasks.
    """
    return 1 / math.ceil(at_once / gpus)


def _run_in(folder: str, job: Job) -> None:
    """Run a job in a folder: a worker's own is that of ``ray start``, and paths in a command are of the caller's."""
    os.chdir(folder)
    run_job(job)
    if read_record(job.folder)["status"] == "interrupted":
        raise Interrupted(f"{job.folder} was stopped by SIGTERM")


def _prepare_worker(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait until the process that gives out jobs is gone, however it ended, and end this one, which nobody waits for.

    A run that this cuts off goes on from its last checkpoint when the comparison does.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _told(error: BaseException) -> str:
    return str(error) or type(error).__name__
