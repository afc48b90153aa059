"""Local weights: what is read, what fits, what is refused."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from rts_hf.models.backbones import Source
from rts_hf.models.weights import checkpoint_architecture, create_from_checkpoint, read_checkpoint, read_config

RESNET = Source("test_resnet", "test_resnet", {}, {})
VIT = Source("test_vit", "test_vit", {}, {})
LABELS = ["a", "b", "c"]


def write(path: Path, weights: Mapping[str, Tensor], prefix: str = "") -> Path:
    save_file({prefix + key: value.clone().contiguous() for key, value in weights.items()}, path)
    return path


def make(name: str = "test_resnet", classes: int = 3, **arguments: Any) -> Any:
    torch.manual_seed(1)
    return timm.create_model(name, num_classes=classes, **arguments)


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor], *, but: tuple[str, ...] = ()) -> None:
    assert one.keys() == other.keys()
    for key in one:
        if not key.startswith(but or ("nothing",)):
            torch.testing.assert_close(one[key], other[key], rtol=0, atol=0)


@pytest.mark.parametrize("prefix", ["", "timm_model."])
@pytest.mark.parametrize("folder", [False, True])
def test_a_file_and_a_folder_with_either_keys(prefix: str, folder: bool, tmp_path: Path) -> None:
    weights = make().state_dict()
    file = write(tmp_path / "model.safetensors", weights, prefix)
    loaded = read_checkpoint(tmp_path if folder else file)
    assert_same(loaded.weights, weights)
    assert loaded.config == {}
    model = create_from_checkpoint(RESNET, loaded, label_names=LABELS, arguments={})
    assert_same(model.state_dict(), weights)
    assert "state_dict" not in model.pretrained_cfg


def test_a_sharded_folder(tmp_path: Path) -> None:
    weights = make().state_dict()
    parts = [dict(list(weights.items())[:20]), dict(list(weights.items())[20:])]
    shards = {}
    for number, part in enumerate(parts):
        name = write(tmp_path / f"model-{number}.safetensors", part).name
        shards.update(dict.fromkeys(part, name))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert_same(dict(sorted(read_checkpoint(tmp_path).weights.items())), dict(sorted(weights.items())))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"index\.json is not valid JSON"),
        ("[]", r"index\.json holds a list"),
        ("{}", r"index\.json has no weight_map"),
        ('{"weight_map": ["a"]}', r"index\.json has no weight_map"),
        ('{"weight_map": {"a": 3}}', r"index\.json has no weight_map"),
        ('{"weight_map": {"a": "gone.safetensors"}}', r"gone\.safetensors could not be read"),
    ],
)
def test_a_damaged_index_of_shards(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_training_that_diverged(value: float, tmp_path: Path) -> None:
    weights = make().state_dict()
    weights["fc.weight"][0, 0] = value
    with pytest.raises(ValueError, match=r"holds NaN or infinite values in fc.weight: its training diverged"):
        read_checkpoint(write(tmp_path / "model.safetensors", weights))


@pytest.mark.parametrize("label_names", [3, {"0": "x"}, None])
def test_labels_of_a_damaged_config_are_passed_over(label_names: Any, tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", make().state_dict())
    (tmp_path / "config.json").write_text(json.dumps({"label_names": label_names}))
    model = create_from_checkpoint(RESNET, read_checkpoint(tmp_path), label_names=LABELS, arguments={})
    assert_same(model.state_dict(), make().state_dict())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet_gn", "deit_tiny_distilled_patch16_224"])
def test_the_classifier_starts_anew_for_other_classes(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = make(name, classes=7)
    loaded = read_checkpoint(write(tmp_path / "old.safetensors", old.state_dict()))
    source = Source(name, name, {}, {})
    model = create_from_checkpoint(source, loaded, label_names=LABELS, arguments={})
    heads = old.pretrained_cfg["classifier"]
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    assert_same(model.state_dict(), old.state_dict(), but=heads)
    assert all(model.get_submodule(head).weight.shape[0] == 3 for head in heads)
    assert "has 7 classes, the data set 3 classes: the classifier starts anew" in caplog.text


def test_weights_without_a_classifier(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = make(classes=0)
    loaded = read_checkpoint(write(tmp_path / "old.safetensors", old.state_dict()))
    model = create_from_checkpoint(RESNET, loaded, label_names=LABELS, arguments={})
    assert model.fc.out_features == 3
    assert_same({key: value for key, value in model.state_dict().items() if "fc" not in key}, old.state_dict())
    assert "has no classifier, the data set 3 classes" in caplog.text


def test_the_same_number_of_other_labels_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = make()
    write(tmp_path / "model.safetensors", old.state_dict())
    (tmp_path / "config.json").write_text(json.dumps({"label_names": ["x", "y", "z"]}))
    loaded = read_checkpoint(tmp_path)
    model = create_from_checkpoint(RESNET, loaded, label_names=LABELS, arguments={})
    assert_same(model.state_dict(), old.state_dict())
    assert "trained on the labels x, y, z, the data set has a, b, c" in caplog.text
    caplog.clear()
    caplog.set_level(logging.WARNING, logger="rts_hf")
    create_from_checkpoint(RESNET, loaded, label_names=["x", "y", "z"], arguments={})
    assert not caplog.records


def test_weights_of_a_larger_image_are_resampled_as_timm_does(tmp_path: Path) -> None:
    """So a pretrained ViT downloaded by hand serves small images."""
    old = make("test_vit", classes=3)
    loaded = read_checkpoint(write(tmp_path / "old.safetensors", old.state_dict()))
    small = {"img_size": 32, "patch_size": 8}
    model = create_from_checkpoint(VIT, loaded, label_names=LABELS, arguments=small)
    overlay = {"file": str(tmp_path / "old.safetensors"), "num_classes": 3}
    twin = timm.create_model("test_vit", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3, **small)
    assert_same(model.state_dict(), twin.state_dict())
    assert model.patch_embed.proj.weight.shape[-1] == 8
    assert_same({"w": model.blocks[0].attn.qkv.weight}, {"w": old.blocks[0].attn.qkv.weight})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("layer1.0.conv1.weight"), r"1 missing: layer1\.0\.conv1\.weight;"),
        (lambda w: w.update(extra=torch.zeros(1)), "1 unexpected: extra;"),
        (
            lambda w: w.update({"layer1.0.conv1.weight": torch.zeros(2, 2)}),
            r"1 of another shape: layer1\.0\.conv1\.weight \(2, 2\) where the model has \(32, 32, 3, 3\)",
        ),
        (lambda w: [w.pop(key) for key in list(w) if key.startswith("layer1")], r"12 missing: .* and 7 more"),
    ],
    ids=["missing", "unexpected", "shape", "many"],
)
@pytest.mark.parametrize("classes", [3, 7])
def test_anything_else_that_does_not_fit_is_listed(change: Any, message: str, classes: int, tmp_path: Path) -> None:
    """Also where the classifier is replaced, for which timm itself would load leniently."""
    weights = make(classes=classes).state_dict()
    change(weights)
    loaded = read_checkpoint(write(tmp_path / "old.safetensors", weights))
    with pytest.raises(ValueError, match=f"old.safetensors does not fit test_resnet with .*{message}"):
        create_from_checkpoint(RESNET, loaded, label_names=LABELS, arguments={})


def test_another_architecture_is_named(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", make("test_vit").state_dict())
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit"}))
    with pytest.raises(ValueError, match=r"which is of test_vit, does not fit test_resnet"):
        create_from_checkpoint(RESNET, read_checkpoint(tmp_path), label_names=LABELS, arguments={})


@pytest.mark.parametrize("suffix", [".bin", ".pth", ".pt", ".ckpt", ".npz"])
def test_other_formats_are_not_opened(suffix: str, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))

    file = tmp_path / f"weights{suffix}"
    torch.save({"fc.weight": Trap()}, file)
    with pytest.raises(ValueError, match=r"is no \.safetensors file.*pickles, which run code"):
        read_checkpoint(file)
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        read_checkpoint(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_folder_without_weights_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no model\.safetensors$"):
        read_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        write(tmp_path / f"checkpoint-{step}" / "model.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"pytorch_model\.bin may be pickles.*checkpoint-10 inside it is a checkpoint"):
        read_checkpoint(tmp_path)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.safetensors does not exist"):
        read_checkpoint(tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match="checkpoint 3 is no path: give"):
        read_checkpoint(3)  # type: ignore[arg-type]
    whole = write(tmp_path / "model.safetensors", make().state_dict()).read_bytes()
    for content in (b"not a safetensors file", b"", whole[:200], whole[:-4]):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors could not be read as safetensors"):
            read_checkpoint(tmp_path)


def test_what_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_: Any, **__: Any) -> Any:  # a superuser, as tests may be run by, may read anything
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", locked)
        with pytest.raises(ValueError, match=r"cannot be listed: .*Permission denied"):
            read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(Path, "read_text", locked)
    with pytest.raises(ValueError, match=r"config\.json cannot be read: .*Permission denied"):
        checkpoint_architecture(tmp_path)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, None),
        ({}, None),
        ({"architecture": "resnet18"}, "resnet18"),
        ({"architecture": "resnet18.a1_in1k", "num_classes": 1000}, "resnet18"),
        ({"architecture": "resnet_micro_small", "model_type": "timm_wrapper"}, "resnet_micro_small"),
        ({"architecture": "resnet_micro_small__import_rts_hf_first"}, "resnet_micro_small"),
        ({"architectures": ["ViTForImageClassification"], "model_type": "vit"}, None),
        ({"architecture": None}, None),
        ({"architecture": ["resnet18"]}, None),
    ],
)
def test_the_architecture_that_a_checkpoint_names(config: Any, expected: str | None, tmp_path: Path) -> None:
    file = write(tmp_path / "model.safetensors", {"a": torch.zeros(1)})
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert checkpoint_architecture(tmp_path) == checkpoint_architecture(str(file)) == expected


def test_a_damaged_config_is_not_read_as_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        checkpoint_architecture(tmp_path)


def test_config_files(tmp_path: Path) -> None:
    assert read_config(tmp_path) == {}
    (tmp_path / "config.json").write_text('{"architecture": "test_vit"}')
    assert read_config(tmp_path) == {"architecture": "test_vit"}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list"):
        read_config(tmp_path)
