"""The card of a run: every figure comes from its files, its pictures are there, its snippets run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from cards_for_tests import change, metadata
from huggingface_hub import ModelCard
from PIL import Image
from run_folder_for_tests import KINDS, edit_json, write_run_folder

from rts_hf.reports.card import FIGURES, render_card, write_card


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_has_a_well_formed_card(tmp_path: Path, kind: str) -> None:
    card = render_card(write_run_folder(tmp_path / "run", kind))
    body = ModelCard(card).text
    prose = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    assert not re.search(r"\bNone\b|\bnan\b|[Uu]ndefined|\{\{|\{%|\[\]", prose)
    assert "\n\n\n" not in body
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    assert headings[1:] == [
        *(
            "How to use it",
            "Results",
            "Data",
            "Training",
            "The optimizer",
            "Limits",
            "Hardware and versions",
            "Citation",
        )
    ]
    for table in re.findall(r"(?:^\|.*\n)+", prose, re.MULTILINE):
        assert len({row.count("|") for row in table.splitlines()}) == 1
    assert metadata(card)["pipeline_tag"] == "image-classification"


def test_card_is_deterministic_and_written_as_readme(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    path = write_card(folder)
    assert path == folder / "README.md"
    assert path.read_bytes().decode() == render_card(folder) == render_card(write_run_folder(tmp_path / "other"))
    assert b"\r" not in path.read_bytes()


# What is set to what in run.json, and what the card then says and did not say before.
NUMBERS: list[tuple[str, object, str]] = [
    ("metrics.train.loss", 0.7312, "| train | 1,277 | 0.7312 |"),
    ("metrics.validation.accuracy", 0.7312, "value: 0.7312"),
    ("metrics.validation.accuracy", 0.7312, "| validation | 160 | 0.1548 | 0.7312 |"),
    ("metrics.test.accuracy", 0.7312, "Test accuracy: **0.7312** on 360 images"),
    ("metrics.test.top5_accuracy", 0.7312, "| 0.7312 |"),
    ("metrics.test.f1_macro", 0.7312, "value: 0.7312"),
    ("best.value", 0.7312, "0.7312, at update 380"),
    ("best.step", 77, "at update 77."),
    ("data.splits.train", 4321, "train 4,321, validation 160, test 360"),
    ("data.splits.train", 4321, "A small training set (4,321 images)"),
    ("data.image_size", 48, "48×48 pixels"),
    ("data.skipped", {"train": 3}, "Left out as unreadable: train 3"),
    (
        "data.train_fraction",
        {"fraction": 0.1, "images": 129, "of": 1293},
        'Train: the split "train" without the held-out validation part; of it 129 images of 1,293 were kept',
    ),
    (
        "data.train_fraction",
        {"fraction": 0.1, "images": 129, "of": 1293},
        "- Only 129 training images of 1,293 were used, on purpose",
    ),
    (
        "data.label_noise",
        {"split": "train", "fraction": 0.4, "flipped": 517, "of": 1293},
        "- Label noise: of 1,293 training labels 517 were changed to another class, drawn at random with equal chances "
        "(label_noise 0.4); validation and test kept their labels",
    ),
    (
        "data.label_noise",
        {"split": "train", "fraction": 0.4, "flipped": 517, "of": 1293},
        "- 517 of 1,293 training labels were made wrong on purpose",
    ),
    ("data.mean", [0.125, 0.25, 0.5], "mean 0.125, 0.25, 0.5"),
    ("data.std", [0.125, 0.25, 0.5], "deviation 0.125, 0.25, 0.5"),
    ("data.label_names", ["a", "b", "c"], "3 classes"),
    ("model.parameters", 1234567, "1,234,567 parameters"),
    ("model.pretrained", True, "timm's pretrained weights"),
    ("model.checkpoint", "old.safetensors", "the checkpoint old.safetensors"),
    ("optimizer.learning_rate", 0.0371, "| learning rate | 0.0371 |"),
    ("optimizer.weight_decay", 0.0371, "| weight decay | 0.0371 |"),
    ("optimizer.momentum", 0.371, "| momentum | 0.371 |"),
    ("optimizer.momentum", None, "| momentum | – |"),
    ("optimizer.base", "adamw", "| base optimizer | adamw |"),
    ("optimizer.total_steps", 500, "Training stopped after 400 of 500 updates"),
    ("optimizer.perturb_every", 3, "One update in 3 was perturbed"),
    ("optimizer.perturb_fraction", 0.5, "first 0.5 of each micro-batch's images"),
    ("optimizer.radius.beta_max", 4.0, "| 0.02 | 4 | 0.25 |"),
    ("optimizer.radius.strategy", "constant", "| radius α_r | constant | `β_max` | 0.02 | 2 | 2 | 2 | 2 |"),
    ("optimizer.scale.beta_min", 0.3, "| 0.3 | 1 | 1 | 0.9233 | 0.3 |"),
    ("optimizer.switch.step", 240, "fired after update 240 (epoch 6)"),
    ("optimizer.switch.epoch", 12.5, "fired after update 120 (epoch 12.5)"),
    ("optimizer.switch.settings.gamma", 0.31, "gamma = 0.31, init_steps = 10, window = 10"),
    ("optimizer.switch.settings.gamma", 0.4, "0.4 · 0.0625 = 0.025"),
    ("optimizer.switch.state.norms", [1.0, 3.0], "σ² = 1;"),
    ("optimizer.switch.state.initial_sum", 0.5, "0.2 · 0.5 = 0.1"),
    ("updates", 340, "Its training perturbed 340 of 340 updates, 680 gradients.\n"),
    ("gradient_evaluations", 12345.75, "perturbed 11,946 of 400 updates, 12,346 gradients"),
    ("gradient_evaluations", 400, "perturbed 0 of 400 updates, 400 gradients"),
    (
        "faults",
        {"nonfinite_loss": 2, "zero_gradient": 0, "out_of_memory": 1},
        "non-finite loss 2×, out of memory 1×. An update",
    ),
    ("epochs", 17.5, "17.5 epochs in"),
    ("seconds", 987.6, "in 987.6 seconds"),
    ("seed", 4711, "One run with seed 4711"),
    ("hardware.device", "tpu", "on tpu"),
    ("hardware.accelerator", "Some GPU 9000", "on Some GPU 9000 (1 process, 2 CPU threads)"),
    ("hardware.processes", 4, "(4 processes, 2 CPU threads each)"),
    ("hardware.processes", 4, "(device × accumulation × processes) | 256 |"),
    ("hardware.cpu_threads", 16, "16 CPU threads"),
    ("hardware.cpu_threads", 1, "(1 process, 1 CPU thread). Energy"),
    ("epochs", 1.0, "\n1 epoch in 41.53 seconds on cpu"),
    ("resumed_at", [120], "2 CPU threads), resumed after update 120; the time is that of all its commands together."),
    ("resumed_at", [120, 1240], "resumed after updates 120, 1240; the time"),
    ("license", "mit", "\nlicense: mit\n"),
    ("data.augmentation", "crop_flip", "- Augmentation of the training images: crop_flip\n"),
    ("data.normalisation", "pretrained weights", "0.376, 0.376, 0.376: those of the pretrained weights\n"),
    ("data.normalisation", "imagenet", "0.376, 0.376, 0.376: those of ImageNet, not measured on this data\n"),
    ("data.normalisation", "given", "0.376, 0.376, 0.376: as given to the run\n"),
    ("data.normalisation", "cifar10", "0.376, 0.376, 0.376: those of the training images of cifar10\n"),
    ("data.normalisation", "given mean, cifar10 std", "0.376, 0.376, 0.376: given mean, cifar10 std\n"),
    ("versions.torch", "9.9.9", "| torch | 9.9.9 |"),
    ("command", "accelerate launch scripts/train.py --lr 3", "scripts/train.py --lr 3\n```"),
    ("arguments.training.lr_scheduler_type", "linear", "| learning rate schedule | linear |"),
    ("arguments.data", {"dataset": "other"}, '"dataset": "other"'),
    ("warnings", ["The moon was full."], "- Warning of the run: The moon was full."),
    ("faults", {"nonfinite_gradient": 3}, "- 3 updates were skipped, for a gradient that was NaN or infinite."),
    ("resumed_at", [120, 240], "- The run was stopped and gone on with 2 times."),
    ("status", "interrupted", "**This run is not complete** (status: interrupted): 400 updates had been done when"),
]


@pytest.fixture(scope="module")
def plain_card(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render_card(write_run_folder(tmp_path_factory.mktemp("plain") / "run"))


@pytest.mark.parametrize(("keys", "value", "expected"), NUMBERS)
def test_card_says_what_the_record_says(
    plain_card: str, tmp_path: Path, keys: str, value: object, expected: str
) -> None:
    assert expected not in plain_card
    folder = write_run_folder(tmp_path / "run")
    change(folder, keys, value)
    assert expected in render_card(folder)


def test_pretrained_weights_are_named_and_linked(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    change(folder, "model.pretrained", value=True)
    change(folder, "model.base_model", "timm/resnet18.a1_in1k")
    card = render_card(folder)
    assert metadata(card)["base_model"] == "timm/resnet18.a1_in1k"
    assert "the pretrained weights [timm/resnet18.a1_in1k](https://huggingface.co/timm/resnet18.a1_in1k)." in card
    change(folder, "model.base_model", "](evil) x/y")
    card = render_card(folder)
    assert "base_model" not in metadata(card)
    assert "It started from timm's pretrained weights." in card


def test_a_published_card_loads_the_model_from_the_hub(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    card = render_card(folder, repo_id="someone/digits")
    assert 'timm.create_model("hf-hub:someone/digits", pretrained=True)' in card
    assert card.count('from_pretrained("someone/digits")') == 2
    assert 'model="someone/digits")' in card
    assert card == write_card(folder, repo_id="someone/digits").read_text(encoding="utf-8")
    own = render_card(folder)
    assert "someone" not in own
    assert "local-dir:." in own


@pytest.mark.parametrize(
    ("kind", "cited"),
    [("rts_pugd", "tseng2021pugd"), ("sam", "foret2021sam"), ("sgd", None), ("pugd", "tseng2021pugd")],
)
def test_the_method_is_cited(tmp_path: Path, kind: str, cited: str | None) -> None:
    entries = re.findall(r"^@\w+\{(\w+),$", render_card(write_run_folder(tmp_path / "run", kind)), re.MULTILINE)
    assert entries == ([cited] if cited else []) + ["rts_hf"]


def test_many_classes_are_cut_and_counted(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    change(folder, "data.label_names", [f"class{i}" for i in range(100)])
    assert re.search(r"class0 · .* · class29 · and 70 more$", render_card(folder), re.MULTILINE)


def test_pictures_are_shown_if_they_are_there(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", "by_class")
    assert "![" not in render_card(folder)
    (folder / "figures").mkdir()
    for name in FIGURES:
        (folder / "figures" / f"{name}.png").touch()
    assert re.findall(r"!\[.*\]\((.*)\)", render_card(folder)) == [f"figures/{name}.png" for name in FIGURES]
    write_run_folder(folder, "never_switched")  # some of the pictures are left over from the run before
    shown = ["figures/history.png", "figures/schedules.png"]
    assert re.findall(r"!\[.*\]\((.*)\)", render_card(folder)) == shown
    write_run_folder(folder, "sgd")
    assert re.findall(r"!\[.*\]\((.*)\)", render_card(folder)) == ["figures/history.png"]


@pytest.mark.parametrize("needs_rts_hf", [False, True])
def test_snippets_run_inside_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], needs_rts_hf: bool
) -> None:
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    folder = write_run_folder(tmp_path / "run", "one_epoch")
    change(folder, "model.needs_rts_hf", needs_rts_hf)
    names = {i: f"digit {i}" for i in range(10)}
    preprocessing = {"input_size": [3, 32, 32], "mean": [0.3] * 3, "std": [0.4] * 3, "crop_pct": 1.0}
    preprocessing |= {"interpolation": "bilinear", "fixed_input_size": False, "first_conv": "conv1", "classifier": "fc"}
    config = TimmWrapperConfig(
        architecture="test_resnet",
        model_args={},
        num_labels=10,
        id2label=names,
        label2id={name: i for i, name in names.items()},
        pretrained_cfg=preprocessing,
    )
    torch.manual_seed(0)
    model = TimmWrapperForImageClassification(config)
    model.save_pretrained(folder, state_dict=model.timm_model.state_dict())
    Image.effect_noise((40, 40), 80).save(folder / "image.png")
    monkeypatch.chdir(folder)
    snippets = re.findall(r"```python\n(.*?)```", render_card(folder), re.DOTALL)
    assert len(snippets) == 3
    outputs = []
    for snippet in snippets:
        assert snippet.startswith("import rts_hf") is needs_rts_hf
        exec(compile(snippet, "<card>", "exec"), {})
        outputs.append(capsys.readouterr().out)
    named = [re.search(r"digit \d", output) for output in outputs]
    assert all(named)
    assert len({found[0] for found in named if found}) == 1


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no run\.json"):
        render_card(tmp_path)
    folder = write_run_folder(tmp_path / "run")
    change(folder, "format", 2)
    with pytest.raises(ValueError, match="format 2"):
        render_card(folder)
    change(folder, "format", 1)
    text = json.dumps({"log_history": []})
    (folder / "trainer_state.json").write_text(text[:-1], encoding="utf-8")
    with pytest.raises(ValueError, match=r"trainer_state\.json is not valid JSON"):
        render_card(folder)


CARDS = sorted(path.parent for path in (Path(__file__).parents[2] / "model_cards").glob("*/run.json"))


@pytest.mark.parametrize("folder", CARDS, ids=lambda folder: folder.name)
def test_committed_cards_are_what_their_records_render(folder: Path) -> None:
    assert render_card(folder) == (folder / "README.md").read_text(encoding="utf-8")


def test_there_are_committed_cards() -> None:
    assert CARDS


def test_a_card_tells_the_recipe_and_escapes_it(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    plain = render_card(folder)
    recipe = {
        "name": "mine",
        "recorded": None,
        "measured": {"accuracy": 0.95, "seeds": [1, 2], "interval": 0.0125},
        "caveats": ["A *caveat*."],
        "differs_in": ["opt", "seed"],
    }
    edit_json(folder / "run.json", lambda record: record.update(recipe=recipe))
    card = render_card(folder)
    assert (
        "Recipe: **mine**, with which a test accuracy of 0.9500 ± 0.0125 was measured before (seeds 1, 2); this run: "
        in card
    )
    assert "The run differs from the recipe in opt, seed.\n\n- A &#42;caveat&#42;.\n" in card
    edit_json(
        folder / "run.json",
        lambda record: record.update(recipe={**recipe, "measured": None, "caveats": [], "differs_in": []}),
    )
    assert "\n\nRecipe: **mine**; this run: " in render_card(folder)
    assert "\n\n\n" not in render_card(folder)
    edit_json(folder / "run.json", lambda record: record.update(recipe=None))
    assert render_card(folder) == plain
