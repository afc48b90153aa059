"""Data sets that come inside a package open through the presets, without a network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rts_hf.data.embedded import EMBEDDED, PHOTOGRAPHS, photo_patches
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
