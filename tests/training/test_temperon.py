"""Temperon driven from a loop that has the gradient already: the numbers of the package's own closure."""

import copy
import sys

import pytest
import timm.optim
import torch
from temperon import Temperon
from torch import nn

from rts_hf.comparing.method import gradient_evaluations, updates_within
from rts_hf.training.temperon import TailSwitch, TemperonOptimizer, register_temperon

STEPS = 7


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    random = torch.Generator().manual_seed(1)
    return [(torch.randn(5, 4, generator=random), torch.randint(3, (5,), generator=random)) for _ in range(STEPS)]


def loss_of(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def train(model: nn.Module, optimizer: TemperonOptimizer, steps: range) -> int:
    """Train as a loop does that computes the gradient before step(); return the gradients taken."""
    taken = 0

    def again() -> torch.Tensor:
        nonlocal taken
        taken += 1
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        return loss

    for step in steps:
        batch = batches()[step]
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        taken += 1
        optimizer.second_pass = again
        optimizer.step()
    return taken


def by_the_package(model: nn.Module, **settings: float) -> int:
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    optimizer = Temperon(base, total_steps=STEPS, **settings)  # type: ignore[arg-type]
    taken = 0
    for batch in batches():

        def closure() -> torch.Tensor:
            nonlocal taken
            taken += 1
            optimizer.zero_grad()
            loss = loss_of(model, batch)  # noqa: B023
            loss.backward()
            return loss

        optimizer.step(closure)
    return taken


@pytest.mark.parametrize("settings", [{}, {"tail_frac": 0.6, "rho": 0.5}, {"tail_frac": 0.0}, {"tail_frac": 1.0}])
def test_the_numbers_are_those_of_the_package(settings: dict[str, float]) -> None:
    expected, model = make_model(), make_model()
    taken = by_the_package(expected, **settings)
    optimizer = TemperonOptimizer(model.parameters(), weight_decay=0.01, total_steps=STEPS, **settings)  # type: ignore[arg-type]
    assert train(model, optimizer, range(STEPS)) == taken == optimizer.gradient_evaluations
    assert gradient_evaluations(STEPS, optimizer.switch) == taken
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)


def test_it_goes_on_from_a_saved_state() -> None:
    whole, part = make_model(), make_model()
    train(whole, TemperonOptimizer(whole.parameters(), total_steps=STEPS, tail_frac=0.5), range(STEPS))
    optimizer = TemperonOptimizer(part.parameters(), total_steps=STEPS, tail_frac=0.5)
    train(part, optimizer, range(4))
    state = copy.deepcopy(optimizer.state_dict())
    optimizer = TemperonOptimizer(part.parameters(), total_steps=STEPS, tail_frac=0.5)
    optimizer.load_state_dict(state)
    train(part, optimizer, range(4, STEPS))
    for one, other in zip(part.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_learning_rate_that_is_set_is_the_one_that_is_used() -> None:
    model = make_model()
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer = TemperonOptimizer(model.parameters(), total_steps=STEPS, tail_frac=1.0)
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, optimizer, range(STEPS))
    for one, other in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)  # the package puts weights back by subtraction


def test_refused() -> None:
    parameters = [nn.Parameter(torch.ones(2))]
    with pytest.raises(ValueError, match="tail_frac must be in"):
        TemperonOptimizer(parameters, tail_frac=2.0)
    optimizer = TemperonOptimizer(parameters)
    with pytest.raises(ValueError, match="total_steps=None"):
        optimizer.step()
    with pytest.raises(ValueError, match="closure"):
        optimizer.step(lambda: torch.zeros(()))
    optimizer.total_steps = 1
    optimizer.step()  # there is no gradient
    assert optimizer.gradient_evaluations == 0
    optimizer.param_groups[0]["temperon_step"] = 1
    parameters[0].grad = torch.ones(2)
    with pytest.raises(ValueError, match="second_pass=None"):
        optimizer.step()


def test_the_tail_begins_where_the_package_begins_it() -> None:
    base = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    for steps in (5, 7, 30, 101):
        for tail in (0.1, 0.3, 0.5, 0.57, 1.0):
            assert TailSwitch(1.0 - tail).start(steps) == Temperon(base, total_steps=steps, tail_frac=tail).tail_start
    assert TailSwitch(1.0).start(10) is None
    assert TailSwitch(0.5).start(None) is None
    assert updates_within(13, TailSwitch(0.7)) == 10


def test_timm_knows_it_once_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    register_temperon()
    register_temperon()
    optimizer = timm.optim.create_optimizer_v2(make_model(), opt="temperon", lr=0.2, weight_decay=0.1, tail_frac=0.4)
    assert isinstance(optimizer, TemperonOptimizer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.1]
    monkeypatch.setitem(sys.modules, "temperon", None)
    with pytest.raises(ValueError, match=r"opt='temperon' needs a package .*pip install 'rts_hf\[compare\]'"):
        register_temperon()
