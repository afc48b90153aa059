"""RTSPUGD: the equations, the three ways to step, and timm's own test patterns."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from optimizer_for_tests import ALWAYS, SCHEDULES, assert_equal, loop, loss_of, make_batches, make_net, weights
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import rts_hf
from rts_hf import RTSPUGD, FixedSwitch
from rts_hf.optim.schedules import STRATEGIES, AlphaSchedule


def two_groups(net: nn.Module) -> list[dict]:
    return [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0, "lr": 0.02},
    ]


def with_closures(net: nn.Module, optimizer: RTSPUGD, batches: list, clear: str = "optimizer") -> None:
    for batch in batches:

        def closure(batch=batch) -> Tensor:
            if clear == "optimizer":
                optimizer.zero_grad()
            elif clear == "zeros":
                optimizer.zero_grad(set_to_none=False)
            loss = loss_of(net, batch)
            loss.backward()
            return loss

        optimizer.step(closure)
        if clear == "no":
            optimizer.zero_grad()


def transcription(
    net: nn.Module, batches: list, lr: dict[int, float], decay: dict[int, float], schedules: dict, momentum: float
) -> list[Tensor]:
    """Ten lines of equations: PUGD with schedules from the first step, then SGD with momentum on U."""
    alpha_r = AlphaSchedule(schedules["radius"], schedules["radius_beta_min"], schedules["radius_beta_max"])
    alpha_s = AlphaSchedule(schedules["scale"], schedules["scale_beta_min"], schedules["scale_beta_max"])
    params = list(net.parameters())
    velocity = [torch.zeros_like(p) for p in params]
    for t, batch in enumerate(batches):
        u = t / (len(batches) - 1)
        g = torch.autograd.grad(loss_of(net, batch), params)
        w = weights(net)
        d = [p.detach().abs() * gi for p, gi in zip(params, g, strict=True)]
        d_norm = torch.cat([x.flatten() for x in d]).norm()
        with torch.no_grad():
            for p, di in zip(params, d, strict=True):
                p.add_(alpha_r(u) * di / d_norm)
        second = torch.autograd.grad(loss_of(net, batch), params)
        total = [s + alpha_s(u) * gi for s, gi in zip(second, g, strict=True)]
        norm = torch.cat([x.flatten() for x in total]).norm()
        with torch.no_grad():
            for i, p in enumerate(params):
                p.copy_(w[i])
                velocity[i] = momentum * velocity[i] + total[i] / norm + decay[p.ndim] * p
                p.sub_(lr[p.ndim] * velocity[i])
    return weights(net)


# ---- The equations ----


@pytest.mark.parametrize("radius", STRATEGIES)
def test_equals_the_equations_in_float64(radius: str) -> None:
    schedules = {**SCHEDULES, "radius": radius}
    batches = make_batches(20)
    expected = transcription(make_net(), batches, {2: 0.05, 1: 0.02}, {2: 0.01, 1: 0.0}, schedules, momentum=0.9)
    net = make_net()
    optimizer = RTSPUGD(two_groups(net), lr=0.05, nesterov=False, **schedules, **ALWAYS)
    loop(net, optimizer, batches)
    error = max((a - b).abs().max().item() for a, b in zip(weights(net), expected, strict=True))
    assert error < 1e-9
    assert optimizer.stats()["gradient_evaluations"] == 40


@pytest.mark.parametrize("base", ["sgd", "momentum", "adamw", "nadamw", "lion", "adagrad", "adafactor", "muon"])
def test_before_the_switch_it_is_the_base_optimizer_bit_for_bit(base: str) -> None:
    batches = make_batches(15, torch.float32)
    plain, net = make_net(dtype=torch.float32), make_net(dtype=torch.float32)
    loop_optimizer = create_optimizer_v2(two_groups(plain), opt=base, lr=0.01)
    for batch in batches:
        loss_of(plain, batch).backward()
        loop_optimizer.step()
        loop_optimizer.zero_grad()
    optimizer = RTSPUGD(two_groups(net), lr=0.01, base=base, switch=FixedSwitch(1.0), total_steps=15)
    loop(net, optimizer, batches)
    assert optimizer.phase == "sgd"
    assert_equal(weights(plain), weights(net))
    assert optimizer.stats()["gradient_evaluations"] == 15


@pytest.mark.parametrize("base", ["sgd", "adamw", "lion"])
def test_radius_zero_is_unit_gradient_descent(base: str) -> None:
    """With α_r = 0 and α_s = 1, g* = g, and U = 2g / ‖2g‖ = g / ‖g‖."""
    batches = make_batches(10)
    plain, net = make_net(), make_net()
    reference = create_optimizer_v2(plain.parameters(), opt=base, lr=0.01)
    for batch in batches:
        loss_of(plain, batch).backward()
        norm = torch.cat([p.grad.flatten() for p in plain.parameters()]).norm()
        for p in plain.parameters():
            p.grad /= norm
        reference.step()
        reference.zero_grad()
    settings = {**ALWAYS, "radius": "constant", "radius_beta_min": 0, "radius_beta_max": 0, "scale": "constant"}
    loop(net, RTSPUGD(net.parameters(), lr=0.01, base=base, **settings), batches)
    for a, b in zip(weights(plain), weights(net), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_epsilon_has_the_radius_as_its_norm_and_points_along_weighted_gradient() -> None:
    net, batch = make_net(), make_batches(1)[0]
    optimizer = RTSPUGD(net.parameters(), lr=0.1, **SCHEDULES, **ALWAYS)
    loss_of(net, batch).backward()
    before, grads = weights(net), [p.grad.clone() for p in net.parameters()]
    with optimizer.perturbed():
        epsilon = [p.detach() - w for p, w in zip(net.parameters(), before, strict=True)]
        assert all(
            torch.allclose(p.grad, 1.5 * g) for p, g in zip(net.parameters(), grads, strict=True)
        )  # α_s·g, kept for the second pass to add to
    flat = torch.cat([e.flatten() for e in epsilon])
    direction = torch.cat([(w.abs() * g).flatten() for w, g in zip(before, grads, strict=True)])
    assert flat.norm().item() == pytest.approx(0.5)  # 1/β_max at u = 0
    assert torch.allclose(flat / flat.norm(), direction / direction.norm())
    assert optimizer.stats()["epsilon_norm"] == pytest.approx(0.5)
    assert optimizer.stats()["gradient_norm"] == pytest.approx(torch.cat([g.flatten() for g in grads]).norm().item())


def test_the_scale_of_the_loss_does_not_matter() -> None:
    nets = make_net(), make_net()
    for net, factor in zip(nets, (1.0, 65536.0), strict=True):
        optimizer = RTSPUGD(net.parameters(), lr=0.1, **SCHEDULES, **ALWAYS)
        for batch in make_batches(5):
            (factor * loss_of(net, batch)).backward()
            with optimizer.perturbed():
                (factor * loss_of(net, batch)).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert_equal(weights(nets[0]), weights(nets[1]))


# ---- Three ways to step ----


@pytest.mark.parametrize("clear", ["optimizer", "zeros", "no"])
def test_closure_and_loop_give_the_same_numbers(clear: str) -> None:
    batches = make_batches(12)
    nets = make_net(), make_net()
    settings = {**SCHEDULES, "switch": "fixed", "switch_at": 4, "total_steps": 12, "perturb_every": 2}
    loop(nets[0], RTSPUGD(two_groups(nets[0]), lr=0.05, **settings), batches)
    optimizer = RTSPUGD(two_groups(nets[1]), lr=0.05, **settings)
    with_closures(nets[1], optimizer, batches, clear)
    assert_equal(weights(nets[0]), weights(nets[1]))
    assert optimizer.stats()["gradient_evaluations"] == 4 + 4 * 2 + 4 * 1


def test_step_returns_the_loss_at_w() -> None:
    net, batch = make_net(), make_batches(1)[0]
    optimizer = RTSPUGD(net.parameters(), lr=0.1, **ALWAYS)
    before = loss_of(net, batch).item()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(net, batch)
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == before
    optimizer.zero_grad()
    with optimizer.perturbed():
        pass
    assert optimizer.step() is None


def test_step_alone_takes_the_unit_step_and_warns_once() -> None:
    net, other = make_net(), make_net()
    optimizer = RTSPUGD(net.parameters(), lr=0.1, base="momentum", **ALWAYS)
    reference = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in make_batches(3):
            loss_of(net, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            loss_of(other, batch).backward()
            norm = torch.cat([p.grad.flatten() for p in other.parameters()]).norm()
            for p in other.parameters():
                p.grad /= norm
            reference.step()
            reference.zero_grad()
    assert [str(w.message)[:35] for w in caught] == ["step() found no second gradient, so"]
    for a, b in zip(weights(net), weights(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_state_initialization_by_distributed_checkpoint_is_not_a_step() -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    net = make_net()
    optimizer = RTSPUGD(net.parameters(), lr=0.1, base="adamw", **ALWAYS)
    before = weights(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = get_optimizer_state_dict(net, optimizer)
    assert_equal(before, weights(net))
    assert optimizer.stats()["step"] == 0
    assert set(state["state"]) == {name for name, _ in net.named_parameters()}


# ---- timm's own test patterns ----


def run_like_timm(make: Callable[[Tensor, Tensor], torch.optim.Optimizer], shape_fix: Callable) -> None:
    """Prime, copy through a state_dict, run both side by side, compare; the closure clears the gradients."""
    torch.manual_seed(0)
    weight, bias = (nn.Parameter(shape_fix(torch.randn(*shape, 2))) for shape in ((10, 5), (10,)))
    x = torch.randn(5)

    def closure_for(optimizer, weight, bias):
        def closure():
            optimizer.zero_grad()
            loss = (weight.mv(x) + bias).pow(2).sum()
            loss.backward()
            return loss

        return closure

    optimizer = make(weight, bias)
    repr(optimizer)
    closure = closure_for(optimizer, weight, bias)
    start = closure().item()
    for _ in range(20):
        optimizer.step(closure)
    weight_c, bias_c = (nn.Parameter(shape_fix(torch.stack([p.detach()] * 2, dim=-1))) for p in (weight, bias))
    other = make(weight_c, bias_c)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    closure_c = closure_for(other, weight_c, bias_c)
    for _ in range(20):
        optimizer.step(closure)
        other.step(closure_c)
        assert torch.equal(weight, weight_c)
        assert torch.equal(bias, bias_c)
    torch.testing.assert_close(optimizer.state_dict(), other.state_dict(), rtol=0, atol=0)
    assert closure().item() < start
    copied = copy.deepcopy(optimizer)
    assert {key for key in vars(copied) if key[0] != "_"} == {key for key in vars(optimizer) if key[0] != "_"}
    assert copied.param_groups[0]["params"][0] is not weight


# plainpugd, which perturbs at once, with every base; of the others each one, and each base
@pytest.mark.parametrize(
    ("opt", "base", "strided"),
    [
        *(("plainpugd", base, strided) for base in ("sgd", "adamw", "nadamw", "lion") for strided in (False, True)),
        ("rts_pugd", "sgd", False), ("rts_pugd", "nadamw", True), ("pugd", "adamw", False), ("sam", "sgd", True),
        ("sam", "lion", False), ("asam", "sgd", False), ("asam", "adamw", True), ("lookahead_rts_pugd", "sgd", False),
        ("lookahead_rts_pugd", "adamw", True),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:total_steps is unknown")
def test_passes_timms_test_patterns(opt: str, base: str, strided: bool) -> None:
    groups = [
        lambda w, b: [w, b],
        lambda w, b: [{"params": [w]}, {"params": [b], "lr": 1e-3}],
        lambda w, b: [{"params": b, "lr": 1e-3}],
    ]
    for make_groups in groups:
        run_like_timm(
            lambda w, b, make_groups=make_groups: create_optimizer_v2(make_groups(w, b), opt=opt, lr=1e-3, base=base),
            (lambda t: t[..., 0]) if strided else (lambda t: t[..., 0].contiguous()),
        )


def test_public_names() -> None:
    assert all(hasattr(rts_hf, name) for name in rts_hf.__all__)


@pytest.mark.parametrize("clears", ["before the backward", "after it", "replaced by a copy"])
def test_a_first_gradient_cleared_by_the_model_is_put_back_with_a_warning(clears: str) -> None:
    ends = []
    for is_cleared in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
        optimizer = RTSPUGD(model.parameters(), lr=0.1, switch=None, scale="constant", total_steps=3)
        model(torch.ones(5, 6)).square().sum().backward()
        with warnings.catch_warnings(record=True) as said, optimizer.perturbed():
            warnings.simplefilter("always")
            if is_cleared and clears == "before the backward":
                model.zero_grad()
            model(torch.ones(5, 6)).square().sum().backward()
            if is_cleared and clears == "after it":
                model.zero_grad()
            if is_cleared and clears == "replaced by a copy":
                for param in model.parameters():
                    param.grad = param.grad.clone()
        optimizer.step()
        ends.append([*model.parameters()])
    assert all(map(torch.equal, *ends))
    assert ["4 gradients were cleared" in str(each.message) for each in said] == [True] * (clears[0] != "r")
