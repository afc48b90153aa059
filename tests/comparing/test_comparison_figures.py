"""Pictures of a comparison are there, the same each time, and take any number of methods."""

from pathlib import Path
from typing import Any

import pytest
from comparison_for_tests import comparison, row
from PIL import Image

from rts_hf.comparing.figures import COLOURS, MARKS, _look, draw_comparison
from rts_hf.reports import figures


def drawn(folder: Path, methods: int, seeds: int) -> list[Path]:
    names = ["sgd", *(f"method {number}" for number in range(1, methods))]
    rows = [row(name, seed, 0.9 + 0.01 * seed) for name in names for seed in range(seeds)]
    curves: dict[str, Any] = {name: [[(10, 0.5), (20, 0.9)] for _ in range(seeds)] for name in names}
    return draw_comparison(folder, comparison(rows), rows, curves)


@pytest.mark.parametrize(("methods", "seeds"), [(1, 1), (9, 3)])
def test_pictures_are_there_and_the_same_each_time(
    tmp_path: Path, methods: int, seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert figures.DPI == 200
    monkeypatch.setattr(figures, "DPI", 50)
    paths = drawn(tmp_path / "a", methods, seeds)
    assert [path.name for path in paths] == ["accuracy.png", "accuracy.svg", "histories.png", "histories.svg"]
    for path, again in zip(paths, drawn(tmp_path / "b", methods, seeds), strict=True):
        assert path.read_bytes() == again.read_bytes()
    with Image.open(paths[0]) as image:
        assert image.width == 8 * 50
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 10


def test_methods_are_told_apart() -> None:
    looks = [_look(place) for place in range(len(COLOURS) * 3)]
    assert len(set(looks)) == len(looks)
    assert len(set(MARKS)) == len(MARKS)


def test_a_method_without_evaluations_has_no_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DPI", 50)
    rows = [row("sgd", 0, 0.9)]
    assert draw_comparison(tmp_path, comparison(rows), rows, {"sgd": [[]]})
