"""The norm of gradients that nobody clips."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from rts_hf.training.sums import unclipped_norm


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
