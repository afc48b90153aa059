"""Where an update's time goes: every part is seen, and the functions that were watched are as before."""

from benchmark.breakdown import optimizer_profile, trainer_profile

from rts_hf.optim import optimizer
from rts_hf.training.trainer import RTSTrainer


def test_the_optimizers_parts() -> None:
    before = optimizer.perturb_
    *parts, rest = optimizer_profile(repeats=7, model_name="vit_tiny_patch16_224")
    assert optimizer.perturb_ is before
    assert [each["transfers"] for each in parts] == [3, 4, 2, 1, 5]
    assert all(each["seconds"] > 0 and each["streaming"] > 0 for each in parts)
    assert rest["part"] == "all else"
    assert rest["seconds"] < sum(each["seconds"] for each in parts)  # what is not seen is the smaller half
    assert rest["seconds"] > -0.5 * sum(each["seconds"] for each in parts)  # and nothing is seen twice


def test_the_trainers_parts() -> None:
    before = RTSTrainer.compute_loss
    parts = trainer_profile(updates=6)
    assert RTSTrainer.compute_loss is before
    rest = parts.pop("all else")
    assert all(seconds > 0 for seconds in parts.values())
    assert parts["forward and backward"] == max(parts.values())
    assert -0.2 * sum(parts.values()) < rest < 0.5 * sum(parts.values())
