"""Jobs run side by side, each with its own log and its own error."""

from pathlib import Path

import pytest

from rts_hf.backends import Job, check_backend_is_there, run_job, run_jobs
from rts_hf.run_folder import read_record

WORDS = [
    "--use_cpu", "--opt", "sgd", "--max_train_samples", "48", "--max_eval_samples", "40", "--max_steps", "2",
    "--image_size", "8",
]  # fmt: skip


def job(folder: Path, **changes: bool) -> Job:
    return Job((*WORDS, "--output_dir", str(folder)), folder.with_suffix(".txt"), **changes)


def test_a_job_prints_into_its_log_and_may_leave_the_test_split_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_job(job(tmp_path / "run", measure_test=False))
    assert "with sgd" in (tmp_path / "run.txt").read_text()
    assert capsys.readouterr().out == ""
    metrics = read_record(tmp_path / "run")["metrics"]
    assert metrics["test"] is None
    assert metrics["validation"]["accuracy"] is not None


@pytest.mark.parametrize("backend", ["local", "ray"])
def test_one_job_that_fails_does_not_stop_the_others(backend: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("in the way")
    jobs = [job(tmp_path / "taken"), job(tmp_path / "run")]
    found = dict(run_jobs(jobs, at_once=2, backend=backend))
    assert found[jobs[1]] is None
    assert "output_dir=" in str(found[jobs[0]])
    assert "Traceback" not in str(found[jobs[0]])
    assert read_record(tmp_path / "run")["status"] == "complete"


def test_no_jobs() -> None:
    assert list(run_jobs([])) == []


def test_an_unknown_backend() -> None:
    with pytest.raises(ValueError, match="backend='slurm' is unknown; choose one of local, ray"):
        check_backend_is_there("slurm")
