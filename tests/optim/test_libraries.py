"""The loops of timm, transformers, accelerate and Lightning take both passes, as a loop by hand does."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.task import ClassificationTask
from timm.utils import ParseKwargs
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import rts_hf

UPDATES = 4
SETTINGS: dict[str, Any] = {
    "lr": 0.1, "switch": "fixed", "switch_at": 1, "perturb_every": 1, "total_steps": UPDATES,
}  # fmt: skip


class Images(Dataset[dict[str, Tensor]]):
    """In an order that is the same everywhere."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels, self.labels = torch.randn(16, 3, 8, 8, generator=generator), torch.arange(16) % 3

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


def vit() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **sizes))


def by_hand() -> list[Tensor]:
    model = vit().train()
    optimizer = rts_hf.RTSPUGD(model.parameters(), **SETTINGS)
    for batch in DataLoader(Images(), batch_size=4):
        model(**batch).loss.backward()
        if optimizer.perturbing:
            with optimizer.perturbed():
                model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [param.detach() for param in model.parameters()]


@pytest.mark.parametrize("is_attached", [True, False])
def test_transformers_trainer(tmp_path: Path, is_attached: bool) -> None:
    class InOrder(Trainer):
        def _get_train_sampler(self, *args: Any) -> None:
            return None

    model = vit()
    optimizer = rts_hf.RTSPUGD(model.parameters(), **SETTINGS)
    if is_attached:
        rts_hf.attach_second_pass(optimizer, model)
    args = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, num_train_epochs=1, max_grad_norm=0, use_cpu=True,
        lr_scheduler_type="constant", save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1.0)
    trainer = InOrder(model, args, train_dataset=Images(), optimizers=(optimizer, schedule))
    trainer.remove_callback(PrinterCallback)
    if not is_attached:
        with pytest.warns(UserWarning, match=r"attach_second_pass.*RTSTrainer"):
            trainer.train()
        return
    trainer.train()
    assert optimizer.stats()["gradient_evaluations"] == 2 * UPDATES - 1
    assert all(map(torch.equal, model.parameters(), by_hand()))


def test_lightning_whose_closure_needs_nothing() -> None:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning.pytorch as lightning
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = vit()

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            loss: Tensor = self.model(**batch).loss
            return loss

        def configure_optimizers(self) -> Any:
            return rts_hf.RTSPUGD(self.parameters(), **SETTINGS)

    module = Module()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, DataLoader(Images(), batch_size=4))
    assert trainer.optimizers[0].stats()["gradient_evaluations"] == 2 * UPDATES - 1
    assert all(map(torch.equal, module.model.parameters(), by_hand()))


def test_timms_task_with_mixup_and_an_average_of_the_weights() -> None:
    """What timm's training script is made of: the optimizer is made of the model, and the task calls it."""
    ends = []
    for is_attached in (True, False):
        torch.manual_seed(0)
        model = timm.create_model("test_vit", num_classes=3, img_size=8, patch_size=4, drop_path_rate=0.3)
        criterion = SoftTargetCrossEntropy()
        task = ClassificationTask(model, criterion, device=torch.device("cpu"), verbose=False)
        optimizer = timm.optim.create_optimizer_v2(model, opt="rts_pugd", **SETTINGS)
        if is_attached:
            rts_hf.attach_second_pass(optimizer, model, criterion)
        task.setup_ema(decay=0.9)
        task.train()
        mix = Mixup(mixup_alpha=0.8, num_classes=3)
        np.random.seed(1)  # which Mixup draws from
        for batch in DataLoader(Images(), batch_size=4):
            x, y = mix(batch["pixel_values"], nn.functional.one_hot(batch["labels"], 3).argmax(1))
            state = rts_hf.RandomState(torch.device("cpu"))
            with torch.autocast("cpu", torch.bfloat16):
                loss = task(x, y)["loss"]
            loss.backward()
            if not is_attached and optimizer.perturbing:
                with optimizer.perturbed(), state.replayed():
                    with torch.autocast("cpu", torch.bfloat16):
                        loss = task(x, y)["loss"]
                    loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            task.update_ema(step=1)
        assert optimizer.stats()["gradient_evaluations"] == 2 * UPDATES - 1
        ends.append([*task.get_trainable_module(ema=True).state_dict().values()])
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["switch=fixed", "switch_at=3"], "switch_at", 3),
        (["switch=fixed", "switch_at=0.8"], "switch_at", 0.8),
        (["switch=generalization_gap", "switch_mu=3"], "switch_mu", 3),
        (["switch=gradient_variance", "switch_window=5", "switch_init_steps=5"], "switch_window", 5),
        (["switch=None"], "switch", "fixed"),
        (["radius=sine_heating", "radius_beta_max=1"], "radius_beta_max", 1.0),
        (["scale=constant", "scale_beta_max=0"], "scale_beta_max", 0.0),
        (["perturb_every=3"], "perturb_every", 3),
        (["total_steps=100"], "total_steps", 100),
        (["base=adamw", "betas=(0.8,0.9)"], "method", "pugd"),
        (["fused=True", "nesterov=False"], "method", "pugd"),
    ],
)
def test_what_timms_script_reads_of_opt_kwargs_reaches_the_optimizer(words: list[str], key: str, value: Any) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("--opt-kwargs", nargs="*", default={}, action=ParseKwargs)
    kwargs = parser.parse_args(["--opt-kwargs", *words]).opt_kwargs
    optimizer = timm.optim.create_optimizer_v2(nn.Linear(2, 2), opt="rts_pugd", lr=0.1, momentum=0.9, **kwargs)
    assert optimizer.settings()[key] == value
