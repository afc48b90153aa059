"""Runs of RTSTrainer, on one process or several: what they trained, and what they sent."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from distributed_worker import run_on_two
from training_for_tests import Images, make_model, make_trainer, training_logs
from transformers import TrainerCallback

warnings.simplefilter("ignore")


def run(folder: Path, settings: dict[str, Any]) -> None:
    sent = [0]

    def count(state, bucket):  # torch checks the types of a hook's annotations, which here are text
        sent[0] += bucket.buffer().numel() * bucket.buffer().element_size()
        return dist.algorithms.ddp_comm_hooks.default_hooks.allreduce_hook(state, bucket)

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if dist.is_initialized():
                trainer.model_wrapped.register_comm_hook(dist.group.WORLD, count)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if dist.is_initialized():
                flat = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
                others = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
                dist.all_gather(others, flat)
                if not all(torch.equal(flat, other) for other in others):
                    raise AssertionError(f"ranks differ after update {state.global_step}")

    trainer = make_trainer(folder / "run", make_model(), Images(48), callbacks=[Watch()], **settings)
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save([p.detach() for p in trainer.model.parameters()], folder / "weights.pt")
        logs = [{key: entry.get(key) for key in ("loss", "phase", "accuracy")} for entry in training_logs(trainer)]
        found = {"switched_at": trainer.switched_at(), "bytes": sent[0], "updates": trainer.state.global_step}
        (folder / "found.json").write_text(json.dumps({**found, "logs": logs}))
    trainer.accelerator.wait_for_everyone()


def run_all() -> None:
    for name, settings in json.loads(sys.argv[2]).items():
        run(Path(sys.argv[1]) / name, settings)


if __name__ == "__main__":
    run_on_two(run_all)
