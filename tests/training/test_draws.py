"""The draws of a data set hang on seed, epoch and samples, whoever fetches them and whatever was drawn before."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rts_hf.training.resumable import SeededDraws


class Noise(Dataset[Tensor]):
    """Draws from all three generators."""

    column_names = ("noise",)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([float(torch.rand(())), np.random.rand(), random.random(), index], dtype=torch.float64)


def fetched(dataset: SeededDraws, workers: int = 0, epochs: int = 2) -> list[Tensor]:
    loader: Any = DataLoader(dataset, batch_size=4, num_workers=workers, persistent_workers=workers > 0)
    batches = []
    for epoch in range(epochs):
        dataset.begin_epoch(epoch)
        batches += list(loader)
    return batches


def test_what_was_drawn_before_and_who_fetches_make_no_difference() -> None:
    torch.manual_seed(1)
    first = torch.stack(fetched(SeededDraws(Noise(), seed=5)))
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    assert torch.equal(torch.stack(fetched(SeededDraws(Noise(), seed=5))), first)
    assert torch.equal(torch.stack(fetched(SeededDraws(Noise(), seed=5), workers=2)), first)
    assert len(first[..., :3].unique()) == first[..., :3].numel()  # no two samples or epochs draw the same
    assert not (torch.stack(fetched(SeededDraws(Noise(), seed=6)))[..., :3] == first[..., :3]).any()


def test_the_generators_are_left_as_they_were() -> None:
    noise = SeededDraws(Noise(), seed=5)

    def draws() -> list[float]:
        torch.manual_seed(3)
        np.random.seed(3)
        random.seed(3)
        noise.__getitems__([1, 2])
        with pytest.raises(TypeError):  # of the data set's own
            noise["no index"]
        noise[3]
        return [float(torch.rand(())), np.random.rand(), random.random()]

    mine = draws()
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    assert mine == [float(torch.rand(())), np.random.rand(), random.random()]


def test_a_data_set_of_batches_is_asked_for_batches() -> None:
    class Batches(Noise):
        def __getitems__(self, indices: list[int]) -> list[Tensor]:
            return [torch.rand(3) for _ in indices]

    dataset = SeededDraws(Batches(), seed=5)
    assert dataset.__getitems__([1, 2])[0].shape == (3,)
    assert dataset.column_names == ("noise",)
    assert len(dataset) == 12
    assert not hasattr(dataset, "set_epoch")
    assert len(pickle.loads(pickle.dumps(SeededDraws(Noise(), seed=5)))) == 12  # as a worker that is spawned gets it


@pytest.mark.parametrize("key", [(3, 64), "cat/7", np.int64(5)])
def test_whatever_a_sampler_yields_is_an_index(key: Any) -> None:
    class Keyed(Dataset[float]):
        def __len__(self) -> int:
            return 9

        def __getitem__(self, index: Any) -> float:
            assert index == key
            return float(torch.rand(()))

    assert SeededDraws(Keyed(), seed=5)[key] == SeededDraws(Keyed(), seed=5)[key]
    if isinstance(key, np.integer):
        assert SeededDraws(Keyed(), seed=5)[key] == SeededDraws(Keyed(), seed=5)[int(key)]
