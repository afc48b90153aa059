"""Where the time of an update goes: the optimizer's parts on a large model, and what the Trainer adds to a loop."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import timm
import torch
from benchmark.optimizer import ALWAYS, SETTINGS, params_with_gradients
from benchmark.timers import interleaved
from benchmark.training import WARM_UP, trained
from torch.utils.benchmark import timer
from transformers import PreTrainedModel, TimmWrapperForImageClassification

from rts_hf.data.loading import load_data
from rts_hf.optim import optimizer as optimizer_module
from rts_hf.optim.optimizer import RTSPUGD
from rts_hf.optim.second_pass import BufferSnapshot
from rts_hf.training import trainer as trainer_module
from rts_hf.training.trainer import RTSTrainer

# The functions that an update consists of, what they do, and the parameter-sized transfers they need at least
_PARTS = (
    ("save_and_measure", "copy w; norms of g and of \\|w\\|⊙g", 3),
    ("perturb_", "w to w + ε; g to α_s·g", 4),
    ("copy_", "w back", 2),
    ("global_norm", "norm of g* + α_s·g", 1),
    ("take_unit_step", "the base optimizer's step", 5),
)


def optimizer_profile(
    device: str = "cpu", *, repeats: int = 7, model_name: str = "vit_base_patch16_224"
) -> list[dict[str, Any]]:
    """Time the parts of the optimizer's share of a perturbed update.

    Args:
        device: Type of the device, which is waited for after each part.
        repeats: Updates, of which medians are taken.
        model_name: Any that timm knows.

    Returns:
        For each part, and for all else, ``part``, ``transfers`` (parameter-sized reads and writes), ``seconds`` and
        ``streaming``: seconds over those that a copy takes for as many transfers, None where there are none.
    """
    params = params_with_gradients(timm.create_model(model_name).to(device))
    copies = [torch.empty_like(param) for param in params]
    rts = RTSPUGD(params, **ALWAYS, **SETTINGS)
    seen: dict[str, list[float]] = {name: [] for name, _, _ in _PARTS}

    def update() -> None:
        before = {name: len(values) for name, values in seen.items()}
        with rts.perturbed():
            pass
        rts.step()
        for name, values in seen.items():  # norms of a probe are small calls of the same function
            values[before[name] :] = [sum(values[before[name] :])]

    def copy() -> None:
        with torch.no_grad():
            torch._foreach_copy_(copies, [*params])

    with contextlib.ExitStack() as stack:
        for name, values in seen.items():
            stack.enter_context(_timed(optimizer_module, name, values))
        seconds = interleaved({"update": update, "copy": copy}, repeats=repeats, warm_up=2)
    transfer = median(seconds["copy"]) / 2
    found = [(words, transfers, median(seen[name][2:])) for name, words, transfers in _PARTS]
    found.append(("all else", 0, median(seconds["update"]) - sum(each for _, _, each in found)))
    return [
        {
            "part": words,
            "transfers": transfers,
            "seconds": float(f"{each:.4g}"),
            "streaming": round(each / (transfers * transfer), 3) if transfers else None,
        }
        for words, transfers, each in found
    ]


def trainer_profile(device: str = "cpu", *, updates: int = 40) -> dict[str, float]:
    """Return the seconds of an update of the main job in RTSTrainer, by what they go into; all updates are perturbed.

    Args:
        device: Type of the device, which is waited for after each part.
        updates: Over which the mean is taken.
    """
    watched: list[tuple[str, Any, str]] = [
        ("forward", TimmWrapperForImageClassification, "forward"),
        ("loss", RTSTrainer, "compute_loss"),
        ("backward", torch.Tensor, "backward"),
        *(("optimizer", optimizer_module, name) for name, _, _ in _PARTS[:3]),
        ("optimizer", RTSPUGD, "step"),
        ("batches", RTSTrainer, "get_batch_samples"),
        ("train mode of every module", PreTrainedModel, "train"),
        ("norm of the gradient, to log and to skip by", trainer_module, "unclipped_norm"),
        ("copies of BatchNorm's statistics", BufferSnapshot, "__init__"),
    ]
    sums: dict[str, list[float]] = {what: [] for what, _, _ in watched}
    with contextlib.ExitStack() as stack:
        for what, owner, name in watched:
            stack.enter_context(_timed(owner, name, sums[what]))
        seconds, _ = trained(load_data("digits"), updates, device, "resnet_micro_small", switch_at=0.0)
    shares = {}
    for what, values in sums.items():
        counted = values[len(values) * WARM_UP // (WARM_UP + updates) :]
        shares[what] = sum(counted) / updates
    forward = shares.pop("forward")
    passes = {"forward and backward": forward + shares.pop("backward")}
    others = {"loss, and accuracy on the batch": shares.pop("loss") - forward}
    shares["batches"] -= shares["copies of BatchNorm's statistics"] / 2  # one of the two copies is made in there
    shares = {**passes, **shares, **others}
    shares["all else"] = seconds / updates - sum(shares.values())
    return {what: float(f"{value:.3g}") for what, value in shares.items()}


@contextlib.contextmanager
def _timed(owner: Any, name: str, seconds: list[float]) -> Iterator[None]:
    """Add the seconds of every call of a function to a list inside the ``with`` block."""
    original: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        begin = timer()
        try:
            return original(*args, **kwargs)
        finally:
            seconds.append(timer() - begin)

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, original)
