"""Figures of invented runs: they show what the files say, nothing overlaps, the same run gives the same bytes."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from run_folder_for_tests import KINDS, edit_json, write_run_folder

from rts_hf import figures
from rts_hf.figures import draw_run_figures

ALL_NAMES = ("history", "schedules", "sharpness")


def names_of(kind: str) -> tuple[str, ...]:
    """Return which pictures a kind of run has."""
    if not KINDS[kind].get("method", "pugd"):
        return ALL_NAMES[:1]
    return ALL_NAMES[:2] if KINDS[kind].get("switch_step", 0) is None else ALL_NAMES


@pytest.fixture(scope="module", autouse=True)
def _small_pictures() -> Iterator[None]:
    """Draw with fewer pixels: what is tested does not depend on them, and the time does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DPI", 60)
        yield


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Every kind of run, drawn once; a warning is an error."""
    result = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in KINDS:
            folder = write_run_folder(tmp_path_factory.mktemp("runs") / kind, kind)
            result[kind] = draw_run_figures(folder)
    return result


def drawing(folder: Path, name: str) -> Figure:
    """Return one figure as an object, to ask it what it shows."""
    with mpl.rc_context(figures.STYLE):
        figure = Figure(figsize=(8, 4), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(figures._Run.read(folder).title(), fontsize=11)
        getattr(figures, f"_draw_{name}")(figure, figures._Run.read(folder))
        figure.draw_without_rendering()
    return figure


def line(axes: Axes, label: str) -> tuple[list[float], list[float]]:
    found = next(found for found in axes.get_lines() if found.get_label() == label)
    return list(map(float, np.asarray(found.get_xdata()))), list(map(float, np.asarray(found.get_ydata())))


def labels(axes: Axes) -> list[str]:
    return axes.get_legend_handles_labels()[1]


def log_of(folder: Path) -> list[dict[str, Any]]:
    return figures._Run.read(folder).log


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_there_and_not_empty(drawn: dict[str, list[Path]], kind: str) -> None:
    names = names_of(kind)
    assert [path.name for path in drawn[kind]] == [f"{name}.{suffix}" for name in names for suffix in ("png", "svg")]
    for path in drawn[kind]:
        assert path.parent.name == "figures"
        if path.suffix == ".png":
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("L"))
            assert pixels.shape[1] == 8 * 60
            assert 0.005 < (pixels < 128).mean() < 0.5
        else:
            assert path.read_text(encoding="utf-8").rstrip().endswith("</svg>")


def test_same_run_gives_same_bytes_whatever_the_users_style(drawn: dict[str, list[Path]], tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "again")
    with mpl.rc_context({"font.size": 30, "axes.grid": False, "savefig.facecolor": "black"}):
        before = dict(mpl.rcParams)
        again = draw_run_figures(folder)
        assert dict(mpl.rcParams) == before
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in drawn["rts_pugd"]]


def test_pyplot_is_not_used_and_import_is_light(tmp_path: Path) -> None:
    write_run_folder(tmp_path / "run", "sgd")
    code = (
        "import sys, rts_hf; before = set(sys.modules); import rts_hf.figures\n"
        "assert not {'matplotlib', 'numpy'} & (set(sys.modules) - before)\n"
        f"rts_hf.figures.draw_run_figures({str(tmp_path / 'run')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "run" / "figures" / "history.png") as image:
        assert image.width == 1600


def set_logged(key: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        def edit(state: dict[str, Any]) -> None:
            entry = next(entry for entry in reversed(state["log_history"]) if key in entry)
            entry[key] *= 0.7

        edit_json(folder / "trainer_state.json", edit)

    return change


def set_recorded(*keys: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        def edit(record: dict[str, Any]) -> None:
            for key in keys[:-1]:
                record = record[key]
            record[keys[-1]] = value

        edit_json(folder / "run.json", edit)

    return change


CHANGES: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "training loss": (set_logged("loss"), {"history"}),
    "training accuracy": (set_logged("accuracy"), {"history"}),
    "validation loss": (set_logged("eval_loss"), {"history"}),
    "validation accuracy": (set_logged("eval_accuracy"), {"history"}),
    "test accuracy": (set_recorded("metrics", "test", "accuracy", value=0.5), {"history"}),
    "best update": (set_recorded("best", "step", value=200), {"history"}),
    "no best update": (set_recorded("best", value=None), {"history"}),
    "alpha_r": (set_logged("alpha_r"), {"schedules"}),
    "alpha_s": (set_logged("alpha_s"), {"schedules"}),
    "radius": (set_recorded("optimizer", "radius", "beta_max", value=1.0), {"schedules"}),
    "sharpness": (set_logged("sharpness"), {"sharpness"}),
    "switch": (set_recorded("optimizer", "switch", "step", value=160), {"schedules", "sharpness"}),
    "switch epoch": (set_recorded("optimizer", "switch", "epoch", value=8.0), set(ALL_NAMES)),
    "name": (set_recorded("data", "name", value="cifar10"), set(ALL_NAMES)),
}


def pixels(folder: Path) -> dict[str, bytes]:
    result = {}
    for name in ALL_NAMES:
        figure = drawing(folder, name)
        figure.canvas.draw()
        result[name] = figure.canvas.buffer_rgba().tobytes()  # type: ignore[attr-defined]
    return result


@pytest.fixture(scope="module")
def unchanged_pixels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return pixels(write_run_folder(tmp_path_factory.mktemp("unchanged") / "run"))


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_gives_other_pixels(unchanged_pixels: dict[str, bytes], tmp_path: Path, change: str) -> None:
    alter, expected = CHANGES[change]
    folder = write_run_folder(tmp_path / "run")
    alter(folder)
    changed = pixels(folder)
    assert {name for name in ALL_NAMES if changed[name] != unchanged_pixels[name]} == expected


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


@pytest.mark.parametrize(("kind", "left"), [("never_switched", {"history", "schedules"}), ("sgd", {"history"})])
def test_pictures_of_a_run_before_are_deleted_and_no_other_file(tmp_path: Path, kind: str, left: set[str]) -> None:
    folder = write_run_folder(tmp_path / "run", kind)
    (folder / "figures").mkdir()
    for name in ("schedules.png", "schedules.svg", "sharpness.png", "sharpness.svg", "sharpness.pdf", "mine.png"):
        (folder / "figures" / name).touch()
    (folder / "sharpness.png").touch()
    draw_run_figures(folder)
    own = {f"{name}.{suffix}" for name in left for suffix in ("png", "svg")}
    assert {path.name for path in (folder / "figures").iterdir()} == {"sharpness.pdf", "mine.png"} | own
    assert (folder / "sharpness.png").is_file()


def test_run_whose_log_holds_no_sharpness_has_no_picture_of_it(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", epochs=1, switch_step=10)
    assert "sharpness.png" in [path.name for path in draw_run_figures(folder)]

    def edit(state: dict[str, Any]) -> None:
        for entry in state["log_history"]:
            if "sharpness" in entry:
                entry["sharpness"] = float("nan")

    edit_json(folder / "trainer_state.json", edit)
    assert "sharpness.png" not in [path.name for path in draw_run_figures(folder)]
    assert not (folder / "figures" / "sharpness.png").exists()


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


def texts(figure: Figure) -> Iterator[tuple[str, Any]]:
    """Yield every visible text with its box in pixels; a legend counts as one."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    found: list[Text] = [figure._suptitle] if figure._suptitle else []  # type: ignore[attr-defined]
    for axes in figure.axes:
        found += [*axes.texts, axes.xaxis.label, axes.yaxis.label]
        for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
            found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        if axes.get_legend():
            yield "legend", axes.get_legend().get_window_extent(renderer)
    for legend in figure.legends:
        yield "legend", legend.get_window_extent(renderer)
    for text in found:
        if text.get_visible() and text.get_text():
            yield text.get_text(), text.get_window_extent(renderer)


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_overlaps_another_or_leaves_the_picture(tmp_path: Path, kind: str) -> None:
    folder = write_run_folder(tmp_path / "run", kind)
    for name in names_of(kind):
        figure = drawing(folder, name)
        boxes = list(texts(figure))
        assert len(boxes) > 5
        for (first, one), (second, other) in combinations(boxes, 2):
            assert not one.overlaps(other), f"{name}: {first!r} overlaps {second!r}"
        for text, box in boxes:
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
            assert inside, f"{name}: {text!r} leaves the picture"


@pytest.mark.parametrize("name", ["$\\bad{$", "a_b^{c", "猫と犬", "--> <b>", "x" * 300, "two\nlines\u202e", ""])
def test_names_of_any_kind_can_be_drawn(tmp_path: Path, name: str) -> None:
    folder = write_run_folder(tmp_path / "run", "sgd", epochs=1)
    set_recorded("data", "name", value=name)(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = draw_run_figures(folder)
    assert len(paths) == 2


def test_missing_folder_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no run\.json"):
        draw_run_figures(tmp_path)
    folder = write_run_folder(tmp_path / "run")
    set_recorded("format", value=2)(folder)
    with pytest.raises(ValueError, match="format 2"):
        draw_run_figures(folder)
    (folder / "run.json").write_text('{"format": 1,', encoding="utf-8")
    with pytest.raises(ValueError, match="not valid JSON"):
        draw_run_figures(folder)
