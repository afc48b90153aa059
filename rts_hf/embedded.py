"""Data sets that come inside a Python package, as tables by split: no network is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import PIL.Image

from rts_hf.photo_patches import PHOTOGRAPHS, photo_patches
from rts_hf.splits import TEST_SEED

DIGITS_TEST_FRACTION = 0.2


def digits() -> dict[str, Any]:
    """scikit-learn's 8×8 scans of digits, grey 0..16 stretched to 0..255, with a stratified test split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans = load_digits()
    pixels = np.rint(scans.images * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(pixels)), test_size=DIGITS_TEST_FRACTION, random_state=TEST_SEED, stratify=scans.target
    )
    names = [str(digit) for digit in range(10)]
    return {
        split: _table(pixels[rows], scans.target[rows], names)
        for split, rows in (("train", np.sort(train)), ("test", np.sort(test)))
    }


def patches() -> dict[str, Any]:
    """Patches of scikit-image's photographs, with splits for training, validation and test.

    Raises:
        ValueError: scikit-image is not installed, or ships other pictures.
    """
    return {split: _table(pixels, labels, [*PHOTOGRAPHS]) for split, (pixels, labels) in photo_patches().items()}


# Preset → what makes its tables
EMBEDDED: Mapping[str, Callable[[], dict[str, Any]]] = MappingProxyType({"digits": digits, "photo_patches": patches})


def _table(pixels: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Any:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    return datasets.Dataset.from_dict({"image": [*map(PIL.Image.fromarray, pixels)], "label": labels}, features)
