"""Tiny data sets on disk with the columns, features and file names of the presets' repositories."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
import yaml

from rts_hf.data.loading import DataBundle, ImageClassificationDataset, load_data
from rts_hf.data.sources import PRESETS

HUB_PRESETS = [name for name, preset in PRESETS.items() if preset.hub_id is not None]
ANIMALS = datasets.ClassLabel(names=["cat", "dog"])
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def class_names(preset: str, filler: str) -> list[str]:
    """The classes of a preset that `match_preset` looks for, filled up to their number."""
    known = PRESETS[preset].known_classes
    return [*known, *(filler.format(i) for i in range(PRESETS[preset].num_classes - len(known)))]


# (columns in the repository's order, {label column: class names})
SCHEMAS: dict[str, tuple[str, dict[str, list[str]]]] = {
    "cifar10": ("img", {"label": CIFAR10_CLASSES}),
    "cifar100": (
        "img",
        {"fine_label": class_names("cifar100", "fine_{}"), "coarse_label": [f"coarse_{i}" for i in range(20)]},
    ),
    "tiny_imagenet": ("image", {"label": class_names("tiny_imagenet", "n{:08d}")}),
}


def picture(label: int, number: int, size: int | tuple[int, int] = 32, mode: str = "RGB") -> PIL.Image.Image:
    """A flat picture whose colour says which it is: red the label, green and blue the number."""
    shape = (size, size) if isinstance(size, int) else size
    return PIL.Image.new("RGB", shape, (label, number % 256, number // 256)).convert(mode)


def noise(seed: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> PIL.Image.Image:
    """A picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    rgba = PIL.Image.fromarray(pixels)
    return rgba.convert(mode if mode in ("RGBA", "RGB", "L", "LA") else "RGB").convert(mode)


def png(image: PIL.Image.Image) -> bytes:
    """The picture as a PNG file's content."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def table(labels: list[Any], feature: Any, *, size: int = 32, first_number: int = 0, **columns: str) -> Any:
    """A `datasets.Dataset` of numbered flat pictures with one label column."""
    image, label = columns.get("image", "image"), columns.get("label", "label")
    pictures = [picture(hash_label(value), first_number + i, size) for i, value in enumerate(labels)]
    features = datasets.Features({image: datasets.Image(), label: feature})
    return datasets.Dataset.from_dict({image: pictures, label: labels}, features)


def hash_label(value: Any) -> int:
    """A colour for any label."""
    return value if isinstance(value, int) and 0 <= value < 256 else len(str(value))


def preset_table(name: str, per_class: int, first_number: int = 0) -> Any:
    """A `datasets.Dataset` with the schema of a preset, classes in turn."""
    image_column, label_columns = SCHEMAS[name]
    preset = PRESETS[name]
    count = per_class * len(label_columns[preset.label_column])
    data: dict[str, list[Any]] = {image_column: [], **{column: [] for column in label_columns}}
    for i in range(count):
        for column, names in label_columns.items():
            data[column].append(i % len(names))
        data[image_column].append(picture(data[preset.label_column][-1], first_number + i, preset.image_size))
    features: dict[str, Any] = {image_column: datasets.Image()}
    features |= {column: datasets.ClassLabel(names=names) for column, names in label_columns.items()}
    return datasets.Dataset.from_dict(data, datasets.Features(features))


def write_preset(folder: Path, name: str, per_class: int = 4, test_per_class: int = 1) -> Path:
    """A folder laid out like the repository of a preset: parquet files with the exact schema."""
    preset = PRESETS[name]
    (folder / "data").mkdir(parents=True)
    train = preset_table(name, per_class)
    test = preset_table(name, test_per_class, first_number=len(train))
    for split, part in ((preset.train_split, train), (preset.test_split, test)):
        part.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


# Where the repository of a preset keeps its files: (configuration, None for the default one; file name by split)
REPOSITORY_FILES: dict[str, tuple[str | None, str]] = {
    "cifar10": ("plain_text", "plain_text/{}-00000-of-00001.parquet"),
    "cifar100": ("cifar100", "cifar100/{}-00000-of-00001.parquet"),
    "tiny_imagenet": (None, "data/{}-00000-of-00001-1359597a978bc4fa.parquet"),
}


def repository(name: str, per_class: int = 2, test_per_class: int = 1) -> dict[str, bytes | str]:
    """The files of a preset's repository on the Hub by path: parquet, and a README whose head declares the schema."""
    preset, (config, pattern) = PRESETS[name], REPOSITORY_FILES[name]
    train = preset_table(name, per_class)
    parts = {preset.train_split: train, preset.test_split: preset_table(name, test_per_class, len(train))}
    files: dict[str, bytes | str] = {}
    for split, part in parts.items():
        buffer = io.BytesIO()
        part.to_parquet(buffer)
        files[pattern.format(split)] = buffer.getvalue()
    features: list[dict[str, Any]] = [{"name": preset.image_column, "dtype": "image"}]
    for column, names in SCHEMAS[name][1].items():
        labels = {str(label): text for label, text in enumerate(names)}
        features.append({"name": column, "dtype": {"class_label": {"names": labels}}})
    # The client compares these numbers with what it has read.
    splits = [{"name": split, "num_bytes": 1, "num_examples": len(part)} for split, part in parts.items()]
    head: dict[str, Any] = {"dataset_info": {"features": features, "splits": splits}}
    if config is not None:
        head["dataset_info"]["config_name"] = config
        data_files = [{"split": split, "path": f"{config}/{split}-*"} for split in parts]
        head["configs"] = [{"config_name": config, "data_files": data_files, "default": True}]
    return {**files, "README.md": f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n# {name}\n"}


def write_images(folder: Path, classes: dict[str, list[PIL.Image.Image]]) -> Path:
    """A folder of class sub-folders."""
    for name, pictures in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(pictures):
            image.save(folder / name / f"{i:03d}.png")
    return folder


def redirect_hub(monkeypatch: pytest.MonkeyPatch, hub_id: str, folder: Path) -> list[str]:
    """Let `datasets.load_dataset` find a folder under a Hub id; returns the list of ids it was asked for."""
    asked: list[str] = []
    load = datasets.load_dataset

    def load_dataset(path: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(path)
        return load(str(folder) if path == hub_id else path, *args, **kwargs)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.fixture(name="load")
def load_with_own_cache(tmp_path: Path) -> Any:
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


@pytest.fixture(name="cache")
def own_cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def sizes(splits: Any) -> dict[str, int]:
    return {name: len(part) for name, part in splits.items()}
