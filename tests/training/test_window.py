"""A second pass over a share of each micro-batch: which images, with which weight, at which cost."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor
from torch.nn.functional import cross_entropy
from training_for_tests import Images, make_arguments, make_model, make_trainer, stopped, training_logs
from transformers import ViTConfig, ViTForImageClassification

from rts_hf import FixedSwitch, RTSTrainer, RTSTrainingArguments
from rts_hf.comparing.method import gradient_evaluations
from rts_hf.training.checkpoints import mark_complete
from rts_hf.training.window import OperationCounts, first_images, images_taken

SHAPE = {"radius": "constant", "radius_beta_max": 0.5, "scale": "constant", "scale_beta_max": 0.7}  # never 0
ALWAYS = {"switch": "fixed", "switch_at": "0", **SHAPE}
IN_ORDER = {"train_sampling_strategy": "sequential", "num_train_epochs": 1, "lr_scheduler_type": "constant"}


class Twice(Images):
    """Images of which each micro-batch of four, and a last one of two, holds two halves that are equal."""

    def __init__(self) -> None:
        super().__init__(11)
        rows = [row for start in range(0, 11, 2) for row in 2 * [*range(start, min(start + 2, 11))]]
        self.pixels, self.labels = self.pixels[rows], self.labels[rows]


def flat(trainer: RTSTrainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).double()


def difference(left: Tensor, right: Tensor) -> float:
    return ((left - right).norm() / right.norm()).item()


def trained(folder: Path, model: Any = None, train: Any = None, **settings: Any) -> RTSTrainer:
    trainer = make_trainer(folder, model, train, **settings)
    trainer.train()
    return trainer


# ---- Which images ----


@pytest.mark.parametrize(
    ("fraction", "images", "taken"),
    [(0.5, 4, 2), (0.5, 5, 3), (0.3, 4, 2), (0.01, 4, 1), (1.0, 7, 7), (0.9, 1, 1), (0.07, 100, 7), (1 / 3, 3, 1),
     (2 / 3, 3, 2), (1e-12, 5, 1)],
)  # fmt: skip
def test_images_are_rounded_up(fraction: float, images: int, taken: int) -> None:
    assert images_taken(fraction, images) == taken


def test_what_belongs_to_images_is_cut_and_all_else_is_left() -> None:
    inputs = {
        "weights": torch.arange(3), "pixel_values": torch.randn(4, 3, 2, 2), "labels": torch.arange(4),
        "names": ["a", "b", "c", "d"], "temperature": torch.tensor(2.0), "flag": True, "text": "abcd",
    }  # fmt: skip
    cut = first_images(inputs, 0.5)
    assert torch.equal(cut["pixel_values"], inputs["pixel_values"][:2])
    assert torch.equal(cut["labels"], torch.arange(2))
    assert cut["names"] == ["a", "b"]
    assert all(cut[name] is inputs[name] for name in ("weights", "temperature", "flag", "text"))
    assert [*cut] == [*inputs]
    assert len(inputs["labels"]) == len(inputs["names"]) == 4  # the first pass's own
    assert first_images(inputs, 1.0) is inputs


def test_without_labels_the_first_tensor_tells_how_many_images_there_are() -> None:
    assert len(first_images({"scale": torch.tensor(1.0), "pixel_values": torch.zeros(5, 3)}, 0.5)["pixel_values"]) == 3
    assert first_images({"scale": torch.tensor(1.0)}, 0.5) == {"scale": torch.tensor(1.0)}


# ---- With which weight ----


@pytest.mark.parametrize(
    ("name", "accumulation", "smoothing"),  # without and with BatchNorm
    [("test_vit", 1, 0.1), ("test_vit", 2, 0.0), ("test_vit", 4, 0.1), ("test_resnet", 2, 0.0)],
)
def test_half_of_two_equal_halves_is_the_whole_gradient(
    tmp_path: Path, name: str, accumulation: int, smoothing: float
) -> None:
    # six micro-batches, the last of 2 images: a window of 4 and 2 at accumulation 2
    settings = {**ALWAYS, **IN_ORDER, "gradient_accumulation_steps": accumulation, "label_smoothing_factor": smoothing}
    whole, half, none = (
        flat(trained(tmp_path, make_model(name), Twice(), **{**settings, **more}))
        for more in ({}, {"perturb_fraction": 0.5}, {"perturb_every": 100})
    )
    assert difference(half, whole) <= 1e-6
    assert difference(none, whole) > 1e-4


@pytest.mark.parametrize(("fraction", "accumulation"), [(0.3, 1), (0.5, 2), (0.3, 3), (0.75, 3)])
def test_equals_a_loop_by_hand(tmp_path: Path, fraction: float, accumulation: int) -> None:
    data, model = Images(22), make_model()  # five batches of 4, and one of 2
    settings = {"gradient_accumulation_steps": accumulation, "perturb_fraction": fraction, "switch_at": "1"}
    trainer = trained(tmp_path, None, data, **{**ALWAYS, **IN_ORDER, **settings})
    batches = torch.arange(22).split(4)
    windows = [batches[start : start + accumulation] for start in range(0, 6, accumulation)]
    own = {"switch": FixedSwitch(1), "perturb_every": 1, **SHAPE}
    optimizer = create_optimizer_v2(model.timm_model, opt="rts_pugd", lr=0.05, weight_decay=5e-4, **own)
    optimizer.total_steps = len(windows)
    model.train()

    def backward(rows: Tensor) -> None:
        logits = model(pixel_values=data.pixels[rows]).logits
        cross_entropy(logits, data.labels[rows]).backward()

    for window in windows:
        backward(torch.cat(window))
        if optimizer.perturbing:
            with optimizer.perturbed():
                backward(torch.cat([rows[: math.ceil(fraction * len(rows))] for rows in window]))
        optimizer.step()
        optimizer.zero_grad()
    assert difference(flat(trainer), torch.cat([p.detach().flatten() for p in model.parameters()]).double()) <= 1e-6


@pytest.mark.parametrize("kind", ["mean of a model", "sum of a function", "mean of a function"])
def test_losses_of_ones_own(tmp_path: Path, kind: str) -> None:
    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        if kind == "mean of a function":
            return cross_entropy(outputs["logits"], labels)
        return cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch

    def train(**more: Any) -> Tensor:
        torch.manual_seed(0)
        config = ViTConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16, patch_size=8,
            num_labels=3, hidden_dropout_prob=0.0,
        )  # fmt: skip
        trainer = RTSTrainer(
            model=ViTForImageClassification(config),
            args=make_arguments(tmp_path, **ALWAYS, **IN_ORDER, gradient_accumulation_steps=2, **more),
            train_dataset=Twice(),
            compute_loss_func=None if kind == "mean of a model" else loss,
        )
        trainer.train()
        return flat(trainer)

    assert difference(train(perturb_fraction=0.5), train()) <= 1e-6


def test_batchnorm_statistics_are_those_of_all_images(tmp_path: Path) -> None:
    settings = {**ALWAYS, **IN_ORDER, "max_steps": 1}
    whole, half = (trained(tmp_path, make_model("test_resnet"), perturb_fraction=f, **settings) for f in (1.0, 0.5))
    statistics = [(name, value) for name, value in whole.model.state_dict().items() if "running" in name]
    assert statistics
    assert all(torch.equal(half.model.state_dict()[name], value) for name, value in statistics)
    assert difference(flat(half), flat(whole)) > 1e-4


# ---- At which cost ----


@pytest.mark.parametrize(("fraction", "share", "every"), [(0.3, 0.5, 1), (0.75, 0.75, 2)])
def test_gradient_evaluations_are_those_foreseen(tmp_path: Path, fraction: float, share: float, every: int) -> None:
    trainer = trained(tmp_path, switch="fixed", switch_at="5", perturb_every=every, perturb_fraction=fraction)
    logs = training_logs(trainer)
    for entry in logs:
        perturbed = -(-max(0, entry["step"] - 5) // every)
        assert entry["gradient_evaluations"] == entry["step"] + share * perturbed
        assert "sharpness" not in entry  # of other images than the first loss
    foreseen = gradient_evaluations(14, FixedSwitch(5), perturb_every=every, second_pass=share)
    assert trainer.gradient_evaluations == foreseen == logs[-1]["gradient_evaluations"]
    trainer.train()  # a run of its own
    assert trainer.gradient_evaluations == foreseen


def test_without_it_nothing_changes(tmp_path: Path) -> None:
    trainer = trained(tmp_path, switch="fixed", switch_at="5")
    assert (trainer.gradient_evaluations, type(trainer.gradient_evaluations)) == (23, int)
    assert all(type(entry["gradient_evaluations"]) is int for entry in training_logs(trainer))
    assert "sharpness" in training_logs(trainer)[-1]


def test_operations_are_counted_image_by_image(tmp_path: Path) -> None:
    whole, half = (
        trained(tmp_path, train=Images(24), num_train_epochs=1, perturb_fraction=f, **ALWAYS).state.total_flos
        for f in (1, 0.5)
    )
    assert half == 0.75 * whole > 0


def test_an_update_that_is_skipped_has_cost_as_much(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, perturb_fraction=0.5, max_steps=6, **ALWAYS)
    step = trainer.training_step

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        loss = step(*args, **kwargs)
        if trainer.state.global_step == 2:
            next(p for p in trainer.model.parameters() if p.grad is not None).grad.fill_(math.nan)
        return loss

    trainer.training_step = poisoned
    trainer.train()
    assert trainer.faults.counts["nonfinite_gradient"] == 1
    assert trainer.gradient_evaluations == 6 * 1.5


# ---- Going on ----

SAVING = {"save_strategy": "steps", "save_steps": 100, "switch": "fixed", "switch_at": "3"}


@pytest.fixture(scope="module")
def undivided(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint of a run whose second pass takes all images, stopped after update 5."""
    return stopped(tmp_path_factory.mktemp("undivided"), 5, **SAVING)


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> RTSTrainer:
    """An uninterrupted run with a share, and a checkpoint at every update."""
    saving = {**SAVING, "save_steps": 1, "save_total_limit": None}
    return trained(tmp_path_factory.mktemp("divided"), perturb_fraction=0.3, **saving)


@pytest.mark.parametrize("stop", [2, 9])  # before the switch, and after it
def test_resumed_equals_uninterrupted(tmp_path: Path, divided: RTSTrainer, stop: int) -> None:
    resumed = make_trainer(tmp_path, perturb_fraction=0.3, **SAVING)
    resumed.train(resume_from_checkpoint=str(Path(divided.args.output_dir, f"checkpoint-{stop}")))
    assert torch.equal(flat(resumed), flat(divided))
    assert training_logs(resumed) == training_logs(divided)
    assert resumed.gradient_evaluations == divided.gradient_evaluations == 14 + 11 * 0.5


def test_another_share_is_refused_unless_it_is_meant(tmp_path: Path, undivided: str) -> None:
    with pytest.raises(ValueError, match=r"other settings \(perturb_fraction 1.0 → 0.5\).*override_schedule=True"):
        make_trainer(tmp_path, perturb_fraction=0.5, **SAVING).train(resume_from_checkpoint=undivided)
    trainer = make_trainer(tmp_path, perturb_fraction=0.5, override_schedule=True, **SAVING)
    trainer.train(resume_from_checkpoint=undivided)
    assert trainer.changes == ["update 5: perturb_fraction 1.0 → 0.5"]
    assert trainer.gradient_evaluations == 5 + 2 + 9 * 1.5  # what is spent stays spent


def test_a_plain_run_goes_on_with_it(tmp_path: Path) -> None:
    last = stopped(tmp_path, 4, opt="sgd", save_strategy="steps", save_steps=100)
    trainer = make_trainer(tmp_path, perturb_fraction=0.5, **{**SAVING, "switch_at": "0"})
    trainer.train(resume_from_checkpoint=last)
    assert trainer.gradient_evaluations == 4 + 10 * 1.5


def test_a_checkpoint_from_before_there_was_a_share_goes_on(tmp_path: Path, undivided: str) -> None:
    last = str(shutil.copytree(undivided, tmp_path / "checkpoint-5"))
    state = Path(last) / "trainer_state.json"
    content = json.loads(state.read_text())
    kept = content["stateful_callbacks"]["RTSTrainer"]["attributes"]
    del kept["counters"]["spared_evaluations"], kept["arguments"]["training"]["perturb_fraction"]
    state.write_text(json.dumps(content))
    mark_complete(last)
    trainer = make_trainer(tmp_path, **SAVING)
    trainer.train(resume_from_checkpoint=last)
    assert trainer.gradient_evaluations == 14 + 11
    with pytest.raises(ValueError, match=r"perturb_fraction 1.0 → 0.5"):
        make_trainer(tmp_path, perturb_fraction=0.5, **SAVING).train(resume_from_checkpoint=last)


# ---- What is refused ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({"perturb_fraction": value}, f"perturb_fraction={value!r} must be a number greater than 0 and at most 1")
          for value in (0.0, -0.5, 1.5, math.nan, math.inf, True, "0.5")),
        ({"opt": "sgd", "perturb_fraction": 0.5}, "perturb_fraction=0.5: opt='sgd' has no second pass .*leave it out"),
        ({"opt": "temperon", "perturb_fraction": 0.5}, "perturb_fraction=0.5: opt='temperon' has no second pass"),
        (
            {"perturb_fraction": 0.9, "per_device_train_batch_size": 4},
            r"perturb_fraction=0.9 is rounded up to all .*per_device_train_batch_size=4; give at most 0.75, or more",
        ),
        ({"perturb_fraction": 0.1, "per_device_train_batch_size": 1}, "=1; give more images a micro-batch, or leave"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RTSTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)


@pytest.mark.parametrize("opt", ["rts_pugd", "pugd", "sam", "asam", "lookahead_sam"])
def test_every_two_pass_optimizer_has_it(tmp_path: Path, opt: str) -> None:
    trainer = trained(tmp_path, opt=opt, perturb_fraction=0.5, max_steps=2, learning_rate=1e-3)
    assert trainer.gradient_evaluations == 2 + (1 if opt == "rts_pugd" else 2) * 0.5


@pytest.mark.parametrize("model_args", [{"drop_rate": 0.5}, {"drop_path_rate": 0.2}, {"attn_drop_rate": 0.1}])
def test_masks_that_cannot_be_drawn_again_are_refused(tmp_path: Path, model_args: dict[str, float]) -> None:
    model = make_model("test_vit", **model_args)
    with pytest.raises(ValueError, match=r"perturb_fraction=0.5 draws other masks .*'timm_model\..*--no_same_dropout"):
        make_trainer(tmp_path, model, perturb_fraction=0.5)
    make_trainer(tmp_path, model)
    make_trainer(tmp_path, model, perturb_fraction=0.5, same_dropout=False)
    make_trainer(tmp_path, model, opt="sgd")


def test_dropout_without_modules_of_its_own_is_seen(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = ViTForImageClassification(
        ViTConfig(**sizes, image_size=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.1)
    )
    arguments = make_arguments(tmp_path, perturb_fraction=0.5)
    with pytest.raises(ValueError, match="same_dropout=True cannot be kept"):
        RTSTrainer(model=model, args=arguments, train_dataset=Images())


def test_operations_are_counted_once_for_each_shape() -> None:
    counted: list[int] = []
    counts = OperationCounts()

    def count(inputs: dict[str, Any]) -> int:
        counted.append(inputs["pixel_values"].numel())
        return counted[-1]

    for images in (4, 4, 2, 4, 2):
        batch = {"pixel_values": torch.ones(images, 3), "labels": torch.ones(images), "note": "x"}
        assert counts.of(batch, count) == 3 * images
    assert counted == [12, 6]
