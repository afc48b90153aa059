"""Which split serves as which, parts held out stay in proportion, and exactly the share of labels asked is wrong."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from rts_hf.data.splits import (
    cap,
    check_label_noise,
    check_train_fraction,
    choose_splits,
    flip_labels,
    hold_out,
    keep_fraction,
)

NAMES = ["cat", "dog", "owl"]


@pytest.mark.parametrize(
    ("existing", "asked", "expected"),
    [
        (["train", "test"], {}, ("train", None, "test")),
        (["train"], {}, ("train", None, None)),
        (["train", "validation"], {}, ("train", None, "validation")),
        (["train", "valid"], {}, ("train", None, "valid")),
        (["train", "validation", "test"], {}, ("train", "validation", "test")),
        (["train", "val", "test"], {}, ("train", "val", "test")),
        (["training", "testing"], {}, ("training", None, "testing")),
        (["train", "validation"], {"validation": "validation"}, ("train", "validation", None)),
        (["train", "validation"], {"validation": "valid"}, ("train", "validation", None)),
        (["train", "validation"], {"test": "valid"}, ("train", None, "validation")),
        (["train", "validation", "test"], {"validation": "test"}, ("train", "test", "validation")),
        (["train", "validation", "test"], {"test": "validation"}, ("train", None, "validation")),
        (["train", "test", "extra"], {"train": "extra"}, ("extra", None, "test")),
        (["a", "b", "c"], {"train": "b", "validation": "a", "test": "c"}, ("b", "a", "c")),
        (["train", "valid", "dev", "test"], {}, ("train", None, "test")),
    ],
)
def test_choice_of_splits(
    existing: list[str], asked: dict[str, str], expected: tuple[str, str | None, str | None]
) -> None:
    assert choose_splits(existing, **asked) == expected


@pytest.mark.parametrize(
    ("existing", "asked", "message"),
    [
        (["train", "test"], {"train": "tarin"}, r"train_split='tarin' does not exist.*: train, test\."),
        (["train", "test"], {"validation": "valid"}, r"validation_split='valid' does not exist.*: train, test\."),
        (["train", "test"], {"test": "eval2"}, r"test_split='eval2' does not exist.*: train, test\."),
        (["train", "valid", "dev"], {"test": "val"}, r"test_split='val' does not exist.*: train, valid, dev\."),
        (["full"], {}, r"train_split is not set.*: full\."),
        (["train", "test"], {"validation": "test", "test": "test"}, r"validation_split='test', test_split='test'"),
        (["train", "test"], {"train": "train", "validation": "train"}, r"may serve once"),
    ],
)
def test_splits_that_cannot_be(existing: list[str], asked: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_splits(existing, **asked)


def test_held_out_part_is_disjoint_stratified_and_seeded() -> None:
    labels = np.repeat([0, 1, 2], [100, 60, 40])
    rows = np.arange(200)
    stay, out = hold_out(rows, labels, 0.1, 7, NAMES)
    assert sorted([*stay, *out]) == rows.tolist()
    assert np.bincount(labels[out]).tolist() == [10, 6, 4]
    assert (np.diff(out) > 0).all()
    assert (np.diff(stay) > 0).all()
    again = hold_out(rows, labels, 0.1, 7, NAMES)
    assert np.array_equal(again[1], out)
    assert not np.array_equal(hold_out(rows, labels, 0.1, 8, NAMES)[1], out)


def test_held_out_rows_come_from_the_rows_given() -> None:
    labels = np.tile([0, 1], 50)
    rows = np.arange(10, 50)
    stay, out = hold_out(rows, labels, 0.25, 0, NAMES)
    assert sorted([*stay, *out]) == rows.tolist()
    assert np.bincount(labels[out]).tolist() == [5, 5]


@pytest.mark.parametrize(
    ("counts", "fraction", "message"),
    [
        ([20, 1, 1], 0.2, r"2 class\(es\) have a single training image: dog, owl"),
        ([10, 10, 10], 0.05, r"validation_fraction=0.05: of 30 training images 2 would be held out.*3 classes"),
        ([10, 10, 10], 0.95, r"validation_fraction=0.95: of 30 training images 29 would"),
        ([20, 20, 2], 0.9, r"validation_fraction=0.9 leaves no training image of 1 class\(es\): owl"),
    ],
)
def test_parts_too_small_to_stratify(counts: list[int], fraction: float, message: str) -> None:
    labels = np.repeat([0, 1, 2], counts)
    with pytest.raises(ValueError, match=message):
        hold_out(np.arange(len(labels)), labels, fraction, 0, NAMES)


def test_class_without_images_does_not_hinder_holding_out() -> None:
    labels = np.repeat([0, 2], 10)
    _, out = hold_out(np.arange(20), labels, 0.2, 0, NAMES)
    assert np.bincount(labels[out]).tolist() == [2, 0, 2]


@pytest.mark.parametrize(
    ("limit", "expected"), [(50, [25, 15, 10]), (20, [10, 6, 4]), (3, [1, 1, 1]), (1, None), (200, None), (None, None)]
)
def test_cap_keeps_classes_in_proportion(limit: int | None, expected: list[int] | None) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [50, 30, 20]))
    rows = np.arange(100)
    kept = cap(rows, labels, limit, 3)
    assert len(set(kept)) == len(kept) == min(limit or 100, 100)
    assert (np.diff(kept) > 0).all()
    if expected is not None:
        assert np.bincount(labels[kept]).tolist() == expected
        assert np.array_equal(cap(rows, labels, limit, 3), kept)
        assert not np.array_equal(cap(rows, labels, limit, 4), kept)


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(1, [500, 300, 3]), (0.5, [249, 150, 2]), (0.1, [50, 29, 1]), (0.01, [5, 2, 1]), (3 / 803, [1, 1, 1])],
)
def test_fraction_keeps_classes_in_proportion_and_loses_none(fraction: float, expected: list[int]) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [500, 300, 3]))
    rows = np.arange(803)
    kept = keep_fraction(rows, labels, fraction, 3, NAMES)
    assert len(set(kept)) == len(kept) == round(fraction * 803)
    assert (np.diff(kept) > 0).all()
    assert np.bincount(labels[kept]) == pytest.approx(expected, abs=1)
    assert np.bincount(labels[kept]).min() >= 1
    assert np.array_equal(keep_fraction(rows, labels, fraction, 3, NAMES), kept)
    assert set(kept) <= set(keep_fraction(rows, labels, min(1, 2 * fraction), 3, NAMES))
    if fraction < 1:
        assert not np.array_equal(keep_fraction(rows, labels, fraction, 4, NAMES), kept)


def test_fraction_of_the_rows_given() -> None:
    labels = np.tile([0, 1], 50)
    kept = keep_fraction(np.arange(10, 50), labels, 0.25, 0, NAMES)
    assert set(kept) <= set(range(10, 50))
    assert np.bincount(labels[kept]).tolist() == [5, 5]


def test_fraction_with_fewer_images_than_classes() -> None:
    labels = np.repeat([0, 1, 2], 10)
    with pytest.raises(
        ValueError, match=r"train_fraction=0.07 keeps 2 of 30 .* 3 classes \(cat, dog, owl\) needs .* about 0.1\."
    ):
        keep_fraction(np.arange(30), labels, 0.07, 0, NAMES)


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01, 10, float("nan"), "0.5", None, True])
def test_what_is_no_fraction_is_refused(fraction: object) -> None:
    with pytest.raises(ValueError, match=r"train_fraction=.*: legal are numbers above 0 and up to 1"):
        check_train_fraction(fraction)  # type: ignore[arg-type]


# ---- Wrong labels ----

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
