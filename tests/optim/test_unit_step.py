"""The base optimizer's step on a unit gradient: what a fused base does by itself, and when it may not."""

import copy
import math
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from rts_hf import RTSPUGD
from rts_hf.optim.perturbation import global_norm
from rts_hf.optim.unit_step import divides, factor_between

BASES = {"momentum": {"momentum": 0.9}, "sgd": {"momentum": 0.9}, "adamw": {}, "adam": {}}


def made(base: str = "momentum", **settings: Any) -> tuple[nn.Module, RTSPUGD]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    settings = {"switch": None, "perturb_every": 1, "total_steps": 8, "weight_decay": 0.1, **BASES[base], **settings}
    return net, RTSPUGD(net.parameters(), lr=0.01, base=base, **settings)


def train(net: nn.Module, optimizer: RTSPUGD, steps: int, bad: int | None = None) -> None:
    for step in range(steps):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        (net(x) - x[:, :3]).square().mean().backward()
        if optimizer.perturbing:
            with optimizer.perturbed():
                (net(x) - x[:, :3]).square().mean().backward()
        if step == bad:
            next(net.parameters()).grad[0, 0] = torch.inf  # type: ignore[index]
        optimizer.step()
        optimizer.zero_grad()


def can_divide(net: nn.Module, optimizer: RTSPUGD) -> bool:
    params = [*net.parameters()]
    grads = [torch.ones_like(p) for p in params]
    return divides(optimizer.base_optimizer, params, grads, global_norm(grads))


@pytest.mark.parametrize("base", BASES)
def test_a_fused_base_takes_the_same_steps(base: str) -> None:
    plain, fused = made(base, fused=False), made(base, fused=True)
    for net, optimizer in (plain, fused):
        train(net, optimizer, 6)
        assert can_divide(net, optimizer) == (optimizer is fused[1])
    for a, b in zip(plain[0].parameters(), fused[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert not hasattr(fused[1].base_optimizer, "grad_scale")
    assert not hasattr(fused[1].base_optimizer, "found_inf")


def test_sgd_is_fused_after_the_switch_alone_where_it_was_told_nothing() -> None:
    told, plain = made("sgd", switch="fixed", switch_at=2), made("sgd", switch="fixed", switch_at=2, fused=False)
    kernel = made("sgd", switch="fixed", switch_at=2, fused=True)
    for net, optimizer in (told, plain):
        train(net, optimizer, 2)
    assert all(map(torch.equal, told[0].parameters(), plain[0].parameters()))
    assert ("fused=True" in repr(told[1]), "fused=True" in repr(plain[1])) == (True, False)
    assert can_divide(*told)
    assert not can_divide(*plain)
    kernel[0].load_state_dict(told[0].state_dict())
    kernel[1].load_state_dict(copy.deepcopy(told[1].state_dict()))  # which would share its tensors
    for group in kernel[1].param_groups:
        group["fused"] = True
    for net, optimizer in (told, kernel):
        train(net, optimizer, 3)
    assert all(map(torch.equal, told[0].parameters(), kernel[0].parameters()))
    assert {group["fused"] for group in told[1].param_groups} == {None}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("bad", [0, 3])
def test_a_fused_base_takes_nothing_of_an_infinite_gradient(base: str, bad: int) -> None:
    net, optimizer = made(base, fused=True)
    train(net, optimizer, bad)
    before = [p.detach().clone() for p in net.parameters()]
    train(net, optimizer, 1, bad=0)
    if bad:  # in the first step there is only weight decay
        for p, old in zip(net.parameters(), before, strict=True):
            assert torch.equal(p, old)
    assert optimizer.stats()["unusable_gradients"] == 1
    train(net, optimizer, 2)
    assert all(p.isfinite().all() for p in net.parameters())
    states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    assert all(value.isfinite().all() and value.abs().max() < 100 for value in states)


def test_no_gradient_moves_a_fused_base_as_any_other() -> None:
    nets = []
    for settings in ({}, {"fused": True}):
        net, optimizer = made("momentum", **settings)
        train(net, optimizer, 2)
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        with pytest.warns(UserWarning, match="no second gradient"):
            optimizer.step()
        assert optimizer.stats()["unusable_gradients"] == 1
        nets.append(net)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_a_base_does_not_divide_what_it_would_spoil() -> None:
    net, optimizer = made("momentum", fused=True)
    assert not can_divide(net, optimizer)  # its momentum is not there yet
    train(net, optimizer, 1)
    assert can_divide(net, optimizer)
    params = [*net.parameters()]
    grads = [torch.ones_like(p) for p in params]
    norm, base = global_norm(grads), optimizer.base_optimizer
    turned = [
        torch.ones(tuple(reversed(p.shape))).t() if p.dim() == 2 else g for p, g in zip(params, grads, strict=True)
    ]
    assert not divides(base, params, turned, norm)  # the fused kernel walks through memory
    assert not divides(base, params, [g.bfloat16() for g in grads], norm)
    assert not divides(base, params, grads, norm.double())  # it reads the scale as float32
    for group in base.param_groups:
        group["fused"] = False
    assert not divides(base, params, grads, norm)


# ---- Under a gradient scaler ----


@pytest.mark.parametrize("bad", [0.0, math.inf, math.nan])
def test_a_factor_that_cannot_be_told_is_one(bad: float) -> None:
    assert factor_between(bad, 2.0) == factor_between(2.0, bad) == 1.0
    assert factor_between(torch.tensor(4.0), torch.tensor(1.0)) == 0.25


@pytest.mark.parametrize("switch", [None, "fixed"])  # perturbed and plain
@pytest.mark.parametrize("way", ["torch", "accelerate", "scheduled"])
def test_a_closure_under_a_scaler_is_refused(way: str, switch: str | None) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = RTSPUGD([weight], lr=0.1, switch=switch, total_steps=9)
    scaler = torch.amp.GradScaler("cpu")
    calls = []

    def closure() -> torch.Tensor:
        calls.append(1)
        loss = weight.square().sum()
        scaler.scale(loss).backward()
        return loss

    scaler.scale(weight.sum()).backward()  # without gradients, torch itself fails before it calls the optimizer
    wrapped = optimizer
    if way == "accelerate":
        Accelerator(cpu=True)
        wrapped = AcceleratedOptimizer(optimizer, scaler=scaler)
    if way == "scheduled":
        torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(RuntimeError, match=r"step\(closure\) under a gradient scaler.*perturbed"):
        wrapped.step(closure) if way == "accelerate" else scaler.step(optimizer, closure)
    assert not calls
    assert torch.equal(weight.detach(), torch.ones(3))


def test_a_scaler_that_is_off_takes_a_closure() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = RTSPUGD([weight], lr=0.1, switch=None, total_steps=9)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert torch.amp.GradScaler("cpu", enabled=False).step(optimizer, closure).item() == 3
    assert optimizer.stats()["gradient_evaluations"] == 2
