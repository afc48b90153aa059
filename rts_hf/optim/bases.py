"""The base optimizers that take the actual steps, by the names timm knows them by."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Container, Mapping
from numbers import Real
from typing import Any

import timm.optim
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rts_hf.optim.parallelism import check_holders, check_parameters, check_requests
from rts_hf.optim.timing import TimedOptimizer

_NUMBERS = {"lr": "learning rate", "momentum": "momentum", "weight_decay": "weight decay"}
# Settings of this optimizer, which its groups share, and its own record of the run
_SHARED = re.compile(r"(radius|scale|switch)(_.*)?|perturb_every|total_steps|method|base|rts_.*")
# What timm makes groups by, where it gets a model to make them of
_OF_A_MODEL = frozenset(
    {
        "fallback_list",
        "fallback_no_weight_decay",
        "filter_bias_and_bn",
        "layer_decay",
        "layer_decay_min_scale",
        "layer_decay_no_opt_scale",
        "param_group_fn",
        "weight_decay_exclude_1d",
    }
)


def create_base(params: Any, base: str, lr: Any, base_kwargs: dict[str, Any], *, capturable: bool = False) -> Optimizer:
    """Create the optimizer that takes the actual steps.

    Args:
        params: Parameters or parameter groups.
        base: A name timm knows.
        lr: Learning rate; None takes the optimizer's default.
        base_kwargs: Further arguments, as :func:`timm.optim.create_optimizer_v2` takes them.
        capturable: Whether its step is to fit into a CUDA graph.

    Raises:
        ValueError: For a name timm does not know, an optimizer that cannot take a gradient made by another, arguments
            that would do nothing or make NaN, parameters that are not real numbers, some of the parameters of another
            optimizer, or a way to train on several devices that leaves no room for a second pass.
        TypeError: For arguments that the optimizer does not take.
    """
    if base.lower().startswith("lookahead_"):
        raise ValueError(
            f"base={base!r}: Lookahead goes around this optimizer, not inside; use opt='lookahead_rts_pugd'."
        )
    name = base.lower().split("_")[-1]
    if name not in timm.optim.list_optimizers():
        raise ValueError(f"base={base!r} is not an optimizer timm knows; see timm.optim.list_optimizers().")
    info = timm.optim.get_optimizer_info(name)
    if isinstance(info.opt_class, type) and issubclass(info.opt_class, TimedOptimizer):
        raise ValueError(f"base={base!r} is itself a two-pass optimizer; choose a plain one, for instance base='sgd'.")
    if info.second_order:
        raise ValueError(f"base={base!r} differentiates the gradient it gets, which here has no graph; choose another.")
    _check_arguments({"lr": lr, **base_kwargs})
    for key, is_known in (("betas", info.has_betas), ("eps", info.has_eps)):
        if base_kwargs.get(key) is not None and not is_known:
            raise ValueError(f"{key}={base_kwargs[key]!r}: base={base!r} has no {key}; leave it out.")
    in_vain = [] if isinstance(params, nn.Module) else [key for key in base_kwargs if key in _OF_A_MODEL]
    if in_vain:
        raise ValueError(
            f"{in_vain[0]}={base_kwargs[in_vain[0]]!r} makes groups of a model, and params are made already; leave it "
            "out, or give the model to timm.optim.create_optimizer_v2(model, opt='rts_pugd', ...)."
        )
    if capturable:
        if isinstance(info.opt_class, type) and "capturable" in inspect.signature(info.opt_class).parameters:
            base_kwargs = {**base_kwargs, "capturable": True}
        elif info.opt_class is torch.optim.SGD:  # fused, it reads a learning rate on the device
            base_kwargs = {"fused": True, **base_kwargs}
        else:
            raise ValueError(
                f"capturable=True: base={base!r} has no such argument; choose one that has it, as adamw, or sgd."
            )
    try:
        optimizer = timm.optim.create_optimizer_v2(params, opt=base, lr=lr, **base_kwargs)
    except TypeError as error:
        raise TypeError(f"base={base!r} refuses its arguments {sorted(base_kwargs)}: {error}") from error
    check_requests()
    check_holders(optimizer.param_groups)
    check_tensors(optimizer.param_groups)
    return optimizer


def check_group(group: Mapping[str, Any], known: Container[str]) -> None:
    """Raise ValueError for an entry of a parameter group that would do nothing or make NaN.

    >>> check_group({"lr": -1.0}, ("lr",))
    Traceback (most recent call last):
    ValueError: lr=-1.0: a learning rate must be a finite number of at least 0, for all groups or for one.

    Args:
        group: As it is handed to the constructor or to ``add_param_group``.
        known: The base optimizer's own entries.
    """
    _check_arguments(group)
    for key, value in group.items():
        if key not in known and _SHARED.fullmatch(key):
            raise ValueError(
                f"{key}={value!r} in a parameter group would do nothing, because groups share one perturbation and one "
                "position in the run; give settings to the optimizer itself, and a saved state to load_state_dict()."
            )
        if key not in known and key in ("betas", "eps"):
            raise ValueError(f"{key}={value!r} in a parameter group: the base optimizer has no {key}; leave it out.")


def check_tensors(groups: list[dict[str, Any]]) -> None:
    """Raise ValueError for parameters that cannot be perturbed: of whole or complex numbers, or flattened ones."""
    check_parameters(groups)
    for param in (param for group in groups for param in group["params"]):
        if param.is_complex():
            raise ValueError(
                "params holds complex tensors, which RTSPUGD does not support; hold their real and imaginary "
                "parts as two real ones."
            )
        if not param.is_floating_point():
            raise ValueError(f"params holds a tensor of {param.dtype}, which has no gradient; leave it out.")


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    for key in _NUMBERS.keys() & arguments.keys():
        value = number = arguments[key]
        if key == "lr" and isinstance(value, Tensor) and value.numel() == 1:
            number = value.item()
        if number is None:  # the base's default, or its own business
            continue
        if isinstance(number, bool) or not isinstance(number, Real) or not 0 <= float(number) < math.inf:
            raise ValueError(
                f"{key}={value!r}: a {_NUMBERS[key]} must be a finite number of at least 0, for all groups or for one."
            )
    if arguments.get("maximize"):
        raise ValueError(
            f"maximize={arguments['maximize']!r}: a perturbation climbs the loss to descend from there, so a maximum "
            "is not sought; minimize the negative loss."
        )
