"""Exactly the share of labels asked for becomes wrong, evenly, and the same at every call."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from rts_hf.data.splits import check_label_noise, flip_labels

LABELS = np.repeat(np.arange(5), 200)


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.25, 0.4, 0.9, 0.999])
def test_exactly_that_share_is_changed(fraction: float) -> None:
    before = LABELS.copy()
    noisy = flip_labels(LABELS, fraction, 3)
    assert (noisy != LABELS).sum() == round(fraction * 1000)
    assert np.array_equal(LABELS, before)
    assert noisy.dtype == LABELS.dtype
    assert set(noisy.tolist()) <= set(range(5))


def test_all_images_and_all_other_classes_are_hit_alike() -> None:
    runs = 100
    noisy = np.stack([flip_labels(LABELS, 0.4, seed) for seed in range(runs)])
    pairs = Counter(zip(np.tile(LABELS, runs).tolist(), noisy.ravel().tolist(), strict=True))
    for (own, given), count in pairs.items():
        expected = runs * 200 * (0.6 if own == given else 0.1)
        assert count == pytest.approx(expected, rel=0.1)
    changed = (noisy != LABELS).mean(axis=0)  # of each image, the share of draws that changed its label
    assert 0.15 < changed.min() < changed.max() < 0.65


def test_the_seed_alone_decides() -> None:
    first = flip_labels(LABELS, 0.3, 11)
    assert np.array_equal(flip_labels(LABELS, 0.3, 11), first)
    assert not np.array_equal(flip_labels(LABELS, 0.3, 12), first)
    # Whatever the machine and the version of numpy: a benchmark must keep its labels.
    assert flip_labels(np.tile([0, 1, 2], 6), 0.5, 42).tolist() == [
        0,
        1,
        2,
        1,
        1,
        0,
        1,
        1,
        0,
        0,
        0,
        2,
        2,
        2,
        1,
        0,
        0,
        2,
    ]


def test_classes_without_images_are_not_drawn() -> None:
    labels = np.repeat([2, 7, 9], 50)
    noisy = flip_labels(labels, 0.8, 0)
    assert set(noisy.tolist()) == {2, 7, 9}
    assert (noisy != labels).sum() == 120


def test_a_single_class_has_no_other() -> None:
    with pytest.raises(ValueError, match=r"label_noise=0\.5: all 6 training images are of one class"):
        flip_labels(np.full(6, 4), 0.5, 0)
    assert flip_labels(np.full(6, 4), 0.0, 0).tolist() == [4] * 6


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1, 40, float("nan"), "0.4", None, True])
def test_what_is_no_share_is_refused(fraction: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"label_noise={re.escape(repr(fraction))}: legal are numbers from 0 to below"
    ):
        check_label_noise(fraction)
    with pytest.raises(ValueError, match="label_noise="):
        flip_labels(LABELS, fraction, 0)
