"""The training command, started as a user starts it or forked from a warm process, and what its runs left compared."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

WORKER = Path(__file__).parent / "kill_worker.py"
SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": os.pathsep.join(filter(None, [str(WORKER.parents[2]), os.environ.get("PYTHONPATH")])),
}

RESUME = ["--resume_from_checkpoint", "last"]
_COMMON = """
    --use_cpu --max_train_samples 120 --max_eval_samples 40 --num_train_epochs 3 --output_dir run
    --per_device_train_batch_size {} --perturb_every 1 --measure_sharpness {}
"""
# 24 updates in 3 epochs of 8, with the images cropped at random: the images of a micro-batch on all processes together,
# and further arguments
SETTINGS = {
    # a window that is half full in the first checkpoint, dropout, entries of the log that begin before a checkpoint
    "variance": (16, """
        --model test_vit --model_args {"drop_rate":0.2,"depth":2} --image_size 16 --load_best_model_at_end false
        --switch gradient_variance --switch_window 6 --switch_init_steps 6 --switch_gamma 100
        --save_strategy steps --save_steps 5 --logging_steps 3
    """),
    # BatchNorm, accumulation with a shorter last window, one checkpoint and the best
    "best": (8, """
        --model test_resnet --image_size 8 --gradient_accumulation_steps 2 --switch fixed --switch_at 9
        --eval_strategy steps --eval_steps 4 --save_strategy steps --save_steps 4 --logging_steps 3 --save_total_limit 1
    """),
    "gap": (16, """
        --model test_vit --model_args {"drop_path_rate":0.2} --image_size 16 --radius sine_heating
        --switch generalization_gap --switch_base_epochs 1 --switch_every 1 --switch_mu 1e-6
        --save_strategy epoch --logging_steps 5
    """),
}  # fmt: skip


def words_of(setting: str, processes: int = 1, *more: str) -> list[str]:
    """Return the arguments of a run: the same number of updates on one process and on several."""
    batch, words = SETTINGS[setting]
    sharpness = setting == "gap"  # more work than the training itself
    return [*_COMMON.format(batch // processes, sharpness).split(), *words.split(), *more]


# What tells the time, or in how many commands the run was made
_TIMES = ("runtime", "per_second", "preparation_time")
_OF_THE_COMMANDS = {"seconds", "resumed_at"}


class Ended(NamedTuple):
    """How a command ended: the exit codes of its processes (of its launcher, where it has one), and what it said."""

    codes: list[int]
    output: str


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run_worker(name: str, *words: str, **environment: str) -> str:
    """Run a worker of this folder to its end, and return what it printed.

    Its exit code is not asked: gloo sometimes aborts while processes end, after all their work.
    """
    result = subprocess.run(
        [sys.executable, str(WORKER.with_name(name)), *words],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**ENVIRONMENT, **environment},
    )
    return result.stdout + result.stderr


class Server:
    """Forks commands from a process that has imported everything: a second each instead of ten.

    Args:
        folder: Where what they say is kept.
        environment: Theirs.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.count = 0
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment or ENVIRONMENT,
        )

    def __call__(self, folder: Path, words: list[str], plan: dict[str, Any] | None = None, processes: int = 1) -> Ended:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.count += 1
        output = self.folder / f"output-{self.count}.txt"
        order = {
            "folder": str(folder), "words": words, "plan": plan or {}, "processes": processes, "output": str(output),
            "port": free_port(),
        }  # fmt: skip
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the server has ended"
        return Ended(json.loads(answer), output.read_text())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def launcher(processes: int) -> list[str]:
    """Return what starts a script on one process, or with gloo on several."""
    if processes == 1:
        words = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--mixed_precision", "no"]
        return [sys.executable, *words, "--num_machines", "1", "--dynamo_backend", "no"]
    words = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(free_port())]
    return [sys.executable, *words]


def start(
    folder: Path, words: list[str], plan: dict[str, Any] | None = None, processes: int = 1
) -> subprocess.Popen[str]:
    """Start the real command in a session of its own, with hooks only where there is a plan."""
    script = [str(SCRIPT)] if plan is None else [str(WORKER), json.dumps(plan)]
    return subprocess.Popen(
        [*launcher(processes), *script, *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )


def launch(folder: Path, words: list[str], plan: dict[str, Any] | None = None, processes: int = 1) -> Ended:
    """Run the real command to its end."""
    process = start(folder, words, plan, processes)
    output, _ = process.communicate(timeout=300)
    return Ended([process.returncode], output)


def differences(one: Path, other: Path) -> list[str]:
    """Return what differs between the folders of two runs that should be the same to the last bit."""
    names = [sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()) for run in (one, other)]
    found = sorted(set(names[0]) ^ set(names[1]))
    for name in (name for name in names[0] if name in names[1]):
        pair = one / name, other / name
        if name.endswith(".safetensors"):
            same = _equal(*map(load_file, pair))
        elif name.endswith((".pt", ".pth")):  # a random generator's state is a numpy array
            same = _equal(*(torch.load(path, weights_only=name.endswith(".pt")) for path in pair))
        elif name.endswith("trainer_state.json"):
            same = _without_times(json.loads(pair[0].read_text())) == _without_times(json.loads(pair[1].read_text()))
        elif name == "run.json":
            records = [json.loads(path.read_text()) for path in pair]
            same = _without_times(records[0]) == _without_times(records[1])
        elif name.endswith((".png", "config.json")):
            same = pair[0].read_bytes() == pair[1].read_bytes()
        else:
            continue
        found += [] if same else [name]
    return found


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if hasattr(one, "tolist"):
        return one.tolist() == other.tolist()
    return bool(one == other)


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key not in _OF_THE_COMMANDS and not key.endswith(_TIMES)}
        return {key: _without_times(item) for key, item in kept.items()}
    return [_without_times(item) for item in value] if isinstance(value, list) else value
