"""What is published of a run: all that a reader needs, and nothing that says where or by whom it was made."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from publishing_for_tests import REPO, finished_run
from run_folder_for_tests import edit_json
from safetensors.torch import load_file

from rts_hf import publication
from rts_hf.hub import render_card
from rts_hf.publication import Finding, scan, stage
from rts_hf.resuming import what_is_missing

PUBLISHED = ["README.md", "config.json", "figures/history.png", "model.safetensors", "run.json", "trainer_state.json"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return finished_run(tmp_path / "run")


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    folder = tmp_path / "staged"
    folder.mkdir()
    return folder


def test_what_is_published(run: Path, staged: Path) -> None:
    (run / "notes.txt").write_text("mine")
    (run / "figures" / "mine.png").write_bytes(b"mine")
    assert stage(run, staged, REPO) == PUBLISHED
    assert (staged / "README.md").read_text() == render_card(run, repo_id=REPO)
    assert load_file(staged / "model.safetensors").keys() == load_file(run / "model.safetensors").keys()
    assert json.loads((staged / "run.json").read_text()) == json.loads((run / "run.json").read_text())


def test_checkpoints_only_on_request_and_whole(run: Path, staged: Path) -> None:
    paths = stage(run, staged, REPO, include_checkpoints=True)
    added = sorted(set(paths) - set(PUBLISHED))
    assert added == [
        f"checkpoint-4/{name}"
        for name in ("checkpoint_complete.json", "config.json", "model.safetensors", "optimizer.pt", "rng_state.pth",
                     "scheduler.pt", "trainer_state.json")
    ]  # fmt: skip
    assert what_is_missing(staged / "checkpoint-4") is None
    assert "/scratch" not in (staged / "checkpoint-4" / "trainer_state.json").read_text()
    assert what_is_missing(run / "checkpoint-4") is None  # the run's own is as it was
    assert scan(staged, paths, REPO) == []


def test_a_checkpoint_that_is_not_whole_is_left_out(run: Path, staged: Path) -> None:
    (run / "checkpoint-4" / "optimizer.pt").unlink()
    assert stage(run, staged, REPO, include_checkpoints=True) == PUBLISHED


def test_of_absolute_paths_the_last_part_is_kept(run: Path, staged: Path) -> None:
    def edit(record: dict[str, Any]) -> None:
        record["arguments"]["data"]["dataset"] = "/home/somebody/my images"
        record["arguments"]["model"]["checkpoint"] = "C:\\Users\\somebody\\old.safetensors"
        record["command"] = "accelerate launch scripts/train.py --dataset '/home/somebody/my images' --seed 0"

    edit_json(run / "run.json", edit)
    paths = stage(run, staged, REPO)
    assert scan(staged, paths, REPO) == []
    record = json.loads((staged / "run.json").read_text())
    assert record["arguments"]["data"]["dataset"] == "my images"
    assert record["arguments"]["model"]["checkpoint"] == "old.safetensors"
    assert record["command"] == "accelerate launch scripts/train.py --dataset 'my images' --seed 0"
    assert json.loads((staged / "trainer_state.json").read_text())["best_model_checkpoint"] == "checkpoint-4"
    assert "somebody" not in (staged / "README.md").read_text()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("saved to /home/somebody/runs/x", "an absolute path (/home/somebody/runs/x)"),
        ("in ~/runs", "an absolute path (~/runs)"),
        ("D:\\\\data\\\\me", "an absolute path"),
        ("hf_abcdefghijklmnop", "a Hugging Face token"),
        ("ghp_abcdefghijklmnopqrst0123", "a GitHub token"),
        ("AKIAABCDEFGHIJKLMNOP", "an AWS key"),
        ("sk-abcdefghijklmnopqrstuvwx", "an API key"),
        ("https://me:secret@mirror.org/x", "a password in an address"),
        ("a value that is no secret by itself: swordfish99", "the value of the environment variable MY_API_KEY"),
        ("made on box-of-mine by hand", "the name of this machine"),
        ("made by jane.doe", "the name of the user"),
    ],
)
def test_what_must_not_be_published_is_found(
    run: Path, staged: Path, monkeypatch: pytest.MonkeyPatch, text: str, what: str
) -> None:
    monkeypatch.setenv("MY_API_KEY", "swordfish99")
    monkeypatch.setattr(socket, "gethostname", lambda: "box-of-mine")
    monkeypatch.setattr(publication.getpass, "getuser", lambda: "jane.doe")
    assert scan(staged, stage(run, staged, REPO), REPO) == []
    edit_json(run / "run.json", lambda record: record.update(warnings=[f"Note: {text}."]))
    for path in sorted(staged.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    findings = scan(staged, stage(run, staged, REPO), REPO)
    lines = (staged / "run.json").read_text().splitlines()
    found = next(finding for finding in findings if finding.file == "run.json")
    assert found.what.startswith(what)
    assert "Note: " in lines[found.line - 1]
    assert "swordfish99" not in str(findings)


@pytest.mark.parametrize("name", ["root", "digits"])
def test_everyday_names_and_the_repositorys_own_are_no_finding(
    run: Path, staged: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(publication.getpass, "getuser", lambda: "root")
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    edit_json(run / "run.json", lambda record: record.update(warnings=["root on localhost, probe/digits, and/or w/o"]))
    assert scan(staged, stage(run, staged, "probe/digits"), "probe/digits") == []


def test_runs_that_cannot_be_published(run: Path, staged: Path) -> None:
    edit_json(run / "run.json", lambda record: record.update(status="interrupted"))
    with pytest.raises(ValueError, match=r"not complete \(status 'interrupted'\).*--resume_from_checkpoint last"):
        stage(run, staged, REPO)
    edit_json(run / "run.json", lambda record: record.update(status="complete"))
    (run / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json and model\.safetensors"):
        stage(run, staged, REPO)
    with pytest.raises(FileNotFoundError, match=r"has no run\.json"):
        stage(staged, staged, REPO)


def test_without_links_weights_are_copied(run: Path, staged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert stage(run, staged, REPO) == PUBLISHED
    assert (staged / "model.safetensors").stat().st_nlink == 1


def test_findings_do_not_repeat_secrets() -> None:
    assert Finding("run.json", 3, "a Hugging Face token").what == "a Hugging Face token"
