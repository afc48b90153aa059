"""What two processes tell each other in an update, and what it costs them.

``python -m benchmark.processes FILE UPDATES MODEL``, started by torchrun or alone, is one of the processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmark.timers import Figure
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from rts_hf.data.batches import collate
from rts_hf.data.loading import load_data
from rts_hf.models.classifiers import build_model
from rts_hf.runs.arguments import CommandArguments
from rts_hf.training.trainer import RTSTrainer

# By name: the optimizer, and whether the first pass's gradients are averaged too
# A process of its own finds this folder's files as the tests and the command do.
_PATH = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
_ALWAYS = {"opt": "rts_pugd", "switch": "fixed", "switch_at": 0, "perturb_every": 1}
MODES: dict[str, dict[str, Any]] = {
    "sgd": {"opt": "sgd"},
    "averaged once": {**_ALWAYS, "sync_first_pass": False},
    "averaged twice": {**_ALWAYS, "sync_first_pass": True},
}


class Counting(RTSTrainer):
    """Counts the bytes of gradients that are averaged over the processes, and the seconds of each update."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bytes, self.updates = 0, list[float]()
        self._is_counting = False

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the passes of a micro-batch, with what DDP averages in them counted."""
        if isinstance(model, DistributedDataParallel) and not self._is_counting:
            # DDP checks a hook's annotations, which here are texts; a lambda has none
            model.register_comm_hook(None, lambda _, bucket: self._count(bucket))
        self._is_counting = True
        self.updates.append(time.perf_counter())
        return super().training_step(model, *args, **kwargs)

    def _count(self, bucket: Any) -> Any:
        self.bytes += bucket.buffer().nbytes
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]


def measure(processes: int, *, updates: int = 12, model_name: str = "resnet18_small") -> dict[str, dict[str, float]]:
    """Return, for each of :data:`MODES`, the bytes averaged an update and its seconds, over so many processes.

    Args:
        processes: On this machine, one thread each.
        updates: Of each run, at least 3.
        model_name: Any that timm knows.

    Raises:
        RuntimeError: If a process fails.
    """
    with TemporaryDirectory() as folder:
        target = Path(folder) / "measured.json"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        launcher = launcher if processes > 1 else []
        done = subprocess.run(
            [sys.executable, *launcher, __file__, str(target), str(updates), model_name],
            env={**os.environ, **_PATH, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"},
            check=False,
            capture_output=True,
            text=True,
        )
        if not target.is_file():  # what ends badly after the work is done is no failure of it
            raise RuntimeError(f"{processes} processes measured nothing: {done.stderr[-2000:]}")
        return json.loads(target.read_text(encoding="utf-8"))


def bytes_averaged(measured: dict[str, dict[str, float]]) -> Figure:
    """Return the figure of the bytes that an update averages with a single all-reduce, as two processes measured it."""
    volumes = {name: each["bytes"] for name, each in measured.items()}
    return Figure(
        "all_reduce",
        "bytes all-reduced an update, two processes, `sync_first_pass=False` ÷ SGD",
        volumes["averaged once"] / volumes["sgd"],
        1.02,
        note=f"{volumes['averaged twice'] / volumes['sgd']:g} by default",
        details=dict(measured),
    )


def _main(target: str, updates: int, model_name: str) -> None:
    torch.set_num_threads(1)
    data = load_data("digits")
    measured = {}
    for name, settings in MODES.items():
        with TemporaryDirectory() as folder:
            arguments = CommandArguments(
                output_dir=folder, max_steps=updates, per_device_train_batch_size=32, use_cpu=True, eval_strategy="no",
                save_strategy="no", load_best_model_at_end=False, metric_for_best_model=None, disable_tqdm=True,
                logging_strategy="no", **settings,
            )  # fmt: skip
            model = build_model(
                model_name, label_names=data.label_names, image_size=data.image_size, mean=data.mean, std=data.std
            )
            trainer = Counting(model=model, args=arguments, train_dataset=data.train, data_collator=collate)
            trainer.train()
        seconds = [later - earlier for earlier, later in zip(trainer.updates, trainer.updates[1:], strict=False)]
        measured[name] = {"bytes": trainer.bytes / updates, "seconds": float(f"{median(seconds[1:]):.4g}")}
    if int(os.environ.get("RANK", "0")) == 0:
        Path(target).write_text(json.dumps(measured), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
