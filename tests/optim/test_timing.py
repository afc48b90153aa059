"""Position, phase and switch survive every way of saving an optimizer."""

import copy
import io
import warnings

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2
from torch import nn

from rts_hf import RTSPUGD, FixedSwitch, GeneralizationGapSwitch, GradientVarianceSwitch, PhaseSwitch

STEPS = 24
SETTINGS = {
    "lr": 0.05,
    "radius": "sine_heating",
    "radius_beta_max": 0.5,
    "scale": "cosine_annealing",
    "switch": "gradient_variance",
    "switch_window": 4,
    "switch_init_steps": 4,
    "switch_gamma": 1.5,  # fires soon
    "total_steps": STEPS,
}


def make(seed: int = 0) -> tuple[nn.Module, RTSPUGD]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1]},
        {"params": [p for p in net.parameters() if p.ndim == 1]},
    ]
    return net, RTSPUGD(groups, **SETTINGS)


def train(net: nn.Module, optimizer: RTSPUGD, start: int, stop: int) -> list[dict]:
    trace = []
    for step in range(start, stop):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 4, generator=generator), torch.randn(8, 3, generator=generator)
        nn.functional.mse_loss(net(x), y).backward()
        if optimizer.perturbing:
            with optimizer.perturbed():
                nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        trace.append(optimizer.stats())
    return trace


def through_torch_save(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


WAYS = {"as it is": lambda state: state, "deepcopy": copy.deepcopy, "weights_only": through_torch_save}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stop", [2, 6, 8, 15])  # half a window, one and a half, at the switch, after it
def test_resumed_equals_uninterrupted(way: str, stop: int) -> None:
    net, optimizer = make()
    expected = train(net, optimizer, 0, STEPS)
    assert optimizer.switch_step == 8
    first, first_optimizer = make()
    head = train(first, first_optimizer, 0, stop)
    second, second_optimizer = make(seed=1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second_optimizer.load_state_dict(WAYS[way](first_optimizer.state_dict()))
    assert head + train(second, second_optimizer, stop, STEPS) == expected
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("stop", [2, 15])
def test_saving_does_not_disturb_the_run(stop: int) -> None:
    net, optimizer = make()
    expected = train(net, optimizer, 0, STEPS)
    other, other_optimizer = make()
    trace = train(other, other_optimizer, 0, stop)
    other_optimizer.state_dict()
    assert trace + train(other, other_optimizer, stop, STEPS) == expected


def test_deepcopy_goes_on_by_itself() -> None:
    net, optimizer = make()
    train(net, optimizer, 0, 6)
    net_copy, optimizer_copy = copy.deepcopy((net, optimizer))
    assert train(net, optimizer, 6, STEPS) == train(net_copy, optimizer_copy, 6, STEPS)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), net_copy.parameters(), strict=True))
    assert optimizer_copy.base_optimizer.param_groups is optimizer_copy.param_groups
    assert optimizer_copy.switch is not optimizer.switch


def test_one_group_list_is_shared_with_the_base_optimizer_and_stays_shared() -> None:
    net, optimizer = make()

    def shared() -> bool:
        base = optimizer.base_optimizer
        return base.param_groups is optimizer.param_groups and base.state is optimizer.state

    assert shared()
    train(net, optimizer, 0, 3)
    optimizer.load_state_dict(optimizer.state_dict())
    assert shared()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = [p.detach().clone() for p in net.parameters()]
    train(net, optimizer, 3, 5)
    scheduler.step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))  # the base saw lr = 0


def test_accelerate_wraps_it_and_its_parameters_may_be_swapped() -> None:
    net, optimizer = make()
    accelerator = Accelerator(cpu=True)
    net, wrapped = accelerator.prepare(net, optimizer)
    assert wrapped.optimizer is optimizer
    train(net, optimizer, 0, 3)
    swapped = {p: nn.Parameter(p.detach().clone()) for p in net.parameters()}
    wrapped._switch_parameters(swapped)
    before = [p.detach().clone() for p in swapped.values()]
    for p in swapped.values():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, swapped.values(), strict=True))


def test_state_is_keyed_by_parameter_and_holds_plain_values_only() -> None:
    net, optimizer = make()
    train(net, optimizer, 0, STEPS)
    assert set(optimizer.state) == set(net.parameters())

    def kinds(value) -> set[type]:
        if isinstance(value, dict | list):
            return set().union(*(kinds(v) for v in (value.values() if isinstance(value, dict) else value)))
        return {type(value)}

    entries = [
        {k: v for k, v in group.items() if k.startswith("rts_")} for group in optimizer.state_dict()["param_groups"]
    ]
    assert kinds(entries) <= {int, float, bool}
    assert entries[0] == entries[1]


def test_a_plain_optimizers_state_starts_the_count_and_keeps_its_momentum() -> None:
    net, optimizer = make()
    plain = create_optimizer_v2([{"params": g["params"]} for g in optimizer.param_groups], opt="sgd", lr=0.05)
    nn.functional.mse_loss(net(torch.ones(2, 4)), torch.ones(2, 3)).backward()
    plain.step()
    plain.zero_grad()
    optimizer.load_state_dict(plain.state_dict())
    assert (optimizer.phase, optimizer.stats()["step"], optimizer.total_steps) == ("sgd", 0, STEPS)
    for p in net.parameters():
        assert torch.equal(optimizer.state[p]["momentum_buffer"], plain.state[p]["momentum_buffer"])
    assert train(net, optimizer, 0, 3)[-1]["step"] == 3


@pytest.mark.parametrize(
    "switch",
    [GradientVarianceSwitch(window=3, init_steps=6, gamma=0.3), GeneralizationGapSwitch(mu=3.0), FixedSwitch(0.25)],
)
def test_the_checkpoints_settings_win_as_everywhere_in_torch(switch: PhaseSwitch) -> None:
    net, _ = make()
    saved = RTSPUGD(net.parameters(), lr=0.1, switch=switch, total_steps=10, perturb_every=3, radius_beta_max=0.7)
    other = RTSPUGD(net.parameters(), lr=0.2)
    other.load_state_dict(saved.state_dict())
    assert repr(other.switch) == repr(switch)
    assert other.total_steps == 10
    assert other.radius_schedule == saved.radius_schedule
    assert other.state_dict() == saved.state_dict()


def test_a_plain_optimizers_state_does_not_stop_perturbing_from_the_start() -> None:
    net, _ = make()
    optimizer = RTSPUGD(net.parameters(), lr=0.1, switch=None, total_steps=9)
    optimizer.load_state_dict(create_optimizer_v2(net.parameters(), opt="sgd", lr=0.1).state_dict())
    assert optimizer.perturbing
    assert optimizer.switch_step == 0


@pytest.mark.parametrize("at", [np.float64(0.5), np.float32(0.5)])
def test_numpy_settings_do_not_make_a_checkpoint_unreadable(at: float) -> None:
    net, _ = make()
    optimizer = RTSPUGD(net.parameters(), lr=0.1, switch=FixedSwitch(float(at)), total_steps=9)
    assert through_torch_save(optimizer.state_dict())["param_groups"][0]["rts_switch_at"] == 0.5
    if isinstance(at, float):
        numpy_settings = RTSPUGD(net.parameters(), lr=0.1, switch="fixed", switch_at=at, radius_beta_max=at)
        through_torch_save(numpy_settings.state_dict())


def test_restart_goes_back_to_the_start() -> None:
    net, optimizer = make()
    first = copy.deepcopy(optimizer.state_dict()["param_groups"])
    train(net, optimizer, 0, 11)
    assert optimizer.phase == "pugd"
    optimizer.restart()
    shown = [
        {k: v for k, v in group.items() if k.split("_")[-1] != "0"} for group in optimizer.state_dict()["param_groups"]
    ]
    assert optimizer.phase == "sgd"
    assert optimizer.switch.state_dict() == GradientVarianceSwitch(window=4, init_steps=4, gamma=1.5).state_dict()
    assert all(
        group[key] == value
        for group, old in zip(shown, first, strict=True)
        for key, value in old.items()
        if key in group and key != "params"
    )


def test_settings_may_be_changed_on_the_way() -> None:
    net, optimizer = make()
    train(net, optimizer, 0, 3)
    longer = {**optimizer.settings(), "total_steps": 48, "radius": "constant", "radius_beta_max": 0.25}
    optimizer.apply_settings(longer)
    assert optimizer.settings() == longer
    assert (optimizer.total_steps, optimizer.radius_schedule(0.3), optimizer.switch.steps_seen) == (48, 0.25, 0)
    assert optimizer.stats()["step"] == 3
    train(net, optimizer, 3, 5)
    optimizer.apply_settings({**longer, "switch_gamma": 0.1})
    assert repr(optimizer.switch) == "GradientVarianceSwitch(window=4, init_steps=4, gamma=0.1)"
    assert longer["method"] == "pugd"


def test_a_switch_of_ones_own() -> None:
    class Never(PhaseSwitch):
        name = "never"

    net, _ = make()
    optimizer = RTSPUGD(net.parameters(), lr=0.1, switch=Never(), total_steps=5)
    other = RTSPUGD(net.parameters(), lr=0.1, switch=Never(), total_steps=5)
    other.load_state_dict(optimizer.state_dict())
    assert isinstance(other.switch, Never)
    with pytest.raises(ValueError, match="a switch of another class"):
        RTSPUGD(net.parameters(), lr=0.1, total_steps=50).load_state_dict(optimizer.state_dict())


def test_a_group_added_later_joins_the_others() -> None:
    net, optimizer = make()
    train(net, optimizer, 0, 10)
    late = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [late], "lr": 0.5})
    assert optimizer.param_groups[2]["rts_step"] == 10
    assert optimizer.param_groups[2]["lr"] == 0.5
    before = late.detach().clone()
    late.square().sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.step()
    assert not torch.equal(before, late)


def test_an_empty_first_group_does_not_lead() -> None:
    """A sharded load restores nothing into a group without parameters; the others still tell the position."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = RTSPUGD([{"params": []}, {"params": [weight]}], lr=0.1, switch=FixedSwitch(2), total_steps=9)
    for _ in range(3):
        weight.grad = torch.ones_like(weight)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.step()
    state = optimizer.state_dict()
    state["param_groups"][0] = {k: v for k, v in state["param_groups"][0].items() if not k.startswith("rts_")}
    other = RTSPUGD([{"params": []}, {"params": [weight]}], lr=0.1, switch=FixedSwitch(2), total_steps=9)
    other.load_state_dict(state)
    assert (other.phase, other.switch_step, other.stats()["step"]) == ("pugd", 2, 3)


def test_distributed_checkpoint_functions_keep_everything() -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    net, optimizer = make()
    expected = train(net, optimizer, 0, STEPS)
    first, first_optimizer = make()
    head = train(first, first_optimizer, 0, 6)
    state = get_optimizer_state_dict(first, first_optimizer)
    second, second_optimizer = make(seed=1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    set_optimizer_state_dict(second, second_optimizer, through_torch_save(state))
    assert head + train(second, second_optimizer, 6, STEPS) == expected


def test_reading_the_device_happens_once_a_window() -> None:
    class Counter(torch.utils._python_dispatch.TorchDispatchMode):
        reads = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.reads += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    net, optimizer = make()
    counts = []
    for _ in range(12):
        x, y = torch.ones(8, 4), torch.ones(8, 3)
        with Counter() as counter:
            nn.functional.mse_loss(net(x), y).backward()
            if optimizer.perturbing:
                with optimizer.perturbed():
                    nn.functional.mse_loss(net(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        counts.append(counter.reads)
    assert all(count == 0 for step, count in enumerate(counts) if (step + 1) % 4)
