"""The sharpness that a run's record holds: of every run on the same terms, and cheap beside the training."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset

from rts_hf.sharpness import hessian_eigenvalue, worst_case_increase

# Fixed, so that figures of different runs on the same data can be compared. On the digits they cost a few seconds.
IMAGES = 128
ITERATIONS, TOLERANCE = 40, 0.001
RADIUS, BALL, STEPS = 0.2, "adaptive", 4
SEED = 0
BATCH_IMAGES, BATCH_PIXELS = 128, 2**20  # at most: second derivatives take several times the memory of a gradient


def measure_run_sharpness(
    model: nn.Module, train: Dataset[Any], *, image_size: int, device: torch.device | str = "cpu"
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
    """
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return None, "Sharpness was not measured: the weights are sharded over processes."
    total: int = len(train)  # type: ignore[arg-type]
    count = min(total, IMAGES)
    chosen = [index * total // count for index in range(count)]
    size = min(BATCH_IMAGES, max(BATCH_PIXELS // image_size**2, 1))
    read: Any = train
    batches = [
        {name: tensor.to(device) for name, tensor in read.__getitems__(chosen[start : start + size]).tensors.items()}
        for start in range(0, count, size)
    ]
    try:
        curvature = hessian_eigenvalue(model, batches, iterations=ITERATIONS, tolerance=TOLERANCE, seed=SEED)
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


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
