"""Whole checkpoints are told from broken ones, and a run from another."""

import logging
from pathlib import Path

import pytest
from checkpoints_for_tests import OWN, make

from rts_hf.training.checkpoints import (
    MARKER_NAME,
    check_same_run,
    last_checkpoint,
    rotate,
    what_is_missing,
)


def test_whole(tmp_path: Path) -> None:
    assert what_is_missing(make(tmp_path, 1)) is None
    assert what_is_missing(make(tmp_path, 2, own=False, marked=False)) is None  # as transformers' own Trainer leaves it


@pytest.mark.parametrize("name", ["trainer_state.json", "model.safetensors", "optimizer.pt", "scheduler.pt"])
@pytest.mark.parametrize("marked", [True, False])
def test_a_missing_or_cut_file_is_seen(tmp_path: Path, name: str, marked: bool) -> None:
    cut = make(tmp_path, 1, own=marked, marked=marked) / name
    content = cut.read_bytes()
    if marked or name in ("trainer_state.json", "optimizer.pt", "scheduler.pt"):
        cut.write_bytes(content[: len(content) // 2])
        assert (what_is_missing(cut.parent) or "").startswith(name)
    if name != "scheduler.pt" or marked:
        cut.unlink()
        assert (what_is_missing(cut.parent) or "").startswith(name)


def test_one_whose_marker_was_not_reached_is_not_whole(tmp_path: Path) -> None:
    assert MARKER_NAME in (what_is_missing(make(tmp_path, 1, marked=False)) or "")
    assert what_is_missing(tmp_path / "checkpoint-2") == "it is not a folder"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"files": [1]}'])
def test_a_damaged_marker_is_named(tmp_path: Path, content: str) -> None:
    checkpoint = make(tmp_path, 1)
    (checkpoint / MARKER_NAME).write_text(content)
    assert (what_is_missing(checkpoint) or "").startswith(MARKER_NAME)


def test_the_newest_whole_one_is_taken_with_a_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (9, 10, 100):
        make(tmp_path, step)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")
    (tmp_path / "checkpoint-100" / "optimizer.pt").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert "checkpoint-100 is not whole (optimizer.pt has 0 bytes of" in caplog.text
    assert "going on from checkpoint-10" in caplog.text


def test_none_is_left(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no checkpoint"):
        last_checkpoint(tmp_path)
    make(tmp_path, 5, marked=False)
    with pytest.raises(ValueError, match=r"no whole checkpoint \(checkpoint-5: .*--overwrite"):
        last_checkpoint(tmp_path)


def test_checkpoints_that_are_not_whole_go_before_older_whole_ones(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        make(tmp_path, step)
    make(tmp_path, 7, marked=False)
    make(tmp_path, 8).joinpath("optimizer.pt").unlink()
    make(tmp_path, 9, marked=False).rename(tmp_path / "checkpoint-9-mine")
    rotate(tmp_path, None, None)
    assert len(list(tmp_path.iterdir())) == 6
    rotate(tmp_path, 3, str(tmp_path / "checkpoint-2"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-6", "checkpoint-9-mine"]


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("model", {"model": "resnet34"}, r"another model \(model resnet18 → resnet34\)"),
        ("data", {"dataset": "cifar10"}, r"another data set \(dataset digits → cifar10\).*--checkpoint"),
        ("data", {"label_noise": 0.4}, r"another data set \(label_noise 0.0 → 0.4\)"),
        ("data", {"train_fraction": 0.1}, r"another data set \(train_fraction 1.0 → 0.1\)"),
        ("data", {"split_seed": 7}, r"another data set \(split_seed 42 → 7\)"),
        ("training", {"seed": 7}, r"\(seed 42 → 7\), which cannot change within a run"),
        ("training", {"opt": "sam"}, r"\(opt rts_pugd → sam\), which cannot change within a run"),
        ("training", {"opt": "sgd"}, r"\(opt rts_pugd → sgd\), which cannot change within a run"),
        ("training", {"momentum": 0.5}, r"\(momentum 0.9 → 0.5\), which cannot change within a run"),
        ("training", {"adam_beta1": 0.5}, r"\(adam_beta1 0.9 → 0.5\), which cannot change within a run"),
        ("training", {"per_device_train_batch_size": 8}, r"\(per_device_train_batch_size 64 → 8\), which cannot"),
        ("training", {"processes": 2}, r"\(processes 1 → 2\), which cannot"),
        ("training", {"metric_for_best_model": "loss"}, r"\(metric_for_best_model accuracy → loss\), which cannot"),
        ("training", {"radius": "constant"}, r"\(radius default → constant\)"),
        ("training", {"base": "adamw"}, r"holds the state of sgd, which adamw cannot use \(base default → adamw\)"),
        ("training", {"learning_rate": 0.2}, r"\(learning_rate 0.1 → 0.2\), which cannot change within a run"),
        ("training", {"warmup_steps": 9}, r"\(warmup_steps 0 → 9\)"),
    ],
)
def test_another_run_is_refused(tmp_path: Path, part: str, change: dict, message: str) -> None:
    checkpoint = str(make(tmp_path, 1))
    check_same_run(checkpoint, OWN, override=False)
    with pytest.raises(ValueError, match=message):
        check_same_run(checkpoint, {**OWN, part: {**OWN[part], **change}}, override=False)


def test_an_argument_that_the_checkpoint_does_not_know_was_at_its_default(tmp_path: Path) -> None:
    checkpoint = str(make(tmp_path, 1))
    now = {"data": {**OWN["data"], "label_noise": 0.0, "train_fraction": 1.0}}
    check_same_run(checkpoint, now, override=False)
    noisy = str(make(tmp_path, 2, arguments={**OWN, "data": {**OWN["data"], "label_noise": 0.4}}))
    with pytest.raises(ValueError, match=r"another data set \(label_noise 0.4 → 0.0\)"):
        check_same_run(noisy, now, override=False)


def test_what_may_change(tmp_path: Path) -> None:
    checkpoint = str(make(tmp_path, 1))
    training = {**OWN["training"], "logging_dir": "x", "report_to": "tensorboard", "save_total_limit": 5}
    check_same_run(checkpoint, {**OWN, "training": training}, override=False)
    check_same_run(checkpoint, {**OWN, "data": {**OWN["data"], "cache_dir": "x"}}, override=False)
    assert check_same_run(checkpoint, OWN, override=True) is None
    constant = {"training": {**training, "radius": "constant"}}
    assert check_same_run(checkpoint, constant, override=True) == "radius default → constant"


def test_a_plain_run_may_turn_rts_pugd_on(tmp_path: Path) -> None:
    plain = {**OWN, "training": {**OWN["training"], "opt": "sgd"}}
    checkpoint = str(make(tmp_path, 1, arguments=plain))
    late = {**OWN["training"], "radius": "constant", "switch": "fixed"}
    changed = check_same_run(checkpoint, {**OWN, "training": late}, override=False)
    assert changed == "opt sgd → rts_pugd, radius default → constant, switch default → fixed"
    with pytest.raises(ValueError, match="holds the state of sgd, which adamw cannot use"):
        check_same_run(checkpoint, {**OWN, "training": {**late, "base": "adamw"}}, override=True)


def test_a_checkpoint_of_another_trainer_is_not_compared(tmp_path: Path) -> None:
    check_same_run(str(make(tmp_path, 1, own=False, marked=False)), OWN, override=False)
