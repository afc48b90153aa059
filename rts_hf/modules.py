"""The modules of a model, for what is asked at every update."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def every_module(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a model and all modules inside it, in any order, one that stands in several places several times.

    ``nn.Module.modules`` makes each one's name and keeps them apart, which takes several times as long.

    >>> import torch
    >>> len([*every_module(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.ReLU())))])
    4

    Args:
        model: Any module.
    """
    waiting = [model]
    while waiting:
        module = waiting.pop()
        waiting += [child for child in module._modules.values() if child is not None]
        yield module
