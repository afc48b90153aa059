"""A comparison on a Ray cluster of several nodes, one of which is lost, by a driver that is killed."""

import csv
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_backends import is_running, waited_for

from rts_hf.reports.run_folder import read_record

pytestmark = pytest.mark.slow
COMMAND = [
    sys.executable, "-m", "rts_hf", "compare", "--opts", "sgd", "rts_pugd --recipe paper", "--seeds", "3", "--budget",
    "40", "--jobs", "2", "--use_cpu", "--max_train_samples", "256", "--max_eval_samples", "40", "--image_size", "8",
    "--measure_sharpness", "false", "--draw_figures", "false", "--eval_strategy", "steps", "--eval_steps", "20",
    "--save_strategy", "steps", "--save_steps", "20", "--per_device_train_batch_size", "16",
]  # fmt: skip


class Cluster:
    """Nodes as processes of their own: a head that takes no work, and others that take a task each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.nodes = folder, list[subprocess.Popen[bytes]]()
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment = {**os.environ, **token, "RAY_worker_niceness": "0"}

    def begin(self) -> None:
        self.start("--head", "--port=0", f"--temp-dir={self.folder}", "--include-dashboard=false", "--num-cpus=0")
        self.environment["RAY_ADDRESS"] = (self.folder / "ray_current_cluster").read_text().strip()
        for _ in range(2):  # one after the other: at once, they would take each other's ports
            self.start(f"--address={self.environment['RAY_ADDRESS']}", "--num-cpus=1")

    def start(self, *words: str) -> None:
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats", *words]
        told = self.folder / f"node-{len(self.nodes)}.txt"
        with told.open("wb") as log:
            self.nodes.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))
        waited_for(lambda: "Ray runtime started" in told.read_text())

    def processes(self, node: int) -> list[psutil.Process]:
        """All of a node's that are there."""
        parent = psutil.Process(self.nodes[node].pid)
        return [parent, *parent.children(recursive=True)]

    def task(self, node: int) -> psutil.Process:
        """The one that runs a job."""
        alive = (process for process in self.processes(node) if is_running(process.pid))
        return next(process for process in alive if process.name().startswith("ray::_run_in"))

    def lose(self, node: int) -> None:
        """End all of a node's processes at once, as when its machine loses power."""
        for process in self.processes(node):
            process.kill()
        self.nodes[node].wait()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # a socket's path must be short
    made = Cluster(folder)
    try:
        made.begin()
        yield made
    finally:
        for node in reversed(range(len(made.nodes))):
            if made.nodes[node].poll() is None:
                made.lose(node)
        shutil.rmtree(folder, ignore_errors=True)


def results(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def runs(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of the runs that have begun."""
    return {str(path.parent.relative_to(folder)): read_record(path.parent) for path in folder.glob("runs/*/*/run.json")}


def is_midway(run: Path) -> bool:
    """Whether a run is to go on from a checkpoint, if it is cut off now."""
    return read_record(run)["status"] == "training" and any(run.glob("checkpoint-*/trainer_state.json"))


def test_a_lost_node_and_a_killed_driver_cost_only_what_is_unfinished(tmp_path: Path, cluster: Cluster) -> None:
    local, elsewhere = tmp_path / "local", tmp_path / "ray"
    command = [*COMMAND, "--backend", "ray", "--output_dir", str(elsewhere)]

    # The driver is killed in the midst of two runs.
    driver = subprocess.Popen(command, env=cluster.environment)
    waited_for(lambda: sum(is_midway(elsewhere / run) for run in runs(elsewhere)) == 2)
    tasks = [cluster.task(1), cluster.task(2)]
    driver.kill()
    driver.wait()
    waited_for(lambda: not any(is_running(task.pid) for task in tasks))
    begun = runs(elsewhere)
    assert [record["status"] for record in begun.values()].count("training") == 2

    # The same command goes on with them; then one node is lost in the midst of a run, and the other's run told to stop.
    driver = subprocess.Popen(command, env=cluster.environment, stdout=subprocess.PIPE, text=True)
    left = {name for name, record in begun.items() if record["status"] == "training"}
    waited_for(lambda: all(runs(elsewhere)[name]["status"] == "complete" for name in left))
    complete = {name for name, record in runs(elsewhere).items() if record["status"] == "complete"}
    waited_for(lambda: sum(is_midway(elsewhere / run) for run in runs(elsewhere)) == 2)
    cluster.lose(1)
    cluster.task(2).terminate()
    told = driver.communicate()[0]
    assert driver.returncode == 0
    assert ": failed: " not in told

    found = runs(elsewhere)
    assert {record["status"] for record in found.values()} == {"complete"}
    assert len(found) == 6
    assert left <= complete
    resumed = {name for name, record in found.items() if record["resumed_at"]}
    assert left < resumed
    assert len(resumed) == 4
    assert not resumed & (complete - left)
    subprocess.run([*COMMAND, "--output_dir", str(local)], check=True)
    assert results(elsewhere) == results(local)
