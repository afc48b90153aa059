"""RTSPUGD and everything that a model's parameters and gradients can throw at it."""

import pytest
import timm
import torch
from optimizer_for_tests import ALWAYS, assert_equal, loop, loss_of, make_batches, make_net, weights
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import Tensor, nn

from rts_hf import PAPER, RTSPUGD


def test_frozen_parameters_and_missing_gradients() -> None:
    """A parameter without a first gradient is not perturbed; a gradient from either pass alone counts."""
    a, b, frozen = (nn.Parameter(torch.tensor([value], dtype=torch.float64)) for value in (1.0, 2.0, 3.0))
    frozen.requires_grad_(False)
    settings = {**PAPER, **ALWAYS, "radius_beta_max": 1.0, "momentum": 0}
    optimizer = RTSPUGD([{"params": []}, {"params": [a, b, frozen]}], lr=1.0, base="momentum", **settings)
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
