"""Wrong labels on purpose: what a training makes of them tells how it learns."""

from __future__ import annotations

import numpy as np

# Apart from the draws of splits, which start from the same seed.
_STREAM = 1


def flip_labels(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """A copy of the labels, a share of them changed: symmetric noise, never to an image's own class.

    Exactly `round(fraction · N)` labels change, each of them to one of the other classes with equal chance. The
    classes are those that the labels have. The same arguments give the same labels, on every process.

    Args:
        labels: int64 `(N,)`.
        fraction: of the labels to change, in [0, 1).
        seed: of the draw, at least 0.

    Raises:
        ValueError: a fraction outside [0, 1), or labels of a single class, which has no other.

    >>> flip_labels(np.array([0, 0, 0, 3, 3, 3]), 0.5, seed=0).tolist()
    [0, 0, 3, 3, 0, 0]
    """
    check_label_noise(fraction)
    classes, numbers = np.unique(labels, return_inverse=True)
    count = round(fraction * len(labels))
    if count and len(classes) < 2:
        raise ValueError(
            f"label_noise={fraction}: all {len(labels)} training images are of one class, and there is no other to "
            "change a label to. Leave label_noise out, or add images of another class."
        )
    draws = np.random.default_rng([seed, _STREAM])
    changed = draws.choice(len(labels), count, replace=False)
    further = draws.integers(1, max(len(classes), 2), count)  # classes on from its own, so never back to it
    numbers[changed] = (numbers[changed] + further) % len(classes)
    return classes[numbers]


def check_label_noise(fraction: float) -> None:
    """Refuse what is no share of labels.

    Raises:
        ValueError: a fraction outside [0, 1).
    """
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction < 1:
        raise ValueError(
            f"label_noise={fraction!r}: legal are numbers from 0 to below 1, such as 0.4; 0 changes no label"
        )
