"""What two processes average in an update, counted where DDP does it."""

import pytest
import timm
from benchmark.processes import bytes_averaged, measure


@pytest.mark.slow
def test_one_all_reduce_averages_what_sgd_does() -> None:
    measured = measure(2, updates=3, model_name="resnet_micro_small")
    figure = bytes_averaged(measured)
    assert figure.value == 1
    assert measured["averaged twice"]["bytes"] == 2 * measured["sgd"]["bytes"]
    parameters = sum(p.numel() for p in timm.create_model("resnet_micro_small", num_classes=10).parameters())
    assert measured["sgd"]["bytes"] == 4 * parameters
    assert all(each["seconds"] > 0 for each in measured.values())
