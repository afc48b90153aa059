"""The images of one split as batches: decoded once, augmented image by image, normalised as timm does."""

from __future__ import annotations

import functools
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np
import PIL.Image
import torch
from timm.data import create_transform
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from rts_hf.data.columns import ImageRows

logger = logging.getLogger(__name__)

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
AUGMENTATIONS = ("auto", "none", "crop", "crop_flip", "timm")

# A split whose uint8 pixels fit in here is decoded once and kept; a larger one is decoded at every fetch.
DECODE_BUDGET_BYTES = 4 * 2**30

_READ_ROWS = 256  # rows read from the table at a time: few enough to stay small, enough to make reading cheap
_NAMED_IMAGES = 10  # bad images named one by one in an error


class BadImage(NamedTuple):
    """An image that cannot be read.

    Args:
        split: the source split it is in.
        row: its row there, from 0.
        reason: why; names the file where the data set knows one.
    """

    split: str
    row: int
    reason: Exception


class UnreadableImagesError(ValueError):
    """Images that cannot be read; made by `unreadable`.

    Args:
        message: how many there are in each split, and which the first of them are. It comes first and can stand
            alone, for so a loader's worker hands errors to the main process.
        images: all of them.
    """

    def __init__(self, message: str, images: Sequence[BadImage] = ()) -> None:
        super().__init__(message)
        self.images = images


def unreadable(images: Sequence[BadImage]) -> UnreadableImagesError:
    """The error for these images."""
    remedy = "Mend or remove them, or leave them out with skip_bad_images=True."
    return UnreadableImagesError(f"{_describe(images)}. {remedy}", images)


@dataclass(frozen=True)
class PixelFormat:
    """What a batch holds: square images of `image_size` pixels, resized by `interpolation`, normalised.

    Args:
        image_size: side in pixels.
        mean: per channel, of pixel values in [0, 1].
        std: per channel, of pixel values in [0, 1].
        interpolation: one of `INTERPOLATIONS`.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 `(B, 3, S, S)` to float32 on the same device, by the operations of ToTensor and Normalize in their
        order."""
        largest, mean, std = _constants(self.mean, self.std, images.device)
        return images.to(torch.float32).div_(largest).sub_(mean).div_(std)


@functools.cache
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The largest pixel value, mean and std on a device, copied there once.

    A tensor for the first, too: by a number a GPU would not divide, but multiply with its rounded inverse.
    """
    largest, mean_by_channel, std_by_channel = (torch.tensor(values, device=device) for values in (255.0, mean, std))
    return largest, mean_by_channel.view(1, 3, 1, 1), std_by_channel.view(1, 3, 1, 1)


class Resize:
    """timm's own test-time resize and centre crop, before normalisation: RGB image to uint8 `(3, S, S)`.

    Args:
        pixel_format: gives size and interpolation.
    """

    def __init__(self, pixel_format: PixelFormat) -> None:
        size = pixel_format.image_size
        self.size = (size, size)
        self.transform = create_transform(
            (3, size, size),
            is_training=False,
            crop_pct=1.0,
            interpolation=pixel_format.interpolation,
            normalize=False,
        )

    def __call__(self, image: PIL.Image.Image) -> Tensor:
        if image.size == self.size:  # as timm would return it, in a third of the time
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return self.transform(image)


class TorchSeeded:
    """A transform that draws from Python's `random`, made to follow torch's default generator.

    timm's random crops draw from `random`, which a torch seed does not fix. Here each call seeds it from torch
    and puts its state back afterwards.
    """

    def __init__(self, transform: Callable[[PIL.Image.Image], Tensor]) -> None:
        self.transform = transform

    def __call__(self, image: PIL.Image.Image) -> Tensor:
        state = random.getstate()
        random.seed(int(torch.randint(2**62, ())))
        try:
            return self.transform(image)
        finally:
            random.setstate(state)


def crop_and_flip(images: Tensor, tops: Tensor, lefts: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Each image zero-padded, cropped back to its size at its own offset, and mirrored where told.

    Equals torchvision's `pad`, `crop` and `hflip` image by image.

    Args:
        images: `(B, C, H, W)`, any type; the other tensors are on the same device.
        tops: int64 `(B,)`, first row of the crop in the padded image, in [0, 2·padding].
        lefts: int64 `(B,)`, first column likewise.
        flips: bool `(B,)`.
        padding: pixels added on every side.
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    columns = torch.arange(width, device=images.device)
    rows = tops[:, None] + torch.arange(height, device=images.device)
    columns = lefts[:, None] + torch.where(flips[:, None], width - 1 - columns, columns)
    pixels = rows[:, :, None] * padded.shape[-1] + columns[:, None, :]
    pixels = pixels.view(batch, 1, -1).expand(batch, channels, -1)
    return padded.view(batch, channels, -1).gather(2, pixels).view(images.shape)


class FetchedBatch:  # not a Sequence: torch 2.7 would pin what is one member by member
    """One fetch of a data set: its pixels as they were decoded, and the crops and flips that were drawn for them.

    `to` finishes it on the device it is moved to. Any collate function can stack the samples, and `collate` take the
    batch, both finished on the CPU.

    Args:
        images: uint8 `(B, 3, S, S)`.
        labels: int64 `(B,)`.
        draws: int64 `(B, 3)`, for each image the offsets and the flip of `crop_and_flip`; `(B, 0)` where all are
            served whole.
        pixel_format: normalisation.
        padding: of `crop_and_flip`.
    """

    def __init__(self, images: Tensor, labels: Tensor, draws: Tensor, pixel_format: PixelFormat, padding: int) -> None:
        self._host = images, labels, draws
        self._pixel_format = pixel_format
        self._padding = padding
        self._is_pinned = False

    def __len__(self) -> int:
        return len(self._host[1])

    @overload
    def __getitem__(self, index: int) -> dict[str, Tensor]: ...
    @overload
    def __getitem__(self, index: slice) -> FetchedBatch: ...
    def __getitem__(self, index: int | slice) -> dict[str, Tensor] | FetchedBatch:
        if isinstance(index, slice):
            return self._like(lambda tensor: tensor[index])
        return {key: value[index] for key, value in self.tensors.items()}

    def _like(self, change: Callable[[Tensor], Tensor]) -> FetchedBatch:
        images, labels, draws = map(change, self._host)
        return FetchedBatch(images, labels, draws, self._pixel_format, self._padding)

    @functools.cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The finished batch on the CPU."""
        return self.to("cpu")

    def pin_memory(self) -> FetchedBatch:
        """The same batch in memory that a device reads while the host goes on; a loader's `pin_memory` calls it."""
        pinned = self._like(Tensor.pin_memory)
        pinned._is_pinned = True
        return pinned

    def to(self, device: torch.device | str, non_blocking: bool = False) -> dict[str, Tensor]:
        """The finished batch on a device: moved there as it is, then cropped, flipped and normalised.

        Args:
            device: any.
            non_blocking: as for a tensor's own `to`; a pinned batch never blocks.
        """
        non_blocking = non_blocking or self._is_pinned
        images, labels, draws = (tensor.to(device, non_blocking=non_blocking) for tensor in self._host)
        if draws.shape[1]:
            tops, lefts, flips = draws.unbind(1)
            images = crop_and_flip(images, tops, lefts, flips.bool(), self._padding)
        return {"pixel_values": self._pixel_format.normalise(images), "labels": labels}


def collate(batch: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The batch a model takes: `pixel_values` float32 `(B, 3, S, S)` and `labels` int64 `(B,)`.

    Args:
        batch: what `ImageClassificationDataset.__getitems__` returns, or a list of single samples.
    """
    if isinstance(batch, FetchedBatch):
        return batch.tensors
    return {key: torch.stack([sample[key] for sample in batch]) for key in ("pixel_values", "labels")}


def collate_for_device(batch: Sequence[dict[str, Tensor]]) -> FetchedBatch | dict[str, Tensor]:
    """As `collate`, but what `__getitems__` returns is left for the device: the loader is to call its `to`.

    A quarter of the bytes is then moved, and the work on pixels is the device's.
    """
    return batch if isinstance(batch, FetchedBatch) else collate(batch)


class DecodedAtFetch:
    """Images read and transformed anew at every fetch: for random transforms, and splits too large to keep.

    Args:
        rows: the source split.
        positions: int64 `(N,)`, the source row of each image of this split.
        transform: RGB image to uint8 `(3, S, S)`.
    """

    def __init__(self, rows: ImageRows, positions: np.ndarray, transform: Callable[[PIL.Image.Image], Tensor]) -> None:
        self.rows = rows
        self.positions = positions
        self.transform = transform

    def __getitem__(self, indices: Tensor) -> Tensor:
        positions = self.positions[indices.numpy()].tolist()
        images = []
        for position, image in zip(positions, self.rows.read(positions), strict=True):
            if isinstance(image, Exception):
                raise unreadable([BadImage(self.rows.split, position, image)]) from image
            images.append(self.transform(image))
        return torch.stack(images)


class ImageClassificationDataset(Dataset[dict[str, Tensor]]):
    """One split. Index it, or give it to a `DataLoader` with `collate_fn=collate`.

    All random numbers come from torch's default generator. Built by `build_split`.

    Args:
        pixels: uint8 `(N, 3, S, S)`, or what decodes them at every fetch.
        labels: int64 `(N,)`.
        pixel_format: size and normalisation of what is served.
        padding: zero padding in pixels of each image's random crop; 0 crops nothing.
        flip: mirror each image with probability 1/2.
    """

    def __init__(
        self,
        pixels: Tensor | DecodedAtFetch,
        labels: Tensor,
        pixel_format: PixelFormat,
        *,
        padding: int = 0,
        flip: bool = False,
    ) -> None:
        self._pixels = pixels
        self.labels = labels
        self.pixel_format = pixel_format
        self.padding = padding
        self.flip = flip

    @property
    def images(self) -> Tensor | None:
        """uint8 `(N, 3, S, S)` before augmentation; None where images are decoded at every fetch."""
        return self._pixels if isinstance(self._pixels, Tensor) else None

    def without_augmentation(self) -> ImageClassificationDataset:
        """The same images as a test split would serve them."""
        pixels = self._pixels
        if isinstance(pixels, DecodedAtFetch):
            pixels = DecodedAtFetch(pixels.rows, pixels.positions, Resize(self.pixel_format))
        return ImageClassificationDataset(pixels, self.labels, self.pixel_format)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> FetchedBatch:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        labels = self.labels[chosen]
        images = self._pixels[chosen]
        return FetchedBatch(images, labels, self._draw(len(images)), self.pixel_format, self.padding)

    def _draw(self, count: int) -> Tensor:
        if not self.padding and not self.flip:
            return torch.empty(count, 0, dtype=torch.int64)
        tops, lefts = torch.randint(2 * self.padding + 1, (2, count))
        flips = torch.rand(count) < 0.5 if self.flip else torch.zeros_like(tops)
        return torch.stack([tops, lefts, flips.long()], dim=1)


def build_split(
    rows: ImageRows,
    positions: np.ndarray,
    labels: np.ndarray,
    pixel_format: PixelFormat,
    *,
    augmentation: str = "none",
    horizontal_flip: bool = True,
    skip_bad_images: bool = False,
) -> ImageClassificationDataset:
    """One split, every image of it read once: into memory where it fits, only to be checked where not.

    Args:
        rows: the source split's images.
        positions: int64 `(N,)`, the source rows that belong to this split.
        labels: int64 `(N,)`, the label of each.
        pixel_format: size and normalisation.
        augmentation: one of `AUGMENTATIONS` but "auto".
        horizontal_flip: whether "timm" flips.
        skip_bad_images: leave out what cannot be read. The split is then shorter than `positions`.

    Raises:
        UnreadableImagesError: images cannot be read and `skip_bad_images` is off.
    """
    size = pixel_format.image_size
    in_memory = augmentation != "timm" and len(positions) * 3 * size * size <= DECODE_BUDGET_BYTES
    resize = Resize(pixel_format)
    images = torch.empty((len(positions) if in_memory else 0, 3, size, size), dtype=torch.uint8)
    readable = np.ones(len(positions), dtype=bool)
    bad: list[BadImage] = []
    if not in_memory:
        logger.info("Reading the %d images of split '%s' once to check them.", len(positions), rows.split)
    for start in range(0, len(positions), _READ_ROWS):
        block = positions[start : start + _READ_ROWS].tolist()
        for index, image in enumerate(rows.read(block), start):
            if isinstance(image, Exception):
                readable[index] = False
                bad.append(BadImage(rows.split, int(positions[index]), image))
            elif in_memory:
                images[index] = resize(image)
    if bad and not skip_bad_images:
        raise unreadable(bad)
    if bad:
        logger.warning("Left out %s.", _describe(bad))
    kept_labels = torch.from_numpy(labels[readable].astype(np.int64))
    pixels: Tensor | DecodedAtFetch
    if in_memory:
        pixels = images[torch.from_numpy(readable)] if bad else images
    else:
        transform = TorchSeeded(_timm_train(pixel_format, horizontal_flip)) if augmentation == "timm" else resize
        pixels = DecodedAtFetch(rows, positions[readable], transform)
    return ImageClassificationDataset(
        pixels,
        kept_labels,
        pixel_format,
        padding=size // 8 if augmentation in ("crop", "crop_flip") else 0,
        flip=augmentation == "crop_flip",
    )


def _timm_train(pixel_format: PixelFormat, horizontal_flip: bool) -> Callable[[PIL.Image.Image], Tensor]:
    return create_transform(
        (3, pixel_format.image_size, pixel_format.image_size),
        is_training=True,
        hflip=0.5 if horizontal_flip else 0.0,
        interpolation=pixel_format.interpolation,
        normalize=False,
    )


def _describe(images: Sequence[BadImage]) -> str:
    counts = Counter(image.split for image in images)
    where = ", ".join(f"{count} in split '{split}'" for split, count in counts.items())
    named = "; ".join(f"{image.split} row {image.row}: {image.reason}" for image in images[:_NAMED_IMAGES])
    more = f"; and {len(images) - _NAMED_IMAGES} more" if len(images) > _NAMED_IMAGES else ""
    return f"{len(images)} unreadable image(s), {where} ({named}{more})"
