"""The arithmetic: norms, SAM and ASAM against pytorch_optimizer, and the number of operations."""

import pytest
import torch
from pytorch_optimizer import SAM
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rts_hf import RTSPUGD
from rts_hf.optim.perturbation import (
    METHODS,
    _goes_by_parts,
    _parts,
    global_norm,
    perturb_,
    save_and_measure,
    unit_gradients,
)


def test_norms_are_accumulated_in_float32_at_least() -> None:
    assert global_norm([torch.full((3,), 300.0, dtype=torch.float16)] * 3).item() == pytest.approx(900.0)
    assert global_norm([torch.full((70000,), 300.0, dtype=torch.float16)]).isfinite()  # its square sum is not a half
    assert global_norm([torch.ones(2), torch.ones(2, dtype=torch.float64)]).dtype == torch.float64


@pytest.mark.parametrize("name", METHODS)
def test_epsilon(name: str) -> None:
    method = METHODS[name]
    w, g = torch.tensor([1.0, -2.0, 0.0, 4.0]), torch.tensor([0.5, 1.0, 2.0, -1.0])
    param, saved = w.clone(), torch.full_like(w, torch.nan)
    norm, divisor = save_and_measure([param], [g], [saved], method)
    torch.testing.assert_close(norm, g.norm())
    assert torch.equal(param, w)
    assert torch.equal(saved, w)
    norm = perturb_([param], [g], [saved], divisor, 0.3, 1.0, method)
    direction = w.abs() ** method.weight_power * g
    expected = 0.3 * direction / (w.abs() ** method.norm_power * g).norm()
    torch.testing.assert_close(param - w, expected)
    torch.testing.assert_close(norm, expected.norm())
    assert torch.equal(g, torch.tensor([0.5, 1.0, 2.0, -1.0]))


@pytest.mark.parametrize("radius", [0.0, 0.3])
def test_no_gradient_gives_no_perturbation(radius: float) -> None:
    param, g = torch.tensor([1.0, -2.0]), torch.zeros(2)
    saved = param.clone()
    _, divisor = save_and_measure([param], [g], [saved], METHODS["pugd"])
    assert perturb_([param], [g], [saved], divisor, radius, 1.0, METHODS["pugd"]) == 0
    assert torch.equal(param, torch.tensor([1.0, -2.0]))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_of_long_lists_give_what_the_whole_gives(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, generator = METHODS[name], torch.Generator().manual_seed(0)
    shapes = [(5,), (7, 9), (3, 4, 5, 6), (), (2, 3), (0,), (64, 8)]
    w = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    g = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    w[2] = w[2].to(memory_format=torch.channels_last)  # in another order than its gradient
    made = []
    for length in (10**6, 16):
        monkeypatch.setattr("rts_hf.optim.perturbation._LONG", length)
        monkeypatch.setattr("rts_hf.optim.perturbation._CACHED", length)
        monkeypatch.setattr("rts_hf.optim.perturbation._DOTTED_FROM", length // 2)
        params, grads, saved = [p.clone() for p in w], [x.clone() for x in g], [torch.empty_like(p) for p in w]
        norm, divisor = save_and_measure(params, grads, saved, method)
        assert all(torch.equal(copy, p) for copy, p in zip(saved, w, strict=True))
        made.append([*params, *grads, norm, perturb_(params, grads, saved, divisor, 2.0, 0.5, method)])
    assert [x.dtype for x in made[0][:7]] == [dtype] * 7
    assert not torch.equal(made[0][1], w[1])
    assert torch.equal(made[0][8], g[1] * 0.5)
    for whole, parts in zip(*made, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=1e-7)


@pytest.mark.parametrize("shapes", [[(2**24,)], [(2**23,), (3, 4)], [(4096, 2048), (5,)], [(2**25 + 1,)]])
def test_a_long_norm_is_as_exact_as_float32_allows(shapes: list[tuple[int, ...]]) -> None:
    """Summed up in one run, the norm of so many numbers is wrong in its fourth digit."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.rand(shape, generator=generator) for shape in shapes]
    exact = sum(tensor.double().square().sum().item() for tensor in tensors) ** 0.5
    assert global_norm(tensors).item() == pytest.approx(exact, rel=5e-7)


def test_weights_of_both_precisions_are_perturbed_elsewhere_than_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """There a part that happens to hold only float32 must not want its factor on the host."""
    monkeypatch.setattr("rts_hf.optim.perturbation._LONG", 16)
    params = [torch.empty(30, dtype=kind, device="meta") for kind in (torch.bfloat16, torch.float32)]
    grads, saved = [torch.empty_like(p) for p in params], [torch.empty_like(p) for p in params]
    norm, divisor = save_and_measure(params, grads, saved, METHODS["pugd"])
    assert perturb_(params, grads, saved, divisor, 1.0, 0.5, METHODS["pugd"]).device == norm.device == params[0].device


def test_parts_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rts_hf.optim.perturbation._LONG", 16)
    monkeypatch.setattr("rts_hf.optim.perturbation._CACHED", 8)
    tensors = [torch.zeros(3), torch.zeros(4), torch.zeros(5, 5), torch.zeros(6), torch.zeros(1)]
    counts = [[part.numel() for part in parts] for (parts,) in _parts(tensors)]
    assert counts == [[8], [8], [8], [1], [3, 4], [6, 1]]
    assert [[part.numel() for part in parts] for (parts,) in _parts(tensors[:2])] == [[3, 4]]
    assert _goes_by_parts(tensors)
    assert not _goes_by_parts(tensors[:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_unit_gradients(dtype: torch.dtype) -> None:
    grads = [torch.tensor([3.0], dtype=dtype), torch.tensor([[0.0, -4.0]], dtype=dtype)]
    buffers = [torch.full_like(grad, torch.nan) for grad in grads]
    unusable = unit_gradients(grads, buffers, global_norm(grads))
    assert not unusable
    torch.testing.assert_close(buffers[0].float(), torch.tensor([0.6]), rtol=0, atol=torch.finfo(dtype).eps)
    torch.testing.assert_close(buffers[1].float(), torch.tensor([[0.0, -0.8]]), rtol=0, atol=torch.finfo(dtype).eps)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, call: str) -> list[Tensor]:
    for step in range(10):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 4, generator=generator, dtype=torch.float64)

        def closure(x=x) -> Tensor:
            optimizer.zero_grad()
            loss = (net(x) - x[:, :3]).square().mean()
            loss.backward()
            return loss

        if call == "theirs":
            closure()
        optimizer.step(closure)
    return [p.detach() for p in net.parameters()]


def pair() -> tuple[nn.Module, nn.Module]:
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double())
    return nets[0], nets[1]


@pytest.mark.parametrize("base", ["momentum", "adamw"])
@pytest.mark.parametrize(("opt", "adaptive", "rho"), [("sam", False, 0.05), ("asam", True, 0.5)])
def test_sam_and_asam_equal_the_published_implementation(opt: str, adaptive: bool, rho: float, base: str) -> None:
    """pytorch_optimizer takes the norm in float32 even of float64 gradients, hence the bound; see the next test."""
    theirs, ours = pair()
    cls, kwargs = {"momentum": (torch.optim.SGD, {"momentum": 0.9}), "adamw": (torch.optim.AdamW, {})}[base]
    published = SAM(
        theirs.parameters(), cls, rho=rho, adaptive=adaptive, perturb_eps=0.0, lr=0.01, weight_decay=0.1, **kwargs
    )
    optimizer = create_optimizer_v2(ours.parameters(), opt=opt, lr=0.01, weight_decay=0.1, base=base, total_steps=10)
    expected = train(theirs, published, "theirs")
    for a, b in zip(expected, train(ours, optimizer, "ours"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("opt", "weight_power", "norm_power", "rho"), [("sam", 0, 0, 0.05), ("asam", 2, 1, 0.5)])
def test_sam_and_asam_equal_their_equations(opt: str, weight_power: int, norm_power: int, rho: float) -> None:
    theirs, ours = pair()
    params = list(theirs.parameters())
    sgd = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    optimizer = create_optimizer_v2(ours.parameters(), opt=opt, lr=0.1, base="momentum", total_steps=10)
    train(ours, optimizer, "ours")
    for step in range(10):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        g = torch.autograd.grad((theirs(x) - x[:, :3]).square().mean(), params)
        w = [p.detach().clone() for p in params]
        norm = torch.cat([(p.abs() ** norm_power * gi).flatten() for p, gi in zip(w, g, strict=True)]).norm()
        with torch.no_grad():
            for p, wi, gi in zip(params, w, g, strict=True):
                p.copy_(wi + rho * wi.abs() ** weight_power * gi / norm)
        second = torch.autograd.grad((theirs(x) - x[:, :3]).square().mean(), params)
        with torch.no_grad():
            for p, wi, gi in zip(params, w, second, strict=True):
                p.copy_(wi)
                p.grad = gi
        sgd.step()
    for a, b in zip(params, ours.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


class CountOperations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["foreach", "fused"])
def test_a_handful_of_operations_whatever_the_number_of_tensors(kind: str) -> None:
    counts = {}
    for depth in (2, 40):
        net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(depth)))
        settings = {"switch": None, "perturb_every": 1, "total_steps": 9, kind: True}
        optimizer = RTSPUGD(net.parameters(), lr=0.1, base="momentum", **settings)
        for _ in range(3):
            net(torch.ones(2, 4)).square().mean().backward()
            with CountOperations() as counter, optimizer.perturbed():
                pass
            with CountOperations() as step_counter:
                optimizer.step()
            counts[depth] = counter.count, step_counter.count
            optimizer.zero_grad()
    assert counts[2] == counts[40]
    assert sum(counts[40]) <= 40
