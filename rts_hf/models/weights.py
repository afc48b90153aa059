"""Weights from a local safetensors file or folder, or from a package, put into a timm backbone."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from rts_hf.files import read_json_object
from rts_hf.models.backbones import Source, create_backbone, listed
from rts_hf.models.packaged import PACKAGED, read_packaged
from rts_hf.models.small_image import plain_name

logger = logging.getLogger(__name__)

_WEIGHTS = "model.safetensors"
_PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})


class Checkpoint(NamedTuple):
    """Weights read from a file or folder.

    Args:
        path: where they were read.
        weights: tensors by timm's keys, on the CPU.
        config: the ``config.json`` beside them, or as much of one as is known; empty where there is none.
    """

    path: Path
    weights: dict[str, Tensor]
    config: dict[str, Any]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a ``.safetensors`` file, that (sharded or not) of a saved model, checkpoint or run folder, or a package's.

    Keys may be timm's or those of transformers' wrapper (``timm_model.`` before each). Of what is given by its path,
    nothing but safetensors is read, because unpickling a file runs whatever code it holds.

    Args:
        path: of the file or folder, or a key of `PACKAGED`, which goes before a path of that name.

    Raises:
        ValueError: where there is no such file, it is of another format or damaged, or a weight is not finite.
    """
    if not isinstance(path, str | Path):
        raise ValueError(
            f"checkpoint {path!r} is no path: give a .safetensors file or a folder that holds one, as text"
        )
    if path in PACKAGED:
        file, weights = read_packaged(str(path))
        return Checkpoint(file, weights, {"architecture": PACKAGED[str(path)].architecture})
    path = Path(path).expanduser()
    if path.is_dir():
        files = _files_in(path)
    elif not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist: give a .safetensors file or a folder that holds one")
    elif path.suffix != ".safetensors":
        raise ValueError(
            f"checkpoint {path} is no .safetensors file, and other formats may be pickles, which run code when "
            "loaded: convert its state dict with safetensors.torch.save_file where you trust it"
        )
    else:
        files = [path]
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights = {}
    for file in files:
        try:
            weights.update(load_file(file))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"checkpoint {file} could not be read as safetensors: {error}") from error
    weights = {key.removeprefix("timm_model."): value for key, value in weights.items()}
    if broken := [key for key, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise ValueError(
            f"checkpoint {path} holds NaN or infinite values in {listed(broken)}: its training diverged; take an "
            "earlier checkpoint"
        )
    return Checkpoint(path, weights, read_config(files[0].parent))


def read_config(folder: str | Path) -> dict[str, Any]:
    """The ``config.json`` of a saved model; empty where the folder has none.

    Raises:
        ValueError: where the file is not a JSON object.
    """
    path = Path(folder) / "config.json"
    return read_json_object(path) if path.is_file() else {}


def checkpoint_architecture(path: str | Path) -> str | None:
    """The timm architecture that a checkpoint's own ``config.json`` names; None where there is none that says.

    Args:
        path: as for `read_checkpoint`. The weights are not read.

    Returns:
        The everyday name, without a tag: the weights are the checkpoint's, not those of a tag.

    Raises:
        ValueError: where ``config.json`` is damaged.
    """
    if path in PACKAGED:
        return PACKAGED[str(path)].architecture
    path = Path(path).expanduser()
    named = read_config(path if path.is_dir() else path.parent).get("architecture")
    return plain_name(named.partition(".")[0]) if isinstance(named, str) and named else None


def create_from_checkpoint(
    source: Source, checkpoint: Checkpoint, *, label_names: Sequence[str], arguments: Mapping[str, Any]
) -> Any:
    """Build a backbone with a checkpoint's weights, strictly but for the classifier.

    The classifier starts anew where the checkpoint has none or one of another class count, which is logged.
    timm resamples position and patch embeddings of another image or patch size, as for its own weights.

    Raises:
        ValueError: where anything else does not fit; the first missing, unexpected and mis-shaped keys are listed.
    """
    classes = len(label_names)
    fresh = create_backbone(source, num_classes=classes, **arguments)
    expected: dict[str, Tensor] = fresh.state_dict()
    layers = fresh.pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{layer}." for layer in ([layers] if isinstance(layers, str) else layers))
    head = {key: value for key, value in expected.items() if key.startswith(prefixes)}

    weights = dict(checkpoint.weights)
    counts = {weights[key].shape[0] for key in head if key in weights and weights[key].ndim}
    if head and counts != {classes}:
        logger.warning(
            "checkpoint %s has %s, the data set %d classes: the classifier starts anew",
            checkpoint.path,
            " and ".join(f"{count} classes" for count in sorted(counts)) or "no classifier",
            classes,
        )
        weights.update(head)
    elif isinstance(trained_on := checkpoint.config.get("label_names"), list) and trained_on != list(label_names):
        logger.warning(
            "checkpoint %s was trained on the labels %s, the data set has %s: the classifier is kept",
            checkpoint.path,
            listed(trained_on),
            listed(label_names),
        )
    # With the state dict as timm's pretrained weights, timm converts and resamples what it can, then loads strictly.
    overlay = {"state_dict": weights, "num_classes": classes, "label_offset": 0, "custom_load": False}
    try:
        backbone = create_backbone(
            source, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes, **arguments
        )
    except ValueError as error:
        named = checkpoint.config.get("architecture")
        origin = f", which is of {plain_name(str(named))}," if named else ""
        raise ValueError(
            f"checkpoint {checkpoint.path}{origin} does not fit {source.architecture} with {dict(arguments)}: "
            f"{_differences(weights, expected) or error}; build the model that it was made with"
        ) from error
    backbone.pretrained_cfg.pop("state_dict")  # a second copy of every weight
    return backbone


def _differences(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    kinds = {
        "missing": [key for key in expected if key not in weights],
        "unexpected": [key for key in weights if key not in expected],
        "of another shape": [
            f"{key} {tuple(weights[key].shape)} where the model has {tuple(value.shape)}"
            for key, value in expected.items()
            if key in weights and weights[key].shape != value.shape
        ],
    }
    return "; ".join(f"{len(keys)} {kind}: {listed(keys)}" for kind, keys in kinds.items() if keys)


def _files_in(folder: Path) -> list[Path]:
    index = folder / f"{_WEIGHTS}.index.json"
    if index.is_file():
        shards = read_json_object(index).get("weight_map")
        if not (isinstance(shards, dict) and shards and all(isinstance(shard, str) for shard in shards.values())):
            raise ValueError(f"{index} has no weight_map from weights to files: save the model again")
        return sorted({folder / shard for shard in shards.values()})
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    hints = ""
    try:
        names = list(folder.iterdir())
    except OSError as error:
        raise ValueError(f"checkpoint folder {folder} cannot be listed: {error}") from error
    if pickles := sorted(file.name for file in names if file.suffix in _PICKLES):
        hints += f"; {listed(pickles)} may be pickles, which run code when loaded and are not read"
    if steps := sorted(folder.glob(f"checkpoint-*/{_WEIGHTS}"), key=lambda file: (len(str(file)), file)):
        hints += f"; {steps[-1].parent} inside it is a checkpoint"
    raise ValueError(f"checkpoint folder {folder} holds no {_WEIGHTS}{hints}")
