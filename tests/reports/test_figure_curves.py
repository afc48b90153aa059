"""Figures of invented runs: curves, axes, legends and the line of the switch show what the files say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figures_for_tests import (
    ALL_NAMES,
    drawing,
    labels,
    line,
    log_of,
    names_of,
    set_recorded,
    small_pictures,  # noqa: F401
)
from run_folder_for_tests import edit_json, write_run_folder

from rts_hf.reports import figures


def test_history_shows_the_logged_values(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    log = log_of(folder)
    for axes, key in zip(drawing(folder, "history").axes, ("loss", "accuracy"), strict=True):
        epochs, values = line(axes, "validation")
        assert epochs == list(range(1, 21))
        assert values == [entry[f"eval_{key}"] for entry in log if f"eval_{key}" in entry]
        epochs, means = line(axes, "train, epoch mean")
        assert epochs == list(range(1, 21))
        third = [entry[key] for entry in log if key in entry and 2 < entry["epoch"] <= 3]
        assert means[2] == pytest.approx(sum(third) / len(third))
        assert line(axes, "best validation")[0] == [figures._Run.read(folder).record["best"]["step"] / 20]
    best_epoch = figures._Run.read(folder).record["best"]["step"] / 20
    assert line(axes, "test 0.9778 (best weights)") == ([best_epoch], [0.9778])


def test_test_is_drawn_where_the_tested_weights_lie(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", "kept_last")
    axes = drawing(folder, "history").axes[1]
    assert line(axes, "test 0.9778 (last weights)") == ([20.0], [0.9778])
    assert "best validation" not in labels(axes)
    # the log may have lost the evaluation of the best weights: their update then tells the epoch
    set_recorded("best", value={"metric": "accuracy", "value": 0.9, "step": 150})(folder)
    assert line(drawing(folder, "history").axes[1], "test 0.9778 (best weights)") == ([7.5], [0.9778])


def test_second_evaluation_of_the_same_update_is_not_drawn(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    before = line(drawing(folder, "history").axes[0], "validation")
    final = {"step": 400, "epoch": 20.0, "eval_loss": 9.0, "eval_accuracy": 0.1}
    edit_json(folder / "trainer_state.json", lambda state: state["log_history"].append(final))
    assert line(drawing(folder, "history").axes[0], "validation") == before


@pytest.mark.parametrize(("kind", "switch_epoch"), [("rts_pugd", 6.0), ("late_switch", 19.4)])
def test_switch_is_a_labelled_line(tmp_path: Path, kind: str, switch_epoch: float) -> None:
    folder = write_run_folder(tmp_path / "run", kind)
    for name, position in (
        ("history", switch_epoch),
        ("schedules", 20 * switch_epoch),
        ("sharpness", 20 * switch_epoch),
    ):
        figure = drawing(folder, name)
        for axes in figure.axes:
            assert any(list(found.get_xdata()) == [position, position] for found in axes.get_lines()), name
        (text,) = [text for text in figure.axes[0].texts if "switch to PUGD" in text.get_text()]
        assert text.get_window_extent().y0 >= figure.axes[0].get_window_extent().y1, "the text hides no curve"


def test_switch_epoch_is_derived_where_the_record_has_none(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    set_recorded("optimizer", "switch", "epoch", value=None)(folder)
    assert figures._Run.read(folder).switch_epoch == pytest.approx(6.0)


@pytest.mark.parametrize("kind", ["rts_pugd", "every_fourth"])
def test_schedules_show_the_perturbed_updates_only(tmp_path: Path, kind: str) -> None:
    folder = write_run_folder(tmp_path / "run", kind)
    perturbed = [entry for entry in log_of(folder) if entry.get("epsilon_norm")]
    for axes, key in zip(drawing(folder, "schedules").axes, ("alpha_r", "alpha_s"), strict=True):
        updates, values = line(axes, "used by perturbed updates")
        assert updates == [entry["step"] for entry in perturbed]
        assert values == [entry[key] for entry in perturbed]
        planned = dict(zip(*line(axes, "the schedule as set"), strict=True))
        for update, value in zip(updates, values, strict=True):
            assert planned.get(update, value) == pytest.approx(value)


def test_update_perturbed_by_nothing_is_shown(tmp_path: Path) -> None:
    folder = write_run_folder(
        tmp_path / "run", radius={"strategy": "cosine_annealing", "beta_min": 0.0, "beta_max": 1.0}
    )
    axes = drawing(folder, "schedules").axes[0]
    updates, values = line(axes, "used by perturbed updates")
    assert (updates[-1], values[-1]) == (400, 0)
    assert axes.get_ylim()[0] < 0, "the marker at 0 would be cut in half"


def test_last_marker_is_not_cut_off(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", "every_fourth")
    for name in ALL_NAMES:
        figure = drawing(folder, name)
        for axes in figure.axes:
            drawn = [found for found in axes.get_lines() if found.get_marker() not in ("None", "")]
            ends = [float(np.asarray(found.get_xdata())[-1]) for found in drawn]
            radius = 2.5 * figure.dpi / 72
            for end in ends:
                assert axes.transData.transform((end, 0))[0] + radius <= axes.get_window_extent().x1


def test_schedule_of_wide_range_has_a_log_axis(tmp_path: Path) -> None:
    radius, scale = drawing(write_run_folder(tmp_path / "run"), "schedules").axes
    assert (radius.get_yscale(), scale.get_yscale()) == ("log", "linear")
    ticks = [tick.get_text() for tick in radius.get_yticklabels()]
    assert "10" in ticks


def test_plain_phase_is_shaded_and_named(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    for name in ("schedules", "sharpness"):
        axes = drawing(folder, name).axes[0]
        assert "SGD phase: not perturbed" in labels(axes)
        assert [patch.get_extents().width > 0 for patch in axes.patches] == [True]


def test_run_that_never_switched_says_so(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", "never_switched")
    for name in names_of("never_switched"):
        figure = drawing(folder, name)
        assert "never switched" in figure.get_suptitle()
        assert not any("switch to" in text.get_text() for axes in figure.axes for text in axes.texts)
        if name == "schedules":
            assert "used by perturbed updates" not in labels(figure.axes[0])


def test_sam_has_no_scale_panel(tmp_path: Path) -> None:
    assert len(drawing(write_run_folder(tmp_path / "run", "sam"), "schedules").axes) == 1


def test_sharpness_has_a_zero_line_and_every_logged_value(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    axes = drawing(folder, "sharpness").axes[0]
    assert any(list(found.get_ydata()) == [0, 0] for found in axes.get_lines())
    logged = [entry["sharpness"] for entry in log_of(folder) if "sharpness" in entry]
    assert line(axes, "mean over the 5 perturbed updates since the log entry before")[1] == logged
    assert "mean of 5 log entries" in labels(axes)
    low, high = axes.get_ylim()
    assert low < 0 < high


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"switch_step": 10, "epochs": 2}, "mean over the 5 perturbed updates since the log entry before"),
        ({"switch_step": 12, "epochs": 2}, "mean over the 3 to 5 perturbed updates since the log entry before"),
        (
            {"switch_step": 12, "epochs": 2, "perturb_every": 9},
            "mean over the 1 perturbed update since the log entry before",
        ),
    ],
)
def test_sharpness_says_of_how_many_updates_it_is_the_mean(tmp_path: Path, changes: dict[str, Any], label: str) -> None:
    folder = write_run_folder(tmp_path / "run", switch="fixed", settings={"at": 0.5}, **changes)
    assert label in labels(drawing(folder, "sharpness").axes[0])

    def forget(state: dict[str, Any]) -> None:
        for entry in state["log_history"]:
            entry.pop("gradient_evaluations", None)

    edit_json(folder / "trainer_state.json", forget)
    label = "mean over the perturbed updates since the log entry before"
    assert label in labels(drawing(folder, "sharpness").axes[0])


def test_sharpness_that_blew_up_presses_nothing_flat(tmp_path: Path) -> None:
    axes = drawing(write_run_folder(tmp_path / "run", "blew_up"), "sharpness").axes[0]
    logged = log_of(tmp_path / "run")
    low, high = (next(e["sharpness"] for e in logged if e["step"] == step and "sharpness" in e) for step in (130, 390))
    heights = [axes.transAxes.inverted().transform(axes.transData.transform((0, y)))[1] for y in (0, low, high)]
    assert heights[1] - heights[0] > 0.1
    assert heights[2] - heights[1] > 0.5


def test_values_that_are_not_finite_leave_a_counted_gap(tmp_path: Path) -> None:
    axes = drawing(write_run_folder(tmp_path / "run", "diverged"), "history").axes[0]
    assert axes.get_legend().get_title().get_text() == "28 of 100 logged values are not finite"
    _, means = line(axes, "train, epoch mean")
    assert np.isnan(means[13:]).all()
    assert np.isfinite(means[:13]).all()


def test_infinite_and_absent_values_are_gaps_too(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")

    def edit(state: dict[str, Any]) -> None:
        evaluations = [entry for entry in state["log_history"] if "eval_loss" in entry]
        evaluations[3]["eval_loss"] = float("inf")
        evaluations[5]["eval_loss"] = None

    edit_json(folder / "trainer_state.json", edit)
    axes = drawing(folder, "history").axes[0]
    assert np.flatnonzero(np.isnan(line(axes, "validation")[1])).tolist() == [3, 5]
    assert axes.get_legend().get_title().get_text() == "2 of 100 logged values are not finite"


def test_loss_that_blew_up_has_a_log_axis(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    edit_json(folder / "trainer_state.json", lambda state: state["log_history"][-2].update(eval_loss=1e7))
    assert drawing(folder, "history").axes[0].get_yscale() == "log"
