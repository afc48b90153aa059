"""One saved folder loads in transformers, pipelines and timm with the same logits, labels and preprocessing."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from models_for_tests import (
    DATA,
    LABELS,
    RECORDED,
    VARIANT,
    build,
    cached,
    logits,
    offline_hub,  # noqa: F401
)
from PIL import Image
from safetensors.torch import load_file, save_file

from rts_hf.models.classifiers import load_model, plain_name, save_model

# name → number of classes, arguments; two classes are also transformers' default and so easily lost
PLAIN: dict[str, tuple[int, dict[str, Any]]] = {
    "test_resnet": (5, {"small_image_stem": False, "model_args": {"drop_path_rate": 0.1}}),
    "test_vit": (2, {}),
    "test_efficientnet_gn": (5, {}),
    "vit_tiny_patch16_224": (3, {"model_args": {"depth": 2}}),
}


def images(size: tuple[int, int] = (32, 32), count: int = 2) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)) for _ in range(count)]


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
import rts_hf.models.small_image
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


def test_checkpoint_with_other_classes(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build("test_vit", classes=4, checkpoint=str(folders / "test_vit"))
    assert "has 2 classes, the data set 4 classes" in caplog.text
    old = load_file(folders / "test_vit" / "model.safetensors")
    assert all(torch.equal(old[k], v) for k, v in model.timm_model.state_dict().items() if not k.startswith("head"))
    assert model.config.num_labels == 4


def test_the_wrong_stem_for_a_checkpoint(folders: Path) -> None:
    with pytest.raises(ValueError, match=r"does not fit test_resnet_small.*1 missing: conv1\.weight; 13 unexpected"):
        build("test_resnet", checkpoint=str(folders / "test_resnet"), small_image_stem=True)


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
