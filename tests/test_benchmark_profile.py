"""Where an update's time goes: every part is seen, and the functions that were watched are as before."""

from rts_hf import optimizer
from rts_hf.benchmark_profile import optimizer_profile, trainer_profile
from rts_hf.benchmark_training import trained
from rts_hf.data import load_data
from rts_hf.trainer import RTSTrainer


def test_the_optimizers_parts() -> None:
    before = optimizer.perturb_
    parts = optimizer_profile(repeats=2, model_name="test_vit")
    assert optimizer.perturb_ is before
    assert [each["transfers"] for each in parts] == [3, 4, 2, 1, 5]
    assert all(each["seconds"] > 0 and each["streaming"] > 0 for each in parts)


def test_the_trainers_parts_make_up_its_time() -> None:
    before = RTSTrainer.compute_loss
    parts = trainer_profile(updates=4)
    assert RTSTrainer.compute_loss is before
    assert all(seconds > 0 for name, seconds in parts.items() if name != "all else")
    assert parts["forward and backward"] == max(parts.values())
    whole = trained(load_data("digits"), 4, "cpu", "resnet_micro_small", switch_at=0.0)[0] / 4
    assert 0.2 < sum(parts.values()) / whole < 5
