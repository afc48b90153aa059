"""Base optimizers by name."""

from typing import Any

import pytest
import timm.optim
import torch
from torch import nn

from rts_hf import RTSPUGD
from rts_hf.optim.bases import create_base
from rts_hf.optim.registration import ENTRIES


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
        ("sgd", {"betas": (0.5, 0.9)}, ValueError, r"betas=\(0.5, 0.9\): base='sgd' has no betas; leave it out"),
        ("rmsprop", {"betas": (0.5, 0.9)}, ValueError, "base='rmsprop' has no betas"),
        ("lion", {"eps": 1e-3}, ValueError, "eps=0.001: base='lion' has no eps"),
        ("sgd", {"maximize": True}, ValueError, "maximize=True: .*minimize the negative loss"),
        ("sgd", {"layer_decay": 0.7}, ValueError, "layer_decay=0.7 makes groups of a model.*create_optimizer_v2"),
    ],
)
def test_refusals(base: str, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        create_base([nn.Parameter(torch.ones(2))], base, 0.1, arguments)


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_what_timms_script_passes_is_taken(base: str) -> None:
    known = {"momentum": 0.9, "weight_decay": 0.0, "maximize": False, "foreach": None}
    create_base([nn.Parameter(torch.ones(2))], base, None, {**known, **({} if base == "adamw" else {"eps": None})})
    create_base(nn.Linear(2, 2), base, torch.tensor(0.1), {"layer_decay": 0.7})


# ---- What a parameter group may say ----

NAN, INF = float("nan"), float("inf")
BAD = [
    *({name: value} for name in ("lr", "momentum", "weight_decay") for value in (NAN, INF, -0.1, True, "0.1")),
    {"lr": torch.tensor(NAN)},
    {"lr": torch.tensor(-1.0)},
    {"maximize": True},
]
SHARED = {
    "radius": "constant",
    "radius_beta_max": 0.5,
    "scale": "constant",
    "scale_beta_min": 0.5,
    "switch": None,
    "switch_at": 0,
    "perturb_every": 2,
    "total_steps": 9,
    "method": "sam",
    "base": "adamw",
    "rts_step": 3,
    "rts_nonsense": 3,
}


def weight(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=dtype.is_floating_point)


@pytest.mark.parametrize("entry", [*BAD, *({key: value} for key, value in SHARED.items()), {"betas": (0.5, 0.9)}])
def test_entries_of_a_group_that_do_nothing_or_make_nan(entry: dict[str, Any]) -> None:
    (name,) = entry
    with pytest.raises(ValueError, match=f"{name}="):
        RTSPUGD([{"params": [weight()], **entry}, {"params": [weight()]}], lr=0.1)
    optimizer = RTSPUGD([weight()], lr=0.1)
    with pytest.raises(ValueError, match=f"{name}="):
        optimizer.add_param_group({"params": [weight()], **entry})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("entry", BAD)
def test_settings_of_all_groups_that_make_nan(entry: dict[str, Any]) -> None:
    (name,) = entry
    with pytest.raises(ValueError, match=f"{name}="):
        RTSPUGD([weight()], **{"lr": 0.1, **entry})


@pytest.mark.parametrize(
    ("dtype", "message"),
    [(torch.int64, "a tensor of torch.int64, which has no gradient"), (torch.complex64, "complex")],
)
def test_parameters_that_are_no_real_numbers(dtype: torch.dtype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RTSPUGD([weight(), weight(dtype)], lr=0.1)
    optimizer = RTSPUGD([weight()], lr=0.1)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": weight(dtype)})
    assert len(optimizer.param_groups) == 1


def test_a_group_may_say_what_is_the_bases_and_be_used_again() -> None:
    groups = [{"params": [weight()], "lr": torch.tensor(0.3), "weight_decay": 0, "lr_scale": 0.5}]
    for _ in range(2):
        assert "rts_step" in RTSPUGD(groups, lr=0.1, switch=None).param_groups[0]
        assert not [key for key in groups[0] if key.startswith("rts_")]


HERE = set(timm.optim.list_optimizers(exclude_filters=["bnb*", "fused*"])) - {*ENTRIES}  # the others need a package


@pytest.mark.filterwarnings("ignore:.*opt_einsum")
@pytest.mark.parametrize("base", sorted(HERE))
def test_the_entries_of_every_base_are_legal(base: str) -> None:
    if not timm.optim.get_optimizer_info(base).second_order:
        RTSPUGD([{"params": [nn.Parameter(torch.ones(2, 2))]}], lr=0.1, base=base, momentum=0.9)


def test_complex_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="complex"):
        create_base([nn.Parameter(torch.ones(2, dtype=torch.complex64))], "sgd", 0.1, {})
