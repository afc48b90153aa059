"""Sums on the device, over processes, and the norm of gradients."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from rts_hf.training.sums import DeviceSums, unclipped_norm


class Processes:
    """What DeviceSums asks of an accelerator: here of two processes, of which the other has ten of everything."""

    device = torch.device("cpu")

    def __init__(self, count: int = 2, index: int = 0) -> None:
        self.num_processes, self.process_index, self.is_main_process = count, index, index == 0

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        others = [torch.full_like(rows, 10.0)] * (self.num_processes - 1)
        return torch.cat([rows, *others])


def test_sums_over_processes_and_starts_again() -> None:
    sums = DeviceSums("loss", "seen")
    sums.add(loss=torch.tensor(1.5), seen=3)
    sums.add(loss=torch.tensor(0.25))
    assert sums.total(Processes()) == {"loss": 11.75, "seen": 13.0}
    assert sums.take(Processes(1)) == {"loss": 1.75, "seen": 3.0}
    assert sums.total(Processes(1)) == {"loss": 0.0, "seen": 0.0}


def test_each_process_goes_on_with_its_own() -> None:
    saved = [{"loss": 1.0, "seen": 2.0}, {"loss": 3.0, "seen": 4.0}]
    for index in (0, 1):
        sums = DeviceSums("loss", "seen")
        sums.restore(saved, Processes(2, index))
        assert sums.by_process(Processes(1)) == [saved[index]]


def test_another_number_of_processes_loses_nothing() -> None:
    saved = [{"loss": 1.0, "seen": 2.0}, {"loss": 3.0, "seen": 4.0}]
    found = []
    for index in (0, 1, 2):
        sums = DeviceSums("loss", "seen")
        sums.restore(saved, Processes(3, index))
        found += sums.by_process(SimpleNamespace(device=torch.device("cpu"), gather=lambda rows: rows))
    assert found == [{"loss": 4.0, "seen": 6.0}, {"loss": 0.0, "seen": 0.0}, {"loss": 0.0, "seen": 0.0}]


# ---- The norm of gradients that nobody clips ----


class Stub:
    """What of an accelerator is asked: a gradient scaler of 8."""

    def __init__(self, model: nn.Module, kind: DistributedType = DistributedType.NO) -> None:
        self.model, self.distributed_type = model, kind

    def unscale_gradients(self) -> None:
        for param in self.model.parameters():
            if param.grad is not None:
                param.grad /= 8


def model_with_gradients() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].weight.grad = torch.full((2, 2), 3.0)
    model[1].weight.grad = torch.full((1, 2), -3.0)
    model[1].bias.requires_grad_(False)
    return model


def test_it_is_what_accelerate_returns_and_leaves_gradients_alone() -> None:
    model, accelerator = model_with_gradients(), Accelerator(cpu=True)
    norm = unclipped_norm(accelerator, model)
    assert norm == accelerator.clip_grad_norm_(model.parameters(), float("inf"))
    assert norm == pytest.approx(3 * 6**0.5)
    assert torch.equal(model[0].weight.grad, torch.full((2, 2), 3.0))


@pytest.mark.parametrize("kind", [DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU])
def test_a_scale_is_taken_off(kind: DistributedType) -> None:
    model = model_with_gradients()
    assert unclipped_norm(Stub(model, kind), model) == pytest.approx(3 * 6**0.5 / 8)  # type: ignore[arg-type]
    assert torch.equal(model[0].weight.grad, torch.full((2, 2), 3 / 8))


def test_others_are_left_to_the_trainer() -> None:
    model = model_with_gradients()
    assert unclipped_norm(Stub(model, DistributedType.FSDP), model) is None  # type: ignore[arg-type]
    assert torch.equal(model[0].weight.grad, torch.full((2, 2), 3.0))
    known = torch.tensor(5.0)
    assert unclipped_norm(Stub(model), model, known) is known  # type: ignore[arg-type]
    assert torch.equal(model[0].weight.grad, torch.full((2, 2), 3.0))
    model.zero_grad()
    assert unclipped_norm(Accelerator(cpu=True), model) is None


def test_a_weight_that_stands_in_two_places_counts_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    model[0].weight.grad = torch.full((2, 2), 1.5)
    assert unclipped_norm(Accelerator(cpu=True), model) == pytest.approx(3.0)
