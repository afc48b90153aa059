"""A data set by name comes checked, split and ready to train on; bad input stops before training."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets_for_tests import (
    ANIMALS,
    HUB_PRESETS,
    noise,
    picture,
    png,
    preset_table,
    redirect_hub,
    table,
    write_images,
    write_preset,
)
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader

from rts_hf import columns
from rts_hf.data import PRESETS, DataBundle, ImageClassificationDataset, collate, load_data


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """`load_data` with a cache of its own."""

    def load(dataset: Any, **options: Any) -> DataBundle:
        return load_data(str(dataset), cache_dir=str(tmp_path / "cache"), **options)

    return load


def save(folder: Path, **splits: Any) -> Path:
    datasets.DatasetDict(splits).save_to_disk(folder)
    return folder


def numbers(split: ImageClassificationDataset | None) -> list[int]:
    """Which of the numbered pictures a split holds; red must be the label."""
    assert split is not None
    assert split.images is not None
    colours = split.images[:, :, 0, 0].long()
    assert torch.equal(colours[:, 0], split.labels)
    return (colours[:, 1] + 256 * colours[:, 2]).tolist()


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


def broken_table(labels: list[int], broken: set[int]) -> Any:
    features = datasets.Features({"image": datasets.Image(), "label": ANIMALS})
    images = [
        {"bytes": png(picture(label, i, 8))[: 45 if i in broken else None], "path": None}
        for i, label in enumerate(labels)
    ]
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features)


@pytest.mark.parametrize("augmentation", ["crop_flip", "timm"])
def test_unreadable_images(augmentation: str, tmp_path: Path, load: Any, caplog: pytest.LogCaptureFixture) -> None:
    folder = save(
        tmp_path / "pets",
        train=broken_table([0, 1] * 20, {3, 4, 31}),
        test=broken_table([0, 1] * 5, {7}),
    )
    with pytest.raises(
        ValueError, match=r"^4 unreadable image\(s\), 3 in split 'train', 1 in split 'test' \(train row 3: "
    ) as caught:
        load(folder, augmentation=augmentation)
    assert re.findall(r"(train|test) row (\d+): ", str(caught.value)) == [
        *(("train", row) for row in ("3", "4", "31")),
        ("test", "7"),
    ]
    assert "skip_bad_images=True" in str(caught.value)
    bundle = load(folder, augmentation=augmentation, skip_bad_images=True)
    assert bundle.skipped["train"] + bundle.skipped["validation"] == 3
    assert bundle.skipped["test"] == 1
    assert sum(bundle.split_sizes.values()) == 46
    assert numbers(bundle.test) == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert "row 31" in caplog.text


def test_unreadable_test_image_stops_the_run_too(tmp_path: Path, load: Any) -> None:
    folder = save(tmp_path / "pets", train=table([0, 1] * 20, ANIMALS), test=broken_table([0, 1] * 5, {7}))
    with pytest.raises(ValueError, match=r"1 unreadable image\(s\), 1 in split 'test' \(test row 7: "):
        load(folder)


@pytest.mark.parametrize("content", [b"nothing", png(noise(0))[:1000], b""], ids=["text", "cut off", "empty"])
def test_unreadable_file_of_a_folder_is_named(content: bytes, tmp_path: Path, load: Any) -> None:
    classes = {f"{split}/{name}": [noise(i) for i in range(10)] for split in ("train", "test") for name in "ab"}
    folder = write_images(tmp_path / "pets", classes)
    for broken in ("train/b", "test/a"):
        (folder / broken / "004.png").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"2 unreadable.*train row 14: .*b.004\.png.*test row 4: .*a.004\.png"
    ) as caught:
        load(folder)
    assert str(caught.value).count("004.png") == 2
    assert sum(load(folder, skip_bad_images=True).split_sizes.values()) == 38


def test_nothing_readable_is_an_error_even_when_skipping(tmp_path: Path, load: Any) -> None:
    train = table([0, 1] * 20, ANIMALS, size=8)
    folder = save(tmp_path / "a", train=train, test=broken_table([0, 1], {0, 1}))
    with pytest.raises(ValueError, match="not one test image can be read"):
        load(folder, skip_bad_images=True)
    folder = save(tmp_path / "b", train=broken_table([0, 1] * 20, set(range(0, 40, 2))), test=train)
    with pytest.raises(ValueError, match=r"without its unreadable images has images of 1 class\(es\) \(dog\)"):
        load(folder, skip_bad_images=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 0.0}, r"validation_fraction=0\.0.*between 0 and 1"),
        ({"validation_fraction": 1.0}, r"validation_fraction=1\.0.*between 0 and 1"),
        ({"validation_fraction": float("nan")}, r"validation_fraction=nan"),
        ({"validation_fraction": "0.1"}, r"validation_fraction='0\.1'"),
        ({"seed": -1}, r"seed=-1: legal are whole numbers from 0"),
        ({"seed": 1.5}, r"seed=1\.5"),
        ({"image_size": 7}, r"image_size=7: .*from 8"),
        ({"image_size": -32}, r"image_size=-32"),
        ({"image_size": 32.0}, r"image_size=32\.0"),
        ({"image_size": True}, r"image_size=True"),
        ({"mean": [0.5]}, r"mean=\[0\.5\]: legal are three numbers"),
        ({"mean": [0.5, 0.5, float("nan")]}, r"mean=.*three numbers"),
        ({"mean": [124, 117, 104]}, r"mean=\[124, 117, 104\].*scaled to \[0, 1\]"),
        ({"mean": [0.5, None, 1]}, r"mean=.*three numbers"),
        ({"mean": 0.5}, r"mean=0\.5: legal are three numbers"),
        ({"std": "abc"}, r"std='abc': legal are three numbers"),
        ({"std": [0.5, 0.5, 0.0]}, r"std=.*none of them 0"),
        ({"interpolation": "cubic"}, r"interpolation='cubic': legal are nearest, bilinear, bicubic"),
        ({"interpolation": "random"}, r"interpolation='random'"),
        ({"augmentation": "mixup"}, r"augmentation='mixup': legal are auto, none, crop, crop_flip, timm"),
        ({"max_train_samples": 0}, r"max_train_samples=0: legal are whole numbers from 1"),
        ({"max_eval_samples": -1}, r"max_eval_samples=-1"),
    ],
)
def test_illegal_arguments_are_refused_before_any_data(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rts_hf.data.open_source", lambda *_: pytest.fail("the data was touched"))
    with pytest.raises(ValueError, match=message):
        load_data(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_split": "tarin"}, r"train_split='tarin' does not exist; the splits there: train, test\."),
        ({"test_split": "valid"}, r"test_split='valid' does not exist; the splits there: train, test\."),
        ({"validation_split": "test"}, r"may serve once"),
        ({"image_column": "img"}, r"image_column='img' is not a column.*image \(Image\), label \(ClassLabel of 10\)"),
        ({"label_column": "digit"}, r"label_column='digit' is not a column of split 'train'"),
        ({"validation_fraction": 0.001}, r"validation_fraction=0\.001: of 1437 training images 2 would be held out"),
        ({"max_train_samples": 1}, r"max_train_samples=1 has images of 1 class"),
    ],
)
def test_what_does_not_fit_the_data_is_refused_before_decoding(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns.ImageRows, "read", lambda *_: pytest.fail("an image was decoded"))
    with pytest.raises(ValueError, match=message):
        load_data(**options)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0] * 10, [0, 1], r"split 'train' of dataset=.*has images of 1 class\(es\) \(cat\).*two or more"),
        ([0] * 10 + [1], [0, 1], r"1 class\(es\) have a single training image: dog"),
        ([0, 1] * 5, [0, -1], r"row 1 of split 'test' has the label -1"),
    ],
)
def test_labels_that_cannot_be_trained_on(
    train: list[int], test: list[int], message: str, tmp_path: Path, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "pets", train=table(train, ANIMALS), test=table(test, ANIMALS))
    monkeypatch.setattr(columns.ImageRows, "read", lambda *_: pytest.fail("an image was decoded"))
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize("empty", ["train", "test"])
def test_empty_split(empty: str, tmp_path: Path, load: Any) -> None:
    for split in ("train", "test"):
        part = table([] if split == empty else [0, 1] * 5, ANIMALS)
        (tmp_path / "pets").mkdir(exist_ok=True)
        part.to_parquet(tmp_path / "pets" / f"{split}.parquet")
    with pytest.raises(ValueError, match=rf'could not be loaded: .*"{empty}".*the split is empty: fill or remove it'):
        load(tmp_path / "pets")


@pytest.mark.parametrize("empty", ["train", "test"])
def test_empty_split_that_datasets_lets_pass(
    empty: str, tmp_path: Path, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {split: table([] if split == empty else [0, 1] * 5, ANIMALS) for split in ("train", "test")}
    monkeypatch.setattr(datasets, "load_from_disk", lambda _: datasets.DatasetDict(parts))
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"split '{empty}' of dataset=.* is empty"):
        load(tmp_path)


def test_class_names_that_differ_between_splits(tmp_path: Path, load: Any) -> None:
    more = datasets.ClassLabel(names=["cat", "dog", "owl"])
    folder = tmp_path / "pets"
    for split, feature in (("train", ANIMALS), ("test", more)):
        table([0, 1] * 10, feature).save_to_disk(folder / split)
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ValueError, match=r"split 'test' has 3 classes \[cat, dog, owl\], split 'train' has 2"):
        load(folder)


def test_folder_with_one_class_only(tmp_path: Path, load: Any) -> None:
    folder = write_images(tmp_path / "pets", {"cat": [picture(0, i) for i in range(5)]})
    with pytest.raises(ValueError, match=r"label column cannot be told: none fits.*image \(Image\).*two class"):
        load(folder)


def test_class_without_training_image_is_said(tmp_path: Path, load: Any, caplog: pytest.LogCaptureFixture) -> None:
    feature = datasets.ClassLabel(names=["cat", "dog", "owl"])
    folder = save(tmp_path / "pets", train=table([0, 2] * 10, feature), test=table([0, 1], feature))
    bundle = load(folder)
    assert bundle.label_names == ("cat", "dog", "owl")
    assert "No training image of 1 of the 3 classes: ['dog']" in caplog.text


def test_nothing_machine_dependent_in_the_bundle(tmp_path: Path, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "deep" / "pets", {name: [noise(i) for i in range(10)] for name in ("cat", "dog")})
    monkeypatch.chdir(tmp_path / "deep" / "pets")
    bundle = load(".")
    assert (bundle.name, bundle.source) == ("pets", "pets")
