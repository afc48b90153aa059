"""Presets, tables and Hub ids open through the real loading code; what cannot be opened is said clearly."""

from __future__ import annotations

import logging
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
    own_cache,  # noqa: F401
    picture,
    preset_table,
    redirect_hub,
    sizes,
    table,
    write_images,
    write_preset,
)

from rts_hf.data.embedded import EMBEDDED
from rts_hf.data.sources import PRESETS, match_preset, open_source


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_presets_are_complete(preset: Any) -> None:
    assert preset.train_split != preset.test_split
    assert all(0 < value < 1 for value in (*preset.mean, *preset.std))
    assert preset.image_size >= 8
    assert (preset.hub_id is None) == (preset.package is not None) == (preset.name in EMBEDDED)


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
        (None, r"dataset=None: legal are digits, photo_patches, mnist_5k, cifar10.*a local folder, or a Hub id"),
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
