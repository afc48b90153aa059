"""The landscapes of finished runs: their models and images loaded again, and every point kept while it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rts_hf.data.loading import DataBundle, load_data
from rts_hf.reports.landscape import Line, Surface, loss_line, loss_surface
from rts_hf.reports.run_folder import read_record
from rts_hf.runs.console import quiet_progress_bars
from rts_hf.training.arguments import DataArguments

BATCH_IMAGES, BATCH_PIXELS = 256, 2**22  # at most, of a batch
# Names that load_data has for arguments of the training command
_RENAMED = {"split_seed": "seed"}


def load_run(folder: str | Path) -> Any:
    """Return the trained classifier of a run folder, in eval mode.

    Raises:
        FileNotFoundError: If the folder holds no run, or no weights.
    """
    from transformers import AutoModelForImageClassification

    read_record(folder)
    if not list(Path(folder).glob("*.safetensors")):
        raise FileNotFoundError(f"run {str(folder)!r} holds no model.safetensors, only records; train it again.")
    with quiet_progress_bars():
        return AutoModelForImageClassification.from_pretrained(str(folder)).eval()


def load_run_data(folder: str | Path, model: Any, *, cache_dir: str | None = None) -> DataBundle:
    """Return the data that a run was trained on, loaded again as its record says.

    Args:
        folder: The run's.
        model: Its model, which knows how images are normalised and resized.
        cache_dir: Where downloaded data sets are kept.

    Raises:
        ValueError: If the data is not there any more, or not the same.
    """
    record = read_record(folder)
    known = {f.name for f in fields(DataArguments)}
    told = {name: value for name, value in record["arguments"]["data"].items() if name in known}
    arguments = {_RENAMED.get(name, name): value for name, value in told.items()}
    preprocessing = getattr(model.config, "pretrained_cfg", None) or {}
    given = {name: preprocessing[name] for name in ("mean", "std", "interpolation") if name in preprocessing}
    data = load_data(**{**arguments, "cache_dir": cache_dir, **given})
    if list(data.label_names) != record["data"]["label_names"] or data.image_size != record["data"]["image_size"]:
        raise ValueError(f"run {str(folder)!r} was trained on other data than {arguments['dataset']!r} now holds.")
    return replace(data, normalisation=record["data"]["normalisation"])


def batches_of(data: DataBundle, *, images: int, split: str = "train") -> list[dict[str, Any]]:
    """Return at most so many images of a split, evenly over it and without augmentation, in batches.

    Args:
        data: As loaded.
        images: At least 1.
        split: ``train`` or ``validation``; the test split is read once, at the end of a run.

    Raises:
        ValueError: If an argument is outside its range.
    """
    if images < 1:
        raise ValueError(f"images={images!r} must be at least 1.")
    if split not in ("train", "validation"):
        raise ValueError(f"split={split!r} must be train or validation: the test split is read once, by the run.")
    source = getattr(data, split).without_augmentation()
    count = min(images, len(source))
    chosen = [index * len(source) // count for index in range(count)]
    size = max(min(BATCH_IMAGES, BATCH_PIXELS // data.image_size**2), 1)
    return [source.__getitems__(chosen[start : start + size]).tensors for start in range(0, count, size)]


def surface_of_run(
    folder: str | Path, path: Path, *, images: int = 512, progress: bool = True, **settings: Any
) -> Surface:
    """Return the loss surface of a run's model on its own training images.

    Args:
        folder: The run's.
        path: The .npz file that a call which was broken off goes on from.
        images: At most so many.
        progress: Whether to show a progress bar.
        **settings: As for :func:`rts_hf.reports.landscape.loss_surface`.

    Raises:
        FileNotFoundError, ValueError: As :func:`load_run`, :func:`load_run_data` and ``loss_surface``.
    """
    model = load_run(folder)
    batches = batches_of(load_run_data(folder, model), images=images)
    return loss_surface(model, batches, path=path, progress=progress, **settings)


def lines_of_runs(
    folders: Sequence[str | Path], paths: Sequence[Path], *, images: int = 512, progress: bool = True, **settings: Any
) -> list[Line]:
    """Return the lines from the first run's weights to each of the others', on the first one's training images.

    Args:
        folders: Of two runs or more, with the same architecture, classes and image size.
        paths: One .npz file a line.
        images, progress: As for :func:`surface_of_run`.
        **settings: As for :func:`rts_hf.reports.landscape.loss_line`.

    Raises:
        FileNotFoundError, ValueError: As :func:`surface_of_run`, and where two runs have different models.
    """
    records = [read_record(folder) for folder in folders]
    for folder, record in zip(folders, records, strict=True):
        for part, key in (("model", "architecture"), ("data", "label_names"), ("data", "image_size")):
            if record[part][key] != records[0][part][key]:
                raise ValueError(
                    f"runs {str(folders[0])!r} and {str(folder)!r} differ in {part} {key}: there is no line between "
                    "their weights; give runs of one model on one data set."
                )
    model = load_run(folders[0])
    batches = batches_of(load_run_data(folders[0], model), images=images)
    first = {key: value.clone() for key, value in model.state_dict().items()}
    return [
        loss_line(model, first, load_run(folder).state_dict(), batches, path=path, progress=progress, **settings)
        for folder, path in zip(folders[1:], paths, strict=True)
    ]
