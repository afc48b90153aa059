"""What a comparison is told to compare, and the updates that a budget of gradients pays for."""

import pytest
import torch

from rts_hf import RTSPUGD, FixedSwitch, GradientVarianceSwitch
from rts_hf.comparing.method import (
    gradient_evaluations,
    next_length,
    option,
    parse_method,
    parse_recipe,
    updates_within,
)
from rts_hf.optim.switches import PhaseSwitch


def test_a_method_is_an_optimizer_with_its_options() -> None:
    method = parse_method("rts_pugd  --switch_at 0.9 --opt_args '{\"nesterov\": false}'")
    assert method.label == "rts_pugd --switch_at 0.9 --opt_args '{\"nesterov\": false}'"
    assert parse_method(method.label) == method
    assert method.words[:4] == ("--opt", "rts_pugd", "--switch_at", "0.9")
    assert method.folder == "rts_pugd_--switch_at_0.9_--opt_args_nesterov_false"
    assert (method.learning_rate, method.updates) == (None, None)


def test_a_recipe_is_one_too() -> None:
    assert parse_recipe("cifar10_pugd").words == ("--recipe", "cifar10_pugd")
    with pytest.raises(ValueError, match="recipe='cifar' is unknown"):
        parse_recipe("cifar")


@pytest.mark.parametrize("text", ["", "--opt sgd", "-1"])
def test_what_begins_with_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must begin with an optimizer's name"):
        parse_method(text)
    with pytest.raises(ValueError, match="must begin with a recipe's name"):
        parse_recipe(text)


@pytest.mark.parametrize(
    ("word", "name"),
    [("--max_steps", "max_steps"), ("--max-steps=3", "max_steps"), ("3", None), ("-3", None), ("--a=b-c", "a")],
)
def test_an_option_is_known_however_it_is_spelt(word: str, name: str | None) -> None:
    assert option(word) == name


# ---- What a budget pays for ----


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


@pytest.mark.parametrize("second_pass", [0.1, 0.3125, 1 / 3])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("at", [0, 0.8, 1.0])
@pytest.mark.parametrize("updates", [1, 20])
def test_a_second_pass_over_a_share_of_the_images_costs_that_share(
    updates: int, at: float, every: int, second_pass: float
) -> None:
    switch = FixedSwitch(at)
    perturbed = spent(updates, switch, every) - updates
    cost = {"perturb_every": every, "second_pass": second_pass}
    foreseen = gradient_evaluations(updates, switch, **cost)
    assert foreseen == pytest.approx(updates + perturbed * second_pass, abs=1e-6)
    for budget in (1, 2, 50, 333):
        within = updates_within(budget, switch, **cost)
        assert within is not None
        costs = [gradient_evaluations(within + more, switch, **cost) for more in (0, 1)]
        assert costs[0] is not None
        assert costs[1] is not None
        assert costs[0] <= budget < costs[1]


def test_shares_that_binary_numbers_cannot_hold() -> None:
    assert gradient_evaluations(41, FixedSwitch(0), second_pass=0.4) == 57.4  # as floats, a little more
    assert updates_within(11, FixedSwitch(0), second_pass=0.1) == 10
    assert updates_within(10, FixedSwitch(0), second_pass=0.25) == 8


def test_whole_second_passes_give_whole_numbers() -> None:
    assert type(gradient_evaluations(9, FixedSwitch(0.5))) is int


def test_without_a_second_pass_an_update_is_a_gradient() -> None:
    assert (gradient_evaluations(9, None), updates_within(9, None)) == (9, 9)


def test_a_switch_that_listens_cannot_be_foreseen() -> None:
    assert gradient_evaluations(9, GradientVarianceSwitch()) is None
    assert updates_within(9, GradientVarianceSwitch()) is None


def test_a_length_follows_from_those_that_were_tried() -> None:
    assert next_length({100: 200}, 100) == 50
    assert next_length({100: 100}, 200) == 200
    assert next_length({40: 60, 80: 140, 100: 190}, 100) == 60  # half of the way between the nearest two
    assert next_length({1: 2}, 1) == 1  # a run has one update at least: half of one is none
    assert next_length({3: 5}, 1) == 1
