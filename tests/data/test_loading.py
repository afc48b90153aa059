"""A data set by name comes checked, split and ready to train on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets_for_tests import (
    ANIMALS,
    HUB_PRESETS,
    load_with_own_cache,  # noqa: F401
    noise,
    numbers,
    preset_table,
    redirect_hub,
    save,
    table,
    write_images,
    write_preset,
)
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader

from rts_hf.data.loading import PRESETS, DataBundle, ImageClassificationDataset, collate, load_data


def test_digits_by_default() -> None:
    bundle = load_data()
    assert (bundle.name, bundle.source) == ("digits", "embedded")
    assert bundle.split_sizes == {"train": 1293, "validation": 144, "test": 360}
    assert bundle.label_names == tuple("0123456789")
    assert bundle.image_size == PRESETS["digits"].image_size
    assert (bundle.mean, bundle.std) == (PRESETS["digits"].mean, PRESETS["digits"].std)
    assert bundle.augmentation == "crop"  # a mirrored digit is another sign
    assert not bundle.train.flip
    assert bundle.skipped == {"train": 0, "validation": 0, "test": 0}
    assert bundle.split_sources["test"] == {"split": "test", "held_out": False}
    assert bundle.normalisation == "digits"
    for split in (bundle.train, bundle.validation, bundle.test):
        assert split is not None
        assert split.images is not None
        assert torch.equal(split.images[:, 0], split.images[:, 2])
        assert np.bincount(split.labels).min() > 0.08 * len(split)


def test_digits_mean_and_std_are_those_of_the_training_scans() -> None:
    bundle = load_data(image_size=8, augmentation="none")
    assert bundle.train.images is not None
    assert bundle.validation.images is not None
    pixels = torch.cat([bundle.train.images, bundle.validation.images])[:, 0] / 255
    assert bundle.mean[0] == pytest.approx(float(pixels.mean()), abs=1e-4)
    assert bundle.std[0] == pytest.approx(float(pixels.std()), abs=1e-4)


def test_digits_test_part_is_the_same_for_every_seed() -> None:
    first, second = load_data(seed=1), load_data(seed=2)
    assert first.test is not None
    assert second.test is not None
    assert first.test.images is not None
    assert second.test.images is not None
    assert torch.equal(first.test.images, second.test.images)
    assert not torch.equal(first.validation.labels, second.validation.labels)


@pytest.mark.parametrize("name", HUB_PRESETS)
@pytest.mark.parametrize("how", ["name", "folder"])
def test_preset(name: str, how: str, tmp_path: Path, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = PRESETS[name]
    folder = write_preset(tmp_path / "mine", name)
    assert preset.hub_id is not None
    redirect_hub(monkeypatch, preset.hub_id, folder)
    bundle = load(name if how == "name" else folder, validation_fraction=0.25)
    assert (bundle.name, bundle.source) == ((name, preset.hub_id) if how == "name" else ("mine", "mine"))
    assert (bundle.image_size, bundle.mean, bundle.std) == (preset.image_size, preset.mean, preset.std)
    assert bundle.normalisation == name
    assert bundle.augmentation == "crop_flip"
    assert len(bundle.label_names) == preset.num_classes
    assert bundle.label_names == tuple(preset_table(name, 1).features[preset.label_column].names)
    classes = preset.num_classes
    assert bundle.split_sizes == {"train": 3 * classes, "validation": classes, "test": classes}
    assert sorted(numbers(bundle.train) + numbers(bundle.validation)) == list(range(4 * classes))
    assert numbers(bundle.test) == [*range(4 * classes, 5 * classes)]
    assert set(np.bincount(bundle.train.labels)) == {3}
    assert set(np.bincount(bundle.validation.labels)) == {1}
    batch = next(iter(DataLoader(bundle.train, 8, collate_fn=collate)))
    assert batch["pixel_values"].shape == (8, 3, preset.image_size, preset.image_size)


def test_other_label_column_of_a_preset(tmp_path: Path, load: Any) -> None:
    folder = write_preset(tmp_path / "mine", "cifar100")
    bundle = load(folder, label_column="coarse_label", validation_fraction=0.25)
    assert len(bundle.label_names) == 20
    assert bundle.mean == PRESETS["cifar100"].mean


@pytest.mark.parametrize("how", ["size", "names"])
def test_columns_of_a_preset_with_other_images_keep_general_defaults(how: str, tmp_path: Path, load: Any) -> None:
    data = preset_table("cifar10", 4)
    if how == "size":
        data = data.map(lambda row: {"img": row["img"].resize((20, 24))})
    else:
        data = data.cast_column("label", datasets.ClassLabel(names=[f"brand {i}" for i in range(10)]))
    bundle = load(save(tmp_path / "mine", train=data, test=data), validation_fraction=0.25)
    assert bundle.image_size == (20 if how == "size" else 32)
    assert (bundle.mean, bundle.std) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    assert bundle.normalisation == "imagenet"


@pytest.mark.parametrize(
    ("given", "of_a_preset", "of_none"),
    [
        ({}, "cifar10", "imagenet"),
        ({"mean": [0.5] * 3, "std": [0.2] * 3}, "given", "given"),
        ({"mean": [0.5] * 3}, "given mean, cifar10 std", "given mean, imagenet std"),
        ({"std": [0.2] * 3}, "cifar10 mean, given std", "imagenet mean, given std"),
    ],
)
def test_guessed_statistics_are_said(
    given: dict[str, Any],
    of_a_preset: str,
    of_none: str,
    tmp_path: Path,
    load: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="rts_hf")
    guessed = "mean" not in given or "std" not in given
    folder = write_preset(tmp_path / "mine", "cifar10")
    assert load(folder, validation_fraction=0.25, **given).normalisation == of_a_preset
    assert ("mine is read as a copy of cifar10" in caplog.text) is guessed
    assert ("(cifar10). Where these do not suit, give load_data" in caplog.text) is ("std" not in given)
    caplog.clear()
    pets = save(tmp_path / "pets", train=table([0, 1] * 10, ANIMALS, size=8))
    assert load(pets, **given).normalisation == of_none
    assert ("pets is of no preset: normalised by mean (0." in caplog.text) is guessed
    caplog.clear()
    hub_id = PRESETS["cifar10"].hub_id
    assert hub_id is not None
    redirect_hub(monkeypatch, hub_id, folder)
    for name in ("cifar10", hub_id):
        assert load(name, validation_fraction=0.25, **given).normalisation == of_a_preset
    assert "normalised by" not in caplog.text, "a preset asked for is no guess"


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        ((28, 28), {}, (28, "crop_flip")),
        ((80, 60), {}, (60, "crop_flip")),
        ((100, 70), {}, (224, "timm")),
        ((5, 5), {}, (8, "crop_flip")),
        ((100, 70), {"image_size": 48}, (48, "crop_flip")),
        ((28, 28), {"image_size": 96}, (96, "timm")),
        ((28, 28), {"image_size": 64, "augmentation": "timm"}, (64, "timm")),
        ((28, 28), {"image_size": 65, "augmentation": "crop"}, (65, "crop")),
        ((28, 28), {"augmentation": "none"}, (28, "none")),
    ],
)
def test_size_and_augmentation_follow_the_images(
    size: tuple[int, int], options: dict[str, Any], expected: tuple[int, str], tmp_path: Path, load: Any
) -> None:
    classes = {name: [noise(i, size) for i in range(4)] for name in ("cat", "dog")}
    bundle = load(write_images(tmp_path / "pets", classes), validation_fraction=0.25, **options)
    side, augmentation = expected
    assert (bundle.image_size, bundle.augmentation) == expected
    assert (bundle.train.images is None) == (augmentation == "timm")
    assert bundle.train.padding == (side // 8 if "crop" in augmentation else 0)
    assert bundle.train.flip == (augmentation == "crop_flip")
    for split in (bundle.train, bundle.validation, bundle.test):
        assert split is not None
        assert split[0]["pixel_values"].shape == (3, side, side)
    assert bundle.test is not None
    assert not bundle.validation.padding
    assert not bundle.validation.flip
    assert not bundle.test.padding


def test_mirrored_digits_are_not_drawn_by_timm() -> None:
    bundle = load_data(image_size=96, max_train_samples=20, max_eval_samples=10)
    assert bundle.augmentation == "timm"
    assert "Flip" not in repr(bundle.train._pixels.transform.transform)  # type: ignore[union-attr]


@pytest.mark.parametrize(("size", "interpolation"), [(32, "bicubic"), (48, "bilinear"), (16, "bicubic")])
def test_saved_models_processor_serves_the_same_tensor(
    size: int, interpolation: str, tmp_path: Path, load: Any
) -> None:
    from transformers import TimmWrapperImageProcessor
    from transformers.image_utils import load_image

    sizes = [(32, 32), (40, 32), (31, 57), (12, 9), (200, 90)]
    modes = ["RGB", "L", "RGBA", "P", "LA", "1"]
    images = [noise(i, shape, mode) for i, (shape, mode) in enumerate((s, m) for s in sizes for m in modes)]
    folder = write_images(tmp_path / "mixed", {"a": images[::2], "b": images[1::2]})
    bundle = load(
        folder,
        image_size=size,
        interpolation=interpolation,
        augmentation="none",
        mean=[0.5, 0.4, 0.3],
        std=[0.2, 0.3, 0.4],
    )
    assert (bundle.interpolation, bundle.mean, bundle.std) == (interpolation, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    config = {
        "input_size": [3, size, size],
        "mean": bundle.mean,
        "std": bundle.std,
        "interpolation": interpolation,
        "crop_pct": 1.0,
    }
    processor = TimmWrapperImageProcessor(pretrained_cfg=config, architecture="test_resnet")
    expected = torch.cat([processor(load_image(str(path)))["pixel_values"] for path in sorted(folder.glob("*/*.png"))])
    served = [split[i]["pixel_values"] for split in splits_of(bundle) for i in range(len(split))]
    assert len(served) == len(images)
    for tensor in served:
        assert (expected - tensor).abs().amax(dim=(1, 2, 3)).min() < 1e-6


def splits_of(bundle: DataBundle) -> list[ImageClassificationDataset]:
    assert bundle.test is not None
    return [bundle.train, bundle.validation, bundle.test]


@pytest.mark.parametrize(
    ("existing", "options", "held_out"),
    [
        (["train"], {}, {"validation", "test"}),
        (["train", "test"], {}, {"validation"}),
        (["train", "validation"], {}, {"validation"}),
        (["train", "validation", "test"], {}, set()),
        (["train", "valid", "test"], {}, set()),
        (["train", "validation"], {"validation_split": "valid"}, {"test"}),
        (["train", "extra", "test"], {"validation_split": "extra"}, set()),
        (["fit", "extra"], {"train_split": "fit", "test_split": "extra"}, {"validation"}),
    ],
)
def test_splits_are_disjoint_stratified_and_complete(
    existing: list[str], options: dict[str, str], held_out: set[str], tmp_path: Path, load: Any
) -> None:
    count = 40
    tables = {
        split: table([0, 1, 1, 1] * 10, ANIMALS, size=8, first_number=count * i) for i, split in enumerate(existing)
    }
    bundle = load(save(tmp_path / "pets", **tables), augmentation="none", **options)
    found = [numbers(split) for split in splits_of(bundle)]
    together = [number for part in found for number in part]
    assert len(set(together)) == len(together) == count * len(existing)
    for role, part, split in zip(("train", "validation", "test"), found, splits_of(bundle), strict=True):
        assert (max(part) < count) == (role == "train" or role in held_out)
        assert np.bincount(split.labels)[1] == pytest.approx(0.75 * len(split), abs=1)
        source = bundle.split_sources[role]
        assert source is not None
        assert source["held_out"] is (role in held_out)
        first = existing.index(source["split"]) * count
        assert set(part) <= set(range(first, first + count))
    # The two held-out parts are a tenth each: of 40, then of what is left.
    assert len(found[0]) == {0: 40, 1: 36, 2: 32}[len(held_out)]


def test_held_out_test_part_is_said_and_fixed(tmp_path: Path, load: Any, caplog: pytest.LogCaptureFixture) -> None:
    folder = save(tmp_path / "pets", train=table([0, 1] * 50, ANIMALS, size=8))
    with caplog.at_level(logging.INFO):
        first = load(folder, seed=1)
    assert "No test split: 10 of the 100 images of 'train' are held out." in caplog.text
    second, again = load(folder, seed=2), load(folder, seed=1)
    assert numbers(first.test) == numbers(second.test)
    assert numbers(first.validation) == numbers(again.validation) != numbers(second.validation)
    assert numbers(first.train) == numbers(again.train)


def test_named_validation_split_is_read_whole(tmp_path: Path, load: Any) -> None:
    tables = {split: table([0, 1] * 4, ANIMALS, size=8) for split in ("train", "validation", "test")}
    bundle = load(save(tmp_path / "pets", **tables), validation_fraction=0.5)
    assert bundle.split_sizes == {"train": 8, "validation": 8, "test": 8}


def test_limits_on_samples() -> None:
    bundle = load_data(max_train_samples=50, max_eval_samples=20)
    assert bundle.split_sizes == {"train": 50, "validation": 20, "test": 20}
    assert all(np.bincount(split.labels).min() >= 1 for split in splits_of(bundle))
    other = load_data(max_train_samples=50, max_eval_samples=20, seed=7)
    assert not torch.equal(other.train.labels, bundle.train.labels)
    assert other.test is not None
    assert bundle.test is not None
    assert torch.equal(other.test[3]["pixel_values"], bundle.test[3]["pixel_values"])


def test_fewer_and_wrong_labels_are_those_of_training_alone() -> None:
    plain, harder = load_data(), load_data(train_fraction=0.1, label_noise=0.4)
    assert (plain.train_fraction, plain.label_noise) == (None, None)
    assert harder.train_fraction == {"fraction": 0.1, "images": 129, "of": 1293}
    assert harder.label_noise == {"split": "train", "fraction": 0.4, "flipped": 52, "of": 129}
    for one, other in zip(splits_of(plain)[1:], splits_of(harder)[1:], strict=True):
        assert one.images is not None
        assert other.images is not None
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    clean = load_data(train_fraction=0.1)
    assert clean.train.images is not None
    assert harder.train.images is not None
    assert torch.equal(clean.train.images, harder.train.images)
    assert int((clean.train.labels != harder.train.labels).sum()) == 52
    assert torch.equal(harder.train.without_augmentation().labels, harder.train.labels)
    assert torch.equal(load_data(train_fraction=0.1, label_noise=0.4).train.labels, harder.train.labels)
    assert not torch.equal(load_data(train_fraction=0.1, label_noise=0.4, seed=7).train.labels, harder.train.labels)


def test_wrong_labels_of_images_decoded_at_every_fetch() -> None:
    options: dict[str, Any] = {"augmentation": "timm", "max_train_samples": 50}
    clean, noisy = load_data(**options), load_data(**options, label_noise=0.4)
    assert noisy.train.images is None
    served = collate([noisy.train[i] for i in range(50)])["labels"]
    assert torch.equal(served, noisy.train.labels)
    assert int((served != clean.train.labels).sum()) == 20


def test_noise_may_not_leave_one_class(tmp_path: Path, load: Any) -> None:
    folder = save(tmp_path / "pets", train=table([0, 1] * 2, ANIMALS, size=8), test=table([0, 1], ANIMALS, size=8))
    with pytest.raises(ValueError, match=r"under label_noise=0\.5 has images of 1 class"):
        load(folder, validation_fraction=0.5, label_noise=0.5)


@pytest.mark.parametrize(
    ("option", "value"), [("label_noise", 1.5), ("train_fraction", 0.0), ("train_fraction", 0.001)]
)
def test_shares_that_cannot_be(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option}={value}"):
        load_data(**{option: value})


@pytest.mark.parametrize("feature", [datasets.Value("string"), datasets.Value("int64")])
def test_plain_labels_become_classes(feature: Any, tmp_path: Path, load: Any) -> None:
    values = ["owl", "cat"] if feature.dtype == "string" else [30, 4]
    folder = save(tmp_path / "pets", train=table(values * 10, feature, size=8, label="species"))
    bundle = load(folder)
    assert bundle.label_names == (("cat", "owl") if feature.dtype == "string" else ("4", "30"))
    assert np.bincount(bundle.train.labels).tolist() == [8, 8]


def test_images_of_every_kind_and_size(tmp_path: Path, load: Any) -> None:
    modes = ["RGB", "L", "RGBA", "P", "LA", "1"]
    classes = {name: [noise(i, (20 + i, 30 - i), mode) for i, mode in enumerate(modes)] for name in ("a", "b")}
    bundle = load(write_images(tmp_path / "mixed", classes), validation_fraction=0.2)
    assert sum(bundle.split_sizes.values()) == 12
    for split in splits_of(bundle):
        batch = collate(split.__getitems__(range(len(split))))
        assert batch["pixel_values"].shape == (len(split), 3, bundle.image_size, bundle.image_size)


def test_nothing_machine_dependent_in_the_bundle(tmp_path: Path, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "deep" / "pets", {name: [noise(i) for i in range(10)] for name in ("cat", "dog")})
    monkeypatch.chdir(tmp_path / "deep" / "pets")
    bundle = load(".")
    assert (bundle.name, bundle.source) == ("pets", "pets")
