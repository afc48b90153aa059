"""Pretrained weights come from the Hub's cache, timm's and those pushed from here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from models_for_tests import (
    VARIANT,
    build,
    cached,
    logits,
    offline_hub,  # noqa: F401
)
from safetensors.torch import save_file

from rts_hf.models.classifiers import plain_name, pretrained_data_config, save_model


def put_timm_weights(hub_cache: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    backbone = timm.create_model("test_vit")
    folder = cached(hub_cache, "timm/test_vit.r160_in1k")
    save_file(backbone.state_dict(), folder / "model.safetensors")
    cfg = {**backbone.pretrained_cfg, "mean": [0.1, 0.2, 0.3]}
    (folder / "config.json").write_text(json.dumps({"architecture": "test_vit", "pretrained_cfg": cfg}))
    return backbone.state_dict()


@pytest.mark.parametrize(
    "name", ["test_vit", "test_vit.r160_in1k", "timm/test_vit.r160_in1k", "hf-hub:timm/test_vit.r160_in1k"]
)
def test_pretrained_weights(name: str, hub_cache: Path) -> None:
    weights = put_timm_weights(hub_cache)
    model = build(name, pretrained=True)
    state = model.timm_model.state_dict()
    assert torch.equal(state["blocks.0.attn.qkv.weight"], weights["blocks.0.attn.qkv.weight"])
    assert state["head.weight"].shape[0] == 3
    assert model.config.architecture == "test_vit"
    assert model.config.model_args == {"img_size": 32, "patch_size": 8}
    twin = timm.create_model("test_vit", pretrained=True, num_classes=3, img_size=32, patch_size=8)
    assert all(torch.equal(state[key], value) for key, value in twin.state_dict().items() if "head" not in key)


def test_the_data_config_of_pretrained_weights(hub_cache: Path) -> None:
    put_timm_weights(hub_cache)
    assert pretrained_data_config("test_vit")["mean"] == (0.5, 0.5, 0.5)
    assert pretrained_data_config("timm/test_vit.r160_in1k")["mean"] == (0.1, 0.2, 0.3)
    assert pretrained_data_config("resnet18.a1_in1k") == {
        "mean": timm.data.IMAGENET_DEFAULT_MEAN,
        "std": timm.data.IMAGENET_DEFAULT_STD,
        "interpolation": "bicubic",
    }
    with pytest.raises(ValueError, match="no pretrained weights for 'resnet18_small'"):
        pretrained_data_config("resnet18_small")


@pytest.mark.parametrize("name", ["test_vit", VARIANT])
def test_a_model_saved_here_and_pushed_is_a_pretrained_one(name: str, hub_cache: Path) -> None:
    """Its recorded arguments are taken up, the image size is the new one."""
    old = build(name)
    save_model(old, cached(hub_cache, "owner/mine"))
    model = build("hf-hub:owner/mine", pretrained=True)
    assert plain_name(model.config.architecture) == name
    assert model.config.model_args == old.config.model_args
    torch.testing.assert_close(logits(model), logits(old))
    assert pretrained_data_config("hf-hub:owner/mine")["std"] == (0.2, 0.25, 0.3)
    larger = build("hf-hub:owner/mine", pretrained=True, image_size=64)
    assert larger.config.model_args == ({"img_size": 64, "patch_size": 8} if name == "test_vit" else {})


@pytest.mark.parametrize("name", ["test_resnet", "timm/test_vit.r160_in1k", "hf-hub:owner/mine"])
def test_pretrained_without_a_network(name: str, hub_cache: Path) -> None:
    repository = {"test_resnet": "timm/test_resnet.r160_in1k"}.get(name, name.removeprefix("hf-hub:"))
    with pytest.raises(
        OSError, match=f"weights in '{repository}' could not be reached.*give the file as checkpoint.*HF_HOME"
    ):
        build(name, pretrained=True)
