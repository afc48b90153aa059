"""One saved folder loads in transformers, pipelines and timm with the same logits, labels and preprocessing."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from rts_hf.models import (
    INTERPOLATIONS,
    build_model,
    load_model,
    needs_rts_hf,
    plain_name,
    pretrained_data_config,
    save_model,
)

LABELS = ["plain", "spaß, \"quoted\" and 'so'", "日本語\nline", "3", ""]
DATA: dict[str, Any] = {"image_size": 32, "mean": (0.3, 0.4, 0.5), "std": (0.2, 0.25, 0.3), "interpolation": "bilinear"}
# name → number of classes, arguments; two classes are also transformers' default and so easily lost
PLAIN: dict[str, tuple[int, dict[str, Any]]] = {
    "test_resnet": (5, {"small_image_stem": False, "model_args": {"drop_path_rate": 0.1}}),
    "test_vit": (2, {}),
    "test_efficientnet_gn": (5, {}),
    "vit_tiny_patch16_224": (3, {"model_args": {"depth": 2}}),
}
VARIANT = "resnet_micro_small"
RECORDED = "resnet_micro_small__import_rts_hf_first"


def build(name: str = "test_resnet", classes: int = 3, **options: Any) -> Any:
    return build_model(name, label_names=LABELS[:classes], **{**DATA, **options})


def images(size: tuple[int, int] = (32, 32), count: int = 2) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)) for _ in range(count)]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)).logits


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of every plain architecture and of one variant, each with the logits it gives."""
    root = tmp_path_factory.mktemp("folders")
    for name, (classes, options) in {**PLAIN, VARIANT: (5, {})}.items():
        torch.manual_seed(0)
        model = build(name, classes, **options)
        with torch.no_grad():  # batch statistics other than the initial ones
            model.train()(torch.randn(8, 3, 32, 32))
        save_model(model, root / name)
        save_file({"logits": logits(model)}, root / name / "expected")
    return root


LOADER = """
import json, sys, warnings
import timm, torch, transformers
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

transformers.logging.set_verbosity_error()
root, names, variant = sys.argv[1], sys.argv[2].split(","), sys.argv[3]
x = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
found = {}

def load(name):
    folder = f"{root}/{name}"
    expected = load_file(folder + "/expected")["logits"]
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    backbone = timm.create_model("local-dir:" + folder, pretrained=True).eval()
    classify = pipeline("image-classification", model=folder, top_k=100)
    picture = Image.effect_noise((32, 32), 90).convert("RGB")
    with torch.no_grad():
        ours = model(**AutoImageProcessor.from_pretrained(folder)(picture)).logits.softmax(-1)[0]
        found[name] = {
            "transformers": (model(x).logits - expected).abs().max().item(),
            "timm": (backbone(x) - expected).abs().max().item(),
            "labels": list(model.config.id2label.values()),
            "processor": type(AutoImageProcessor.from_pretrained(folder)).__name__,
            "scores": {row["label"]: row["score"] for row in classify(picture)},
            "expected_scores": ours.tolist(),
        }

for name in names:
    load(name)
for what, attempt in {
    "transformers": lambda: AutoModelForImageClassification.from_pretrained(f"{root}/{variant}"),
    "pipeline": lambda: pipeline("image-classification", model=f"{root}/{variant}"),
    "timm": lambda: timm.create_model(f"local-dir:{root}/{variant}", pretrained=True),
}.items():
    try:
        attempt()
    except Exception as error:
        found["without " + what] = f"{type(error).__name__}: {error}"
assert "rts_hf" not in sys.modules
import rts_hf.small_image
load(variant)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def elsewhere(folders: Path) -> dict[str, Any]:
    """What a process sees that knows transformers and timm only, and in the end imports the variants."""
    command = [sys.executable, "-c", LOADER, str(folders), ",".join(PLAIN), VARIANT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", [*PLAIN, VARIANT])
def test_one_folder_for_transformers_and_timm(name: str, elsewhere: dict[str, Any]) -> None:
    classes = PLAIN.get(name, (5, {}))[0]
    found = elsewhere[name]
    assert found["transformers"] < 1e-5
    assert found["timm"] < 1e-5
    assert found["labels"] == LABELS[:classes]
    assert found["processor"] == "TimmWrapperImageProcessor"


@pytest.mark.parametrize("name", [*PLAIN, VARIANT])
def test_the_pipeline_gives_every_label_its_probability(name: str, elsewhere: dict[str, Any]) -> None:
    found = elsewhere[name]
    scores = [found["scores"][label] for label in found["labels"]]
    assert len(found["scores"]) == PLAIN.get(name, (5, {}))[0]
    assert scores == pytest.approx(found["expected_scores"], abs=1e-5)
    assert sum(scores) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("what", ["transformers", "pipeline", "timm"])
def test_without_rts_hf_the_error_says_to_import_it(what: str, elsewhere: dict[str, Any]) -> None:
    """Else there is nothing in it but the advice to upgrade timm."""
    message = elsewhere[f"without {what}"]
    assert ("Unknown model" if what == "timm" else "not supported in your version of timm") in message
    assert VARIANT in message
    assert "import_rts_hf" in message


@pytest.mark.parametrize("what", ["transformers", "timm", "pipeline", "checkpoint", "pretrained"])
def test_a_folder_saved_under_the_plain_name_still_loads(
    what: str, folders: Path, tmp_path: Path, hub_cache: Path
) -> None:
    from transformers import AutoModelForImageClassification, pipeline

    folder = cached(hub_cache, "owner/old") if what == "pretrained" else tmp_path
    shutil.copytree(folders / VARIANT, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "architecture": VARIANT}))
    expected = load_file(folder / "expected")["logits"]
    if what == "transformers":
        assert load_model(folder).config.architecture == VARIANT
        found = logits(AutoModelForImageClassification.from_pretrained(folder))
    elif what == "timm":
        backbone = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.no_grad():
            found = backbone(torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32))
    elif what == "pipeline":
        found = logits(pipeline("image-classification", model=str(folder)).model)
    elif what == "checkpoint":
        found = logits(build(VARIANT, 5, checkpoint=folder))
    else:
        found = logits(build("hf-hub:owner/old", 5, pretrained=True))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", [VARIANT, RECORDED])
def test_both_names_of_a_variant_build_it(name: str, folders: Path) -> None:
    model = build(name, 5, checkpoint=folders / VARIANT)
    assert model.config.architecture == RECORDED
    assert plain_name(model.config.architecture) == VARIANT
    torch.testing.assert_close(logits(model), load_file(folders / VARIANT / "expected")["logits"])


def test_recorded_names_are_not_suggested() -> None:
    with pytest.raises(ValueError, match=r"did you mean .*resnet_micro_small") as caught:
        build("resnet_micro_small__import_rts")
    assert "_first" not in str(caught.value)


@pytest.mark.parametrize("name", [*PLAIN, VARIANT])
def test_load_model(name: str, folders: Path, tmp_path: Path) -> None:
    """What load_model returns can be saved again, with the same keys."""
    model = load_model(folders / name)
    assert not model.training
    torch.testing.assert_close(logits(model), load_file(folders / name / "expected")["logits"])
    save_model(model, tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(folders / name / "model.safetensors").keys()
    assert (tmp_path / "config.json").read_text() == (folders / name / "config.json").read_text()


@pytest.mark.parametrize("name", [*PLAIN, VARIANT])
def test_files(name: str, folders: Path) -> None:
    config = json.loads((folders / name / "config.json").read_text(encoding="utf-8"))
    cfg = config["pretrained_cfg"]
    assert config["architecture"] == (RECORDED if name == VARIANT else name)
    assert config["label_names"] == LABELS[: config["num_classes"]]
    assert (cfg["input_size"], cfg["mean"], cfg["std"]) == ([3, 32, 32], [0.3, 0.4, 0.5], [0.2, 0.25, 0.3])
    assert (cfg["crop_pct"], cfg["interpolation"]) == (1.0, "bilinear")
    assert ("import" in str(cfg.get("notes"))) is (name == VARIANT)
    keys = load_file(folders / name / "model.safetensors").keys()
    assert not any(key.startswith("timm_model") for key in keys)
    assert f"{cfg['classifier']}.weight" in keys


@pytest.mark.parametrize("size", [(32, 32), (40, 28), (8, 8), (100, 64)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_preprocessing_is_timms_evaluation_transform(size: tuple[int, int], interpolation: str, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    save_model(build(interpolation=interpolation), tmp_path)
    prepared = AutoImageProcessor.from_pretrained(tmp_path)(images(size))["pixel_values"]
    settings = {**DATA, "interpolation": interpolation}
    transform = timm.data.create_transform(
        input_size=(3, settings.pop("image_size"), 32), crop_pct=1.0, is_training=False, **settings
    )
    torch.testing.assert_close(prepared, torch.stack([transform(image) for image in images(size)]), rtol=0, atol=0)


def test_an_image_of_the_right_size_is_only_normalised(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    save_model(build(), tmp_path)
    prepared = AutoImageProcessor.from_pretrained(tmp_path)(images())["pixel_values"]
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images()])
    mean, std = (torch.tensor(DATA[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(prepared, (pixels - mean) / std)


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


def test_trainer_checkpoints_load_too(tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

    model = build("resnet_micro_small")
    rows = [{"pixel_values": torch.randn(3, 32, 32), "labels": index % 3} for index in range(4)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, report_to="none", use_cpu=True, disable_tqdm=True
    )
    Trainer(model, arguments, train_dataset=rows).train()
    step = tmp_path / "checkpoint-1"
    backbone = timm.create_model(f"local-dir:{step}", pretrained=True).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.eval()(image).logits
        torch.testing.assert_close(backbone(image), expected)
        torch.testing.assert_close(AutoModelForImageClassification.from_pretrained(step).eval()(image).logits, expected)
    torch.testing.assert_close(load_model(step).eval()(image).logits, expected)
    # what the Trainer does to take up its best model
    fresh = build("resnet_micro_small")
    assert not any(fresh.load_state_dict(load_file(step / "model.safetensors"), strict=False))
    torch.testing.assert_close(fresh.eval()(image).logits, expected)
    assert build("resnet_micro_small", checkpoint=str(step)).config.architecture == RECORDED


def test_loss_and_copies() -> None:
    model = build("test_vit", classes=2)
    output = model(torch.randn(4, 3, 32, 32), labels=torch.tensor([0, 1, 1, 0]))
    output.loss.backward()
    assert output.logits.shape == (4, 2)
    assert all(parameter.grad is not None for parameter in model.parameters())
    torch.testing.assert_close(logits(copy.deepcopy(model)), logits(model))


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


def test_checkpoint_with_other_classes(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build("test_vit", classes=4, checkpoint=str(folders / "test_vit"))
    assert "has 2 classes, the data set 4 classes" in caplog.text
    old = load_file(folders / "test_vit" / "model.safetensors")
    assert all(torch.equal(old[k], v) for k, v in model.timm_model.state_dict().items() if not k.startswith("head"))
    assert model.config.num_labels == 4


@pytest.mark.parametrize("saved", ["test_resnet", "test_resnet_small"])
def test_a_checkpoint_decides_the_stem(saved: str, tmp_path: Path) -> None:
    save_model(build(saved, small_image_stem=saved.endswith("small")), tmp_path)
    model = build("test_resnet", checkpoint=tmp_path / "model.safetensors")
    assert plain_name(model.config.architecture) == saved
    torch.testing.assert_close(logits(model), logits(load_model(tmp_path)))


def test_the_wrong_stem_for_a_checkpoint(folders: Path) -> None:
    with pytest.raises(ValueError, match=r"does not fit test_resnet_small.*1 missing: conv1\.weight; 13 unexpected"):
        build("test_resnet", checkpoint=str(folders / "test_resnet"), small_image_stem=True)


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


def test_saving_and_loading_errors(tmp_path: Path) -> None:
    model = build()
    with pytest.raises(TypeError, match="got a SmallImageResNet: unwrap it first"):
        save_model(model.timm_model, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        save_model(model, tmp_path / "file")
    with pytest.raises(ValueError, match=r"holds no saved classifier \(no config.json\)"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="names the model_type 'bert'"):
        load_model(tmp_path)
    save_model(model, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("layer1.0.bn1.weight")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"do not fit its config.json: missing_keys .*layer1\.0\.bn1\.weight"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "nosuch"}, "architecture 'nosuch' is not supported"),
        ({"architecture": 3}, "expected str"),
        ({"label_names": 3}, "not iterable"),
        ({"pretrained_cfg": None}, "not iterable"),
        ({"model_args": "x"}, "model_args"),
    ],
)
def test_loading_by_a_damaged_config(change: dict[str, Any], message: str, folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "test_resnet", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=rf"cannot be loaded as its config\.json says: [\s\S]*{message}"):
        load_model(tmp_path)


def test_loading_weights_of_another_shape(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "test_resnet", tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    weights["fc.weight"] = torch.zeros(9, 96)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"do not fit its config\.json: mismatched_keys .*fc\.weight.*9, 96"):
        load_model(tmp_path)


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


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An offline Hub whose cache is empty."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(hub_cache: Path, repository: str) -> Path:
    """The folder of a repository's only revision in the cache."""
    entry = hub_cache / f"models--{repository.replace('/', '--')}"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("0" * 40)
    (entry / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return entry / "snapshots" / ("0" * 40)


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
