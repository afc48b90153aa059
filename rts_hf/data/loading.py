"""An image data set by name, checked, split and ready to train on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from rts_hf.data.batches import (
    AUGMENTATIONS,
    INTERPOLATIONS,
    BadImage,
    ImageClassificationDataset,
    PixelFormat,
    UnreadableImagesError,
    build_split,
    collate,
    unreadable,
)
from rts_hf.data.columns import ImageRows, choose_columns, read_labels
from rts_hf.data.sources import PRESETS, DatasetPreset, match_preset, open_source
from rts_hf.data.splits import (
    TEST_SEED,
    cap,
    check_label_noise,
    check_train_fraction,
    choose_splits,
    flip_labels,
    hold_out,
    keep_fraction,
)

__all__ = ["PRESETS", "DataBundle", "DatasetPreset", "ImageClassificationDataset", "collate", "load_data"]

logger = logging.getLogger(__name__)

MIN_IMAGE_SIZE = 8
# Without preset or setting, images whose usual short side is at most this many pixels keep their size ...
NATIVE_UP_TO_SIZE = 64
# ... and all others are resized to what ImageNet backbones expect.
DEFAULT_IMAGE_SIZE = 224
# Up to this size, "auto" augments with a padded crop (and flip); above it with timm's RandomResizedCrop recipe.
CROP_UP_TO_SIZE = 64
_PROBED_IMAGES = 32


@dataclass(frozen=True)
class DataBundle:
    """A data set ready to train on.

    Args:
        name: preset, folder or repository name, without owner or path.
        source: "embedded", the Hub id, or the folder's own name.
        label_names: the classes, in the order of their labels.
        image_size: side of the served images in pixels.
        mean: normalisation, per channel.
        std: normalisation, per channel.
        interpolation: how images are resized.
        augmentation: what training images go through; never "auto".
        train: augmented images.
        validation: held out of train; serves the switch and the choice of the best model.
        test: read once, at the end.
        skipped: unreadable images left out, per split of this bundle.
        split_sources: where "train", "validation" and "test" come from: `{"split": "train", "held_out": True}` is a
            part cut out of the data set's split "train", each class in proportion; `held_out` is False for what is
            left of that split, and for a split of its own. None for a part that is not there.
        normalisation: whose numbers mean and std are: "given", the name of a preset (asked for by name or Hub id,
            or recognised), or "imagenet" by default; of two origins, as in "given mean, cifar10 std".
        revision: the Hub's commit that was read; None for other data.
        package: the Python package that embedded data comes with; None for other data.
        train_fraction: `{"fraction": 0.1, "images": 129, "of": 1293}`, the part of the training images that was kept
            (`max_train_samples` may then have kept fewer); None for all.
        label_noise: `{"split": "train", "fraction": 0.4, "flipped": 517, "of": 1293}`, how many labels were changed to
            another class; None for none. Those of validation and test never are.
    """

    name: str
    source: str
    label_names: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    augmentation: str
    train: ImageClassificationDataset
    validation: ImageClassificationDataset
    test: ImageClassificationDataset | None
    skipped: dict[str, int]
    split_sources: dict[str, dict[str, Any] | None]
    normalisation: str
    revision: str | None = None
    package: str | None = None
    train_fraction: dict[str, Any] | None = None
    label_noise: dict[str, Any] | None = None

    @property
    def split_sizes(self) -> dict[str, int]:
        """Images in each split."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: len(split) for name, split in splits.items() if split is not None}


def load_data(
    dataset: str | Path = "digits",
    *,
    dataset_config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    test_split: str | None = None,
    validation_fraction: float = 0.1,
    seed: int = 42,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str = "bicubic",
    augmentation: str = "auto",
    skip_bad_images: bool = False,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    train_fraction: float = 1.0,
    label_noise: float = 0.0,
    cache_dir: str | None = None,
) -> DataBundle:
    """Load a data set and check all of it, every image included, before training.

    Test-time images go through timm's own transform, so a saved model's processor serves the tensors it was trained
    on. `crop` and `crop_flip` draw a zero-padded crop (an eighth of the side) and a flip for each image of a batch.

    Args:
        dataset: a key of `PRESETS`, a local folder (class sub-folders, with or without split folders above them;
            parquet files; the output of `save_to_disk`), or a Hub id. An existing folder goes before a Hub id.
        dataset_config: configuration of a data set that has several.
        image_column: default: the preset's, or the only column of images.
        label_column: default: the preset's, or the only column of class labels, strings or integers.
        train_split: default: the preset's, or "train".
        validation_split: default: the split "validation" where there is a "test" beside it, else a part of train.
        test_split: default: the preset's, "test", a "validation" without "test", else a part of train that is the
            same for every `seed`.
        validation_fraction: of train, held out in proportion for each class, in (0, 1).
        seed: of the held-out validation part, of the samples that the two limits and `train_fraction` keep, and of
            the labels that `label_noise` changes.
        image_size: side in pixels, at least 8. Default: the preset's; else the size of the images up to 64, or 224.
        mean: three numbers, of pixels in [0, 1]. Default: the preset's, also where a folder or repository is
            recognised as a copy of one by columns, classes and image size; else ImageNet's. A guess is logged.
        std: likewise, above 0.
        interpolation: one of `rts_hf.data.batches.INTERPOLATIONS`.
        augmentation: "none", "crop", "crop_flip", "timm" (timm's random resized crop, flip and colour jitter), or
            "auto": `crop_flip` up to 64 pixels, above it `timm`, neither with a flip where a preset forbids it.
        skip_bad_images: leave unreadable images out and count them, instead of stopping.
        max_train_samples: keep at most this many training images, each class in proportion.
        max_eval_samples: likewise, of validation and of test.
        train_fraction: of the training images to keep once validation is held out, each class in proportion and with
            one image at least, in (0, 1].
        label_noise: share of the remaining training labels that are changed to another class, each of the others with
            equal chance, in [0, 1). Validation and test keep their labels: settings are chosen on clean ones.
        cache_dir: where `datasets` keeps what it downloads and converts.

    Raises:
        ValueError: an argument, split, column, label or image is not as it must be; the message says which and what
            is legal.
        ConnectionError: a Hub id that is not in the cache, and no network.

    >>> bundle = load_data("digits")
    >>> bundle.split_sizes
    {'train': 1293, 'validation': 144, 'test': 360}
    >>> bundle.train[0]["pixel_values"].shape
    torch.Size([3, 16, 16])
    """
    _check_arguments(
        validation_fraction=validation_fraction,
        seed=seed,
        image_size=image_size,
        mean=mean,
        std=std,
        interpolation=interpolation,
        augmentation=augmentation,
        limits={"max_train_samples": max_train_samples, "max_eval_samples": max_eval_samples},
    )
    check_train_fraction(train_fraction)
    check_label_noise(label_noise)
    source = open_source(dataset, dataset_config, cache_dir)
    preset = source.preset
    train_name, validation_name, test_name = choose_splits(
        list(source.splits),
        train_split or (preset.train_split if preset else None),
        validation_split,
        test_split or (preset.test_split if preset else None),
    )
    used = {name: source.splits[name] for name in (train_name, validation_name, test_name) if name is not None}
    for name, table in used.items():
        if len(table) == 0:
            raise ValueError(f"split '{name}' of dataset={dataset!r} is empty; name another or fill it")
    known = preset or match_preset(used[train_name].features)
    if known is not None:
        image_column, label_column = image_column or known.image_column, label_column or known.label_column
    image_column, label_column = choose_columns(used, image_column, label_column)
    label_names, labels = read_labels(used, label_column)

    _check_classes(labels[train_name], label_names, f"split '{train_name}' of dataset={dataset!r}")
    parts = _divide(labels, label_names, train_name, validation_name, test_name, validation_fraction, seed)
    whole = parts["train"][1]
    fewer = keep_fraction(whole, labels[train_name], train_fraction, seed, label_names)
    parts["train"] = train_name, fewer
    for role, limit in (("train", max_train_samples), ("validation", max_eval_samples), ("test", max_eval_samples)):
        split, rows = parts[role]
        parts[role] = split, cap(rows, labels[split], limit, TEST_SEED if role == "test" else seed)
    kept = labels[train_name][parts["train"][1]]
    _check_classes(kept, label_names, f"the training part under max_train_samples={max_train_samples}")
    if absent := [name for label, name in enumerate(label_names) if label not in set(kept.tolist())]:
        logger.warning("No training image of %d of the %d classes: %s.", len(absent), len(label_names), absent[:10])

    images = {split: ImageRows(table, image_column, split) for split, table in used.items()}
    native_size = preset.image_size if preset else _native_size(images[train_name], parts["train"][1])
    if known is not None and native_size != known.image_size:
        known = None  # a preset's columns, but other images
    mean, std, normalisation = _statistics(mean, std, known, guessed_for=None if preset else source.name)
    pixel_format = PixelFormat(image_size or native_size, mean, std, interpolation)
    flip = known is None or known.horizontal_flip
    if augmentation == "auto":
        small = pixel_format.image_size <= CROP_UP_TO_SIZE
        augmentation = "timm" if not small else "crop_flip" if flip else "crop"

    built: dict[str, ImageClassificationDataset] = {}
    skipped: dict[str, int] = {}
    bad: list[BadImage] = []
    for role, (split, rows) in parts.items():
        try:
            built[role] = build_split(
                images[split],
                rows,
                labels[split][rows],
                pixel_format,
                augmentation=augmentation if role == "train" else "none",
                horizontal_flip=flip,
                skip_bad_images=skip_bad_images,
            )
        except UnreadableImagesError as error:  # the other parts may hold more, to be mended in one go
            bad.extend(error.images)
            continue
        skipped[role] = len(rows) - len(built[role])
        if len(built[role]) == 0:
            raise ValueError(f"split '{split}' of dataset={dataset!r}: not one {role} image can be read")
    if bad:
        raise unreadable(sorted(bad, key=lambda image: (list(used).index(image.split), image.row)))
    clean = built["train"].labels.numpy()
    _check_classes(clean, label_names, "the training part without its unreadable images")
    noisy = flip_labels(clean, label_noise, seed) if label_noise else clean
    _check_classes(noisy, label_names, f"the training part under label_noise={label_noise}")
    changed = int((noisy != clean).sum())
    built["train"].labels = torch.from_numpy(noisy)
    bundle = DataBundle(
        name=source.name,
        source=source.origin,
        label_names=label_names,
        image_size=pixel_format.image_size,
        mean=pixel_format.mean,
        std=pixel_format.std,
        interpolation=interpolation,
        augmentation=augmentation,
        train=built["train"],
        validation=built["validation"],
        test=built["test"],
        skipped=skipped,
        split_sources={
            role: {"split": split, "held_out": role != "train" and split == train_name}
            for role, (split, _) in parts.items()
        },
        normalisation=normalisation,
        revision=source.revision,
        package=preset.package if preset else None,
        train_fraction={"fraction": train_fraction, "images": len(fewer), "of": len(whole)}
        if train_fraction < 1
        else None,
        label_noise={"split": "train", "fraction": label_noise, "flipped": changed, "of": len(clean)}
        if label_noise
        else None,
    )
    logger.info("%s: %s images, %d classes.", source.name, bundle.split_sizes, len(label_names))
    return bundle


def _check_arguments(
    *,
    validation_fraction: float,
    seed: int,
    image_size: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    interpolation: str,
    augmentation: str,
    limits: dict[str, int | None],
) -> None:
    if not (_is_number(validation_fraction) and 0 < validation_fraction < 1):
        raise ValueError(f"validation_fraction={validation_fraction!r}: legal are numbers between 0 and 1, such as 0.1")
    if not (_is_int(seed) and 0 <= seed < 2**32):
        raise ValueError(f"seed={seed!r}: legal are whole numbers from 0 to {2**32 - 1}")
    if image_size is not None and not (_is_int(image_size) and image_size >= MIN_IMAGE_SIZE):
        raise ValueError(f"image_size={image_size!r}: legal are whole numbers of pixels from {MIN_IMAGE_SIZE}")
    for name, value in (("mean", mean), ("std", std)):
        low = 0 if name == "mean" else 1e-6
        if value is None:
            continue
        try:
            legal_values = len(value) == 3 and all(low <= float(x) <= 1 for x in value)  # of NaN neither is true
        except (TypeError, ValueError):
            legal_values = False
        if not legal_values:
            raise ValueError(
                f"{name}={value!r}: legal are three numbers, one a channel, of pixel values scaled to [0, 1]"
                + (", none of them 0" if name == "std" else "")
            )
    for name, choice, legal in (
        ("interpolation", interpolation, INTERPOLATIONS),
        ("augmentation", augmentation, AUGMENTATIONS),
    ):
        if choice not in legal:
            raise ValueError(f"{name}={choice!r}: legal are {', '.join(legal)}")
    for name, limit in limits.items():
        if limit is not None and not (_is_int(limit) and limit >= 1):
            raise ValueError(f"{name}={limit!r}: legal are whole numbers from 1, or None for all images")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_classes(labels: np.ndarray, label_names: Sequence[str], where: str) -> None:
    present = np.unique(labels)
    if len(present) < 2:
        raise ValueError(
            f"{where} has images of {len(present)} class(es) ({', '.join(label_names[label] for label in present)}), "
            "and a classifier needs two or more. Check label_column, the splits and the limits on samples."
        )


def _divide(
    labels: dict[str, np.ndarray],
    label_names: Sequence[str],
    train: str,
    validation: str | None,
    test: str | None,
    fraction: float,
    seed: int,
) -> dict[str, tuple[str, np.ndarray]]:
    """Role → (source split, its rows); what has no split of its own is held out of train."""
    everything = {split: np.arange(len(values)) for split, values in labels.items()}
    stay = everything[train]
    if test is None:
        stay, test_rows = hold_out(stay, labels[train], fraction, TEST_SEED, label_names)
        logger.info(
            "No test split: %d of the %d images of '%s' are held out.", len(test_rows), len(labels[train]), train
        )
    if validation is None:
        stay, validation_rows = hold_out(stay, labels[train], fraction, seed, label_names)
    return {
        "train": (train, stay),
        "validation": (train, validation_rows) if validation is None else (validation, everything[validation]),
        "test": (train, test_rows) if test is None else (test, everything[test]),
    }


def _native_size(images: ImageRows, rows: np.ndarray) -> int:
    """The usual short side of the images where they are small, else `DEFAULT_IMAGE_SIZE`."""
    probed = rows[np.linspace(0, len(rows) - 1, min(len(rows), _PROBED_IMAGES)).astype(int)].tolist()
    sides = [min(image.size) for image in images.read(probed) if not isinstance(image, Exception)]
    side = int(np.median(sides)) if sides else DEFAULT_IMAGE_SIZE
    return max(side, MIN_IMAGE_SIZE) if side <= NATIVE_UP_TO_SIZE else DEFAULT_IMAGE_SIZE


def _statistics(
    mean: Sequence[float] | None, std: Sequence[float] | None, known: DatasetPreset | None, guessed_for: str | None
) -> tuple[tuple[float, float, float], tuple[float, float, float], str]:
    """Mean, std and whose they are; a guess for a data set that was not asked for as a preset is logged."""
    default = known.name if known else "imagenet"
    origins = ["given" if value is not None else default for value in (mean, std)]
    chosen_mean = _channels(mean if mean is not None else known.mean if known else IMAGENET_DEFAULT_MEAN)
    chosen_std = _channels(std if std is not None else known.std if known else IMAGENET_DEFAULT_STD)
    if guessed_for is not None and default in origins:
        logger.info(
            "%s is %s: normalised by mean %s (%s) and std %s (%s). Where these do not suit, give load_data the keyword "
            "arguments mean and std (in Python only).",
            guessed_for,
            f"read as a copy of {default}, by its columns, classes and image size" if known else "of no preset",
            *(chosen_mean, origins[0], chosen_std, origins[1]),
        )
    normalisation = origins[0] if len(set(origins)) == 1 else f"{origins[0]} mean, {origins[1]} std"
    return chosen_mean, chosen_std, normalisation


def _channels(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
