"""Learning rates are chosen on validation accuracy, over a grid that grows where its best value lies at an end."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from comparison_for_tests import planned
from run_folder_for_tests import edit_json, write_run_folder

from rts_hf.comparing.comparison import Cell
from rts_hf.comparing.tuning import EXTENSIONS, GRID, read_trials, search
from rts_hf.reports.comparison import to_csv


def pretending(accuracy: Callable[[float], float], seen: list[Cell]) -> Callable[[Sequence[Cell]], None]:
    def run(cells: Sequence[Cell]) -> None:
        for cell in cells:
            seen.append(cell)
            write_run_folder(cell.folder, epochs=1, switch_step=10)

            def edit(record: dict[str, Any], rate: float = cell.method.learning_rate or 0.0) -> None:
                record["metrics"] = {"validation": {"accuracy": accuracy(rate), "loss": 1.0 + rate}, "test": None}

            edit_json(cell.folder / "run.json", edit)

    return run


def test_the_best_of_a_grid_around_the_default_is_taken(tmp_path: Path) -> None:
    plan, seen = planned(tmp_path / "c", "sgd", "adamw"), list[Cell]()
    searches = search(plan, pretending(lambda rate: 0.9 - abs(rate - 0.03), seen), seeds=2)
    # of SGD's grid, around 0.2, that is the nearest; adamw's, around 0.001, grew to it
    assert [method.learning_rate for method in plan.methods] == pytest.approx([0.02, 0.03])
    first = [cell.method.learning_rate for cell in seen if cell.method.label == "sgd"][:8]
    assert sorted(set(first)) == pytest.approx([share * 0.2 for share in GRID])
    assert not searches[0].at_an_end
    assert {cell.seed for cell in seen} == {1000, 1001}
    assert len(seen) == sum(row["runs"] for each in searches for row in each.table())


def test_a_grid_grows_at_its_best_end_but_not_for_ever(tmp_path: Path) -> None:
    plan, seen = planned(tmp_path / "c", "sgd"), list[Cell]()
    (found,) = search(plan, pretending(lambda rate: rate, seen), seeds=1, learning_rates=[0.1, 0.3])
    assert found.rates == pytest.approx([0.1, 0.3, 0.95, 3.0, 9.5])
    assert len(found.rates) == 2 + EXTENSIONS
    assert found.at_an_end
    assert plan.methods[0].learning_rate == 9.5
    assert [row["chosen"] for row in found.table()] == [False, False, False, False, True]


def test_of_equally_accurate_ones_that_with_the_lower_loss(tmp_path: Path) -> None:
    plan = planned(tmp_path / "c", "sgd")
    search(plan, pretending(lambda rate: 0.5, []), seeds=1, learning_rates=[0.1, 0.2, 0.3])
    rate = plan.methods[0].learning_rate
    assert rate is not None
    assert rate < 0.1  # the loss falls with it, so the grid grew downwards


def test_a_rate_that_diverges_is_the_worst(tmp_path: Path) -> None:
    plan, seen = planned(tmp_path / "c", "sgd"), list[Cell]()
    run = pretending(lambda rate: rate, seen)

    def diverging(cells: Sequence[Cell]) -> None:
        run(cells)
        for cell in cells:
            if (cell.method.learning_rate or 0.0) > 0.25:
                broken = {"status": "diverged", "metrics": dict.fromkeys(("train", "validation", "test"))}
                edit_json(cell.folder / "run.json", lambda record: record.update(broken))  # noqa: B023

    (found,) = search(plan, diverging, seeds=2, learning_rates=[0.1, 0.2, 0.3])
    assert plan.methods[0].learning_rate == 0.2
    last = found.table()[-1]
    assert (last["learning_rate"], last["validation_accuracy"], last["validation_loss"]) == (0.3, 0.0, float("inf"))


def test_a_grid_that_diverges_throughout_grows_downwards(tmp_path: Path) -> None:
    plan, seen = planned(tmp_path / "c", "sgd"), list[Cell]()
    run = pretending(lambda rate: 0.0, seen)

    def diverging(cells: Sequence[Cell]) -> None:
        run(cells)
        for cell in cells:
            broken = {"status": "diverged", "metrics": dict.fromkeys(("train", "validation", "test"))}
            edit_json(cell.folder / "run.json", lambda record: record.update(broken))  # noqa: B023

    (found,) = search(plan, diverging, seeds=1, learning_rates=[0.4, 0.2])
    assert found.rates == pytest.approx([0.0064, 0.02, 0.063, 0.2, 0.4], rel=0.05)
    assert found.at_an_end


def test_seeds_of_the_comparison_choose_nothing(tmp_path: Path) -> None:
    plan = planned(tmp_path / "c", "sgd", seeds=[7, 1000])
    with pytest.raises(ValueError, match="1000 is one that learning rates are chosen with"):
        search(plan, pretending(lambda rate: 0.5, []), seeds=1)


def test_what_an_earlier_comparison_chose_is_taken_over(tmp_path: Path) -> None:
    plan = planned(tmp_path / "c", "sgd", "adamw")
    searches = search(plan, pretending(lambda rate: 0.9 - abs(rate - 0.03), []), seeds=2)
    rows = [row for each in searches for row in each.table()]
    (tmp_path / "trials.csv").write_text(to_csv(rows, list(rows[0])), encoding="utf-8")
    untuned = planned(tmp_path / "d", "adamw").methods
    methods, read = read_trials(untuned, tmp_path / "trials.csv")
    assert [(method.label, method.learning_rate) for method in methods] == [("adamw", 0.03)]
    assert read == [row for row in rows if row["method"] == "adamw"]
    with pytest.raises(ValueError, match="chose no learning rate for sam; leave it out, and give tune"):
        read_trials(planned(tmp_path / "e", "sgd", "sam").methods, tmp_path / "trials.csv")
    for text in (
        "method,learning_rate\nsgd,0.1\n",
        "method,learning_rate,runs\nsgd,high,1\n",
        "method,learning_rate\nsgd\n",
    ):
        (tmp_path / "other.csv").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"other.csv' is not the trials.csv of a comparison"):
            read_trials(methods, tmp_path / "other.csv")
    with pytest.raises(ValueError, match=r"is not the trials\.csv of a comparison"):
        read_trials(methods, tmp_path / "nothing.csv")
