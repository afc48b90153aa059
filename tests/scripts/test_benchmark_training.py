"""Figures of a run: they are measured on the real Trainer, pipeline and command."""

import pytest
from benchmark.training import (
    data_share,
    input_pipeline,
    start,
    trainer_over_bare_loop,
    trainer_over_transformers,
)


def test_trainer_and_data() -> None:
    figure = trainer_over_bare_loop(repeats=1, updates=3)
    assert 0.2 < figure.value < 5
    assert set(figure.details) == {"trainer", "bare loop"}
    plain, perturbed = trainer_over_transformers(repeats=1, updates=3)
    assert 0.3 < plain.value < perturbed.value < 9
    share = data_share(updates=4)
    assert 0 < share.value < 0.5
    assert share.value == share.details["waiting"] / share.details["seconds"]


def test_pipeline() -> None:
    figure = input_pipeline(repeats=2, images=256)
    assert figure.is_met  # by far: seven times the target on an idle machine
    assert figure.details["ours, images/s"] > figure.details["with_transform, images/s"] > 0


@pytest.mark.slow
def test_start() -> None:
    figure = start(repeats=1, warm_up=0)
    assert figure.details["job"] > figure.details["imports"] > 0.5
