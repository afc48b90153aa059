"""Batched augmentation is torchvision's, image by image; what is served is what timm would serve."""

from __future__ import annotations

import pickle
import random
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets_for_tests import noise, png
from timm.data import create_transform
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import functional as TF
from transformers.trainer_utils import RemoveColumnsCollator

from rts_hf.data import batches
from rts_hf.data.batches import (
    PixelFormat,
    UnreadableImagesError,
    build_split,
    collate,
    collate_for_device,
    crop_and_flip,
)
from rts_hf.data.columns import ImageRows

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def rows(images: list[Any]) -> ImageRows:
    features = datasets.Features({"image": datasets.Image()})
    return ImageRows(datasets.Dataset.from_dict({"image": images}, features), "image", "train")


def split(
    images: list[Any], augmentation: str = "none", size: int = 32, interpolation: str = "bicubic", **options: Any
) -> batches.ImageClassificationDataset:
    pixel_format = PixelFormat(size, MEAN, STD, interpolation)
    count = np.arange(len(images))
    return build_split(rows(images), count, count % 7, pixel_format, augmentation=augmentation, **options)


def pixels(served: torch.Tensor) -> torch.Tensor:
    """Normalisation undone: uint8 values."""
    shape = (1, 3, 1, 1)
    return (served * torch.tensor(STD).view(shape) + torch.tensor(MEAN).view(shape)).mul(255).round().to(torch.uint8)


@pytest.mark.parametrize(("size", "padding"), [((5, 5), 1), ((8, 8), 0), ((32, 32), 4), ((6, 9), 3)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_and_flip_equals_torchvision(size: tuple[int, int], padding: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (40, 3, *size), generator=generator).to(dtype)
    tops = torch.randint(2 * padding + 1, (40,), generator=generator)
    lefts = torch.randint(2 * padding + 1, (40,), generator=generator)
    flips = torch.rand(40, generator=generator) < 0.5
    found = crop_and_flip(images, tops, lefts, flips, padding)
    for i, image in enumerate(images):
        expected = TF.crop(TF.pad(image, [padding]), int(tops[i]), int(lefts[i]), *size)
        expected = TF.hflip(expected) if flips[i] else expected
        assert torch.equal(found[i], expected)


@pytest.mark.parametrize("source_size", [(32, 32), (40, 32), (19, 50), (8, 8)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos"])
def test_served_tensor_is_timms(source_size: tuple[int, int], mode: str, interpolation: str) -> None:
    image = noise(0, source_size, mode)
    transform = create_transform(
        (3, 32, 32), is_training=False, crop_pct=1.0, interpolation=interpolation, mean=MEAN, std=STD
    )
    served = split([image], interpolation=interpolation)[0]["pixel_values"]
    assert torch.equal(served, transform(image.convert("RGB")))


def every_draw(image: torch.Tensor, padding: int, flip: bool) -> dict[bytes, tuple[bool, int, int]]:
    """What torchvision makes of the image for each flip and offset, by its bytes."""
    draws = {}
    for flipped in (False, True) if flip else (False,):
        for top in range(2 * padding + 1):
            for left in range(2 * padding + 1):
                crop = TF.crop(TF.pad(image, [padding]), top, left, *image.shape[-2:])
                draws[(TF.hflip(crop) if flipped else crop).numpy().tobytes()] = (flipped, top, left)
    return draws


@pytest.mark.parametrize("augmentation", ["crop_flip", "crop"])
def test_each_image_of_a_batch_draws_its_own_crop_and_flip(augmentation: str) -> None:
    data = split([noise(0, (16, 16))], augmentation, size=16)
    assert data.images is not None
    draws = every_draw(data.images[0], padding=2, flip=augmentation == "crop_flip")
    count = 60 * len(draws)
    torch.manual_seed(0)
    served = pixels(collate(data.__getitems__([0] * count))["pixel_values"])
    found = dict.fromkeys(draws.values(), 0)
    for image in served:
        found[draws[image.numpy().tobytes()]] += 1  # a KeyError is an image torchvision would not make
    # All 50 (25) draws alike: chi-square over 49 (24) degrees of freedom, exceeded once in 10,000 seeds.
    assert sum((n - 60) ** 2 / 60 for n in found.values()) < (95 if augmentation == "crop_flip" else 59)


def test_no_augmentation_serves_the_image_itself_and_draws_nothing() -> None:
    data = split([noise(i) for i in range(3)])
    state = torch.get_rng_state()
    served = collate(data.__getitems__([2, 0]))
    assert torch.equal(torch.get_rng_state(), state)
    assert data.images is not None
    assert torch.equal(pixels(served["pixel_values"]), data.images[[2, 0]])
    assert served["labels"].tolist() == [2, 0]


@pytest.mark.parametrize("augmentation", ["crop_flip", "timm"])
@pytest.mark.parametrize("workers", [0, 2])
def test_torch_seed_decides_every_draw(augmentation: str, workers: int) -> None:
    data = split([noise(i, (40, 36)) for i in range(12)], augmentation)

    def epochs(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        random.seed()
        loader = DataLoader(data, batch_size=4, num_workers=workers, collate_fn=collate)
        return torch.cat([batch["pixel_values"] for _ in range(2) for batch in loader])

    first = epochs(0)
    assert torch.equal(epochs(0), first)
    assert not torch.equal(epochs(1), first)
    assert not torch.equal(first[:12], first[12:])  # a new epoch is drawn anew


def test_timm_augmentation_leaves_python_random_alone() -> None:
    data = split([noise(0, (40, 36))], "timm")
    random.seed(5)
    expected = random.random()
    random.seed(5)
    data[0]
    assert random.random() == expected


def test_timm_augmentation_flips_only_where_allowed() -> None:
    def draws_flip(allowed: bool) -> bool:
        data = split([noise(0)], "timm", horizontal_flip=allowed)
        return "RandomHorizontalFlip" in repr(data._pixels.transform.transform)  # type: ignore[union-attr]

    assert draws_flip(True)
    assert not draws_flip(False)


@pytest.mark.parametrize("augmentation", ["none", "crop", "crop_flip"])
def test_split_over_the_budget_serves_the_same(augmentation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [noise(i, (40, 36)) for i in range(9)]
    kept = split(images, augmentation)
    monkeypatch.setattr(batches, "DECODE_BUDGET_BYTES", 9 * 3 * 32 * 32 - 1)
    fetched = split(images, augmentation)
    assert kept.images is not None
    assert kept.images.shape == (9, 3, 32, 32)
    assert kept.images.dtype == torch.uint8
    assert fetched.images is None
    served = []
    for data in (kept, fetched):
        torch.manual_seed(0)
        served.append(collate(data.__getitems__([8, 0, 3, 3])))
    assert torch.equal(served[0]["pixel_values"], served[1]["pixel_values"])
    assert served[0]["labels"].tolist() == served[1]["labels"].tolist() == [1, 0, 3, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_serves_every_image_with_its_label(workers: int) -> None:
    data = split([noise(i) for i in range(10)])
    loader = DataLoader(data, batch_size=4, num_workers=workers, collate_fn=collate)
    served = list(loader)
    assert [len(batch["labels"]) for batch in served] == [4, 4, 2]
    values = torch.cat([batch["pixel_values"] for batch in served])
    assert values.dtype == torch.float32
    assert values.shape == (10, 3, 32, 32)
    assert torch.equal(values, torch.stack([data[i]["pixel_values"] for i in range(10)]))
    labels = torch.cat([batch["labels"] for batch in served])
    assert labels.dtype == torch.int64
    assert torch.equal(labels, data.labels)


def test_any_collate_function_gets_the_same_batch() -> None:
    data = split([noise(i) for i in range(5)])
    fetched = data.__getitems__([4, 1, 2])
    expected = collate(fetched)
    trainers = RemoveColumnsCollator(collate, ["pixel_values", "labels"])
    for found in (
        collate([data[4], data[1], data[2]]),
        collate(list(fetched)),
        default_collate(fetched),
        trainers(fetched),
        collate(fetched[0:3]),
    ):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


class _Devices(TorchDispatchMode):
    """Notes what is copied to another device, and which devices all else is worked out on."""

    def __init__(self) -> None:
        super().__init__()
        self.copied: list[tuple[torch.dtype, int]] = []
        self.worked_on: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        result = made if isinstance(made, torch.Tensor) else made[0]
        given = next((arg for arg in args if isinstance(arg, torch.Tensor)), result)
        if given.device == result.device:
            self.worked_on.add(result.device.type)
        else:
            self.copied.append((given.dtype, given.nbytes))
        return made


@pytest.mark.parametrize(("augmentation", "draws"), [("crop_flip", 3 * 8), ("crop", 3 * 8), ("none", 0)])
def test_a_device_gets_bytes_and_draws_and_needs_the_host_for_nothing_else(augmentation: str, draws: int) -> None:
    data = split([noise(i) for i in range(5)], augmentation)
    data.__getitems__([0]).to("meta")  # where mean and std now are
    fetched = data.__getitems__([4, 1, 2])
    assert collate_for_device(fetched) is fetched
    with _Devices() as devices:
        moved = fetched.to("meta")
    assert devices.copied == [(torch.uint8, 3 * 3 * 32 * 32), (torch.int64, 3 * 8), (torch.int64, 3 * draws)]
    assert devices.worked_on == {"meta"}
    expected = collate(fetched)
    assert {key: (value.dtype, value.shape) for key, value in moved.items()} == {
        key: (value.dtype, value.shape) for key, value in expected.items()
    }


def test_index_out_of_range_ends_iteration() -> None:
    data = split([noise(i) for i in range(3)])
    assert len(list(data)) == len(data) == 3
    assert torch.equal(data[-1]["pixel_values"], data[2]["pixel_values"])
    with pytest.raises(IndexError):
        data[3]


@pytest.mark.parametrize("augmentation", ["crop_flip", "timm"])
def test_split_pickles_for_spawned_workers(augmentation: str) -> None:
    data = split([noise(i, (36, 36)) for i in range(3)], augmentation)
    copy = pickle.loads(pickle.dumps(data))
    torch.manual_seed(0)
    expected = data[1]["pixel_values"]
    torch.manual_seed(0)
    assert torch.equal(copy[1]["pixel_values"], expected)


@pytest.mark.parametrize("augmentation", ["none", "timm"])
def test_unreadable_images_stop_the_run_or_are_left_out(augmentation: str, caplog: pytest.LogCaptureFixture) -> None:
    images = [noise(i) for i in range(300)]
    broken = png(noise(1))[:200]
    data = [{"bytes": broken if i in (2, 290) else png(image), "path": None} for i, image in enumerate(images)]
    with pytest.raises(
        ValueError, match=r"2 unreadable.*2 in split 'train'.*train row 2: .*row 290: .*skip_bad_images=True"
    ):
        split(data, augmentation)
    kept = split(data, augmentation, skip_bad_images=True)
    assert len(kept) == 298
    assert "row 290" in caplog.text
    remaining = [i for i in range(300) if i not in (2, 290)]
    assert kept.labels.tolist() == [i % 7 for i in remaining]
    expected = split([images[i] for i in remaining], augmentation)
    for index in (1, 2, 287, 288, 297):
        served = []
        for part in (kept, expected):
            torch.manual_seed(index)
            served.append(part[index]["pixel_values"])
        assert torch.equal(*served)


def test_many_unreadable_images_are_counted() -> None:
    data = [{"bytes": b"nothing", "path": None}] * 12 + [{"bytes": png(noise(0)), "path": None}]
    with pytest.raises(ValueError, match=r"12 unreadable.*row 9: not an image Pillow can read; and 2 more"):
        split(data)


@pytest.mark.parametrize("workers", [0, 1])
def test_image_that_breaks_after_the_check_is_named(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = split([noise(i, (36, 36)) for i in range(3)], "timm")
    monkeypatch.setattr(ImageRows, "read", lambda self, rows: [OSError("gone") for _ in rows])
    with pytest.raises(UnreadableImagesError, match="train row 1: gone"):
        list(DataLoader(data, sampler=[1], num_workers=workers, collate_fn=collate))


@pytest.mark.parametrize("augmentation", ["none", "crop_flip", "timm"])
def test_without_augmentation_the_images_are_served_as_a_test_split_serves_them(augmentation: str) -> None:
    images = [noise(i, (36, 36)) for i in range(3)]
    plain = split(images, augmentation).without_augmentation()
    expected = split(images, "none")
    for _ in range(2):
        assert torch.equal(
            plain.__getitems__([2, 0]).tensors["pixel_values"], expected.__getitems__([2, 0]).tensors["pixel_values"]
        )
