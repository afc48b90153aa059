"""ResNets for small images, registered with timm: a 3×3 stride-1 stem and no max-pool.

timm's ResNets reduce the image by four before their first block: of a 32×32 image that leaves an 8×8 map for
the first stage and a single position for the last. timm has no argument that changes this, and a stem patched
by hand is not in timm's ``config.json``, so the saved model would not load: hence registered variants. They
load through timm, ``AutoModelForImageClassification`` and ``pipeline`` wherever this module was imported.

Where it was not, timm and transformers know no more than the name in ``config.json``, and their errors repeat
it: "Unknown model", "not supported in your version of timm, please upgrade". So each variant is registered
under a second name too, which says what to do, and saved models record that one.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    get_arch_name,
    is_model,
    model_entrypoint,
    register_model,
)
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

# timm adds the names it registers to this list.
__all__ = ["SMALL_IMAGE_VARIANTS", "SmallImageResNet", "is_small_image_variant", "plain_name", "recorded_name"]

# What a variant's second name adds to the first.
_REMEDY = "__import_rts_hf_first"

# The reduction of timm's 7×7 stride-2 stem and its max-pool, which the variants do not have.
_STEM_REDUCTION = 4


class SmallImageResNet(ResNet):
    """timm's ResNet behind a stem of one 3×3 stride-1 convolution, for images of 8 to 64 pixels.

    Args:
        block: block class of every stage, or one class for each of the four stages.
        layers: number of blocks in each of the four stages.
        stem_width: channels after the stem; an even number.
        output_stride: total reduction of the image, 8, 4 or 2; below 8, dilation replaces the later strides.
        **kwargs: any other argument of ``timm.models.resnet.ResNet``.

    Raises:
        ValueError: on another ``output_stride``, an odd ``stem_width``, or an argument that shapes timm's
            own stem (``stem_type``, ``replace_stem_pool``).

    Example:
        >>> model = SmallImageResNet(BasicBlock, (1, 1, 1, 1), num_classes=10, channels=(16, 32, 64, 128))
        >>> [(stage["module"], stage["reduction"]) for stage in model.feature_info]
        [('act1', 1), ('layer1', 1), ('layer2', 2), ('layer3', 4), ('layer4', 8)]
    """

    def __init__(
        self,
        block: Any,
        layers: tuple[int, ...],
        stem_width: int = 64,
        output_stride: int = 8,
        **kwargs: Any,
    ) -> None:
        for name in ("stem_type", "replace_stem_pool"):
            if kwargs.pop(name, None):
                raise ValueError(
                    f"{name} shapes timm's own ResNet stem; a small-image variant has a single 3x3 stride-1 "
                    f"convolution and no pooling: leave {name} out, or take the timm model without '_small'"
                )
        if output_stride not in (2, 4, 8):
            raise ValueError(
                f"output_stride must be 8, 4 or 2 for a small-image variant, got {output_stride!r}: "
                "its stem does not reduce the image"
            )
        if stem_width < 2 or stem_width % 2:
            raise ValueError(f"stem_width must be an even number from 2 up, got {stem_width!r}")
        # timm takes the width behind the stem from stem_width only where the stem is deep, so a deep one is
        # asked for and then replaced; output_stride is counted by timm with its own stem.
        super().__init__(
            block,
            layers,
            stem_width=stem_width // 2,
            stem_type="deep",
            output_stride=output_stride * _STEM_REDUCTION,
            **kwargs,
        )
        stem = nn.Conv2d(
            kwargs.get("in_chans", 3),
            stem_width,
            kernel_size=3,
            padding=1,
            bias=False,
            device=kwargs.get("device"),
            dtype=kwargs.get("dtype"),
        )
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        self.add_module("conv1", stem)
        self.add_module("maxpool", nn.Identity())
        stages: list[dict[str, Any]] = self.feature_info
        stages[0]["reduction"] = 1
        for stage in stages[1:]:
            stage["reduction"] //= _STEM_REDUCTION


def _cfg() -> dict[str, Any]:
    """The preprocessing record of a variant: timm's fields, no weights to download."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 32, 32),
        "fixed_input_size": False,
        "pool_size": (4, 4),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
    }


_NAMES = (
    "test_resnet_small",
    "resnet_micro_small",
    "resnet10_small",
    "resnet18_small",
    "resnet26_small",
    "resnet34_small",
    "resnet50_small",
    "resnet101_small",
)
# timm reads this name from the module when a model is registered.
default_cfgs = generate_default_cfgs({name + remedy: _cfg() for name in _NAMES for remedy in ("", _REMEDY)})


def _register(entrypoint: Callable[..., SmallImageResNet]) -> Callable[..., SmallImageResNet]:
    """Register with timm, under both names, unless a name is taken: by an earlier import of this module, or by timm.

    The entry point of an earlier import looks its class up by name when called, so a reload needs no
    second registration, which timm would warn about.
    """

    @functools.wraps(entrypoint)
    def again(pretrained: bool = False, **kwargs: Any) -> SmallImageResNet:
        return entrypoint(pretrained, **kwargs)

    again.__name__ = again.__qualname__ = entrypoint.__name__ + _REMEDY
    if not is_model(again.__name__):
        globals()[again.__name__] = register_model(again)  # timm lists it in __all__, so the module must have it
    return entrypoint if is_model(entrypoint.__name__) else register_model(entrypoint)


def _build(variant: str, pretrained: bool, defaults: Mapping[str, Any], kwargs: dict[str, Any]) -> SmallImageResNet:
    return build_model_with_cfg(SmallImageResNet, variant, pretrained, **{**defaults, **kwargs})


@_register
def test_resnet_small(pretrained: bool = False, **kwargs: Any) -> SmallImageResNet:  # noqa: PT028 - not a test
    """The widths and blocks of timm's ``test_resnet``: for tests."""
    blocks = [BasicBlock, BasicBlock, Bottleneck, BasicBlock]
    widths = {"stem_width": 32, "channels": (32, 48, 48, 96), "avg_down": True}
    return _build("test_resnet_small", pretrained, {"block": blocks, "layers": (1, 1, 1, 1), **widths}, kwargs)


@_register
def resnet_micro_small(pretrained: bool = False, **kwargs: Any) -> SmallImageResNet:
    """A narrow ResNet-10 (0.17 M parameters) that trains in seconds on one CPU core."""
    widths = {"stem_width": 8, "channels": (8, 24, 48, 96)}
    return _build("resnet_micro_small", pretrained, {"block": BasicBlock, "layers": (1, 1, 1, 1), **widths}, kwargs)


@_register
def resnet10_small(pretrained: bool = False, **kwargs: Any) -> SmallImageResNet:
    """ResNet-10 (basic blocks)."""
    return _build("resnet10_small", pretrained, {"block": BasicBlock, "layers": (1, 1, 1, 1)}, kwargs)


@_register
def resnet18_small(pretrained: bool = False, **kwargs: Any) -> SmallImageResNet:
    """ResNet-18 (basic blocks)."""
    return _build("resnet18_small", pretrained, {"block": BasicBlock, "layers": (2, 2, 2, 2)}, kwargs)


@_register
def resnet26_small(pretrained: bool = False, **kwargs: Any) -> SmallImageResNet:
    """ResNet-26 (bottleneck blocks)."""
    return _build("resnet26_small", pretrained, {"block": Bottleneck, "layers": (2, 2, 2, 2)}, kwargs)


@_register
def resnet34_small(pretrained: bool = False, **kwargs: Any) -> SmallImageResNet:
    """ResNet-34 (basic blocks)."""
    return _build("resnet34_small", pretrained, {"block": BasicBlock, "layers": (3, 4, 6, 3)}, kwargs)


@_register
def resnet50_small(pretrained: bool = False, **kwargs: Any) -> SmallImageResNet:
    """ResNet-50 (bottleneck blocks)."""
    return _build("resnet50_small", pretrained, {"block": Bottleneck, "layers": (3, 4, 6, 3)}, kwargs)


@_register
def resnet101_small(pretrained: bool = False, **kwargs: Any) -> SmallImageResNet:
    """ResNet-101 (bottleneck blocks)."""
    return _build("resnet101_small", pretrained, {"block": Bottleneck, "layers": (3, 4, 23, 3)}, kwargs)


def is_small_image_variant(architecture: str) -> bool:
    """Whether timm resolves this name (a pretrained tag is ignored) to a model of this module.

    >>> is_small_image_variant("resnet18_small"), is_small_image_variant("resnet18")
    (True, False)
    """
    name = get_arch_name(architecture)
    return plain_name(name) in _NAMES and is_model(name) and model_entrypoint(name).__module__ == __name__


def recorded_name(architecture: str) -> str:
    """The name that a saved model records: of a variant the second one, which tells what must be imported.

    >>> recorded_name("resnet18_small"), recorded_name("resnet18")
    ('resnet18_small__import_rts_hf_first', 'resnet18')
    """
    return plain_name(architecture) + _REMEDY if is_small_image_variant(architecture) else architecture


def plain_name(architecture: str) -> str:
    """The everyday name of an architecture that may be a recorded one.

    >>> plain_name("resnet18_small__import_rts_hf_first"), plain_name("resnet18.a1_in1k")
    ('resnet18_small', 'resnet18.a1_in1k')
    """
    return architecture.removesuffix(_REMEDY)


#: timm architecture → its variant here; a variant that stands alone (``resnet10_small``) is not in it.
SMALL_IMAGE_VARIANTS: Mapping[str, str] = MappingProxyType(
    {
        name.removesuffix("_small"): name
        for name in _NAMES
        if is_model(name.removesuffix("_small")) and is_small_image_variant(name)
    }
)
