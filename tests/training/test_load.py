"""A thousand updates leave memory, live tensors and open files where the first fifty left them."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from training_for_tests import make_trainer
from transformers import TrainerCallback

from rts_hf import RTSPUGD

UPDATES, WARM = 1000, 50
SWITCH = {
    "switch": "gradient_variance", "switch_window": 10, "switch_init_steps": 100, "switch_gamma": 50.0,
    "perturb_every": 1,
}  # fmt: skip


def usage() -> dict[str, int]:
    gc.collect()
    process = psutil.Process()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some modules warn when an object of theirs is looked at
        tensors = sum(issubclass(type(item), Tensor) for item in gc.get_objects())
    return {"bytes": process.memory_info().rss, "tensors": tensors, "files": process.num_fds()}


def assert_flat(before: dict[str, int], after: dict[str, int]) -> None:
    assert after["bytes"] < 1.01 * before["bytes"]
    assert after["files"] <= before["files"]
    # after the switch: the copy of the weights, a few norms; a tensor kept each update would be 1,000
    assert after["tensors"] - before["tensors"] < 20


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 4))

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.layers(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Vectors(Dataset):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(32, generator=generator), "labels": torch.tensor(index % 4)}


def test_a_loop() -> None:
    net, generator = Tiny(), torch.Generator().manual_seed(0)
    optimizer = RTSPUGD(
        net.parameters(), lr=0.01, scale="sine_heating", total_steps=UPDATES, **SWITCH
    )  # perturbs from update 110 on
    before: dict[str, int] = {}
    for update in range(UPDATES):
        x, y = torch.randn(16, 32, generator=generator), torch.randint(4, (16,), generator=generator)
        net(x, y)["loss"].backward()
        if optimizer.perturbing:
            with optimizer.perturbed():
                net(x, y)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        if update == WARM - 1:
            before = usage()
    assert_flat(before, usage())
    assert optimizer.switch_step == 110
    assert optimizer.stats()["step"] == UPDATES


class Watch(TrainerCallback):
    def __init__(self) -> None:
        self.found: dict[int, dict[str, int]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (WARM, UPDATES):
            self.found[state.global_step] = usage()


def test_the_trainer(tmp_path: Path) -> None:
    watch = Watch()
    trainer = make_trainer(
        tmp_path, Tiny(), Vectors(), max_steps=UPDATES, logging_steps=100, scale="sine_heating", callbacks=[watch],
        learning_rate=0.01, save_strategy="steps", save_steps=250, save_total_limit=2, **SWITCH,
    )  # fmt: skip
    trainer.train()
    assert_flat(watch.found[WARM], watch.found[UPDATES])
    assert trainer.switched_at() == 110
    assert trainer.gradient_evaluations == 110 + 2 * (UPDATES - 110)
