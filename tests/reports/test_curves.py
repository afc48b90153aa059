"""Pictures of several runs show what their files say, and the numbers that the paper prints."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from run_folder_for_tests import edit_json, write_run_folder

from rts_hf.optim.schedules import STRATEGIES
from rts_hf.reports import curves as figures_of_runs
from rts_hf.reports import figures
from rts_hf.reports.curves import (
    History,
    draw_figure,
    draw_histories,
    draw_lines,
    draw_strategies,
    draw_surface,
    names_of_runs,
)
from rts_hf.reports.run_folder import read_log

AXIS = np.linspace(-1, 1, 5)
BOWL = AXIS[:, None] ** 2 + AXIS[None, :] ** 2 + 0.01


def drawn(draw: Any, *args: Any, **settings: Any) -> Figure:
    with mpl.rc_context(figures.STYLE):
        figure = Figure(figsize=(8, 4), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure, *args, **settings)
        figure.draw_without_rendering()
    return figure


def line(axes: Any, label: str) -> tuple[list[float], list[float]]:
    (found,) = [found for found in axes.get_lines() if str(found.get_label()).startswith(label)]
    return list(found.get_xdata()), list(found.get_ydata())


def test_history_is_drawn_over_gradient_evaluations(tmp_path: Path) -> None:
    kinds = ("sgd", "rts_pugd", "sam")
    folders = [write_run_folder(tmp_path / kind, kind) for kind in kinds]
    figure = drawn(draw_histories, [History.read(folder, kind) for folder, kind in zip(folders, kinds, strict=True)])
    for axes, key in zip(figure.axes, ("loss", "accuracy"), strict=True):
        assert "gradient evaluations" in axes.get_xlabel()
        for folder, kind in zip(folders, kinds, strict=True):
            log = [entry for entry in read_log(folder) if "eval_loss" in entry]
            x, y = line(axes, kind)
            assert x == [entry["gradient_evaluations"] for entry in log]
            assert y == [entry[f"eval_{key}"] for entry in log]
        assert line(axes, "sgd")[0][-1] == 400
        assert line(axes, "sam")[0][-1] == 800
        assert [list(found.get_xdata()) for found in axes.get_lines()].count([120.0, 120.0]) == 1
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:3] == ["sgd (test 0.9778)", "rts_pugd (test 0.9778)", "sam (test 0.9778)"]
    assert labels[3:] == ["validation", "training", "start of the perturbed phase"]


def test_training_curve_is_the_epoch_mean_or_what_was_logged(tmp_path: Path) -> None:
    log = read_log(write_run_folder(tmp_path / "run"))
    means = [entry["train_loss"] for entry in log if "eval_loss" in entry]
    assert History.read(tmp_path / "run", "run").curves["train_loss"][1] == means
    log = read_log(write_run_folder(tmp_path / "plain", "no_evaluation"))
    history = History.read(tmp_path / "plain", "run")
    assert history.curves["train_loss"][1] == [entry["loss"] for entry in log if "loss" in entry]
    assert history.curves["eval_loss"] == ([], [])
    drawn(draw_histories, [history])


def test_curves_that_are_not_finite_or_were_never_logged_are_drawn(tmp_path: Path) -> None:
    for kind in ("diverged", "blew_up", "no_logs", "one_epoch"):
        history = History.read(write_run_folder(tmp_path / kind, kind), kind)
        drawn(draw_histories, [history])
    assert np.isnan(History.read(tmp_path / "diverged", "run").curves["train_loss"][1]).any()


def test_two_pass_run_whose_cost_is_not_known_is_refused(tmp_path: Path) -> None:
    def forget(state: dict[str, Any]) -> None:
        for entry in state["log_history"]:
            entry.pop("gradient_evaluations", None)

    for kind in ("sgd", "sam"):
        edit_json(write_run_folder(tmp_path / kind, kind) / "trainer_state.json", forget)
    assert History.read(tmp_path / "sgd", "sgd").curves["eval_loss"][0][-1] == 400
    with pytest.raises(ValueError, match="without gradient evaluations"):
        History.read(tmp_path / "sam", "sam")


def test_runs_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    folders = [write_run_folder(tmp_path / name, kind) for name, kind in (("a", "sgd"), ("b", "sam"), ("c", "sgd"))]
    assert names_of_runs(folders[:2]) == ["sgd", "sam"]
    assert names_of_runs(folders) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="the same name, 'a'"):
        names_of_runs([folders[0], folders[0]])
    with pytest.raises(FileNotFoundError, match=r"no run\.json"):
        names_of_runs([tmp_path])


def test_strategies_have_the_labels_of_the_papers_figure() -> None:
    axes = drawn(draw_strategies).axes[0]
    assert [text.get_text() for text in axes.texts] == ["sample 40: 3.105", "sample 360: 3.181"]
    assert [text.xy for text in axes.texts] == [
        (40, line(axes, "inverse_sine_annealing")[1][40]),
        (360, line(axes, "inverse_cosine_heating")[1][360]),
    ]
    for name in STRATEGIES:
        assert len(line(axes, name)[0]) == 400
    assert line(axes, "cosine_annealing")[1][0] == 2.0
    other = drawn(draw_strategies, beta_min=0.1).axes[0]
    assert "3.105" not in other.texts[0].get_text(), "the labels are computed"


@pytest.mark.parametrize("loss", [BOWL, np.ones((5, 5)), np.where(BOWL > 1, np.inf, BOWL), BOWL - 0.01])
def test_surface_is_drawn_with_its_contours(loss: np.ndarray) -> None:
    figure = drawn(draw_surface, "sgd", AXIS, AXIS, loss)
    surface, contour, bar = (axes for sub in figure.subfigs for axes in sub.axes)
    assert surface.name == "3d"
    assert "loss" in bar.get_ylabel()
    assert line(contour, "_child") == ([0], [0])


def test_surfaces_can_share_their_scale() -> None:
    figure = drawn(draw_surface, "sgd", AXIS, AXIS, BOWL, limits=(0.001, 100.0))
    surface, _, bar = (axes for sub in figure.subfigs for axes in sub.axes)
    assert surface.get_zlim() == (-3, 2)
    assert bar.get_ylim() == (-3, 2)
    assert list(bar.get_yticks()) == list(surface.get_zticks()) == [-3, -2, -1, 0, 1, 2]


@pytest.mark.parametrize(
    ("limits", "losses"),
    [((1.3, 41.0), [2, 5, 10, 20]), ((0.5, 2.0), [0.5, 1, 2]), ((2.1, 2.4), [2.1, 2.196, 2.296, 2.4])],
)
def test_losses_on_a_logarithmic_axis_are_round_where_they_can_be(
    limits: tuple[float, float], losses: list[float]
) -> None:
    figure = drawn(draw_surface, "sgd", AXIS, AXIS, BOWL, limits=limits)
    bar = figure.subfigs[1].axes[1]
    assert [round(10**tick, 3) for tick in bar.get_yticks()] == losses


def test_lines_are_named_by_their_ends() -> None:
    position = np.array([-0.25, 0, 0.5, 1, 1.25])
    found = SimpleNamespace(position=position, loss=np.arange(5.0) + 1, accuracy=np.full(5, 0.5))
    figure = drawn(draw_lines, "sgd", {"sam": found, "rts_pugd": found})
    for axes, key in zip(figure.axes, ("loss", "accuracy"), strict=True):
        assert line(axes, "sgd (0) to sam (1)") == (list(position), list(getattr(found, key)))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "sgd (0) to sam (1)",
        "sgd (0) to rts_pugd (1)",
    ]


def test_nothing_is_cut_off_at_the_width_of_the_readme(tmp_path: Path) -> None:
    kinds = ("sgd", "rts_pugd", "sam", "pugd", "late_switch", "every_fourth", "gap_switch", "kept_last")
    histories = [History.read(write_run_folder(tmp_path / kind, kind), f"a_longer_name_{kind}") for kind in kinds]
    for figure in (drawn(draw_histories, histories), drawn(draw_strategies)):
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DPI", 40)
    paths = [draw_figure(tmp_path / name, draw_strategies, height=4.8) for name in ("a", "b")]
    assert [path.name for path in paths[0]] == ["a.png", "a.svg"]
    for one, other in zip(*paths, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert len(set(figures_of_runs.COLOURS)) == len(figures_of_runs.COLOURS)
