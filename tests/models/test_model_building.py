"""A classifier is built as its name and arguments say; what it needs is recorded, what does not fit is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from models_for_tests import DATA, LABELS, build, logits

from rts_hf.models.classifiers import INTERPOLATIONS, build_model, load_model, needs_rts_hf, plain_name, save_model


def test_recorded_names_are_not_suggested() -> None:
    with pytest.raises(ValueError, match=r"did you mean .*resnet_micro_small") as caught:
        build("resnet_micro_small__import_rts")
    assert "_first" not in str(caught.value)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "resnet_micro_small"])
def test_timms_initialisation_is_kept(name: str) -> None:
    """transformers' class would draw every weight of a linear or convolution layer anew."""
    torch.manual_seed(3)
    model = build(name, small_image_stem=None)
    drawn = torch.get_rng_state()
    torch.manual_seed(3)
    twin = timm.create_model(model.config.architecture, num_classes=3, **model.config.model_args)
    assert torch.equal(drawn, torch.get_rng_state()), "nothing else is drawn"
    assert model.training
    for key, value in twin.state_dict().items():
        assert torch.equal(model.timm_model.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("name", "options", "architecture", "arguments"),
    [
        ("test_resnet", {}, "test_resnet_small", {}),
        ("test_resnet", {"image_size": 96}, "test_resnet", {}),
        ("test_resnet", {"image_size": 96, "small_image_stem": True}, "test_resnet_small", {}),
        ("test_resnet.r160_in1k", {"small_image_stem": False}, "test_resnet", {}),
        ("timm/test_vit.r160_in1k", {}, "test_vit", {"img_size": 32, "patch_size": 8}),
        ("test_vit", {"model_args": {"patch_size": 4}}, "test_vit", {"img_size": 32, "patch_size": 4}),
        ("test_convnext", {}, "test_convnext", {"patch_size": 1}),
        (
            "test_convnext",
            {"model_args": {"patch_size": None, "drop_rate": 0.1}},
            "test_convnext",
            {"patch_size": 1, "drop_rate": 0.1},
        ),
        ("test_efficientnet_gn", {"image_size": 48}, "test_efficientnet_gn", {}),
    ],
)
def test_what_is_recorded(name: str, options: dict[str, Any], architecture: str, arguments: dict[str, Any]) -> None:
    config = build(name, **options).config
    assert plain_name(config.architecture) == architecture
    assert needs_rts_hf(config.architecture) is architecture.endswith("_small")
    assert config.model_args == arguments
    assert config.num_labels == 3
    assert config.label2id == {label: index for index, label in enumerate(LABELS[:3])}


def test_the_stem_taken_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="rts_hf")
    build("test_resnet")
    assert "test_resnet becomes test_resnet_small" in caplog.text


def test_grey_images() -> None:
    model = build("test_resnet", mean=[0.5], std=[0.2], model_args={"in_chans": 1})
    assert model.config.pretrained_cfg["input_size"] == [1, 32, 32]
    assert model(torch.randn(2, 1, 32, 32)).logits.shape == (2, 3)


@pytest.mark.parametrize("saved", ["test_resnet", "test_resnet_small"])
def test_a_checkpoint_decides_the_stem(saved: str, tmp_path: Path) -> None:
    save_model(build(saved, small_image_stem=saved.endswith("small")), tmp_path)
    model = build("test_resnet", checkpoint=tmp_path / "model.safetensors")
    assert plain_name(model.config.architecture) == saved
    torch.testing.assert_close(logits(model), logits(load_model(tmp_path)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_names": ["only"]}, "label_names must name at least 2 classes, got .*only"),
        ({"label_names": ["a", "b", "a"]}, "label_names holds 'a' more than once"),
        ({"label_names": [1, 2]}, "label_names must be a sequence of strings"),
        ({"label_names": "ab"}, "label_names must be a sequence of strings"),
        ({"label_names": None}, "label_names must be a sequence of strings"),
        ({"label_names": {"a": 1, "b": 2}}, "label_names must be a sequence of strings"),
        ({"image_size": True}, "image_size must be a whole number"),
        ({"image_size": 0}, "image_size must be a whole number"),
        ({"image_size": 32.0}, "image_size must be a whole number"),
        ({"mean": [0.5]}, "mean must hold 3 finite numbers, one a channel"),
        ({"mean": 0.5}, "mean must hold 3 finite numbers"),
        ({"mean": None}, "mean must hold 3 finite numbers"),
        ({"std": ["a", "b", "c"]}, "std must hold 3 finite numbers"),
        ({"std": [0.5, float("nan"), 1]}, "std must hold 3 finite numbers"),
        ({"std": [0.0, 1, 1]}, "std must be positive"),
        ({"interpolation": "random"}, "interpolation must be one of nearest, bilinear"),
        ({"model_args": {"dropout": 1}}, "model_args holds 'dropout', which test_resnet_small does not take"),
        ({"model_args": [1]}, r"model_args must map names of arguments to values, got \[1\]"),
        ({"model_args": {1: 2}}, "model_args must map names of arguments to values"),
        ({"model_args": {"in_chans": "3"}}, r"model_args\['in_chans'\] must be a whole number from 1 up, got '3'"),
        ({"model_args": {"num_classes": 3}}, "model_args may not hold num_classes"),
        ({"model_args": {"act_layer": torch.nn.GELU}}, r"model_args\['act_layer'\] is .*config.json cannot hold"),
        ({"model_args": {"img_size": 64}}, r"model_args\['img_size'\] 64 is not image_size 32"),
        ({"pretrained": True, "checkpoint": "x"}, "give one of them"),
        ({"pretrained": True, "small_image_stem": True}, "small_image_stem=True does not fit the pretrained weights"),
        ({"name": "test_vit", "small_image_stem": True}, "'test_vit' has no small-image variant"),
        ({"name": None}, "name None is no model: give a timm name"),
        ({"name": " "}, "name ' ' is no model"),
        ({"name": "resnet9"}, "is no model of timm .*did you mean"),
        ({"name": "test_vit", "image_size": 33}, "image_size 33 cannot be cut"),
        ({"checkpoint": "nowhere.safetensors"}, "does not exist"),
        ({"name": "resnet18_small", "pretrained": True}, "no pretrained weights for 'resnet18_small'"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(**{"name": "test_resnet", "label_names": LABELS[:3], **DATA, **options})


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_interpolation_is_one_of_timms(interpolation: str) -> None:
    assert timm.data.transforms.str_to_interp_mode(interpolation).value == interpolation


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("resnet18_small", True),
        ("resnet18_small__import_rts_hf_first", True),
        ("test_resnet_small", True),
        ("resnet18", False),
        ("vit_tiny_patch16_224", False),
        ("no", False),
    ],
)
def test_needs_rts_hf(name: str, needed: bool) -> None:
    assert needs_rts_hf(name) is needed
