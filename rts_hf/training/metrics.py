"""Classification metrics that need no network, as `evaluate` metrics and as plain functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rts_hf.training.faults import NotANumber

if TYPE_CHECKING:
    import evaluate
    from numpy.typing import ArrayLike
    from transformers import EvalPrediction

TOP_K = 5
CONFUSION_LIMIT = 200  # classes
_CLASSIFIERS = ("ForImageClassification", "ForSequenceClassification")


def build_metrics(num_labels: int) -> dict[str, evaluate.Metric]:
    """Return the metrics that make sense for ``num_labels`` classes, by the name they report.

    >>> metrics = build_metrics(3)
    >>> sorted(metrics)
    ['accuracy', 'f1_macro']
    >>> metrics["accuracy"].compute(predictions=[0, 2, 1], references=[0, 1, 1])["accuracy"] == 2 / 3
    True

    An instance of `evaluate.Metric` is falsy until examples are added, so test for one with ``is not None``.

    Args:
        num_labels: Number of classes, at least 2. More than 5 adds ``top5_accuracy``.

    Returns:
        ``accuracy`` and ``f1_macro`` (predictions: class indices), ``top5_accuracy`` (predictions: scores (N, C)).

    Raises:
        ValueError: If ``num_labels`` is not a whole number of at least 2.
    """
    _check_num_labels(num_labels)
    classes = _metric_classes()
    metrics = {
        "accuracy": classes["Accuracy"](keep_in_memory=True),
        "f1_macro": classes["MacroF1"](keep_in_memory=True),
    }
    if num_labels > TOP_K:
        metrics[f"top{TOP_K}_accuracy"] = classes["TopKAccuracy"](k=TOP_K, keep_in_memory=True)
    return metrics


def classification_metrics(num_labels: int) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return the function a `transformers.Trainer` takes as ``compute_metrics``.

    Args:
        num_labels: Number of classes C, at least 2.

    Returns:
        A function from logits (N, C) and labels (N,) to plain floats in [0, 1] named ``accuracy``, ``f1_macro``
        and, for more than 5 classes, ``top5_accuracy``. It raises ValueError for empty input, shapes or labels
        that do not fit and logits that are not a number.

    Raises:
        ValueError: If ``num_labels`` is not a whole number of at least 2.
    """
    metrics = build_metrics(num_labels)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        # A model that also returns hidden states or attentions hands over a tuple, the logits first.
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        scores = _checked_scores(logits, "logits")
        if scores.shape[1] != num_labels:
            raise ValueError(
                f"logits have {scores.shape[1]} columns but num_labels is {num_labels}; "
                "build the metrics with the class count of the model's head."
            )
        labels = _checked_classes(prediction.label_ids, "labels", num_labels)
        _check_same_length(scores, labels, "logits", "labels")
        results: dict[str, float] = {}
        for name, metric in metrics.items():
            predictions = scores if name.startswith("top") else scores.argmax(axis=1)
            results[name] = metric.compute(predictions=predictions, references=labels)[name]
        return results

    return compute_metrics


def metrics_of_classes(num_labels: int) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return :func:`classification_metrics` of the examples whose labels are classes; of others there are no metrics.

    Labels (N, 1) are classes, -100 is none, and shares of the classes or several labels an image give an empty dict.
    """
    compute = classification_metrics(num_labels)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        is_tuple = isinstance(prediction.predictions, tuple)
        scores = np.asarray(prediction.predictions[0] if is_tuple else prediction.predictions)
        labels: Any = None if isinstance(prediction.label_ids, tuple) else np.asarray(prediction.label_ids)
        if labels is not None and labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(scores):
            return {}
        known = labels != -100
        if not known.any():
            return {}
        return compute(type(prediction)(scores[known], labels[known]))

    return compute_metrics


def is_classifier(model: Any) -> bool:
    """Return whether a model gives one row of logits an image, of two classes or more, as far as it tells.

    Every model of transformers has a ``num_labels``, those for other tasks too; of those the class's name decides.
    """
    from transformers import PreTrainedModel

    is_known = not isinstance(model, PreTrainedModel) or type(model).__name__.endswith(_CLASSIFIERS)
    return is_known and getattr(getattr(model, "config", None), "num_labels", 0) >= 2


def mean_cross_entropy(logits: Any, labels: Any) -> float | None:
    """Return the mean cross-entropy in nats, or None where these are not logits (N, C) and class indices (N,).

    >>> round(mean_cross_entropy(np.zeros((2, 4)), labels=np.array([0, 3])), 4)  # ln 4
    1.3863

    Args:
        logits: Scores (N, C).
        labels: True class indices (N,).
    """
    from torch import as_tensor, float64
    from torch.nn.functional import cross_entropy

    logits = logits[0] if isinstance(logits, tuple) and logits else logits
    scores, classes = np.asarray(logits), np.asarray(labels)
    if scores.dtype.kind != "f" or scores.ndim != 2 or not len(scores) or classes.shape != scores.shape[:1]:
        return None
    if classes.dtype.kind not in "iu" or classes.min() < 0 or classes.max() >= scores.shape[1]:
        return None
    return cross_entropy(as_tensor(scores, dtype=float64), as_tensor(classes)).item()


def confusion_matrix(predictions: ArrayLike, labels: ArrayLike, num_labels: int) -> list[list[int]]:
    """Return how often each class (row) was taken for each class (column).

    >>> confusion_matrix([0, 1, 1], labels=[0, 1, 0], num_labels=2)
    [[1, 1], [0, 1]]

    Args:
        predictions: Predicted class indices (N,), N ≥ 1.
        labels: True class indices (N,).
        num_labels: Number of classes C, at least 2.

    Returns:
        C rows of C counts, as plain integers.

    Raises:
        ValueError: For empty input, lengths that differ, or indices outside [0, num_labels).
    """
    from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

    _check_num_labels(num_labels)
    predicted = _checked_classes(predictions, "predictions", num_labels)
    true = _checked_classes(labels, "labels", num_labels)
    _check_same_length(predicted, true, "predictions", "labels")
    matrix = sklearn_confusion_matrix(true, predicted, labels=np.arange(num_labels))
    return [[int(count) for count in row] for row in matrix]


def class_counts(logits: Any, labels: ArrayLike, num_labels: int) -> dict[str, Any]:
    """Return what a model made of each class, as plain values for a record.

    >>> class_counts(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), labels=[0, 1, 1], num_labels=2)
    {'images': [1, 2], 'correct': [1, 1], 'confusion': [[1, 0], [1, 1]]}

    Args:
        logits: Scores (N, C), or a tuple that begins with them.
        labels: True class indices (N,).
        num_labels: Number of classes C, at least 2.

    Returns:
        ``images`` and ``correct`` by class, and ``confusion`` as `confusion_matrix` gives it; None for more than 200
        classes, where it would outgrow all else that a run leaves.

    Raises:
        ValueError: For empty input, or shapes, scores or labels that do not fit.
    """
    scores = _checked_scores(logits[0] if isinstance(logits, tuple) else logits, "logits")
    matrix = confusion_matrix(scores.argmax(axis=1), labels, num_labels)
    return {
        "images": [sum(row) for row in matrix],
        "correct": [row[index] for index, row in enumerate(matrix)],
        "confusion": matrix if num_labels <= CONFUSION_LIMIT else None,
    }


@functools.cache
def _metric_classes() -> Mapping[str, Any]:
    """Build the metric classes once, on first use: `import evaluate` alone takes seconds."""
    import datasets
    import evaluate
    from sklearn.metrics import accuracy_score, f1_score

    class_index = datasets.Value("int64")
    pair = datasets.Features({"predictions": class_index, "references": class_index})
    # Of the scores only the k best classes are kept: C floats an example would not fit in memory for many classes.
    ranked = datasets.Features({"predictions": datasets.List(class_index), "references": class_index})

    class Accuracy(evaluate.Metric):
        """Share of examples whose predicted class is the true one."""

        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(description=str(self.__doc__), citation="", features=pair)

        def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
            return {"accuracy": float(accuracy_score(references, predictions))}

    class MacroF1(evaluate.Metric):
        """Mean of the F1 scores of the classes that occur among the labels or the predictions."""

        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(description=str(self.__doc__), citation="", features=pair)

        def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
            return {"f1_macro": float(f1_score(references, predictions, average="macro", zero_division=0))}

    class TopKAccuracy(evaluate.Metric):
        """Share of examples whose true class is among the k classes with the highest scores (N, C), C > k."""

        def __init__(self, *args: Any, k: int = TOP_K, **kwargs: Any) -> None:
            if isinstance(k, bool) or not isinstance(k, int) or k < 1:
                raise ValueError(f"k={k!r} must be a whole number of at least 1.")
            self.k = k
            super().__init__(*args, **kwargs)

        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(description=str(self.__doc__), citation="", features=ranked)

        def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
            """Add scores (N, C) and true class indices (N,)."""
            scores = _checked_scores(predictions, "predictions")
            if scores.shape[1] <= self.k:
                raise ValueError(
                    f"predictions have {scores.shape[1]} columns, so top-{self.k} accuracy is always 1; "
                    "use a smaller k or plain accuracy."
                )
            labels = _checked_classes(references, "references", scores.shape[1])
            _check_same_length(scores, labels, "predictions", "references")
            # Ties go to the higher class index, as in scikit-learn's top_k_accuracy_score.
            best = np.argsort(scores, axis=1, kind="stable")[:, ::-1][:, : self.k]
            super().add_batch(predictions=best, references=labels, **kwargs)

        def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
            """Add the scores (C,) and the true class index of one example."""
            self.add_batch(predictions=[prediction], references=[reference], **kwargs)

        def _compute(self, predictions: list[list[int]], references: list[int]) -> dict[str, float]:
            found = np.asarray(predictions) == np.asarray(references)[:, None]
            return {f"top{self.k}_accuracy": float(found.any(axis=1).mean())}

    classes: dict[str, Any] = {c.__name__: c for c in (Accuracy, TopKAccuracy, MacroF1)}
    for name, metric_class in classes.items():
        metric_class.__qualname__ = name  # pickle then finds the class through this module's __getattr__
    return classes


def __getattr__(name: str) -> Any:
    """Make ``Accuracy``, ``TopKAccuracy`` and ``MacroF1`` importable without loading `evaluate` before they are."""
    if name in ("Accuracy", "TopKAccuracy", "MacroF1"):
        return _metric_classes()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _check_num_labels(num_labels: int) -> None:
    if isinstance(num_labels, bool) or not isinstance(num_labels, int | np.integer) or num_labels < 2:
        raise ValueError(f"num_labels={num_labels!r} must be a whole number of at least 2.")


def _check_same_length(first: np.ndarray, second: np.ndarray, first_name: str, second_name: str) -> None:
    if len(first) != len(second):
        raise ValueError(
            f"{first_name} hold {len(first)} examples but {second_name} hold {len(second)}; give one of each."
        )


def _checked_scores(values: Any, name: str) -> np.ndarray:
    scores = np.asarray(values)
    if scores.ndim != 2:
        raise ValueError(f"{name} have shape {scores.shape}; they must have shape (examples, classes).")
    if scores.size == 0:
        raise ValueError(f"{name} have shape {scores.shape} and so are empty; at least one example is needed.")
    bad_rows = np.flatnonzero(np.isnan(scores).any(axis=1))
    if bad_rows.size:
        raise NotANumber(
            f"{name} are not a number (NaN) in {bad_rows.size} of {len(scores)} rows, first in row {bad_rows[0]}; "
            "the model has diverged or the input was bad: lower the learning rate or check the images."
        )
    return scores


def _checked_classes(values: Any, name: str, num_labels: int) -> np.ndarray:
    classes = np.asarray(values)
    if classes.ndim != 1:
        raise ValueError(f"{name} have shape {classes.shape}; they must be class indices of shape (examples,).")
    if classes.size == 0:
        raise ValueError(f"{name} are empty; at least one example is needed.")
    if classes.dtype.kind not in "iu":
        raise ValueError(f"{name} have type {classes.dtype}; they must be whole numbers, the class indices.")
    bad_rows = np.flatnonzero((classes < 0) | (classes >= num_labels))
    if bad_rows.size:
        raise ValueError(
            f"{name}[{bad_rows[0]}]={classes[bad_rows[0]]} is not a class; with {num_labels} classes "
            f"the indices run from 0 to {num_labels - 1}."
        )
    return classes
