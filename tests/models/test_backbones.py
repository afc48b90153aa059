"""Names resolve, and backbones fit the size of their images."""

import logging
from typing import Any

import pytest
import timm
import torch
from timm.models import list_models

from rts_hf.models.backbones import (
    MIN_PATCHES,
    Source,
    check_backbone,
    choose_stem,
    create_backbone,
    find_backbone,
    image_arguments,
)
from rts_hf.models.small_image import SMALL_IMAGE_VARIANTS

TRANSFORMERS = [
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "deit3_small_patch16_224",
    "test_vit",
    "test_vit3",
    "swin_tiny_patch4_window7_224",
]


def fit(name: str, size: int, pretrained: bool = False, **given: Any) -> dict[str, Any]:
    return image_arguments(name, size, pretrained=pretrained, given=given, recorded={})


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("resnet18", "resnet18"),
        ("resnet18.a1_in1k", "resnet18"),
        ("timm/resnet18.a1_in1k", "resnet18"),
        ("hf-hub:timm/resnet18.a1_in1k", "resnet18"),
        ("resnet18_small", "resnet18_small"),
        ("vit_tiny_patch16_224_in21k", "vit_tiny_patch16_224"),  # deprecated in timm
    ],
)
def test_names_without_pretrained_need_no_network(name: str, architecture: str) -> None:
    source = find_backbone(name, pretrained=False)
    assert source.architecture == architecture
    assert timm.is_model(source.name)


def test_the_tag_of_pretrained_weights_is_kept() -> None:
    source = find_backbone("resnet18.a1_in1k", pretrained=True)
    assert source.name == "resnet18.a1_in1k"
    assert source.data["hf_hub_id"] == "timm/resnet18.a1_in1k"


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("resnet18x", False, "'resnet18x' is no model of timm .*did you mean resnet18,"),
        ("zzzzzzzzzzzz", False, r"timm.list_models\(\) lists"),
        ("owner/mine", False, "write hf-hub:OWNER/NAME"),
        ("local-dir:somewhere", False, "give a local folder as checkpoint"),
        ("hf-hub:owner/mine", False, "add pretrained=True"),
        ("resnet18.nope", False, "tag that timm does not know; it knows resnet18.a1_in1k"),
        ("resnet18_small", True, "no pretrained weights for 'resnet18_small'"),
        ("hf-hub:not a repository", True, "holds no timm model"),
    ],
)
def test_names_that_do_not_resolve(name: str, pretrained: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_backbone(name, pretrained=pretrained)


@pytest.mark.parametrize("name", sorted(SMALL_IMAGE_VARIANTS))
def test_auto_stem_follows_the_image_size(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert choose_stem(name, 224, wanted=None) == name
    assert not caplog.records
    assert choose_stem(name, 64, wanted=None) == SMALL_IMAGE_VARIANTS[name]
    assert f"{name} becomes {SMALL_IMAGE_VARIANTS[name]}" in caplog.text
    assert choose_stem(name, 32, wanted=False) == name
    assert choose_stem(name, 224, wanted=True) == SMALL_IMAGE_VARIANTS[name]


def test_auto_stem_follows_the_weights() -> None:
    theirs = {"conv1.weight": torch.zeros(64, 3, 7, 7)}
    ours = {"conv1.weight": torch.zeros(64, 3, 3, 3)}
    assert choose_stem("resnet18", 32, wanted=None, weights=theirs) == "resnet18"
    assert choose_stem("resnet18", 224, wanted=None, weights=ours) == "resnet18_small"
    assert choose_stem("resnet18", 224, wanted=None, weights={}) == "resnet18"


def test_stem_of_models_without_a_variant() -> None:
    assert choose_stem("test_vit", 32, wanted=None) == "test_vit"
    assert choose_stem("test_vit", 32, wanted=False) == "test_vit"
    with pytest.raises(ValueError, match=r"'test_vit' has no small-image variant.*test_resnet, resnet18, resnet26"):
        choose_stem("test_vit", 32, wanted=True)


def test_a_variant_named_as_such() -> None:
    assert choose_stem("resnet18_small", 224, wanted=None) == "resnet18_small"
    assert choose_stem("resnet18_small", 224, wanted=True) == "resnet18_small"
    with pytest.raises(ValueError, match="small_image_stem=False contradicts the name 'resnet18_small'"):
        choose_stem("resnet18_small", 32, wanted=False)


@pytest.mark.parametrize(
    ("name", "size", "patch"),
    [
        ("vit_tiny_patch16_224", 224, None),
        ("vit_tiny_patch16_224", 64, None),
        ("vit_tiny_patch16_224", 48, 8),
        ("vit_tiny_patch16_224", 32, 8),
        ("vit_tiny_patch16_224", 28, 4),
        ("vit_tiny_patch16_224", 16, 4),
        ("vit_tiny_patch16_224", 8, 2),
        ("vit_small_patch8_224", 32, None),
        ("eva02_tiny_patch14_224", 28, 4),
        ("eva02_tiny_patch14_224", 224, None),
        ("eva02_tiny_patch14_224", 256, 16),
        ("swin_tiny_patch4_window7_224", 32, None),
        ("swin_tiny_patch4_window7_224", 8, 2),
    ],
)
def test_patch_size(name: str, size: int, patch: int | None) -> None:
    assert fit(name, size) == {"img_size": size} | ({"patch_size": patch} if patch else {})
    assert fit(name, size, pretrained=True) == fit(name, size)


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("size", [16, 32])
def test_fitted_transformers_take_the_image(name: str, size: int) -> None:
    source = find_backbone(name, pretrained=False)
    model = create_backbone(source, num_classes=3, **fit(name, size))
    check_backbone(model, name, channels=3, image_size=size, classes=3)
    assert model.patch_embed.num_patches >= MIN_PATCHES
    assert model(torch.randn(2, 3, size, size)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "size", "patch", "last"),
    [
        ("test_convnext", 64, None, 2),
        ("test_convnext", 32, 1, 4),
        ("convnext_atto", 16, 1, 2),
        ("convnext_atto", 8, 1, 1),
    ],
)
def test_convnext_keeps_a_map_to_look_at(name: str, size: int, patch: int | None, last: int) -> None:
    arguments = fit(name, size)
    assert arguments == ({"patch_size": patch} if patch else {})
    model = create_backbone(find_backbone(name, pretrained=False), num_classes=3, **arguments)
    assert model.forward_features(torch.randn(1, 3, size, size)).shape[-1] == last
    assert fit(name, size, pretrained=True) == {}, "timm does not resample a pretrained ConvNeXt stem"


def test_an_overlapping_convnext_stem_has_no_patches() -> None:
    assert fit("convnext_atto_ols", 32) == {}


def test_given_patches_win() -> None:
    assert fit("vit_tiny_patch16_224", 32, patch_size=4) == {"img_size": 32}
    assert fit("test_convnext", 32, patch_size=2) == {}


@pytest.mark.parametrize(("size", "patch"), [(48, None), (8, 2)])
def test_the_patches_of_a_hub_repository_are_its_own(size: int, patch: int | None) -> None:
    recorded = {"patch_size": 4, "img_size": 64}
    arguments = image_arguments("test_vit", size, pretrained=True, given={}, recorded=recorded)
    assert arguments == {"img_size": size} | ({"patch_size": patch} if patch else {})


def test_an_image_that_no_patch_divides() -> None:
    with pytest.raises(ValueError, match="image_size 33 cannot be cut into 16 or more patches of 16, 8, 4, 2 px"):
        fit("vit_tiny_patch16_224", 33)
    assert fit("vit_tiny_patch16_224", 33, patch_size=11) == {"img_size": 33}


@pytest.mark.parametrize("name", [name for name in list_models("test_*") if "vit" not in name])
def test_every_tiny_timm_model_can_be_fitted(name: str) -> None:
    model = create_backbone(find_backbone(name, pretrained=False), num_classes=3, **fit(name, 32))
    check_backbone(model, name, channels=3, image_size=32, classes=3)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("inception_v3", 32, "inception_v3 cannot take images of image_size 32"),
        ("hieradet_small", 8, "hieradet_small cannot take images of image_size 8"),
        ("coat_tiny", 32, "coat_tiny uses the same weights in several layers"),
    ],
)
def test_backbones_that_cannot_be_used(name: str, size: int, message: str) -> None:
    model = create_backbone(find_backbone(name, pretrained=False), num_classes=3, **fit(name, size))
    with pytest.raises(ValueError, match=message):
        check_backbone(model, name, channels=3, image_size=size, classes=3)


def test_a_backbone_without_logits() -> None:
    model = timm.create_model("test_resnet", num_classes=0)
    with pytest.raises(ValueError, match=r"no classification backbone: one image gives shape \(1, 96\), not shape"):
        check_backbone(model, "test_resnet", channels=3, image_size=32, classes=3)


def test_the_check_leaves_the_model_as_it_was() -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    check_backbone(model, "test_resnet", channels=3, image_size=32, classes=3)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_warns_of_a_single_position_before_the_last_stage(caplog: pytest.LogCaptureFixture) -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    check_backbone(model, "test_resnet", channels=3, image_size=32, classes=3)
    assert not caplog.records
    check_backbone(model, "test_resnet", channels=3, image_size=16, classes=3)
    assert "test_resnet reduces an image of 16 px to a single position before its last stage" in caplog.text


def test_an_unknown_argument_is_named() -> None:
    source = Source("test_resnet", "test_resnet", {}, {})
    with pytest.raises(ValueError, match="model_args holds 'dropout', which test_resnet does not take"):
        create_backbone(source, dropout=0.1)
    with pytest.raises(ValueError, match=r"timm cannot build test_resnet with \{'output_stride': 5\}"):
        create_backbone(source, output_stride=5)
    with pytest.raises(ValueError, match="model_args holds 'dropout', which test_vit does not take"):
        fit("test_vit", 32, dropout=0.1)
