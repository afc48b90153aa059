"""What two processes do in tests/training/test_fsdp.py: FSDP2 with accelerate and with the Trainer's arguments.

On a CPU accelerate ignores FSDP. The one line that makes it shard is the answer of ``PartialState._prepare_backend``.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from distributed_worker import (
    SETTINGS,
    UPDATES,
    assert_close,
    batch,
    make_net,
    mine,
    one_process,
    run_on_two,
    run_scenarios,
    shard,
    whole,
)
from optimizer_for_tests import update_once
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from training_for_tests import Images, make_model, make_trainer, training_logs
from transformers import TrainerCallback

from rts_hf import RTSPUGD, unwrap_optimizer

TRAINER = {
    "learning_rate": 0.05, "num_train_epochs": 1, "weight_decay": 1e-3, "radius_beta_max": 0.5,
    "switch": "fixed", "switch_at": "2",
}  # fmt: skip
CHECKPOINT = 4


def answer_as_a_gpu() -> None:
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)


def prepared(kind: str, version: int = 2) -> tuple[Accelerator, nn.Module, Any]:
    AcceleratorState._reset_state(reset_partial_state=True)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=version, state_dict_type=kind, auto_wrap_policy="no_wrap")
    accelerator = Accelerator(fsdp_plugin=plugin)
    net = make_net()
    optimizer = RTSPUGD(net.parameters(), **SETTINGS)
    return accelerator, *accelerator.prepare(net, optimizer)


def update(accelerator: Accelerator, net: nn.Module, wrapped: Any, number: int) -> None:
    rts = unwrap_optimizer(wrapped)
    x, y = mine(number)

    def backward() -> None:
        accelerator.backward(nn.functional.mse_loss(net(x), y))

    backward()
    if rts.perturbing:
        before = [p.to_local().clone() for p in net.parameters()]
        with rts.perturbed():
            backward()
        assert all(torch.equal(p.to_local(), w) for p, w in zip(net.parameters(), before, strict=True))
    wrapped.step()
    wrapped.zero_grad()


def accelerate_updates() -> None:
    accelerator, net, wrapped = prepared("SHARDED_STATE_DICT")
    assert accelerator.is_fsdp2
    rts = unwrap_optimizer(wrapped)
    assert all(isinstance(p, DTensor) and p.to_local().numel() < p.numel() for p in net.parameters())
    reference = make_net()
    optimizer = RTSPUGD(reference.parameters(), **SETTINGS)
    for number in range(UPDATES):
        update(accelerator, net, wrapped, number)
        update_once(reference, optimizer, batch(number))
        assert_close([whole(p) for p in net.parameters()], [p.detach() for p in reference.parameters()])
        for name, value in optimizer.stats().items():  # the norms are those over all shards, on every process
            assert abs(rts.stats()[name] - value) <= 1e-5 * max(1.0, abs(value)), (number, name)
    assert rts.switch_step == 4


def accelerate_resumes(kind: str, folder: Path) -> None:
    stop = 5  # one update after the switch
    accelerator, net, wrapped = prepared(kind)
    for number in range(stop):
        update(accelerator, net, wrapped, number)
    accelerator.save_state(str(folder / kind))
    accelerator, net, wrapped = prepared(kind)
    rts = unwrap_optimizer(wrapped)
    accelerator.load_state(str(folder / kind))
    assert (rts.stats()["step"], rts.switch_step) == (stop, 4)
    for number in range(stop, UPDATES):
        update(accelerator, net, wrapped, number)
    expected, _ = one_process()
    assert_close([whole(p) for p in net.parameters()], expected)


def scaler_skips() -> None:
    """An overflow in one process's shard of the gradient skips the update on both."""
    net = shard(make_net())
    optimizer = RTSPUGD(net.parameters(), lr=0.05, switch=None, perturb_every=1, total_steps=4)
    scaler = torch.amp.GradScaler("cpu")
    for number, spoiled_pass in enumerate((0, 1, 2, 0)):
        before = [tensor.clone() for p in net.parameters() for tensor in (p, *optimizer.state[p].values())]
        x, y = mine(number)
        scaler.scale(nn.functional.mse_loss(net(x), y)).backward()
        spoil(net, spoiled_pass == 1)
        with optimizer.perturbed():
            scaler.scale(nn.functional.mse_loss(net(x), y)).backward()
            spoil(net, spoiled_pass == 2)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        after = [tensor for p in net.parameters() for tensor in (p, *optimizer.state[p].values())]
        if spoiled_pass:
            assert all(torch.equal(a.to_local(), b.to_local()) for a, b in zip(before, after, strict=True))
    assert scaler.get_scale() == 2.0**14
    assert optimizer.stats()["step"] == 2
    assert all(p.to_local().isfinite().all() for p in net.parameters())


def spoil(net: nn.Module, now: bool) -> None:
    if now and dist.get_rank() == 0:
        next(net.parameters()).grad.to_local()[0, 0] = torch.inf


def refuses_version_1() -> None:
    """At ``prepare``, where it flattens the parameters; for an optimizer made after it, at construction."""
    for use_orig_params in (True, False):
        AcceleratorState._reset_state(reset_partial_state=True)
        plugin = FullyShardedDataParallelPlugin(fsdp_version=1, use_orig_params=use_orig_params)
        accelerator = Accelerator(fsdp_plugin=plugin)
        net = make_net()
        if use_orig_params:
            optimizer = RTSPUGD(net.parameters(), **SETTINGS)
            with pytest.raises(ValueError, match=r"FSDP of version 1.*fully_shard"):
                accelerator.prepare(net, optimizer)
        else:
            net = accelerator.prepare(net)
            with pytest.raises(ValueError, match=r"FSDP of version 1.*fully_shard"):
                RTSPUGD(net.parameters(), **SETTINGS)


class Watch(TrainerCallback):
    """Holds the weights before an update's passes against those after them, on every shard."""

    def _shards(self) -> list[Tensor]:
        params = [p for group in self.trainer.two_pass_optimizer.param_groups for p in group["params"]]
        assert all(isinstance(p, DTensor) for p in params)
        return [p.to_local().clone() for p in params]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before = self._shards()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert all(torch.equal(a, b) for a, b in zip(self.before, self._shards(), strict=True))


def train(folder: Path, watch: Watch | None = None, resume: bool = False, **settings: Any) -> tuple[list[Tensor], Any]:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    watch = watch or Watch()
    trainer = watch.trainer = make_trainer(
        folder, make_model(), Images(48), per_device_train_batch_size=4, callbacks=[watch], use_cpu=False,
        fsdp=True, **{**TRAINER, **settings},
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{CHECKPOINT}") if resume else None)
    assert trainer.accelerator.is_fsdp2
    return [whole(p).clone() for p in trainer.model.parameters()], trainer


def trainer(kind: str, folder: Path) -> None:
    settings = {"fsdp_config": {"state_dict_type": kind}, "save_strategy": "steps", "save_steps": CHECKPOINT}
    weights, done = train(folder / kind, **copy.deepcopy(settings))
    if done.is_world_process_zero():
        torch.save(weights, folder / f"{kind}.pt")
        names = ("loss", "phase", "accuracy", "gradient_norm", "epsilon_norm", "sharpness")
        logs = [{name: entry.get(name) for name in names} for entry in training_logs(done)]
        (folder / f"{kind}.json").write_text(json.dumps(logs))
    resumed, again = train(folder / kind, resume=True, **copy.deepcopy(settings))
    assert again.state.global_step == 6
    assert again.switched_at() == done.switched_at() == 2
    for a, b in zip(weights, resumed, strict=True):
        assert torch.equal(a, b)


def norm_in_parts(parameters: Any, max_norm: float) -> DTensor:
    """The gradient's norm, which each process knows of its own shards only, until someone asks for all of it."""
    grads = [p.grad for p in parameters]
    mine = nn.utils.get_total_norm([grad.to_local() for grad in grads])
    norm = torch.linalg.vector_norm(DTensor.from_local(mine.reshape(1), grads[0].device_mesh, [Shard(0)]))
    assert norm.placements[0].is_partial()
    return norm


def trainer_skips(folder: Path) -> None:
    """One element of one shard's gradient is NaN, which the other process can only hear of through the norm.

    Whether torch hands that out summed over the shards depends on its version: the second time it does not.
    """
    weights: list[list[Tensor]] = []

    class Poison(Watch):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            norm_of = self.trainer._get_grad_norm

            def poisoned(*args: Any, **kwargs: Any) -> Any:
                step, accelerator = self.trainer.state.global_step, self.trainer.accelerator
                if step in (3, 4) and accelerator.process_index == 1:
                    shards = (p.grad.to_local() for p in self.trainer.model.parameters())
                    next(shard for shard in shards if shard.numel()).view(-1)[0] = float("nan")
                with pytest.MonkeyPatch.context() as patch:
                    if step == 4:
                        patch.setattr(accelerator, "clip_grad_norm_", norm_in_parts)
                    norm = norm_of(*args, **kwargs)
                # asked here, on each process: if only one of them skips, the other waits for it in the step
                assert self.trainer.faults.counts["nonfinite_gradient"] == min(max(step - 2, 0), 2)
                return norm

            self.trainer._get_grad_norm = poisoned

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            weights.append(self._shards())

    _, done = train(folder / "skips", Poison())
    assert done.faults.counts["nonfinite_gradient"] == 2
    kept = [all(torch.equal(a, b) for a, b in zip(weights[2], weights[u], strict=True)) for u in (3, 4, 5)]
    assert kept == [True, True, False]
    assert all(torch.isfinite(shard).all() for shard in weights[-1])


SCENARIOS: dict[str, Any] = {
    "accelerate_updates": lambda folder: accelerate_updates(),
    "accelerate_resumes_sharded": lambda folder: accelerate_resumes("SHARDED_STATE_DICT", folder),
    "accelerate_resumes_full": lambda folder: accelerate_resumes("FULL_STATE_DICT", folder),
    "scaler_skips": lambda folder: scaler_skips(),
    "refuses_version_1": lambda folder: refuses_version_1(),
    "trainer_sharded": lambda folder: trainer("SHARDED_STATE_DICT", folder),
    "trainer_full": lambda folder: trainer("FULL_STATE_DICT", folder),
    "trainer_skips": trainer_skips,
}

if __name__ == "__main__":
    answer_as_a_gpu()
    run_on_two(lambda: run_scenarios(SCENARIOS, Path(sys.argv[1])))
