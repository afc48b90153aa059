"""Figures with targets: how they are timed, judged, kept and shown."""

import json
import time

import pytest
from benchmark.timers import Figure, interleaved, machine, medians, ratio, read_figures, record, table


def test_sides_are_called_in_turns_and_warmed_up() -> None:
    calls: list[str] = []
    seconds = interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: (calls.append("b"), time.sleep(0.01))}, repeats=3, warm_up=2
    )
    assert calls == ["a", "b"] * 5
    assert [len(each) for each in seconds.values()] == [3, 3]
    assert all(each >= 0.01 for each in seconds["b"])
    assert ratio(seconds, "b", "a") > 1


def test_a_ratio_is_of_neighbours_not_of_medians() -> None:
    seconds = {"a": [1.0, 20.0, 3.0, 4.0, 50.0], "b": [1.0, 10.0, 3.0, 4.0, 50.0]}
    assert ratio(seconds, "a", "b") == 1.0
    assert medians(seconds) == {"a": 4.0, "b": 4.0}


@pytest.mark.parametrize(
    ("value", "sense", "met"),
    [(1.0, "at most", True), (1.1, "at most", False), (1.0, "at least", True), (0.9, "at least", False)],
)
def test_a_target_is_met_on_its_side(value: float, sense: str, met: bool) -> None:
    figure = Figure("one", "words", value, 1.0, sense)  # type: ignore[arg-type]
    assert figure.is_met == met
    line = table([figure]).splitlines()[-1]
    assert ("**missed**" in line) != met
    assert ("≤ 1" if sense == "at most" else "≥ 1") in line


def test_a_record_gives_its_figures_back() -> None:
    figures = [Figure("one", "a", 0.021, 0.05, details={"x": 1}), Figure("two", "b", 30, 40, note="so it is")]
    kept = json.loads(json.dumps(record(figures, scaling={"sizes": []})))
    assert read_figures(kept) == figures
    assert kept["machine"] == machine()
    assert "| b | ≤ 40 | 30 | met: so it is |" in table(figures)
    assert "| 0.021 |" in table(figures)
    with pytest.raises(ValueError, match="format=0 of the record is not 1; measure again"):
        read_figures({**kept, "format": 0})
