"""An update that is captured, or compiled, does what the same update does from the host."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rts_hf import RTSPUGD
from rts_hf.optim import capture

UPDATES = 12
_HOST_READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)


class Recording(TorchDispatchMode):
    """What a CUDA graph does, on a CPU: holds the operations of a block, and makes them again on the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in _HOST_READS, f"{func} waits for the device"
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, tensors(result)))
        return result

    @contextmanager
    def capture(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with monkeypatch.context() as patch, self:
            patch.setattr(capture, "is_capturing", lambda: True)
            yield

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, outputs in self.calls:
            for output, again in zip(outputs, tensors(func(*args, **kwargs)), strict=True):
                if output.data_ptr() != again.data_ptr():
                    output.detach().copy_(again)


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Loop:
    """A small model, its loss on one batch, and an optimizer."""

    def __init__(self, lr: float | Tensor = 0.05, **settings: Any) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
        self.batch = torch.randn(8, 6), torch.randn(8, 3)
        always = {"switch": "fixed", "switch_at": 2, "perturb_every": 1, "total_steps": UPDATES}
        self.optimizer = RTSPUGD(self.net.parameters(), lr, **{**always, **settings})

    def backward(self) -> None:
        nn.functional.mse_loss(self.net(self.batch[0]), self.batch[1]).backward()

    def update(self, step: Any = None) -> None:
        self.optimizer.zero_grad(set_to_none=False)
        self.backward()
        if self.optimizer.perturbing:
            with self.optimizer.perturbed():
                self.backward()
        (step or self.optimizer.step)()

    def weights(self) -> Tensor:
        return torch.cat([param.detach().flatten() for param in self.net.parameters()])


SETTINGS = {
    "sgd": {"fused": True},
    "sam": {"method": "sam", "fused": True, "radius": "constant", "scale": "constant", "scale_beta_max": 0.0},
    "heating": {"fused": True, "radius": "sine_heating", "scale": "inverse_cosine_heating", "scale_beta_min": 0.5},
    "every second": {"fused": True, "perturb_every": 2},
    "double": {"fused": True, "double": True},
}


def make(name: str, **more: Any) -> Loop:
    settings = {**SETTINGS[name], **more}
    torch.set_default_dtype(torch.float64 if settings.pop("double", False) else torch.float32)
    try:
        return Loop(**settings)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", SETTINGS)
def test_replayed_updates_are_those_of_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, captured = make(name), make(name, capturable=True)
    for _ in range(UPDATES + 2):  # beyond the end, where the schedules stay at their last values
        plain.update()
    captured.update()
    position = captured.optimizer._position
    for _ in range(3):
        captured.update()
    assert captured.optimizer._position is position  # to make it anew waits for the device
    graph, together = Recording(), 2 if name == "every second" else 1
    with graph.capture(monkeypatch):
        for _ in range(together):
            captured.update()
    for _ in range((UPDATES - 2) // together - 1):
        graph.replay()
    assert torch.equal(captured.weights(), plain.weights())
    assert captured.optimizer.stats() == plain.optimizer.stats()
    assert captured.optimizer.state_dict()["param_groups"][0]["rts_step"] == UPDATES + 2


def test_the_host_goes_on_where_a_graph_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, captured, graph = make("sgd"), make("sgd", capturable=True), Recording()
    for _ in range(3):
        captured.update()
    with graph.capture(monkeypatch):
        captured.update()
    graph.replay()
    position = captured.optimizer._position
    for loop, updates in ((captured, 3), (plain, 8)):
        for _ in range(updates):
            loop.update()
    assert captured.optimizer._position is position
    captured.optimizer.total_steps = plain.optimizer.total_steps = 2 * UPDATES
    with pytest.warns(UserWarning, match="Capture anew"):
        captured.update()
    plain.update()
    assert torch.equal(captured.weights(), plain.weights())
    assert captured.optimizer.stats() == pytest.approx(plain.optimizer.stats(), rel=1e-6)  # α in float32


def captured_at_step_eight(monkeypatch: pytest.MonkeyPatch, **more: Any) -> tuple[Loop, Recording, dict[str, Any]]:
    loop, graph = make("sgd", capturable=True, **more), Recording()
    for _ in range(4):
        loop.update()
    early = loop.optimizer.state_dict()
    with graph.capture(monkeypatch):
        loop.update()
    for _ in range(3):
        graph.replay()
    return loop, graph, copy.deepcopy(early)


SAVED = {
    "state_dict": lambda optimizer: optimizer.state_dict()["param_groups"][0]["rts_step"],
    "deepcopy": lambda optimizer: copy.deepcopy(optimizer).stats()["step"],
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)).stats()["step"],
    "stats": lambda optimizer: optimizer.stats()["step"],
}


@pytest.mark.parametrize("way", SAVED)
def test_what_is_saved_after_a_graph_stands_where_the_graph_does(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, _, _ = captured_at_step_eight(monkeypatch)
    assert SAVED[way](loop.optimizer) == 8


def test_a_load_or_a_restart_after_a_graph_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, _, early = captured_at_step_eight(monkeypatch)
    loop.optimizer.load_state_dict(early)
    assert loop.optimizer.stats()["step"] == 4
    loop, _, _ = captured_at_step_eight(monkeypatch)
    loop.optimizer.restart()
    assert (loop.optimizer.stats()["step"], loop.optimizer.phase) == (0, "sgd")
    loop, _, _ = captured_at_step_eight(monkeypatch)
    loop.optimizer.join(1)
    assert loop.optimizer.stats()["step"] == 1


def test_a_graph_with_old_schedules_is_told_and_touches_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, _, _ = captured_at_step_eight(monkeypatch)
    used = loop.optimizer._position, *loop.optimizer._buffers
    loop.optimizer.total_steps = 2 * UPDATES
    with pytest.warns(UserWarning, match="Capture anew"):
        loop.update()
    assert loop.optimizer.stats()["step"] == 9
    assert loop.optimizer._position is not used[0]
    position, buffers, _ = loop.optimizer._held_for_graphs[0]  # a graph writes there, whatever lies there by then
    assert all(held is each for held, each in zip((position, *buffers), used, strict=True))


def test_weights_of_low_precision_follow_the_same_schedules() -> None:
    plain, captured = ({}, {"capturable": True})
    told = []
    for more in (plain, captured):
        loop = make("sgd", total_steps=1000, **more)
        loop.net.bfloat16()
        loop.batch = loop.batch[0].bfloat16(), loop.batch[1].bfloat16()
        settings = {"switch": None, "perturb_every": 1, "total_steps": 1000, "fused": True, **more}
        loop.optimizer = RTSPUGD(loop.net.parameters(), 0.05, **settings)
        for _ in range(3):
            loop.update()
        told.append((loop.weights(), loop.optimizer.stats()))
    assert torch.equal(told[0][0], told[1][0])
    assert told[0][1] == pytest.approx(told[1][1], rel=1e-6)


def test_a_rate_on_the_device_moves_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = [torch.tensor(0.05), torch.tensor(0.05)]
    plain, captured = make("sgd", lr=rates[0]), make("sgd", lr=rates[1], capturable=True)
    graph = Recording()
    for update in range(UPDATES):
        for rate in rates:
            rate.fill_(0.05 / (update + 1))
        plain.update()
        if update < 4:
            captured.update()
        elif update == 4:
            with graph.capture(monkeypatch):
                captured.update()
        else:
            graph.replay()
    assert torch.equal(captured.weights(), plain.weights())


def test_an_unusable_gradient_moves_nothing_and_is_counted_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    captured, graph = make("sgd", capturable=True), Recording()
    for _ in range(4):
        captured.update()
    with graph.capture(monkeypatch):
        captured.update()
    before = captured.weights()
    captured.batch[1].fill_(torch.nan)
    graph.replay()
    graph.replay()
    assert torch.equal(captured.weights(), before)
    assert captured.optimizer.stats()["unusable_gradients"] == 2


@pytest.mark.parametrize("updates", [0, 1])
@pytest.mark.parametrize("capturable", [False, True])
def test_a_capture_too_early_is_refused(updates: int, capturable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make("sgd", capturable=capturable)
    for _ in range(updates):
        loop.update()
    before = loop.weights()
    with Recording().capture(monkeypatch), pytest.raises(RuntimeError, match="capture once it perturbs"):
        loop.update()
    assert torch.equal(loop.weights(), before)


def test_a_base_that_steps_from_the_host_is_refused() -> None:
    with pytest.raises(ValueError, match="capturable=True: base='lion'"):
        RTSPUGD([nn.Parameter(torch.ones(2))], 0.1, base="lion", capturable=True)


@pytest.mark.skipif(torch.__version__ < (2, 8), reason="the compiler of torch 2.7 breaks the graph at plain Python")
@pytest.mark.parametrize("name", ["sgd", "sam", "heating"])
def test_a_compiled_step_is_one_graph(name: str) -> None:
    torch._dynamo.reset()
    plain, compiled = make(name), make(name, capturable=True)
    step = torch.compile(compiled.optimizer.step, backend="aot_eager", fullgraph=True)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for update in range(UPDATES):
        plain.update()
        compiled.update(step if update >= 4 else None)
    assert (compiled.weights() - plain.weights()).norm() <= 1e-5 * plain.weights().norm()
    assert compiled.optimizer.stats()["step"] == UPDATES
    compiled.batch[1].fill_(torch.nan)
    compiled.update(step)
    if name != "sam":
        assert torch.isfinite(compiled.weights()).all()
        assert compiled.optimizer.stats()["unusable_gradients"] == 1
    # the second time, numbers that have changed become variables of the graph
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs <= 2
