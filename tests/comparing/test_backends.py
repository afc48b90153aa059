"""Jobs run side by side, each with its own log and its own error."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from rts_hf.comparing.backends import Job, check_backend_is_there, run_job, run_jobs
from rts_hf.reports.run_folder import read_record

WORDS = [
    "--use_cpu", "--opt", "sgd", "--max_train_samples", "48", "--max_eval_samples", "40", "--max_steps", "2",
    "--image_size", "8", "--measure_sharpness", "false", "--draw_figures", "false",
]  # fmt: skip


def job(folder: Path, *words: str, **changes: bool) -> Job:
    return Job((*WORDS, *words, "--output_dir", str(folder)), folder.with_suffix(".txt"), **changes)


def test_a_job_prints_into_its_log_and_may_leave_the_test_split_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_job(job(tmp_path / "run", measure_test=False))
    assert "with sgd" in (tmp_path / "run.txt").read_text()
    assert capsys.readouterr().out == ""
    metrics = read_record(tmp_path / "run")["metrics"]
    assert metrics["test"] is None
    assert metrics["validation"]["accuracy"] is not None


@pytest.mark.parametrize(("backend", "at_once"), [("local", 1), ("ray", 2)])
def test_one_job_that_fails_does_not_stop_the_others(
    backend: str, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "0")  # at Ray's own 15, the tests beside it leave its workers no time
    if backend == "ray":  # workers are somewhere else than who calls, as on a cluster
        ray.init(log_to_driver=False, include_dashboard=False, ignore_reinit_error=True)
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("in the way")
    wild = job(Path("wild"), "--learning_rate", "1e30", "--max_skipped_updates", "1", "--max_train_samples", "128")
    jobs = [job(Path("taken")), job(Path("run")), wild]
    found = dict(run_jobs(jobs, at_once=at_once, backend=backend))
    assert found[jobs[1]] is None
    assert "output_dir=" in str(found[jobs[0]])
    assert "Traceback" not in str(found[jobs[0]])
    assert read_record(tmp_path / "run")["status"] == "complete"
    assert "max_skipped_updates=1" in str(found[wild])
    assert wild.log.read_text().count("with sgd") == 1  # what fails by itself is not tried again


def test_workers_end_with_whoever_gave_them_work(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from rts_hf.comparing import backends\n"
        "def run(job): job.log.write_text(str(os.getpid())); signal.pause()\n"
        "backends.run_job = run\n"
        "if __name__ == '__main__': list(backends.run_jobs([backends.Job((), Path(sys.argv[1]))]))\n"
    )
    script, told = tmp_path / "parent.py", tmp_path / "worker.txt"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, str(script), str(told)])
    worker = int(waited_for(lambda: told.is_file() and told.read_text()))
    parent.kill()
    parent.wait()
    waited_for(lambda: not is_running(worker))


def is_running(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def waited_for(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def test_no_jobs() -> None:
    assert list(run_jobs([])) == []


def test_an_unknown_backend() -> None:
    with pytest.raises(ValueError, match="backend='slurm' is unknown; choose one of local, ray"):
        check_backend_is_there("slurm")
