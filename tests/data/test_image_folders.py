"""A folder of images opens as its classes and splits, whatever its parts are called and wherever they lie."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from datasets_for_tests import (
    noise,
    own_cache,  # noqa: F401
    picture,
    png,
    sizes,
    write_images,
)

from rts_hf.data.image_folders import image_files
from rts_hf.data.sources import open_source

IMAGE = png(picture(0, 0, 4))
TWO = ("cat/0.png", "dog/0.png")


def write_files(folder: Path, *names: str, content: bytes = IMAGE) -> Path:
    """A folder of files that all hold the same, a small image."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def archive(kind: str, *names: str) -> bytes:
    """An archive of small images, or of texts where the suffix is that of a text."""
    files = {name: IMAGE if name.endswith(".png") else b"file_name,label" for name in names}
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as packed:
            for name, content in files.items():
                packed.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode=f"w:{kind}") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


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


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (("train/0.png", "test/0.png"), "'test', 'train'"),
        (("Train/0.png", "val/0.png", "masks/0.png"), "'Train', 'val'"),
        (("val/0.png", "test/0.png"), "'test', 'val'"),
        (("train/0.png",), "'train'"),
        (("train/0.png", "test/0.png", "train/.cache/x", "test/__MACOSX/x"), "'test', 'train'"),
        (("train/0.png", "train/deeper/0.png", "test/0.png"), "'train'"),
        (("train/cat/0.png", "train/dog/0.png", "test/0.png", "test/sub/a.txt"), "'test'"),
    ],
)
def test_splits_without_classes(names: tuple[str, ...], named: str, tmp_path: Path, cache: str) -> None:
    """Left alone they are learned as the classes 'train' and 'test'."""
    with pytest.raises(ValueError, match=rf"splits \({named}\) hold images without class folders.* such as train/cat"):
        open_source(write_files(tmp_path / "pets", *names), cache_dir=cache)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("owl/0.avif", "owl/1.AVIF"), r"'{}owl \(2 \.avif\)'"),
        (("owl/0.qoi", "ox/1"), r"'{}owl \(1 \.qoi\)', '{}ox \(1 without suffix\)'"),
        (("owl/deeper/0.avif",), r"'{}owl \(1 \.avif\)'"),
        (("__owl__/0.avif",), r"'{}__owl__ \(1 \.avif\)'"),
    ],
)
@pytest.mark.parametrize("split", ["", "train/", "valid/"])
def test_class_of_which_no_file_is_read(
    split: str, more: tuple[str, ...], named: str, tmp_path: Path, cache: str
) -> None:
    folder = write_files(tmp_path / "pets", *(f"{split}{name}" for name in (*TWO, *more)))
    if split == "valid/":
        write_files(folder, *(f"train/{name}" for name in TWO))
    with pytest.raises(ValueError, match=f"not one file is read as an image in {named.replace('{}', split)}, and a"):
        open_source(folder, cache_dir=cache)


def test_folder_of_which_no_file_is_read(tmp_path: Path, cache: str) -> None:
    folder = write_files(tmp_path / "avif", "cat/0.avif", "dog/0.avif")
    with pytest.raises(ValueError, match=r"'cat \(1 \.avif\)', 'dog \(1 \.avif\)', and a class .*convert or rename"):
        open_source(folder, cache_dir=cache)
    folder = write_files(tmp_path / "plain", "cat/0", "dog/0")
    with pytest.raises(ValueError, match=r"No \(supported\) data files.*images are told by suffixes such as \.png"):
        open_source(folder, cache_dir=cache)


@pytest.mark.parametrize(
    ("more", "images", "told"),
    [
        (("cat/1.avif", "dog/1.avif", "dog/2", "a.txt"), 2, "2 .avif, 1 .txt, 1 without suffix."),
        (("labels.csv", "classes.json"), 2, "1 .csv, 1 .json."),
        (("cat/more/a.txt",), 2, "1 .txt."),
        (("cat/1.PNG", "cat/2.Jpeg"), 4, None),
        ((".hidden/0.png", "cat/.0.avif", "__MACOSX/cat/0.avif", "cat/Thumbs.db", ".DS_Store"), 2, None),
        (("README.md", "LICENSE", "cat/readme_first.txt", "cat/desktop.ini", "docs/CITATION.cff"), 2, None),
    ],
)
def test_files_that_are_not_read_are_told(
    more: tuple[str, ...], images: int, told: str | None, tmp_path: Path, cache: str, caplog: pytest.LogCaptureFixture
) -> None:
    splits = open_source(write_files(tmp_path / "pets", *TWO, *more), cache_dir=cache).splits
    assert sizes(splits) == {"train": images}
    assert splits["train"].features["label"].names == ["cat", "dog"]
    told = told and f"Folder 'pets' holds files that are not read: {told}"
    assert [record.getMessage() for record in caplog.records] == [told] * bool(told)


def test_what_lies_beside_splits_and_links_to_nothing_are_told(
    tmp_path: Path, cache: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_files(tmp_path / "pets", *(f"train/{name}" for name in TWO), "0.png")
    (folder / "train" / "cat" / "1.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "train" / "cat" / "2.png").symlink_to(folder / "train" / "cat" / "2.png")
    assert sizes(open_source(folder, cache_dir=cache).splits) == {"train": 2}
    assert "files that are not read: 2 broken link or the like, 1 .png." in caplog.text


def test_class_with_two_underscores_is_read(tmp_path: Path, cache: str) -> None:
    folder = write_files(tmp_path / "[x]", *TWO, "__none__/0.png", "__[y]/0.png", "__empty/.hidden")
    train = open_source(folder, cache_dir=cache).splits["train"]
    assert train.features["label"].names == ["__[y]", "__none__", "cat", "dog"]
    assert sorted(train["label"][:]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("train", "other", "labels"),
    [
        (("cat", "dog"), ("cat",), [0]),
        (("cat", "dog"), ("dog",), [1]),
        (("cat", "dog"), ("deeper/dog", "deeper/cat"), [0, 1]),
        (("cat", "dog"), ("dove",), [2]),
        (("dog",), ("cat", "dog"), [0, 1]),
    ],
)
@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_split_may_have_fewer_classes(
    split: str, train: tuple[str, ...], other: tuple[str, ...], labels: list[int], tmp_path: Path, cache: str
) -> None:
    names = *(f"train/{name}/0.png" for name in train), *(f"{split}/{name}/0.png" for name in other)
    splits = open_source(write_files(tmp_path / "pets", *names), cache_dir=cache).splits
    classes = sorted({"cat", "dog", *(name for name in other if name == "dove")})
    assert all(part.features["label"].names == classes for part in splits.values())
    assert splits["train"]["label"][:] == [classes.index(name) for name in train]
    assert splits[split]["label"][:] == labels


@pytest.mark.parametrize("names", [("owl/more/0.png",), ("0.png",)])
def test_images_at_different_depths(names: tuple[str, ...], tmp_path: Path, cache: str) -> None:
    with pytest.raises(ValueError, match=r"images lie at different depths, in .*directly into its folder"):
        open_source(write_files(tmp_path / "pets", *TWO, *names), cache_dir=cache)


def test_splits_of_one_name(tmp_path: Path, cache: str) -> None:
    folder = write_files(tmp_path / "pets", *(f"{split}/{name}" for split in ("train", "Train") for name in TWO))
    if len(list(folder.iterdir())) == 1:
        pytest.skip("a file system that takes them for one")
    with pytest.raises(ValueError, match="of 'Train', 'train' two are one split; merge them"):
        open_source(folder, cache_dir=cache)


@pytest.mark.parametrize("beside", [(), TWO, ("train/cat/0.png", "train/dog/0.png")])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.zip", archive("zip", *TWO)),
        ("train.ZIP", archive("zip", "0.png", "labels.csv")),
        ("data.tar", archive("", *TWO)),
        ("data.tar.gz", archive("gz", *TWO)),
        ("data.tgz", archive("gz", "0.png", "1.png")),
        ("data.tar.xz", archive("xz", *TWO)),
        ("train/cat/data.rar", b"Rar!"),
        ("data.7z", b"7z"),
    ],
)
def test_images_in_archives(name: str, content: bytes, beside: tuple[str, ...], tmp_path: Path, cache: str) -> None:
    folder = write_files(write_files(tmp_path / "pets", *beside), name, content=content)
    with pytest.raises(ValueError, match=f"images in archives are not read, and the folder holds '{name}'. Unpack"):
        open_source(folder, cache_dir=cache)


@pytest.mark.parametrize(
    ("name", "content", "beside"),
    [
        ("data.zip", archive("zip", "0.png", "metadata.csv"), ("samples/0.png",)),
        ("data.tar", archive("", "0.png", "0.cls"), ("samples/0.png",)),
        ("data.tar.gz", archive("gz", "._0.png", "0.cls", "0.png"), ("0.png",)),
        ("data.parquet", b"", ("0.png", "samples/0.png")),
        ("data.zip", archive("zip", "a.csv"), ()),
        ("data.tar", b"damaged", ()),
        ("metadata.csv", b"file_name,label", ()),
    ],
)
def test_tables_are_left_to_datasets(name: str, content: bytes, beside: tuple[str, ...], tmp_path: Path) -> None:
    assert image_files("pets", write_files(write_files(tmp_path, *beside), name, content=content)) is None


def test_table_of_labels_for_files_of_any_name(tmp_path: Path, cache: str) -> None:
    """What a table names is read whatever its suffix; its folders are no classes, and may be called like splits."""
    folder = write_files(tmp_path / "pets", "train/0.png", "test/1.avif", "test/2", "data.zip")
    lines = ["file_name,species", "train/0.png,cat", "test/1.avif,dog", "test/2,cat"]
    (folder / "data.zip").write_bytes(archive("zip", "a.txt"))
    (folder / "metadata.csv").write_text("\n".join(lines))
    train = open_source(folder, cache_dir=cache).splits["train"]
    assert train["species"][:] == ["cat", "dog", "cat"]
