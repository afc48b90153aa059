"""Train, validation and test: which split serves as which, and stratified parts held out of one."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence

import numpy as np

logger = logging.getLogger(__name__)

# Names of one and the same split, the one `datasets` puts for the others first.
SPLIT_NAMES = (("train", "training"), ("validation", "valid", "val", "dev"), ("test", "testing", "eval", "evaluation"))
# The digits' test part, and that of data sets without one, is the same whatever the run's own seed.
TEST_SEED = 0


def choose_splits(
    existing: Collection[str],
    train: str | None = None,
    validation: str | None = None,
    test: str | None = None,
) -> tuple[str, str | None, str | None]:
    """Which of the existing splits trains, validates and tests; None is to be held out of train.

    A split that is named must exist, under this or a like name (`valid` finds `validation`). Unnamed, train and test
    are found by their usual names. A validation split beside a test split validates; alone it is the test split, as
    in ImageNet and its likes, and validation is held out of train.

    Args:
        existing: the names there are.
        train: the split asked for, None to find it.
        validation: likewise.
        test: likewise.

    Raises:
        ValueError: a split does not exist, or one is to serve twice.

    >>> choose_splits(["train", "test"])
    ('train', None, 'test')
    >>> choose_splits(["train", "validation"])
    ('train', None, 'validation')
    >>> choose_splits(["train", "validation", "test"])
    ('train', 'validation', 'test')
    """
    asked = {"train_split": train, "validation_split": validation, "test_split": test}
    found = {argument: _find(existing, name) for argument, name in asked.items() if name is not None}
    for argument, split in found.items():
        if split is None:
            raise ValueError(
                f"{argument}={asked[argument]!r} does not exist; the splits there: {', '.join(existing)}. "
                f"Set {argument} to one of them."
            )
    chosen = {argument: split for argument, split in found.items() if split is not None}
    if len(set(chosen.values())) < len(chosen):
        raise ValueError(
            f"{', '.join(f'{argument}={split!r}' for argument, split in chosen.items())}: a split may serve once, "
            f"or validation and test would not be held out. The splits there: {', '.join(existing)}."
        )
    free = [split for split in existing if split not in chosen.values()]
    train_split = chosen.get("train_split") or _find(free, "train")
    if train_split is None:
        raise ValueError(
            f"train_split is not set and there is no split 'train'; the splits there: {', '.join(existing)}. "
            "Set train_split to one of them."
        )
    validation_split, test_split = chosen.get("validation_split"), chosen.get("test_split")
    test_split = test_split or _find(free, "test")
    if test_split is not None:
        validation_split = validation_split or _find([name for name in free if name != test_split], "validation")
    else:
        test_split = _find(free, "validation")
        if test_split is not None:
            logger.info("No test split: '%s' is read as the test split.", test_split)
    return train_split, validation_split, test_split


def _find(existing: Collection[str], name: str) -> str | None:
    """The split called `name`, else the only one with a name that means the same."""
    if name in existing:
        return name
    alike = next((names for names in SPLIT_NAMES if name in names), ())
    candidates = [split for split in existing if split in alike]
    return candidates[0] if len(candidates) == 1 else None


def hold_out(
    rows: np.ndarray, labels: np.ndarray, fraction: float, seed: int, label_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that stay and rows held out, both in ascending order, each class in proportion.

    Args:
        rows: int64 `(N,)`.
        labels: int64, the label of every row of the table `rows` points into.
        fraction: held out of each class, in (0, 1).
        seed: of the draw.
        label_names: for messages.

    Raises:
        ValueError: a class too small to be in both parts, or parts smaller than the number of classes.
    """
    from sklearn.model_selection import train_test_split

    classes, counts = np.unique(labels[rows], return_counts=True)
    if single := [label_names[label] for label in classes[counts < 2]]:
        raise ValueError(
            f"cannot hold out a stratified part: {len(single)} class(es) have a single training image: "
            f"{', '.join(single[:10])}. Add images or drop these classes, or name an existing split with "
            "validation_split and test_split."
        )
    held = math.ceil(fraction * len(rows))
    if not len(classes) <= held <= len(rows) - len(classes):
        raise ValueError(
            f"validation_fraction={fraction}: of {len(rows)} training images {held} would be held out and "
            f"{len(rows) - held} stay; each part needs one image for each of the {len(classes)} classes. Legal here: "
            f"about {len(classes) / len(rows):.3g} to {1 - len(classes) / len(rows):.3g}; or name an existing split "
            "with validation_split and test_split."
        )
    stay, out = train_test_split(rows, test_size=held, random_state=seed, stratify=labels[rows])
    if gone := sorted(set(classes) - set(labels[stay])):
        raise ValueError(
            f"validation_fraction={fraction} leaves no training image of {len(gone)} class(es): "
            f"{', '.join(label_names[label] for label in gone[:10])}. Set a smaller one."
        )
    return np.sort(stay), np.sort(out)


def cap(rows: np.ndarray, labels: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """At most `limit` rows in ascending order, drawn at random with each class in proportion.

    Args:
        rows: int64 `(N,)`.
        labels: int64, the label of every row of the table `rows` points into.
        limit: at least 1; None keeps all.
        seed: of the draw.

    >>> cap(np.arange(8), np.array([0, 0, 0, 0, 0, 0, 1, 1]), 4, seed=0).shape
    (4,)
    """
    if limit is None or limit >= len(rows):
        return rows
    shuffled, place = _evenly(rows, labels, seed)
    return np.sort(shuffled[np.argsort(place, kind="stable")[:limit]])


def keep_fraction(
    rows: np.ndarray, labels: np.ndarray, fraction: float, seed: int, label_names: Sequence[str]
) -> np.ndarray:
    """A part of the rows in ascending order, drawn at random with each class in proportion and none of them lost.

    With the same seed, a larger fraction holds all of a smaller one.

    Args:
        rows: int64 `(N,)`.
        labels: int64, the label of every row of the table `rows` points into.
        fraction: of the rows to keep, in (0, 1]; their number is rounded.
        seed: of the draw.
        label_names: for messages.

    Raises:
        ValueError: a fraction outside (0, 1], or fewer rows kept than there are classes.

    >>> keep_fraction(np.arange(100), np.repeat([0, 1], [96, 4]), 0.1, 0, ["cat", "dog"]).shape
    (10,)
    """
    check_train_fraction(fraction)
    count, classes = round(fraction * len(rows)), np.unique(labels[rows])
    if count < len(classes):
        raise ValueError(
            f"train_fraction={fraction} keeps {count} of {len(rows)} training images, and each of the {len(classes)} "
            f"classes ({', '.join(label_names[label] for label in classes[:10])}{', …' if len(classes) > 10 else ''}) "
            f"needs one. Legal here: from about {len(classes) / len(rows):.3g}."
        )
    shuffled, place = _evenly(rows, labels, seed)
    _, first = np.unique(labels[shuffled], return_index=True)
    place[first] = 0  # before all others: a rare class would come late
    return np.sort(shuffled[np.argsort(place, kind="stable")[:count]])


def check_train_fraction(fraction: float) -> None:
    """Refuse what is no share of the training images.

    Raises:
        ValueError: a fraction outside (0, 1].
    """
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        raise ValueError(
            f"train_fraction={fraction!r}: legal are numbers above 0 and up to 1, such as 0.1; 1 keeps all images"
        )


def _evenly(rows: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows shuffled, and places in (0, 1): any prefix in the order of places holds each class in proportion."""
    shuffled = np.random.default_rng(seed).permutation(rows)
    place = np.empty(len(rows))
    for label in np.unique(labels[rows]):
        members = np.flatnonzero(labels[shuffled] == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)  # the k-th of n stands at (k + 1/2)/n
    return shuffled, place


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
