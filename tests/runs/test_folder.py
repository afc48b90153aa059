"""Where a run writes, and what of an earlier run goes."""

from pathlib import Path
from typing import Any

import pytest
from checkpoints_for_tests import make

from rts_hf import CommandArguments, DataArguments, ModelArguments, train
from rts_hf.runs.folder import choose_folder, clear_folder, free_folder, prepare_folder, remove_drafts


def arguments(folder: Path | None, **settings: Any) -> CommandArguments:
    return CommandArguments(output_dir=None if folder is None else str(folder), use_cpu=True, **settings)


def test_free_folders_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert free_folder("owner/pets-resnet18-sgd") == "runs/owner_pets-resnet18-sgd"
    (tmp_path / "runs" / "owner_pets-resnet18-sgd").mkdir(parents=True)
    assert free_folder("owner/pets-resnet18-sgd") == "runs/owner_pets-resnet18-sgd-2"


def test_a_run_without_a_name_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is no run in 'runs/mine'; name its folder with output_dir"):
        choose_folder(arguments(None, resume_from_checkpoint="last"), "mine")
    for name in ("mine", "mine-2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    again = arguments(None, resume_from_checkpoint="last")
    choose_folder(again, "mine")
    assert again.output_dir == "runs/mine-2"
    new = arguments(None)
    choose_folder(new, "mine")
    assert new.output_dir == "runs/mine-3"
    named = arguments(None, resume_from_checkpoint="runs/other/checkpoint-3")
    choose_folder(named, "mine")
    assert named.output_dir == "runs/other"
    given = arguments(tmp_path / "given")
    choose_folder(given, "mine")
    assert given.output_dir == str(tmp_path / "given")


def test_overwriting_deletes_a_run_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    overwriting = arguments(folder, overwrite=True)
    with pytest.raises(ValueError, match=r"holds no run, but files that this one would replace \(README.md\)"):
        prepare_folder(overwriting)
    assert (folder / "README.md").read_text() == "mine"
    kept = tmp_path / "precious"
    kept.mkdir()
    (kept / "history.png").write_text("mine")
    for name in ("run.json", "notes.txt", "figures/history.png", "figures/mine.png", "runs/a/events.out.tfevents.1"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("{}")
    make(folder, 3)
    (folder / "checkpoint-4").symlink_to(kept)
    (folder / "checkpoint-best").mkdir()
    assert prepare_folder(overwriting) is None
    with pytest.raises(ValueError, match="nowhere"):
        train(ModelArguments(), DataArguments(dataset="nowhere"), overwriting)
    assert (folder / "run.json").exists()
    clear_folder(overwriting)
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    assert left == ["checkpoint-best", "figures", "figures/mine.png", "notes.txt"]
    assert (kept / "history.png").read_text() == "mine"


def test_a_link_to_ones_own_figures_is_only_unlinked(tmp_path: Path) -> None:
    folder, kept = tmp_path / "run", tmp_path / "precious"
    for path in (folder, kept):
        path.mkdir()
    (folder / "run.json").write_text("{}")
    (kept / "history.png").write_text("mine")
    (folder / "figures").symlink_to(kept)
    clear_folder(arguments(folder, overwrite=True))
    assert list(folder.iterdir()) == []
    assert (kept / "history.png").exists()


def test_the_weights_one_starts_from_are_not_overwritten(tmp_path: Path) -> None:
    make(tmp_path, 3)
    with pytest.raises(ValueError, match=r"lies in output_dir=.*--overwrite deletes"):
        train(
            ModelArguments(model="resnet18", checkpoint=str(tmp_path / "checkpoint-3")),
            DataArguments(),
            arguments(tmp_path, overwrite=True),
        )
    assert (tmp_path / "checkpoint-3").exists()


def test_the_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    for step in (5, 40):
        make(tmp_path, step)
    assert prepare_folder(arguments(tmp_path, resume_from_checkpoint="last")) == str(tmp_path / "checkpoint-40")
    chosen = str(tmp_path / "checkpoint-5")
    assert prepare_folder(arguments(tmp_path, resume_from_checkpoint=chosen)) == chosen
    with pytest.raises(ValueError, match="is not a folder"):
        prepare_folder(arguments(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-6")))
    with pytest.raises(ValueError, match="holds another run"):
        prepare_folder(arguments(tmp_path))
    (tmp_path / "checkpoint-5" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match=r"is not a whole checkpoint \(optimizer.pt is missing\)"):
        prepare_folder(arguments(tmp_path, resume_from_checkpoint=chosen))


def test_going_on_from_elsewhere_needs_a_free_folder(tmp_path: Path) -> None:
    chosen = str(make(tmp_path / "first", 5))
    make(tmp_path / "second", 3)
    assert prepare_folder(arguments(tmp_path / "third", resume_from_checkpoint=chosen)) == chosen
    with pytest.raises(ValueError, match="second' holds another run"):
        prepare_folder(arguments(tmp_path / "second", resume_from_checkpoint=chosen))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match="out' is a file; name a folder"):
        prepare_folder(arguments(tmp_path / "out"))


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/run' cannot be written to .*name another folder"):
        prepare_folder(arguments(tmp_path / "file" / "run"))
    assert prepare_folder(arguments(tmp_path / "a" / "b")) is None
    assert not (tmp_path / "a").exists()


def test_drafts_of_weights_go_and_nothing_else(tmp_path: Path) -> None:
    for name in (".tmpAb12Cd", ".tmp", ".tmpAb12Cd.txt", "x.tmpAb12Cd"):
        (tmp_path / name).write_text("")
    (tmp_path / ".tmpFolder").mkdir()
    remove_drafts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp", ".tmpAb12Cd.txt", ".tmpFolder", "x.tmpAb12Cd"]


def test_a_run_that_left_checkpoints_only_can_be_overwritten(tmp_path: Path) -> None:
    make(tmp_path, 3)
    overwriting = arguments(tmp_path, overwrite=True)
    assert prepare_folder(overwriting) is None
    clear_folder(overwriting)
    assert list(tmp_path.iterdir()) == []
