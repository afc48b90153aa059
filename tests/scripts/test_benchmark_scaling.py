"""Cost over parameters and tensors: measured, fitted, drawn."""

from pathlib import Path

import pytest
from benchmark.scaling import draw_scaling, measure_scaling, slope


def test_a_slope_is_the_exponent_of_the_last_points() -> None:
    points = [{"parameters": x, "perturbed": 5 + x**0.5, "plain": 2 * x} for x in (1.0, 1e4, 1e6, 1e8)]
    assert slope(points, "parameters", "plain") == pytest.approx(1)
    assert slope(points, "parameters") == pytest.approx(0.5, abs=0.01)
    assert slope(points, "parameters", last=4) < 0.45


def test_it_is_measured_and_drawn(tmp_path: Path) -> None:
    lines: list[str] = []
    measured = measure_scaling(sizes=(1e4, 1e5), tensors=(10, 20), repeats=1, progress=lines.append)
    assert [point["parameters"] for point in measured["sizes"]] == [10_000, 100_000]
    assert [point["tensors"] for point in measured["tensors"]] == [10, 20]
    assert all(point[name] > 0 for kind in measured.values() for point in kind for name in ("perturbed", "plain"))
    assert len(lines) == 4
    paths = draw_scaling(tmp_path / "scaling", measured)
    assert [path.suffix for path in paths] == [".png", ".svg"]
    assert all(path.stat().st_size > 1000 for path in paths)
