"""Base optimizers by name."""

from typing import Any

import pytest
import torch
from torch import nn

from rts_hf.optim.bases import create_base


def test_it_is_timms() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = create_base([weight], "sgd", 0.3, {"momentum": 0.5})
    assert isinstance(optimizer, torch.optim.SGD)
    assert {key: optimizer.param_groups[0][key] for key in ("lr", "momentum", "nesterov", "weight_decay")} == {
        "lr": 0.3, "momentum": 0.5, "nesterov": True, "weight_decay": 0.0,
    }  # fmt: skip
    assert create_base([weight], "adamw", None, {}).param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("base", "arguments", "error", "message"),
    [
        ("adamz", {}, ValueError, "base='adamz' is not an optimizer timm knows"),
        ("rts_pugd", {}, ValueError, "itself a two-pass optimizer"),
        ("lookahead_sgd", {}, ValueError, "lookahead_rts_pugd"),
        ("adahessian", {}, ValueError, "differentiates the gradient"),
        ("adamw", {"nonsense": 1}, TypeError, r"refuses its arguments \['nonsense'\]"),
    ],
)
def test_refusals(base: str, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        create_base([nn.Parameter(torch.ones(2))], base, 0.1, arguments)


def test_complex_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="complex"):
        create_base([nn.Parameter(torch.ones(2, dtype=torch.complex64))], "sgd", 0.1, {})
