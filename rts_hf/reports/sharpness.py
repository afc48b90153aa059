"""How sharp a trained model's minimum is: the Hessian's largest eigenvalue, and the worst loss nearby."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset

Batch = Mapping[str, Tensor]
# Sum, not mean, of the losses of a batch's images, so that batches of any size add up to the whole data's mean.
LossSum = Callable[[nn.Module, Batch], Tensor]

BALLS = ("adaptive", "plain")
ASCENT_STEP = 3.0  # length of a step of the ascent, in radii: the longer, the fewer it takes where the loss is convex
RANDOM_SHARE = 0.1  # of the random vector beside the gradient in the vector that the power iteration starts from


class HessianEigenvalue(NamedTuple):
    """The largest eigenvalue of the Hessian.

    Args:
        value: λ_max, in units of the loss.
        iterations: Hessian-vector products it took, each a pass over all batches.
        converged: Whether the last one changed λ by at most the tolerance.
    """

    value: float
    iterations: int
    converged: bool


class WorstCase(NamedTuple):
    """The largest loss that was found in a ball around the weights.

    Args:
        increase: ``L(w + ε) − L(w)``, at least 0, in units of the loss.
        loss: ``L(w)``.
        radius: ρ of the ball.
        ball: One of :data:`BALLS`.
        steps: Steps of gradient ascent.
    """

    increase: float
    loss: float
    radius: float
    ball: str
    steps: int


def cross_entropy_sum(model: nn.Module, batch: Batch) -> Tensor:
    """Return the cross-entropy of a classifier, summed over the images of a batch, in nats.

    Args:
        model: Gives logits ``(B, C)``, or an object that has them as ``logits``.
        batch: ``pixel_values`` as the model takes them, and int64 ``labels`` ``(B,)``.
    """
    outputs = model(batch["pixel_values"])
    logits = getattr(outputs, "logits", outputs)
    return F.cross_entropy(logits.float(), batch["labels"], reduction="sum")


def hessian_eigenvalue(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    iterations: int = 20,
    tolerance: float = 1e-2,
    seed: int = 0,
    loss_sum: LossSum = cross_entropy_sum,
) -> HessianEigenvalue:
    """Return the largest eigenvalue of the Hessian of the mean loss at the model's weights, by power iteration.

    ``v ← Hv / ‖Hv‖``, ``λ = vᵀHv``, until ``|λ − λ_before| ≤ tolerance · |λ|``. The products ``Hv`` are exact: the
    gradient of ``gᵀv``. It starts from the gradient's direction, which leans to the eigenvectors of large eigenvalues
    and saves most of the iterations, with a tenth of a random one. λ is never more than the largest eigenvalue, up to
    rounding. Where the eigenvalue of largest size is negative, the iteration begins anew on ``H + |λ|·I``, whose
    largest one is that of H's largest, shifted.

    The model is in eval mode meanwhile, so that BatchNorm and dropout stand still; its gradients and torch's random
    generators are left alone.

    >>> import torch
    >>> model = torch.nn.Linear(3, 1, bias=False)  # the loss ½·(4·w₁² + 2·w₂² + w₃²), whose Hessian is diagonal
    >>> loss = lambda model, batch: 0.5 * (torch.tensor([4.0, 2.0, 1.0]) * model.weight**2).sum()
    >>> found = hessian_eigenvalue(model, [{"labels": torch.zeros(1)}], tolerance=1e-6, loss_sum=loss)
    >>> round(found.value, 3), found.converged
    (4.0, True)

    Args:
        model: Its parameters that need a gradient are the weights w.
        batches: The data, on the model's device; read once an iteration and once before. Their sizes may differ.
        iterations: At most this many products, and as many again after a negative eigenvalue; at least 1.
        tolerance: Relative change of λ at which to stop, above 0.
        seed: Of the random part of the vector to start from.
        loss_sum: Sum of the losses of a batch, whose size is that of ``labels``.

    Raises:
        ValueError: If an argument is outside its range, the batches are empty or can be read only once, or no
            parameter needs a gradient.
        RuntimeError: If an operation of the model cannot be differentiated twice.

    Source: Yao et al., PyHessian, 2020 (arXiv 1912.07145), for the method.
    """
    if iterations < 1 or not tolerance > 0:
        raise ValueError(
            f"iterations={iterations!r} must be at least 1, and tolerance={tolerance!r} greater than 0, e.g. 1e-2."
        )
    weights, count = _weights(model), _count(batches)
    with _standing_still(model):

        def product(vector: list[Tensor]) -> list[Tensor]:
            return _hessian_product(model, batches, count, weights, vector, loss_sum)

        _, start = _loss_and_gradient(model, batches, count, weights, loss_sum)
        torch._foreach_div_(start, _norm(start) or 1.0)
        _add_(start, _random_direction(weights, seed), RANDOM_SHARE)
        torch._foreach_div_(start, _norm(start))
        first = _power_iteration(product, start, 0.0, iterations, tolerance)
        if not first.value < 0:
            return first
        second = _power_iteration(product, start, -first.value, iterations, tolerance)
    return second._replace(iterations=first.iterations + second.iterations)


def worst_case_increase(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    radius: float,
    ball: str = "adaptive",
    steps: int = 5,
    seed: int = 0,
    loss_sum: LossSum = cross_entropy_sum,
) -> WorstCase:
    """Return ``max L(w + ε) − L(w)`` over a ball, as far as projected gradient ascent finds it.

    With ``ε = s⊙δ`` and ``‖δ‖₂ ≤ ρ``, the norm over all weights together:

    - ``plain``: ``s = 1``, the ball ``‖ε‖₂ ≤ ρ`` of SAM. PUGD's own ε, which is ``ρ·|w|⊙g / ‖|w|⊙g‖``, lies in it.
    - ``adaptive``: ``s = |w|``, the ball ``‖ε/|w|‖₂ ≤ ρ`` of ASAM: weights change by shares of themselves, so that
      scaling one layer up and the next one down changes nothing. A weight of zero stays.

    Ascent: ``δ ← Π(δ + 3ρ · h/‖h‖)`` with ``h = s⊙∇L(w + s⊙δ)`` and Π the projection onto the ball. The first step is
    SAM's or ASAM's own ε. The result is the best of all steps and of ε = 0: more steps never lower it. Where h is zero
    the direction is random. The weights are put back bit for bit, whatever happens; the model is in eval mode
    meanwhile, and its gradients and torch's random generators are left alone.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1, bias=False)  # the loss w₁ + w₂, whose worst case at distance 1 is √2 worse
    >>> loss = lambda model, batch: model.weight.sum()
    >>> found = worst_case_increase(model, [{"labels": torch.zeros(1)}], radius=1.0, ball="plain", loss_sum=loss)
    >>> round(found.increase, 4)
    1.4142

    Args:
        model: Its parameters that need a gradient are the weights w.
        batches: The data, on the model's device; read ``steps + 1`` times.
        radius: ρ, finite and greater than 0.
        ball: One of :data:`BALLS`.
        steps: Steps of ascent, at least 1.
        seed: Of the random direction.
        loss_sum: As for :func:`hessian_eigenvalue`.

    Returns:
        The increase is infinite or NaN where a loss is.

    Raises:
        ValueError: If an argument is outside its range, the batches are empty or can be read only once, or no
            parameter needs a gradient.

    Source: Foret et al., ICLR 2021 (plain); Kwon et al., ICML 2021 (adaptive).
    """
    if ball not in BALLS:
        raise ValueError(f"ball={ball!r} is unknown; choose one of {', '.join(BALLS)}.")
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius={radius!r} must be a finite number greater than 0, for instance 0.5.")
    if steps < 1:
        raise ValueError(f"steps={steps!r} must be at least 1.")
    weights, count = _weights(model), _count(batches)
    saved = [weight.detach().clone() for weight in weights]
    scales = [weight.abs() if ball == "adaptive" else torch.ones_like(weight) for weight in saved]
    delta = [torch.zeros_like(weight) for weight in saved]
    losses: list[float] = []
    with _standing_still(model):
        try:
            for _ in range(steps):
                loss, gradient = _loss_and_gradient(model, batches, count, weights, loss_sum)
                losses.append(loss)
                direction = torch._foreach_mul(gradient, scales)
                if _norm(direction) == 0:
                    direction = torch._foreach_mul(_random_direction(weights, seed), scales)
                _add_(delta, direction, ASCENT_STEP * radius / (_norm(direction) or 1.0))
                torch._foreach_mul_(delta, min(radius / (_norm(delta) or 1.0), 1.0))
                _set(weights, torch._foreach_add(saved, torch._foreach_mul(delta, scales)))
            losses.append(_loss(model, batches, count, loss_sum))
        finally:
            _set(weights, saved)
    increases = [loss - losses[0] for loss in losses]
    is_whole = all(map(math.isfinite, increases))
    return WorstCase(max(increases) if is_whole else sum(increases), losses[0], radius, ball, steps)


def _power_iteration(
    product: Callable[[list[Tensor]], list[Tensor]],
    vector: list[Tensor],
    shift: float,
    iterations: int,
    tolerance: float,
) -> HessianEigenvalue:
    """Return the eigenvalue of H for which ``λ + shift`` is the one of largest size."""
    value = math.nan
    for iteration in range(1, iterations + 1):
        image = product(vector)
        before, value = value, _dot(vector, image)
        _add_(image, vector, shift)
        size = _norm(image)
        if not math.isfinite(size) or size == 0:  # of a zero vector the direction is lost: H is zero on it
            return HessianEigenvalue(value, iteration, size == 0)
        vector = list(torch._foreach_div(image, size))
        if abs(value - before) <= tolerance * abs(value):
            return HessianEigenvalue(value, iteration, True)
    return HessianEigenvalue(value, iterations, False)


def _hessian_product(
    model: nn.Module, batches: Iterable[Batch], count: int, weights: list[Tensor], vector: list[Tensor], loss: LossSum
) -> list[Tensor]:
    total = [torch.zeros_like(weight) for weight in weights]
    for batch in batches:
        with torch.enable_grad():
            gradient = torch.autograd.grad(
                loss(model, batch) / count, weights, create_graph=True, materialize_grads=True
            )
            pairs = [(g, v) for g, v in zip(gradient, vector, strict=True) if g.requires_grad]
            if not pairs:
                continue  # a loss that is linear in the weights
            product = torch.autograd.grad(
                [g for g, _ in pairs], weights, grad_outputs=[v for _, v in pairs], materialize_grads=True
            )
        torch._foreach_add_(total, list(product))
    return total


def _loss_and_gradient(
    model: nn.Module, batches: Iterable[Batch], count: int, weights: list[Tensor], loss_sum: LossSum
) -> tuple[float, list[Tensor]]:
    total, gradient = 0.0, [torch.zeros_like(weight) for weight in weights]
    for batch in batches:
        with torch.enable_grad():
            loss = loss_sum(model, batch)
            parts = torch.autograd.grad(loss / count, weights, materialize_grads=True)
        torch._foreach_add_(gradient, list(parts))
        total += loss.item()
    return total / count, gradient


@torch.no_grad()
def _loss(model: nn.Module, batches: Iterable[Batch], count: int, loss_sum: LossSum) -> float:
    return sum(loss_sum(model, batch).item() for batch in batches) / count


@contextmanager
def _standing_still(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode, with attention that can be differentiated twice, and back as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _weights(model: nn.Module) -> list[Tensor]:
    weights: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not weights:
        raise ValueError(f"model {type(model).__name__} has no parameter that needs a gradient, so no sharpness.")
    return weights


def _count(batches: Iterable[Any]) -> int:
    """Return the number of images, having made sure that they can be read again and again."""
    if iter(batches) is batches:
        raise ValueError("batches can be read only once, but several passes are made; give a list or a DataLoader.")
    count = sum(len(batch["labels"]) for batch in batches)
    if count == 0:
        raise ValueError("batches hold no image; give one at least.")
    return count


def _random_direction(weights: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Return a seeded random vector of norm 1; drawn on the CPU, so that all devices start from the same."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(weight.shape, generator=generator).to(weight) for weight in weights]
    return list(torch._foreach_div(drawn, _norm(drawn)))


def _norm(tensors: Sequence[Tensor]) -> float:
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t.float()) for t in tensors])).item()


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return torch.stack([(a.float() * b.float()).sum() for a, b in zip(one, other, strict=True)]).sum().item()


def _add_(targets: list[Tensor], sources: Sequence[Tensor], factor: float) -> None:
    torch._foreach_add_(targets, list(sources), alpha=factor)


@torch.no_grad()
def _set(weights: list[Tensor], values: Sequence[Tensor]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)


# Fixed, so that figures of different runs on the same data can be compared. On the digits they cost a few seconds.
IMAGES = 128
ITERATIONS, TOLERANCE = 40, 0.001
RADIUS, BALL, STEPS = 0.2, "adaptive", 4
SEED = 0
BATCH_IMAGES, BATCH_PIXELS = 128, 2**20  # at most: second derivatives take several times the memory of a gradient
# Where time is short: the fewest images and products, and what a product takes in gradients of as many images.
LEAST_IMAGES, LEAST_ITERATIONS = 16, 12
PRODUCT_IN_GRADIENTS = 4


def measure_run_sharpness(
    model: nn.Module,
    train: Dataset[Any],
    *,
    image_size: int,
    device: torch.device | str = "cpu",
    seconds: float = math.inf,
    tell: Callable[[str], None] | None = None,
) -> tuple[dict[str, Any] | None, str | None]:
    """Return the sharpness of a trained classifier as the record holds it, and, where it has none, why not.

    ``hessian_eigenvalue`` (λ_max of the mean cross-entropy's Hessian, in nats, with ``hessian_iterations`` and whether
    it ``hessian_converged``: it changed by at most 0.1 % in the last of them), ``worst_case_increase`` (``L(w + ε) −
    L(w)`` in nats at the worst point that ``steps`` of gradient ascent find in the ``ball`` of ``radius``), ``loss``
    (``L(w)``), ``images`` and their ``split``. What is not finite is None. Torch's random generators are left alone,
    and the same weights give the same numbers.

    Args:
        model: The classifier, not wrapped, on ``device``.
        train: Training images without augmentation, with the labels they were trained on; at most 128 of them are
            used, evenly over the data set.
        image_size: Their side in pixels.
        device: Where the model is.
        seconds: That it may take, by the time of a gradient: with fewer images or products of the Hessian, or None
            where 16 images and 12 products take longer.
        tell: Is told what is measured, and about how long it takes at most.
    """
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return None, "Sharpness was not measured: the weights are sharded over processes."
    if seconds <= 0:
        return None, "Sharpness was not measured: a tenth of the run leaves no time; --measure_sharpness measures it."
    total: int = len(train)  # type: ignore[arg-type]
    count, iterations, least = min(total, IMAGES), ITERATIONS, 0.0
    if tell is not None or not math.isinf(seconds):
        image_seconds = _seconds_of_an_image(model, train, min(total, LEAST_IMAGES), device)
        more = [size for size in _sizes(total) if 20 * size * image_seconds < seconds]
        if more:  # of many images each takes less
            image_seconds = _seconds_of_an_image(model, train, more[0], device)
        count, iterations = _affordable(total, seconds / image_seconds)
        least = _gradients(max(count, min(total, LEAST_IMAGES)), iterations or LEAST_ITERATIONS) * image_seconds
    if not iterations:
        return None, (
            f"Sharpness was not measured: on {min(total, LEAST_IMAGES)} images it would take about {least:.1f} s, "
            f"longer than the {seconds:.1f} s that a tenth of the run leaves for it; --measure_sharpness measures it."
        )
    if tell is not None:
        tell(f"Measuring sharpness on {count} training images, {least:.1f} s at most")
    chosen = [index * total // count for index in range(count)]
    size = min(BATCH_IMAGES, max(BATCH_PIXELS // image_size**2, 1))
    read: Any = train
    batches = [read.__getitems__(chosen[start : start + size]).to(device) for start in range(0, count, size)]
    try:
        curvature = hessian_eigenvalue(model, batches, iterations=iterations, tolerance=TOLERANCE, seed=SEED)
        worst = worst_case_increase(model, batches, radius=RADIUS, ball=BALL, steps=STEPS, seed=SEED)
    except RuntimeError as error:  # no second derivative, or no memory for it: no reason to lose a finished run
        return None, f"Sharpness was not measured: {str(error).splitlines()[0]}"
    return {
        "hessian_eigenvalue": _finite(curvature.value),
        "hessian_iterations": curvature.iterations,
        "hessian_converged": curvature.converged,
        "worst_case_increase": _finite(worst.increase),
        "loss": _finite(worst.loss),
        "radius": worst.radius,
        "ball": worst.ball,
        "steps": worst.steps,
        "images": count,
        "split": "train",
    }, None


def _seconds_of_an_image(model: nn.Module, train: Any, images: int, device: torch.device | str) -> float:
    """Return the seconds that the gradient of an image takes, the second time that it is asked for."""
    batch = train.__getitems__([*range(images)]).to(device)
    weights = _weights(model)
    with _standing_still(model):
        for _ in range(2):
            started = time.perf_counter()
            _loss_and_gradient(model, [batch], images, weights, cross_entropy_sum)  # which waits for the device
            seconds = time.perf_counter() - started
    return seconds / images


def _gradients(images: int, iterations: int) -> int:
    """Return what a measurement takes, in gradients of one image; the steps of the ascent take two each."""
    return images * (PRODUCT_IN_GRADIENTS * iterations + 2 * STEPS + 3)


def _sizes(total: int) -> list[int]:
    """Return how many of the images there are may be used, most first."""
    return [min(total, IMAGES >> halvings) for halvings in range(4)]


def _affordable(total: int, gradients: float) -> tuple[int, int]:
    """Return the images and the products of the Hessian that so many gradients of one image allow; 0 for none.

    >>> _affordable(1000, 1e6), _affordable(1000, 5000), _affordable(1000, 500)
    ((128, 40), (64, 16), (16, 0))

    Args:
        total: Images that there are.
        gradients: That may be taken.
    """
    for count in _sizes(total):
        iterations = (gradients / count - 2 * STEPS - 3) / PRODUCT_IN_GRADIENTS
        if iterations >= LEAST_ITERATIONS:
            return count, int(min(iterations, ITERATIONS))
    return min(total, LEAST_IMAGES), 0


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
