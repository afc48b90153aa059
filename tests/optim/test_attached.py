"""The second pass in loops of others equals `perturbed()` by hand, and what it cannot repeat is refused."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.utils import ModelEmaV3, NativeScaler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint_sequential

import rts_hf

UPDATES = 5
Batches = list[tuple[Tensor, Tensor]]


class Net(nn.Module):
    """BatchNorm, dropout, and what draws from Python's and numpy's generators."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.body(x * (0.9 + 0.1 * random.random()) + 0.1 * float(np.random.rand()))


class WithLoss(Net):
    """Returns its loss, as models of transformers do."""

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Return loss and logits."""
        logits = super().forward(pixel_values)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class InPlace(Net):
    """Changes its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return super().forward(x.mul_(0.5).add_(1.0))


class Checkpointed(Net):
    """Forgets its activations."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return checkpoint_sequential(self.body, 2, x, use_reentrant=False)  # type: ignore[no-any-return]


def batches(micro: int = 1, last: int | None = None) -> list[Batches]:
    generator = torch.Generator().manual_seed(3)
    counts = [micro] * (UPDATES - 1) + [micro if last is None else last]
    return [
        [
            (torch.rand(6, 3, 8, 8, generator=generator), torch.randint(0, 5, (6,), generator=generator))
            for _ in range(n)
        ]
        for n in counts
    ]


def fresh(net: Callable[[], nn.Module], opt: str = "rts_pugd", **settings: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model = net()
    model.train()
    always = {"switch": "fixed", "switch_at": 2, "perturb_every": 1, "total_steps": UPDATES, "lr": 0.1}
    return model, timm.optim.create_optimizer_v2(model, opt=opt, **{**always, **settings})


def soft(labels: Tensor) -> Tensor:
    return 0.7 * nn.functional.one_hot(labels, 5).float() + 0.3 / 5


class Loop:
    """A loop of others; `by_hand` adds to it what `attach_second_pass` does."""

    def __init__(
        self,
        net: Callable[[], nn.Module] = Net,
        *,
        micro: int = 1,
        last: int | None = None,
        criterion: Callable[[], nn.Module] | None = nn.CrossEntropyLoss,
        autocast: torch.dtype | None = None,
        scaler: Callable[[], Any] | None = None,
        clip: float | None = None,
        labels: Callable[[Tensor], Tensor] = lambda labels: labels,
        compiled: bool = False,
        ema: bool = False,
        opt: str = "rts_pugd",
        **settings: Any,
    ) -> None:
        self.net, self.micro, self.last, self.autocast, self.clip = net, micro, last, autocast, clip
        self.criterion = None if criterion is None else criterion()
        self.scaler, self.labels, self.compiled, self.ema = scaler, labels, compiled, ema
        self.opt, self.settings = opt, settings

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, n: int) -> Tensor:
        with torch.autocast("cpu", self.autocast) if self.autocast else contextlib.nullcontext():
            output = model(x) if self.criterion is not None else model(pixel_values=x, labels=y)
            loss = output["loss"] if self.criterion is None else self.criterion(output, y)
        if n > 1:
            loss /= n  # in place, as timm's script has it
        return loss

    def run(self, *, by_hand: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
        model, optimizer = fresh(self.net, self.opt, **self.settings)
        if self.compiled:
            model = torch.compile(model, backend="eager")  # type: ignore[assignment]
        rts = rts_hf.unwrap_optimizer(optimizer)
        assert rts is not None
        if not by_hand:
            rts_hf.attach_second_pass(optimizer, model, self.criterion)
        ema = ModelEmaV3(model, decay=0.9) if self.ema else None
        scaler = self.scaler() if self.scaler else None
        for window in batches(self.micro, self.last):
            first: list[tuple[rts_hf.RandomState, Tensor, Tensor]] = []
            for x, y in window:
                x, y = x.clone(), self.labels(y)
                first.append((rts_hf.RandomState(torch.device("cpu")), x.clone(), y))
                loss = self.loss(model, x, y, len(window))
                (scaler.scale(loss) if scaler else loss).backward()
            if self.clip:
                if scaler:
                    scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            if by_hand and rts.perturbing:
                unscaled = scaler is not None and self.clip is not None
                with rts.perturbed(), rts_hf.keep_buffers(model):
                    for state, x, y in first:
                        with state.replayed():
                            loss = self.loss(model, x, y, len(window))
                        (scaler.scale(loss) if scaler and not unscaled else loss).backward()
            if scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            optimizer.zero_grad()
            if ema is not None:
                ema.update(model)
        assert rts.stats()["gradient_evaluations"] == UPDATES + (3 if self.settings.get("perturb_every") is None else 2)
        state = (model if ema is None else ema.module).state_dict()
        return state, {key: value for key, value in rts.stats().items() if key != "unusable_gradients"}


LOOPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"micro": 3},
    "a shorter last window": {"micro": 3, "last": 2},
    "clipping": {"clip": 0.1},
    "bf16": {"autocast": torch.bfloat16},
    "fp16 scaler": {"scaler": lambda: torch.amp.GradScaler("cpu", init_scale=2.0**10)},
    "scaler and accumulation": {"micro": 2, "scaler": lambda: torch.amp.GradScaler("cpu", init_scale=2.0**10)},
    "scaler and clipping": {"clip": 0.1, "scaler": lambda: torch.amp.GradScaler("cpu", init_scale=2.0**10)},
    "ema": {"ema": True},
    "compiled": {"compiled": True},
    "checkpointing": {"net": Checkpointed},
    "stochastic depth": {
        "net": lambda: timm.create_model("test_vit", num_classes=5, img_size=8, patch_size=4, drop_path_rate=0.5)
    },
    "soft labels": {"labels": soft, "criterion": SoftTargetCrossEntropy},
    "its own loss": {"net": WithLoss, "criterion": None},
    "changes its inputs": {"net": InPlace, "micro": 2},
    "lookahead": {"opt": "lookahead_rts_pugd"},
    "perturb_every": {"perturb_every": 2},
    "adamw": {"base": "adamw", "lr": 0.01},
    "sam": {"opt": "sam", "clip": 1.0, "switch": "fixed"},
    "a parameter among the outputs": {"net": lambda: Scaled(), "criterion": lambda: _Scaling()},
    "losses of each image": {"criterion": lambda: _Each()},
}


class Scaled(Net):
    """Returns a parameter of its own beside what is made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return logits and their scale."""
        return super().forward(x), self.scale


class _Scaling(nn.Module):
    def forward(self, outputs: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        return cross_entropy(outputs[0] * outputs[1], labels)


class _Each(nn.Module):
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels, reduction="none").mean()


@pytest.mark.parametrize("name", LOOPS)
def test_as_by_hand(name: str) -> None:
    attached, stats = Loop(**LOOPS[name]).run(by_hand=False)
    by_hand, expected = Loop(**LOOPS[name]).run(by_hand=True)
    assert stats == expected
    for key, value in by_hand.items():
        assert torch.equal(attached[key], value), key


def test_timms_scaler_and_accelerates_accumulation() -> None:
    ends = []
    AcceleratorState._reset_state(reset_partial_state=True)  # which other tests have left
    GradientState._reset_state()
    for kind in ("timm", "accelerate", "by hand"):
        model, optimizer = fresh(Net)
        criterion = nn.CrossEntropyLoss()
        accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
        rts = optimizer
        if kind == "accelerate":
            model, optimizer = accelerator.prepare(model, optimizer)
        if kind != "by hand":
            rts_hf.attach_second_pass(optimizer, model, criterion)
        scaler = NativeScaler(device="cpu") if kind == "timm" else None
        for window in batches(2):
            first = []
            for place, (x, y) in enumerate(window):
                first.append((rts_hf.RandomState(torch.device("cpu")), x, y))
                if kind == "accelerate":
                    with accelerator.accumulate(model):
                        accelerator.backward(criterion(model(x), y))
                        optimizer.step()
                        optimizer.zero_grad()
                elif scaler is not None:
                    scaler(criterion(model(x), y) / 2, optimizer, parameters=model.parameters(), need_update=place == 1)
                else:
                    (criterion(model(x), y) / 2).backward()
            if kind == "by hand":
                if rts.perturbing:
                    with rts.perturbed(), rts_hf.keep_buffers(model):
                        for state, x, y in first:
                            with state.replayed():
                                loss = criterion(model(x), y) / 2
                            loss.backward()
                optimizer.step()
            if kind != "accelerate":
                optimizer.zero_grad()
        ends.append([param.detach().clone() for param in model.parameters()])
    for attached in ends[:2]:
        assert all(map(torch.equal, attached, ends[2]))


def test_overflow_in_the_second_pass_alone_skips_the_update() -> None:
    model, optimizer = fresh(Net, switch_at=0)

    class Grows(nn.CrossEntropyLoss):
        passes = 0

        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            Grows.passes += 1
            return super().forward(logits, labels) * (torch.inf if Grows.passes == 2 else 1.0)

    criterion = Grows()
    rts_hf.attach_second_pass(optimizer, model, criterion)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = copy.deepcopy(model.state_dict())
    (x, y), (x2, y2) = batches()[0][0], batches()[1][0]
    scaler.scale(criterion(model(x), y)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert optimizer.stats()["step"] == 0
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    model.zero_grad()  # not the optimizer's: what was remembered of the skipped update must not come back
    scaler.scale(criterion(model(x2), y2)).backward()
    scaler.step(optimizer)
    assert (Grows.passes, optimizer.stats()["gradient_evaluations"]) == (4, 2)


def test_nothing_is_kept_before_the_switch_and_no_graph_after_it() -> None:
    model, optimizer = fresh(Net, switch_at=1)
    criterion = nn.CrossEntropyLoss()
    attached = rts_hf.attach_second_pass(optimizer, model, criterion, total_steps=9)
    assert optimizer.total_steps == 9
    (x, y) = batches()[0][0]
    criterion(model(x), y)
    assert attached._calls == []
    model.zero_grad()
    criterion(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    output = model(x)
    (call,) = attached._calls
    del output
    assert all(reference() is None for reference, _ in call.outputs)
    model.eval()
    model(x)
    with torch.no_grad():
        model.train()(x)
    assert attached._calls == [call]
    copy.deepcopy(model)(x)  # which is not the one that trains
    assert attached._calls == [call]
    attached.detach()
    model(x)
    assert attached._calls == []
    assert not model._forward_pre_hooks
    assert not criterion._forward_hooks
    assert optimizer.attached is None


def test_mixup_before_the_call_and_a_gradient_cleared_between() -> None:
    ends = []
    for by_hand in (True, False):
        model, optimizer = fresh(Net, switch_at=0)
        criterion = SoftTargetCrossEntropy()
        if not by_hand:
            rts_hf.attach_second_pass(optimizer, model, criterion)
        mix = Mixup(mixup_alpha=0.8, num_classes=5)
        for window in batches():
            x, y = mix(window[0][0].clone(), window[0][1])
            state = rts_hf.RandomState(torch.device("cpu"))
            loss = criterion(model(x), y)
            optimizer.zero_grad()  # after the forward, as many loops have it
            loss.backward()
            if by_hand:
                with optimizer.perturbed(), rts_hf.keep_buffers(model), state.replayed():
                    criterion(model(x), y).backward()
            optimizer.step()
        ends.append([*model.parameters()])
    assert all(map(torch.equal, *ends))


def _penalty(model: nn.Module, criterion: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    output = model(x)
    return criterion(output, y) + 0.1 * output.square().mean()


def _graph(model: nn.Module, criterion: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    criterion(model(x), y).backward(create_graph=True)
    return torch.zeros((), requires_grad=True)


def _late_penalty(model: nn.Module, criterion: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    output = model(x)
    return criterion(output, y) + criterion(output, y.flip(0)) + 0.1 * output.square().mean()


def _changed(model: nn.Module, criterion: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    output = model(x)
    output += 1.0
    return criterion(output, y)


def _own_target(model: nn.Module, criterion: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    output = model(x)
    return criterion(output, output.detach())


def _eval_before_the_step(model: nn.Module, criterion: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = criterion(model(x), y)
    model.eval()
    return loss


def _prompted(model: nn.Module, criterion: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return criterion(model(x + nn.Parameter(torch.zeros(1))), y)


REFUSED: dict[str, Callable[..., Tensor]] = {
    "criterion's inputs": _penalty,
    "criterion's inputs alone": _late_penalty,
    "create_graph": _graph,
    "no output of the model": lambda model, criterion, x, y: criterion(model(x) / 2, y),
    "changed in place": _changed,
    "no output of the model as it was": _own_target,
    "eval mode": _eval_before_the_step,
    "made by something else": _prompted,
    "several calls": lambda model, criterion, x, y: (
        criterion(model(x), model(x).softmax(1).detach()) + criterion(model(x), model(x))
    ),
    "no function": lambda model, criterion, x, y: cross_entropy(model(x), y),
    "led to this gradient": lambda model, criterion, x, y: criterion(model.body(x), y),
}


@pytest.mark.parametrize("words", REFUSED)
@pytest.mark.filterwarnings("ignore:Using backward")
def test_what_cannot_be_repeated_is_refused_and_the_weights_stay(words: str) -> None:
    model, optimizer = fresh(Net, switch_at=0)
    criterion = nn.CrossEntropyLoss()
    rts_hf.attach_second_pass(optimizer, model, criterion)
    before = [param.detach().clone() for param in model.parameters()]

    def update() -> None:
        REFUSED[words](model, criterion, *batches()[0][0]).backward()
        optimizer.step()

    with pytest.raises(RuntimeError, match="perturbed") as error:
        update()
    assert words in str(error.value)
    assert all(map(torch.equal, before, model.parameters()))


def test_bad_arguments() -> None:
    model, optimizer = fresh(Net)
    with pytest.raises(TypeError, match="criterion is a function"):
        rts_hf.attach_second_pass(optimizer, model, cross_entropy)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model is a"):
        rts_hf.attach_second_pass(optimizer, [model], None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no second pass"):
        rts_hf.attach_second_pass(torch.optim.SGD(model.parameters()), model, None)
    rts_hf.attach_second_pass(optimizer, model, nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match="attached already"):
        rts_hf.attach_second_pass(optimizer, model, nn.CrossEntropyLoss())
    model, optimizer = fresh(Net, switch_at=0)
    rts_hf.attach_second_pass(optimizer, model)
    with pytest.raises(RuntimeError, match="no loss"):
        model(batches()[0][0][0])


def _zero_in_place(model: nn.Module, optimizer: Any) -> None:
    model.zero_grad(set_to_none=False)


def _gradient_of_an_input(model: nn.Module, optimizer: Any) -> None:
    """As an attack on the images has it: no gradient of a parameter is added to."""
    x, y = batches()[1][0]
    x.requires_grad_()
    torch.autograd.grad(nn.CrossEntropyLoss()(model(x), y), x)


def _gradient_of_a_weight(model: nn.Module, optimizer: Any) -> None:
    x, y = batches()[1][0]
    torch.autograd.grad(cross_entropy(model(x), y), next(model.parameters()))


@pytest.mark.parametrize("aside", [_zero_in_place, _gradient_of_an_input, _gradient_of_a_weight])
def test_what_does_not_add_to_the_gradients_is_not_repeated(aside: Callable[..., None]) -> None:
    """A batch is gone through and its gradient cleared, or taken aside, before the update's own."""
    ends = []
    for by_hand in (True, False):
        model, optimizer = fresh(Net, switch_at=0)
        criterion = nn.CrossEntropyLoss()
        if not by_hand:
            rts_hf.attach_second_pass(optimizer, model, criterion)
        for window in batches(2):
            if aside is _zero_in_place:
                criterion(model(window[1][0]), window[1][1]).backward()
            aside(model, optimizer)
            (x, y), _ = window
            state = rts_hf.RandomState(torch.device("cpu"))
            loss = criterion(model(x), y)
            if aside is not _zero_in_place:  # only looked at
                torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
            loss.backward()
            if aside is not _zero_in_place:
                aside(model, optimizer)
            if by_hand:
                with optimizer.perturbed(), rts_hf.keep_buffers(model), state.replayed():
                    criterion(model(x), y).backward()
            optimizer.step()
            model.zero_grad()
        ends.append([*model.parameters()])
    assert all(map(torch.equal, *ends))


def test_labels_and_dicts_that_the_loop_uses_again() -> None:
    class Batch(WithLoss):
        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
            return super().forward(batch.pop("pixel_values"), batch["labels"])

    ends = []
    for by_hand in (True, False):
        model, optimizer = fresh(Batch, switch_at=0)
        if not by_hand:
            rts_hf.attach_second_pass(optimizer, model)
        batch: dict[str, Tensor] = {}
        for window in batches(2):
            kept = []
            labels = torch.zeros(6, dtype=torch.long)
            for x, y in window:
                labels.copy_(y)
                batch.update(pixel_values=x, labels=labels)
                kept.append((rts_hf.RandomState(torch.device("cpu")), x, y))
                model(batch)["loss"].backward()
            if by_hand:
                with optimizer.perturbed(), rts_hf.keep_buffers(model):
                    for state, x, y in kept:
                        with state.replayed():
                            loss = model({"pixel_values": x, "labels": y})["loss"]
                        loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append([*model.parameters()])
    assert all(map(torch.equal, *ends))


def test_a_term_beside_the_models_own_loss_is_refused_and_a_scalers_gradients_stay() -> None:
    model, optimizer = fresh(WithLoss, switch_at=0)
    rts_hf.attach_second_pass(optimizer, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x, y = batches()[0][0]
    output = model(pixel_values=x, labels=y)
    scaler.scale(output["loss"] + 0.1 * output["logits"].square().mean()).backward()
    scaler.unscale_(optimizer)
    before = [param.grad.clone() for param in model.parameters() if param.grad is not None]
    with pytest.raises(RuntimeError, match="no function"):
        scaler.step(optimizer)
    assert all(map(torch.equal, before, [param.grad for param in model.parameters()]))
