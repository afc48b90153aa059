"""The Hub for tests answers the real client as the real Hub does, and fails when told to."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from hub_endpoints_for_tests import READ_TOKEN, USER, WRITE_TOKEN
from hub_server_for_tests import Hub
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

REPO = f"{USER}/digits"


@pytest.fixture(autouse=True)
def plain_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Let the client of this process speak to 127.0.0.1, by LFS, without waiting between its own retries."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.utils._http, "time", SimpleNamespace(sleep=lambda seconds: None))
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


def api(hub: Hub, token: str | bool = WRITE_TOKEN) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=token)


def folder(tmp_path: Path, **files: bytes) -> Path:
    made = tmp_path / "upload"
    made.mkdir(exist_ok=True)
    for name, content in {"README.md": b"# Digits\n", "model.safetensors": bytes(range(256)), **files}.items():
        (made / name).write_bytes(content)
    return made


def published(hub: Hub, tmp_path: Path, **files: bytes) -> str:
    """Upload a folder as a user does, and return the commit."""
    api(hub).create_repo(REPO, exist_ok=True)
    commit = api(hub).upload_folder(repo_id=REPO, folder_path=folder(tmp_path, **files)).oid
    assert commit is not None
    return str(commit)


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def test_a_folder_comes_back_as_it_was_uploaded(hub: Hub, tmp_path: Path) -> None:
    commit = published(hub, tmp_path)
    tree = hub.store.tree(f"models/{REPO}")
    assert {path: entry["lfs"] for path, entry in tree.items()} == {
        ".gitattributes": False, "README.md": False, "model.safetensors": True,
    }  # fmt: skip
    local = Path(api(hub, False).snapshot_download(REPO, cache_dir=tmp_path / "cache"))
    assert local.name == commit == api(hub).model_info(REPO).sha
    for name in ("README.md", "model.safetensors"):
        assert (local / name).read_bytes() == (tmp_path / "upload" / name).read_bytes()
    assert [each.title for each in api(hub).list_repo_commits(REPO)][-1] == "initial commit"
    api(hub).delete_file("README.md", REPO)
    assert not api(hub).file_exists(REPO, "README.md")
    with pytest.raises(RemoteEntryNotFoundError):
        api(hub).hf_hub_download(REPO, "README.md", cache_dir=tmp_path / "cache2")


def test_tags_are_apart_from_branches_and_stay_where_they_were_set(hub: Hub, tmp_path: Path) -> None:
    first = published(hub, tmp_path)
    api(hub).create_tag(REPO, tag="v1")
    api(hub).create_branch(REPO, branch="draft")
    second = published(hub, tmp_path, **{"README.md": b"# Better\n"})
    refs = api(hub).list_repo_refs(REPO)
    assert [(tag.name, tag.ref, tag.target_commit) for tag in refs.tags] == [("v1", "refs/tags/v1", first)]
    assert {branch.name: branch.target_commit for branch in refs.branches} == {"main": second, "draft": first}
    assert api(hub).model_info(REPO, revision="v1").sha == first
    with pytest.raises(HfHubHTTPError) as error:
        api(hub).create_tag(REPO, tag="v1")
    assert status_of(error) == 409
    api(hub).create_tag(REPO, tag="v1", exist_ok=True)
    api(hub).delete_tag(REPO, tag="v1")
    assert api(hub).list_repo_refs(REPO).tags == []
    with pytest.raises(RevisionNotFoundError):
        api(hub).model_info(REPO, revision="v1")


@pytest.mark.parametrize(
    ("token", "repo", "status"),
    [(False, REPO, 401), ("hf_unknown", REPO, 401), (READ_TOKEN, REPO, 403), (WRITE_TOKEN, "another/digits", 403)],
)
def test_who_may_not_write_is_told_so(hub: Hub, tmp_path: Path, token: str | bool, repo: str, status: int) -> None:
    before = hub.store.add(f"models/{repo}", {"README.md": "# Theirs\n"})
    for write in (
        lambda: api(hub, token).create_repo(repo),
        lambda: api(hub, token).upload_folder(repo_id=repo, folder_path=folder(tmp_path)),
        lambda: api(hub, token).create_tag(repo, tag="v1"),
        lambda: api(hub, token).delete_repo(repo),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            write()
        assert status_of(error) == status
    assert hub.store.resolve(f"models/{repo}", "main") == before
    assert set(hub.store.repos[f"models/{repo}"]["refs"]) == {"refs/heads/main"}


def test_private_gated_and_missing_repositories(hub: Hub, tmp_path: Path) -> None:
    hub.store.add("datasets/owner/gated", {"README.md": "# Mine\n"}, gated=True)
    hub.store.add(f"datasets/{USER}/private", {"README.md": "# Mine\n"}, private=True)

    def read(repo: str, token: str | bool) -> str:
        kept = tmp_path / "cache" / str(token)
        return api(hub, token).hf_hub_download(repo, "README.md", repo_type="dataset", cache_dir=kept)

    for token, status in ((False, 401), (WRITE_TOKEN, 403)):
        with pytest.raises(GatedRepoError) as gated:
            read("owner/gated", token)
        assert status_of(gated) == status
        with pytest.raises(RepositoryNotFoundError) as missing:
            read("owner/missing", token)
        assert status_of(missing) == (404 if token else 401)
    assert Path(read(f"{USER}/private", READ_TOKEN)).read_text() == "# Mine\n"
    with pytest.raises(RepositoryNotFoundError):
        read(f"{USER}/private", False)
    assert api(hub).whoami()["name"] == USER


@pytest.mark.parametrize("status", [401, 403, 500])
def test_requests_fail_as_often_as_told(hub: Hub, tmp_path: Path, status: int) -> None:
    published(hub, tmp_path)
    hub.fail("POST", "/commit/main", status=status, count=2)
    for _ in range(2):
        with pytest.raises(HfHubHTTPError) as error:
            published(hub, tmp_path, **{"README.md": b"# Better\n"})
        assert status_of(error) == status
    published(hub, tmp_path, **{"README.md": b"# Better\n"})
    assert hub.store.read(f"models/{REPO}", "README.md") == b"# Better\n"


def test_too_many_requests_come_with_a_time_to_wait(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(huggingface_hub.utils._http, "time", SimpleNamespace(sleep=waits.append))
    hub.store.add(f"models/{REPO}", {"README.md": "# Digits\n"})
    hub.fail("GET", "README.md", status=429, headers={"Retry-After": "7"})
    assert Path(api(hub).hf_hub_download(REPO, "README.md", cache_dir=tmp_path / "cache")).is_file()
    assert waits == [8.0]  # to be sure, the client waits a second more
    assert sum("-> 429" in line for line in hub.requests) == 1


def test_an_upload_that_is_cut_off_leaves_nothing_and_goes_on_after_a_new_start(hub: Hub, tmp_path: Path) -> None:
    api(hub).create_repo(REPO)
    weights = {"model.safetensors": bytes(300_000)}
    hub.fail("PUT", "/_lfs/", drop_after=1000, count=99)
    with pytest.raises(Exception, match=r"(?i)disconnected|reset|broken pipe|upload"):
        published(hub, tmp_path, **weights)
    assert any(line.endswith("-> dropped") for line in hub.requests)
    assert set(hub.store.tree(f"models/{REPO}")) == {".gitattributes"}
    hub.stop()
    with pytest.raises(OSError, match=r"(?i)refused"):
        socket.create_connection(("127.0.0.1", hub.port), timeout=1)
    hub.faults.clear()
    hub.start()
    published(hub, tmp_path, **weights)
    assert hub.store.read(f"models/{REPO}", "model.safetensors") == bytes(300_000)


def test_as_a_process_of_its_own_it_goes_on_where_it_was_killed(hub: Hub, tmp_path: Path) -> None:
    published(hub, tmp_path)
    hub.stop()
    words = ["--root", str(hub.root), "--port", str(hub.port)]
    script = Path(__file__).parents[1] / "helpers" / "hub_server_for_tests.py"
    process = subprocess.Popen([sys.executable, str(script), *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == hub.endpoint
        api(hub).create_tag(REPO, tag="v1")
    finally:
        process.kill()
        process.communicate()
    hub.start()
    assert [tag.name for tag in api(hub).list_repo_refs(REPO).tags] == ["v1"]
