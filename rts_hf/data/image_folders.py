"""Folders of image files: what lies in them, in one walk that opens no image, and how `datasets` is to read it."""

from __future__ import annotations

import glob
import logging
import os
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import PIL.Image

from rts_hf.data.splits import SPLIT_NAMES

logger = logging.getLogger(__name__)

_METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# Of tables, only these can hold images.
_TABLE_SUFFIXES = {".parquet", ".arrow"}
_ARCHIVE_SUFFIXES = (
    *(".zip", ".7z", ".rar", ".tar", ".tgz", ".tbz2", ".txz"),
    *(".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"),
)
# What accompanies a data set and is no part of it.
_NO_DATA = re.compile(
    r"thumbs\.db|desktop\.ini|(config|dataset_infos?)\.json"
    r"|(readme|licen[sc]e|copying|notice|citation|changelog)(.*\.(md|txt|rst|html?|pdf|bib|cff))?",
    re.IGNORECASE,
)
_NO_FOLDERS = ("__MACOSX", "__pycache__")
_NAMED = 5  # at most, in a message


@dataclass
class _Place:
    """A folder in the tree.

    Args:
        path: the folder.
        steps: names on the way to it from the top, which has none.
        folders: names of its folders; not of hidden ones.
        files: how many files it holds itself, by suffix in lower case.
        archives: names of those of its files that are archives.
        odd: names that `datasets` takes apart.
        has_metadata: whether a table in it tells the labels.
        own_pattern: whether the patterns of `datasets` pass it over unless they name it.
    """

    path: Path
    steps: tuple[str, ...]
    folders: list[str] = field(default_factory=list)
    files: Counter[str] = field(default_factory=Counter)
    archives: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    has_metadata: bool = False
    own_pattern: bool = False

    def holds(self, suffixes: Iterable[str]) -> bool:
        return not self.files.keys().isdisjoint(suffixes)


def image_files(dataset: str, folder: Path) -> dict[str, Any] | None:
    """How `datasets` is to read a tree of image files: keyword arguments of its loader for folders of images.

    Args:
        dataset: what the user asked for, for messages.
        folder: where it lies.

    Returns:
        None where the folder is no such tree: the header of its README, or the first folder in it with a table or an
        image, says so.

    Raises:
        ValueError: something in it would be missing silently or learned wrongly: images in archives, a folder that may
            not be listed, a class of which no file is read, images at several depths, splits without classes, names
            that `datasets` cannot read.
    """
    readme = folder / "README.md"
    if readme.is_file() and readme.read_text(encoding="utf-8", errors="replace").startswith("---"):
        return None  # its header tells `datasets` what to read
    read = _read_suffixes()
    known = read | {suffix for suffix, kind in PIL.Image.registered_extensions().items() if kind in PIL.Image.OPEN}
    walk, places, is_tree = _walk(dataset, folder, read), [], False
    for place in walk:
        places.append(place)
        if place.holds(_TABLE_SUFFIXES) or "table" in _contents(place, known):
            return None
        if is_tree := place.holds(known):
            break
    if not is_tree:
        if any("images" in _contents(place, known) for place in places):
            raise _archived(dataset, places)
        return None
    places.extend(walk)
    if odd := [name for place in places for name in place.odd]:
        raise ValueError(f"dataset={dataset!r}: `datasets` cannot read names with :: or \\, such as {odd[0]!r}; rename")
    parts = _parts(dataset, folder, places)
    used = [place for part in parts.values() for place in part]
    options: dict[str, Any] = {"data_files": {name: _patterns(dataset, part) for name, part in parts.items()}}
    if any(place.has_metadata for place in used):
        return options
    beside = [] if used[0] is places[0] else [places[0]]
    if any(place.archives for place in (*beside, *used)):
        raise _archived(dataset, (*beside, *used))
    for part in parts.values():
        _check_classes(dataset, part, read)
    left: Counter[str] = Counter()
    for place in (*beside, *used):
        left.update({suffix: n for suffix, n in place.files.items() if suffix not in read or place in beside})
    if left:
        logger.warning("Folder '%s' holds files that are not read: %s.", folder.name, _counts(left))
    classes = {place.path.name for place in used if place.holds(read)}
    if len(classes) > 1:
        import datasets

        # Left to itself `datasets` gives no labels to a first split that has a single class.
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=sorted(classes))})
        options |= {"drop_labels": False, "features": features}
    return options


def _read_suffixes() -> set[str]:
    """The suffixes of images that `datasets` reads in a folder; it passes all others over."""
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    return set(ImageFolder.EXTENSIONS)


def _walk(dataset: str, folder: Path, read: set[str]) -> Iterator[_Place]:
    """The folder and those in it, from the top, links followed unless they lead back up."""
    pending = [_Place(folder, ())]
    while pending:
        place = pending.pop()
        below = []
        try:
            with os.scandir(place.path) as entries:
                for entry in entries:
                    name = entry.name
                    if "::" in name or "\\" in name:
                        place.odd.append(name)
                    if name.startswith("."):
                        continue
                    if _is(entry.is_dir):
                        if name not in _NO_FOLDERS and not (entry.is_symlink() and _leads_up(place.path, entry.path)):
                            special = entry.is_symlink() or name.startswith("__")
                            below.append(_Place(place.path / name, (*place.steps, name), own_pattern=special))
                    elif not _is(entry.is_file):
                        place.files["broken link or the like"] += 1
                    elif name in _METADATA_FILES:
                        place.has_metadata = True
                    else:
                        _count(place, name, read)
        except OSError as error:
            raise ValueError(
                f"dataset={dataset!r}: a folder in it cannot be listed ({error}); mend or remove it"
            ) from error
        below.sort(key=lambda found: found.path.name)
        place.folders = [found.path.name for found in below]
        pending.extend(reversed(below))
        yield place


def _is(kind: Any) -> bool:
    try:
        return bool(kind())
    except OSError:  # a link to itself
        return False


def _leads_up(here: Path, link: str) -> bool:
    return here.resolve().is_relative_to(Path(link).resolve())


def _count(place: _Place, name: str, read: set[str]) -> None:
    stem, suffix = os.path.splitext(name.lower())
    if suffix not in read:
        if name.lower().endswith(_ARCHIVE_SUFFIXES):
            place.archives.append(name)
        elif (inner := os.path.splitext(stem)[1]) in read:
            suffix = inner  # `datasets` reads 'a.png.bak' as an image
        elif _NO_DATA.fullmatch(name):
            return
    place.files[suffix or "without suffix"] += 1


def _contents(place: _Place, known: set[str]) -> Iterator[str | None]:
    return (_content(place.path / name, known) for name in place.archives)


def _content(archive: Path, known: set[str]) -> str | None:
    """What an archive holds, by the list of a zip or the first sample of a tar: "images", a "table" with images, or
    None for all else. In a tar for WebDataset each image has a file of the same name beside it."""

    def suffix(name: str) -> str:
        return os.path.splitext(name)[1].lower()

    if archive.suffix.lower() in (".7z", ".rar", ".zst"):
        return "images"  # nothing here can look into these, nor read a table from them
    try:
        if archive.suffix.lower() == ".zip":
            with zipfile.ZipFile(archive) as opened:
                names = opened.namelist()
            table = any(suffix(name) in _TABLE_SUFFIXES or os.path.basename(name) in _METADATA_FILES for name in names)
        else:
            with tarfile.open(archive) as tar:
                names = _first_sample(member.name for member in tar if member.isfile())
            table = len({suffix(name) in known for name in names}) == 2
    except Exception:  # damaged, for which each format has errors of its own; `datasets` tells them
        return None
    return "table" if table else "images" if any(suffix(name) in known for name in names) else None


def _first_sample(names: Iterable[str]) -> list[str]:
    """The files up to the first of another stem, as WebDataset groups them; hidden ones left out.

    >>> _first_sample(["a/._0.png", "a/0.png", "a/0.cls", "a/1.png"])
    ['a/0.png', 'a/0.cls']
    """

    def stem(name: str) -> tuple[str, str]:
        place, file = os.path.split(name)
        return place, file.split(".")[0]

    _, sample = next(groupby((name for name in names if stem(name)[1]), stem), ("", iter(())))
    return list(sample)


def _archived(dataset: str, places: Iterable[_Place]) -> ValueError:
    names = ["/".join((*place.steps, name)) for place in places for name in place.archives]
    return ValueError(
        f"dataset={dataset!r}: images in archives are not read, and the folder holds {_listed(names)}. Unpack what "
        "belongs to the data, then move the archives out of the folder."
    )


def _parts(dataset: str, folder: Path, places: list[_Place]) -> dict[str, list[_Place]]:
    """Split name → its folder and those in it. Left to itself `datasets` finds splits by words in any part of a path:
    of the classes "car" and "bullet train" it would load the second alone, as a split."""
    top = places[0]
    groups = {name: [i for i, names in enumerate(SPLIT_NAMES) if name.lower() in names] for name in top.folders}
    parts: dict[str, list[_Place]] = {name: [] for name, group in groups.items() if group}
    for place in places[1:]:
        if place.steps[0] in parts:
            parts[place.steps[0]].append(place)
    # A class may be called "train"; a split folder holds class folders or a table of labels.
    splits = {name: part for name, part in parts.items() if part[0].folders or part[0].has_metadata}
    if not splits:
        kinds = {i for group in groups.values() for i in group}
        if parts and not top.has_metadata and (len(parts) == len(groups) or (0 in kinds and len(kinds) > 1)):
            raise _without_classes(dataset, parts)
        return {"train": places}
    if ignored := [name for name in top.folders if name not in splits]:
        logger.warning("Folder '%s' has the splits %s; not read: %s.", folder.name, list(splits), ignored)
    if len({name.lower() for name in splits}) < len(splits):
        raise ValueError(f"dataset={dataset!r}: of {_listed(splits)} two are one split; merge them")
    return {name.lower(): part for name, part in splits.items()}


def _without_classes(dataset: str, splits: Iterable[str]) -> ValueError:
    return ValueError(
        f"dataset={dataset!r}: folders named like splits ({_listed(splits)}) hold images without class folders, so the "
        "classes cannot be told. Sort the images into folders such as train/cat and train/dog, or put a metadata.csv "
        "with the columns file_name and label beside them; if these are the classes, rename them."
    )


def _patterns(dataset: str, part: list[_Place]) -> list[str]:
    """The patterns of a split's files. `datasets` does not follow links below a pattern, nor enter folders that begin
    with two underscores: a class that is one would be missing silently, so it has a pattern of its own."""
    filled = {
        place.steps[:i] for place in part if place.files or place.has_metadata for i in range(len(place.steps) + 1)
    }
    patterns = []
    for place in part:
        path = str(place.path.absolute())
        if place is part[0] or (place.own_pattern and place.steps in filled):
            patterns.append(glob.escape(path) + "/**")
        if place.own_pattern and glob.escape(path) != path and place.path.is_symlink():
            raise ValueError(
                f"dataset={dataset!r}: `datasets` cannot follow the link {str(place.path)!r}, whose path holds one of "
                "*, ? and [: rename it, or put the folder itself there"
            )
    return patterns


def _check_classes(dataset: str, part: list[_Place], read: set[str]) -> None:
    """Refuse a split of which `datasets` would drop or mix up a class."""
    split, *_ = part
    depths = {len(place.steps): place for place in part if place.holds(read)}
    if split.steps and len(split.steps) in depths:
        raise _without_classes(dataset, split.steps)
    if len(depths) > 1:
        named = ["/".join(place.steps) or "." for place in depths.values()]
        raise ValueError(
            f"dataset={dataset!r}: images lie at different depths, in {_listed(named)}, so the class folders cannot be "
            "told. Put all images of a class directly into its folder, and the class folders side by side."
        )
    depth = next(iter(depths), None)
    classes = {place.steps for place in part if place.holds(read)}
    lost: dict[tuple[str, ...], Counter[str]] = {}
    for place in part:
        name = place.steps[:depth]
        if place.files and name not in classes and len(place.steps) >= (depth or 0):
            lost.setdefault(name, Counter()).update(place.files)
    if lost:
        named = [f"{'/'.join(name) or '.'} ({_counts(files)})" for name, files in lost.items()]
        raise ValueError(
            f"dataset={dataset!r}: not one file is read as an image in {_listed(named)}, and a class would be missing. "
            "Images are told by suffixes such as .png, .jpg and .webp: convert or rename them, and move out of the "
            "folder what is no class."
        )


def _counts(files: Counter[str]) -> str:
    """
    >>> _counts(Counter({".avif": 12, "without suffix": 1}))
    '12 .avif, 1 without suffix'
    """
    return ", ".join(
        f"{count} {suffix}" for suffix, count in sorted(files.items(), key=lambda item: (-item[1], item[0]))
    )


def _listed(names: Iterable[str]) -> str:
    """
    >>> _listed("abcdefg")
    "'a', 'b', 'c', 'd', 'e' and 2 more"
    """
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(repr, names[:_NAMED])) + more
