"""A compiled model trains the same through all three ways of stepping."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from optimizer_for_tests import update_once
from safetensors.torch import load_file
from torch import Tensor, nn
from training_for_tests import SIZE, make_model, make_trainer

from rts_hf import RTSPUGD

NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
BACKENDS = ["aot_eager", pytest.param("inductor", marks=[NEEDS_COMPILER, pytest.mark.slow])]  # in the Trainer it is not
UPDATES = 8


@pytest.fixture(autouse=True)
def forget_compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch._dynamo.reset()
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")  # which the Trainer sets, and leaves for all that follow
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.0), nn.Linear(16, 3))


def train(net: nn.Module, forward: Any, closure: bool) -> list[Tensor]:
    """Perturb from update 3 on; return the weights."""
    settings = {"switch": "fixed", "switch_at": 3, "perturb_every": 1, "total_steps": UPDATES}
    optimizer = RTSPUGD(net.parameters(), lr=0.05, **settings)
    for update in range(UPDATES):
        generator = torch.Generator().manual_seed(update)
        batch = torch.randn(8, 6, generator=generator), torch.randn(8, 3, generator=generator)
        update_once(forward, optimizer, batch, closure)
    assert optimizer.stats()["gradient_evaluations"] == 3 + 2 * 5
    return [p.detach() for p in net.parameters()]


def assert_close(left: list[Tensor], right: list[Tensor]) -> None:
    a, b = (torch.cat([tensor.flatten() for tensor in tensors]).double() for tensors in (left, right))
    assert (a - b).norm() / b.norm() <= 1e-4


@pytest.mark.parametrize("closure", [False, True], ids=["loop", "closure"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_model_trains_the_same(backend: str, closure: bool) -> None:
    net, compiled = make_net(), make_net()
    expected = train(net, net, closure)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert_close(train(compiled, torch.compile(compiled, backend=backend), closure), expected)
    # the second pass uses the first one's graph: weights that move in place compile nothing anew
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs == 1


class Tiny(nn.Module):
    """So small that inductor compiles it in seconds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        norm = nn.BatchNorm1d(8)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 8), norm, nn.Tanh(), nn.Linear(8, 3))
        self.config = SimpleNamespace(num_labels=3)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize(
    ("make", "backend"),
    [pytest.param(Tiny, "inductor", marks=NEEDS_COMPILER, id="tiny"), pytest.param(make_model, "eager", id="vit")],
)
def test_the_trainer_compiles(tmp_path: Path, make: Any, backend: str) -> None:
    settings: dict[str, Any] = {
        "switch": "fixed", "switch_at": "2", "perturb_every": 1, "max_steps": 4, "learning_rate": 0.01,
        "radius_beta_max": 0.5,
    }  # fmt: skip
    plain = make_trainer(tmp_path / "plain", make(), **settings)
    plain.train()
    compiled = make_trainer(
        tmp_path / "compiled", make(), torch_compile=True, torch_compile_backend=backend, save_strategy="steps",
        save_steps=4, **settings,
    )  # fmt: skip
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled.train()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs
    assert compiled.gradient_evaluations == 2 + 2 * 2
    assert_close(list(compiled.model.parameters()), list(plain.model.parameters()))
    saved = load_file(tmp_path / "compiled" / "checkpoint-4" / "model.safetensors")
    assert not [name for name in saved if "_orig_mod" in name]
