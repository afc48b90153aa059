"""RTSTrainer with all else the Trainer offers: evaluations, best weights, logs, other optimizers and settings."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset
from training_for_tests import Images, make_arguments, make_model, make_trainer, training_logs
from transformers import (
    EarlyStoppingCallback,
    GPT2Config,
    GPT2LMHeadModel,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from rts_hf import RTSPUGD, GradientVarianceSwitch, RTSTrainer


def test_the_gap_switch_hears_every_evaluation(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, switch="generalization_gap", switch_base_epochs=2, switch_every=1, switch_mu=1e-3,
        eval_strategy="epoch", num_train_epochs=4, gradient_accumulation_steps=2,
    )  # fmt: skip
    trainer.train()
    rts = trainer.two_pass_optimizer
    assert rts is not None
    logs = training_logs(trainer)
    evaluations = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    images = (8, 8, 8, 2)  # of the updates of an epoch: each image counts the same
    losses = [sum(n * e["loss"] for n, e in zip(images, logs[i : i + 4], strict=True)) / 26 for i in (0, 4, 8)]
    shown = [entry["train_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert shown[:3] == pytest.approx(losses, abs=1e-5)
    gaps = [abs(a - b) for a, b in zip(losses, evaluations, strict=False)]
    assert rts.switch.base_gap == pytest.approx(sum(gaps[:2]) / 2, abs=1e-5)
    assert rts.switch.gap == pytest.approx(gaps[2], abs=1e-5)
    assert trainer.switched_at() == 12


def test_evaluating_by_hand_does_not_feed_the_switch(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, switch="generalization_gap", eval_strategy="epoch", num_train_epochs=7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    rts = trainer.two_pass_optimizer
    assert rts is not None
    before = rts.switch.state_dict()
    trainer.evaluate(Images(9, seed=5))
    trainer.predict(Images(9, seed=5))
    assert rts.switch.state_dict() == before


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_scheduler_type": "cosine", "warmup_steps": 4},
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"},
        {"label_smoothing_factor": 0.1},
        {"max_grad_norm": 1.0},
        {"bf16": True},
        {"gradient_accumulation_steps": 4, "max_steps": 3},
        {"opt": "lookahead_rts_pugd"},
        {"base": "adamw", "learning_rate": 1e-3, "adam_beta1": 0.8},
    ],
    ids=lambda settings: ",".join(settings),
)
def test_works_with(tmp_path: Path, settings: dict) -> None:
    trainer = make_trainer(tmp_path, switch="fixed", switch_at="1", **settings)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    output = trainer.train()
    rts = trainer.two_pass_optimizer
    assert rts is not None
    steps = settings.get("max_steps", 14)
    assert (output.global_step, rts.stats()["step"], rts.total_steps) == (steps, steps, steps)
    assert rts.stats()["gradient_evaluations"] == 2 * steps - 1
    assert not any(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    if "warmup_steps" in settings:
        rates = [entry["learning_rate"] for entry in training_logs(trainer)]
        assert rates[0] == 0
        assert max(rates) == rates[settings["warmup_steps"]] == 0.05


def test_best_model_and_early_stopping(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, switch="fixed", switch_at="0", num_train_epochs=12, eval_strategy="epoch", save_strategy="epoch",
        load_best_model_at_end=True, metric_for_best_model="accuracy", gradient_accumulation_steps=2,
        callbacks=[EarlyStoppingCallback(1)],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    assert trainer.state.global_step < 12 * 4
    best = max(entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry)
    assert trainer.evaluate()["eval_accuracy"] == best == trainer.state.best_metric


@pytest.mark.parametrize(("accuracies", "best"), [([0.5, 0.9, 0.7, 0.9], 16), ([0.9, 0.5, 0.5, 0.5], 4)])
def test_of_equally_good_weights_the_latest_are_kept(tmp_path: Path, accuracies: list[float], best: int) -> None:
    left = iter(accuracies)
    trainer = make_trainer(
        tmp_path, switch="fixed", switch_at="10", num_train_epochs=4, eval_strategy="epoch", save_strategy="epoch",
        load_best_model_at_end=True, metric_for_best_model="accuracy", gradient_accumulation_steps=2,
        compute_metrics=lambda prediction: {"accuracy": next(left)},
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_global_step == best
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    expected = [] if best > 10 else ["The weights kept are those of update 4, before the switch"]
    assert [remark.split(":")[0] for remark in trainer.remarks()] == expected


def test_tensorboard_gets_the_figures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(tmp_path, switch="fixed", switch_at="2", report_to="tensorboard")
    trainer.train()
    events = next(tmp_path.rglob("events.out.tfevents*"))
    accumulator = EventAccumulator(str(events.parent)).Reload()
    names = set(accumulator.Tags()["scalars"])
    assert {"train/alpha_r", "train/alpha_s", "train/phase", "train/sharpness", "train/epsilon_norm"} <= names
    assert len(accumulator.Scalars("train/sharpness")) == 12


def test_a_ready_optimizer_is_used_as_it_is(tmp_path: Path) -> None:
    model = make_model()
    optimizer = RTSPUGD(model.parameters(), lr=0.01, switch=GradientVarianceSwitch(gamma=5.0), total_steps=99)
    trainer = make_trainer(tmp_path, model, optimizers=(optimizer, None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    assert trainer.two_pass_optimizer is optimizer
    assert optimizer.total_steps == 99


@pytest.mark.parametrize(
    ("opt", "evaluations"), [("sgd", 4), ("adamw", 4), ("pugd", 8), ("sam", 8), ("asam", 8), ("lion", 4)]
)
def test_every_optimizer_runs_through_it(tmp_path: Path, opt: str, evaluations: int) -> None:
    trainer = make_trainer(tmp_path, opt=opt, learning_rate=1e-3, max_steps=4)
    trainer.train()
    assert trainer.gradient_evaluations == evaluations
    assert [entry["gradient_evaluations"] for entry in training_logs(trainer)][-1] == evaluations


def test_groups_are_timms(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_model("resnet_micro_small"), weight_decay=0.1)
    groups = trainer.create_optimizer().param_groups
    assert [group["weight_decay"] for group in groups] == [0.0, 0.1]
    assert all(p.ndim <= 1 for p in groups[0]["params"])
    assert all(p.ndim > 1 for p in groups[1]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(trainer.model.parameters()))


def test_parameters_outside_the_backbone_are_trained_too(tmp_path: Path) -> None:
    model = make_model()
    model.extra = torch.nn.Linear(3, 3)
    groups = make_trainer(tmp_path, model).create_optimizer().param_groups
    optimized = {id(p) for group in groups for p in group["params"]}
    assert all(id(p) in optimized for p in model.parameters())


def test_labels_that_are_not_classes_get_no_accuracy(tmp_path: Path) -> None:
    class Soft(Images):
        def __getitem__(self, index: int) -> dict:
            item = super().__getitem__(index)
            return {**item, "labels": torch.nn.functional.one_hot(item["labels"], 3).float()}

    model = make_model()
    model.config.problem_type = "multi_label_classification"
    trainer = make_trainer(tmp_path, model, Soft(), max_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    assert all("accuracy" not in entry for entry in training_logs(trainer))


def test_the_evaluation_loss_is_not_smoothed(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, label_smoothing_factor=0.3)
    plain = make_trainer(tmp_path, trainer.model)
    assert trainer.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    assert trainer.compute_loss(trainer.model, dict(batch)) != plain.compute_loss(trainer.model, dict(batch))


def test_the_training_loss_is_measured_as_the_validation_loss_is(tmp_path: Path) -> None:
    images = Images(8)
    settings = {"learning_rate": 0.0, "label_smoothing_factor": 0.3, "num_train_epochs": 1, "eval_strategy": "epoch"}
    trainer = make_trainer(tmp_path, train=images, opt="sgd", per_device_train_batch_size=3, **settings)
    trainer.train()
    logged = next(entry["train_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
    assert logged == pytest.approx(trainer.evaluate(images)["eval_loss"], rel=1e-5)


def test_several_evaluation_sets_are_refused_for_the_gap_switch(tmp_path: Path) -> None:
    arguments = make_arguments(tmp_path, switch="generalization_gap", eval_strategy="epoch")
    with pytest.raises(ValueError, match="eval_dataset holds 2 data sets"):
        RTSTrainer(
            model=make_model(), args=arguments, train_dataset=Images(), eval_dataset={"a": Images(), "b": Images()}
        )


def test_a_run_that_never_switches_says_so(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, switch="fixed", switch_at="1.0")
    with pytest.warns(UserWarning, match=r"FixedSwitch\(at=1.0\) never fired: this run was plain sgd"):
        trainer.train()
    assert trainer.switched_at() is None
    assert len(trainer.remarks()) == 1


def test_a_horizon_too_short_for_the_gap_switch_warns_at_the_start(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, switch="generalization_gap", eval_strategy="epoch", num_train_epochs=6)
    with pytest.warns(UserWarning, match="first compares after epoch 6, but the run has 6 epochs"):
        trainer.create_optimizer_and_scheduler(42)


def test_plain_training_arguments_are_refused(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="RTSTrainer needs an RTSTrainingArguments"):
        RTSTrainer(model=make_model(), args=arguments, train_dataset=Images())


def test_arguments_survive_a_dictionary(tmp_path: Path) -> None:
    arguments = make_arguments(tmp_path, switch="fixed", switch_at="0.25")
    assert arguments.to_dict()["switch_at"] == 0.25


@pytest.mark.parametrize("every", [1, 2])
def test_the_gradient_norm_is_logged_as_it_was_before_clipping(tmp_path: Path, every: int) -> None:
    settings = {"switch": "fixed", "switch_at": "3", "max_steps": 7, "learning_rate": 0.0, "perturb_every": every}
    free, clipped = (make_trainer(tmp_path, max_grad_norm=limit, **settings) for limit in (0.0, 0.01))
    for trainer in (free, clipped):
        trainer.train()
    norms = [[entry["gradient_norm"] for entry in training_logs(trainer)] for trainer in (free, clipped)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    assert min(norms[0]) > 0.01


class Stream(IterableDataset[dict[str, torch.Tensor]]):
    """Five batches of four images an epoch, which it does not tell beforehand."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        images = Images(20)
        return (images[index] for index in range(20))


def test_batches_too_few_for_an_update_do_not_reach_into_the_next_epoch(tmp_path: Path) -> None:
    found: list[float] = []
    # two micro-batches an update: the fifth of an epoch is left over
    settings = {"max_steps": 4, "gradient_accumulation_steps": 2, "switch": "fixed", "switch_at": "0"}
    trainer = make_trainer(tmp_path, train=Stream(), **settings)
    step = trainer.training_step

    def watch(*args: Any, **kwargs: Any) -> Any:
        if not found or trainer.state.global_step > len(found) - 1:
            found.append(sum(float(p.grad.abs().sum()) for p in trainer.model.parameters() if p.grad is not None))
        return step(*args, **kwargs)

    trainer.training_step = watch
    trainer.train()
    assert trainer.state.global_step == 4
    assert found == [0.0] * 4


def test_other_models_of_transformers_get_no_metrics_of_classes(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=1)
    arguments = make_arguments(tmp_path)
    trainer = RTSTrainer(model=GPT2LMHeadModel(config), args=arguments, train_dataset=Images())
    assert trainer.compute_metrics is None
    classifier = ViTForImageClassification(
        ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16)
    )
    assert RTSTrainer(model=classifier, args=arguments, train_dataset=Images()).compute_metrics is not None


def test_a_best_model_that_nothing_measures_is_refused_at_once(tmp_path: Path) -> None:
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    with pytest.raises(ValueError, match=r"metric_for_best_model='accuracy' is not measured: Linear .*'loss'"):
        make_trainer(tmp_path, torch.nn.Linear(2, 2), metric_for_best_model="accuracy", **settings)
    make_trainer(tmp_path, torch.nn.Linear(2, 2), metric_for_best_model="loss", **settings)
    make_trainer(tmp_path, torch.nn.Linear(2, 2), compute_metrics=dict, **settings)
