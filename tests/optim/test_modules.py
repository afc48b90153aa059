"""A model's modules, walked fast."""

import timm
from torch import nn

from rts_hf.optim.second_pass import every_module


def test_they_are_those_that_torch_names() -> None:
    model = timm.create_model("test_vit")
    assert {*map(id, every_module(model))} == {*map(id, model.modules())}


def test_a_module_in_two_places_and_none_at_all() -> None:
    inner = nn.Linear(2, 2)
    model = nn.Sequential(inner, nn.Sequential(inner))
    model.register_module("nothing", None)
    assert [*every_module(model)].count(inner) == 2
