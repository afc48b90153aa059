"""timm backbones by name, with the stem, image and patch size that a small image asks for."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import timm
import torch
from timm.layers import PatchEmbed
from timm.models import (
    PretrainedCfg,
    get_arch_name,
    get_arch_pretrained_cfgs,
    get_deprecated_models,
    get_pretrained_cfg,
    is_model,
    is_model_in_modules,
    is_model_pretrained,
    load_model_config_from_hf,
)
from torch import Tensor, nn

from rts_hf.models.small_image import SMALL_IMAGE_VARIANTS, is_small_image_variant, plain_name

logger = logging.getLogger(__name__)

#: Up to this many pixels a ResNet gets its small-image variant unless told otherwise.
SMALL_IMAGE_SIZE = 64
#: Patch sizes tried for a ViT whose own does not suit the image, and the fewest patches it should see.
PATCH_SIZES = (16, 8, 4, 2)
MIN_PATCHES = 16

# What timm and torch raise for an argument or an image that a model does not take.
_MODEL_ERRORS = (TypeError, ValueError, AssertionError, RuntimeError, LookupError, AttributeError)


class Source(NamedTuple):
    """Where timm finds a backbone.

    Args:
        name: what to ask timm for: an architecture, one with a tag, or ``hf-hub:owner/name``.
        architecture: the architecture it resolves to, without a tag; of a small-image variant the plain name.
        arguments: the model arguments that a Hub repository records.
        data: the fields of timm's pretrained_cfg (``mean``, ``std``, ``interpolation``, ...).
    """

    name: str
    architecture: str
    arguments: dict[str, Any]
    data: dict[str, Any]


def find_backbone(name: str, *, pretrained: bool) -> Source:
    """Resolve the name of a backbone; only a repository for pretrained weights is asked for on the Hub.

    Raises:
        ValueError: on a name timm does not know (close matches are listed), an unknown tag, a repository where
            no pretrained weights are wanted, or a model without such weights.
        OSError: where a repository can be reached neither on the Hub nor in its cache.

    Example:
        >>> find_backbone("resnet18.a1_in1k", pretrained=False).architecture
        'resnet18'
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"name {name!r} is no model: give a timm name such as 'resnet18'")
    name = plain_name(name)
    repository = re.sub(r"^hf[-_]hub:", "", name)
    if not pretrained and repository.startswith("timm/"):
        # timm names its own repositories by architecture and tag.
        repository = name = repository.removeprefix("timm/").partition("@")[0]
    if repository != name or repository.startswith("timm/"):
        if not pretrained:
            raise ValueError(
                f"name {name!r} is a Hub repository, which is read for its weights only: add pretrained=True, "
                "or give a timm architecture"
            )
        return _find_repository(repository)

    architecture = get_arch_name(name)
    if current := get_deprecated_models().get(architecture):
        logger.info("timm calls %s %s now", name, current)
        name, architecture = current, get_arch_name(current)
    _check_known(architecture, name)
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = list(get_arch_pretrained_cfgs(architecture))
        raise ValueError(f"name {name!r} has a tag that timm does not know; it knows {listed(tags)}") from error
    if pretrained and not is_model_pretrained(name):
        close = _close_names(architecture, timm.list_pretrained())
        raise ValueError(
            f"timm has no pretrained weights for {name!r}: leave pretrained out"
            + (f", or give one of {listed(close)}" if close else "")
        )
    return Source(name, architecture, {}, (cfg or PretrainedCfg()).to_dict())


def choose_stem(
    architecture: str, image_size: int, *, wanted: bool | None, weights: Mapping[str, Tensor] | None = None
) -> str:
    """The architecture itself or its small-image variant.

    Args:
        architecture: timm architecture without a tag.
        image_size: pixels of one side.
        wanted: True or False to decide; None to follow the weights, or without any the image size.
        weights: those the model will start from, by timm's keys.

    Raises:
        ValueError: where the variant is wanted of a model that has none, or not wanted of one that is one.

    Example:
        >>> choose_stem("resnet18", 32, wanted=None), choose_stem("resnet18", 224, wanted=None)
        ('resnet18_small', 'resnet18')
    """
    if is_small_image_variant(architecture):
        if wanted is False:
            raise ValueError(
                f"small_image_stem=False contradicts the name {architecture!r}: leave it out, or give a timm model"
            )
        return architecture
    variant = SMALL_IMAGE_VARIANTS.get(architecture)
    if wanted and variant is None:
        raise ValueError(
            f"small_image_stem=True, but {architecture!r} has no small-image variant: leave it out, or take one "
            f"of {', '.join(SMALL_IMAGE_VARIANTS)}"
        )
    if wanted is None and weights is not None:
        stem = weights.get("conv1.weight")
        wanted = stem is not None and tuple(stem.shape[-2:]) == (3, 3)
    elif wanted is None:
        wanted = image_size <= SMALL_IMAGE_SIZE
    if variant is None or not wanted:
        return architecture
    logger.info(
        "%s becomes %s (3x3 stride-1 stem, no max-pool) for images of %d px; small_image_stem=False keeps timm's stem",
        architecture,
        variant,
        image_size,
    )
    return variant


def image_arguments(
    architecture: str, image_size: int, *, pretrained: bool, given: Mapping[str, Any], recorded: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments that fit a backbone to its images; empty for most convolutional ones.

    A model of fixed input size gets ``img_size``. One that cuts patches keeps its own patch size where that
    divides the image into at least 16 patches, else takes the largest of 16, 8, 4 and 2 that does. A ConvNeXt
    from scratch gets ``patch_size=1`` where its last map would be smaller than 2×2 (2 is no help: timm then
    gives the first stage a stride of 2); timm cannot resample its pretrained stem.

    Args:
        architecture: timm architecture without a tag.
        image_size: pixels of one side.
        pretrained: whether pretrained weights will be loaded.
        given: the user's arguments; a patch size among them is left alone.
        recorded: arguments of the Hub repository the weights come from.

    Raises:
        ValueError: where no patch size divides the image, or ``given`` holds what the model does not take.

    Example:
        >>> image_arguments("vit_tiny_patch16_224", 32, pretrained=False, given={}, recorded={})
        {'img_size': 32, 'patch_size': 8}
    """
    cfg = get_pretrained_cfg(architecture)
    fixed = bool(cfg and cfg.fixed_input_size)
    convnext = is_model_in_modules(architecture, ["convnext"]) and not pretrained
    chosen: dict[str, Any] = {"img_size": image_size} if fixed else {}
    if "patch_size" in given or not (fixed or convnext):
        return chosen
    with torch.device("meta"):  # shapes without weights
        probe = create_backbone(Source(architecture, architecture, {}, {}), **{**recorded, **given})
    if convnext:
        stem = probe.stem[0]
        has_patches = isinstance(stem, nn.Conv2d) and stem.stride == stem.kernel_size
        if has_patches and image_size < 2 * probe.feature_info[-1]["reduction"]:
            chosen["patch_size"] = 1
        return chosen
    patches = getattr(probe, "patch_embed", None)  # MLP mixers call theirs stem, and take no patch_size
    if isinstance(patches, PatchEmbed):
        own = patches.patch_size[0]
        sizes = dict.fromkeys((own, *PATCH_SIZES))
        fitting = [size for size in sizes if image_size % size == 0 and (image_size // size) ** 2 >= MIN_PATCHES]
        if not fitting:
            raise ValueError(
                f"image_size {image_size} cannot be cut into {MIN_PATCHES} or more patches of "
                f"{', '.join(map(str, sizes))} px for {architecture}: take a multiple of 8, or give patch_size "
                "in model_args"
            )
        if fitting[0] != own:
            chosen["patch_size"] = fitting[0]
            logger.info(
                "%s gets patches of %d px, not %d, for images of %d px", architecture, fitting[0], own, image_size
            )
    return chosen


def create_backbone(source: Source, **arguments: Any) -> Any:
    """``timm.create_model`` with errors that say what to change.

    Raises:
        ValueError: on an argument the model does not take, which is named, or on values it cannot be built with.
        OSError: where pretrained weights cannot be reached.
    """
    try:
        return timm.create_model(source.name, **arguments)
    except OSError as error:
        raise _unreachable(source.data.get("hf_hub_id") or source.name, error) from error
    except _MODEL_ERRORS as error:
        if unknown := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
            raise ValueError(
                f"model_args holds {unknown[1]!r}, which {source.architecture} does not take: remove it"
            ) from error
        shown = {key: value for key, value in arguments.items() if key != "pretrained_cfg_overlay"}
        raise ValueError(f"timm cannot build {source.name} with {shown}: {_reason(error)}") from error


def check_backbone(backbone: nn.Module, name: str, *, channels: int, image_size: int, classes: int) -> None:
    """Pass one image, so that what the backbone cannot do is found before any data is read.

    Warns where the image is down to a single position before the last stage.

    Raises:
        ValueError: where the backbone fails on the image, does not return one row of logits, or could not be
            saved.
    """
    if len(list(backbone.named_parameters(remove_duplicate=False))) > len(list(backbone.parameters())):
        raise ValueError(
            f"{name} uses the same weights in several layers, which transformers cannot save for a timm model: "
            "take another model"
        )
    training = backbone.training
    like = next(backbone.parameters())
    try:
        with torch.no_grad():
            logits = backbone.eval()(like.new_zeros(1, channels, image_size, image_size))
    except _MODEL_ERRORS as error:
        raise ValueError(
            f"{name} cannot take images of image_size {image_size}: {_reason(error)}; take a larger image_size, "
            "other model_args or another model"
        ) from error
    finally:
        backbone.train(training)
    if not isinstance(logits, Tensor) or logits.shape != (1, classes):
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{name} is no classification backbone: one image gives {found}, not shape (1, {classes})")
    stages = getattr(backbone, "feature_info", None)
    reductions = [stage["reduction"] for stage in stages] if isinstance(stages, list) else []
    if len(reductions) > 1 and reductions[-1] > reductions[-2] >= image_size:
        logger.warning(
            "%s reduces an image of %d px to a single position before its last stage: a larger image_size or a "
            "model with a smaller stride would see more of it",
            name,
            image_size,
        )


def listed(items: Sequence[Any], count: int = 5) -> str:
    """The first few items for a message.

    >>> listed(["a", "b", "c"], count=2)
    'a, b and 1 more'
    """
    return ", ".join(map(str, items[:count])) + (f" and {len(items) - count} more" if len(items) > count else "")


def _find_repository(repository: str) -> Source:
    try:
        data, architecture, arguments = load_model_config_from_hf(repository)
    except OSError as error:
        raise _unreachable(repository, error) from error
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"Hub repository {repository!r} holds no timm model: {_reason(error)}") from error
    _check_known(architecture, repository)
    return Source(
        f"hf-hub:{repository}",
        plain_name(get_arch_name(architecture)),
        dict(arguments or {}),
        {**PretrainedCfg().to_dict(), **data},
    )


def _check_known(architecture: str, name: str) -> None:
    if is_model(architecture):
        return
    if "/" in name or ":" in name:
        hint = "write hf-hub:OWNER/NAME with pretrained for a Hub repository; give a local folder as checkpoint"
    elif close := _close_names(architecture, timm.list_models()):
        hint = f"did you mean {listed(close)}?"
    else:
        hint = "timm.list_models() lists those it knows"
    raise ValueError(f"name {name!r} is no model of timm {timm.__version__}: {hint}")


def _close_names(name: str, names: Sequence[str]) -> list[str]:
    return difflib.get_close_matches(name, list(dict.fromkeys(map(plain_name, names))), n=5, cutoff=0.5)


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _unreachable(repository: str, error: Exception) -> OSError:
    reason = _reason(error).partition(". ")[0].rstrip(".")
    return OSError(
        f"the pretrained weights in {repository!r} could not be reached ({reason}): without a network, download the "
        "model.safetensors of that Hub repository elsewhere and give the file as checkpoint, or point HF_HOME at a "
        "cache that holds it"
    )
