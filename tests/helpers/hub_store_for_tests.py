"""Repositories of a Hub for tests: commits, branches and tags in one JSON file, contents beside it on disk."""

from __future__ import annotations

import datetime
import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".parquet", ".arrow", ".npz", ".png", ".gz", ".zip")
_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()

Entry = dict[str, Any]  # of one file: sha (of its content), oid, size, lfs
Tree = dict[str, Entry]


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")


class Store:
    """Everything a Hub remembers, below one folder; another store over that folder goes on from there.

    A repository's key is its kind and id, as in ``models/probe/digits``. Its references bear git's full names, so that
    a tag and a branch may share a short one.

    Args:
        root: The folder, made where there is none.
    """

    def __init__(self, root: Path) -> None:
        self.lock = threading.RLock()
        self._file = root / "repositories.json"
        self._blobs = root / "blobs"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self.repos: dict[str, dict[str, Any]] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def save(self) -> None:
        draft = self._file.with_suffix(".tmp")
        draft.write_text(json.dumps(self.repos))
        draft.replace(self._file)

    def blob(self, sha: str) -> Path:
        return self._blobs / sha

    def put(self, data: bytes) -> str:
        """Keep a content and return its SHA-256."""
        sha = hashlib.sha256(data).hexdigest()
        draft = self._blobs / f"{sha}.{threading.get_ident()}"  # a blob that is there is whole
        draft.write_bytes(data)
        draft.replace(self.blob(sha))
        return sha

    def entry(self, data: bytes) -> Entry:
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return {"sha": self.put(data), "oid": oid, "size": len(data), "lfs": False}

    def lfs_entry(self, sha: str) -> Entry:
        oid = hashlib.sha1(b"lfs " + sha.encode()).hexdigest()
        return {"sha": sha, "oid": oid, "size": self.blob(sha).stat().st_size, "lfs": True}

    def create(self, key: str, *, private: bool = False, gated: bool = False) -> None:
        self.repos[key] = {"private": private, "gated": gated, "created": _now(), "refs": {}, "commits": {}}
        self.commit(
            key, "main", "initial commit", lambda tree: tree.update({".gitattributes": self.entry(_ATTRIBUTES)})
        )

    def add(self, key: str, files: Mapping[str, bytes | str], *, private: bool = False, gated: bool = False) -> str:
        """Commit files to a repository, made where there is none, and return the commit."""
        if key not in self.repos:
            self.create(key, private=private, gated=gated)

        def change(tree: Tree) -> None:
            for path, content in files.items():
                data = content.encode() if isinstance(content, str) else content
                tree[path] = self.lfs_entry(self.put(data)) if path.endswith(LFS_SUFFIXES) else self.entry(data)

        return self.commit(key, "main", "add files", change)

    def read(self, key: str, path: str, rev: str = "main") -> bytes:
        """Return the content of a file."""
        return self.blob(self.tree(key, rev)[path]["sha"]).read_bytes()

    def commit(self, key: str, rev: str, title: str, change: Callable[[Tree], object]) -> str:
        """Let ``change`` alter the files of a branch in place, and return the new commit."""
        with self.lock:
            repo = self.repos[key]
            parent = self.resolve(key, rev) or self.resolve(key, "main")
            tree = dict(repo["commits"][parent]["tree"]) if parent else {}
            change(tree)
            date = _now()
            content = json.dumps([key, parent, title, date, tree, len(repo["commits"])])
            oid = hashlib.sha1(content.encode()).hexdigest()
            repo["commits"][oid] = {"tree": tree, "parent": parent, "title": title, "date": date}
            repo["refs"][rev if rev.startswith("refs/") else f"refs/heads/{rev}"] = oid
            self.save()
            return oid

    def resolve(self, key: str, rev: str) -> str | None:
        """Return the commit that a branch, a tag, a full name of one, or a commit's own name stands for."""
        repo = self.repos[key]
        for name in (f"refs/heads/{rev}", f"refs/tags/{rev}", rev):
            if name in repo["refs"]:
                return str(repo["refs"][name])
        return rev if rev in repo["commits"] else None

    def tree(self, key: str, rev: str = "main") -> Tree:
        commit = self.resolve(key, rev)
        return {} if commit is None else self.repos[key]["commits"][commit]["tree"]

    def set_ref(self, key: str, name: str, commit: str | None) -> None:
        """Let a full name stand for a commit, or for nothing."""
        with self.lock:
            if commit is None:
                self.repos[key]["refs"].pop(name, None)
            else:
                self.repos[key]["refs"][name] = commit
            self.save()
