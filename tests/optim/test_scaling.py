"""Telling what a gradient scaler did, and refusing a closure under one."""

import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from rts_hf import RTSPUGD
from rts_hf.optim.unit_step import factor_between


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
