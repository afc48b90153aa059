"""bf16 autocast and fp16 with a gradient scaler: bare loops with torch and with accelerate, and the RTSTrainer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.amp import GradScaler
from training_for_tests import make_model, make_trainer, training_logs
from transformers import TrainerCallback

from rts_hf import RTSPUGD, RTSTrainer

UPDATES = 12
# Perturbs from update 4 on, where the variance of two windows' norms has been compared.
VARIANCE = {"switch": "gradient_variance", "switch_window": 2, "switch_init_steps": 2, "switch_gamma": 100.0}
SETTINGS = {
    "lr": 0.05, "radius": "sine_heating", "radius_beta_min": 0.1, "radius_beta_max": 0.5,
    "perturb_every": 1, "total_steps": UPDATES - 1,
}  # fmt: skip


class CountingScaler(GradScaler):
    """torch's scaler on a CPU, which notes how often it unscales."""

    def __init__(self, init_scale: float = 2.0**16) -> None:
        super().__init__("cpu", init_scale=init_scale)
        self.unscaled = 0

    def _unscale_grads_(self, *args: Any, **kwargs: Any) -> Any:
        self.unscaled += 1
        return super()._unscale_grads_(*args, **kwargs)


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def batch(update: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(update)
    return torch.randn(8, 6, generator=generator), torch.randn(8, 3, generator=generator)


def weights_and_momentum(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    momentum = [optimizer.state[p].get("momentum_buffer") for p in params]
    return [tensor.detach().clone() for tensor in (*params, *momentum) if tensor is not None]


def assert_bit_equal(left: list[Tensor], right: list[Tensor]) -> None:
    assert len(left) == len(right) > 0
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


class Loop:
    """Updates of a small net in a bare loop; ``overflow`` names one (update, pass) whose gradient becomes infinite."""

    def __init__(
        self,
        library: str = "torch",
        scaler: GradScaler | None = None,
        autocast: torch.dtype | None = None,
        overflow: tuple[int, int] | None = None,
        **settings: Any,
    ) -> None:
        self.net = make_net()
        self.optimizer = RTSPUGD(self.net.parameters(), **{**SETTINGS, **VARIANCE, **settings})
        self.wrapped: Any = self.optimizer
        self.scaler = scaler
        self.autocast = autocast
        self.overflow = overflow
        self.accelerator = None
        self.passes: list[int] = []
        self.norms: list[float] = []
        if library == "accelerate":
            self.accelerator = Accelerator(cpu=True)
            self.accelerator.scaler = scaler
            self.net, self.wrapped = self.accelerator.prepare(self.net, self.optimizer)
        self.net[0].weight.register_hook(self._overflow)

    def _overflow(self, grad: Tensor) -> Tensor:
        if self.overflow == (self.update, self.passes[-1]):
            grad = grad.clone()
            grad[0, 0] = torch.inf
        return grad

    def _backward(self, number: int) -> None:
        self.passes.append(number)
        x, y = batch(self.update)
        with torch.autocast("cpu", self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            loss = nn.functional.mse_loss(self.net(x), y)
        if self.accelerator is not None:
            self.accelerator.backward(loss)
        else:
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def run(self, updates: Iterator[int] | range) -> None:
        for self.update in updates:
            before, step = weights_and_momentum(self.optimizer), self.optimizer.stats()["step"]
            phase, groups = self.optimizer.phase, [{**g, "params": 0} for g in self.optimizer.param_groups]
            self._backward(1)
            if self.optimizer.perturbing:
                with self.optimizer.perturbed():
                    self._backward(2)
            if self.accelerator is not None or self.scaler is None:
                self.wrapped.step()
            else:
                self.scaler.step(self.optimizer)
                self.scaler.update()
            self.wrapped.zero_grad()
            if self.optimizer.stats()["step"] == step:
                assert_bit_equal(before, weights_and_momentum(self.optimizer))
                assert (phase, groups) == (
                    self.optimizer.phase,
                    [{**g, "params": 0} for g in self.optimizer.param_groups],
                )
            self.norms.append(self.optimizer.stats()["gradient_norm"])


# ---- bf16 ----


@pytest.mark.parametrize("span", ["each pass", "both passes"])
def test_under_bf16_autocast_the_second_gradient_is_that_of_the_perturbed_weights(span: str) -> None:
    """One autocast context around both passes caches the casts of w, which the second pass must not meet again."""
    net, (x, y) = make_net(), batch(0)
    settings = {"radius": "constant", "scale": "constant", "scale_beta_max": 1.0}
    optimizer = RTSPUGD(net.parameters(), lr=0.1, switch=None, total_steps=5, **settings)

    def backward(outer: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=not outer):
            loss = nn.functional.mse_loss(net(x), y)
        loss.backward()

    is_spanned = span == "both passes"
    with torch.autocast("cpu", torch.bfloat16, enabled=is_spanned):
        with torch.autocast("cpu", torch.bfloat16):
            nn.functional.mse_loss(net(x), y).backward()
        first = [p.grad.clone() for p in net.parameters()]
        with optimizer.perturbed():
            moved = [p.detach().clone() for p in net.parameters()]
            with torch.autocast("cpu", torch.bfloat16):
                nn.functional.mse_loss(net(x), y).backward()
    found = [p.grad - g for p, g in zip(net.parameters(), first, strict=True)]

    other = make_net()
    with torch.no_grad():
        for p, w in zip(other.parameters(), moved, strict=True):
            p.copy_(w)
    with torch.autocast("cpu", torch.bfloat16):
        nn.functional.mse_loss(other(x), y).backward()
    for second, p in zip(found, other.parameters(), strict=True):
        torch.testing.assert_close(second, p.grad, rtol=1e-4, atol=1e-5)
    assert optimizer.stats()["epsilon_norm"] == pytest.approx(1.0)


def test_one_autocast_context_around_two_updates_changes_nothing() -> None:
    """The casts of w + ε, which the second pass leaves in the cache, must not serve the next update."""
    results = []
    for is_spanned in (False, True):
        net = make_net()
        settings = {"switch": None, "perturb_every": 1, "radius": "constant", "scale": "constant"}
        optimizer = RTSPUGD(net.parameters(), lr=0.0, total_steps=5, **settings)

        def backward(net: nn.Module = net) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                nn.functional.mse_loss(net(batch(0)[0]), batch(0)[1]).backward()

        norms = []
        with torch.autocast("cpu", torch.bfloat16, enabled=is_spanned):
            for _ in range(2):
                backward()
                with optimizer.perturbed():
                    backward()
                optimizer.step()
                optimizer.zero_grad()
                norms.append(optimizer.stats()["gradient_norm"])
        results.append(norms)
    assert results[0] == results[1]
    assert results[0][0] == results[0][1]  # nothing was learned between


@pytest.mark.parametrize("library", ["torch", "accelerate"])
def test_bf16_follows_float32(library: str) -> None:
    full, half = Loop(library), Loop(library, autocast=torch.bfloat16)
    full.run(range(UPDATES))
    half.run(range(UPDATES))
    assert full.optimizer.switch_step == half.optimizer.switch_step == 4
    left, right = (torch.cat([p.detach().flatten() for p in loop.net.parameters()]) for loop in (full, half))
    assert 0 < (left - right).norm() / left.norm() < 1e-2


# ---- fp16 ----


@pytest.mark.parametrize("scale", [1.0, 2.0**8, 2.0**24, 1000.0])
def test_the_perturbation_does_not_depend_on_the_loss_scale(scale: float) -> None:
    net, (x, y) = make_net(), batch(0)
    epsilons = []
    for factor in (1.0, scale):
        optimizer = RTSPUGD(net.parameters(), lr=0.1, switch=None, total_steps=5, radius="constant")
        scaler = GradScaler("cpu", init_scale=factor)
        before = [p.detach().clone() for p in net.parameters()]
        scaler.scale(nn.functional.mse_loss(net(x), y)).backward()
        with optimizer.perturbed():
            epsilons.append([p.detach() - w for p, w in zip(net.parameters(), before, strict=True)])
        optimizer.zero_grad()
    for one, other in zip(*epsilons, strict=True):
        torch.testing.assert_close(one, other, rtol=0 if scale != 1000.0 else 1e-5, atol=0 if scale != 1000.0 else 1e-7)


@pytest.mark.parametrize("library", ["torch", "accelerate"])
@pytest.mark.parametrize("settings", [{}, {"scale": "constant", "scale_beta_max": 0.0, "method": "sam"}], ids=str)
def test_a_scaler_changes_no_number_and_unscales_once_an_update(library: str, settings: dict) -> None:
    plain, scaler = Loop(library, **settings), CountingScaler()
    scaled = Loop(library, scaler, **settings)
    plain.run(range(UPDATES))
    scaled.run(range(UPDATES))
    assert_bit_equal(weights_and_momentum(plain.optimizer), weights_and_momentum(scaled.optimizer))
    assert scaler.unscaled == UPDATES
    assert plain.optimizer.switch_step == scaled.optimizer.switch_step == 4
    assert scaled.norms == pytest.approx(plain.norms, rel=1e-6)  # also what the variance switch heard


@pytest.mark.parametrize("library", ["torch", "accelerate"])
@pytest.mark.parametrize(("update", "number"), [(2, 1), (6, 1), (6, 2), (4, 1)])
@pytest.mark.parametrize("alpha_s", [1.0, 0.0])
def test_an_overflow_skips_the_update_and_leaves_no_trace(
    library: str, update: int, number: int, alpha_s: float
) -> None:
    """The rest of the run equals, bit for bit, a run that never met the batch (scales are powers of two)."""
    settings = {"scale": "constant", "scale_beta_max": alpha_s}
    scaler = CountingScaler()
    loop = Loop(library, scaler, overflow=(update, number), **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.run(range(UPDATES))
    reference = Loop(**settings)
    reference.run(u for u in range(UPDATES) if u != update)
    assert_bit_equal(weights_and_momentum(reference.optimizer), weights_and_momentum(loop.optimizer))
    assert reference.optimizer.stats() == pytest.approx(loop.optimizer.stats(), rel=1e-6)
    assert loop.optimizer.stats()["step"] == UPDATES - 1
    assert scaler.get_scale() == 2.0**15
    assert scaler.unscaled == UPDATES
    assert loop.norms[update] == loop.norms[update - 1]  # the figures are those of the last step taken


def test_an_overflow_that_only_the_first_gradient_shows_is_not_hidden_by_a_scale_of_zero() -> None:
    """A weight that the second pass does not use: its α_s·g is all that tells of the overflow."""
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = RTSPUGD([used, unused], lr=0.1, switch=None, total_steps=5, scale="constant", scale_beta_max=0.0)
    scaler = GradScaler("cpu")
    scaler.scale(used.square().sum() + unused.sum()).backward()
    unused.grad[0] = torch.inf
    with optimizer.perturbed():
        scaler.scale(used.square().sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**15
    assert optimizer.stats()["step"] == 0
    assert_bit_equal([used.detach(), unused.detach()], [torch.ones(2), torch.ones(2)])


def test_fp16_autocast_under_a_scaler_follows_float32() -> None:
    full, half = Loop(), Loop(scaler=CountingScaler(2.0**10), autocast=torch.float16)
    full.run(range(UPDATES))
    half.run(range(UPDATES))
    left, right = (torch.cat([p.detach().flatten() for p in loop.net.parameters()]) for loop in (full, half))
    assert 0 < (left - right).norm() / left.norm() < 2e-3
    assert full.optimizer.switch_step == half.optimizer.switch_step == 4


# ---- The Trainer ----


def make_scaled_trainer(folder: Path, *callbacks: TrainerCallback, **settings: Any) -> RTSTrainer:
    trainer = make_trainer(folder, make_model(), callbacks=list(callbacks), fp16=True, **settings)
    # accelerate gives a CPU no scaler for fp16, though torch has one
    trainer.accelerator.scaler = CountingScaler(2.0**10)
    trainer.accelerator.native_amp = True
    return trainer


class Watch(TrainerCallback):
    """Notes the state before and after every optimizer step, and makes one pass of one update overflow."""

    def __init__(self, update: int = -1, number: int = 1) -> None:
        self.overflow = (update, number)
        self.steps: list[tuple[Any, Any]] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        def spoil(grad: Tensor) -> Tensor:
            number = 2 if self.trainer._in_second_pass else 1
            return grad * torch.inf if (state.global_step, number) == self.overflow else grad

        next(model.parameters()).register_hook(spoil)

    def _now(self) -> tuple[list[Tensor], list[dict], list[float]]:
        rts = self.trainer.two_pass_optimizer
        rates = [group["lr"] for group in rts.param_groups]
        return weights_and_momentum(rts), [{**group, "params": 0, "lr": 0} for group in rts.param_groups], rates

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.before = self._now()

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append((self.before, self._now()))


@pytest.mark.parametrize(("clip", "accumulation"), [(0.0, 1), (1.0, 3)])
def test_the_trainer_unscales_once_an_update_and_follows_float32(
    tmp_path: Path, clip: float, accumulation: int
) -> None:
    settings: dict[str, Any] = {
        "switch": "fixed", "switch_at": "1", "max_grad_norm": clip, "gradient_accumulation_steps": accumulation,
        "learning_rate": 0.01, "radius_beta_max": 0.1, "num_train_epochs": 1, "perturb_every": 1,
    }  # fmt: skip
    scaled = make_scaled_trainer(tmp_path / "fp16", **settings)
    scaled.train()
    assert scaled.accelerator.scaler.unscaled == scaled.state.global_step == scaled.two_pass_optimizer.stats()["step"]
    full = make_trainer(tmp_path / "fp32", **settings)
    full.train()
    for mine, theirs in zip(training_logs(scaled), training_logs(full), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=2e-2)
        assert mine["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=5e-2)
        assert mine["epsilon_norm"] == pytest.approx(theirs["epsilon_norm"], rel=1e-5)


@pytest.mark.parametrize(("update", "number"), [(1, 1), (4, 1), (4, 2)])
def test_the_trainer_skips_an_update_that_overflows(tmp_path: Path, update: int, number: int) -> None:
    watch = Watch(update, number)
    settings: dict[str, Any] = {
        "switch": "fixed", "switch_at": "3", "perturb_every": 1, "num_train_epochs": 1, "lr_scheduler_type": "linear",
    }  # fmt: skip
    trainer = watch.trainer = make_scaled_trainer(tmp_path, watch, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer.train()
    assert trainer.state.global_step == len(watch.steps) == 7
    for number_of_update, (before, after) in enumerate(watch.steps):
        is_skipped = number_of_update == update
        assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=False)) == is_skipped
        assert (before[1:] == after[1:]) == is_skipped  # position, phase, switch and learning rates
    stats = trainer.two_pass_optimizer.stats()
    assert (stats["step"], stats["gradient_evaluations"]) == (6, 6 + 3)
    assert trainer.switched_at() == 3
    assert trainer.accelerator.scaler.unscaled == 7
    assert trainer.accelerator.scaler.get_scale() == 2.0**9
    logs = training_logs(trainer)
    assert logs[update]["gradient_norm"] == logs[update - 1]["gradient_norm"]
    assert all(0 < entry["gradient_norm"] < 100 for entry in logs)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_an_overflow_at_the_end_does_not_pretend_that_the_run_switched(tmp_path: Path) -> None:
    watch = Watch(6)
    trainer = watch.trainer = make_scaled_trainer(tmp_path, watch, switch="fixed", switch_at="6", num_train_epochs=1)
    with pytest.warns(UserWarning, match="never fired"):
        trainer.train()
    assert trainer.switched_at() is None


def test_bf16_in_the_trainer_perturbs_by_the_radius(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, bf16=True, max_steps=4, switch="fixed", switch_at="0", perturb_every=1, radius="constant",
        radius_beta_max=0.5,
    )  # fmt: skip
    assert trainer.accelerator.native_amp
    trainer.train()
    assert all(entry["epsilon_norm"] == pytest.approx(0.5, rel=1e-5) for entry in training_logs(trainer))
    assert any(entry["sharpness"] != 0 for entry in training_logs(trainer))
