"""Finding the optimizer inside its wrappers."""

import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2
from torch import nn

from rts_hf import RTSPUGD, unwrap_optimizer


def test_through_accelerate_and_lookahead() -> None:
    model = nn.Linear(2, 2)
    optimizer = create_optimizer_v2(model, opt="lookahead_rts_pugd", lr=0.1)
    prepared = Accelerator(cpu=True).prepare(optimizer)
    found = unwrap_optimizer(prepared)
    assert isinstance(found, RTSPUGD)
    assert found is unwrap_optimizer(found) is unwrap_optimizer(optimizer)


def test_none_where_there_is_none() -> None:
    assert unwrap_optimizer(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)) is None
    assert unwrap_optimizer(None) is None
