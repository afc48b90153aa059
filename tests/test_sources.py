"""Presets, folders and Hub ids open through the real loading code; what cannot be opened is said clearly."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets_for_tests import (
    ANIMALS,
    HUB_PRESETS,
    SCHEMAS,
    noise,
    picture,
    preset_table,
    redirect_hub,
    table,
    write_images,
    write_preset,
)

from rts_hf.sources import PRESETS, match_preset, open_source


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def sizes(splits: Any) -> dict[str, int]:
    return {name: len(part) for name, part in splits.items()}


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_presets_are_complete(preset: Any) -> None:
    assert preset.train_split != preset.test_split
    assert all(0 < value < 1 for value in (*preset.mean, *preset.std))
    assert preset.image_size >= 8


@pytest.mark.parametrize("name", HUB_PRESETS)
@pytest.mark.parametrize("by_id", [False, True])
def test_preset_is_read_from_its_repository(
    name: str, by_id: bool, tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_id = PRESETS[name].hub_id
    assert hub_id is not None
    asked = redirect_hub(monkeypatch, hub_id, write_preset(tmp_path / "repository", name, per_class=1))
    source = open_source(hub_id if by_id else name, cache_dir=cache)
    assert asked == [hub_id]
    assert (source.name, source.origin, source.preset) == (name, hub_id, PRESETS[name])
    assert set(source.splits) == {PRESETS[name].train_split, PRESETS[name].test_split}
    assert match_preset(source.splits["train"].features) == PRESETS[name]


def test_digits_are_scikit_learns_scans() -> None:
    from sklearn.datasets import load_digits

    source = open_source("digits")
    assert (source.name, source.origin) == ("digits", "embedded")
    assert sizes(source.splits) == {"train": 1437, "test": 360}
    found = [(np.asarray(row["image"]), row["label"]) for part in source.splits.values() for row in part]
    scans = load_digits()
    stretched = (scans.images / 16 * 255).round().astype(np.uint8)
    expected = sorted((scan.tobytes(), label) for scan, label in zip(stretched, scans.target, strict=True))
    assert sorted((pixels.tobytes(), label) for pixels, label in found) == expected
    assert found[0][0].shape == (8, 8)
    assert max(pixels.max() for pixels, _ in found) == 255
    counts = np.bincount(source.splits["test"]["label"][:])
    assert counts.min() >= 34
    again = open_source("digits").splits["test"]
    assert again["label"][:] == source.splits["test"]["label"][:]


def test_digits_have_no_configurations() -> None:
    with pytest.raises(ValueError, match=r"dataset_config='big': 'digits' has no configurations"):
        open_source("digits", "big")


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


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train.json", "{bad", "JSON parse error"),
        ("train.parquet", "PAR1", "too small|smaller than"),
        ("train.csv", "", "No columns to parse"),
        ("train.zip", "x", "not a zip file"),
        ("train.tar", "x", "truncated header"),
        ("README.md", "---\n: [\n---\n", "block mapping"),
    ],
)
def test_damaged_files_are_said(file: str, content: str, message: str, tmp_path: Path, cache: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / file).write_text(content)
    with pytest.raises(ValueError, match=rf"mine' with dataset_config=None could not be loaded: [\s\S]*({message})"):
        open_source(str(tmp_path / "mine"), cache_dir=cache)


@pytest.mark.parametrize(
    ("file", "content"), [("dataset_dict.json", "{}"), ("dataset_dict.json", "["), ("state.json", "[]")]
)
def test_damaged_output_of_save_to_disk(file: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match="save_to_disk left there cannot be read"):
        open_source(str(tmp_path))


def test_tables_below_a_path_with_wildcards(tmp_path: Path, cache: str) -> None:
    (tmp_path / "pets [v2]").mkdir()
    table([0, 1], ANIMALS).to_parquet(tmp_path / "pets [v2]" / "train.parquet")
    with pytest.raises(ValueError, match=r"holds \*, \? or \[, which `datasets` reads as wildcards: rename"):
        open_source(str(tmp_path / "pets [v2]"), cache_dir=cache)


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


@pytest.mark.parametrize("name", HUB_PRESETS)
def test_folder_with_the_schema_of_a_preset(name: str, tmp_path: Path, cache: str) -> None:
    source = open_source(str(write_preset(tmp_path / "mine", name, per_class=1)), cache_dir=cache)
    assert (source.name, source.origin, source.preset) == ("mine", "mine", None)
    assert match_preset(source.splits["train"].features) == PRESETS[name]


def test_parquet_files_lying_side_by_side(tmp_path: Path, cache: str) -> None:
    for split, count in (("train", 6), ("valid", 4), ("test", 2)):
        table([0, 1] * (count // 2), ANIMALS).to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    splits = open_source(str(tmp_path), cache_dir=cache).splits
    assert sizes(splits) == {"train": 6, "validation": 4, "test": 2}
    assert splits["train"].features["label"].names == ["cat", "dog"]


def test_output_of_save_to_disk(tmp_path: Path) -> None:
    data = table([0, 1, 0], ANIMALS)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "two")
    assert sizes(open_source(str(tmp_path / "one")).splits) == {"train": 3}
    assert sizes(open_source(str(tmp_path / "two")).splits) == {"train": 3, "test": 1}
    with pytest.raises(ValueError, match="save_to_disk has no configurations"):
        open_source(str(tmp_path / "two"), "big")
    for file in (tmp_path / "one").glob("*.arrow"):
        file.unlink()
    data.select([]).save_to_disk(tmp_path / "none")
    for broken in ("one", "none"):
        with pytest.raises(ValueError, match=r"save_to_disk left there cannot be read.*a split is empty"):
            open_source(str(tmp_path / broken))


def test_changed_folder_is_read_anew(tmp_path: Path, cache: str) -> None:
    folder = write_images(tmp_path / "pets", {"cat": [picture(0, 0)], "dog": [picture(1, 1)]})
    assert sizes(open_source(str(folder), cache_dir=cache).splits) == {"train": 2}
    write_images(folder, {"owl": [picture(2, 2)]})
    train = open_source(str(folder), cache_dir=cache).splits["train"]
    assert train.features["label"].names == ["cat", "dog", "owl"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_only_the_exact_schema_matches_a_preset(name: str) -> None:
    features = preset_table(name, 1).features
    assert match_preset(features) == PRESETS[name]
    assert match_preset({**features, "id": datasets.Value("int64")}) is None
    others = datasets.ClassLabel(names=[f"brand {i}" for i in range(PRESETS[name].num_classes)])
    assert match_preset({**features, PRESETS[name].label_column: others}) is None
    fewer = datasets.ClassLabel(num_classes=3)
    assert match_preset({**features, PRESETS[name].label_column: fewer}) is None
    assert match_preset({**features, PRESETS[name].label_column: datasets.Value("int64")}) is None


@pytest.mark.parametrize("layout", ["images", "parquet"])
def test_a_local_folder_shows_no_bars(
    layout: str, tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if layout == "images":
        folder = write_images(tmp_path / "mine", {name: [picture(0, i) for i in range(30)] for name in ("a", "b")})
    else:
        folder = write_preset(tmp_path / "mine", "cifar10", per_class=1)
    capsys.readouterr()  # writing the folder shows bars too
    open_source(str(folder), cache_dir=cache)
    assert capsys.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()
    hub_id = PRESETS["cifar10"].hub_id
    assert hub_id is not None
    redirect_hub(monkeypatch, hub_id, folder)
    open_source("cifar10", cache_dir=f"{cache}2")
    assert "Generating train split" in capsys.readouterr().err, "of a download the bar is wanted"


def test_bars_come_back_after_an_error_and_stay_away_where_unwanted(tmp_path: Path, cache: str) -> None:
    (tmp_path / "empty").mkdir()
    for unwanted in (False, True):
        (datasets.disable_progress_bars if unwanted else datasets.enable_progress_bars)()
        try:
            with pytest.raises(ValueError, match="could not be loaded"):
                open_source(str(tmp_path / "empty"), cache_dir=cache)
            assert datasets.are_progress_bars_disabled() is unwanted
        finally:
            datasets.enable_progress_bars()


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("dataset", ["cifar10", "owner/pictures", "uoft-cs/cifar100"])
def test_hub_out_of_reach(dataset: str, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=rf"dataset='{dataset}'.*HF_HUB_OFFLINE.*local folder.*'digits'"):
        open_source(dataset, cache_dir=cache)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("cifra10", r"dataset='cifra10' is neither a folder nor a Hub id.*cifar10, cifar100.*'owner/name'"),
        ("./pets", r"dataset='\./pets' is neither"),
        ("a/b/c", r"dataset='a/b/c' is neither"),
        ("~/no/such", r"dataset='~/no/such' is neither"),
        ("", r"dataset='' is neither"),
        ("images/", r"dataset='images/' is neither"),
        ("my images/cats", r"dataset='my images/cats' is neither"),
        (None, r"dataset=None: legal are digits, cifar10.*a local folder, or a Hub id"),
        (3, r"dataset=3: legal are"),
    ],
)
def test_neither_folder_nor_hub_id(dataset: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_source(dataset)


def test_file_in_place_of_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    table([0, 1], ANIMALS).to_parquet(file)
    with pytest.raises(ValueError, match="is a file; give the folder that holds it"):
        open_source(str(file))


def test_folder_without_data(tmp_path: Path, cache: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="could not be loaded"):
        open_source(str(tmp_path / "empty"), cache_dir=cache)


def test_unknown_configuration(tmp_path: Path, cache: str) -> None:
    folder = write_preset(tmp_path / "mine", "cifar10", per_class=1)
    with pytest.raises(ValueError, match=r"dataset_config='big' could not be loaded.*default"):
        open_source(str(folder), "big", cache_dir=cache)


@pytest.mark.parametrize("asked", ["uoft-cs/cifar10", "cifar10"])
def test_folder_named_like_a_hub_id_is_said(
    asked: str, tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_preset(tmp_path / "uoft-cs" / "cifar10", "cifar10", per_class=1)
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert sizes(open_source(asked, cache_dir=cache).splits) == {"train": 10, "test": 10}
    assert "local folder" in caplog.text
    assert "'uoft-cs/cifar10'" in caplog.text
