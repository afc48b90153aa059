"""Images, labels, splits and arguments that cannot be trained on stop a run before training."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets_for_tests import (
    ANIMALS,
    load_with_own_cache,  # noqa: F401
    noise,
    numbers,
    picture,
    png,
    save,
    table,
    write_images,
)

from rts_hf.data import columns
from rts_hf.data.loading import load_data


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
    monkeypatch.setattr("rts_hf.data.loading.open_source", lambda *_: pytest.fail("the data was touched"))
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
