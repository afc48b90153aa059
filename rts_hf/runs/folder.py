"""The folder a run writes to: found free, found again, or cleared of the run before."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list

from rts_hf.reports.card import write_card
from rts_hf.reports.figures import draw_run_figures, remove_run_figures
from rts_hf.reports.run_folder import RECORD_NAME, STATE_NAME, read_record
from rts_hf.training.arguments import RTSTrainingArguments
from rts_hf.training.checkpoints import check_same_run, checkpoint_meant, means_last

T = TypeVar("T")

TRAINERS_DEFAULT = "trainer_output"  # what transformers fills in where output_dir is not given
# What a run writes: found in a folder, they tell that it is taken; nothing else is ever deleted.
_OWN_FILES = (RECORD_NAME, STATE_NAME, "model.safetensors", "config.json", "README.md", "training_args.bin")
_PICTURES = re.compile(r"(history|schedules|sharpness|confusion)\.(png|svg)")
_DRAFTS = re.compile(r"\.tmp[0-9A-Za-z]{6}")  # safetensors' names for a file that is being written


def choose_folder(training_args: RTSTrainingArguments, name: str) -> None:
    """Fill in ``output_dir`` where it is not given: the first free one of ``runs/<name>``, ``runs/<name>-2``, ...

    A run that is resumed goes on where its checkpoint lies, or, with ``last``, in the newest of those folders.

    Raises:
        ValueError: If there is none to resume.
    """
    if training_args.output_dir != TRAINERS_DEFAULT:
        return
    wanted = training_args.resume_from_checkpoint
    if wanted is None:
        training_args.output_dir = free_folder(name)
    elif means_last(wanted):
        taken = list(itertools.takewhile(Path.exists, _numbered(name)))
        if not taken:
            raise ValueError(
                f"resume_from_checkpoint={wanted!r}, but there is no run in {str(next(_numbered(name)))!r}; name its "
                "folder with output_dir."
            )
        training_args.output_dir = str(taken[-1])
    else:
        training_args.output_dir = str(Path(wanted).parent)


def free_folder(name: str) -> str:
    """Return the first of ``runs/<name>``, ``runs/<name>-2``, ... that does not exist, the same on all processes."""
    chosen: list[Any] = [str(next(path for path in _numbered(name) if not path.exists()))]
    return broadcast_object_list(chosen)[0]


@dataclass(frozen=True)
class Folder:
    """Where a run writes.

    Args:
        path: Of the folder.
        checkpoint: To go on from, or None.
        finished: The record of a run that lies there complete and needs no resuming, or None.
    """

    path: Path
    checkpoint: str | None
    finished: dict[str, Any] | None


def open_folder(training_args: RTSTrainingArguments, arguments: Mapping[str, Any]) -> Folder:
    """Find out whether a run may write to its folder, and from where it goes on; nothing of the old is deleted yet.

    Args:
        training_args: With ``output_dir``.
        arguments: The run's ``model``, ``data`` and ``training`` arguments by name.

    Raises:
        ValueError: As :func:`prepare_folder` does, or if the checkpoint is of a run with other arguments.
    """
    path = Path(str(training_args.output_dir))
    checkpoint = prepare_folder(training_args)
    if checkpoint is None:
        return Folder(path, None, None)
    check_same_run(checkpoint, arguments, override=training_args.override_schedule)
    return Folder(path, checkpoint, _finished_record(path, training_args))


def prepare_folder(training_args: RTSTrainingArguments) -> str | None:
    """Make sure that the output folder is free, and return the checkpoint to go on from, or None.

    Raises:
        ValueError: If the folder holds a run and neither ``overwrite`` nor ``resume_from_checkpoint`` is set, or if
            there is no whole checkpoint to resume from.
    """
    folder = Path(str(training_args.output_dir))
    return on_main_process(training_args, lambda: _checkpoint_for(folder, training_args))


def clear_folder(training_args: RTSTrainingArguments) -> None:
    """Delete the run that :func:`prepare_folder` found, where ``overwrite`` is set; called when all else is ready."""
    folder = Path(str(training_args.output_dir))
    if training_args.process_index != 0 or not training_args.overwrite or not folder.is_dir():
        return
    for path in _own(folder):
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.name == "figures":
            _delete_files(path, lambda file: _PICTURES.fullmatch(file.name) is not None)
        elif path.name == "runs":
            _delete_files(path, lambda file: file.name.startswith("events.out.tfevents"))
        else:
            shutil.rmtree(path)


def remove_drafts(folder: Path) -> None:
    """Delete what a kill left of weights that were being written to the run folder."""
    for path in folder.iterdir():
        if path.is_file() and _DRAFTS.fullmatch(path.name):
            path.unlink()


def _numbered(name: str) -> Iterator[Path]:
    stem = Path("runs") / re.sub(r"[^\w.-]+", "_", name).strip("._")
    return itertools.chain([stem], (stem.with_name(f"{stem.name}-{number}") for number in itertools.count(2)))


def on_main_process(training_args: RTSTrainingArguments, look: Callable[[], T]) -> T:
    """Look on the main process, and return the same on all.

    Raises:
        ValueError: On all, with the message of the ValueError or OSError that looking raised.
    """
    outcome: list[Any] = [None, None]
    if training_args.process_index == 0:
        try:
            outcome[0] = look()
        except (ValueError, OSError) as error:
            outcome[1] = str(error)
    found, refusal = broadcast_object_list(outcome)
    if refusal is not None:
        raise ValueError(refusal)
    return found


def _checkpoint_for(folder: Path, training_args: RTSTrainingArguments) -> str | None:
    wanted = checkpoint_meant(training_args.resume_from_checkpoint, folder)
    if wanted is None or Path(wanted).resolve().parent != folder.resolve():
        obstacle = _obstacle(folder, training_args.overwrite)
        if obstacle is not None:
            raise ValueError(obstacle)
    _check_writable(folder)
    return wanted


def _check_writable(folder: Path) -> None:
    """Try to write there now, not after an hour of training; into the folder it would lie in where it is not there."""
    try:
        with tempfile.TemporaryFile(dir=next(path for path in (folder, *folder.parents) if path.exists())):
            pass
    except OSError as error:
        raise ValueError(f"output_dir={str(folder)!r} cannot be written to ({error}); name another folder.") from error


def _obstacle(folder: Path, overwrite: bool) -> str | None:
    """Return what is in the way of a run in the folder, or None."""
    if folder.exists() and not folder.is_dir():
        return f"output_dir={str(folder)!r} is a file; name a folder."
    own = _own(folder) if folder.is_dir() else []
    if own and not overwrite:
        return (
            f"output_dir={str(folder)!r} holds another run ({', '.join(sorted(path.name for path in own)[:4])}); name "
            "another folder, go on with --resume_from_checkpoint last, or delete that run with --overwrite."
        )
    is_run = any((folder / name).exists() for name in (RECORD_NAME, STATE_NAME)) or any(map(_is_checkpoint, own))
    if own and not is_run:
        return (
            f"output_dir={str(folder)!r} holds no run, but files that this one would replace "
            f"({', '.join(sorted(path.name for path in own))}); name another folder, or move them away."
        )
    return None


def _own(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name in _OWN_FILES or _is_own_folder(path)]


def _is_own_folder(path: Path) -> bool:
    return path.is_dir() and (path.name in ("figures", "runs") or _is_checkpoint(path))


def _is_checkpoint(path: Path) -> bool:
    return path.is_dir() and re.fullmatch(r"checkpoint-\d+", path.name) is not None


def _delete_files(folder: Path, is_own: Callable[[Path], bool]) -> None:
    """Delete a run's own files in a folder, and the folders that they leave empty."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and is_own(path):
            path.unlink()
        elif path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()
    if not any(folder.iterdir()):
        folder.rmdir()


def make_report(folder: Path, draw: bool) -> None:
    """Make pictures and card of a run; those of what it was before do not stay."""
    (draw_run_figures if draw else remove_run_figures)(folder)
    write_card(folder)


def _finished_record(folder: Path, training_args: RTSTrainingArguments) -> dict[str, Any] | None:
    """Return the record of a run that needs no resuming, having said so, or None."""
    if training_args.override_schedule or not (folder / RECORD_NAME).is_file():
        return None
    record = read_record(folder)
    if record.get("status") != "complete":
        return None
    if training_args.process_index == 0:
        print(
            f"The run in {os.path.relpath(folder)} is already finished, after {record['updates']} updates; its record "
            "stays as it is. To train it for longer, give --num_train_epochs and --override_schedule.",
            flush=True,
        )
        card = folder / "README.md"  # written last; without it the run was cut off while pictures and card were made
        if not card.is_file() or card.stat().st_mtime < (folder / RECORD_NAME).stat().st_mtime:
            make_report(folder, training_args.draw_figures)
    return record
