"""A tiny net with its batches, and the updates that train it with RTSPUGD."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rts_hf import RTSPUGD

ALWAYS = {"switch": "fixed", "switch_at": 0, "perturb_every": 1, "total_steps": 20}
SCHEDULES = {
    "radius": "inverse_cosine_heating",
    "radius_beta_min": 0.1,
    "radius_beta_max": 2.0,
    "scale": "cosine_annealing",
    "scale_beta_min": 0.2,
    "scale_beta_max": 1.5,
}


def make_net(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def make_batches(count: int, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 4, generator=generator).to(dtype), torch.randn(8, 3, generator=generator).to(dtype))
        for _ in range(count)
    ]


def loss_of(net: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.mse_loss(net(batch[0]), batch[1])


def update_once(
    net: Callable[[Tensor], Tensor], optimizer: RTSPUGD, batch: tuple[Tensor, Tensor], closure: bool = False
) -> None:
    def backward() -> Tensor:
        loss = loss_of(net, batch)
        loss.backward()
        return loss

    if closure:
        optimizer.step(backward)
    else:
        backward()
        if optimizer.perturbing:
            with optimizer.perturbed():
                backward()
        optimizer.step()
    optimizer.zero_grad()


def loop(net: nn.Module, optimizer: RTSPUGD, batches: list) -> None:
    for batch in batches:
        update_once(net, optimizer, batch)


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def assert_equal(left: list[Tensor], right: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
