"""Ways to spread training over devices that leave no room for a second pass, and the refusal of each."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

from torch import nn
from torch.optim import Optimizer

_TRUE = ("1", "true", "yes", "on", "y", "t")
_INSTEAD = "use DistributedDataParallel or FSDP2 (fsdp=True, fsdp_version 2)"


def check_requests(arguments: Any = None) -> None:
    """Refuse what training arguments or accelerate's environment (from ``accelerate launch`` or a config) ask for.

    Args:
        arguments: A :class:`transformers.TrainingArguments`, or None to look at the environment alone.

    Raises:
        ValueError: For DeepSpeed, FSDP of version 1, and context or sequence parallelism.
    """
    deepspeed, config = getattr(arguments, "deepspeed", None), getattr(arguments, "parallelism_config", None)
    if deepspeed or _is_set("ACCELERATE_USE_DEEPSPEED"):
        asked = f"deepspeed={deepspeed!r}" if deepspeed else "ACCELERATE_USE_DEEPSPEED=true"
        raise ValueError(f"{asked}: DeepSpeed takes its step inside backward, so there is no second pass; {_INSTEAD}.")
    fsdp_config = getattr(arguments, "fsdp_config", None) or {}
    if getattr(arguments, "fsdp", None) and isinstance(fsdp_config, dict):
        version = fsdp_config.get("fsdp_version", fsdp_config.get("version", 2))
        if str(version) == "1":
            raise ValueError(f"fsdp_config={fsdp_config!r}: {_FSDP1}")
    elif _is_set("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION") == "1":
        raise ValueError(f"FSDP_VERSION=1: {_FSDP1}")
    from_environment = _is_set("ACCELERATE_USE_PARALLELISM_CONFIG")
    for name in ("cp_size", "sp_size"):
        size = getattr(config, name, None) or 1
        if config is None and from_environment:
            size = int(os.environ.get(f"PARALLELISM_CONFIG_{name.upper()}", "1"))
        if size > 1:
            raise ValueError(
                f"{name}={size}: context and sequence parallelism shard a batch in place, so a second pass cannot "
                f"repeat it; {_INSTEAD}."
            )


def check_accelerator(accelerator: Any, arguments: Any) -> None:
    """Refuse what only shows once the accelerator exists, however it was asked for.

    Raises:
        ValueError: For several devices under DataParallel, FSDP of version 1, DeepSpeed, Megatron-LM, and context or
            sequence parallelism.
    """
    if arguments.n_gpu > 1:
        raise ValueError(
            f"n_gpu={arguments.n_gpu}: one process would drive several devices with DataParallel, whose copies of the "
            "model a second pass does not reach; start one process a device (accelerate launch --multi_gpu, or "
            "torchrun), or show it one device (CUDA_VISIBLE_DEVICES=0)."
        )
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version == 1:
        raise ValueError(f"fsdp_version=1: {_FSDP1}")
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind in ("DEEPSPEED", "MEGATRON_LM"):
        raise ValueError(f"distributed_type={kind}: it takes its step by itself, without a second pass; {_INSTEAD}.")
    config = getattr(accelerator, "parallelism_config", None)
    if getattr(config, "cp_enabled", False) or getattr(config, "sp_enabled", False):
        raise ValueError(
            f"parallelism_config={config!r}: context and sequence parallelism shard a batch in place, so a second pass "
            f"cannot repeat it; {_INSTEAD}."
        )
    if arguments.fsdp and kind != "FSDP":
        warnings.warn(
            f"fsdp={arguments.fsdp!r}, but accelerate does not shard here (distributed_type={kind}, device "
            f"{accelerator.device}): every process holds the whole model.",
            UserWarning,
            stacklevel=3,
        )


def name_blocks(model: Any) -> None:
    """Tell accelerate's default wrapping which modules FSDP2 shards one by one, where the model does not know.

    transformers' wrapper around timm names its own class, which no backbone contains; the blocks are what stands in the
    backbone's sequences.
    """
    present = {type(module).__name__ for module in model.modules()}
    named = set(getattr(model, "_no_split_modules", None) or ())
    if not named or named <= present:
        return
    sequences = [module for module in model.modules() if isinstance(module, nn.Sequential | nn.ModuleList)]
    blocks = {type(child) for sequence in sequences for child in sequence if next(child.parameters(), None) is not None}
    names = sorted(block.__name__ for block in blocks if not block.__module__.startswith("torch."))
    model._no_split_modules = names


def check_parameters(groups: list[dict[str, Any]]) -> None:
    """Refuse parameters that FSDP of version 1 has flattened.

    Raises:
        ValueError: If there are any.
    """
    if any(getattr(param, "_fsdp_flattened", False) for group in groups for param in group["params"]):
        raise ValueError(f"params are those of a model under FSDP of version 1. {_FSDP1}")


def check_holders(groups: list[dict[str, Any]]) -> None:
    """Refuse to hold only some of the parameters of an optimizer that is constructing this one.

    :class:`torch.distributed.optim.ZeroRedundancyOptimizer` gives each process an optimizer of its own part.

    Raises:
        ValueError: If such an optimizer is among the callers.
    """
    mine = {id(param) for group in groups for param in group["params"]}
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        holder = frame.f_locals.get("self")
        if isinstance(holder, Optimizer):
            held = {id(param) for group in getattr(holder, "param_groups", ()) for param in group["params"]}
            if mine < held:
                raise ValueError(
                    f"{type(holder).__name__} gives {len(mine)} of its {len(held)} parameters, so norm and ε "
                    f"would cover that part alone; give all to RTSPUGD itself, and {_INSTEAD}."
                )


_FSDP1 = (
    "FSDP of version 1 flattens parameters, so their norms and groups cannot be told apart; use version 2 "
    "(fsdp_config={'fsdp_version': 2}, FullyShardedDataParallelPlugin(fsdp_version=2), or torch's fully_shard)."
)


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in _TRUE
