"""The small-image variants: timm's ResNets behind a stem that does not reduce the image."""

import importlib
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest
import timm
import torch
from timm.models import is_model, is_model_in_modules, list_models
from timm.models.resnet import BasicBlock

from rts_hf.models import small_image
from rts_hf.models.small_image import (
    SMALL_IMAGE_VARIANTS,
    SmallImageResNet,
    is_small_image_variant,
    plain_name,
    recorded_name,
)

REGISTERED = list_models("*", module="small_image")
VARIANTS = sorted({plain_name(name) for name in REGISTERED})
LIGHT = [name for name in VARIANTS if "101" not in name and "50" not in name]


@pytest.fixture
def micro() -> SmallImageResNet:
    torch.manual_seed(0)
    return timm.create_model("resnet_micro_small", num_classes=5)


@pytest.fixture
def registry() -> Iterator[dict[str, object]]:
    from timm.models import _registry

    before = dict(_registry._model_entrypoints)
    yield _registry._model_entrypoints
    _registry._model_entrypoints.clear()
    _registry._model_entrypoints.update(before)


def test_the_table_leads_from_a_timm_name_to_a_variant() -> None:
    assert set(SMALL_IMAGE_VARIANTS) == {"test_resnet", "resnet18", "resnet26", "resnet34", "resnet50", "resnet101"}
    for name, variant in SMALL_IMAGE_VARIANTS.items():
        assert is_model(name)
        assert is_small_image_variant(variant)
        assert not is_small_image_variant(name)
    assert set(SMALL_IMAGE_VARIANTS.values()) | {"resnet10_small", "resnet_micro_small"} == set(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_recorded_name_builds_the_same_model(name: str) -> None:
    recorded = recorded_name(name)
    assert {name, recorded} <= set(REGISTERED)
    assert "import" in recorded
    assert "rts_hf" in recorded
    assert (plain_name(recorded), plain_name(name), recorded_name(recorded)) == (name, name, recorded)
    assert is_small_image_variant(recorded)
    assert hasattr(small_image, recorded), "it is in __all__"
    assert timm.get_pretrained_cfg(recorded).input_size == timm.get_pretrained_cfg(name).input_size
    with torch.device("meta"):
        models = [timm.create_model(each, num_classes=3, drop_rate=0.1) for each in (name, recorded)]
    assert str(models[0]) == str(models[1])
    assert models[0].pretrained_cfg == models[1].pretrained_cfg


@pytest.mark.parametrize("name", ["resnet18", "resnet18.a1_in1k", "vit_tiny_patch16_224", "no_such_small"])
def test_any_other_model_has_one_name(name: str) -> None:
    assert plain_name(name) == recorded_name(name) == name


@pytest.mark.parametrize("name", VARIANTS)
def test_default_cfg(name: str) -> None:
    cfg = timm.create_model(name, num_classes=2).pretrained_cfg
    assert cfg["architecture"] == name
    assert tuple(cfg["input_size"]) == (3, 32, 32)
    assert (cfg["fixed_input_size"], cfg["first_conv"], cfg["classifier"], cfg["crop_pct"]) == (
        False,
        "conv1",
        "fc",
        1.0,
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_trains_on_16_and_32_pixels(name: str) -> None:
    model = timm.create_model(name, num_classes=3)
    for size in (16, 32):
        loss = model(torch.randn(2, 3, size, size)).square().mean()
        model.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        assert model.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", LIGHT)
def test_the_stem_keeps_the_resolution(name: str) -> None:
    model = timm.create_model(name, num_classes=3).eval()
    assert model.conv1.kernel_size == (3, 3)
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        features, maps = model.forward_intermediates(image)
        torch.testing.assert_close(features, model.forward_features(image))
    assert [tuple(one.shape[-2:]) for one in maps] == [(32, 32), (32, 32), (16, 16), (8, 8), (4, 4)]
    for one, info in zip(maps, model.feature_info, strict=True):
        assert one.shape[1] == info["num_chs"]
        assert 32 // one.shape[-1] == info["reduction"]


@pytest.mark.parametrize("name", sorted(SMALL_IMAGE_VARIANTS))
def test_behind_the_stem_a_variant_is_timms_own_network(name: str) -> None:
    with torch.device("meta"):
        ours = timm.create_model(SMALL_IMAGE_VARIANTS[name], num_classes=7)
        theirs = timm.create_model(name, num_classes=7)

    def shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
        return {key: value.shape for key, value in model.state_dict().items() if not key.startswith("conv1")}

    assert shapes(ours) == shapes(theirs)
    assert str(ours.layer1) == str(theirs.layer1)
    assert str(ours.layer4) == str(theirs.layer4)


def test_published_parameter_count() -> None:
    """The ResNet-18 of the CIFAR-10 literature has 11.17 M parameters."""
    with torch.device("meta"):
        model = timm.create_model("resnet18_small", num_classes=10)
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_173_962


def test_the_micro_model_is_light(micro: SmallImageResNet) -> None:
    assert 100_000 < sum(parameter.numel() for parameter in micro.parameters()) < 300_000


def test_the_stem_is_initialised_like_timms() -> None:
    """He initialisation by fan-out, of 256 channels with 3×3 weights."""
    model = SmallImageResNet(BasicBlock, (1, 1, 1, 1), stem_width=256, channels=(8, 8, 8, 8))
    assert model.conv1.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.05)


def test_timm_arguments_pass_through() -> None:
    model = timm.create_model(
        "resnet18_small", num_classes=5, in_chans=1, drop_rate=0.3, drop_path_rate=0.2, act_layer="gelu"
    )
    assert model.conv1.in_channels == 1
    assert model.drop_rate == 0.3
    assert model.layer4[1].drop_path.drop_prob == pytest.approx(0.2)
    assert "GELU" in type(model.act1).__name__
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 5)


def test_device_and_dtype() -> None:
    model = timm.create_model("resnet_micro_small", dtype=torch.float64, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    model = timm.create_model("resnet_micro_small", device="meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_features_only() -> None:
    model = timm.create_model("resnet_micro_small", features_only=True, out_indices=(1, 4))
    assert model.feature_info.reduction() == [1, 8]
    assert [tuple(one.shape) for one in model(torch.randn(2, 3, 32, 32))] == [(2, 8, 32, 32), (2, 96, 4, 4)]


def test_classifier_and_groups(micro: SmallImageResNet) -> None:
    micro.reset_classifier(11)
    assert micro.get_classifier().out_features == 11
    assert micro(torch.randn(2, 3, 16, 16)).shape == (2, 11)
    micro.reset_classifier(0)
    assert micro(torch.randn(2, 3, 16, 16)).shape == (2, 96)
    groups = timm.optim.param_groups_layer_decay(timm.create_model("resnet_micro_small"), layer_decay=0.5)
    assert len({group["lr_scale"] for group in groups}) > 2
    assert micro.prune_intermediate_layers([1]) == [1]


@pytest.mark.parametrize(("output_stride", "last"), [(8, 4), (4, 8), (2, 16)])
def test_output_stride_counts_the_true_reduction(output_stride: int, last: int) -> None:
    model = timm.create_model("resnet_micro_small", output_stride=output_stride)
    assert model.forward_features(torch.randn(1, 3, 32, 32)).shape[-1] == last
    assert model.feature_info[-1]["reduction"] == output_stride


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stem_type": "deep"}, "stem_type shapes timm's own"),
        ({"replace_stem_pool": True}, "replace_stem_pool shapes timm's own"),
        ({"output_stride": 32}, "output_stride must be 8, 4 or 2"),
        ({"stem_width": 7}, "stem_width must be an even number"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model("resnet_micro_small", **arguments)


def test_gradient_checkpointing_changes_nothing(micro: SmallImageResNet) -> None:
    image = torch.randn(4, 3, 16, 16)
    plain = micro(image).detach()
    micro.set_grad_checkpointing()
    torch.testing.assert_close(micro(image).detach(), plain)


def test_reloading_is_silent_and_registers_nothing_twice() -> None:
    before = list_models()
    entrypoint = timm.models.model_entrypoint("resnet18_small")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reloaded = importlib.reload(small_image)
    assert list_models() == before
    assert timm.models.model_entrypoint("resnet18_small") is entrypoint
    assert isinstance(timm.create_model("resnet_micro_small"), reloaded.SmallImageResNet)
    assert dict(reloaded.SMALL_IMAGE_VARIANTS) == dict(SMALL_IMAGE_VARIANTS)


def test_a_name_that_timm_has_is_never_overwritten(registry: dict[str, object]) -> None:
    """As if a later timm brought a model of the same name."""

    def resnet18_small() -> None: ...

    registry["resnet18_small"] = resnet18_small
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reloaded = importlib.reload(small_image)
        assert registry["resnet18_small"] is resnet18_small
        assert "resnet18" not in reloaded.SMALL_IMAGE_VARIANTS
        assert not reloaded.is_small_image_variant("resnet18_small")
        assert isinstance(timm.create_model("resnet18_small__import_rts_hf_first"), reloaded.SmallImageResNet), (
            "what was saved under this name still loads"
        )
        assert reloaded.is_small_image_variant("resnet34_small")
    finally:
        registry["resnet18_small"] = small_image.resnet18_small
        importlib.reload(small_image)


def test_import_is_silent_and_leaves_timms_models_alone() -> None:
    program = (
        "import warnings; warnings.simplefilter('error')\n"
        "import timm; from timm.models._registry import _model_entrypoints as entries; before = dict(entries)\n"
        "import rts_hf.models.small_image\n"
        "assert all(entries[name] is entry for name, entry in before.items()); print(len(entries) - len(before))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(2 * len(VARIANTS)), "")


def test_timm_lists_the_variants_as_a_module_of_their_own() -> None:
    assert "small_image" in timm.list_modules()
    assert is_model_in_modules("resnet18_small", ["small_image"])
    assert not timm.is_model_pretrained("resnet18_small")
