"""The card of a run: what was measured, on which images, and what was not."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from cards_for_tests import change, metadata, results_by_split
from run_folder_for_tests import edit_json, write_run_folder

from rts_hf.reports.card import render_card


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
        (
            "uoft-cs/cifar10",
            True,
            "the Hub data set [uoft-cs/cifar10](https://huggingface.co/datasets/uoft-cs/cifar10)",
        ),
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


def test_the_package_of_embedded_data_is_named(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    change(folder, "data.package", "scikit-image")
    card = render_card(folder)
    assert "embedded in the package scikit-image" in card
    assert {result["dataset"]["type"] for result in metadata(card)["model-index"][0]["results"]} == {"scikit-image"}


@pytest.fixture(scope="module")
def plain_card(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render_card(write_run_folder(tmp_path_factory.mktemp("plain") / "run", "by_class"))


@pytest.mark.parametrize(
    ("keys", "value", "expected"),
    [
        ("classes.test.images", [36] * 9 + [90], "| 9 | 90 | 0.4000 |"),
        ("classes.test.correct", [18] + [36] * 9, "| 0 | 36 | 0.5000 | 1 (1) |"),
        ("classes.test.confusion", [[30, 0, 0, 6] + [0] * 6] * 10, "| 3 (6) |"),
        ("data.label_names", [f"digit|{i}" for i in range(10)], "| digit&#124;3 | 36 | 0.9722 | digit&#124;4 (1) |"),
    ],
)
def test_card_says_what_was_made_of_each_class(
    plain_card: str, tmp_path: Path, keys: str, value: object, expected: str
) -> None:
    assert expected not in plain_card
    folder = write_run_folder(tmp_path / "run", "by_class")
    change(folder, keys, value)
    assert expected in render_card(folder)


def test_of_very_many_classes_the_worst_are_shown(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", "by_class")
    change(folder, "data.label_names", [f"name{i}" for i in range(40)])
    counts = {"images": [50] * 40, "correct": [50 - i for i in range(40)], "confusion": None}
    change(folder, "classes", {"validation": counts})
    card = render_card(folder)
    assert "By class, of the validation split (the 30 classes that were recognised worst):" in card
    rows = re.findall(r"^\| (name\d+) \| 50 \| ([\d.]+) \| – \|$", card, re.MULTILINE)
    assert rows == [(f"name{i}", f"{(50 - i) / 50:.4f}") for i in reversed(range(10, 40))]


def test_classes_without_images_have_no_row(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", "by_class")
    change(folder, "classes.test.images", [0] + [36] * 9)
    change(folder, "classes.test.correct", [0] + [30] * 9)
    _, table = render_card(folder).split("By class, of the test split:")
    rows = re.findall(r"^\| (\d) \| (\d+) \| ", table.partition("## Data")[0], re.MULTILINE)
    assert rows == [(str(i), "36") for i in range(1, 10)]


def test_what_has_no_name_is_called_unnamed(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    change(folder, "data.name", " ")
    (model,) = metadata(render_card(folder))["model-index"]
    assert {result["dataset"]["name"] for result in model["results"]} == {"unnamed"}
