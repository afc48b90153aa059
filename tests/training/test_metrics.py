"""Metrics: equal to hand-computed values and to scikit-learn, and clear about bad input."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as reference
from transformers import EvalPrediction

from rts_hf.training.metrics import build_metrics, classification_metrics, confusion_matrix

PREDICTIONS = [0, 1, 1, 2, 0, 2]
LABELS = [0, 1, 0, 2, 0, 1]
# By hand: class 0 has precision 2/2 and recall 2/3, class 1 1/2 and 1/2, class 2 1/2 and 1/1.
HAND_F1 = (0.8 + 0.5 + 2 / 3) / 3


def random_case(examples: int, num_labels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(examples, num_labels)).astype(np.float32), rng.integers(0, num_labels, examples)


def test_metrics_equal_values_computed_by_hand() -> None:
    metrics = build_metrics(3)
    assert metrics["accuracy"].compute(predictions=PREDICTIONS, references=LABELS) == {"accuracy": 4 / 6}
    assert metrics["f1_macro"].compute(predictions=PREDICTIONS, references=LABELS)["f1_macro"] == pytest.approx(HAND_F1)


@pytest.mark.parametrize("num_labels", [2, 5, 6, 10])
def test_names_follow_the_number_of_classes(num_labels: int) -> None:
    expected = {"accuracy", "f1_macro"} | ({"top5_accuracy"} if num_labels > 5 else set())
    assert set(build_metrics(num_labels)) == expected
    logits, labels = random_case(20, num_labels)
    assert set(classification_metrics(num_labels)(EvalPrediction(logits, labels))) == expected


@pytest.mark.parametrize(("examples", "num_labels"), [(1, 2), (7, 3), (200, 10), (50, 40)])
def test_trainer_function_equals_scikit_learn(examples: int, num_labels: int) -> None:
    logits, labels = random_case(examples, num_labels, seed=num_labels)
    results = classification_metrics(num_labels)(EvalPrediction(logits, labels))
    predicted = logits.argmax(axis=1)
    assert results["accuracy"] == reference.accuracy_score(labels, predicted)
    assert results["f1_macro"] == reference.f1_score(labels, predicted, average="macro", zero_division=0)
    if num_labels > 5:
        top5 = reference.top_k_accuracy_score(labels, logits, k=5, labels=np.arange(num_labels))
        assert results["top5_accuracy"] == top5
    assert all(type(value) is float for value in results.values())


def test_trainer_function_can_be_called_again_with_other_numbers() -> None:
    compute = classification_metrics(3)
    perfect = np.eye(3)[LABELS]
    assert compute(EvalPrediction(perfect, np.array(LABELS)))["accuracy"] == 1.0
    assert compute(EvalPrediction(np.eye(3)[PREDICTIONS], np.array(LABELS)))["accuracy"] == 4 / 6
    with pytest.raises(ValueError, match="NaN"):
        compute(EvalPrediction(np.full((2, 3), np.nan), np.array([0, 1])))
    assert compute(EvalPrediction(perfect, np.array(LABELS)))["accuracy"] == 1.0


def test_trainer_function_takes_the_logits_of_a_tuple() -> None:
    logits, labels = random_case(8, 4)
    compute = classification_metrics(4)
    assert compute(EvalPrediction((logits, np.zeros((8, 2))), labels)) == compute(EvalPrediction(logits, labels))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_resolves_ties_as_scikit_learn_does(k: int) -> None:
    from rts_hf.training.metrics import TopKAccuracy

    scores = np.random.default_rng(1).integers(0, 3, size=(100, 8)).astype(float)
    labels = np.random.default_rng(2).integers(0, 8, 100)
    expected = reference.top_k_accuracy_score(labels, scores, k=k, labels=np.arange(8))
    metric = TopKAccuracy(k=k, keep_in_memory=True)
    assert metric.compute(predictions=scores, references=labels) == {f"top{k}_accuracy": expected}


def test_batches_and_single_examples_add_up() -> None:
    metrics = build_metrics(10)
    logits, labels = random_case(9, 10)
    whole = metrics["top5_accuracy"].compute(predictions=logits, references=labels)
    metrics["top5_accuracy"].add_batch(predictions=logits[:5], references=labels[:5])
    for row, label in zip(logits[5:], labels[5:], strict=True):
        metrics["top5_accuracy"].add(prediction=row, reference=int(label))
    assert metrics["top5_accuracy"].compute() == whole


def test_metrics_are_evaluate_metrics_that_combine() -> None:
    evaluate = importlib.import_module("evaluate")
    metrics = build_metrics(6)
    assert all(isinstance(metric, evaluate.Metric) for metric in metrics.values())
    combined = evaluate.combine([metrics["accuracy"], metrics["f1_macro"]])
    results = combined.compute(predictions=PREDICTIONS, references=LABELS)
    assert results == {"accuracy": pytest.approx(4 / 6), "f1_macro": pytest.approx(HAND_F1)}


@pytest.mark.parametrize("name", ["Accuracy", "TopKAccuracy", "MacroF1"])
def test_classes_can_be_imported_and_pickled(name: str) -> None:
    metric_class = getattr(importlib.import_module("rts_hf.training.metrics"), name)
    assert pickle.loads(pickle.dumps(metric_class)) is metric_class


def test_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Recall"):
        _ = importlib.import_module("rts_hf.training.metrics").Recall


def test_confusion_matrix_counts_rows_as_truth() -> None:
    matrix = confusion_matrix(PREDICTIONS, LABELS, 4)
    assert matrix == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert all(type(count) is int for row in matrix for count in row)


def prediction(logits: Any, labels: Any) -> dict[str, float]:
    return classification_metrics(3)(EvalPrediction(np.asarray(logits), np.asarray(labels)))


BAD_INPUT: dict[str, tuple[Callable[[], object], str]] = {
    "NaN logits": (lambda: prediction([[0.0, 1, 2], [np.nan, 0, 0]], [0, 1]), "1 of 2 rows, first in row 1"),
    "logits of one dimension": (lambda: prediction([0.0, 1, 2], [0, 1, 2]), r"shape \(3,\)"),
    "no example": (lambda: prediction(np.zeros((0, 3)), np.zeros(0, int)), "empty"),
    "other head": (lambda: prediction(np.zeros((2, 4)), [0, 1]), "4 columns but num_labels is 3"),
    "lengths differ": (lambda: prediction(np.zeros((2, 3)), [0, 1, 2]), "2 examples but labels hold 3"),
    "label too large": (lambda: prediction(np.zeros((2, 3)), [0, 3]), r"labels\[1\]=3 .* 0 to 2"),
    "negative label": (lambda: prediction(np.zeros((2, 3)), [-100, 1]), r"labels\[0\]=-100"),
    "fractional labels": (lambda: prediction(np.zeros((2, 3)), [0.0, 1.0]), "float64"),
    "one class": (lambda: build_metrics(1), "num_labels=1"),
    "class count of another type": (lambda: classification_metrics("3"), "num_labels='3'"),  # type: ignore[arg-type]
    "predictions are scores": (lambda: confusion_matrix(np.zeros((2, 2)), [0, 1], 2), "class indices"),
    "empty predictions": (lambda: confusion_matrix([], [], 3), "predictions are empty"),
    "k of zero": (lambda: importlib.import_module("rts_hf.training.metrics").TopKAccuracy(k=0), "k=0"),
    "k not below the class count": (
        lambda: build_metrics(6)["top5_accuracy"].compute(predictions=np.zeros((2, 5)), references=[0, 1]),
        "always 1",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named(case: str) -> None:
    call, message = BAD_INPUT[case]
    with pytest.raises(ValueError, match=message):
        call()
