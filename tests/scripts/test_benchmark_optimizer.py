"""Figures of an update: those that do not depend on the clock meet their targets, the clock's are measured."""

import pytest
import torch
from benchmark import optimizer as benchmark_optimizer
from benchmark.optimizer import (
    TRANSFERS,
    dispatched_operations,
    extra_memory,
    host_time,
    optimizer_part,
    synchronizations,
    update_before_switch,
    update_over_two_passes,
)


def test_operations() -> None:
    (figure,) = dispatched_operations()
    assert figure.is_met
    assert figure.details["resnet50"]["tensors"] == 161
    assert figure.details["resnet18"]["operations"] == figure.value > 20  # whatever the number of tensors


def test_the_hosts_share() -> None:
    over_sam, over_sgd = host_time(repeats=5)
    assert 0.3 < over_sam.value < over_sgd.value < 6
    assert over_sam.details["sam"] > over_sgd.details["clip and sgd"] > 0


def test_memory() -> None:
    figure = extra_memory()
    assert figure.is_met
    assert figure.value > 0.9  # the copy of w, which nothing can do without
    sgd, parameters = figure.details["sgd"], figure.details["parameters"]
    assert 3 <= sgd / parameters < 3.1  # w, g and the momentum


def test_synchronizations(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = synchronizations()
    assert figure.value == 0
    assert figure.details["before the switch"] == 2  # two windows of five steps
    norm = benchmark_optimizer.RTSPUGD.step
    monkeypatch.setattr(
        benchmark_optimizer.RTSPUGD, "step", lambda self: (norm(self), float(torch.ones(())), torch.ones(()).item())
    )
    assert synchronizations().value == 2  # what is counted is seen


def test_times_are_measured() -> None:
    over_sam, over_streaming = optimizer_part(repeats=2, model_name="test_vit")
    for figure in (over_sam, over_streaming):
        assert figure.value > 0
        assert {"ours", "unfused", "sam", "copy"} <= set(figure.details)
    assert over_streaming.details["transfers"] == TRANSFERS == 15
    for figure in (update_over_two_passes(repeats=1, batch=2), update_before_switch(repeats=1, batch=2)):
        assert 0.1 < figure.value < 10
        assert len(figure.details) == 2
