"""The columns of an image data set: which they are, labels as numbers, images as RGB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image


def describe_columns(features: Mapping[str, Any]) -> str:
    """The columns for a message.

    >>> import datasets
    >>> describe_columns({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    'img (Image), label (ClassLabel of 2)'
    """

    def kind(feature: Any) -> str:
        if hasattr(feature, "num_classes"):
            return f"ClassLabel of {feature.num_classes}"
        return str(getattr(feature, "dtype", None) if type(feature).__name__ == "Value" else type(feature).__name__)

    return ", ".join(f"{name} ({kind(feature)})" for name, feature in features.items())


def choose_columns(
    splits: Mapping[str, Any], image_column: str | None = None, label_column: str | None = None
) -> tuple[str, str]:
    """Names of the image and the label column: those given, or the only ones of their kind.

    Args:
        splits: `datasets.Dataset` by split name, the training split first.
        image_column: a column of feature `datasets.Image`.
        label_column: a column of class labels, strings or integers.

    Raises:
        ValueError: a column is missing from a split, is of another kind, or cannot be told from others.
    """
    import datasets

    first, features = next((split, table.features) for split, table in splits.items())
    for argument, name in (("image_column", image_column), ("label_column", label_column)):
        for split, table in splits.items():
            if name is not None and name not in table.features:
                raise ValueError(
                    f"{argument}={name!r} is not a column of split '{split}'; its columns: "
                    f"{describe_columns(table.features)}"
                )
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if image_column is None:
        image_column = _only("image_column", "image", images, features)
    elif image_column not in images:
        raise ValueError(
            f"image_column={image_column!r} holds no images; the columns: {describe_columns(features)}. "
            "Cast it to datasets.Image first, or name another."
        )
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    plain = [name for name, feature in features.items() if _is_plain_label(feature)]
    if label_column is None:
        label_column = _only("label_column", "label", classes or plain, features)
    elif label_column not in classes + plain:
        raise ValueError(
            f"label_column={label_column!r} holds no class labels; the columns: {describe_columns(features)}. "
            "Legal: a ClassLabel, string or integer column."
        )
    for split, table in splits.items():
        for column in (image_column, label_column):
            if type(table.features.get(column)) is not type(features[column]):
                raise ValueError(
                    f"column '{column}' of split '{split}' is not what it is in split '{first}'. "
                    f"In '{first}': {describe_columns(features)}; in '{split}': {describe_columns(table.features)}"
                )
    return image_column, label_column


def _is_plain_label(feature: Any) -> bool:
    dtype = str(getattr(feature, "dtype", ""))
    return type(feature).__name__ == "Value" and dtype.lstrip("u").startswith(("int", "string", "large_string", "bool"))


def _only(argument: str, kind: str, candidates: list[str], features: Mapping[str, Any]) -> str:
    if len(candidates) != 1:
        found = f"{len(candidates)} could be it" if candidates else "none fits"
        hint = (
            ""
            if candidates or kind == "image"
            else ". A folder of images needs two class sub-folders or more, all at one depth"
        )
        raise ValueError(
            f"{argument} is not set and the {kind} column cannot be told: {found}. "
            f"The columns: {describe_columns(features)}. Name one with {argument}{hint}."
        )
    return candidates[0]


def read_labels(splits: Mapping[str, Any], column: str) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Class names, and the labels of each split as int64 `(N,)`.

    Plain strings and integers are numbered in the sorted order of the first split's values.

    Args:
        splits: `datasets.Dataset` by split name, the training split first.
        column: its label column.

    Raises:
        ValueError: splits with different class names, or a label that is none of the classes.
    """
    first = next(iter(splits))
    values = {split: table.with_format(None)[column][:] for split, table in splits.items()}
    names = getattr(splits[first].features[column], "names", None)
    if names is None:
        classes = sorted({value for value in values[first] if value is not None})
        number = {value: index for index, value in enumerate(classes)}
        names = [str(value) for value in classes]
    else:
        number = {index: index for index in range(len(names))}
        for split, table in splits.items():
            if (other := table.features[column].names) != names:
                raise ValueError(
                    f"label column '{column}': split '{split}' has {len(other)} classes {_preview(other)}, split "
                    f"'{first}' has {len(names)}: {_preview(names)}. All splits must number the same classes alike."
                )
    labels = {}
    for split in splits:
        for row, value in enumerate(values[split]):
            if value not in number:
                raise ValueError(
                    f"label column '{column}': row {row} of split '{split}' has the label {value!r}, which is none "
                    f"of the {len(names)} classes {_preview(names)}. Splits whose labels are hidden cannot be used: "
                    "name another split, or mend the labels."
                )
        labels[split] = np.array([number[value] for value in values[split]], dtype=np.int64)
    return tuple(names), labels


def _preview(names: list[str]) -> str:
    return "[" + ", ".join(names[:10]) + (", …]" if len(names) > 10 else "]")


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Any 8-bit image as RGB by Pillow's plain `convert`.

    Alpha is dropped, not composited: `pipeline("image-classification")` loads images this way, and a model must be
    trained on what it is served.

    Raises:
        ValueError: 16- or 32-bit pixels outside 0..255; which range they span is not written in the image.

    >>> to_rgb(PIL.Image.new("L", (2, 2), 7)).getpixel((0, 0))
    (7, 7, 7)
    """
    if image.mode.startswith(("I", "F")):
        pixels = np.asarray(image)
        if image.mode.startswith("F") or pixels.min() < 0 or pixels.max() > 255:
            raise ValueError(f"mode {image.mode} with more than 8 bits a pixel; convert it to 8 bits")
        image = PIL.Image.fromarray(pixels.astype(np.uint8))
    return image.convert("RGB")


class ImageRows:
    """The image column of one source split, read row by row.

    Args:
        table: a `datasets.Dataset`.
        column: its image column, of feature `datasets.Image`.
        split: the source's name for the split, used in messages.
    """

    def __init__(self, table: Any, column: str, split: str) -> None:
        import datasets

        self.split = split
        self.column = column
        self._feature = datasets.Image(mode=table.features[column].mode)
        # Undecoded, so that one bad image is met on its own and not while a whole block is read.
        encoded = table.with_format(None).select_columns([column])
        self._table = encoded.cast_column(column, datasets.Image(decode=False))

    def read(self, rows: Sequence[int]) -> list[PIL.Image.Image | Exception]:
        """The images of `rows` in RGB; in place of one that cannot be read, why, and in which file if known."""
        return [self._decode(value) for value in self._table[list(rows)][self.column]]

    def _decode(self, value: dict[str, Any] | None) -> PIL.Image.Image | Exception:
        if value is None:
            return ValueError("the row holds no image")
        try:
            return to_rgb(self._feature.decode_example(value))
        except Exception as error:  # Pillow's decoders raise nearly anything on broken files
            # The name of an in-memory buffer tells nothing.
            reason = "not an image Pillow can read" if "BytesIO" in str(error) else str(error) or type(error).__name__
            path = value.get("path")
            return ValueError(reason if not path or path in reason else f"{reason} ({path})")
