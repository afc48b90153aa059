"""timm backbones as HuggingFace image classifiers: one saved folder for transformers, pipelines and timm."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rts_hf.models.backbones import (
    Source,
    check_backbone,
    choose_stem,
    create_backbone,
    find_backbone,
    image_arguments,
    listed,
)
from rts_hf.models.packaged import PACKAGED, told
from rts_hf.models.small_image import is_small_image_variant, plain_name, recorded_name
from rts_hf.models.weights import create_from_checkpoint, read_checkpoint, read_config
from rts_hf.upstream import take

if TYPE_CHECKING:
    from transformers import TimmWrapperForImageClassification

__all__ = [
    "INTERPOLATIONS",
    "build_model",
    "load_model",
    "needs_rts_hf",
    "plain_name",
    "pretrained_data_config",
    "save_model",
]

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")

_RESERVED_ARGUMENTS = frozenset(
    {
        "cache_dir",
        "checkpoint_path",
        "features_only",
        "num_classes",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
    }
)


def build_model(
    name: str,
    *,
    label_names: Sequence[str],
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    small_image_stem: bool | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> TimmWrapperForImageClassification:
    """Build a timm backbone as a transformers classifier that knows its labels and its preprocessing.

    What a small image asks for is chosen here and recorded in the config; ``model_args`` wins:

    - a ResNet listed in ``SMALL_IMAGE_VARIANTS`` becomes that variant (see ``small_image_stem``), which the config
      records by a name that says what loading it takes (``plain_name`` gives the everyday one);
    - a model of fixed input size (ViT, DeiT, Swin, ...) gets ``img_size``;
    - a model that cuts patches keeps its own patch size where that divides the image into at least 16
      patches, else takes the largest of 16, 8, 4 and 2 that does: 8 at 32 px, 4 at 16 and 28 px;
    - a ConvNeXt from scratch gets ``patch_size=1`` where its last map would be smaller than 2×2.

    Args:
        name: timm name with or without a tag (``resnet18``, ``resnet18.a1_in1k``), or with ``pretrained`` a Hub
            repository (``timm/resnet18.a1_in1k``, ``hf-hub:owner/name``).
        label_names: name of each class, in the order of the labels; at least two, no duplicates.
        image_size: height and width of the square input in pixels.
        mean: mean of each channel, of pixels in [0, 1].
        std: standard deviation of each channel, positive.
        interpolation: resize filter of the recorded preprocessing, one of ``INTERPOLATIONS``.
        pretrained: load timm's weights from the Hub or its cache; ``pretrained_data_config(name)`` gives the
            preprocessing they were made with.
        checkpoint: a ``.safetensors`` file or a folder that holds one, with timm's keys or transformers', or a key
            of ``PACKAGED``. The classifier starts anew where the class count differs.
        small_image_stem: take the small-image variant of a ResNet. None: as the checkpoint's own stem says, or
            without one up to 64 px and not for pretrained weights.
        model_args: further arguments of the timm model (``drop_path_rate``, ``patch_size``, ...), as JSON values.

    Raises:
        ValueError: on an unknown name (close matches are listed), bad labels or statistics, an argument the
            model does not take, an image it cannot take, a checkpoint that does not fit (its keys are listed).
        OSError: where pretrained weights can be reached neither on the Hub nor in its cache.

    Example:
        >>> model = build_model("resnet18", label_names=["cat", "dog"], image_size=32, mean=[0.5] * 3, std=[0.25] * 3)
        >>> plain_name(model.config.architecture), model.config.id2label
        ('resnet18_small', {0: 'cat', 1: 'dog'})
    """
    labels = _checked_labels(label_names)
    given = _checked_arguments(model_args)
    channels = given.get("in_chans", 3)
    _check_preprocessing(image_size, mean, std, interpolation, channels)
    if given.get("img_size", image_size) not in (image_size, [image_size] * 2):
        raise ValueError(
            f"model_args['img_size'] {given['img_size']} is not image_size {image_size}: set image_size only"
        )
    if pretrained and checkpoint is not None:
        raise ValueError("pretrained=True and checkpoint both give the weights to start from: give one of them")
    if pretrained and small_image_stem:
        raise ValueError(
            f"small_image_stem=True does not fit the pretrained weights of {name!r}, which have the stem they were "
            "trained with: leave small_image_stem out, or leave pretrained out"
        )
    source = find_backbone(name, pretrained=pretrained)
    loaded = None if checkpoint is None else read_checkpoint(checkpoint)
    if not pretrained:
        weights = loaded.weights if loaded is not None else None
        architecture = choose_stem(source.architecture, image_size, wanted=small_image_stem, weights=weights)
        source = Source(architecture, architecture, {}, {})
    fitted = image_arguments(
        source.architecture, image_size, pretrained=pretrained, given=given, recorded=source.arguments
    )
    arguments = {**source.arguments, **fitted, **given}
    if loaded is not None:
        backbone = create_from_checkpoint(source, loaded, label_names=labels, arguments=arguments)
    else:
        backbone = create_backbone(source, pretrained=pretrained, num_classes=len(labels), **arguments)
    check_backbone(backbone, source.name, channels=channels, image_size=image_size, classes=len(labels))

    recorded = {
        "input_size": [channels, image_size, image_size],
        "interpolation": interpolation,
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "crop_pct": 1.0,  # timm's default of 0.875 would resize 32 px to 36 and crop
        "crop_mode": "center",
        **{key: backbone.pretrained_cfg.get(key) for key in ("fixed_input_size", "first_conv", "classifier")},
    }
    if needs_rts_hf(source.architecture):
        recorded["notes"] = [
            "The architecture is registered with timm by the package rts_hf: import it before loading."
        ]
    return _wrap(backbone, recorded_name(source.architecture), arguments, labels, recorded)


def pretrained_data_config(name: str) -> dict[str, Any]:
    """The ``mean``, ``std`` and ``interpolation`` that a model's pretrained weights were made with.

    Args:
        name: as for ``build_model`` with ``pretrained=True``, or a key of ``PACKAGED``.

    Raises:
        ValueError: on an unknown name or one without pretrained weights.
        OSError: where a Hub repository can be reached neither on the Hub nor in its cache.

    Example:
        >>> pretrained_data_config("vit_tiny_patch16_224")
        {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5), 'interpolation': 'bicubic'}
    """
    packaged = PACKAGED.get(name)
    data = find_backbone(packaged.architecture if packaged else name, pretrained=True).data
    return {"mean": tuple(data["mean"]), "std": tuple(data["std"]), "interpolation": data["interpolation"]}


def base_model_id(name: str) -> str | None:
    """What pretrained weights come from: a Hub repository or a Python package, or None where they lie elsewhere.

    ``name`` and errors are those of ``pretrained_data_config``.

    Example:
        >>> base_model_id("resnet18")
        'timm/resnet18.a1_in1k'
    """
    if name in PACKAGED:
        return told(name)
    source = find_backbone(name, pretrained=True)
    repository = source.name.removeprefix("hf-hub:")
    return repository.partition("@")[0] if repository != source.name else source.data.get("hf_hub_id")


def save_model(model: TimmWrapperForImageClassification, folder: str | Path) -> None:
    """Save a classifier as the one folder that transformers, ``pipeline`` and timm load with equal logits.

    ``config.json`` also holds the preprocessing: ``AutoImageProcessor`` reads it from there.

    Raises:
        TypeError: where the model is not the transformers class itself (unwrap it first).
        ValueError: where ``folder`` is a file.
    """
    from transformers import TimmWrapperForImageClassification

    if not isinstance(model, TimmWrapperForImageClassification):
        raise TypeError(
            f"model must be what build_model returns, a TimmWrapperForImageClassification, got a "
            f"{type(model).__name__}: unwrap it first"
        )
    if Path(folder).is_file():
        raise ValueError(f"folder {folder} is a file: give a folder, which is made where there is none")
    _save_with_timm_keys(model).save_pretrained(folder)


def load_model(folder: str | Path) -> TimmWrapperForImageClassification:
    """Load the classifier that ``save_model`` or a Trainer checkpoint left in a folder, in evaluation mode.

    Raises:
        ValueError: where the folder holds no such model, or weights that do not fit its ``config.json``.
    """
    from transformers import TimmWrapperForImageClassification

    config = read_config(folder)
    if config.get("model_type") != "timm_wrapper" or not read_checkpoint(folder).weights:
        found = f"its config.json names the model_type {config.get('model_type')!r}" if config else "no config.json"
        raise ValueError(
            f"folder {folder} holds no saved classifier ({found}): give the folder that save_model or a Trainer "
            "checkpoint wrote"
        )
    loading: Any = TimmWrapperForImageClassification.from_pretrained
    try:
        model, info = loading(
            str(folder), local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except Exception as error:  # transformers and timm raise nearly anything on a config.json that is not theirs
        raise ValueError(
            f"folder {folder} cannot be loaded as its config.json says: {type(error).__name__}: {error}"
        ) from error
    wrong = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):
        found = "; ".join(f"{kind} {listed(keys)}" for kind, keys in wrong.items() if keys)
        raise ValueError(f"the weights in folder {folder} do not fit its config.json: {found}")
    return _save_with_timm_keys(model)


def needs_rts_hf(architecture: str) -> bool:
    """Whether a saved model loads only after ``import rts_hf``, because its architecture is registered here.

    Both names of a variant are known, the everyday one and the one that ``config.json`` records.

    >>> needs_rts_hf("resnet18_small"), needs_rts_hf("resnet18.a1_in1k")
    (True, False)
    """
    return is_small_image_variant(architecture)


def _wrap(
    backbone: nn.Module,
    architecture: str,
    arguments: dict[str, Any],
    labels: list[str],
    pretrained_cfg: dict[str, Any],
) -> TimmWrapperForImageClassification:
    """Put a timm model into the transformers class with its weights as they are.

    The class, when it builds one itself, draws every linear and convolution weight anew from N(0, 0.02), whatever
    timm's own initialisation: so it is built on the meta device, where nothing is drawn, and given the model.
    """
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    configure: Any = TimmWrapperConfig
    config = configure(
        architecture=architecture,
        model_args=arguments,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        pretrained_cfg=pretrained_cfg,
    )
    with torch.device("meta"):
        model = TimmWrapperForImageClassification(config)
    model.timm_model = backbone
    return _save_with_timm_keys(model)


def _save_with_timm_keys(model: Any) -> Any:
    """Let ``save_pretrained``, also when the Trainer calls it, write timm's keys: without ``timm_model.``."""
    model._weight_conversions = [take("transformers", "PrefixChange")(prefix_to_add="timm_model")]
    return model


def _checked_labels(label_names: Sequence[str]) -> list[str]:
    unordered = isinstance(label_names, str | Mapping | Set) or not isinstance(label_names, Iterable)
    if unordered or not all(isinstance(label, str) for label in label_names):
        raise ValueError(f"label_names must be a sequence of strings, got {label_names!r:.200}")
    if len(label_names) < 2:
        raise ValueError(f"label_names must name at least 2 classes, got {list(label_names)!r}")
    if duplicates := [label for label, count in Counter(label_names).items() if count > 1]:
        raise ValueError(
            f"label_names holds {listed([repr(label) for label in duplicates])} more than once: rename them"
        )
    return list(label_names)


def _checked_arguments(model_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """The given arguments as ``config.json`` will give them back; None means unset, as in timm."""
    if not isinstance(model_args, Mapping | None) or not all(isinstance(key, str) for key in model_args or {}):
        raise ValueError(f"model_args must map names of arguments to values, got {model_args!r:.200}")
    given = {key: value for key, value in (model_args or {}).items() if value is not None}
    if reserved := sorted(_RESERVED_ARGUMENTS & given.keys()):
        raise ValueError(f"model_args may not hold {listed(reserved)}: build_model sets these from its own arguments")
    for key, value in given.items():
        try:
            given[key] = json.loads(json.dumps(value))
        except TypeError as error:
            raise ValueError(
                f"model_args[{key!r}] is {value!r}, which config.json cannot hold: give numbers, strings, booleans, "
                "lists or dicts (timm takes layers by name: act_layer='gelu')"
            ) from error
    return given


def _check_preprocessing(
    image_size: int, mean: Sequence[float], std: Sequence[float], interpolation: str, channels: int
) -> None:
    if not isinstance(channels, int) or channels < 1:
        raise ValueError(f"model_args['in_chans'] must be a whole number from 1 up, got {channels!r}")
    if not isinstance(image_size, int) or isinstance(image_size, bool) or image_size < 1:
        raise ValueError(f"image_size must be a whole number of pixels from 1 up, got {image_size!r}")
    for argument, values in (("mean", mean), ("std", std)):
        try:
            legal = len(values) == channels and all(math.isfinite(value) for value in values)
        except TypeError:  # no sequence, or not of numbers
            legal = False
        if not legal:
            raise ValueError(f"{argument} must hold {channels} finite numbers, one a channel, got {values!r:.200}")
    if min(std) <= 0:
        raise ValueError(f"std must be positive in every channel, got {list(std)!r}")
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {interpolation!r}")
