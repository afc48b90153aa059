"""Random draws of a data set, such as crops, that a resumed run repeats."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


class SeededDraws(Dataset[Any]):
    """A map-style data set whose random draws hang on the seed, the epoch and the samples fetched, and on nothing else.

    Batches are fetched ahead of the update that uses them, so the state of the generators in a checkpoint is already
    behind the draws for the next batch: a resumed run could not draw them again. Here each fetch seeds the generators
    of torch (on the CPU), numpy and Python, and puts their states back afterwards. Worker processes draw the same.

    >>> class Noise(Dataset):
    ...     def __len__(self): return 4
    ...     def __getitem__(self, index): return round(float(torch.rand(())), 6)
    >>> noise = SeededDraws(Noise(), seed=0)
    >>> first = noise.__getitems__([2, 0])
    >>> noise.__getitems__([2, 0]) == first
    True
    >>> noise.begin_epoch(1)
    >>> noise.__getitems__([2, 0]) == first
    False

    Args:
        dataset: Any data set with ``__len__`` and ``__getitem__``; its other attributes are reached through this one.
        seed: Of the run.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that persist must hear of it

    def begin_epoch(self, epoch: int) -> None:
        """Let the fetches from now on belong to this epoch, counted from 0."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        with self._seeded([index]):
            return self.dataset[index]

    def __getitems__(self, indices: Sequence[int]) -> Any:
        with self._seeded(indices):
            if callable(getattr(self.dataset, "__getitems__", None)):
                return self.dataset.__getitems__(indices)
            return [self.dataset[index] for index in indices]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # asked for while this is copied to a worker
            raise AttributeError(name)
        return getattr(self.dataset, name)

    @contextmanager
    def _seeded(self, indices: Sequence[int]) -> Iterator[None]:
        text = f"{self.seed} {int(self._epoch)} {[_plain(index) for index in indices]}"
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")
        states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            torch.default_generator.set_state(states[0])
            np.random.set_state(states[1])
            random.setstate(states[2])


def _plain(index: Any) -> Any:
    """Return an index as it is written the same in every process, whatever kind of number it is."""
    return int(index) if isinstance(index, int | np.integer | torch.Tensor) else index
