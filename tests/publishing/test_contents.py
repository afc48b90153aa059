"""What is published of a run: all that a reader needs, and nothing that says where or by whom it was made."""

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from comparison_for_tests import ROWS, comparison
from publishing_for_tests import PUBLISHED, REPO, finished_run
from run_folder_for_tests import edit_json
from safetensors.torch import load_file

from rts_hf.publishing import contents as publication
from rts_hf.publishing.contents import Finding, left_over, scan, stage
from rts_hf.reports.card import render_card
from rts_hf.reports.comparison import section
from rts_hf.training.checkpoints import what_is_missing


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


def test_of_checkpoints_only_those_and_no_pickled_arguments(run: Path, staged: Path) -> None:
    shutil.copytree(run / "checkpoint-4", run / "checkpoint-4-mine")
    (run / "checkpoint-4" / "training_args.bin").write_bytes(b"/home/somebody")
    (run / "checkpoint-4" / "notes.yaml").write_text("\n# kept in /home/somebody/notes")
    paths = stage(run, staged, REPO, include_checkpoints=True)
    assert {path.split("/")[0] for path in paths if path.startswith("checkpoint")} == {"checkpoint-4"}
    assert "checkpoint-4/training_args.bin" not in paths
    assert "training_args.bin" not in (staged / "checkpoint-4" / "checkpoint_complete.json").read_text()
    found = Finding("checkpoint-4/notes.yaml", 2, "an absolute path (/home/somebody/notes)")
    assert scan(staged, paths, REPO) == [found]


def test_a_checkpoint_that_is_not_whole_is_left_out(run: Path, staged: Path) -> None:
    (run / "checkpoint-4" / "optimizer.pt").unlink()
    assert stage(run, staged, REPO, include_checkpoints=True) == PUBLISHED


def test_of_absolute_paths_the_last_part_is_kept(run: Path, staged: Path) -> None:
    def edit(record: dict[str, Any]) -> None:
        record["arguments"]["data"]["dataset"] = "/home/somebody/my images"
        record["arguments"]["model"]["checkpoint"] = "C:\\Users\\somebody\\old.safetensors"
        record["command"] = "accelerate launch scripts/train.py --dataset '/home/somebody/my images' --seed 0"

    edit_json(run / "run.json", edit)
    best = {"best_model_checkpoint": "runs/of-somebody/checkpoint-4"}
    edit_json(run / "trainer_state.json", lambda state: state.update(best))
    paths = stage(run, staged, REPO)
    assert scan(staged, paths, REPO) == []
    record = json.loads((staged / "run.json").read_text())
    assert record["arguments"]["data"]["dataset"] == "my images"
    assert record["arguments"]["model"]["checkpoint"] == "old.safetensors"
    assert record["command"] == "accelerate launch scripts/train.py --dataset 'my images' --seed 0"
    assert json.loads((staged / "trainer_state.json").read_text())["best_model_checkpoint"] == "checkpoint-4"
    assert "somebody" not in (staged / "README.md").read_text()


FORBIDDEN = [
    ("saved to /home/somebody/runs/x", "an absolute path (/home/somebody/runs/x)"),
    ("in ~/runs", "an absolute path (~/runs)"),
    ("D:\\\\data\\\\me", "an absolute path"),
    ("D:/data/me", "an absolute path (/data/me)"),
    ("\\\\server\\share\\me", "an absolute path"),
    ("local-dir:/home/somebody/model", "an absolute path (/home/somebody/model)"),
    ("file:///home/somebody/model", "an absolute path (file:///home/somebody/model)"),
    ("~somebody/runs", "an absolute path (~somebody/runs)"),
    ("hf_abcdefghijklmnop", "a Hugging Face token"),
    ("ghp_abcdefghijklmnopqrst0123", "a GitHub token"),
    ("AKIAABCDEFGHIJKLMNOP", "an AWS key"),
    ("sk-abcdefghijklmnopqrstuvwx", "an API key"),
    ("AIza" + 35 * "x", "an API key"),
    ("xoxb-123456789012-abc", "a Slack token"),
    ("https://me:secret@mirror.org/x", "a password in an address"),
    ("a value that is no secret by itself: swordfish99", "the value of the environment variable MY_API_KEY"),
    ('a value with a quote: sword"fish\\99', "the value of the environment variable MY_OTHER_SECRET"),
    ("made on box-of-mine.example.org by hand", "the name of this machine"),
    ("made on box-of-mine by hand", "the name of this machine"),
    ("made by jane.doe", "the name of the user"),
]


def test_what_must_not_be_published_is_found(run: Path, staged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "swordfish99")
    monkeypatch.setenv("MY_OTHER_SECRET", 'sword"fish\\99')
    monkeypatch.setattr(socket, "gethostname", lambda: "box-of-mine.example.org")
    monkeypatch.setattr(publication.getpass, "getuser", lambda: "jane.doe")
    assert scan(staged, stage(run, staged, REPO), REPO) == []
    notes = [f"Note {index}: {text}." for index, (text, _) in enumerate(FORBIDDEN)]
    edit_json(run / "run.json", lambda record: record.update(warnings=notes))
    shutil.rmtree(staged)
    staged.mkdir()
    findings = scan(staged, stage(run, staged, REPO), REPO)
    lines = (staged / "run.json").read_text().splitlines()
    found = {lines[each.line - 1].strip().split(":")[0]: each.what for each in findings if each.file == "run.json"}
    for index, (_, what) in enumerate(FORBIDDEN):
        assert found[f'"Note {index}'].startswith(what)
    assert len(found) == len(FORBIDDEN)
    assert "swordfish99" not in str(findings)


@pytest.mark.parametrize(
    ("machine", "user", "note"),
    [
        ("localhost", "root", "root on localhost, and/or w/o"),
        ("box-of-mine", "it", "of it, in probe/box-of-mine"),  # the repository's own name, and one too short to tell
        ("box", "jan", "januaries, boxes in a matchbox, https://example.org/jan/box"),
    ],
)
def test_everyday_names_and_the_repositorys_own_are_no_finding(
    run: Path, staged: Path, monkeypatch: pytest.MonkeyPatch, machine: str, user: str, note: str
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "digits")  # no secret: too short
    monkeypatch.setattr(publication.getpass, "getuser", lambda: user)
    monkeypatch.setattr(socket, "gethostname", lambda: machine)
    edit_json(run / "run.json", lambda record: record.update(warnings=[note]))
    repo = "probe/box-of-mine"
    assert scan(staged, stage(run, staged, repo), repo) == []


def test_nobody_need_be_logged_in(run: Path, staged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise KeyError("getpwuid(): uid not found: 1000")

    monkeypatch.setattr(publication.getpass, "getuser", fail)
    assert scan(staged, stage(run, staged, REPO), REPO) == []


def test_who_owns_the_repository_may_be_named(run: Path, staged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publication.getpass, "getuser", lambda: "jane")
    edit_json(run / "run.json", lambda record: record["data"].update(name="pets", source="jane/pets"))
    paths = stage(run, staged, "Jane/digits")
    assert scan(staged, paths, "Jane/digits") == []
    assert {found.what for found in scan(staged, paths, "somebody/digits")} == {"the name of the user"}


def test_class_names_and_sentences_are_no_paths(run: Path, staged: Path) -> None:
    names = ["/m", "~/", "C:\\x"]
    edit_json(run / "run.json", lambda record: record["data"].update(label_names=names))
    edit_json(run / "run.json", lambda record: record.update(warnings=["/1: 3/4 of it"], command="it's"))
    stage(run, staged, REPO)
    record = json.loads((staged / "run.json").read_text())
    assert (record["data"]["label_names"], record["warnings"], record["command"]) == (names, ["/1: 3/4 of it"], "it's")


def test_the_comparison_of_a_run_goes_with_it_and_stands_in_its_card(run: Path, staged: Path) -> None:
    found = comparison(ROWS, command="python scripts/compare.py --output_dir /home/mx/comparisons")
    (run / "comparison.json").write_text(json.dumps(found))
    assert "comparison.json" in stage(run, staged, REPO)
    assert "/home" not in (staged / "comparison.json").read_text()
    card = (staged / "README.md").read_text()
    assert section(found) in card
    assert "+1.00 (-0.30 to +2.30)" in card


def test_a_license_is_told(run: Path, staged: Path) -> None:
    stage(run, staged, REPO, license="apache-2.0")
    assert "\nlicense: apache-2.0\n" in (staged / "README.md").read_text()
    assert json.loads((staged / "run.json").read_text())["license"] == "apache-2.0"
    assert "license" not in json.loads((run / "run.json").read_text())


def test_what_is_left_over_of_earlier_states_and_of_other_models() -> None:
    there = {
        "README.md", "LICENSE", "config.json", "preprocessor_config.json", "tokenizer.json", "pytorch_model.bin",
        "model-00001-of-00002.safetensors", "model.safetensors.index.json", "figures/history.png", "figures/mine.png",
        "checkpoint-2/optimizer.pt", "onnx/model.onnx",
    }  # fmt: skip
    published = ["README.md", "config.json", "model.safetensors"]
    weights = ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    assert left_over(there, published, is_other=False) == ["figures/history.png", *weights]
    newer = [*published, "checkpoint-4/optimizer.pt"]
    assert left_over(there, newer, is_other=False) == ["checkpoint-2/optimizer.pt", "figures/history.png", *weights]
    others = ["preprocessor_config.json", "pytorch_model.bin", "tokenizer.json"]
    spoiled = sorted([*weights, *others, "checkpoint-2/optimizer.pt", "figures/history.png"])
    assert left_over(there, published, is_other=True) == spoiled


def test_models_that_are_not_whole_are_not_published(run: Path, staged: Path) -> None:
    weights = (run / "model.safetensors").read_bytes()
    for content in (b"", weights[:-1]):
        (run / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged .*take the weights of a checkpoint"):
            stage(run, staged, REPO)
    (run / "model.safetensors").rename(run / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (run / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(FileNotFoundError, match=r"has no model-00002-of-00002\.safetensors"):
        stage(run, staged, REPO)
    (run / "model.safetensors.index.json").unlink()
    (run / "preprocessor_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        stage(run, staged, REPO)
    (run / "model.safetensors").write_bytes(weights)
    (run / "model-00001-of-00002.safetensors").unlink()
    (run / "config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        stage(run, staged, REPO)


def test_a_record_without_an_entry_is_damaged(run: Path, staged: Path) -> None:
    edit_json(run / "run.json", lambda record: record.pop("data"))
    with pytest.raises(ValueError, match=r"run\.json has no 'data': it was edited or cut off"):
        stage(run, staged, REPO)


def test_runs_that_cannot_be_published(run: Path, staged: Path) -> None:
    edit_json(run / "run.json", lambda record: record.update(status="interrupted"))
    with pytest.raises(ValueError, match=r"not complete \(status 'interrupted'\).*--resume_from_checkpoint last"):
        stage(run, staged, REPO)
    edit_json(run / "run.json", lambda record: record.update(status="complete"))
    (run / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"run_dir=.* has no model\.safetensors; train it again"):
        stage(run, staged, REPO)
    with pytest.raises(FileNotFoundError, match=r"has no run\.json"):
        stage(staged, staged, REPO)


def test_without_links_weights_are_copied(run: Path, staged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert stage(run, staged, REPO) == PUBLISHED
    assert (staged / "model.safetensors").stat().st_nlink == 1


def test_weights_behind_a_link_are_published_as_a_file(run: Path, staged: Path) -> None:
    (run / "model.safetensors").rename(run.parent / "weights")
    (run / "model.safetensors").symlink_to(Path("..", "weights"))
    assert stage(run, staged, REPO) == PUBLISHED
    assert not (staged / "model.safetensors").is_symlink()


def test_findings_do_not_repeat_secrets() -> None:
    assert Finding("run.json", 3, "a Hugging Face token").what == "a Hugging Face token"
