"""Counting what goes wrong, and what RTSTrainer does about it: weights stay finite, the run goes on or says why not."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training_for_tests import Images, make_model, make_trainer, training_logs
from transformers import TrainerCallback

from rts_hf import TrainingFault
from rts_hf.training.faults import FaultCounter

ALWAYS = {"switch": "fixed", "switch_at": "0", "max_steps": 6}
NEVER = {"switch": "fixed", "switch_at": "1.0", "max_steps": 6}
pytestmark = pytest.mark.filterwarnings("ignore:This run will never perturb", "ignore:The switch")


def poison(trainer: Any, value: float, *, update: int, second_pass: bool = False, loss_only: bool = False) -> None:
    """Let one pass of one update (from 1) give this loss, and gradients of the same kind unless ``loss_only``."""
    compute_loss = trainer.compute_loss

    def poisoned(model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        loss, outputs = compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        is_update = model.training and trainer.state.global_step + 1 == update
        if is_update and trainer._in_second_pass == second_pass:
            loss = loss + (value if loss_only else value * next(model.parameters()).sum())
        return (loss, outputs) if return_outputs else loss

    trainer.compute_loss = poisoned


def snapshot(trainer: Any) -> list[torch.Tensor]:
    momentum = [state["momentum_buffer"] for state in trainer.optimizer.optimizer.state.values() if state]
    return [tensor.detach().clone() for tensor in [*trainer.model.state_dict().values(), *momentum]]


def test_counts_and_stops_after_too_many_in_a_row() -> None:
    faults = FaultCounter(limit=3)
    for update, norm in enumerate([math.nan, math.inf, 1.0, math.nan, -math.inf], start=1):
        faults.observe_norm(norm, update=update)
    with pytest.raises(TrainingFault, match=r"max_skipped_updates=3: the gradient of update 6 and of the 2 before it"):
        faults.observe_norm(math.nan, update=6)
    assert faults.counts["nonfinite_gradient"] == 5
    again = FaultCounter(limit=3)
    again.load_state_dict(faults.state_dict())
    assert (again.counts, again.in_a_row) == (faults.counts, 3)


def test_tells_of_ever_fewer(caplog: pytest.LogCaptureFixture) -> None:
    faults = FaultCounter(limit=1000)
    with caplog.at_level(logging.WARNING):
        for update in range(1, 101):
            faults.count("nonfinite_gradient", update)
    assert [record.args[1] for record in caplog.records] == [1, 2, 4, 8, 16, 32, 64]
    assert caplog.messages[0] == "Non-finite gradient in update 1, which is skipped (1 so far)"


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("settings", "second_pass"), [(NEVER, False), (ALWAYS, False), (ALWAYS, True), ({**NEVER, "opt": "sgd"}, False)]
)
def test_a_poisoned_update_is_skipped_and_training_goes_on(
    tmp_path: Path, settings: dict, second_pass: bool, value: float
) -> None:
    settings = {key: value for key, value in settings.items() if settings.get("opt") != "sgd" or "switch" not in key}
    trainer = make_trainer(tmp_path, make_model("test_resnet"), **settings)  # with BatchNorm
    poison(trainer, value, update=3, second_pass=second_pass)
    seen: list[list[torch.Tensor]] = []
    step = trainer.training_step

    def watch(*args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step >= 2:
            seen.append(snapshot(trainer))
        return step(*args, **kwargs)

    trainer.training_step = watch
    trainer.train()
    before, after, later = seen[0], seen[1], seen[2]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(after, later, strict=True))
    assert all(torch.isfinite(tensor).all() for tensor in snapshot(trainer))
    assert trainer.faults.counts["nonfinite_gradient"] == 1
    assert training_logs(trainer)[-1]["skipped_updates"] == 1
    rts = trainer.two_pass_optimizer
    passes = 1 if settings in (NEVER,) or rts is None else 2
    assert trainer.gradient_evaluations == 6 * passes
    if rts is not None:
        assert rts.stats()["step"] == 5  # schedules and switch stay where they were
    rates = {entry["step"]: entry["learning_rate"] for entry in training_logs(trainer)}
    assert rates[3] == rates[4] != rates[5]  # and so does the learning rate's


def test_a_loss_that_is_not_finite_alone_is_counted_and_kept_out_of_the_mean(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **ALWAYS, eval_strategy="steps", eval_steps=6)
    poison(trainer, math.nan, update=3, loss_only=True)
    trainer.train()
    assert trainer.faults.counts == {
        "nonfinite_gradient": 0, "nonfinite_loss": 1, "zero_gradient": 0, "out_of_memory": 0,
    }  # fmt: skip
    evaluation = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    assert math.isfinite(evaluation["train_loss"])
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


@pytest.mark.parametrize("settings", [NEVER, ALWAYS])
def test_zero_gradients_are_counted_and_stop_nothing(tmp_path: Path, settings: dict) -> None:
    trainer = make_trainer(tmp_path, **settings, max_skipped_updates=1)
    compute_loss = trainer.compute_loss

    def flat(*args: Any, **kwargs: Any) -> Any:
        found = compute_loss(*args, **kwargs)
        return (0 * found[0], found[1]) if isinstance(found, tuple) else 0 * found

    trainer.compute_loss = flat
    trainer.train()
    assert trainer.faults.counts["zero_gradient"] == 6
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_too_many_in_a_row_stop_the_run_with_good_weights(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **{**ALWAYS, "max_steps": 20}, max_skipped_updates=3)
    poison_from = 4
    compute_loss = trainer.compute_loss
    good: list[list[torch.Tensor]] = []

    def poisoned(model: Any, *args: Any, **kwargs: Any) -> Any:
        found = compute_loss(model, *args, **kwargs)
        if trainer.state.global_step + 1 < poison_from:
            return found
        if not good:
            good.append([p.detach().clone() for p in model.parameters()])
        return (found[0] * math.nan, found[1]) if isinstance(found, tuple) else found * math.nan

    trainer.compute_loss = poisoned
    with pytest.raises(TrainingFault, match="update 6 and of the 2 before it"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(good[0], trainer.model.parameters(), strict=True))


@pytest.mark.parametrize("settings", [NEVER, ALWAYS])
def test_a_batch_of_one(tmp_path: Path, settings: dict) -> None:
    trainer = make_trainer(tmp_path, train=Images(3), **{**settings, "per_device_train_batch_size": 1})
    trainer.train()
    assert sum(trainer.faults.counts.values()) == 0
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_memory_that_runs_out_in_the_second_pass_is_counted_and_a_smaller_batch_tried(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, switch="fixed", switch_at="0", auto_find_batch_size=True, num_train_epochs=1,
        per_device_train_batch_size=8,
    )  # fmt: skip
    start = [p.detach().clone() for p in trainer.model.parameters()]
    at_second_try: list[torch.Tensor] = []
    compute_loss = trainer.compute_loss

    def narrow(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if trainer._in_second_pass and len(inputs["labels"]) > 7:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        if len(inputs["labels"]) <= 7 and not at_second_try:
            at_second_try.extend(p.detach().clone() for p in model.parameters())
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = narrow
    trainer.train()
    assert trainer.faults.counts["out_of_memory"] == 1
    assert all(torch.equal(a, b) for a, b in zip(start, at_second_try, strict=True))
    rts = trainer.two_pass_optimizer
    assert rts is not None
    assert rts.stats()["step"] == trainer.state.global_step == trainer.state.max_steps


def test_a_resumed_run_still_counts_the_passes_of_skipped_updates(tmp_path: Path) -> None:
    settings = {**ALWAYS, "save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    whole = make_trainer(tmp_path, **settings)
    poison(whole, math.nan, update=2)
    whole.train()
    resumed = make_trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.gradient_evaluations == whole.gradient_evaluations == 12
    assert training_logs(resumed)[-1]["skipped_updates"] == 1


def test_nothing_of_a_run_that_was_broken_off_is_left_in_the_next(tmp_path: Path) -> None:
    class BreakOff(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                raise KeyboardInterrupt

    settings = {**ALWAYS, "learning_rate": 0.0, "logging_steps": 3, "eval_strategy": "steps", "eval_steps": 6}
    fresh, again = (make_trainer(tmp_path, **settings) for _ in range(2))
    for trainer in (fresh, again):
        poison(trainer, math.nan, update=2)  # the passes of a skipped update are counted apart
    fresh.train()
    breaks = BreakOff()
    again.add_callback(breaks)
    with pytest.raises(KeyboardInterrupt):
        again.train()
    again.remove_callback(breaks)
    again.train()
    for entry, other in zip(fresh.state.log_history[:3], again.state.log_history[:3], strict=True):
        timeless = {key for key in entry if "runtime" not in key and "per_second" not in key}
        assert {key: entry[key] for key in timeless} == {key: other[key] for key in timeless}
