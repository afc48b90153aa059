"""Sharpness against what is known exactly: quadratics, and the dense Hessian of small networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rts_hf.reports.sharpness import BALLS, hessian_eigenvalue, worst_case_increase

ONE = [{"labels": torch.zeros(1)}]  # for losses that read no data


class Quadratic(nn.Module):
    """The loss ``½·wᵀAw + bᵀw + c`` of weights in two tensors."""

    def __init__(self, matrix: np.ndarray, slope: np.ndarray, weights: np.ndarray) -> None:
        super().__init__()
        self.matrix, self.slope = torch.tensor(matrix), torch.tensor(slope)
        self.first, self.second = (nn.Parameter(torch.tensor(part)) for part in (weights[:2], weights[2:]))

    def loss(self) -> Tensor:
        w = torch.cat([self.first, self.second])
        return 0.5 * w @ self.matrix @ w + self.slope @ w


def quadratic_loss(model: Any, batch: Any) -> Tensor:
    return model.loss() * len(batch["labels"])


def symmetric(eigenvalues: list[float], seed: int = 0) -> np.ndarray:
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))
    return basis @ np.diag(eigenvalues) @ basis.T


def largest_in_ball(matrix: np.ndarray, slope: np.ndarray, radius: float) -> float:
    """Return ``max ½·εᵀAε + bᵀε`` over ``‖ε‖ ≤ ρ``, A positive: ``ε = (μI − A)⁻¹b`` with μ > λ_max so that ‖ε‖ = ρ."""
    values, vectors = np.linalg.eigh(matrix)
    parts = vectors.T @ slope
    low, high = values[-1], values[-1] + np.linalg.norm(slope) / radius
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.linalg.norm(parts / (middle - values)) > radius else (low, middle)
    epsilon = parts / (high - values)
    return float(0.5 * np.sum(values * epsilon**2) + parts @ epsilon)


def classifier(seed: int = 0) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """A small network with BatchNorm and dropout, and 24 images in uneven batches."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 4)
    )
    images, labels = torch.randn(24, 1, 4, 4), torch.randint(4, (24,))
    model[1].running_mean += 0.3
    cuts = [(0, 16), (16, 21), (21, 24)]
    return model, [{"pixel_values": images[a:b], "labels": labels[a:b]} for a, b in cuts]


def dense_hessian(model: nn.Module, batches: list[dict[str, Tensor]]) -> np.ndarray:
    names = [name for name, _ in model.named_parameters()]
    shapes = [parameter.shape for parameter in model.parameters()]
    images, labels = (torch.cat([batch[key] for batch in batches]) for key in ("pixel_values", "labels"))
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    model.eval()

    def loss(vector: Tensor) -> Tensor:
        pieces = vector.split([shape.numel() for shape in shapes])
        weights = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        return cross_entropy(torch.func.functional_call(model, weights, (images,)), labels)

    return torch.func.hessian(loss)(flat).numpy()


@pytest.mark.parametrize("eigenvalues", [[5.0, 2.0, 1.0, 0.5, 0.1], [3.0, 3.0, 1.0, 0.0, -1.0]])
@pytest.mark.parametrize("at_minimum", [True, False])
def test_eigenvalue_of_a_quadratic(eigenvalues: list[float], at_minimum: bool) -> None:
    slope = np.zeros(5) if at_minimum else np.arange(5.0)
    model = Quadratic(symmetric(eigenvalues), slope, np.zeros(5))
    found = hessian_eigenvalue(model, ONE, iterations=200, tolerance=1e-9, loss_sum=quadratic_loss)
    assert found.value == pytest.approx(eigenvalues[0], rel=1e-5)
    assert found.converged
    assert found.iterations < 200


def test_eigenvalue_below_one_of_larger_size() -> None:
    model = Quadratic(symmetric([0.7, 0.2, 0.1, -1.0, -4.0]), np.ones(5), np.zeros(5))
    found = hessian_eigenvalue(model, ONE, iterations=300, tolerance=1e-7, loss_sum=quadratic_loss)
    assert found.value == pytest.approx(0.7, rel=1e-3)
    negative = Quadratic(symmetric([-0.5, -1.0, -2.0, -3.0, -4.0]), np.ones(5), np.zeros(5))
    found = hessian_eigenvalue(negative, ONE, iterations=300, tolerance=1e-7, loss_sum=quadratic_loss)
    assert found.value == pytest.approx(-0.5, rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_eigenvalue_of_a_network_is_that_of_its_dense_hessian(seed: int) -> None:
    model, batches = classifier(seed)
    found = hessian_eigenvalue(model, batches, iterations=500, tolerance=1e-6)
    assert found.value == pytest.approx(np.linalg.eigvalsh(dense_hessian(model, batches))[-1], rel=1e-3)
    assert found.converged


def test_eigenvalue_stops_at_the_limit_and_says_so() -> None:
    model, batches = classifier()
    found = hessian_eigenvalue(model, batches, iterations=2, tolerance=1e-9)
    assert (found.iterations, found.converged) == (2, False)
    true = np.linalg.eigvalsh(dense_hessian(model, batches))[-1]
    assert 0 < found.value <= true * (1 + 1e-5)


def test_loss_that_is_linear_has_no_curvature() -> None:
    model = nn.Linear(3, 1)
    found = hessian_eigenvalue(model, ONE, loss_sum=lambda m, _: m.weight.sum() + m.bias.sum())
    assert (found.value, found.converged) == (0.0, True)


@pytest.mark.parametrize("radius", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("at_minimum", [True, False])
@pytest.mark.parametrize("ball", BALLS)
def test_worst_case_of_a_quadratic(radius: float, at_minimum: bool, ball: str) -> None:
    matrix, weights = symmetric([5.0, 2.0, 1.0, 0.5, 0.1]), np.array([0.5, -2.0, 1.0, 0.1, -0.3])
    model = Quadratic(matrix, -matrix @ weights + (0 if at_minimum else np.arange(5.0)), weights)
    found = worst_case_increase(model, ONE, radius=radius, ball=ball, steps=100, loss_sum=quadratic_loss)
    scales = np.diag(np.abs(weights)) if ball == "adaptive" else np.eye(5)
    slope = scales @ (matrix @ weights + model.slope.numpy())
    inside = scales @ matrix @ scales
    expected = (
        0.5 * radius**2 * np.linalg.eigvalsh(inside)[-1] if at_minimum else largest_in_ball(inside, slope, radius)
    )
    assert found.increase == pytest.approx(expected, rel=1e-4)
    assert (found.radius, found.ball, found.steps) == (radius, ball, 100)


@pytest.mark.parametrize("ball", BALLS)
def test_more_steps_never_lower_the_worst_case(ball: str) -> None:
    model, batches = classifier()
    found = [worst_case_increase(model, batches, radius=0.5, ball=ball, steps=s).increase for s in (1, 2, 3, 5, 9)]
    assert found == sorted(found)
    assert found[0] > 0


def test_adaptive_worst_case_does_not_change_when_layers_are_rescaled() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False))
    batches = [{"pixel_values": torch.randn(9, 6), "labels": torch.arange(9) % 3}]
    found: dict[str, list[float]] = {ball: [] for ball in BALLS}
    for _ in range(2):
        for ball in BALLS:
            found[ball].append(worst_case_increase(model, batches, radius=0.2, ball=ball).increase)
        with torch.no_grad():
            model[0].weight *= 4
            model[2].weight /= 4
    assert found["adaptive"][0] == pytest.approx(found["adaptive"][1], rel=1e-4)
    assert found["plain"][0] != pytest.approx(found["plain"][1], rel=0.1)


@pytest.mark.parametrize("measure", [hessian_eigenvalue, partial(worst_case_increase, radius=0.5)])
def test_nothing_is_left_changed_and_the_same_comes_out_again(measure: Callable[..., Any]) -> None:
    model, batches = classifier()
    model.train()
    model[1].eval()
    model[5].bias.grad = torch.ones(4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    first = measure(model, batches)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model] == [True, False, True, True, True, True]
    assert torch.equal(model[5].bias.grad, torch.ones(4))
    assert model[0].weight.grad is None
    assert measure(model, batches) == first
    joined = {key: torch.cat([batch[key] for batch in batches]) for key in ("pixel_values", "labels")}
    again = measure(model, [joined])
    assert again[0] == pytest.approx(first[0], rel=1e-4), "batches are only a way to read the data"


def test_weights_come_back_when_it_fails() -> None:
    model, batches = classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls = []

    def failing(model: Any, batch: Any) -> Tensor:
        calls.append(batch)
        if len(calls) == 5:
            raise RuntimeError("no memory")
        return cross_entropy(model(batch["pixel_values"]), batch["labels"], reduction="sum")

    with pytest.raises(RuntimeError, match="no memory"):
        worst_case_increase(model, batches, radius=0.5, loss_sum=failing)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


def test_losses_that_are_not_finite_give_no_number() -> None:
    model, batches = classifier()
    with torch.no_grad():
        model[5].bias[0] = math.nan
    found = hessian_eigenvalue(model, batches)
    assert math.isnan(found.value)
    assert not found.converged
    assert math.isnan(worst_case_increase(model, batches, radius=0.5).increase)


def test_attention_and_what_needs_no_gradient() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3, img_size=16, patch_size=8)
    for parameter in model.blocks.parameters():
        parameter.requires_grad_(False)
    model.blocks[-1].requires_grad_(True)
    batches = [{"pixel_values": torch.randn(4, 3, 16, 16), "labels": torch.tensor([0, 1, 2, 0])}]
    assert hessian_eigenvalue(model, batches, iterations=3).value > 0
    assert worst_case_increase(model, batches, radius=0.5, steps=2).increase > 0


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda m, b: hessian_eigenvalue(m, b, iterations=0), "iterations=0"),
        (lambda m, b: hessian_eigenvalue(m, b, tolerance=0.0), "tolerance=0.0"),
        (lambda m, b: hessian_eigenvalue(m, iter(b)), "only once"),
        (lambda m, b: hessian_eigenvalue(m, []), "no image"),
        (lambda m, b: hessian_eigenvalue(nn.ReLU(), b), "ReLU has no parameter"),
        (lambda m, b: worst_case_increase(m, b, radius=0.0), "radius=0.0"),
        (lambda m, b: worst_case_increase(m, b, radius=math.inf), "radius=inf"),
        (lambda m, b: worst_case_increase(m, b, radius=1.0, ball="cube"), "choose one of adaptive, plain"),
        (lambda m, b: worst_case_increase(m, b, radius=1.0, steps=0), "steps=0"),
    ],
)
def test_illegal_arguments_are_named(measure: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(*classifier())
