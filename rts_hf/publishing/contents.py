"""What is published of a run folder, and what must not be in it: places, names of machines and people, secrets."""

from __future__ import annotations

import getpass
import html
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
from rts_hf.reports.card import FIGURES, write_card
from rts_hf.reports.run_folder import COMPARISON_NAME, RECORD_NAME, STATE_NAME, read_record, write_record
from rts_hf.training.checkpoints import MARKER_NAME, mark_complete, what_is_missing

_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
_INDEX = "model.safetensors.index.json"
_CONFIGURATION = ("config.json", "preprocessor_config.json")
# What a loader may take for a part of a model, wherever it came from
_LOADED = re.compile(r"[^/]+\.(json|safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|py)")
_CHECKPOINT = re.compile(r"checkpoint-\d+/.+")
_PICKLED_ARGUMENTS = "training_args.bin"  # of transformers' own Trainer: places, names, tokens, and nothing reads it
_PATH = re.compile(
    r"(?<![\w/.~*<-])/(?:[\w.+-]+/)+[\w.+-]*|\bfile:/+\w[^\s\"]*"
    r"|(?<!\w)~(?:[A-Za-z_][\w.-]*)?/[\w.+-]+"
    r"|(?<!\w)[A-Za-z]:\\+\w[\w\\.+-]*|\\{4}[\w.-]+\\+\w[\w\\.+-]*"  # in JSON, a backslash is two
)
_SECRETS = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{8,}"),
    "a GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"),
    "an AWS key": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "an API key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}|\bAIza[A-Za-z0-9_-]{35}"),
    "a Slack token": re.compile(r"\bxox[a-z]-[A-Za-z0-9-]{10,}"),
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


def stage(
    run_dir: str | Path,
    folder: str | Path,
    repo_id: str,
    *,
    license: str | None = None,
    include_checkpoints: bool = False,
) -> list[str]:
    """Lay out in a folder what is published of a run, and return the paths in it, sorted.

    That is the weights, their configuration, the pictures, ``run.json``, ``trainer_state.json``, and the card, rendered
    anew for the repository. Of what a user gave by an absolute path, the last part is kept, so that no place of a
    machine goes with it. Weights are linked where the file system allows it, not copied.

    Args:
        run_dir: The folder of a complete run.
        folder: An empty folder on the same machine.
        repo_id: Where the card's snippets load the model from.
        license: Of the weights, for ``run.json`` and the card; None: as ``run.json`` has it.
        include_checkpoints: Also the whole checkpoints, with optimizer, schedule and random states.

    Raises:
        FileNotFoundError: If the folder holds no run, or no model with all its weights.
        ValueError: If the run is not complete, or one of its files is damaged.
    """
    source, target = Path(run_dir), Path(folder)
    record = read_record(source)
    if record.get("status") != "complete":
        raise ValueError(
            f"run_dir={str(run_dir)!r} holds a run that is not complete (status {record.get('status')!r}); go on with "
            "it by --resume_from_checkpoint last, and publish it then."
        )
    for path in _model_files(source):
        _link(path, target / path.name)
    pictures = [source / "figures" / f"{name}.png" for name in FIGURES]
    for path in filter(Path.is_file, pictures):
        (target / "figures").mkdir(exist_ok=True)
        shutil.copyfile(path, target / "figures" / path.name)
    write_record(target, _without_places({**record, "license": license} if license else record))
    for name in filter(lambda name: (source / name).is_file(), (STATE_NAME, COMPARISON_NAME)):
        _write_json(target / name, _without_places(read_json_object(source / name)))
    try:
        write_card(target, repo_id=repo_id)
    except KeyError as error:
        raise ValueError(f"{source / RECORD_NAME} has no {error}: it was edited or cut off; train it again.") from error
    for checkpoint in sorted(source.glob("checkpoint-*")) if include_checkpoints else []:
        if re.fullmatch(r"checkpoint-\d+", checkpoint.name) and what_is_missing(checkpoint) is None:
            _stage_checkpoint(checkpoint, target / checkpoint.name)
    return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())


def left_over(there: set[str], paths: list[str], *, is_other: bool) -> list[str]:
    """Return the files of a repository that would spoil what is published to it, sorted.

    Of an earlier state of the same model: its pictures, its weights in other files than now, and, where checkpoints are
    published, older ones. Of another model, everything that a loader might take for a part of this one. What somebody
    added by hand stays otherwise.

    Args:
        there: Paths in the repository.
        paths: Those that are published.
        is_other: Whether the repository holds another model.
    """
    pictures = {f"figures/{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    checkpoints = is_other or any(map(_CHECKPOINT.fullmatch, paths))

    def spoils(path: str) -> bool:
        if _CHECKPOINT.fullmatch(path):
            return checkpoints
        return path in pictures or bool(_WEIGHTS.fullmatch(path) or (is_other and _LOADED.fullmatch(path)))

    return sorted(filter(spoils, there - set(paths)))


def scan(folder: str | Path, paths: list[str], repo_id: str) -> list[Finding]:
    """Return what must not be published in the text files among ``paths``: secrets, absolute paths, and the names of
    this machine and of the person logged in.

    The name of a person whose own the repository is stands in its address anyhow.

    Args:
        folder: Where :func:`stage` laid them out.
        paths: What it returned.
        repo_id: Whose own words are no finding.
    """
    findings = []
    for path in paths:
        for number, line in enumerate(_lines(Path(folder) / path), start=1):
            findings += [Finding(path, number, what) for what in _found_in(line, repo_id)]
    return findings


def _lines(path: Path) -> list[str]:
    """Return the lines of a file, as an editor counts them; none of weights, pictures and other binary files."""
    with path.open("rb") as file:
        if b"\0" in file.read(4096):
            return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [html.unescape(line) for line in lines] if path.suffix == ".md" else lines


def _found_in(line: str, repo_id: str) -> Iterator[str]:
    for what, pattern in _SECRETS.items():
        if pattern.search(line):
            yield what
    for name, value in os.environ.items():
        written = (value, json.dumps(value, ensure_ascii=False)[1:-1])  # also with JSON's backslashes
        if _SECRET_VARIABLE.search(name) and len(value) >= 8 and any(text in line for text in written):
            yield f"the value of the environment variable {name}"
    rest = re.sub(r"https?://[^\s)\"]+", "", line).replace(repo_id, "")
    if found := _PATH.search(rest):
        yield f"an absolute path ({found[0].rstrip('.')[:60]})"
    machine, user = socket.gethostname(), _user()
    names = {machine: "machine", machine.partition(".")[0]: "machine", user: "user"}
    known = {*_EVERYBODYS, repo_id.partition("/")[0].lower()}
    told = {whose for name, whose in names.items() if name.lower() not in known and _names(rest, name)}
    yield from (f"the name of {'this machine' if whose == 'machine' else 'the user'}" for whose in sorted(told))


def _names(line: str, name: str) -> bool:
    return len(name) >= 3 and bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", line))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # nobody with a name, as in some containers
        return ""


def _without_places(value: Any, key: str = "") -> Any:
    """Return a JSON value in which every text that is an absolute path, or a command's word, keeps its last part.

    Class names are no paths, whatever they look like, nor are sentences.
    """
    if key in ("label_names", "warnings"):
        return value
    if isinstance(value, Mapping):
        return {name: _without_places(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    if not isinstance(value, str):
        return value
    if key == "command":
        try:
            return shlex.join(_last_part(word) for word in shlex.split(value))
        except ValueError:  # no command of a shell: left to the scan
            return value
    return Path(value).name if key == "best_model_checkpoint" else _last_part(value)


def _last_part(text: str) -> str:
    if text.startswith(("/", "~/")):
        return Path(text).name or text
    return PureWindowsPath(text).name if re.match(r"[A-Za-z]:[\\/]", text) else text


def _model_files(folder: Path) -> list[Path]:
    """Return the files of a run's model, every one whole."""
    from safetensors import SafetensorError, safe_open

    index = folder / _INDEX
    weights = read_json_object(index).get("weight_map") if index.is_file() else None
    needed = {"config.json", *(weights.values() if isinstance(weights, dict) else ["model.safetensors"])}
    found = [path for path in sorted(folder.iterdir()) if path.name in _CONFIGURATION or _WEIGHTS.fullmatch(path.name)]
    found = [path for path in found if path.is_file()]
    missing = sorted(needed - {path.name for path in found})
    if missing:
        raise FileNotFoundError(f"run_dir={str(folder)!r} has no {' and no '.join(missing)}; train it again.")
    for path in found:
        if path.suffix == ".json":
            read_json_object(path)
            continue
        try:
            with safe_open(path, framework="numpy"):
                pass  # it reads the header, and compares it with the file's size
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); take the weights of a checkpoint, or train again."
            ) from error
    return found


def _stage_checkpoint(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.name not in (MARKER_NAME, _PICKLED_ARGUMENTS):
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
