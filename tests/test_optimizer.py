"""RTSPUGD: the equations, the three ways to step, and everything a model can throw at it."""

import copy
import warnings
from collections.abc import Callable

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import Tensor, nn

import rts_hf
from rts_hf import RTSPUGD, FixedSwitch, GradientVarianceSwitch
from rts_hf.schedules import STRATEGIES, AlphaSchedule

ALWAYS = {"switch": "fixed", "switch_at": 0, "total_steps": 20}
SCHEDULES = {
    "radius": "inverse_cosine_heating",
    "radius_beta_min": 0.1,
    "radius_beta_max": 2.0,
    "scale": "cosine_annealing",
    "scale_beta_min": 0.2,
    "scale_beta_max": 1.5,
}


def make_net(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def make_batches(count: int, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 4, generator=generator).to(dtype), torch.randn(8, 3, generator=generator).to(dtype))
        for _ in range(count)
    ]


def loss_of(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.mse_loss(net(batch[0]), batch[1])


def two_groups(net: nn.Module) -> list[dict]:
    return [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0, "lr": 0.02},
    ]


def loop(net: nn.Module, optimizer: RTSPUGD, batches: list) -> None:
    for batch in batches:
        loss_of(net, batch).backward()
        if optimizer.perturbing:
            with optimizer.perturbed():
                loss_of(net, batch).backward()
        optimizer.step()
        optimizer.zero_grad()


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


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def assert_equal(left: list[Tensor], right: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


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


# ---- Restoring ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weights_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    net = make_net(dtype=dtype)
    with torch.no_grad():
        net[0].weight[0, 0] = -0.0
        net[0].weight[0, 1] = torch.finfo(dtype).smallest_normal / 2
    optimizer = RTSPUGD(net.parameters(), lr=0.1, **SCHEDULES, **ALWAYS)
    before = [w.view(torch.uint8) for w in weights(net)]
    batch = make_batches(1, dtype)[0]
    for _ in range(5):
        optimizer.zero_grad()
        loss_of(net, batch).backward()
        with optimizer.perturbed():
            assert not any(
                torch.equal(p.detach().view(torch.uint8), w) for p, w in zip(net.parameters(), before, strict=True)
            )
        assert_equal(before, [w.view(torch.uint8) for w in weights(net)])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, torch.cuda.OutOfMemoryError])
def test_weights_come_back_after_an_exception(error: type[BaseException]) -> None:
    net, batch = make_net(), make_batches(1)[0]
    optimizer = RTSPUGD(net.parameters(), lr=0.1, **ALWAYS)
    loss_of(net, batch).backward()
    before = weights(net)

    def fail_in_second_pass(calls: list[int] = []) -> Tensor:  # noqa: B006
        calls.append(1)
        if len(calls) == 2:
            raise error("in the second pass")
        loss = loss_of(net, batch)
        loss.backward()
        return loss

    with pytest.raises(error), optimizer.perturbed():
        raise error("inside")
    assert_equal(before, weights(net))
    with pytest.raises(error):
        optimizer.step(fail_in_second_pass)
    assert_equal(before, weights(net))
    assert optimizer.stats()["step"] == 0
    optimizer.zero_grad()
    loop(net, optimizer, [batch])  # and it goes on
    assert optimizer.stats()["step"] == 1


def test_perturbed_weights_are_never_saved_in_the_state() -> None:
    net, batches = make_net(), make_batches(3)
    optimizer = RTSPUGD(net.parameters(), lr=0.1, **ALWAYS)
    loop(net, optimizer, batches)
    entries = {key for state in optimizer.state_dict()["state"].values() for key in state}
    assert entries == {"momentum_buffer"}


def test_perturbing_every_micro_batch_warns() -> None:
    net, batches = make_net(), make_batches(2)
    optimizer = RTSPUGD(net.parameters(), lr=0.1, **ALWAYS)
    loss_of(net, batches[0]).backward()
    with optimizer.perturbed():
        loss_of(net, batches[0]).backward()
    with pytest.warns(UserWarning, match="scales the first gradients twice"), optimizer.perturbed():
        loss_of(net, batches[1]).backward()
    optimizer.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop(net, optimizer, batches)


def test_misuse_is_refused() -> None:
    net, batch = make_net(), make_batches(1)[0]
    optimizer = RTSPUGD(net.parameters(), lr=0.1, switch="fixed", switch_at=1, total_steps=5)
    with pytest.raises(RuntimeError, match="ask `if optimizer"), optimizer.perturbed():
        pass
    loss_of(net, batch).backward()
    optimizer.step()
    with optimizer.perturbed():
        with pytest.raises(RuntimeError, match="inside perturbed"), optimizer.perturbed():
            pass
        with pytest.raises(RuntimeError, match="leave the `with` block"):
            optimizer.step()
        with pytest.raises(RuntimeError, match="would drop α_s·g"):
            optimizer.zero_grad()


# ---- What a model can throw at it ----


def test_frozen_parameters_and_missing_gradients() -> None:
    """A parameter without a first gradient is not perturbed; a gradient from either pass alone counts."""
    a, b, frozen = (nn.Parameter(torch.tensor([value], dtype=torch.float64)) for value in (1.0, 2.0, 3.0))
    frozen.requires_grad_(False)
    optimizer = RTSPUGD([{"params": []}, {"params": [a, b, frozen]}], lr=1.0, base="momentum", momentum=0, **ALWAYS)
    a.square().sum().backward()  # first pass reaches a alone
    with optimizer.perturbed():
        assert (a.item(), b.item(), frozen.item()) == (2.0, 2.0, 3.0)
        b.square().sum().backward()  # second pass reaches b alone
    optimizer.step()
    norm = (2.0**2 + 4.0**2) ** 0.5
    assert (a.item(), b.item(), frozen.item()) == pytest.approx((1 - 2 / norm, 2 - 4 / norm, 3.0))


def test_no_gradient_at_all_changes_nothing() -> None:
    net = make_net()
    optimizer = RTSPUGD(net.parameters(), lr=0.1, **ALWAYS)
    before = weights(net)
    with optimizer.perturbed():
        pass
    optimizer.step()
    assert_equal(before, weights(net))


@pytest.mark.parametrize("method", ["pugd", "sam", "asam"])
def test_a_zero_gradient_changes_nothing(method: str) -> None:
    net = make_net()
    optimizer = RTSPUGD(net.parameters(), lr=0.1, method=method, **ALWAYS)
    before = weights(net)
    for _ in range(2):
        (0 * loss_of(net, make_batches(1)[0])).backward()
        with optimizer.perturbed():
            assert_equal(before, weights(net))
            (0 * loss_of(net, make_batches(1)[0])).backward()
        optimizer.step()
    assert_equal(before, weights(net))
    assert optimizer.stats()["epsilon_norm"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["first", "second"])
def test_a_gradient_that_is_not_finite_does_not_reach_the_weights(dtype: torch.dtype, bad: float, which: str) -> None:
    net = make_net(dtype=dtype)
    optimizer = RTSPUGD(net.parameters(), lr=0.1, base="momentum", **ALWAYS)
    before = weights(net)
    batch = make_batches(1, dtype)[0]
    loss_of(net, batch).backward()
    if which == "first":
        net[0].weight.grad[0, 0] = bad
    with optimizer.perturbed():
        loss_of(net, batch).backward()
        if which == "second":
            net[2].bias.grad[0] = bad
    optimizer.step()
    assert_equal(before, weights(net))
    optimizer.zero_grad()
    loop(net, optimizer, make_batches(3, dtype))
    assert all(w.isfinite().all() for w in weights(net))
    assert not torch.equal(before[0], weights(net)[0])


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = RTSPUGD(embedding.parameters(), lr=0.1, **ALWAYS)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        optimizer.step()


@pytest.mark.parametrize("layout", ["transposed", "channels_last", "grad_dtype"])
def test_gradients_may_lie_in_memory_otherwise_than_their_parameters(layout: str) -> None:
    torch.manual_seed(0)
    value = {
        "transposed": torch.randn(4, 3).t(),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "grad_dtype": torch.randn(3, 4).bfloat16(),
    }[layout]
    weight, before = nn.Parameter(value), value.clone()
    grad = torch.randn(weight.shape)
    if layout == "grad_dtype":
        weight.grad_dtype = torch.float32
    weight.grad = grad.clone()
    optimizer = RTSPUGD([weight], lr=1.0, base="momentum", momentum=0.0, switch=None, total_steps=5, scale="constant")
    with optimizer.perturbed():
        pass
    optimizer.step()
    tolerance = 2e-2 if layout == "grad_dtype" else 1e-6
    torch.testing.assert_close((before - weight.detach()).float(), grad / grad.norm(), rtol=0, atol=tolerance)


def test_stats_count_unusable_gradients() -> None:
    net = make_net()
    optimizer = RTSPUGD(net.parameters(), lr=0.1, **ALWAYS)
    loop(net, optimizer, make_batches(2))
    (0 * loss_of(net, make_batches(1)[0])).backward()
    with optimizer.perturbed():
        pass
    optimizer.step()
    assert optimizer.stats()["unusable_gradients"] == 1


def test_no_warning_about_a_missing_second_gradient_where_every_lr_is_zero() -> None:
    net = make_net()
    optimizer = RTSPUGD(net.parameters(), lr=0.0, **ALWAYS)
    loss_of(net, make_batches(1)[0]).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


def test_repr_is_readable() -> None:
    text = repr(RTSPUGD(make_net().parameters(), lr=0.1, **ALWAYS))
    assert text.startswith("RTSPUGD(base=SGD, method='pugd', radius=AlphaSchedule(strategy='cosine_annealing'")
    assert "phase='pugd', step=0 of 20" in text


def test_tied_parameters_are_perturbed_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    net = Tied().double()
    optimizer = RTSPUGD(net.parameters(), lr=0.1, radius="constant", radius_beta_max=1.0, **ALWAYS)
    net(torch.ones(2, 3, dtype=torch.float64)).square().sum().backward()
    before = weights(net)
    with optimizer.perturbed():
        moved = torch.cat([(p.detach() - w).flatten() for p, w in zip(net.parameters(), before, strict=True)])
        assert moved.norm().item() == pytest.approx(1.0)
    assert_equal(before, weights(net))


def test_low_precision_perturbs_in_float32() -> None:
    """float16 squares of small |w|⊙g would underflow to a zero norm."""
    weight = nn.Parameter(torch.full((4,), 1e-3, dtype=torch.float16))
    optimizer = RTSPUGD([weight], lr=0.1, radius="constant", radius_beta_max=1.0, **ALWAYS)
    weight.grad = torch.full_like(weight, 1e-4)
    with optimizer.perturbed():
        assert torch.allclose(weight.detach().float(), torch.full((4,), 0.501), atol=1e-3)
    assert optimizer.stats()["epsilon_norm"] == pytest.approx(1.0, rel=1e-3)


def test_layer_decay_groups_keep_their_learning_rates() -> None:
    model = timm.create_model("test_vit", num_classes=3)
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    scales = [group["lr_scale"] for group in groups]
    optimizer = create_optimizer_v2(model, opt="rts_pugd", lr=0.1, weight_decay=0.05, layer_decay=0.5, **ALWAYS)
    assert [group["lr_scale"] for group in optimizer.param_groups] == scales
    assert len(optimizer.param_groups) > 2
    x = torch.randn(2, 3, 160, 160)
    model(x).square().mean().backward()
    with optimizer.perturbed():
        model(x).square().mean().backward()
    optimizer.step()


# ---- Schedules, switch, warnings ----


def test_alphas_follow_the_schedules_over_all_steps() -> None:
    net = make_net()
    optimizer = RTSPUGD(net.parameters(), lr=0.01, **SCHEDULES, **{**ALWAYS, "total_steps": 11})
    seen = []
    for batch in make_batches(13):
        loop(net, optimizer, [batch])
        seen.append((optimizer.stats()["alpha_r"], optimizer.stats()["alpha_s"]))
    radius, scale = optimizer.radius_schedule, optimizer.scale_schedule
    assert seen == [(radius(min(t / 10, 1)), scale(min(t / 10, 1))) for t in range(13)]


def test_the_variance_switch_feeds_itself_and_changes_the_phase_at_a_window() -> None:
    net = make_net()
    switch = GradientVarianceSwitch(window=3, init_steps=3, gamma=0.5)
    optimizer = RTSPUGD(net.parameters(), lr=1e-9, switch=switch, total_steps=20)
    twin = GradientVarianceSwitch(window=3, init_steps=3, gamma=0.5)
    norms = [1.0, 5.0, 3.0, 3.0, 3.1, 3.0, 9.0, 1.0, 3.0]
    phases = []
    for norm in norms:
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        net[0].weight.grad[0, 0] = norm
        phases.append(optimizer.phase)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no second pass here
            optimizer.step()
    fired = [twin.observe_norm(norm) for norm in norms]
    assert fired.index(True) == 3  # the statistic fires with the fourth norm ...
    assert phases.index("pugd") == 6  # ... and the phase follows when the window is read
    assert optimizer.switch_step == 6


def test_the_gap_switch_listens_to_losses() -> None:
    net = make_net()
    optimizer = RTSPUGD(net.parameters(), lr=0.1, switch="generalization_gap", switch_base_epochs=1, switch_every=1)
    assert not optimizer.observe_losses(1.0, 1.1)
    assert optimizer.phase == "sgd"
    assert optimizer.observe_losses(train_loss=0.5, eval_loss=1.1)
    assert optimizer.phase == "pugd"
    assert optimizer.perturbing


def test_unknown_horizon_warns_once_and_stands_at_the_start() -> None:
    net = make_net()
    optimizer = RTSPUGD(net.parameters(), lr=0.01, **SCHEDULES, switch="fixed", switch_at=0)
    with pytest.warns(UserWarning, match="total_steps is unknown") as caught:
        loop(net, optimizer, make_batches(4))
    assert len(caught) == 1
    assert optimizer.stats()["alpha_r"] == optimizer.radius_schedule(0)
    optimizer.total_steps = 8
    loop(net, optimizer, make_batches(1))
    assert optimizer.stats()["alpha_r"] == optimizer.radius_schedule(4 / 7)


def test_a_switch_that_cannot_fire_warns() -> None:
    with pytest.warns(UserWarning, match="will never perturb: FixedSwitch"):
        RTSPUGD(make_net().parameters(), lr=0.1, switch=FixedSwitch(50), total_steps=50)
    with pytest.warns(UserWarning, match="will never perturb: GradientVarianceSwitch"):
        RTSPUGD(make_net().parameters(), lr=0.1, switch="gradient_variance", total_steps=20)


def test_stats_are_plain_numbers() -> None:
    net = make_net()
    optimizer = RTSPUGD(net.parameters(), lr=0.1, **ALWAYS)
    for expected_step in range(2):
        stats = optimizer.stats()
        assert {type(value) for value in stats.values()} <= {int, float}
        assert stats["step"] == expected_step
        loop(net, optimizer, make_batches(1))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"radius": "linear"}, ValueError, "radius='linear' is unknown"),
        ({"radius_beta_min": 3.0}, ValueError, "radius_beta_min=3.0 is greater than radius_beta_max=1.0"),
        ({"scale": "inverse_sine_annealing"}, ValueError, "scale_beta_min=0.0 makes inverse_sine_annealing infinite"),
        ({"scale_beta_max": float("inf")}, ValueError, "scale_beta_max=inf"),
        ({"switch": "never"}, ValueError, "switch='never' is unknown"),
        ({"switch": "gradient_variance", "switch_window": 1}, ValueError, "window=1"),
        ({"switch_mu": 1.0}, ValueError, "switch_mu=1.0 is not a setting of switch='fixed'"),
        ({"perturb_every": 0}, ValueError, "perturb_every=0"),
        ({"total_steps": 0}, ValueError, "total_steps=0"),
        ({"total_steps": 1.5}, ValueError, "total_steps=1.5"),
        ({"base": "adamz"}, ValueError, "base='adamz'"),
        ({"base": "rts_pugd"}, ValueError, "itself a two-pass optimizer"),
        ({"base": "sam"}, ValueError, "itself a two-pass optimizer"),
        ({"base": "lookahead_sgd"}, ValueError, "lookahead_rts_pugd"),
        ({"base": "adahessian"}, ValueError, "differentiates the gradient"),
        ({"method": "gsam"}, ValueError, "method='gsam'"),
        ({"radios": 0.1}, TypeError, "radios"),
        ({"lr": -1.0}, ValueError, "learning rate"),
    ],
)
def test_bad_settings(settings: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RTSPUGD(make_net().parameters(), **{"lr": 0.1, **settings})


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


@pytest.mark.parametrize("opt", ["rts_pugd", "pugd", "plainpugd", "sam", "asam", "lookahead_rts_pugd"])
@pytest.mark.parametrize("base", ["sgd", "adamw", "nadamw", "lion"])
@pytest.mark.parametrize("strided", [False, True])
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
