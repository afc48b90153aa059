"""RTSTrainer: the same numbers as a loop by hand, from two passes over the same window of micro-batches."""

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from torch.nn.functional import cross_entropy
from training_for_tests import Images, make_arguments, make_model, make_trainer, training_logs
from transformers import Trainer, TrainerCallback, TrainingArguments

from rts_hf import FixedSwitch, RTSTrainer

RTS = {
    "radius": "cosine_annealing", "radius_beta_max": 0.5, "scale": "sine_heating", "scale_beta_max": 0.7,
    "perturb_every": 1,
}  # fmt: skip


def by_hand(
    folder: Path, model: Any, data: Images, accumulation: int, epochs: int, switch_at: int, batch: int = 4
) -> list[Any]:
    """Train as the Trainer should: the same order of batches, windows of micro-batches, the shorter one at the end."""
    order = order_of_batches(folder, data, batch, epochs)
    windows = [epoch[i : i + accumulation] for epoch in order for i in range(0, len(epoch), accumulation)]
    optimizer = create_optimizer_v2(
        model.timm_model, opt="rts_pugd", lr=0.05, weight_decay=5e-4, switch=FixedSwitch(switch_at), **RTS
    )
    optimizer.total_steps = len(windows)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(windows))
    model.train()

    def backward(window: list) -> float:
        total = 0.0
        for rows in window:
            loss = model(pixel_values=data.pixels[rows], labels=data.labels[rows]).loss / len(window)
            loss.backward()
            total += loss.item()
        return total

    losses = []
    for window in windows:
        first = backward(window)
        second = None
        if optimizer.perturbing:
            with optimizer.perturbed():
                second = backward(window)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        losses.append((first, second))
    return losses


def order_of_batches(folder: Path, data: Images, batch: int, epochs: int, seed: int = 3) -> list[list[list[int]]]:
    """Ask the plain Trainer's own data loader in which order it would serve the images."""

    class Numbered(Images):
        def __getitem__(self, index: int) -> dict:
            return {**super().__getitem__(index), "index": torch.tensor(index)}

    seen: list[list[list[int]]] = []

    class Recorder(Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            epoch = int(self.state.epoch or 0)
            while len(seen) <= epoch:
                seen.append([])
            seen[epoch].append(inputs["index"].tolist())
            return torch.zeros(())

    args = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=batch, num_train_epochs=epochs, seed=seed, use_cpu=True,
        save_strategy="no", report_to="none", disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Recorder(model=make_model(), args=args, train_dataset=Numbered(len(data))).train()
    return seen


@pytest.mark.parametrize("switch_at", [0, 3, 100])  # perturbed throughout, across the switch, plain throughout
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.filterwarnings("ignore:This run will never perturb", "ignore:The switch", "ignore:total_steps is unknown")
def test_equals_a_loop_by_hand_bit_for_bit(tmp_path: Path, switch_at: int, accumulation: int) -> None:
    data = Images()  # 7 batches of 4, the last with 2 images: windows of 3, 3 and 1
    trainer = make_trainer(
        tmp_path, make_model(), data, switch="fixed", switch_at=str(switch_at), lr_scheduler_type="linear",
        gradient_accumulation_steps=accumulation, **RTS,
    )  # fmt: skip
    trainer.train()
    model = make_model()
    losses = by_hand(tmp_path, model, data, accumulation, epochs=2, switch_at=switch_at)
    logs = training_logs(trainer)
    assert len(logs) == len(losses) == (14 if accumulation == 1 else 6)
    for entry, (first, second) in zip(logs, losses, strict=True):
        assert entry["loss"] == pytest.approx(first, abs=1e-6)
        if second is not None:
            assert entry["sharpness"] == pytest.approx(second - first, abs=1e-6)
        assert ("sharpness" in entry) == (second is not None)
    for a, b in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0 if accumulation == 1 else 1e-7)


def test_logs_tell_the_optimizers_story(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, switch="fixed", switch_at="5", **RTS)
    trainer.train()
    logs = training_logs(trainer)
    rts = trainer.two_pass_optimizer
    assert rts is not None
    radius, scale = rts.radius_schedule, rts.scale_schedule
    for step, entry in enumerate(logs):
        assert 0 <= entry["accuracy"] <= 1
        assert entry["alpha_r"] == radius(step / 13)
        assert entry["alpha_s"] == scale(step / 13)
        assert entry["gradient_norm"] > 0
        assert entry["epsilon_norm"] == (pytest.approx(radius(step / 13), rel=1e-5) if step >= 5 else 0)
        assert entry["gradient_evaluations"] == (step + 1) + max(0, step - 4)
    assert [entry["phase"] for entry in logs] == [0] * 5 + [1] * 9
    assert trainer.gradient_evaluations == 14 + 9
    assert trainer.switched_at() == 5
    assert trainer.remarks() == []


def test_a_staged_run_tells_unit_steps_from_perturbed_ones(tmp_path: Path) -> None:
    staged = {"switch": "staged", "switch_unit_from": "0.2", "switch_base_epochs": 1, "switch_every": 1}
    often = {"eval_strategy": "steps", "eval_steps": 2}
    trainer = make_trainer(tmp_path / "grown", **staged, **often, switch_mu=1e-9, **RTS)  # any gap is larger
    trainer.train()
    spent = [entry["gradient_evaluations"] for entry in training_logs(trainer)]
    assert spent == [*range(1, 5), *range(6, 25, 2)]
    assert (trainer.two_pass_optimizer.switch_step, trainer.switched_at()) == (3, 4)  # a fifth of 14, rounded up
    assert trainer.gradient_evaluations == 14 + 10
    trainer = make_trainer(tmp_path / "not", **staged, **often, switch_mu=1e9, **RTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that the gap does not grow is no fault
        trainer.train()
    assert (trainer.gradient_evaluations, trainer.remarks()) == (14, [])
    few = {**staged, "switch_base_epochs": 9}
    trainer = make_trainer(tmp_path / "few", **few, eval_strategy="epoch", **RTS)
    with pytest.warns(UserWarning, match="will never perturb: StagedSwitch.* first compares after epoch 10"):
        trainer.train()
    assert trainer.remarks() == [
        "The switch had nothing to compare, so no update was perturbed: 2 evaluations, and 10 are needed."
    ]
    trainer = make_trainer(tmp_path / "deaf", **staged, **RTS)
    with pytest.warns(UserWarning, match="no validation loss has come in 8 steps"):
        trainer.train()


def test_training_accuracy_is_that_of_the_first_pass(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, switch="fixed", switch_at="0", num_train_epochs=1, logging_steps=7)
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            seen.append(copy.deepcopy(model).eval())

    trainer.add_callback(Watch())
    trainer.train()
    data, right = Images(), 0
    for model, rows in zip(seen, order_of_batches(tmp_path, data, 4, 1)[0], strict=True):
        right += (model(data.pixels[rows]).logits.argmax(-1) == data.labels[rows]).sum().item()
    assert training_logs(trainer)[0]["accuracy"] == pytest.approx(right / len(data))


@pytest.mark.parametrize("same", [True, False])
def test_both_passes_see_the_same_dropout(tmp_path: Path, same: bool) -> None:
    """At radius 0 the second pass repeats the first, so the losses are equal if and only if the masks are."""
    model = make_model("test_vit", drop_rate=0.5, drop_path_rate=0.5)
    still = {"radius": "constant", "radius_beta_max": 0.0, "switch": "fixed", "switch_at": "0"}
    trainer = make_trainer(tmp_path, model, same_dropout=same, gradient_accumulation_steps=2, **still)
    trainer.train()
    sharpness = [entry["sharpness"] for entry in training_logs(trainer)]
    assert all(value == 0 for value in sharpness) == same
    assert any(value != 0 for value in sharpness) != same


@pytest.mark.parametrize("first_only", [True, False])
def test_batchnorm_statistics_come_from_the_first_pass_only(tmp_path: Path, first_only: bool) -> None:
    model = make_model("resnet_micro_small")
    reference = make_model("resnet_micro_small")
    trainer = make_trainer(
        tmp_path, model, batchnorm_first_pass_only=first_only, switch="fixed", switch_at="0", max_steps=1
    )
    trainer.train()
    rows = order_of_batches(tmp_path, Images(), 4, 1)[0][0]
    reference.train()(Images().pixels[rows])
    norms = [(name, module) for name, module in model.named_modules() if hasattr(module, "running_mean")]
    assert norms
    for name, module in norms:
        expected = reference.get_submodule(name)
        assert int(module.num_batches_tracked) == (1 if first_only else 2)
        assert torch.allclose(module.running_mean, expected.running_mean, atol=1e-7) == first_only


def test_the_second_passs_operations_are_counted(tmp_path: Path) -> None:
    flos = {}
    for at in ("0", "7", "1.0"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = make_trainer(tmp_path, switch="fixed", switch_at=at, gradient_accumulation_steps=1)
            trainer.train()
        flos[at] = trainer.state.total_flos
    assert flos["0"] == 2 * flos["1.0"] > 0
    assert flos["7"] == pytest.approx(1.5 * flos["1.0"], rel=1e-6)


def test_an_exception_between_the_passes_leaves_the_weights(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, switch="fixed", switch_at="0", gradient_accumulation_steps=2)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    calls = []
    compute_loss = trainer.compute_loss

    def fail_at_second(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise torch.cuda.OutOfMemoryError("second pass")
        return compute_loss(*args, **kwargs)

    trainer.compute_loss = fail_at_second
    with pytest.raises(torch.cuda.OutOfMemoryError):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert not trainer._in_second_pass
    assert trainer.accelerator.sync_gradients


def test_gradients_are_synchronized_on_the_last_micro_batch_of_each_pass_only(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, switch="fixed", switch_at="0", gradient_accumulation_steps=3, max_steps=1)
    flags = []
    compute_loss = trainer.compute_loss

    def watch(*args, **kwargs):
        flags.append((trainer._in_second_pass, trainer.accelerator.sync_gradients))
        return compute_loss(*args, **kwargs)

    trainer.compute_loss = watch
    trainer.train()
    one_pass = [False, False, True]
    assert flags == [*((False, flag) for flag in one_pass), *((True, flag) for flag in one_pass)]


def test_a_window_that_was_broken_off_is_forgotten(tmp_path: Path) -> None:
    class StopInWindow(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            control.should_epoch_stop = state.global_step == 1 and not self.stopped
            self.stopped = self.stopped or control.should_epoch_stop
            return control

        stopped = False

    trainer = make_trainer(
        tmp_path, switch="fixed", switch_at="0", gradient_accumulation_steps=3, callbacks=[StopInWindow()]
    )
    sizes = []
    run_second_pass = trainer._run_second_pass

    def watch(*args, **kwargs):
        sizes.append(len(trainer._window))
        return run_second_pass(*args, **kwargs)

    trainer._run_second_pass = watch
    trainer.train()
    assert set(sizes) <= {1, 3}


def test_training_again_starts_the_schedules_again(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, switch="fixed", switch_at="0.5")
    trainer.train()
    trainer.train()
    rts = trainer.two_pass_optimizer
    assert rts is not None
    assert (rts.stats()["step"], rts.total_steps, trainer.switched_at(), trainer.gradient_evaluations) == (
        14,
        14,
        7,
        21,
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_short_last_window_weighs_its_images_not_its_micro_batches(tmp_path: Path, smoothing: float) -> None:
    def train(folder: str, **settings: Any) -> torch.Tensor:
        settings = {"switch": "fixed", "switch_at": "3", "radius_beta_max": 0.5, **settings}
        trainer = make_trainer(tmp_path / folder, train=Images(22), label_smoothing_factor=smoothing, **settings)
        trainer.train()
        assert trainer.state.global_step == 6
        return torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).double()

    whole = train("whole", per_device_train_batch_size=8)  # the last of 6 images
    parts = train("parts", per_device_train_batch_size=4, gradient_accumulation_steps=2)  # the last of 4 and 2
    assert (whole - parts).norm() / whole.norm() <= 1e-6


def test_timms_mixup_inside_the_loss_mixes_alike_in_both_passes(tmp_path: Path) -> None:
    """It draws from numpy and mixes in place."""
    seen = []

    class Mixing(RTSTrainer):
        mix = Mixup(mixup_alpha=0.8, prob=0.7, num_classes=3)

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            x, y = self.mix(inputs["pixel_values"], inputs["labels"])
            seen.append((x.clone(), y.clone()))
            outputs = model(pixel_values=x)
            loss = cross_entropy(outputs.logits, y)
            return (loss, outputs) if return_outputs else loss

    np.random.seed(0)
    args = make_arguments(tmp_path, switch="fixed", switch_at=0, max_steps=6, gradient_accumulation_steps=2)
    Mixing(make_model(), args, train_dataset=Images(48)).train()
    windows = [seen[place : place + 4] for place in range(0, len(seen), 4)]
    assert len(windows) == 6
    for first, second, again, again2 in windows:
        assert all(map(torch.equal, first + second, again + again2))
    assert not torch.equal(windows[0][0][0], windows[1][0][0])


def test_a_first_change_of_inputs_that_comes_late_is_told(tmp_path: Path) -> None:
    class Late(RTSTrainer):
        passes = 0

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            Late.passes += 1
            if Late.passes > 50:
                inputs["pixel_values"].mul_(0.5)
            return super().compute_loss(model, inputs, *args, **kwargs)

    args = make_arguments(tmp_path, switch="fixed", switch_at=0, max_steps=30, num_train_epochs=9)
    with pytest.warns(UserWarning, match="changed its inputs in place") as said:
        Late(make_model(), args, train_dataset=Images()).train()
    assert len([each for each in said if "in place" in str(each.message)]) == 1


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "cosine_with_min_lr", "polynomial"])
def test_layer_decay_reaches_the_learning_rate_under_every_schedule(tmp_path: Path, schedule: str) -> None:
    more = {"lr_scheduler_kwargs": {"min_lr": 0.01}} if schedule == "cosine_with_min_lr" else {}
    settings = {"lr_scheduler_type": schedule, "opt_args": {"layer_decay": 0.5}, **more}
    saves = {"save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(tmp_path, max_steps=4, **settings, **saves)
    trainer.train()
    resumed = make_trainer(tmp_path, max_steps=4, **settings, **saves)
    resumed.train(str(tmp_path / "checkpoint-2"))
    for each in (trainer, resumed):
        optimizer = each.two_pass_optimizer
        assert optimizer is not None
        whole = next(group["lr"] for group in optimizer.param_groups if group["lr_scale"] == 1)
        assert len({group["lr_scale"] for group in optimizer.param_groups}) > 2
        for group in optimizer.param_groups:
            assert group["initial_lr"] == pytest.approx(0.05 * group["lr_scale"])
            assert group["lr"] == pytest.approx(whole * group["lr_scale"])
    assert all(map(torch.equal, trainer.model.parameters(), resumed.model.parameters()))
