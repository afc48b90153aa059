"""What a model made of each class: the counts of a record, and the picture of its confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERED = 20  # classes up to which the cells of the picture hold their counts
NAMED = 50  # and its axes the names of the classes


class ClassResult(NamedTuple):
    """One class of a measured split.

    Args:
        name: Of the class, as in the record.
        images: Of this class in the split.
        correct: Those that were recognised.
        taken_for: The other class that most of the rest were taken for, and how many; None if there is no rest, or the
            record holds no confusion matrix.
    """

    name: str
    images: int
    correct: int
    taken_for: tuple[str, int] | None

    @property
    def accuracy(self) -> float | None:
        """Share of the class's images that were recognised (its recall); None without images."""
        return self.correct / self.images if self.images else None


def measured_split(record: Mapping[str, Any]) -> str | None:
    """Return the split whose counts by class stand for a run: test, else validation, else None."""
    classes = record.get("classes") or {}
    return next((split for split in ("test", "validation") if classes.get(split)), None)


def confusion_split(record: Mapping[str, Any]) -> str | None:
    """Return :func:`measured_split` if the record holds its confusion matrix, else None."""
    split = measured_split(record)
    return split if split and record["classes"][split].get("confusion") else None


def class_results(record: Mapping[str, Any], split: str) -> list[ClassResult]:
    """Return the results of a split by class, in the order of the labels.

    Args:
        record: What ``run.json`` holds.
        split: One that :func:`measured_split` may return.
    """
    counts, names = record["classes"][split], record["data"]["label_names"]
    matrix = counts.get("confusion")
    results = []
    for index, (name, images, correct) in enumerate(zip(names, counts["images"], counts["correct"], strict=True)):
        others = [(count, -other) for other, count in enumerate(matrix[index]) if other != index] if matrix else []
        count, place = max(others, default=(0, 0))
        results.append(ClassResult(name, images, correct, (names[-place], count) if count else None))
    return results


def draw_confusion(figure: Figure, record: Mapping[str, Any], split: str, short: Callable[[object], str]) -> None:
    """Draw the confusion matrix of a split: rows are true classes, shades are shares of a row.

    Args:
        figure: Empty, about square.
        record: What ``run.json`` holds.
        split: One that has a confusion matrix in it.
        short: Makes a name fit for a picture.
    """
    matrix = record["classes"][split]["confusion"]
    names = [short(name)[:16] for name in record["data"]["label_names"]]
    shares = [[count / max(sum(row), 1) for count in row] for row in matrix]
    axes = figure.subplots()
    axes.grid(False)
    shades = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(shades, ax=axes, shrink=0.8, label="share of the true class's images")
    axes.set(xlabel="predicted class", ylabel=f"true class ({split} images)")
    if len(names) <= NAMED:
        size = 9 if len(names) <= NUMBERED else 6
        is_long = max(map(len, names)) > 2
        axes.set_xticks(range(len(names)), names, rotation=90 if is_long else 0, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
    if len(names) <= NUMBERED:
        for row, counts in enumerate(matrix):
            for column, count in enumerate(counts):
                if count:
                    colour = "white" if shares[row][column] > 0.5 else "#404040"
                    axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=8)
