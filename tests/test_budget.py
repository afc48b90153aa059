"""A budget of gradients pays for the updates that a run of that budget takes."""

import pytest
import torch

from rts_hf import RTSPUGD, FixedSwitch, GradientVarianceSwitch
from rts_hf.budget import gradient_evaluations, updates_for_share, updates_within
from rts_hf.switching import PhaseSwitch


def spent(updates: int, switch: PhaseSwitch, every: int) -> int:
    """Count the gradients of a real run."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = RTSPUGD([weight], lr=0.1, switch=switch, perturb_every=every, total_steps=updates)
    count = 0
    for _ in range(updates):
        weight.grad = weight.detach().clone()
        count += 1
        if optimizer.perturbing:
            with optimizer.perturbed():
                weight.grad += weight.detach()
                count += 1
        optimizer.step()
    return count


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("at", [0, 0.0, 0.25, 0.8, 1.0, 5, 100])
@pytest.mark.parametrize("updates", [1, 7, 20])
def test_a_run_takes_what_was_foreseen(updates: int, at: float, every: int) -> None:
    assert gradient_evaluations(updates, FixedSwitch(at), perturb_every=every) == spent(updates, FixedSwitch(at), every)


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("at", [0, 0.25, 0.8, 0.95, 1.0, 40])
@pytest.mark.parametrize("budget", [1, 2, 50, 333])
def test_one_update_more_would_be_too_many(budget: int, at: float, every: int) -> None:
    switch = FixedSwitch(at)
    updates = updates_within(budget, switch, perturb_every=every)
    assert updates is not None
    cost = [gradient_evaluations(updates + more, switch, perturb_every=every) for more in (0, 1)]
    assert cost[0] is not None
    assert cost[1] is not None
    assert cost[0] <= budget < cost[1]


def test_without_a_second_pass_an_update_is_a_gradient() -> None:
    assert (gradient_evaluations(9, None), updates_within(9, None)) == (9, 9)


def test_a_switch_that_listens_cannot_be_foreseen() -> None:
    assert gradient_evaluations(9, GradientVarianceSwitch()) is None
    assert updates_within(9, GradientVarianceSwitch()) is None


def test_a_share_that_was_seen() -> None:
    assert updates_for_share(100, 0.0) == 50
    assert updates_for_share(100, 0.0, perturb_every=4) == 80
    assert updates_for_share(1, 0.0) == 1  # a run has one update at least
