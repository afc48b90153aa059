"""Figures of invented runs: other data give other pictures, the same run the same bytes, and nothing overlaps."""

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
from figures_for_tests import (
    ALL_NAMES,
    drawing,
    names_of,
    set_recorded,
    small_pictures,  # noqa: F401
)
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from run_folder_for_tests import KINDS, edit_json, write_run_folder

from rts_hf.reports import figures
from rts_hf.reports.figures import draw_run_figures, remove_run_figures

DRAWN = ("rts_pugd", "never_switched", "sgd", "by_class", "no_logs")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Runs with all sets of pictures that there are, drawn once; a warning is an error."""
    result = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in DRAWN:
            folder = write_run_folder(tmp_path_factory.mktemp("runs") / kind, kind)
            result[kind] = draw_run_figures(folder)
    return result


@pytest.mark.parametrize("kind", DRAWN)
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


def test_imports_are_light_and_pyplot_is_not_used(tmp_path: Path) -> None:
    write_run_folder(tmp_path / "run", "sgd")
    code = (
        "import sys, rts_hf; before = set(sys.modules); import rts_hf.reports.card, rts_hf.reports.figures\n"
        "late = {'huggingface_hub', 'jinja2', 'matplotlib', 'numpy', 'transformers'}\n"
        "assert not late & (set(sys.modules) - before)\n"
        f"rts_hf.reports.figures.draw_run_figures({str(tmp_path / 'run')!r})\n"
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
        figure = drawing(folder, name, laid_out=False)
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


@pytest.mark.parametrize(("kind", "left"), [("never_switched", {"history", "schedules"}), ("sgd", {"history"})])
def test_pictures_of_a_run_before_are_deleted_and_no_other_file(tmp_path: Path, kind: str, left: set[str]) -> None:
    folder = write_run_folder(tmp_path / "run", kind)
    (folder / "figures").mkdir()
    for name in ("schedules.png", "schedules.svg", "sharpness.png", "sharpness.svg", "sharpness.pdf", "mine.png"):
        (folder / "figures" / name).touch()
    (folder / "sharpness.png").touch()
    assert draw_run_figures(folder)
    own = {f"{name}.{suffix}" for name in left for suffix in ("png", "svg")}
    assert {path.name for path in (folder / "figures").iterdir()} == {"sharpness.pdf", "mine.png"} | own
    assert (folder / "sharpness.png").is_file()


def test_run_whose_log_holds_no_sharpness_has_no_picture_of_it(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", epochs=1, switch_step=10)
    assert figures._Run.read(folder).has_sharpness
    (folder / "figures").mkdir()
    (folder / "figures" / "sharpness.png").touch()

    def edit(state: dict[str, Any]) -> None:
        for entry in state["log_history"]:
            if "sharpness" in entry:
                entry["sharpness"] = float("nan")

    edit_json(folder / "trainer_state.json", edit)
    assert "sharpness.png" not in [path.name for path in draw_run_figures(folder)]
    assert not (folder / "figures" / "sharpness.png").exists()


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
        with warnings.catch_warnings():
            warnings.simplefilter("error")
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


def test_removing_a_runs_pictures_leaves_others(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", "rts_pugd")
    (folder / "figures").mkdir()
    for name in (*ALL_NAMES, "confusion"):
        for suffix in ("png", "svg"):
            (folder / "figures" / f"{name}.{suffix}").touch()
    (folder / "figures" / "mine.png").write_bytes(b"precious")
    remove_run_figures(folder)
    assert [path.name for path in (folder / "figures").iterdir()] == ["mine.png"]
    remove_run_figures(tmp_path)  # which has none
