"""Where a run may be gone on with, and that it is the same run: turned on late, over already, stopped, searched."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import IterableDataset
from training_for_tests import Images, SignalAt, make_model, make_trainer, stopped, training_logs
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from rts_hf import RTSTrainer
from rts_hf.training.checkpoints import MARKER_NAME, last_checkpoint, what_is_missing
from rts_hf.training.stopping import StopOnSigterm

EVERY = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None}  # 14 updates, 7 an epoch
pytestmark = pytest.mark.filterwarnings("ignore:The switch", "ignore:This run will never perturb")


def same(whole: RTSTrainer, resumed: RTSTrainer) -> None:
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert training_logs(resumed) == training_logs(whole)
    evaluations = [[e for e in t.state.log_history if "eval_loss" in e] for t in (whole, resumed)]
    assert [e["step"] for e in evaluations[0]] == [e["step"] for e in evaluations[1]]
    assert [e["eval_loss"] for e in evaluations[0]] == [e["eval_loss"] for e in evaluations[1]]


# ---- Turned on late ----


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint after update 4 of a plain run."""
    return stopped(tmp_path_factory.mktemp("plain"), 4, opt="sgd", **EVERY)


@pytest.mark.parametrize(
    ("switch_at", "switched_at", "evaluations"),
    [(None, 7, 21), ("0.8", 12, 16), ("6", 6, 22), ("4", 4, 24), ("2", 4, 24), ("1.0", None, 14)],
)
def test_what_was_plain_counts_where_rts_pugd_is_turned_on_late(
    tmp_path: Path, plain: str, switch_at: str | None, switched_at: int | None, evaluations: int
) -> None:
    settings = {} if switch_at is None else {"switch": "fixed", "switch_at": switch_at}
    late = make_trainer(tmp_path, **settings)
    late.train(resume_from_checkpoint=plain)
    assert late.switched_at() == switched_at
    assert late.gradient_evaluations == evaluations
    entries = {entry["step"]: entry for entry in training_logs(late)}
    assert [entries[step]["gradient_evaluations"] for step in (1, 4, 5)] == [1, 4, 5 + (switched_at == 4)]
    assert entries[14]["alpha_r"] == pytest.approx(0.0, abs=1e-12)  # the end of the whole run's schedule


def test_it_is_as_if_the_plain_part_had_been_the_first_phase(tmp_path: Path, plain: str) -> None:
    whole = make_trainer(tmp_path / "rts", switch="fixed", switch_at="6")
    whole.train()
    late = make_trainer(tmp_path / "late", switch="fixed", switch_at="6")
    late.train(resume_from_checkpoint=plain)
    for a, b in zip(whole.model.parameters(), late.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_optimizer_state_of_other_groups_is_refused_with_a_remedy(tmp_path: Path) -> None:
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, max_steps=4, save_steps=4, optim="sgd", learning_rate=0.05,
        per_device_train_batch_size=4, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    Trainer(model=make_model(), args=arguments, train_dataset=Images()).train()
    late = make_trainer(tmp_path, switch="fixed", switch_at="6")
    with pytest.raises(ValueError, match=r"resume_from_checkpoint='.*checkpoint-4' holds an optimizer state .*weights"):
        late.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_a_damaged_optimizer_state_is_told_of_with_a_remedy(tmp_path: Path) -> None:
    settings = {"switch": "fixed", "switch_at": "6", **EVERY, "max_steps": 2, "save_steps": 2}
    make_trainer(tmp_path, **settings).train()
    saved = tmp_path / "checkpoint-2" / "optimizer.pt"
    state = torch.load(saved)
    state["param_groups"][0]["rts_step"] = -4
    torch.save(state, saved)
    with pytest.raises(ValueError, match=r"use \(rts_step=-4 must be a whole number of at least 0\); take its weights"):
        make_trainer(tmp_path, **settings).train(resume_from_checkpoint="last")


# ---- Over already ----


def test_a_run_that_had_all_its_updates_gets_no_more(tmp_path: Path) -> None:
    settings = {
        **EVERY,
        "max_steps": 10,
        "eval_strategy": "epoch",
        "switch": "fixed",
        "switch_at": "3",
    }  # of 7 an epoch
    whole = make_trainer(tmp_path, **settings)
    whole.train()
    resumed = make_trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert resumed.state.global_step == 10
    assert not (tmp_path / "checkpoint-11").exists()
    same(whole, resumed)


def make_impatient(folder: Path) -> RTSTrainer:
    """Two evaluations without a better one end it after update 6, of 2 an epoch."""
    settings = {
        "opt": "sgd", "learning_rate": 0.0, "num_train_epochs": 9, "eval_strategy": "epoch", "save_strategy": "epoch",
        "metric_for_best_model": "f1_macro", "load_best_model_at_end": True, "save_total_limit": None,
    }  # fmt: skip
    return make_trainer(folder, train=Images(8), callbacks=[EarlyStoppingCallback(2)], **settings)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> RTSTrainer:
    trainer = make_impatient(tmp_path_factory.mktemp("impatient"))
    trainer.train()
    assert trainer.state.global_step == 6
    return trainer


@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_run_that_early_stopping_ended_gets_no_more(tmp_path: Path, impatient: RTSTrainer, step: int) -> None:
    folder = shutil.copytree(impatient.args.output_dir, tmp_path / "run")
    resumed = make_impatient(folder)
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert resumed.state.global_step == 6
    same(impatient, resumed)
    resumed.train()  # a run of its own, in which nothing has been waited for yet
    assert resumed.state.global_step == 6


# ---- Stopped ----


@pytest.mark.parametrize("jit", [False, True])
def test_the_checkpoint_of_a_stopped_run_stays_with_a_limit_of_one(tmp_path: Path, jit: bool) -> None:
    settings = {
        "eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4, "save_total_limit": 1,
        "load_best_model_at_end": True, "metric_for_best_model": "f1_macro", "learning_rate": 0.0, "opt": "sgd",
        "enable_jit_checkpoint": jit,
    }  # fmt: skip

    def make(*callbacks: TrainerCallback) -> RTSTrainer:
        trainer = make_trainer(tmp_path, callbacks=list(callbacks), **settings)
        trainer._determine_best_metric = lambda metrics, trial: mark_best(trainer)  # type: ignore[method-assign]
        return trainer

    def mark_best(trainer: RTSTrainer) -> bool:
        """The first evaluation is the best."""
        is_first = trainer.state.best_metric is None
        if is_first:
            trainer.state.best_metric, trainer.state.best_global_step = 1.0, trainer.state.global_step
        return is_first

    stopped = make(*([] if jit else [StopOnSigterm()]), SignalAt(6))
    stopped.train()
    assert stopped.state.global_step == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-6"]
    finished = make()
    finished.train(resume_from_checkpoint="last")
    assert finished.resumed_at == [6]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]  # as transformers leaves it


def test_an_evaluation_at_the_start_is_not_repeated(tmp_path: Path) -> None:
    gap = {"switch": "generalization_gap", "switch_base_epochs": 1, "switch_every": 1, "switch_mu": 1e-6}
    settings = {**EVERY, **gap, "eval_strategy": "epoch", "num_train_epochs": 3, "eval_on_start": True}
    settings |= {"train": Images(10)}  # 3 updates an epoch
    whole = make_trainer(tmp_path, **settings)
    whole.train()
    resumed = make_trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.switched_at() == whole.switched_at()
    same(whole, resumed)
    assert resumed.args.eval_on_start
    assert [e["step"] for e in whole.state.log_history if "eval_loss" in e] == [0, 3, 6, 9]


# ---- Checkpoints that nothing can be gone on from ----


def test_the_newest_whole_checkpoint_is_found_without_the_command(tmp_path: Path) -> None:
    make_trainer(tmp_path, **EVERY, max_steps=3).train()
    (tmp_path / "checkpoint-3" / "optimizer.pt").unlink()
    for wanted in (True, "last"):
        again = make_trainer(tmp_path, **EVERY, max_steps=3)
        again.train(resume_from_checkpoint=wanted)
        assert again.resumed_at == [2]
        (tmp_path / "checkpoint-3" / "scheduler.pt").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-3' is not a whole checkpoint \(scheduler.pt is missing\)"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    with pytest.raises(ValueError, match="holds no checkpoint"):
        make_trainer(tmp_path / "empty", **EVERY).train(resume_from_checkpoint=True)


def test_weights_alone_are_no_checkpoint_to_go_on_from_and_are_kept(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **{**EVERY, "save_total_limit": 2}, max_steps=3, save_only_model=True)
    trainer.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    with pytest.raises(ValueError, match=r"no whole checkpoint \(checkpoint-3: optimizer.pt is missing"):
        last_checkpoint(tmp_path)


def test_rotation_leaves_what_others_wrote_to_the_limit(tmp_path: Path) -> None:
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, max_steps=2, save_steps=1, save_only_model=True, report_to="none",
        per_device_train_batch_size=4, disable_tqdm=True,
    )  # fmt: skip
    Trainer(model=make_model(), args=arguments, train_dataset=Images()).train()
    for name, content in (("checkpoint-3", "model.safetensors"), ("checkpoint-4", "precious")):
        (tmp_path / name).mkdir()
        (tmp_path / name / content).write_text("mine")
    settings = {"save_strategy": "steps", "save_steps": 4, "max_steps": 4, "save_total_limit": 10}
    make_trainer(tmp_path, **settings).train()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{step}" for step in (1, 2, 3, 4)]
    assert (tmp_path / "checkpoint-4" / "precious").read_text() == "mine"
    assert what_is_missing(tmp_path / "checkpoint-4") is None


def test_what_an_earlier_command_left_of_a_checkpoint_is_cleared_away(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    make_trainer(tmp_path, **settings).train()
    checkpoint = tmp_path / "checkpoint-2"
    (checkpoint / ".tmpAbC123").write_text("draft")
    (checkpoint / MARKER_NAME).write_text(json.dumps({"files": None}))
    assert what_is_missing(checkpoint) == "it was not written to its end"
    make_trainer(tmp_path, **settings).train()
    assert what_is_missing(checkpoint) is None
    assert not (checkpoint / ".tmpAbC123").exists()


def test_a_trial_of_a_search_saves_in_its_own_folder(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "precious").write_text("mine")
    own_folder = tmp_path / "run-0"
    trainer._get_output_dir = lambda trial: str(tmp_path if trial is None else own_folder)  # type: ignore[method-assign]
    save = trainer._save_checkpoint

    def as_in_a_search(model: Any, trial: Any) -> None:
        save(model, {"learning_rate": 0.1})

    trainer._save_checkpoint = as_in_a_search  # type: ignore[method-assign, assignment]
    trainer.train()
    assert what_is_missing(own_folder / "checkpoint-2") is None
    assert (tmp_path / "checkpoint-2" / "precious").read_text() == "mine"
    shutil.rmtree(own_folder)


@pytest.mark.parametrize(("images", "accumulation"), [(400, 1), (48, 1), (40, 1), (40, 2)])
def test_a_stream_goes_on_within_its_pass(tmp_path: Path, images: int, accumulation: int) -> None:
    """Shorter than the run, it has been passed over before: what comes next are the batches of the present pass."""
    stream = IterableDataset.from_generator(_rows, gen_kwargs={"images": images}).shuffle(seed=1, buffer_size=8)
    batch = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 16 // accumulation}
    settings: dict[str, Any] = {**EVERY, **batch, "max_steps": 7, "switch": "fixed", "switch_at": 3}
    settings["train"] = stream.with_format("torch")
    whole = make_trainer(tmp_path, **settings)
    whole.train()
    for step in (2, 3, 5):
        resumed = make_trainer(tmp_path, **settings)
        resumed.train(str(tmp_path / f"checkpoint-{step}"))
        assert all(map(torch.equal, whole.model.parameters(), resumed.model.parameters())), step
        assert whole.state.epoch == resumed.state.epoch


def _rows(images: int) -> Iterator[dict[str, Any]]:
    data = Images(images)
    for pixels, label in zip(data.pixels, data.labels, strict=True):
        yield {"pixel_values": pixels.numpy(), "labels": int(label)}
