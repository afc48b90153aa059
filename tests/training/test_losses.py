"""Whatever the loss and the labels, RTSTrainer trains as transformers' Trainer does before the switch, and as a loop
by hand after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands_for_tests import run_worker
from losses_worker import ACCUMULATED, CASES, SMOOTHING, Soft, differences, function, train
from torch.nn.functional import cross_entropy
from training_for_tests import Images, make_model
from transformers import Trainer

import rts_hf


def is_as_plain(case: tuple[str, int, str], found: dict[str, float]) -> bool:
    if case[0] == "none" and case[2] == "smoothed":
        found = {**found, "eval_loss": 0.0}  # which RTSTrainer does not smooth
    return max(found.values()) <= 1e-6


@pytest.mark.parametrize("case", CASES, ids=str)
def test_before_the_switch_as_the_plain_trainer(case: tuple[str, int, str]) -> None:
    found = differences(*case)
    assert is_as_plain(case, found), found


def test_on_two_processes_too(tmp_path: Path) -> None:
    run_worker("losses_worker.py", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == len(ACCUMULATED)
    assert all(is_as_plain(case, found[repr(case)]) for case in ACCUMULATED), found


@pytest.mark.parametrize("case", ACCUMULATED, ids=str)
def test_after_the_switch_as_a_loop_by_hand(case: tuple[str, int, str]) -> None:
    loss, accumulation, labels = case
    settings: dict[str, Any] = {**rts_hf.PAPER, "switch_at": 0, "opt": "rts_pugd", "base": "momentum"}
    trainer = train(rts_hf.RTSTrainer, loss, accumulation, labels, **settings)

    model = make_model("test_vit").train()
    kinds = {"lr": 0.05, "weight_decay": 0.0, "base": "momentum", "momentum": 0.0}
    optimizer = rts_hf.RTSPUGD(model.parameters(), total_steps=2, **{**rts_hf.PAPER, "switch_at": 0, **kinds})
    images: Any = (Soft if labels == "soft" else Images)(16)
    order = torch.cat([batch["index"] for batch in _order(trainer)])
    factor = 1.5 if loss in ("calls super", "does not") else 1.0
    if loss == "function" and labels == "soft":
        factor = 1 / 3  # transformers tells a function how many numbers the labels have
    smoothing = SMOOTHING if labels == "smoothed" and loss != "function" else 0.0

    def run(indices: torch.Tensor) -> None:
        items = [images[int(index)] for index in indices]
        logits = model(pixel_values=torch.stack([item["pixel_values"] for item in items])).logits
        targets = torch.stack([item["labels"] for item in items])
        (factor * cross_entropy(logits, targets, label_smoothing=smoothing)).backward()

    for indices in order.split(8):
        run(indices)
        with optimizer.perturbed():
            run(indices)
        optimizer.step()
        optimizer.zero_grad()
    assert trainer.gradient_evaluations == 4
    for trained, expected in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(trained, expected, rtol=0, atol=2e-6)


def _order(trainer: Any) -> Any:
    """Return the order in which the training images come, by a data set of their places."""

    class Places(Images):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"index": torch.tensor(index)}

    trainer.train_dataset = Places(16)
    torch.manual_seed(trainer.args.seed)
    return trainer.get_train_dataloader()


def test_the_gap_switch_hears_of_soft_labels_and_of_a_loss_of_ones_own() -> None:
    settings = {"opt": "rts_pugd", "switch": "generalization_gap", "switch_base_epochs": 1, "switch_every": 1}
    for loss, labels in (("none", "soft"), ("calls super", "soft"), ("does not", "hard"), ("function", "hard")):
        trainer = train(rts_hf.RTSTrainer, loss, 1, labels, **settings, switch_mu=1e-6, eval_steps=1)
        assert trainer.two_pass_optimizer.phase == "pugd", (loss, labels)


def test_a_function_of_the_loss_is_given_what_transformers_counts() -> None:
    counted = []

    def watch(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        counted.append(num_items_in_batch)
        return function(outputs, labels, num_items_in_batch)

    trainer = train(rts_hf.RTSTrainer, "function", 1, "soft")
    trainer.compute_loss_func = watch
    trainer.train()
    assert int(counted[0]) == 8 * 3


@pytest.mark.skipif(
    not hasattr(Trainer, "loss_is_scaled_for_ga"), reason="this transformers cannot be told how a loss is scaled"
)
@pytest.mark.parametrize("way", ["loss set on the object", "step without the number", "batches without the number"])
def test_a_loss_that_is_not_of_the_whole_updates_images_is_averaged(way: str) -> None:
    class Odd(rts_hf.RTSTrainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
            return super().training_step(model, inputs, None if way.startswith("step") else num_items_in_batch)

        def get_batch_samples(self, *args: Any) -> Any:
            samples, count = super().get_batch_samples(*args)
            return samples, None if way.startswith("batches") else count

        def train(self, *args: Any, **kwargs: Any) -> Any:
            if way.startswith("loss"):
                self.compute_loss = _one_micro_batch.__get__(self)  # type: ignore[method-assign]
            return super().train(*args, **kwargs)

    odd, plain = train(Odd, "none", 4, "hard"), train(rts_hf.RTSTrainer, "none", 4, "hard")
    for one, other in zip(odd.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def _one_micro_batch(
    self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
) -> Any:
    outputs = model(pixel_values=inputs["pixel_values"])
    loss = cross_entropy(outputs.logits, inputs["labels"])
    return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("labels", ["soft", "columns", "some ignored"])
def test_evaluations_on_other_labels_than_classes_go_through(labels: str) -> None:
    class Other(Soft):
        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            item = super().__getitem__(index)
            hard = Images.__getitem__(self, index)["labels"]
            ignored = torch.where(torch.tensor(index % 3 == 0), -100, hard)
            return {**item, "labels": {"soft": item["labels"], "columns": hard[None], "some ignored": ignored}[labels]}

    trainer = train(rts_hf.RTSTrainer, "none", 1, "hard")
    found = trainer.evaluate(Other(12))
    assert found["eval_loss"] > 0
    assert ("eval_accuracy" in found) == (labels != "soft")
    trainer.train_dataset = Other(16)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "train_loss" in entry and "eval_loss" in entry]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[0]["train_loss"] == pytest.approx(sum(losses[:2]) / 2, rel=0.3)
