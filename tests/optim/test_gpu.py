"""What only a CUDA device shows: real fp16 scaling, compiled kernels, dropout's masks there, no waiting for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from training_for_tests import Images, make_model, make_trainer, training_logs

from rts_hf import RTSPUGD, RandomState, collate, keep_buffers, load_data

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

ALWAYS: dict[str, Any] = {"lr": 0.05, "switch": None, "perturb_every": 1, "total_steps": 20}


def make_net(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(),
        nn.Linear(8 * 16 * 16, 3),
    )  # fmt: skip


def batch(update: int, device: str = "cuda", count: int = 16) -> tuple[Tensor, Tensor]:
    images = Images(count, seed=update)
    return images.pixels.to(device), images.labels.to(device)


def update_once(net: nn.Module, optimizer: RTSPUGD, x: Tensor, y: Tensor, scaler: Any = None, **cast: Any) -> None:
    def backward() -> None:
        with torch.autocast(x.device.type, **{"enabled": False, **cast}):
            loss = cross_entropy(net(x), y)
        (loss if scaler is None else scaler.scale(loss)).backward()

    backward()
    if optimizer.perturbing:
        with optimizer.perturbed(), keep_buffers(net):
            backward()
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad()


def distance(left: nn.Module, right: nn.Module) -> float:
    a, b = (torch.cat([p.detach().cpu().flatten() for p in net.parameters()]).double() for net in (left, right))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("method", ["pugd", "sam", "asam"])
def test_updates_are_those_of_the_cpu(method: str, fused: bool) -> None:
    nets = {device: make_net().to(device) for device in ("cpu", "cuda")}
    scale = {} if method == "pugd" else {"scale": "constant", "scale_beta_max": 0.0}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for device, net in nets.items():
            optimizer = RTSPUGD(net.parameters(), method=method, fused=fused, radius_beta_max=0.5, **scale, **ALWAYS)
            for update in range(8):
                update_once(net, optimizer, *batch(update, device))
    assert distance(nets["cuda"], nets["cpu"]) <= 1e-4


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("switch", [None, "gradient_variance"])
def test_no_update_waits_for_the_device(switch: str | None, fused: bool) -> None:
    net, (x, y) = make_net().cuda(), batch(0)
    window = {"switch_window": 50, "switch_init_steps": 50} if switch else {}
    optimizer = RTSPUGD(net.parameters(), **{**ALWAYS, "switch": switch, "total_steps": 200}, fused=fused, **window)
    for _ in range(2):  # they make the optimizer's state and choose kernels
        update_once(net, optimizer, x, y)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            update_once(net, optimizer, x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert optimizer.stats()["step"] == 12


@pytest.mark.parametrize("kinds", [(torch.bfloat16,), (torch.bfloat16, torch.float32)], ids=["bf16", "mixed"])
def test_weights_in_low_precision_are_put_back_bit_for_bit(
    kinds: tuple[torch.dtype, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rts_hf.optim.perturbation._LONG", 1000)
    params = [nn.Parameter(torch.randn(700, device="cuda").to(kind)) for kind in kinds * 3]
    for param in params:
        param.grad = torch.randn_like(param)
    before = [param.detach().clone() for param in params]
    optimizer = RTSPUGD(params, radius="constant", radius_beta_max=2.0, **ALWAYS)
    with optimizer.perturbed():
        assert not any(torch.equal(p, w) for p, w in zip(params, before, strict=True))
        moved = torch.cat([(p.detach().float() - w.float()) for p, w in zip(params, before, strict=True)]).norm()
    assert float(moved) == pytest.approx(2.0, rel=0.02)  # the radius, rounded in bfloat16
    assert all(torch.equal(p, w) for p, w in zip(params, before, strict=True))


def test_dropout_draws_the_same_masks_in_both_passes() -> None:
    net, (x, y) = make_net(dropout=0.5).cuda(), batch(0)
    optimizer = RTSPUGD(net.parameters(), radius="constant", radius_beta_max=0.0, scale_beta_max=0.0, **ALWAYS)
    state = RandomState(torch.device("cuda"))
    cross_entropy(net(x), y).backward()
    first = [p.grad.clone() for p in net.parameters()]
    with optimizer.perturbed(), keep_buffers(net), state.replayed():
        cross_entropy(net(x), y).backward()
    for before, param in zip(first, net.parameters(), strict=True):  # α_r = α_s = 0: the second gradient is the first
        torch.testing.assert_close(param.grad, before, rtol=1e-4, atol=1e-7)


def test_fp16_takes_any_loss_scale() -> None:
    def train(power: int) -> nn.Module:
        net, scaler = make_net().cuda(), torch.amp.GradScaler("cuda", init_scale=2.0**power)
        optimizer = RTSPUGD(net.parameters(), radius_beta_max=0.5, **ALWAYS)
        for update in range(8):
            update_once(net, optimizer, *batch(update), scaler, dtype=torch.float16, enabled=True)
        assert optimizer.stats()["step"] == 8  # none was skipped
        return net

    assert distance(train(6), train(10)) <= 1e-3


def test_an_overflow_in_fp16_skips_the_update_and_leaves_w() -> None:
    net, scaler = make_net().cuda(), torch.amp.GradScaler("cuda", init_scale=2.0**40)
    optimizer = RTSPUGD(net.parameters(), **ALWAYS)
    before = [p.detach().clone() for p in net.parameters()]
    update_once(net, optimizer, *batch(0), scaler, dtype=torch.float16, enabled=True)
    assert optimizer.stats()["step"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_the_trainer_learns(tmp_path: Path, precision: str) -> None:
    settings: dict[str, Any] = {} if precision == "fp32" else {precision: True}
    trainer = make_trainer(
        tmp_path, make_model("test_resnet"), Images(64), use_cpu=False, num_train_epochs=30,
        per_device_train_batch_size=32, switch="fixed", switch_at="0.5", perturb_every=1, **settings,
    )  # fmt: skip
    trainer.train()
    assert trainer.model.device.type == "cuda"
    losses = [entry["loss"] for entry in training_logs(trainer)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert trainer.gradient_evaluations >= 85
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "use_cpu": False, "save_strategy": "steps", "save_steps": 7, "max_steps": 14, "switch": "fixed",
        "switch_at": "4", "perturb_every": 1, "full_determinism": True,
    }  # fmt: skip
    whole = make_trainer(tmp_path / "whole", make_model(drop_rate=0.2), **settings)
    whole.train()
    again = make_trainer(tmp_path / "again", make_model(seed=9, drop_rate=0.2), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-7"))
    assert distance(again.model, whole.model) == 0.0


def test_a_compiled_model_trains_the_same() -> None:
    nets = [make_net().cuda() for _ in range(2)]
    for net, forward in zip(nets, (nets[0], torch.compile(nets[1])), strict=True):
        optimizer = RTSPUGD(net.parameters(), **{**ALWAYS, "switch": "fixed"}, switch_at=2)
        for update in range(6):
            x, y = batch(update)
            cross_entropy(forward(x), y).backward()
            if optimizer.perturbing:
                with optimizer.perturbed(), keep_buffers(net):
                    cross_entropy(forward(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert distance(nets[1], nets[0]) <= 1e-4


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_a_cuda_graph_of_an_update_goes_on_with_schedules_and_rate(base: str) -> None:
    nets = make_net().cuda(), make_net().cuda()
    x, y = batch(0)
    rates = torch.tensor(0.05, device="cuda"), torch.tensor(0.05, device="cuda")
    settings = {"base": base, "switch": "fixed", "switch_at": 2, "perturb_every": 1, "total_steps": 20}
    plain, captured = (
        RTSPUGD(net.parameters(), rate, capturable=True, **settings) for net, rate in zip(nets, rates, strict=True)
    )

    def update(net: nn.Module, optimizer: RTSPUGD) -> None:
        optimizer.zero_grad(set_to_none=False)
        cross_entropy(net(x), y).backward()
        if optimizer.perturbing:
            with optimizer.perturbed():
                cross_entropy(net(x), y).backward()
        optimizer.step()

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(5):
            update(nets[1], captured)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update(nets[1], captured)
    for step in range(20):
        for rate in rates:
            rate.fill_(0.05 / (step + 1) if step >= 5 else 0.05)
        update(nets[0], plain)
        if step >= 5:
            graph.replay()
    assert captured.stats() == pytest.approx(plain.stats(), rel=1e-4)
    assert captured.stats()["step"] == 20
    assert distance(*nets) <= 1e-5


@pytest.mark.parametrize("method", ["pugd", "sam", "asam"])
def test_tritons_kernels_perturb_as_torchs_operations_do(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nets, norms = (make_net().cuda(), make_net().cuda()), []
    for net, devices in zip(nets, ({"cuda"}, set()), strict=True):
        monkeypatch.setattr("rts_hf.optim.optimizer._KERNEL_DEVICES", devices)
        optimizer = RTSPUGD(net.parameters(), method=method, **ALWAYS)
        for update in range(3):
            update_once(net, optimizer, *batch(update))
        assert (optimizer._lists is not None) == bool(devices)
        norms.append(optimizer.stats()["epsilon_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert distance(*nets) <= 1e-5


def test_batches_are_finished_on_the_device_without_waiting_for_it() -> None:
    data = load_data("digits", max_train_samples=64).train
    fetched = data.__getitems__(range(64))
    expected, pinned = collate(fetched), fetched.pin_memory()
    pinned.to("cuda")  # which copies mean and std there
    torch.cuda.set_sync_debug_mode("error")
    try:
        served = pinned.to("cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name in expected:
        assert torch.equal(served[name].cpu(), expected[name])
