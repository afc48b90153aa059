"""The Trainer with Temperon: SAM in the tail, over which the learning rate falls, at the package's own hand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folder_for_tests import edit_json
from runs_for_tests import SMALL, settings
from training_for_tests import Images, make_arguments, make_model, make_trainer, training_logs

from rts_hf import ModelArguments, train
from rts_hf.comparing.comparison import Comparison
from rts_hf.comparing.method import parse_method
from rts_hf.reports.card import render_card
from rts_hf.training.closure_trainer import ClosureTrainer

TAIL = {"tail_frac": 0.5, "rho": 0.2}


def make(folder: Path, **changes: Any) -> ClosureTrainer:
    arguments = make_arguments(folder, **{"opt": "temperon", "opt_args": TAIL, **changes})
    return ClosureTrainer(model=make_model("test_resnet", drop_rate=0.5), args=arguments, train_dataset=Images())


def test_it_trains_as_this_package_does_with_sam_in_the_tail_and_the_same_schedule(tmp_path: Path) -> None:
    temperon = make(tmp_path / "a")
    temperon.train()
    updates = temperon.state.max_steps
    rates = [entry["learning_rate"] for entry in training_logs(temperon)]
    sam = make_trainer(
        tmp_path / "b", make_model("test_resnet", drop_rate=0.5), opt="sam", switch="fixed", switch_at="7",
        radius_beta_max=0.2, lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": updates - 7, "decay_type": "cosine"},
    )  # fmt: skip
    sam.train()
    assert updates == 14
    assert rates[:8] == [0.05] * 8
    assert rates == pytest.approx([entry["learning_rate"] for entry in training_logs(sam)])
    assert temperon.gradient_evaluations == sam.gradient_evaluations == 21
    own = sam.model.state_dict()  # type: ignore[union-attr]
    for name, value in temperon.model.state_dict().items():  # type: ignore[union-attr]
        torch.testing.assert_close(value, own[name], rtol=1e-3, atol=1e-4)  # restored by subtraction, not from a copy
    plain = make(tmp_path / "c", opt_args={**TAIL, "rho": 0.0})
    plain.train()
    assert any(
        not torch.allclose(value, own[name], rtol=1e-3, atol=1e-4)
        for name, value in plain.model.state_dict().items()  # type: ignore[union-attr]
    )


def test_a_straight_fall_is_the_package_s_own_too_and_a_second_training_begins_anew(tmp_path: Path) -> None:
    trainer = make(tmp_path, lr_scheduler_type="linear")
    for _ in range(2):
        trainer.train()
        assert trainer.gradient_evaluations == 21
    rates = [entry["learning_rate"] for entry in training_logs(trainer)][-14:]
    assert rates == pytest.approx([0.05] * 8 + [0.05 * (1 - i / 7) for i in range(1, 7)])


def test_a_run_of_the_training_command_counts_and_goes_on(tmp_path: Path) -> None:
    words: dict[str, Any] = {"opt": "temperon", "opt_args": dict(TAIL), "seed": 1, "save_total_limit": 9}
    words["draw_figures"] = False  # more work than such a training
    model = ModelArguments(model="test_resnet")
    whole = train(model, SMALL, settings(tmp_path / "whole", **words))
    assert (whole["updates"], whole["gradient_evaluations"]) == (15, 22)
    assert whole["optimizer"]["name"] == "temperon"
    assert "`temperon`, is SGD with Nesterov momentum whose tail takes a" in render_card(tmp_path / "whole")
    part = tmp_path / "part"
    shutil.copytree(tmp_path / "whole", part)
    for later in ("checkpoint-10", "checkpoint-15"):
        shutil.rmtree(part / later)
    edit_json(part / "run.json", lambda record: record.update(status="interrupted"))
    again = train(model, SMALL, settings(part, **words, resume_from_checkpoint="last"))
    assert again["resumed_at"] == [5]
    assert (again["updates"], again["gradient_evaluations"]) == (15, 22)
    assert again["metrics"] == whole["metrics"]
    plan = Comparison(
        [parse_method("sgd"), parse_method("temperon")], seeds=[0], budget=3, output_dir=tmp_path / "c",
        words=("--max_train_samples", "120", "--use_cpu", "--per_device_train_batch_size", "24"),
    )  # fmt: skip
    assert [method.updates for method in plan.methods] == [
        15,
        11,
    ]  # the last 3 with two gradients; of 12 it were 4, and 16 in all


@pytest.mark.parametrize(("update", "is_second"), [(3, False), (9, True)])
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(tmp_path: Path, update: int, is_second: bool) -> None:
    class Faulty(ClosureTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            is_here = self.state.global_step + 1 == update and self._in_second_pass is is_second
            return loss * float("nan") if is_here else loss

    arguments = make_arguments(tmp_path, opt="temperon", opt_args=dict(TAIL))
    trainer = Faulty(model=make_model("test_resnet"), args=arguments, train_dataset=Images())
    trainer.train()
    assert trainer.faults.counts["nonfinite_gradient"] == 1
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())  # type: ignore[union-attr]
    assert trainer.gradient_evaluations == (21 if is_second else 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps=2 is not there for opt='temperon'"),
        ({"max_grad_norm": 1.0}, "max_grad_norm=1.0 is not there"),
        ({"warmup_steps": 3}, "warmup_steps=3 is not there"),
        ({"lr_scheduler_type": "constant"}, "is not one of opt='temperon': cosine, linear"),
        ({"opt_args": {"tail_frac": 0}}, "tail_frac=0 leaves opt='temperon' neither tail nor anneal"),
        ({"opt_args": {"tail_frac": 3}}, "tail_frac must be in"),
    ],
)
def test_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **changes)
