"""Columns are found or named in the error; labels are numbered; any 8-bit image becomes RGB."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets_for_tests import ANIMALS, CIFAR10_CLASSES, noise, picture, png, table

from rts_hf.data.columns import ImageRows, choose_columns, read_labels, to_rgb

INT, STRING, FLOAT = (datasets.Value(kind) for kind in ("int64", "string", "float32"))


def columns(**features: Any) -> Any:
    """An empty table with these columns."""
    return datasets.Dataset.from_dict({name: [] for name in features}, datasets.Features(features))


@pytest.mark.parametrize(
    ("features", "asked", "expected"),
    [
        ({"img": datasets.Image(), "label": ANIMALS}, {}, ("img", "label")),
        ({"img": datasets.Image(), "label": ANIMALS, "id": INT, "file": STRING}, {}, ("img", "label")),
        ({"image": datasets.Image(), "species": STRING}, {}, ("image", "species")),
        ({"image": datasets.Image(), "digit": INT, "weight": FLOAT}, {}, ("image", "digit")),
        ({"a": datasets.Image(), "b": datasets.Image(), "y": INT}, {"image_column": "b"}, ("b", "y")),
        ({"a": datasets.Image(), "x": ANIMALS, "y": ANIMALS}, {"label_column": "y"}, ("a", "y")),
        ({"a": datasets.Image(), "x": ANIMALS, "y": INT}, {"label_column": "y"}, ("a", "y")),
    ],
)
def test_columns_found(features: dict[str, Any], asked: dict[str, str], expected: tuple[str, str]) -> None:
    assert choose_columns({"train": columns(**features)}, **asked) == expected


@pytest.mark.parametrize(
    ("features", "asked", "message"),
    [
        (
            {"img": datasets.Image(), "label": ANIMALS},
            {"image_column": "image"},
            r"image_column='image' is not a column of split 'train'.*img \(Image\), label \(ClassLabel of 2\)",
        ),
        ({"img": datasets.Image(), "y": INT}, {"label_column": "label"}, r"label_column='label' is not.*y \(int64\)"),
        ({"x": STRING, "y": INT}, {}, r"image column cannot be told: none fits.*x \(string\), y \(int64\)"),
        ({"a": datasets.Image(), "b": datasets.Image(), "y": INT}, {}, r"image column.*2 could be it.*image_column"),
        ({"a": datasets.Image(), "x": ANIMALS, "y": ANIMALS}, {}, r"label column.*2 could be it.*label_column"),
        ({"a": datasets.Image(), "x": INT, "y": STRING}, {}, r"label column.*2 could be it"),
        ({"a": datasets.Image()}, {}, r"label column cannot be told: none fits.*two class sub-folders"),
        ({"a": datasets.Image(), "y": INT}, {"image_column": "y"}, r"image_column='y' holds no images"),
        ({"a": datasets.Image(), "y": FLOAT}, {"label_column": "y"}, r"label_column='y' holds no class labels"),
        ({"a": datasets.Image(), "y": INT}, {"label_column": "a"}, r"label_column='a' holds no class labels"),
    ],
)
def test_columns_that_cannot_be(features: dict[str, Any], asked: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_columns({"train": columns(**features)}, **asked)


def test_every_split_must_have_the_columns() -> None:
    train = columns(image=datasets.Image(), label=ANIMALS)
    with pytest.raises(ValueError, match=r"column 'label' of split 'test' is not what it is in split 'train'.*klass"):
        choose_columns({"train": train, "test": columns(image=datasets.Image(), klass=ANIMALS)})
    with pytest.raises(ValueError, match=r"label_column='label' is not a column of split 'test'"):
        choose_columns({"train": train, "test": columns(image=datasets.Image())}, label_column="label")
    with pytest.raises(ValueError, match=r"column 'label' of split 'test'.*label \(int64\)"):
        choose_columns({"train": train, "test": columns(image=datasets.Image(), label=INT)})


@pytest.mark.parametrize(
    ("feature", "train", "test", "names", "numbers"),
    [
        (ANIMALS, [1, 0, 1], [0], ("cat", "dog"), [[1, 0, 1], [0]]),
        (STRING, ["owl", "cat", "owl"], ["cat"], ("cat", "owl"), [[1, 0, 1], [0]]),
        (INT, [10, 9, 10, 2], [2], ("2", "9", "10"), [[2, 1, 2, 0], [0]]),
        (datasets.Value("uint8"), [3, 1], [3], ("1", "3"), [[1, 0], [1]]),
        (datasets.Value("bool"), [True, False], [True], ("False", "True"), [[1, 0], [1]]),
    ],
)
def test_labels_are_numbered(feature: Any, train: Any, test: Any, names: Any, numbers: Any) -> None:
    splits = {"train": table(train, feature), "test": table(test, feature)}
    found, labels = read_labels(splits, "label")
    assert found == names
    assert [labels["train"].tolist(), labels["test"].tolist()] == numbers
    assert labels["train"].dtype == np.int64


@pytest.mark.parametrize(
    ("feature", "train", "test", "message"),
    [
        (ANIMALS, [0, 1], [0, -1], r"row 1 of split 'test' has the label -1, .*2 classes \[cat, dog\].*hidden"),
        (ANIMALS, [0, 1, None], [0], r"row 2 of split 'train' has the label None"),
        (STRING, ["a", "b"], ["a", "c"], r"row 1 of split 'test' has the label 'c'"),
        (STRING, ["a", None], ["a"], r"row 1 of split 'train' has the label None"),
        (INT, [1, 2], [3], r"row 0 of split 'test' has the label 3, which is none of the 2 classes \[1, 2\]"),
    ],
)
def test_label_that_is_no_class(feature: Any, train: Any, test: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_labels({"train": table(train, feature), "test": table(test, feature)}, "label")


@pytest.mark.parametrize("other", [CIFAR10_CLASSES[:9], CIFAR10_CLASSES[::-1]])
def test_splits_must_number_the_same_classes(other: list[str]) -> None:
    splits = {
        "train": table([0, 1], datasets.ClassLabel(names=CIFAR10_CLASSES)),
        "test": table([0, 1], datasets.ClassLabel(names=other)),
    }
    message = rf"split 'test' has {len(other)} classes .*split 'train' has 10"
    with pytest.raises(ValueError, match=message):
        read_labels(splits, "label")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr"])
def test_to_rgb_is_pillows_convert(mode: str) -> None:
    image = noise(0, (9, 7), mode)
    assert to_rgb(image).mode == "RGB"
    assert to_rgb(image).tobytes() == image.convert("RGB").tobytes()


def test_alpha_is_dropped_as_the_pipeline_drops_it() -> None:
    assert to_rgb(PIL.Image.new("RGBA", (1, 1), (10, 20, 30, 0))).getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_wide_pixels_within_8_bits_are_kept(dtype: Any) -> None:
    image = PIL.Image.fromarray(np.array([[0, 7], [200, 255]], dtype=dtype))
    assert [to_rgb(image).getpixel(at) for at in ((1, 0), (0, 1))] == [(7, 7, 7), (200, 200, 200)]


@pytest.mark.parametrize(("dtype", "top"), [(np.uint16, 256), (np.int32, 70000), (np.int32, -1), (np.float32, 0.5)])
def test_wide_pixels_beyond_8_bits_are_refused(dtype: Any, top: float) -> None:
    image = PIL.Image.fromarray(np.array([[0, top]], dtype=dtype))
    with pytest.raises(ValueError, match="8 bits"):
        to_rgb(image)


def test_rows_are_read_one_by_one_with_the_reason_of_a_bad_one() -> None:
    data = [
        {"bytes": png(picture(1, 2)), "path": None},
        None,
        {"bytes": b"nothing", "path": None},
        {"bytes": png(noise(0))[:300], "path": None},
        {"bytes": None, "path": "nowhere.png"},
        {"bytes": png(PIL.Image.fromarray(np.full((4, 4), 9000, dtype=np.uint16))), "path": None},
    ]
    features = datasets.Features({"image": datasets.Image(), "label": INT})
    rows = ImageRows(datasets.Dataset.from_dict({"image": data, "label": range(6)}, features), "image", "train")
    good, *bad = rows.read(range(6))
    assert isinstance(good, PIL.Image.Image)
    assert good.getpixel((0, 0)) == (1, 2, 0)
    reasons = ["no image", "not an image", "", "nowhere.png", "8 bits"]
    for found, reason in zip(bad, reasons, strict=True):
        assert isinstance(found, Exception)
        assert reason in str(found)
    assert "BytesIO" not in "".join(map(str, bad))


def test_orientation_in_the_file_is_followed() -> None:
    import io

    exif = PIL.Image.Exif()
    exif[PIL.Image.ExifTags.Base.Orientation] = 6
    buffer = io.BytesIO()
    picture(1, 2, (8, 4)).save(buffer, "JPEG", exif=exif)
    features = datasets.Features({"image": datasets.Image()})
    data = datasets.Dataset.from_dict({"image": [{"bytes": buffer.getvalue(), "path": None}]}, features)
    image = ImageRows(data, "image", "train").read([0])[0]
    assert isinstance(image, PIL.Image.Image)
    assert image.size == (4, 8)
