"""What is published of a run folder, and what must not be in it: places, names of machines and people, secrets."""

from __future__ import annotations

import getpass
import json
import os
import re
import shlex
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from rts_hf.files import read_json_object, write_text
from rts_hf.hub import FIGURES, write_card
from rts_hf.resuming import MARKER_NAME, mark_complete, what_is_missing
from rts_hf.run_folder import STATE_NAME, read_record, write_record

_MODEL_FILES = re.compile(
    r"config\.json|preprocessor_config\.json|model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
)
_PATH = re.compile(r"(?<![\w:/.~*<-])/(?:[\w.+-]+/)+[\w.+-]*|(?<!\w)~/[\w.+-]+|(?<!\w)[A-Za-z]:\\+\w[\w\\.+-]*")
_SECRETS = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{8,}"),
    "a GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"),
    "an AWS key": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "an API key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a password in an address": re.compile(r"\w://[^/\s:@]+:[^/\s@]+@"),
}
_SECRET_VARIABLE = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY", re.IGNORECASE)
# Names that say nothing of anybody, and that a card may hold as words
_EVERYBODYS = frozenset({"root", "user", "admin", "ubuntu", "jovyan", "train", "test", "data", "model", "localhost"})


class Finding(NamedTuple):
    """What a file that was to be published must not hold.

    Args:
        file: Its path in the repository.
        line: Where, counted from 1.
        what: What it is, without repeating it.
    """

    file: str
    line: int
    what: str


def stage(run_dir: str | Path, folder: str | Path, repo_id: str, *, include_checkpoints: bool = False) -> list[str]:
    """Lay out in a folder what is published of a run, and return the paths in it, sorted.

    That is the weights, their configuration, the pictures, ``run.json``, ``trainer_state.json``, and the card, rendered
    anew for the repository. Of what a user gave by an absolute path, the last part is kept, so that no place of a
    machine goes with it. Weights are linked where the file system allows it, not copied.

    Args:
        run_dir: The folder of a complete run.
        folder: An empty folder on the same machine.
        repo_id: Where the card's snippets load the model from.
        include_checkpoints: Also the whole checkpoints, with optimizer, schedule and random states.

    Raises:
        FileNotFoundError: If the folder holds no run or no model.
        ValueError: If the run is not complete, or one of its files is damaged.
    """
    source, target = Path(run_dir), Path(folder)
    record = read_record(source)
    if record.get("status") != "complete":
        raise ValueError(
            f"run_dir={str(run_dir)!r} holds a run that is not complete (status {record.get('status')!r}); go on with "
            "it by --resume_from_checkpoint last, and publish it then."
        )
    models = sorted(path for path in source.iterdir() if path.is_file() and _MODEL_FILES.fullmatch(path.name))
    if not {"config.json"} < {path.name for path in models}:
        raise FileNotFoundError(f"run_dir={str(run_dir)!r} has no config.json and model.safetensors; train it again.")
    for path in models:
        _link(path, target / path.name)
    pictures = [source / "figures" / f"{name}.png" for name in FIGURES]
    for path in filter(Path.is_file, pictures):
        (target / "figures").mkdir(exist_ok=True)
        shutil.copyfile(path, target / "figures" / path.name)
    write_record(target, _without_places(record))
    _write_json(target / STATE_NAME, _without_places(read_json_object(source / STATE_NAME)))
    write_card(target, repo_id=repo_id)
    for checkpoint in sorted(source.glob("checkpoint-*")) if include_checkpoints else []:
        if what_is_missing(checkpoint) is None:
            _stage_checkpoint(checkpoint, target / checkpoint.name)
    return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())


def scan(folder: str | Path, paths: list[str], repo_id: str) -> list[Finding]:
    """Return what must not be published in the text files among ``paths``: secrets, absolute paths, and the names of
    this machine and of the person logged in.

    Args:
        folder: Where :func:`stage` laid them out.
        paths: What it returned.
        repo_id: Whose own words are no finding.
    """
    findings = []
    for path in paths:
        if Path(path).suffix not in (".json", ".md", ".txt"):
            continue
        for number, line in enumerate((Path(folder) / path).read_text(encoding="utf-8").splitlines(), start=1):
            findings += [Finding(path, number, what) for what in _found_in(line, repo_id)]
    return findings


def _found_in(line: str, repo_id: str) -> Iterator[str]:
    for what, pattern in _SECRETS.items():
        if pattern.search(line):
            yield what
    for name, value in os.environ.items():
        if _SECRET_VARIABLE.search(name) and len(value) >= 8 and value in line:
            yield f"the value of the environment variable {name}"
    rest = re.sub(r"https?://[^\s)\"]+", "", line).replace(repo_id, "")
    if found := _PATH.search(rest):
        yield f"an absolute path ({found[0].rstrip('.')[:60]})"
    people = {"the name of this machine": socket.gethostname(), "the name of the user": _user()}
    for what, name in people.items():
        if len(name) >= 3 and name.lower() not in _EVERYBODYS and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", rest):
            yield what


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # nobody with a name, as in some containers
        return ""


def _without_places(value: Any, key: str = "") -> Any:
    """Return a JSON value in which every text that is an absolute path, or a command's word, keeps its last part."""
    if isinstance(value, Mapping):
        return {name: _without_places(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    if not isinstance(value, str):
        return value
    if key == "command":
        return shlex.join(_last_part(word) for word in shlex.split(value))
    return Path(value).name if key == "best_model_checkpoint" else _last_part(value)


def _last_part(text: str) -> str:
    if text.startswith(("/", "~/")):
        return Path(text).name or text
    return PureWindowsPath(text).name if re.match(r"[A-Za-z]:[\\/]", text) else text


def _stage_checkpoint(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.name != MARKER_NAME:
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.name == STATE_NAME:
                _write_json(copy, _without_places(read_json_object(path)))
            else:
                _link(path, copy)
    mark_complete(target)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
