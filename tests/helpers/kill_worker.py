"""Runs scripts/train.py, and ends it at a chosen moment: started by a launcher, or forked by a server that is warm.

python kill_worker.py '{"moment": "perturbed", "at": 3, "signal": "SIGKILL", "rank": 0}' --opt rts_pugd ...
python kill_worker.py --serve        # one JSON object a line on standard input, one answer a line
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.figure  # noqa: F401 - what a run imports late is warm too
import sklearn.model_selection  # noqa: F401
import torch
import transformers.modeling_utils
from transformers import Trainer, TrainerState

import rts_hf.runs.command_line
import rts_hf.runs.folder
import rts_hf.training.resumable
from rts_hf.optim.registration import unwrap_optimizer
from rts_hf.reports.run_folder import RECORD_NAME
from rts_hf.training.checkpoints import MARKER_NAME
from rts_hf.training.stopping import StopOnSigterm
from rts_hf.training.trainer import RTSTrainer

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"


class Moment:
    """Ends this process when a moment of the plan's kind comes for the n-th time.

    Args:
        plan: ``moment``, ``at`` (1-based, default 1), ``signal`` (default SIGKILL), ``rank`` (default 0). With
            ``file_limit``, in bytes, nothing is ended: from then on no file can grow beyond it, as on a full disk.
    """

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.count = 0
        self.is_here = int(os.environ.get("RANK", "0")) == plan.get("rank", 0)

    def __call__(self, kind: str, action: Callable[[], object] | None = None) -> None:
        if kind != self.plan.get("moment") or not self.is_here:
            return
        self.count += 1
        if self.count != self.plan.get("at", 1):
            return
        if "file_limit" in self.plan:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.plan["file_limit"], resource.RLIM_INFINITY))
            return
        if action is not None:
            action()
        print(f"[ended here: {kind}]", file=sys.stderr, flush=True)
        os.kill(os.getpid(), getattr(signal, self.plan.get("signal", "SIGKILL")))


def halve(path: str | os.PathLike[str]) -> None:
    """Leave of a file what a process killed while writing it leaves."""
    os.truncate(path, os.path.getsize(path) // 2)


def draft(path: str | os.PathLike[str]) -> None:
    """Leave what safetensors leaves, which writes under another name first."""
    os.rename(path, Path(path).with_name(".tmpA1b2C3"))
    halve(Path(path).with_name(".tmpA1b2C3"))


def install(moment: Moment) -> None:
    """Let the moments of a run be heard."""

    def after(owner: Any, name: str, tell: Callable[..., None]) -> None:
        original = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            tell(*args, **kwargs)
            return result

        setattr(owner, name, wrapper)

    def before(owner: Any, name: str, tell: Callable[..., None]) -> None:
        original = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            tell(*args, **kwargs)
            return original(*args, **kwargs)

        setattr(owner, name, wrapper)

    def saved(path: Any, cut: Callable[[Any], None] = halve) -> None:
        place = "saving" if Path(path).parent.name.startswith("checkpoint-") else "final"
        moment(f"{place} {Path(path).name}", lambda: cut(path))

    def stepped(callback: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        moment("update")
        rts = unwrap_optimizer(kwargs["optimizer"])
        if rts is not None and rts.phase == "pugd":
            moment("switched")

    def replacing(source: Any, target: Any, **kwargs: Any) -> None:
        moment({MARKER_NAME: "marker", RECORD_NAME: "record"}.get(Path(target).name, ""))

    def removing(path: Any, *args: Any, **kwargs: Any) -> None:
        if Path(path, MARKER_NAME).is_file():
            moment("rotating", Path(path, "optimizer.pt").unlink)
        elif Path(path, "config.json").is_file():  # the first file of a checkpoint, so what a kill left of one
            moment("clearing", Path(path, "config.json").unlink)

    after(Trainer, "training_step", lambda self, *_, **__: moment("perturbed") if self._in_second_pass else None)
    after(StopOnSigterm, "on_step_end", stepped)
    after(torch, "save", lambda _, path, *__, **___: saved(path))
    after(transformers.modeling_utils, "safe_save_file", lambda _, path, *__, **___: saved(path, draft))
    after(TrainerState, "save_to_json", lambda _, path: saved(path))
    before(rts_hf.training.resumable, "mark_complete", lambda _: moment("unmarked"))
    after(rts_hf.training.resumable, "mark_complete", lambda _: moment("marked"))
    before(os, "replace", replacing)
    before(shutil, "rmtree", removing)
    after(RTSTrainer, "evaluation_loop", lambda *_, **__: moment("evaluating"))
    before(rts_hf.runs.folder, "draw_run_figures", lambda _: moment("drawing"))


def run(words: list[str], plan: dict[str, Any]) -> None:
    """Run the training command in this process."""
    if plan.get("pids"):
        Path(plan["pids"], os.environ.get("RANK", "0")).write_text(str(os.getpid()))
    install(Moment(plan))
    sys.argv = [str(SCRIPT), *words]
    runpy.run_path(str(SCRIPT), run_name="__main__")


def serve() -> None:
    """Fork a process, or several that train together, for each command that comes in, and tell their exit codes."""
    gc.collect()
    gc.freeze()  # which the children's collections pass over
    for line in sys.stdin:
        order = json.loads(line)
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(order["port"])}
        size = order["processes"]
        children = []
        for rank in range(size):
            shared = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), **rendezvous}
            child = os.fork()
            if child == 0:
                _be_child(order, {"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} if size > 1 else {})
            children.append(child)
        print(json.dumps(_wait(children)), flush=True)


def _be_child(order: dict[str, Any], environment: dict[str, str]) -> None:
    code = 1
    try:
        os.chdir(order["folder"])
        output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.environ.update(environment)
        run(order["words"], order["plan"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _wait(children: list[int]) -> list[int]:
    """Return the exit codes; once one process has failed, the others are ended as torchrun ends them."""
    codes: dict[int, int] = {}
    deadline = float("inf")
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    codes[child] = os.waitstatus_to_exitcode(status)
        running = [child for child in children if child not in codes]
        if any(codes.values()) and running:
            if deadline == float("inf"):
                deadline = time.monotonic() + 10
                for child in running:
                    os.kill(child, signal.SIGTERM)
            elif time.monotonic() > deadline:
                for child in running:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[child] for child in children]


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve()
    else:
        run(sys.argv[2:], json.loads(sys.argv[1]))
