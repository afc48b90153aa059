"""All pictures that compare some runs, in one folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rts_hf.reports.curves import (
    History,
    draw_figure,
    draw_histories,
    draw_lines,
    draw_strategies,
    draw_surface,
    limits_of_surfaces,
    names_of_runs,
)
from rts_hf.reports.run_folder import read_record


def draw_pictures(
    runs: Sequence[str | Path],
    output_dir: str | Path,
    *,
    landscape: bool = False,
    points: int = 21,
    span: float = 1.0,
    images: int = 512,
    seed: int = 0,
    disable_tqdm: bool = False,
) -> list[Path]:
    """Draw pictures of several runs from their folders and return their paths, PNG and SVG of each.

    ``histories`` and ``strategies``; with ``landscape`` also ``surface-<run>`` of each run and, of two or more,
    ``lines`` from the first one's weights to the others'. What was measured for them stays beside them as .npz files,
    from which the same call goes on, or draws again.

    Args:
        runs: Their folders, at least one; ``landscape`` needs the weights too.
        output_dir: Made if it does not exist.
        landscape: Whether to measure surfaces and lines, which takes minutes.
        points, span, seed: Of a surface, as for :func:`rts_hf.reports.landscape.loss_surface`.
        images: Training images that a point is measured on, at most.
        disable_tqdm: Show no progress bars.

    Raises:
        FileNotFoundError: If a folder holds no run, or no weights.
        ValueError: If an argument is outside its range, runs bear the same name or differ in data or batch, their data
            is not there any more, or a file holds what was measured with other settings.
    """
    _check_alike(runs)
    names = names_of_runs(runs)
    histories = [History.read(run, name) for run, name in zip(runs, names, strict=True)]
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    paths = draw_figure(folder / "histories", partial(draw_histories, histories=histories), height=4.2)
    paths += draw_figure(folder / "strategies", draw_strategies, height=4.8)
    if not landscape:
        return paths
    # needs torch and transformers, which take seconds to import
    from rts_hf.comparing.landscapes import lines_of_runs, surface_of_run

    files = [_file(name) for name in names]
    common: dict[str, Any] = {"images": images, "progress": not disable_tqdm}
    surfaces = [
        surface_of_run(run, folder / f"surface-{file}.npz", points=points, span=span, seed=seed, **common)
        for run, file in zip(runs, files, strict=True)
    ]
    kept = [folder / f"line-{files[0]}-{file}.npz" for file in files[1:]]
    lines = dict(zip(names[1:], lines_of_runs(runs, kept, **common), strict=True)) if kept else {}
    return [*paths, *draw_landscapes(folder, dict(zip(names, surfaces, strict=True)), lines)]


def draw_landscapes(folder: Path, surfaces: Mapping[str, Any], lines: Mapping[str, Any]) -> list[Path]:
    """Draw ``surface-<run>`` of each run, on one scale, and ``lines`` if there are any; return their paths.

    Args:
        folder: Where.
        surfaces: :class:`rts_hf.reports.landscape.Surface` by the run's name.
        lines: :class:`rts_hf.reports.landscape.Line` from the first run to others, by their names.
    """
    limits, paths = limits_of_surfaces([surface.loss for surface in surfaces.values()]), list[Path]()
    for name, surface in surfaces.items():
        draw = partial(draw_surface, name=name, x=surface.x, y=surface.y, loss=surface.loss, limits=limits)
        paths += draw_figure(folder / f"surface-{_file(name)}", draw, height=3.9)
    if lines:
        paths += draw_figure(folder / "lines", partial(draw_lines, first=next(iter(surfaces)), lines=lines), height=3.9)
    return paths


def _file(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)


def _check_alike(runs: Sequence[str | Path]) -> None:
    """Refuse runs that a gradient evaluation does not mean the same for."""
    records = [read_record(run) for run in runs]
    for run, record in zip(runs, records, strict=True):
        for what in ("name", "splits", "label_noise", "train_fraction"):
            if record["data"].get(what) != records[0]["data"].get(what):
                raise ValueError(
                    f"runs {str(runs[0])!r} and {str(run)!r} differ in data {what}; draw them in different folders."
                )
        if _batch(record) != _batch(records[0]):
            raise ValueError(
                f"runs {str(runs[0])!r} and {str(run)!r} have {_batch(records[0])} and {_batch(record)} images an "
                "update; a gradient evaluation costs them different work, so draw them in different folders."
            )


def _batch(record: Mapping[str, Any]) -> int:
    told = record["arguments"]["training"]
    images = told.get("per_device_train_batch_size") or 1
    return int(images * (told.get("gradient_accumulation_steps") or 1) * record["hardware"]["processes"])
