"""What a second pass runs over: the micro-batches of an update again, or a share of each one's images."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rts_hf.optim.second_pass import RandomState


def images_taken(fraction: float, images: int) -> int:
    """Return of how many of a micro-batch's images a second pass takes the gradient: ``⌈fraction · images⌉``.

    >>> images_taken(0.5, 5), images_taken(0.07, 100), images_taken(1.0, 5)
    (3, 7, 5)

    Args:
        fraction: In (0, 1].
        images: At least 1.
    """
    return max(1, math.ceil(round(fraction * images, 9)))  # in floats, 0.07 · 100 is a little more than 7


def share_taken(fraction: float, images: int) -> float:
    """Return what a second pass costs of a whole gradient evaluation, where every micro-batch has so many images.

    >>> share_taken(0.5, 8), share_taken(0.5, 5)
    (0.5, 0.6)

    Args:
        fraction, images: As for :func:`images_taken`.
    """
    return images_taken(fraction, images) / images


def classes_of(labels: Tensor) -> Tensor:
    """Return labels (N, 1) as (N,), and others as they are."""
    is_column = labels.ndim == 2 and labels.shape[1] == 1 and not labels.is_floating_point()
    return labels[:, 0] if is_column else labels


def is_soft(labels: Any) -> bool:
    """Return whether labels are shares of the classes (N, C), as MixUp, CutMix and smoothing make them."""
    return isinstance(labels, Tensor) and labels.ndim == 2 and labels.is_floating_point()


def first_images(inputs: dict[str, Any], fraction: float) -> dict[str, Any]:
    """Return a micro-batch's inputs with the images that a second pass takes: the first ones.

    The first dimension of the labels, or without them of the first tensor, is the number of images. Tensors and lists
    of this length are cut; all else stays as it is.

    Args:
        inputs: Of the model, by name.
        fraction: As for :func:`images_taken`.
    """
    if fraction == 1 or not isinstance(inputs, Mapping):
        return inputs
    tensors = [value for value in (inputs.get("labels"), *inputs.values()) if isinstance(value, Tensor) and value.ndim]
    if not tensors or not len(tensors[0]):
        return inputs
    images = len(tensors[0])
    taken = images_taken(fraction, images)

    def cut(value: Any) -> Any:
        is_per_image = value.ndim > 0 if isinstance(value, Tensor) else isinstance(value, list | tuple)
        return value[:taken] if is_per_image and len(value) == images else value

    return {name: cut(value) for name, value in inputs.items()}


class OperationCounts:
    """The operations of a pass over a batch, counted once for each shape: to count takes a walk over the parameters."""

    def __init__(self) -> None:
        self._counts: dict[tuple[tuple[str, torch.Size], ...], int] = {}

    def of(self, inputs: dict[str, Any], count: Callable[[dict[str, Any]], int]) -> int:
        """Return what ``count`` returns for these inputs, or returned for others of their shapes."""
        shapes = tuple((name, value.shape) for name, value in inputs.items() if isinstance(value, Tensor))
        if shapes not in self._counts:
            self._counts[shapes] = count(inputs)
        return self._counts[shapes]


def replay(
    window: Sequence[tuple[dict[str, Any], RandomState | None]],
    run: Callable[[dict[str, Any]], Tensor],
    model: nn.Module,
    accelerator: Accelerator,
) -> Tensor | float:
    """Run once more over the micro-batches of an update, and return the sum of their losses.

    Gradients are synchronized on the last one only.

    Args:
        window: Inputs of each, and the random state to draw from (None: the present one).
        run: Computes the loss and the gradients of one, and returns the loss.
        model: As accelerate has wrapped it.
        accelerator: Whose gradients are accumulated.
    """
    gradient_state = accelerator.gradient_state
    total: Tensor | float = 0.0
    try:
        for position, (inputs, state) in enumerate(window):
            is_last = position == len(window) - 1
            # no_sync keeps gradients local; the flag tells accelerate's own wrappers the same
            gradient_state._set_sync_gradients(is_last)
            local = contextlib.nullcontext() if is_last else accelerator.no_sync(model)
            random = contextlib.nullcontext() if state is None else state.replayed()
            with local, random:
                total = total + run(inputs)
    finally:
        gradient_state._set_sync_gradients(True)
    return total


def check_perturb_fraction(fraction: Any, images: int) -> None:
    """Refuse what is no share of a micro-batch's images, or one that is rounded up to all of them.

    Args:
        fraction: Of each micro-batch.
        images: In a whole micro-batch.

    Raises:
        ValueError: With what is legal.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        raise ValueError(
            f"perturb_fraction={fraction!r} must be a number greater than 0 and at most 1, such as 0.5; 1 runs the "
            "second pass over all images."
        )
    if fraction < 1 and images_taken(fraction, images) == images:
        smaller = f"at most {(images - 1) / images:.4g}, or " if images > 1 else ""
        raise ValueError(
            f"perturb_fraction={fraction!r} is rounded up to all images of a micro-batch: "
            f"per_device_train_batch_size={images}; give {smaller}more images a micro-batch, or leave it out."
        )


def check_same_dropout(args: Any, model: Any) -> None:
    """Refuse to draw the first pass's dropout masks again for fewer images, which a random generator cannot do.

    Args:
        args: Training arguments.
        model: Whose settings of dropout and stochastic depth are looked at; what draws by other means is not seen.

    Raises:
        ValueError: If the model drops anything at random.
    """
    if args.perturb_fraction == 1 or not args.same_dropout:
        return
    dropping = next((name for name, module in model.named_modules() if _drops(module)), None)
    if dropping is not None:
        raise ValueError(
            f"perturb_fraction={args.perturb_fraction!r} draws other masks for fewer images, so same_dropout=True "
            f"cannot be kept ({dropping or type(model).__name__!r} drops at random); set same_dropout=False "
            "(--no_same_dropout), or perturb_fraction=1."
        )


def _drops(module: nn.Module) -> bool:
    is_dropout = "drop" in type(module).__name__.lower()
    return any(
        isinstance(value, float) and value > 0 and ("drop" in name or (is_dropout and name in ("p", "prob")))
        for name, value in vars(module).items()
    )
