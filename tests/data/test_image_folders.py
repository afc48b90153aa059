"""A folder of images opens as its classes and splits, whatever its parts are called and wherever they lie."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from datasets_for_tests import (
    noise,
    own_cache,  # noqa: F401
    picture,
    sizes,
    write_images,
)

from rts_hf.data.sources import open_source


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ({"cat": 3, "dog": 2}, {"train": 5}),
        ({"train/cat": 3, "train/dog": 2, "test/cat": 1, "test/dog": 1}, {"train": 5, "test": 2}),
        ({"train/cat": 3, "train/dog": 2, "valid/cat": 1, "valid/dog": 1}, {"train": 5, "valid": 2}),
        ({"Train/cat": 3, "Train/dog": 2, "Val/cat": 1}, {"train": 5, "val": 1}),
        # Left to itself `datasets` takes these for splits and drops the rest.
        ({"bullet train": 3, "car": 2}, {"train": 5}),
        ({"train": 3, "bus": 2, "car": 2}, {"train": 7}),
        ({"test tube": 2, "flask": 2}, {"train": 4}),
    ],
)
def test_folder_of_images(layout: dict[str, int], expected: dict[str, int], tmp_path: Path, cache: str) -> None:
    folder = write_images(tmp_path / "pets", {name: [picture(i, i) for i in range(n)] for name, n in layout.items()})
    source = open_source(str(folder), cache_dir=cache)
    assert (source.name, source.origin, source.preset) == ("pets", "pets", None)
    assert sizes(source.splits) == expected
    classes = sorted({Path(name).name for name in layout})
    assert source.splits["train"].features["label"].names == classes


def test_split_words_in_file_names_are_no_splits(tmp_path: Path, cache: str) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for word in ("train", "test", "other"):
            noise(0).save(tmp_path / "pets" / name / f"{name}_{word}_1.png")
    assert sizes(open_source(str(tmp_path / "pets"), cache_dir=cache).splits) == {"train": 6}


@pytest.mark.parametrize("name", ["spa\nß", "日本 語", "a,b;c", " lead", "[x]", "*", "#1%20", "x.zip", "data.csv"])
def test_any_name_may_be_a_class_or_the_folder(name: str, tmp_path: Path, cache: str) -> None:
    folder = write_images(tmp_path / name, {name: [picture(0, i) for i in range(3)], "plain": [picture(1, 1)]})
    train = open_source(str(folder), cache_dir=cache).splits["train"]
    assert train.features["label"].names == sorted([name, "plain"])
    assert len(train) == 4


@pytest.mark.parametrize("below", ["", "train/", "train/deeper/"])
def test_classes_that_are_links_are_read(below: str, tmp_path: Path, cache: str) -> None:
    """The patterns of `datasets` pass them over, and a class would be missing silently."""
    pictures = [picture(0, i) for i in range(3)]
    elsewhere = write_images(tmp_path / "elsewhere", {"owl": pictures, "ox": pictures})
    folder = write_images(tmp_path / "pets", {f"{below}cat": pictures})
    for name in ("owl", "ox"):
        (folder / below / name).symlink_to(elsewhere / name)
    (folder / below / "cat" / "up").symlink_to(folder)
    splits = open_source(str(folder), cache_dir=cache).splits
    assert sizes(splits) == {"train": 9}
    assert splits["train"].features["label"].names == ["cat", "owl", "ox"]
    (folder / below / "[old]").symlink_to(elsewhere / "ox")
    with pytest.raises(ValueError, match=r"cannot follow the link '.*\[old\]'.*: rename it"):
        open_source(str(folder), cache_dir=cache)


def test_split_that_is_a_link(tmp_path: Path, cache: str) -> None:
    pictures = [picture(0, i) for i in range(3)]
    write_images(tmp_path / "elsewhere", {"cat": pictures, "dog": pictures})
    folder = write_images(tmp_path / "pets", {"test/cat": pictures, "test/dog": pictures[:1]})
    (folder / "train").symlink_to(tmp_path / "elsewhere")
    assert sizes(open_source(str(folder), cache_dir=cache).splits) == {"test": 4, "train": 6}


def test_what_may_not_be_listed_is_said(tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_images(tmp_path / "pets", {"cat": [picture(0, 0)], "dog": [picture(1, 1)]})
    scandir = os.scandir

    def locked(path: Any) -> Any:  # a superuser, as tests may be run by, may list any folder
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", locked)
        with pytest.raises(ValueError, match=r"a folder in it cannot be listed .*Permission denied.*dog"):
            open_source(str(folder), cache_dir=cache)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with pytest.raises(ValueError, match=r"pets': permission to list that folder is missing"):
        open_source(str(folder), cache_dir=cache)


@pytest.mark.parametrize(
    ("folder", "other", "message"),
    [
        ("a::b", "dog", "a path that holds '::'; rename it"),
        ("pets", "c::d", r"names with :: or \\, such as 'c::d'; rename"),
        ("pets", "c\\d", r"names with :: or \\, such as 'c\\\\d'; rename"),
    ],
)
def test_names_that_datasets_takes_apart(folder: str, other: str, message: str, tmp_path: Path, cache: str) -> None:
    write_images(tmp_path / folder, {"cat": [picture(0, 0)], other: [picture(1, 1)]})
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path / folder), cache_dir=cache)


def test_folder_as_a_path_and_cache_that_is_a_file(tmp_path: Path, cache: str) -> None:
    folder = write_images(tmp_path / "pets", {"cat": [picture(0, 0)], "dog": [picture(1, 1)]})
    assert sizes(open_source(folder, cache_dir=cache).splits) == {"train": 2}
    with pytest.raises(ValueError, match=r"cache_dir='.*000\.png' is a file: give a folder"):
        open_source(folder, cache_dir=str(folder / "cat" / "000.png"))


def test_folders_beside_the_splits_are_named(tmp_path: Path, cache: str, caplog: pytest.LogCaptureFixture) -> None:
    pictures = [picture(0, 0)]
    layout = {"train/cat": pictures, "train/dog": pictures, "test": pictures, "old": pictures}
    source = open_source(str(write_images(tmp_path / "pets", layout)), cache_dir=cache)
    assert sizes(source.splits) == {"train": 2}
    assert "not read: ['old', 'test']" in caplog.text


def test_folder_with_a_table_of_labels(tmp_path: Path, cache: str) -> None:
    folder = write_images(tmp_path / "pets", {"train": [picture(i, i) for i in range(4)]})
    lines = ["file_name,species", *(f"{i:03d}.png,{'cat' if i % 2 else 'dog'}" for i in range(4))]
    (folder / "train" / "metadata.csv").write_text("\n".join(lines))
    train = open_source(str(folder), cache_dir=cache).splits["train"]
    assert set(train.features) == {"image", "species"}
    assert train["species"][:] == ["dog", "cat", "dog", "cat"]


def test_readme_header_tells_what_to_read(tmp_path: Path, cache: str) -> None:
    folder = write_images(tmp_path / "pets", {"cat": [picture(0, 0)], "dog": [picture(1, 1)], "junk": [picture(2, 2)]})
    readme = folder / "README.md"
    readme.write_text("# Pets\n")
    assert sizes(open_source(str(folder), cache_dir=cache).splits) == {"train": 3}
    files = "[{split: train, path: ['cat/*', 'dog/*']}]"
    readme.write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {files}\n---\n")
    assert sizes(open_source(str(folder), cache_dir=cache).splits) == {"train": 2}


def test_changed_folder_is_read_anew(tmp_path: Path, cache: str) -> None:
    folder = write_images(tmp_path / "pets", {"cat": [picture(0, 0)], "dog": [picture(1, 1)]})
    assert sizes(open_source(str(folder), cache_dir=cache).splits) == {"train": 2}
    write_images(folder, {"owl": [picture(2, 2)]})
    train = open_source(str(folder), cache_dir=cache).splits["train"]
    assert train.features["label"].names == ["cat", "dog", "owl"]
