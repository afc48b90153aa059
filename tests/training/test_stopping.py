"""When a run saves and stops."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from training_for_tests import SignalAt, make_trainer, training_logs
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

from rts_hf import RTSTrainer
from rts_hf.training.checkpoints import what_is_missing
from rts_hf.training.stopping import StopOnSigterm

SETTINGS = {"switch": "fixed", "switch_at": "5", "eval_strategy": "epoch", "save_strategy": "no"}  # 7 updates an epoch


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RTSTrainer:
    """An uninterrupted run, with a checkpoint at the end of each epoch."""
    trainer = make_trainer(tmp_path_factory.mktemp("whole"), **{**SETTINGS, "save_strategy": "steps"}, save_steps=7)
    trainer.train()
    return trainer


@pytest.mark.parametrize("update", [3, 7, 9])
@pytest.mark.filterwarnings("ignore:The switch")
def test_sigterm_saves_stops_and_loses_nothing(tmp_path: Path, whole: RTSTrainer, update: int) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    stop = StopOnSigterm()
    first = make_trainer(tmp_path / "parts", callbacks=[stop, SignalAt(update)], **SETTINGS)
    first.train()
    assert stop.stops
    assert first.state.global_step == update
    # in the middle of an epoch nothing is evaluated on the way out
    assert [e["step"] for e in first.state.log_history if "eval_loss" in e] == ([7] if update >= 7 else [])
    assert signal.getsignal(signal.SIGTERM) is handler
    checkpoint = tmp_path / "parts" / f"checkpoint-{update}"
    assert what_is_missing(checkpoint) is None
    resumed = make_trainer(tmp_path / "parts", **SETTINGS)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert training_logs(whole) == training_logs(resumed)
    evaluations = [[e["step"] for e in t.state.log_history if "eval_loss" in e] for t in (whole, resumed)]
    assert evaluations[0] == evaluations[1] == [7, 14]


@pytest.mark.filterwarnings("ignore:The switch")
def test_a_checkpoint_at_the_end_of_an_epoch_holds_its_evaluation(tmp_path: Path, whole: RTSTrainer) -> None:
    resumed = make_trainer(tmp_path, **{**SETTINGS, "save_strategy": "steps"}, save_steps=7)
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir, "checkpoint-7")))
    steps = [entry["step"] for entry in resumed.state.log_history if "eval_loss" in entry]
    assert steps == [7, 14]


@pytest.mark.filterwarnings("ignore:The switch")
def test_without_an_evaluation_to_wait_for_a_checkpoint_waits_for_nothing(tmp_path: Path) -> None:
    settings = {**SETTINGS, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 7, "max_steps": 14}
    saved_at = []

    class Watch(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            saved_at.append((state.global_step, control.should_epoch_stop))

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            saved_at.append("epoch end")

    make_trainer(tmp_path, callbacks=[Watch()], **settings).train()
    assert saved_at == [(7, False), "epoch end", (14, False), "epoch end"]


@pytest.mark.filterwarnings("ignore:The switch")
def test_sigterm_saves_at_the_end_of_an_epoch_that_was_not_the_best(tmp_path: Path) -> None:
    settings = {
        **SETTINGS,
        "save_strategy": "best",
        "metric_for_best_model": "accuracy",
        "load_best_model_at_end": True,
    }
    trainer = make_trainer(tmp_path, callbacks=[StopOnSigterm(), SignalAt(7)], **settings)

    def never_best(*args: Any, **kwargs: Any) -> bool:
        trainer.state.best_metric = 2.0
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_determine_best_metric", never_best)
        trainer.train()
    assert what_is_missing(tmp_path / "checkpoint-7") is None


def test_processes_agree_on_the_update_after_which_they_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, state = StopOnSigterm(), TrainerState(epoch=0.5, max_steps=9)
    stop._group = "of two processes"
    reduced: list[int] = []

    def another_gets_it_first(flag: torch.Tensor, **kwargs: Any) -> None:
        """The first time nobody has it, and it comes here just after; the next time both know."""
        if not reduced:
            stop._receive(signal.SIGTERM, None)
        reduced.append(int(flag))

    monkeypatch.setattr(torch.distributed, "all_reduce", another_gets_it_first)
    seen = []
    for _ in range(2):
        control = TrainerControl()
        stop.on_step_end(None, state, control)
        seen.append((control.should_training_stop, control.should_save, stop.stops))
    assert reduced == [0, 1]
    assert seen == [(False, False, False), (True, True, True)]


@pytest.mark.filterwarnings("ignore:The switch")
def test_sigterm_inside_an_epoch_is_not_taken_for_its_end(tmp_path: Path) -> None:
    saved_at = []

    class Watch(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            saved_at.append(state.global_step)

    settings = {**SETTINGS, "save_strategy": "epoch", "logging_strategy": "epoch"}
    trainer = make_trainer(tmp_path, callbacks=[StopOnSigterm(), SignalAt(3), Watch()], **settings)
    trainer.train()
    assert saved_at == [3]
    assert [entry for entry in trainer.state.log_history if "train_runtime" not in entry] == []
