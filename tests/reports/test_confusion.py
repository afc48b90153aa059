"""Counts by class are read from a record, and drawn as they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from run_folder_for_tests import edit_json, write_run_folder

from rts_hf.reports import figures
from rts_hf.reports.confusion import ClassResult, class_results, draw_confusion, measured_split
from rts_hf.reports.figures import draw_run_figures
from rts_hf.training.metrics import class_counts

LOGITS = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0], [0.0, 3.0, 1.0], [0.0, 1.0, 2.0], [5.0, 0.0, 1.0]])
LABELS = np.array([0, 0, 1, 1, 1])


def record(split: str = "test") -> dict[str, Any]:
    return {
        "data": {"label_names": ["cat", "dog", "owl"]},
        "classes": {split: class_counts(LOGITS, LABELS, 3)},
    }


def test_results_by_class() -> None:
    first, second, third = class_results(record(), "test")
    assert first == ClassResult("cat", 2, 1, ("owl", 1))
    assert second == ClassResult("dog", 3, 1, ("cat", 1))  # of equally many the first
    assert third == ClassResult("owl", 0, 0, None)
    assert (first.accuracy, third.accuracy) == (0.5, None)
    assert sum(result.correct for result in (first, second, third)) / 5 == np.mean(LOGITS.argmax(1) == LABELS)


def test_without_a_matrix_nothing_is_said_of_it() -> None:
    content = record()
    content["classes"]["test"]["confusion"] = None
    assert [result.taken_for for result in class_results(content, "test")] == [None] * 3


def test_the_test_split_comes_first() -> None:
    assert measured_split(record()) == "test"
    assert measured_split(record("validation")) == "validation"
    assert measured_split({"classes": {"test": None}}) is measured_split({}) is None


def test_very_many_classes_have_counts_but_no_matrix() -> None:
    counts = class_counts(np.eye(201), np.arange(201), 201)
    assert counts == {"images": [1] * 201, "correct": [1] * 201, "confusion": None}


@pytest.mark.parametrize("classes", [3, 21, 60])
def test_the_picture_shows_every_count(classes: int) -> None:
    counts = class_counts(np.eye(classes), np.arange(classes), classes)
    figure = Figure()
    content = {"data": {"label_names": [f"class {i}" for i in range(classes)]}, "classes": {"test": counts}}
    draw_confusion(figure, content, "test", str)
    axes = figure.axes[0]
    assert np.array_equal(axes.images[0].get_array(), np.eye(classes))
    assert len(axes.texts) == (3 if classes == 3 else 0)
    assert ("class 0" in [label.get_text() for label in axes.get_yticklabels()]) is (classes <= 50)


def test_it_is_drawn_for_runs_that_have_it_and_deleted_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "DPI", 40)
    folder = write_run_folder(tmp_path / "run", "sgd", by_class=True)
    assert "confusion.png" in {path.name for path in draw_run_figures(folder)}
    edit_json(folder / "run.json", lambda content: content.update(classes={}))
    assert "confusion.png" not in {path.name for path in draw_run_figures(folder)}
    assert not (folder / "figures" / "confusion.png").exists()
