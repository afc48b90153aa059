"""The card of a run: every figure comes from its files, nothing a user wrote is markup, its snippets run."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image
from run_folder_for_tests import KINDS, edit_json, write_run_folder

from rts_hf.hub import FIGURES, render_card, write_card
from rts_hf.schedules import AlphaSchedule


def change(folder: Path, keys: str, value: object, file: str = "run.json") -> None:
    """Set one entry, named by its keys with dots between."""

    def edit(content: dict[str, Any]) -> None:
        *path, last = keys.split(".")
        for key in path:
            content = content[key]
        content[last] = value

    edit_json(folder / file, edit)


def metadata(card: str) -> dict[str, Any]:
    """Return the YAML head, read by a plain YAML parser rather than by the library that wrote it."""
    _, head, _ = re.split(r"^---$", card, maxsplit=2, flags=re.MULTILINE)
    content = yaml.safe_load(head)
    assert isinstance(content, dict)
    return content


def results_by_split(card: str) -> dict[str, dict[str, float]]:
    (model,) = metadata(card)["model-index"]
    return {
        result["dataset"]["split"]: {metric["type"]: metric["value"] for metric in result["metrics"]}
        for result in model["results"]
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_has_a_well_formed_card(tmp_path: Path, kind: str) -> None:
    card = render_card(write_run_folder(tmp_path / "run", kind))
    body = ModelCard(card).text
    prose = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    assert not re.search(r"\bNone\b|\bnan\b|[Uu]ndefined|\{\{|\{%|\[\]", prose)
    assert "\n\n\n" not in body
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    assert headings[1:] == [
        *("How to use it", "Results", "Data", "Training", "The optimizer", "Limits", "Hardware and versions")
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
    ("optimizer.radius.beta_max", 4.0, "| 0.02 | 4 | 0.25 |"),
    ("optimizer.radius.strategy", "constant", "| radius α_r | constant | `β_max` | 0.02 | 2 | 2 | 2 | 2 |"),
    ("optimizer.scale.beta_min", 0.3, "| 0.3 | 1 | 1 | 0.9233 | 0.3 |"),
    ("optimizer.switch.step", 240, "fired after update 240 (epoch 6)"),
    ("optimizer.switch.epoch", 12.5, "fired after update 120 (epoch 12.5)"),
    ("optimizer.switch.settings.gamma", 0.31, "gamma = 0.31, init_steps = 10, window = 10"),
    ("optimizer.switch.settings.gamma", 0.4, "0.4 · 0.0625 = 0.025"),
    ("optimizer.switch.state.norms", [1.0, 3.0], "σ² = 1;"),
    ("optimizer.switch.state.initial_sum", 0.5, "0.2 · 0.5 = 0.1"),
    ("updates", 340, "680 gradient evaluations in 340 updates; a plain optimizer needs 340"),
    ("gradient_evaluations", 600, "(1.5 times as many)"),
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
    ("status", "interrupted", "**This run is not complete** (status: interrupted): 400 updates had been done when"),
]


@pytest.mark.parametrize(("keys", "value", "expected"), NUMBERS)
def test_card_says_what_the_record_says(tmp_path: Path, keys: str, value: object, expected: str) -> None:
    folder = write_run_folder(tmp_path / "run")
    assert expected not in render_card(folder)
    change(folder, keys, value)
    assert expected in render_card(folder)


def test_card_says_what_the_log_says(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")

    def edit(state: dict[str, Any]) -> None:
        for entry in state["log_history"]:
            if "sharpness" in entry:
                entry |= {"sharpness": 0.5 if entry["step"] == 400 else 0.22, "alpha_r": 0.654}
                entry["gradient_evaluations"] -= 3 if entry["step"] < 400 else 0  # two second passes, not five, at 125
            if "eval_loss" in entry:
                entry |= {"train_loss": 0.987, "eval_loss": 0.456, "eval_accuracy": 0.789}

    edit_json(folder / "trainer_state.json", edit)
    card = render_card(folder)
    sharpness = next(row for row in card.splitlines() if row.startswith("Sharpness"))
    assert sharpness == (
        "Sharpness L(w+ε) − L(w): mean 0.228 over 280 perturbed updates (56 log entries, each the mean over the "
        "perturbed updates since the log entry before), 0.5 in the last entry."
    )
    assert "| 0.654 (update 125) to 0.654 (update 400) |" in card
    assert "| 7 | 140 | 0.9870 | 0.4560 | 0.7890 |" in card


def test_log_rows_hold_the_mean_since_the_row_before_and_one_evaluation_an_update(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    log = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry and 100 < entry["step"] <= 120]
    assert f"| 6 | 120 | {sum(losses) / len(losses):.4f} |" in render_card(folder)
    before = render_card(folder)
    final = {"step": 400, "epoch": 20.0, "eval_loss": 9.0, "eval_accuracy": 0.1}
    edit_json(folder / "trainer_state.json", lambda state: state["log_history"].append(final))
    assert render_card(folder) == before


def test_sharpness_that_is_not_finite_is_left_out_and_counted(tmp_path: Path) -> None:
    card = render_card(write_run_folder(tmp_path / "run", "diverged"))
    assert "over 140 perturbed updates (56 log entries, each" in card
    assert "before; 28 of them not finite, and left out), not finite in the last entry." in card


@pytest.mark.parametrize(("kind", "first", "last"), [("every_fourth", 105, 385), ("rts_pugd", 125, 400)])
@pytest.mark.parametrize("beta_min", [0.1, 0.0])
def test_logged_schedule_values_are_those_of_perturbed_updates(
    tmp_path: Path, kind: str, first: int, last: int, beta_min: float
) -> None:
    radius = {"strategy": "cosine_annealing", "beta_min": beta_min, "beta_max": 1.0}
    card = render_card(write_run_folder(tmp_path / "run", kind, radius=radius))
    row = next(line for line in card.splitlines() if line.startswith("| radius α_r"))
    value = "0" if beta_min == 0 and last == 400 else r"\S+"
    assert re.search(rf"\| \S+ \(update {first}\) to {value} \(update {last}\) \|$", row)


def test_long_log_is_thinned_to_its_ends_and_rows_between(tmp_path: Path) -> None:
    card = render_card(write_run_folder(tmp_path / "run", epochs=90))
    assert "evenly chosen evaluations" in card
    rows = re.findall(r"^\| (\d+) \| [\d,]+ \| \d\.\d{4} \| \d\.\d{4} \|", card, re.MULTILINE)
    assert (len(rows), rows[0], rows[-1]) == (25, "1", "90")


def test_schedule_values_at_the_landmarks(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", "gap_switch")
    schedule = AlphaSchedule("cosine_annealing", beta_min=0.1, beta_max=1.0)
    row = next(line for line in render_card(folder).splitlines() if line.startswith("| radius α_r"))
    start, switch, end = row.split(" | ")[5:8]
    assert (start, switch, end) == ("1", f"{schedule(180 / 399):.4g}", f"{schedule(1.0):.4g}")


def test_gap_switch_tells_gap_and_threshold(tmp_path: Path) -> None:
    card = render_card(write_run_folder(tmp_path / "run", "gap_switch"))
    assert "Δ = 0.047; it fires above μ·Δ_base = 2 · 0.02 = 0.04." in card


def test_run_that_never_switched_is_told_plainly(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", "never_switched")
    change(folder, "optimizer.base", "adamw")
    card = render_card(folder)
    assert "**No update of this run was perturbed.**" in card
    assert "so the model is what\n> adamw alone made of it." in card
    assert "**The switch never fired**: every update (400) was a plain update of adamw." in card
    assert "σ² = 0.09; it fires below γ·σ²_init = 0.2 · 0.0625 = 0.0125." in card
    assert "this run says nothing about rts_pugd" in card
    assert "fired after update" not in card


def test_perturbed_from_the_start_has_no_plain_phase(tmp_path: Path) -> None:
    card = render_card(write_run_folder(tmp_path / "run", "pugd"))
    assert "Perturbed from the first update on" in card
    assert "fired after update" not in card


def test_plain_optimizer_claims_nothing_of_perturbation(tmp_path: Path) -> None:
    card = render_card(write_run_folder(tmp_path / "run", "sgd"))
    assert "sgd is a plain optimizer: one gradient evaluation an update, no perturbation." in card
    assert not {"rts-pugd", "sharpness-aware-minimization"} & set(metadata(card)["tags"])
    assert not re.search("α_r|witch|times as many", card)


@pytest.mark.parametrize(
    ("kind", "tag"), [("rts_pugd", "rts-pugd"), ("pugd", "pugd"), ("sam", "sam"), ("never_switched", "rts-pugd")]
)
def test_two_pass_runs_are_tagged(tmp_path: Path, kind: str, tag: str) -> None:
    tags = metadata(render_card(write_run_folder(tmp_path / "run", kind)))["tags"]
    assert {tag, "timm", "transformers", "image-classification", "sharpness-aware-minimization"} == set(tags)


def test_metadata_tells_validation_and_test_apart(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    change(folder, "metrics.validation", {"loss": 0.1, "accuracy": 0.91, "f1_macro": 0.92})
    change(folder, "metrics.test", {"loss": 0.2, "accuracy": 0.81, "f1_macro": 0.82, "top5_accuracy": 0.99})
    card = render_card(folder)
    head = metadata(card)
    assert results_by_split(card) == {
        "validation part held out of train": {"accuracy": 0.91, "f1": 0.92},
        "test": {"accuracy": 0.81, "f1": 0.82, "top_5_accuracy": 0.99},
    }
    assert (head["library_name"], head["metrics"]) == ("timm", ["accuracy", "f1"])
    assert "license" not in head, "what the user's model is licensed under is the user's to say"
    assert head["model-index"][0]["results"][1]["metrics"][0]["name"] == "test accuracy"


def test_card_says_which_splits_were_measured_and_whether_they_were_held_out(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    change(folder, "data.split_sources.test.split", "valid")
    change(folder, "arguments.data.max_eval_samples", 1)
    card = render_card(folder)
    assert 'on 360 images, the split "valid".' in card
    held_out = 'held out of the split "train", a seeded part with each class in proportion'
    assert (
        '- Train: the split "train" without the held-out validation part\n'
        f"- Validation: {held_out}; at most 1 image of it\n"
        '- Test: the split "valid", not held out of train; at most 1 image of it\n'
    ) in card
    assert set(results_by_split(card)) == {"validation part held out of train", "valid"}

    change(folder, "arguments.data.max_eval_samples", None)
    change(folder, "data.split_sources.test", {"split": "train", "held_out": True})
    card = render_card(folder)
    assert 'on 360 images, held out of the split "train".' in card
    assert '- Train: the split "train" without the held-out validation part and test part' in card
    assert f"- Test: {held_out}\n" in card
    assert set(results_by_split(card)) == {"validation part held out of train", "test part held out of train"}

    change(folder, "data.split_sources.validation", {"split": "dev", "held_out": False})
    change(folder, "data.split_sources.test", None)
    card = render_card(folder)
    assert '- Train: the split "train"\n- Validation: the split "dev", not held out of train\n- Left out' in card


def test_record_from_before_a_field_was_added_still_has_a_card(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")

    def forget(record: dict[str, Any]) -> None:
        del record["data"]["split_sources"], record["data"]["normalisation"], record["resumed_at"]
        del record["optimizer"]["switch"]["fired"]

    edit_json(folder / "run.json", forget)
    card = render_card(folder)
    assert "on 360 images.\n" in card
    assert "- Images: train 1,277, validation 160, test 360\n- Left out" in card
    assert "standard deviation 0.376, 0.376, 0.376\n" in card
    assert "(1 process, 2 CPU threads). Energy" in card
    assert set(results_by_split(card)) == {"validation", "test"}


@pytest.mark.parametrize(
    ("kind", "kept", "chosen"),
    [("rts_pugd", "with the best validation accuracy", True), ("kept_last", "after the last update", False)],
)
def test_card_says_which_weights_were_kept(tmp_path: Path, kind: str, kept: str, chosen: bool) -> None:
    card = render_card(write_run_folder(tmp_path / "run", kind))
    assert re.findall("The weights kept are those (.*?), ", card) == [kept]
    assert ("The validation split chose the weights" in card) is chosen


@pytest.mark.parametrize("metrics", [{}, {"train": None, "validation": None, "test": None}, None])
def test_run_that_has_just_begun_says_so(tmp_path: Path, metrics: object) -> None:
    folder = write_run_folder(tmp_path / "run", "never_switched")
    (folder / "trainer_state.json").rename(tmp_path / "state.json")
    begun = {"status": "training", "metrics": metrics, "best": None, "updates": 1, "epochs": 0.05}
    edit_json(
        folder / "run.json", lambda record: record.update(begun, gradient_evaluations=1, seconds=None, warnings=[])
    )
    with pytest.raises(FileNotFoundError, match=r"no trainer_state\.json"):
        render_card(folder)
    (folder / "trainer_state.json").write_text('{"log_history": []}', encoding="utf-8")
    card = render_card(folder)
    assert "(status: training): 1 update had been done when this was written. None was perturbed.\n" in card
    assert "Nothing was measured." in card
    assert "**The switch had not fired** when this was written." in card
    assert not re.search("weights kept|never fired|alone made|says nothing about|Training stopped", card)
    assert "model-index" not in metadata(card)


def test_run_without_test_split_says_so(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    change(folder, "metrics.test", None)
    change(folder, "data.splits.test", None)
    card = render_card(folder)
    assert "No test split was measured." in card
    assert "Test accuracy" not in card
    assert "- Images: train 1,277, validation 160\n" in card
    assert set(results_by_split(card)) == {"validation part held out of train"}


def test_run_without_any_measure_says_so(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", "no_logs")
    change(folder, "metrics", {"train": {}, "validation": {}, "test": None})
    card = render_card(folder)
    assert "Nothing was measured." in card
    assert not {"model-index", "metrics"} & set(metadata(card))


def test_measures_that_are_not_finite_stay_out_of_the_metadata(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    change(folder, "metrics.test", {"loss": math.nan, "accuracy": math.nan})
    card = render_card(folder)
    assert "| test | 360 | not finite | not finite |" in card
    assert set(results_by_split(card)) == {"validation part held out of train"}
    change(folder, "metrics.test", {"loss": None, "accuracy": 0.1})  # JSON as runs write it has no NaN
    assert "| test | 360 | not finite | 0.1000 |" in render_card(folder)


@pytest.mark.parametrize(
    ("loss", "shown"),
    [(99.98765, "99.9877"), (100.0, "100"), (1234.5678, "1235"), (3.2e9, "3.2e+09"), (-2e5, "-2e+05")],
)
def test_huge_losses_have_four_digits(tmp_path: Path, loss: float, shown: str) -> None:
    folder = write_run_folder(tmp_path / "run")
    change(folder, "metrics.test.loss", loss)
    assert f"| test | 360 | {shown} | 0.9778 |" in render_card(folder)


@pytest.mark.parametrize(
    ("source", "is_hub", "sentence"),
    [
        ("uoft-cs/cifar10", True, "the Hub data set uoft-cs/cifar10"),
        ("embedded", False, "embedded in the package scikit-learn"),
        ("my_cats", False, "the local folder my_cats"),
    ],
)
def test_only_hub_data_sets_are_linked(tmp_path: Path, source: str, is_hub: bool, sentence: str) -> None:
    folder = write_run_folder(tmp_path / "run")
    change(folder, "data.source", source)
    card = render_card(folder)
    assert metadata(card).get("datasets") == ([source] if is_hub else None)
    assert sentence in card
    types = {result["dataset"]["type"] for result in metadata(card)["model-index"][0]["results"]}
    assert types == {source if is_hub else "scikit-learn" if source == "embedded" else "local-folder"}


def test_many_classes_are_cut_and_counted(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    change(folder, "data.label_names", [f"class{i}" for i in range(100)])
    assert re.search(r"class0 · .* · class29 · and 70 more$", render_card(folder), re.MULTILINE)


def test_pictures_are_shown_if_they_are_there(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
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


NASTY = [
    "<script>alert(1)</script>",
    "</details><img src=x onerror=alert(1)>",
    "a | b | c",
    "[click](http://evil.example)",
    "![x](http://evil.example/x.png)",
    "<http://evil.example> www.evil.example",
    "`code` **bold** _it_ ~~gone~~ __init__",
    "``` \n```\n# heading",
    "\n---\nlicense: evil\n---\n",
    "name: value # comment",
    "'\"}: [{",
    "{{ 7 * 7 }} {% raw %}",
    "$$x$$ \\(y\\) @someone #1",
    "\\| \\`",
    "null",
    "1e3",
    "\x00\x1b[31m\u202egpj\u2028x\ud800",
    "&lt;b&gt; &#96;",
    "- [ ] item\r\n1. one",
    "",
    "é猫 نص",
]
TEXT_FIELDS = [
    *("model.architecture", "model.checkpoint", "data.name", "data.source", "optimizer.name", "optimizer.base"),
    *("best.metric", "hardware.device", "hardware.accelerator", "versions.torch", "status", "command"),
    *("arguments.training.lr_scheduler_type", "optimizer.switch.kind", "arguments.data.dataset"),
    *("data.normalisation", "data.split_sources.train.split", "data.split_sources.test.split"),
]


def nasty_text(rng: random.Random) -> str:
    alphabet = "".join(NASTY) + "<>&|[]()`*_~$\\{}#!-=+:/'\"\n\r\t\u202e\x07"
    return rng.choice([rng.choice(NASTY), "".join(rng.choices(alphabet, k=rng.randint(1, 40)))])


def skeleton(card: str) -> list[tuple[str, str]]:
    """Return the card's structure: every piece of markup in it, without the text between."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(ModelCard(card).text)
    found = []
    for token in tokens:
        found.append((token.type, token.tag))
        for child in token.children or []:
            if child.type not in ("text", "softbreak", "text_special", "entity"):
                found.append((child.type, f"{child.tag}{child.attrs}{child.content if child.markup == '' else ''}"))
        if token.type == "html_block":
            found.append(("html", token.content))
    return found


@pytest.mark.parametrize("seed", range(25))
def test_nothing_a_user_wrote_becomes_markup_or_metadata(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    folder = write_run_folder(tmp_path / "run")
    plain: dict[str, Any] = dict.fromkeys(TEXT_FIELDS, "word")
    plain |= {"data.label_names": ["word"] * 10, "warnings": ["word"] * 2, "data.skipped": {"word": 1}}
    nasty: dict[str, Any] = {keys: nasty_text(rng) for keys in TEXT_FIELDS}
    nasty |= {"data.label_names": [nasty_text(rng) for _ in range(10)], "warnings": [nasty_text(rng), nasty_text(rng)]}
    nasty["data.skipped"] = {nasty_text(rng): 1}
    nasty["model.checkpoint"] = nasty["model.checkpoint"] or "x"  # an empty one means there was none
    nasty["hardware.accelerator"] = nasty["hardware.accelerator"] or "x"
    cards = []
    for texts in (plain, nasty):
        for keys, value in texts.items():
            change(folder, keys, value)
        cards.append(render_card(folder))
    write_card(folder)
    assert skeleton(cards[1]) == skeleton(cards[0])
    heads = [metadata(card) for card in cards]
    assert list(heads[1]) == list(heads[0])
    assert "license" not in heads[1]
    assert list(results_by_split(cards[1]).values()) == list(results_by_split(cards[0]).values())


@pytest.mark.parametrize(
    "text", ["a < b & c", "snow_leopard", "50 % off", "*star*", "x|y", "_lead", "e.g. www.x.org", "=="]
)
def test_escaped_names_still_read_as_written(tmp_path: Path, text: str) -> None:
    folder = write_run_folder(tmp_path / "run")
    change(folder, "data.label_names", [text, "other"])
    html = MarkdownIt("commonmark").enable("table").render(ModelCard(render_card(folder)).text)
    shown = text.replace("&", "&amp;").replace("<", "&lt;")
    assert f"Classes: {shown} · other" in html


def test_ordinary_names_stay_readable_in_the_source(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    change(folder, "warnings", ["The switch FixedSwitch(at=0.8) never fired."])
    assert "- Warning of the run: The switch FixedSwitch(at=0.8) never fired.\n" in render_card(folder)
    change(folder, "data.label_names", ["snow_leopard", "T-shirt/top", "St. Bernard's dog (big)"])
    assert "snow_leopard · T-shirt/top · St. Bernard's dog (big)" in render_card(folder)


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


def test_importing_the_module_is_light() -> None:
    code = (
        "import sys, rts_hf; before = set(sys.modules); import rts_hf.hub\n"
        "assert not {'huggingface_hub', 'jinja2', 'matplotlib', 'transformers'} & (set(sys.modules) - before)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


CARDS = sorted(path.parent for path in (Path(__file__).parents[1] / "model_cards").glob("*/run.json"))


@pytest.mark.parametrize("folder", CARDS, ids=lambda folder: folder.name)
def test_committed_cards_are_what_their_records_render(folder: Path) -> None:
    assert render_card(folder) == (folder / "README.md").read_text(encoding="utf-8")


def test_there_are_committed_cards() -> None:
    assert CARDS
