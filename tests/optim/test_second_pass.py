"""What the second pass repeats and leaves alone, in a loop of one's own."""

import random

import numpy as np
import pytest
import timm
import torch
from torch import nn

from rts_hf import RandomState, keep_buffers
from rts_hf.optim.second_pass import every_module

CPU = torch.device("cpu")


def test_dropout_is_drawn_again_and_the_stream_goes_on() -> None:
    dropout = nn.Dropout(0.5)
    x = torch.ones(1000)
    torch.manual_seed(0)
    state = RandomState(CPU)
    first = dropout(x)
    follows = torch.rand(1)
    torch.manual_seed(0)
    state = RandomState(CPU)
    first_again = dropout(x)
    with state.replayed():
        second = dropout(x)
    assert torch.equal(first, first_again)
    assert torch.equal(first, second)
    assert torch.equal(torch.rand(1), follows)


def test_the_stream_goes_on_after_an_exception() -> None:
    state = RandomState(CPU)
    now = torch.get_rng_state()
    with pytest.raises(RuntimeError), state.replayed():
        torch.rand(5).reshape(2, 2)
    assert torch.equal(torch.get_rng_state(), now)


def test_buffers_come_back_also_after_an_exception_and_twice_in_a_row() -> None:
    norm = nn.BatchNorm1d(2)
    norm(torch.randn(8, 2))
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    for _ in range(2):
        with pytest.raises(RuntimeError), keep_buffers(norm):
            norm(torch.full((8, 2), torch.nan)).reshape(3, 3)
        assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    norm(torch.randn(8, 2))  # and statistics are taken again
    assert int(norm.num_batches_tracked) == 2


def test_constants_are_left_alone() -> None:
    module = nn.Module()
    module.register_buffer("constant", torch.zeros(1), persistent=False)
    with keep_buffers(module):
        module.constant += 1
    assert module.constant.item() == 1


def test_a_models_modules_are_those_that_torch_names() -> None:
    model = timm.create_model("test_vit")
    assert {*map(id, every_module(model))} == {*map(id, model.modules())}


def test_a_module_in_two_places_and_none_at_all() -> None:
    inner = nn.Linear(2, 2)
    model = nn.Sequential(inner, nn.Sequential(inner))
    model.register_module("nothing", None)
    assert [*every_module(model)].count(inner) == 2


def test_the_generators_of_python_and_numpy_are_replayed_too() -> None:
    state = RandomState(CPU)
    first = random.random(), np.random.rand(), torch.rand(1)
    after = random.getstate(), np.random.get_state()[1].tolist()
    with state.replayed():
        assert (random.random(), np.random.rand(), torch.rand(1)) == first
    assert (random.getstate(), np.random.get_state()[1].tolist()) == after
