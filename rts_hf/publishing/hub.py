"""A run folder on the Hub: one commit that is there whole or not at all, and that the same command makes again."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rts_hf.connection import LOGIN, errors_explained
from rts_hf.files import read_json_object
from rts_hf.publishing.contents import left_over, scan, stage
from rts_hf.publishing.space import model_shown, stage_space
from rts_hf.reports.run_folder import RECORD_NAME, read_record

_SAME_MODEL = (("model", "architecture"), ("data", "name"), ("data", "label_names"), ("optimizer", "name"))


class Publication(NamedTuple):
    """What was published, or would be.

    Args:
        repo_id: The repository, as ``owner/name``.
        files: Their sizes in bytes, by path in the repository.
        url: Of the commit; None of a dry run, or where nothing had changed.
        space: The same of its Space; None where none was asked for.
    """

    repo_id: str
    files: dict[str, int]
    url: str | None
    space: Publication | None = None


def publish(
    run_dir: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
    license: str | None = None,
    include_checkpoints: bool = False,
    space: bool | str = False,
    overwrite: bool = False,
    dry_run: bool = False,
    token: str | None = None,
) -> Publication:
    """Publish a complete run as a model repository on the Hub: weights, configuration, card, pictures, records.

    Everything goes in one commit, so that readers see the old model or the new one. An upload that was interrupted is
    completed by the same call, which sends no large file twice. What is there already of the same model is brought up
    to date.

    Args:
        run_dir: Its folder.
        repo_id: ``owner/name``; made if it does not exist.
        private: Whether a repository that is made is private; None: the owner's default. One that is there already
            and public is refused where this is True.
        revision: Branch to commit to, made if it does not exist; None: ``main``.
        tag: Name to give the commit.
        license: Identifier of the weights' license, as the Hub spells it, for instance ``apache-2.0``; None: that in
            ``run.json``, if there is one.
        include_checkpoints: Also publish the checkpoints with optimizer and random states.
        space: Also publish a Gradio Space that shows the model, under this name (``owner/name``), or, if True, under
            the repository's own. Of a private model it is private too, and needs a secret ``HF_TOKEN`` that may read
            it.
        overwrite: Replace another model that the repository holds, whose weights and JSON files are deleted, or another
            Space.
        dry_run: Only lay out and check what would be published; needs neither a token nor a network.
        token: Of the Hub; None: the one that ``hf auth login`` or ``HF_TOKEN`` left.

    Raises:
        FileNotFoundError: If the folder holds no run or no model.
        ValueError: If a name is no repository's, branch's or tag's, the run is not complete, the repository or the
            Space holds another model, the repository is public, the tag is taken, or a file holds what must not be
            published; the file and the line are named.
        PermissionError: If there is no token, or it may not write there.
        ConnectionError: If the Hub does not answer, or not as it should.
    """
    check_name("repo", repo_id)
    space_id = repo_id if space is True else space or None
    if space_id:
        check_name("space", space_id)
    _check_references(revision=revision, tag=tag)
    with tempfile.TemporaryDirectory(prefix=".publish-", dir=_beside(run_dir)) as folder:
        model, page = _folder(folder, "model"), _folder(folder, "space")
        paths = stage(run_dir, model, repo_id, license=license, include_checkpoints=include_checkpoints)
        # Its commit is not known yet; a name of the same length stands for it, so that sizes are true.
        space_paths = stage_space(model, page, repo_id, "0" * 40) if space_id else []
        findings = scan(model, paths, repo_id) + scan(page, space_paths, repo_id)
        if findings:
            listed = "; ".join(f"{found.file}:{found.line} holds {found.what}" for found in findings[:5])
            more = f" and {len(findings) - 5} more" if len(findings) > 5 else ""
            raise ValueError(
                f"run_dir={str(run_dir)!r} is not published: {listed}{more}. Nothing was sent. Names and notes come "
                "from the run's arguments and its data: take it out of the run's files, and publish again."
            )
        published = Publication(repo_id, _sizes(model, paths), None)
        demo = Publication(space_id, _sizes(page, space_paths), None) if space_id else None
        if dry_run:
            return published._replace(space=demo)
        with errors_explained(repo_id):
            hub = _Hub(token, private, overwrite)
            if space_id:
                hub.check_space(space_id, repo_id)
            commit, url = hub.send_model(model, paths, repo_id, revision or "main", tag)
            published = published._replace(url=url)
            if demo is not None:
                stage_space(model, page, repo_id, commit)
                demo = demo._replace(url=hub.send_space(page, space_paths, demo.repo_id, repo_id))
    return published._replace(space=demo)


def check_name(argument: str, name: str) -> None:
    """Raise ValueError where a repository cannot have a name.

    Args:
        argument: What gave it, named in the error.
        name: As ``owner/name``.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"{argument}={name!r} is no repository's name ({error}); give owner/name.") from error
    if name.count("/") != 1:
        raise ValueError(f"{argument}={name!r} is no repository's name; give owner/name.")


def check_access(repo_id: str | None, token: str | None = None) -> str:
    """Make sure, before any work, that somebody is logged in who may write, and return the user's name.

    Args:
        repo_id: Named in errors.
        token: As for :func:`publish`.

    Raises:
        PermissionError: If there is no token, one that the Hub does not know, or one that may only read.
        ConnectionError: If the Hub does not answer, or not as it should.
    """
    from huggingface_hub import HfApi

    with errors_explained(repo_id or "the repository"):
        user = HfApi(token=token).whoami()
    if ((user.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
        raise PermissionError(f"repo={repo_id!r}: the token may only read; {LOGIN}.")
    return str(user["name"])


class _Hub:
    """The Hub as somebody who is logged in writes to it."""

    def __init__(self, token: str | None, private: bool | None, overwrite: bool) -> None:
        from huggingface_hub import HfApi

        self.api, self.private, self.overwrite = HfApi(token=token), private, overwrite
        self.api.whoami()  # a token that is missing or wrong is told as such, not as a repository that is not there

    def send_model(
        self, folder: Path, paths: list[str], repo_id: str, revision: str, tag: str | None
    ) -> tuple[str, str | None]:
        """Commit the files of a model, and return the commit and, if it is new, its address."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        api = self.api
        api.create_repo(repo_id, private=self.private, exist_ok=True)
        self._refuse_public(repo_id)
        refs = api.list_repo_refs(repo_id)
        if revision not in {branch.name for branch in refs.branches}:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        head = api.repo_info(repo_id, revision=revision).sha
        there = set(api.list_repo_files(repo_id, revision=head))
        other = _other_model(folder, there, _record_there(api, repo_id, str(head), there))
        if other is not None and not self.overwrite:
            raise ValueError(
                f"repo={repo_id!r} holds another model ({other}); name another repository, or replace it with "
                "--overwrite."
            )
        tagged = next((ref.target_commit for ref in refs.tags if ref.name == tag), None)
        operations: list[Any] = [CommitOperationAdd(path, str(folder / path)) for path in paths]
        operations += [CommitOperationDelete(path) for path in left_over(there, paths, is_other=other is not None)]
        taken = f"tag={tag!r} exists already in {repo_id} and names another state; give another."
        if tagged not in (None, head):
            raise ValueError(taken)
        name = read_record(folder)["optimizer"]["name"]
        commit = api.create_commit(
            repo_id, operations, commit_message=f"Publish a run with {name}", revision=revision, parent_commit=head
        )
        if tagged not in (None, commit.oid):
            raise ValueError(f"{commit.commit_url} is published, but {taken}")
        if tag is not None and tagged is None:
            api.create_tag(repo_id, tag=tag, revision=commit.oid)
        return commit.oid, str(commit.commit_url) if commit.oid != head else None

    def check_space(self, space_id: str, repo_id: str) -> None:
        """Raise ValueError where there is a Space that shows something else, or is public where it must not be."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            there = set(self.api.list_repo_files(space_id, repo_type="space"))
        except RepositoryNotFoundError:
            return
        self._refuse_public(space_id, repo_type="space")
        if self.overwrite or there <= {"README.md", ".gitattributes"}:
            return
        shown = model_shown(self._read(space_id, "README.md")) if "README.md" in there else None
        if shown != repo_id:
            what = f"shows {shown}" if shown else "is no demo of this model"
            raise ValueError(
                f"space={space_id!r} {what}; name another with --space USER/NAME, or replace it with --overwrite."
            )

    def send_space(self, folder: Path, paths: list[str], space_id: str, repo_id: str) -> str | None:
        """Commit the files of a Space, and return the Space's address, or None if nothing had changed."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        api = self.api
        private = self.private if self.private is not None else api.repo_info(repo_id).private
        api.create_repo(space_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        head = api.repo_info(space_id, repo_type="space").sha
        there = set(api.list_repo_files(space_id, repo_type="space", revision=head))
        operations: list[Any] = [CommitOperationAdd(path, str(folder / path)) for path in paths]
        operations += [CommitOperationDelete(path) for path in sorted({"small_image.py"} & there - set(paths))]
        commit = api.create_commit(
            space_id, operations, commit_message=f"Show {repo_id}", repo_type="space", parent_commit=head
        )
        return f"{api.endpoint}/spaces/{space_id}" if commit.oid != head else None

    def _refuse_public(self, name: str, repo_type: str = "model") -> None:
        if self.private and not self.api.repo_info(name, repo_type=repo_type).private:
            raise ValueError(
                f"private=True, but {name} is there already, and public; make it private in its settings, or publish "
                "without --private."
            )

    def _read(self, space_id: str, path: str) -> str:
        with tempfile.TemporaryDirectory() as cache:
            found = self.api.hf_hub_download(space_id, path, repo_type="space", cache_dir=cache)
            return Path(found).read_text(encoding="utf-8", errors="replace")


def _record_there(api: Any, repo_id: str, revision: str, there: set[str]) -> Mapping[str, Any] | None:
    if RECORD_NAME not in there:
        return None
    with tempfile.TemporaryDirectory() as cache:
        path = api.hf_hub_download(repo_id, RECORD_NAME, revision=revision, cache_dir=cache)
        try:
            return read_json_object(path)
        except ValueError:
            return {}


def _other_model(folder: Path, there: set[str], record: Mapping[str, Any] | None) -> str | None:
    """Return what tells a repository's model from that of a folder, or None if it is an earlier state of it."""
    if record is None:
        others = sorted(path for path in there if path == "config.json" or path.endswith((".safetensors", ".bin")))
        return ", ".join(others[:3]) or None
    mine = read_record(folder)
    for part, key in _SAME_MODEL:
        section = record.get(part)
        theirs = section.get(key) if isinstance(section, Mapping) else None
        if theirs != mine[part][key]:
            return f"{part} {key} {_shown(theirs)}, not {_shown(mine[part][key])}"
    return None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:99]}…"  # there may be a thousand classes


def _check_references(**names: str | None) -> None:
    """Raise ValueError where git would refuse the name of a branch or a tag, before anything is sent."""
    for argument, name in names.items():
        if name is not None and (not re.fullmatch(r"\w[\w.+-]*(/\w[\w.+-]*)*", name) or re.search(r"\.\.|\.$", name)):
            raise ValueError(f"{argument}={name!r} cannot name a commit; use letters, digits and - _ . between them.")


def _folder(parent: str, name: str) -> Path:
    path = Path(parent) / name
    path.mkdir()
    return path


def _sizes(folder: Path, paths: list[str]) -> dict[str, int]:
    return {path: (folder / path).stat().st_size for path in paths}


def _beside(run_dir: str | Path) -> Path | None:
    """Return the folder beside a run, where weights can be linked in place of being copied, if it can be written to."""
    parent = Path(run_dir).resolve().parent
    return parent if os.access(parent, os.W_OK) else None
