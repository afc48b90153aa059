"""Backends of torch.compile: unknown ones are refused, and a refusal says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_for_tests import make_arguments, make_model, make_trainer

from rts_hf.training.checks import check_backend, refusals_explained


@pytest.mark.parametrize("backend", ["nonsense", "tensorrt"])  # the latter is accelerate's, but not torch's
def test_an_unknown_backend_is_refused_at_construction(tmp_path: Path, backend: str) -> None:
    with pytest.raises(ValueError, match=rf"torch_compile_backend='{backend}'.*inductor.*leave torch_compile out"):
        make_arguments(tmp_path, torch_compile=True, torch_compile_backend=backend)


def test_known_backends_pass() -> None:
    for backend in (None, "inductor", "eager", "aot_eager"):
        check_backend(backend)


def refuse(graph: Any, examples: Any) -> Any:
    raise NotImplementedError("this graph is not for me")


def test_a_backends_refusal_is_explained(tmp_path: Path) -> None:
    torch._dynamo.reset()
    model = make_model()
    before = [p.detach().clone() for p in model.parameters()]
    model.timm_model.forward = torch.compile(model.timm_model.forward, backend=refuse)
    trainer = make_trainer(tmp_path, model, switch="fixed", switch_at="0")
    with pytest.raises(
        RuntimeError, match=r"torch.compile cannot compile.*not for me.*leave torch_compile out"
    ) as info:
        trainer.train()
    assert isinstance(info.value.__cause__, torch._dynamo.exc.BackendCompilerFailed)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_named_backend_is_told_and_other_errors_pass() -> None:
    torch._dynamo.reset()
    net = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="torch_compile_backend='mine' cannot"), refusals_explained("mine"):
        torch.compile(net, backend=refuse)(torch.ones(1, 2))
    with pytest.raises(KeyError), refusals_explained("mine"):
        raise KeyError("other")
