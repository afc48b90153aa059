"""The command `figures` and its function: every picture of some runs in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folder_for_tests import edit_json, write_run_folder

from rts_hf.cli import main
from rts_hf.comparing import landscapes as landscapes_of_runs
from rts_hf.comparing import pictures as pictures_of_runs
from rts_hf.comparing.pictures import draw_pictures
from rts_hf.reports import figures
from rts_hf.reports.landscape import Line, Surface

CARDS = Path(__file__).parents[2] / "model_cards"


def test_the_command_draws_from_committed_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figures, "DPI", 40)
    monkeypatch.chdir(tmp_path)
    main(["figures", str(CARDS / "digits_sgd"), str(CARDS / "digits_rts_pugd"), "--output_dir", "pictures"])
    names = ["histories.png", "histories.svg", "strategies.png", "strategies.svg"]
    assert capsys.readouterr().out.splitlines() == [f"pictures/{name}" for name in names]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == names


def test_an_error_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: run_dir=.* has no run\.json; .*$"):
        main(["figures", str(tmp_path), "--output_dir", str(tmp_path / "pictures")])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit, match=r"^error: run .*digits_sgd' holds no model\.safetensors"):
        main(["figures", str(CARDS / "digits_sgd"), "--output_dir", str(tmp_path), "--landscape"])


def test_landscapes_are_drawn_on_one_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DPI", 40)
    axis, limits = np.array([-1.0, 0.0, 1.0]), []
    asked: list[object] = []

    def surface(run: Path, path: Path, **settings: object) -> Surface:
        asked.append((Path(run).name, path.name, settings))
        return Surface(axis, axis, np.full((3, 3), 1.0 + len(asked)) + axis, np.ones((3, 3)))

    def lines(runs: list[Path], paths: list[Path], **settings: object) -> list[Line]:
        asked.append(([path.name for path in paths], settings))
        return [Line(axis, axis + 2, axis + 2) for _ in paths]

    monkeypatch.setattr(landscapes_of_runs, "surface_of_run", surface)
    monkeypatch.setattr(landscapes_of_runs, "lines_of_runs", lines)
    draw = pictures_of_runs.draw_surface
    monkeypatch.setattr(pictures_of_runs, "draw_surface", lambda *a, **k: (limits.append(k["limits"]), draw(*a, **k)))
    runs = [write_run_folder(tmp_path / kind, kind) for kind in ("sgd", "sam")]
    paths = draw_pictures(runs, tmp_path / "out", landscape=True, points=3, images=9, seed=4, disable_tqdm=True)
    assert [path.name for path in paths if path.suffix == ".png"] == [
        "histories.png", "strategies.png", "surface-sgd.png", "surface-sam.png", "lines.png",
    ]  # fmt: skip
    assert all(path.is_file() for path in paths)
    common = {"images": 9, "progress": False}
    assert asked[0] == ("sgd", "surface-sgd.npz", {"points": 3, "span": 1.0, "seed": 4, **common})
    assert asked[2] == (["line-sgd-sam.npz"], common)
    assert limits == [(1.0, 4.0)] * 2
    monkeypatch.setattr(pictures_of_runs, "draw_figure", lambda path, *args, **kwargs: [path])
    alone = draw_pictures(runs[:1], tmp_path / "alone", landscape=True)
    assert [path.name for path in alone] == ["histories", "strategies", "surface-sgd"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record["data"].update(label_noise={"flipped": 3, "of": 9}), "differ in data label_noise"),
        (lambda record: record["data"].update(name="other"), "differ in data name"),
        (lambda record: record["hardware"].update(processes=2), "have 64 and 128 images an update"),
    ],
)
def test_runs_that_cannot_share_an_axis_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    runs = [write_run_folder(tmp_path / kind, kind) for kind in ("sgd", "sam")]
    edit_json(runs[1] / "run.json", change)
    with pytest.raises(ValueError, match=message):
        draw_pictures(runs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
