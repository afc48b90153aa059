"""The endpoints of a Hub for tests: each request of huggingface_hub, transformers, timm and datasets, answered."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import socket
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from hub_store_for_tests import LFS_SUFFIXES, Tree

if TYPE_CHECKING:
    from hub_server_for_tests import Hub

USER = "probe"
WRITE_TOKEN, READ_TOKEN = "hf_writesatthetestHub", "hf_readsatthetestHub"
ROLES = {WRITE_TOKEN: "write", READ_TOKEN: "read"}
_PREFIXES = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}


class Refusal(Exception):
    """An answer that is an error, as the Hub's client reads it."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version, server_version, disable_nagle_algorithm = "HTTP/1.1", "loopback-hub", True
    hub: Hub  # of the class that Hub.start makes

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: standard error is the tests'."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, status: int, content: Any = b"", headers: dict[str, str] | None = None, kind: str = "") -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        if self.fault is not None and self.fault.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        self.hub.requests.append(f"{self.command} {self.path} -> {status}")
        self.send_response(status)
        lines = {"Content-Type": kind or "application/json", "Content-Length": str(len(data)), **(headers or {})}
        for name, value in lines.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def handle_any(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(url.query))
        self.store = self.hub.store
        self.fault = fault = self.hub.take_fault(self.command, url.path)
        if fault is not None and fault.drop_after is not None:
            self.hub.requests.append(f"{self.command} {self.path} -> dropped")
            self.rfile.read(min(fault.drop_after, int(self.headers.get("Content-Length") or 0)))
            if fault.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.data = self._body()
        try:
            if fault is not None and not fault.kill:
                raise Refusal(fault.status, f"status {fault.status} by order of a test")
            self._route(url.path)
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code} if refusal.code else {}
            headers |= {"X-Error-Message": refusal.message, **(fault.headers if fault else {})}
            self.send(refusal.status, {"error": refusal.message}, headers)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_any

    def _route(self, path: str) -> None:
        authorization = self.headers.get("Authorization")
        self.role = ROLES.get((authorization or "").removeprefix("Bearer "))
        if authorization and self.role is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        for methods, pattern, action in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods.split():
                parts = {name: urllib.parse.unquote(part or "") for name, part in match.groupdict().items()}
                with self.store.lock:
                    action(self, **parts)
                return
        raise Refusal(404, f"no such endpoint: {path}")

    def _key(self, kind: str, repo: str) -> str:
        key = f"{kind.rstrip('/') or 'models'}/{repo}"
        known = self.store.repos.get(key)
        if known is None or (known["private"] and self.role is None):
            # The real Hub tells nobody without a token whether a repository exists.
            raise Refusal(404 if self.role else 401, "Repository not found", "RepoNotFound")
        return key

    def _may_write(self, repo: str) -> None:
        if self.role is None:
            raise Refusal(401, "Invalid username or password.")
        if self.role != "write":
            raise Refusal(403, "Forbidden: you must use a write token to upload to a repository.")
        if repo.split("/")[0] != USER:
            raise Refusal(403, f"You don't have the rights to write under the namespace {repo.split('/')[0]}")

    def _writable(self, kind: str, repo: str) -> str:
        if self.role is None:
            self._may_write(repo)
        key = self._key(kind, repo)
        self._may_write(repo)
        return key

    def _readable(self, kind: str, repo: str) -> str:
        key = self._key(kind, repo)
        if self.store.repos[key]["gated"]:
            message = f"Access to {repo} is restricted. You must have access to it and be authenticated to access it."
            raise Refusal(403 if self.role else 401, message, "GatedRepo")
        return key

    def _at(self, key: str, rev: str) -> tuple[str, Tree]:
        commit = self.store.resolve(key, rev or "main")
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        return commit, self.store.tree(key, commit)

    def _url(self, kind: str, repo: str) -> str:
        return f"{self.hub.endpoint}/{_PREFIXES[kind]}{repo}"

    def whoami(self) -> None:
        if self.role is None:
            raise Refusal(401, "Invalid username or password.")
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": self.role}}
        self.send(200, {"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": token})

    def _named(self) -> tuple[str, str, dict[str, Any]]:
        body = json.loads(self.data)
        return (body.get("type") or "model") + "s", f"{body.get('organization') or USER}/{body['name']}", body

    def create(self) -> None:
        kind, repo, body = self._named()
        self._may_write(repo)
        url = self._url(kind, repo)
        if f"{kind}/{repo}" in self.store.repos:
            self.send(409, {"error": f"You already created this {kind[:-1]} repo", "url": url, "id": repo})
            return
        self.store.create(f"{kind}/{repo}", private=body.get("visibility") == "private" or body.get("private", False))
        self.send(200, {"url": url, "name": repo, "id": repo})

    def delete(self) -> None:
        kind, repo, _ = self._named()
        del self.store.repos[self._writable(kind, repo)]
        self.store.save()
        self.send(200, {})

    def validate_yaml(self) -> None:
        content = json.loads(self.data)["content"]
        if content.startswith("---") and not re.match(r"---\s*\n(.*?)\n---", content, re.S):
            raise Refusal(400, "metadata block is not closed")
        self.send(200, {"errors": [], "warnings": []})

    def preupload(self, kind: str, repo: str, rev: str) -> None:
        commit, tree = self._at(self._writable(kind, repo), rev)
        files = []
        for file in json.loads(self.data)["files"]:
            binary = b"\0" in base64.b64decode(file.get("sample") or "")
            lfs = file["size"] > 0 and (file["path"].endswith(LFS_SUFFIXES) or file["size"] > 10_000_000 or binary)
            mode = "lfs" if lfs else "regular"
            entry = tree.get(file["path"])
            known = {"oid": entry["sha"] if entry["lfs"] else entry["oid"]} if entry else {}
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        self.send(200, {"files": files, "commitOid": commit})

    def lfs_batch(self, kind: str, repo: str) -> None:
        self._writable(kind, repo)
        objects = []
        for wanted in json.loads(self.data)["objects"]:
            href = f"{self.hub.endpoint}/_lfs/{wanted['oid']}"
            actions = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            there = self.store.blob(wanted["oid"]).exists()
            told = {"oid": wanted["oid"], "size": wanted["size"]}
            objects.append(told if there else {**told, "authenticated": True, "actions": actions})
        self.send(200, {"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")

    def lfs_put(self, oid: str) -> None:
        # Asked for without a token, by an address that lfs_batch gave away, as at the real Hub.
        if hashlib.sha256(self.data).hexdigest() != oid:
            raise Refusal(400, "the content is not that of the SHA-256")
        self.store.put(self.data)
        self.send(200)

    def lfs_verify(self, oid: str) -> None:
        blob = self.store.blob(oid)
        whole = blob.exists() and blob.stat().st_size == json.loads(self.data)["size"]
        self.send(200 if whole else 404, {})

    def commit(self, kind: str, repo: str, rev: str) -> None:
        key = self._writable(kind, repo)
        operations = [json.loads(line) for line in self.data.splitlines() if line.strip()]
        header = next(each["value"] for each in operations if each["key"] == "header")
        if header.get("parentCommit") and header["parentCommit"] != self._at(key, rev)[0]:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        for each in operations:
            if each["key"] == "lfsFile" and not self.store.blob(each["value"]["oid"]).exists():
                path = each["value"]["path"]
                raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {path}")

        def change(tree: Tree) -> None:
            for each in operations:
                value = each["value"]
                if each["key"] == "file":
                    tree[value["path"]] = self.store.entry(base64.b64decode(value["content"]))
                elif each["key"] == "lfsFile":
                    tree[value["path"]] = self.store.lfs_entry(value["oid"])
                elif each["key"] == "deletedFile":
                    tree.pop(value["path"], None)
                elif each["key"] == "deletedFolder":
                    for path in [path for path in tree if path.startswith(value["path"].rstrip("/") + "/")]:
                        del tree[path]

        requests = [name for name in self.store.repos[key]["refs"] if name.startswith("refs/pr/")]
        target, told, number = rev, {}, len(requests) + 1
        if self.query.get("create_pr"):
            target, told = f"refs/pr/{number}", {"pullRequestUrl": f"{self._url(kind, repo)}/discussions/{number}"}
        oid = self.store.commit(key, target, header["summary"], change)
        url = f"{self._url(kind, repo)}/commit/{oid}"
        self.send(200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": "", **told})

    def info(self, kind: str, repo: str, rev: str = "") -> None:
        key = self._key(kind, repo)
        commit, tree = self._at(key, rev)
        known = self.store.repos[key]
        self.send(
            200,
            {
                "_id": commit[:24], "id": repo, "modelId": repo, "author": repo.split("/")[0], "sha": commit,
                "private": known["private"], "gated": "auto" if known["gated"] else False, "disabled": False,
                "tags": [], "downloads": 0, "likes": 0, "createdAt": known["created"],
                "lastModified": known["commits"][commit]["date"],
                "siblings": [{"rfilename": path} for path in sorted(tree)],
            },
        )  # fmt: skip

    def _file_node(self, path: str, tree: Tree) -> dict[str, Any]:
        entry = tree[path]
        lfs = {"lfs": {"oid": entry["sha"], "size": entry["size"], "pointerSize": 130}} if entry["lfs"] else {}
        return {"type": "file", "oid": entry["oid"], "size": entry["size"], "path": path, **lfs}

    def _folder_node(self, path: str) -> dict[str, Any]:
        return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}

    def list_tree(self, kind: str, repo: str, rev: str, path: str = "") -> None:
        _, tree = self._at(self._readable(kind, repo), rev)
        above = f"{path.strip('/')}/" if path.strip("/") else ""
        deep = self.query.get("recursive", "").lower() in ("1", "true")
        files, folders = [], set()
        for inner in sorted(name for name in tree if name.startswith(above)):
            *parents, _ = inner[len(above) :].split("/")
            folders |= {
                above + "/".join(parents[: i + 1]) for i in range(len(parents) if deep else min(len(parents), 1))
            }
            files += [self._file_node(inner, tree)] if deep or not parents else []
        if above and not files and not folders:
            raise Refusal(404, f"{path} does not exist on {rev!r}", "EntryNotFound")
        self.send(200, [*map(self._folder_node, sorted(folders)), *files])

    def paths_info(self, kind: str, repo: str, rev: str) -> None:
        _, tree = self._at(self._readable(kind, repo), rev)
        is_json = "json" in self.headers.get("Content-Type", "")
        asked = (
            json.loads(self.data)["paths"] if is_json else urllib.parse.parse_qs(self.data.decode()).get("paths", [])
        )
        found = []
        for path in [asked] if isinstance(asked, str) else asked:
            if path in tree:
                found.append(self._file_node(path, tree))
            elif any(name.startswith(path.rstrip("/") + "/") for name in tree):
                found.append(self._folder_node(path))
        self.send(200, found)

    def list_refs(self, kind: str, repo: str) -> None:
        refs = self.store.repos[self._key(kind, repo)]["refs"]
        answer: dict[str, Any] = {"converts": []}
        for kind_of_ref, prefix in (("branches", "refs/heads/"), ("tags", "refs/tags/"), ("pullRequests", "refs/pr/")):
            answer[kind_of_ref] = [
                {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": commit}
                for ref, commit in refs.items()
                if ref.startswith(prefix)
            ]
        self.send(200, answer)

    def list_commits(self, kind: str, repo: str, rev: str) -> None:
        key = self._key(kind, repo)
        commit: str | None = self._at(key, rev)[0]
        found = []
        while commit:
            known = self.store.repos[key]["commits"][commit]
            told = {"id": commit, "title": known["title"], "message": "", "date": known["date"]}
            found.append({**told, "authors": [{"user": USER}]})
            commit = known["parent"]
        self.send(200, found)

    def edit_ref(self, kind: str, repo: str, what: str, rev: str) -> None:
        key = self._writable(kind, repo)
        prefix = {"branch": "refs/heads/", "tag": "refs/tags/"}[what]
        refs = self.store.repos[key]["refs"]
        if self.command == "DELETE":
            if prefix + rev not in refs:
                raise Refusal(404, f"Invalid rev id: {rev}", "RevisionNotFound")
            self.store.set_ref(key, prefix + rev, None)
        else:
            body = json.loads(self.data or b"{}")
            name, start = (body["tag"], rev) if what == "tag" else (rev, body.get("startingPoint") or "main")
            if prefix + name in refs:
                raise Refusal(409, f"Reference already exists: {prefix}{name}")
            self.store.set_ref(key, prefix + name, self._at(key, start)[0])
        self.send(200, {})

    def file(self, kind: str, repo: str, rev: str, path: str) -> None:
        commit, tree = self._at(self._readable(kind, repo), rev)
        if path not in tree:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        entry = tree[path]
        etag = entry["sha"] if entry["lfs"] else entry["oid"]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if entry["lfs"]:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(entry["size"])}
        data, status = self.store.blob(entry["sha"]).read_bytes(), 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and self.command == "GET":
            first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
            status = 206 if first < len(data) else 416
            part = f"{first}-{last}" if status == 206 else "*"
            headers |= {"Content-Range": f"bytes {part}/{len(data)}"}
            data = data[first : last + 1]
        self.send(status, data, headers, "application/octet-stream")


_API = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"
_PAGE = r"/(?P<kind>datasets/|spaces/)?(?P<repo>[^/]+/[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("DELETE", r"/api/repos/delete", Handler.delete),
    ("POST", r"/api/validate-yaml", Handler.validate_yaml),
    ("POST", _API + r"/preupload/(?P<rev>[^/]+)", Handler.preupload),
    ("POST", _API + r"/commit/(?P<rev>[^/]+)", Handler.commit),
    ("POST", _API + r"/paths-info/(?P<rev>[^/]+)", Handler.paths_info),
    ("GET", _API + r"/tree/(?P<rev>[^/]+)(?:/(?P<path>.*))?", Handler.list_tree),
    ("GET", _API + r"/refs", Handler.list_refs),
    ("GET", _API + r"/commits/(?P<rev>[^/]+)", Handler.list_commits),
    ("POST DELETE", _API + r"/(?P<what>branch|tag)/(?P<rev>[^/]+)", Handler.edit_ref),
    ("GET HEAD", _API + r"(?:/revision/(?P<rev>[^/]+))?", Handler.info),
    ("POST", _PAGE + r"\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/_lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_put),
    ("POST", r"/_lfs/(?P<oid>[0-9a-f]{64})/verify", Handler.lfs_verify),
    ("GET HEAD", _PAGE + r"/resolve/(?P<rev>[^/]+)/(?P<path>.+)", Handler.file),
]
