"""Rows of a comparison as its record has them, and comparisons planned but not made."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rts_hf.comparing.comparison import Comparison
from rts_hf.comparing.method import parse_method
from rts_hf.reports import figures
from rts_hf.reports.comparison import COLUMNS, summarise

SMALL = ("--use_cpu", "--max_train_samples", "120", "--max_eval_samples", "40", "--per_device_train_batch_size", "24")

SGD, OURS = [0.90, 0.92, 0.91, 0.95], [0.91, 0.94, 0.91, 0.96]
PAPER = "rts_pugd --recipe paper"  # whatever the defaults are


def row(method: str, seed: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    values = dict.fromkeys(COLUMNS, 1) | {"method": method, "seed": seed, "test_accuracy": accuracy}
    return values | {"sharpness": None, "gradient_evaluations": 100} | changes


ROWS = [row("sgd", seed, value) for seed, value in enumerate(SGD)]
ROWS += [row("ours", seed, value) for seed, value in enumerate(OURS)]


def comparison(rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    facts = {
        "format": 1,
        "model": "resnet18",
        "data": "digits",
        "budget": 30.0,
        "gradient_evaluations": 100,
        "reference": "sgd",
    }
    return {**facts, "tuning": None, "methods": summarise(rows, "sgd"), **changes}


def planned(folder: Path, *opts: str, **settings: Any) -> Comparison:
    """Return a comparison of which no run was made yet."""
    defaults: dict[str, Any] = {"seeds": range(2), "budget": 4, "words": SMALL}
    methods = [parse_method(text) for text in opts or ("sgd", "sam", PAPER)]
    return Comparison(methods, output_dir=folder, **{**defaults, **settings})


@pytest.fixture(scope="module", autouse=True)
def small_pictures() -> Iterator[None]:
    """Draw with fewer pixels: what is tested does not depend on them, and the time does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DPI", 40)
        yield
