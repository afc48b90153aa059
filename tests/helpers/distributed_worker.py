"""What two processes do in tests/optim/test_distributed.py; each scenario compares itself with one and asserts."""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from optimizer_for_tests import update_once
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor

from rts_hf import RTSPUGD, attach_second_pass

UPDATES = 8
SETTINGS = {
    "lr": 0.05,
    "radius": "cosine_annealing",
    "radius_beta_max": 0.5,
    "scale": "sine_heating",
    "switch": "gradient_variance",
    "switch_window": 2,
    "switch_init_steps": 2,
    "switch_gamma": 100.0,  # fires at the first comparison, after four updates
    "perturb_every": 1,
    "total_steps": UPDATES,
}


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))


def batch(update: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(update)
    return torch.randn(8, 6, generator=generator), torch.randn(8, 3, generator=generator)


def mine(update: int) -> tuple[Tensor, Tensor]:
    x, y = batch(update)
    return x.chunk(dist.get_world_size())[dist.get_rank()], y.chunk(dist.get_world_size())[dist.get_rank()]


def one_process(updates: int = UPDATES, **settings: object) -> tuple[list[Tensor], list[str]]:
    net = make_net()
    optimizer = RTSPUGD(net.parameters(), **{**SETTINGS, **settings})
    phases = []
    for update in range(updates):
        phases.append(optimizer.phase)
        update_once(net, optimizer, batch(update))
    return [p.detach() for p in net.parameters()], phases


def whole(param: Tensor) -> Tensor:
    return param.full_tensor() if isinstance(param, DTensor) else param.detach()


def assert_equal_on_ranks(tensors: list[Tensor]) -> None:
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    others = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(others, flat)
    assert all(torch.equal(flat, other) for other in others)


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def ddp(closure: bool, bucket_view: bool) -> None:
    expected, phases = one_process()
    net = nn.parallel.DistributedDataParallel(make_net(), gradient_as_bucket_view=bucket_view)
    optimizer = RTSPUGD(net.parameters(), **SETTINGS)
    seen = []
    for update in range(UPDATES):
        seen.append(optimizer.phase)
        update_once(net, optimizer, mine(update), closure)
        assert_equal_on_ranks([p.detach() for p in net.parameters()])
    assert seen == phases == ["sgd"] * 4 + ["pugd"] * 4
    assert_close([p.detach() for p in net.parameters()], expected)


def ddp_attached(wrapped_first: bool) -> None:
    """A loop of others with accumulation and no_sync, whose model was wrapped before or after attach_second_pass."""
    expected, phases = one_process()
    net, criterion = make_net(), nn.MSELoss()
    optimizer = RTSPUGD(net.parameters(), **SETTINGS)
    wrapped = nn.parallel.DistributedDataParallel(net)
    attach_second_pass(optimizer, wrapped if wrapped_first else net, criterion)
    sent, seen = [0], []

    def count(state, bucket):  # torch checks the types of a hook's annotations, which here are text
        sent[0] += 1
        return allreduce_hook(state, bucket)

    wrapped.register_comm_hook(dist.group.WORLD, count)
    for update in range(UPDATES):
        seen.append(optimizer.phase)
        parts = [*zip(*(each.chunk(2) for each in mine(update)), strict=True)]
        for place, (x, y) in enumerate(parts):
            with contextlib.nullcontext() if place == len(parts) - 1 else wrapped.no_sync():
                (criterion(wrapped(x), y) / len(parts)).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert_equal_on_ranks([p.detach() for p in net.parameters()])
    assert seen == phases
    assert sent[0] == UPDATES + seen.count("pugd")  # once a pass, not once a micro-batch
    assert_close([p.detach() for p in net.parameters()], expected)


def shard(net: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in net:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def fsdp2(method: str) -> None:
    extra = {"method": method, **({} if method == "pugd" else {"scale": "constant", "scale_beta_max": 0.0})}
    expected, phases = one_process(**extra)
    net = shard(make_net())
    optimizer = RTSPUGD(net.parameters(), **{**SETTINGS, **extra})
    seen = []
    for update in range(UPDATES):
        seen.append(optimizer.phase)
        update_once(net, optimizer, mine(update))
    assert seen == phases
    assert_close([whole(p) for p in net.parameters()], expected)


def fsdp2_restore() -> None:
    net = shard(make_net())
    optimizer = RTSPUGD(net.parameters(), lr=0.1, switch=None, total_steps=4, radius="constant", radius_beta_max=1.0)
    x, y = mine(0)
    nn.functional.mse_loss(net(x), y).backward()
    before = [p.to_local().clone() for p in net.parameters()]
    with optimizer.perturbed():
        moved = torch.stack([(p.to_local() - w).square().sum() for p, w in zip(net.parameters(), before, strict=True)])
        total = moved.sum()
        dist.all_reduce(total)
        torch.testing.assert_close(total.sqrt(), torch.tensor(1.0), rtol=1e-5, atol=0)  # α_r over all shards
    assert all(torch.equal(p.to_local(), w) for p, w in zip(net.parameters(), before, strict=True))
    assert abs(optimizer.stats()["epsilon_norm"] - 1.0) < 1e-5


def fsdp2_resume(full: bool) -> None:
    options = StateDictOptions(full_state_dict=full, broadcast_from_rank0=full)
    stop = 3  # the variance window is half full
    expected, _ = one_process()
    net = shard(make_net())
    optimizer = RTSPUGD(net.parameters(), **SETTINGS)
    for update in range(stop):
        update_once(net, optimizer, mine(update))
    state = copy.deepcopy(get_optimizer_state_dict(net, optimizer, options=StateDictOptions(full_state_dict=full)))
    weights = [p.to_local().clone() for p in net.parameters()]

    other = shard(make_net())
    with torch.no_grad():
        for p, w in zip(other.parameters(), weights, strict=True):
            p.to_local().copy_(w)
    resumed = RTSPUGD(other.parameters(), **SETTINGS)
    set_optimizer_state_dict(other, resumed, state, options=options)
    assert resumed.stats()["step"] == stop
    for update in range(stop, UPDATES):
        update_once(other, resumed, mine(update))
    assert resumed.phase == "pugd"
    assert resumed.switch_step == 4
    assert_close([whole(p) for p in other.parameters()], expected)


def zero_redundancy() -> None:
    with pytest.raises(ValueError, match=r"ZeroRedundancyOptimizer gives . of its 6 parameters"):
        ZeroRedundancyOptimizer(make_net().parameters(), optimizer_class=RTSPUGD, lr=0.1, switch=None, total_steps=4)


SCENARIOS = {
    "ddp_loop": lambda: ddp(closure=False, bucket_view=False),
    "ddp_closure": lambda: ddp(closure=True, bucket_view=False),
    "ddp_loop_bucket_view": lambda: ddp(closure=False, bucket_view=True),
    "ddp_closure_bucket_view": lambda: ddp(closure=True, bucket_view=True),
    "ddp_attached": lambda: ddp_attached(wrapped_first=True),
    "ddp_attached_inside": lambda: ddp_attached(wrapped_first=False),
    "fsdp2_pugd": lambda: fsdp2("pugd"),
    "fsdp2_sam": lambda: fsdp2("sam"),
    "fsdp2_asam": lambda: fsdp2("asam"),
    "fsdp2_restore": fsdp2_restore,
    "fsdp2_resume_sharded": lambda: fsdp2_resume(full=False),
    "fsdp2_resume_full": lambda: fsdp2_resume(full=True),
    "zero_redundancy_is_refused": zero_redundancy,
}


def run_on_two(work: Callable[[], None]) -> None:
    """Let two processes of one group do the work, forked from this one, whose imports take longest."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in ("0", "1"):
        child = os.fork()
        if child == 0:
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            os.environ.update({**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
            work()
            return  # to this process's end, which coverage waits for
        children.append(child)
    # once one has failed, the other would wait for it in vain
    codes: list[int] = []
    while children:
        ended, status = os.wait()
        children.remove(ended)
        codes.append(os.waitstatus_to_exitcode(status))
        if codes[-1] != 0:
            for child in children:
                os.kill(child, signal.SIGKILL)
    sys.exit(max(map(abs, codes)))


def run_scenarios(scenarios: dict[str, Callable[..., None]], *arguments: object) -> None:
    """Run the scenarios on this process of the group; rank 0 says which passed."""
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    for name in scenarios:
        try:
            scenarios[name](*arguments)
        except Exception as error:
            print(f"{name} failed on rank {dist.get_rank()}: {type(error).__name__}: {error}", flush=True)
            raise
        if dist.get_rank() == 0:
            print(f"{name} passed", flush=True)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    run_on_two(lambda: run_scenarios(SCENARIOS))
