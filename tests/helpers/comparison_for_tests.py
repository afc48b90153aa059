"""Rows of a comparison, as its record has them."""

from typing import Any

from rts_hf.reports.comparison import COLUMNS, summarise

SGD, OURS = [0.90, 0.92, 0.91, 0.95], [0.91, 0.94, 0.91, 0.96]


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
