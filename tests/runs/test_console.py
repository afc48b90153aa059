"""The rows and the table that a person reads."""

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerState
from transformers.utils import logging

from rts_hf import RTSPUGD, FixedSwitch
from rts_hf.runs.console import ConsoleCallback, quiet_progress_bars, summary

RECORD = {
    "data": {"splits": {"train": 1293, "validation": 144, "test": 360}},
    "metrics": {split: {"loss": 0.1, "accuracy": 0.975} for split in ("train", "validation", "test")},
    "optimizer": {
        "name": "rts_pugd",
        "method": "pugd",
        "base": "sgd",
        "switch": {"kind": "fixed", "settings": {"at": 0.8}, "step": 504, "epoch": 24.0},
    },
    "gradient_evaluations": 756,
    "updates": 630,
    "epochs": 30.0,
    "seconds": 40.4,
    "faults": {"nonfinite_gradient": 1, "out_of_memory": 0},
    "warnings": ["Something to know.", "The switch never fired, which the line above tells."],
}


STAGED = {
    "kind": "staged", "settings": {"base_epochs": 3, "every": 3}, "step": None, "epoch": None, "unit_step": 315,
}  # fmt: skip


def test_summary() -> None:
    text = summary(RECORD, "runs/mine")
    assert "train           1293    0.1000    0.9750" in text
    assert "epoch 24.0, after 504 updates (fixed)" in text
    assert "perturbed 126 of 630 updates, 756 gradients, 30 epochs" in text
    assert "Non-finite gradient   1 time" in text
    assert "memory" not in text
    assert "Note                  Something to know." in text
    assert text.count("Note") == 1
    assert text.endswith("runs/mine")


def test_gradient_evaluations_are_read_whole() -> None:
    fewer = {"optimizer": {**RECORD["optimizer"], "perturb_fraction": 0.25}, "gradient_evaluations": 661.25}
    assert "Cost                  perturbed 125 of 630 updates, 661 gradients, 30" in summary(
        {**RECORD, **fewer}, "mine"
    )


@pytest.mark.parametrize(
    ("switch", "words"),
    [
        (None, "none: rts_pugd has one phase"),
        (
            {"kind": "fixed", "settings": {"at": 0.8}, "step": None, "epoch": None},
            "never: fixed (at 0.8) did not fire, so this was plain sgd throughout",
        ),
        (
            {**STAGED, "state": {"grown": False, "epochs_seen": 6}},
            "unit steps after 315 updates, none perturbed: the generalization gap did not grow",
        ),
        (
            {**STAGED, "state": {"grown": False, "epochs_seen": 1}},
            "none perturbed: the generalization gap was not compared, which needs 6 evaluations and had 1 evaluation",
        ),
        (
            {**STAGED, "state": {"grown": True, "epochs_seen": 6}},
            "none perturbed: the generalization gap grew after the last update",
        ),
        (
            {"kind": "staged", "settings": {}, "step": 504, "epoch": 24.0, "unit_step": 315},
            "unit steps after 315 updates, perturbed ones after 504 updates: the generalization gap grew",
        ),
        ({"kind": "fixed", "settings": {"at": 0}, "step": 0, "epoch": 0.0}, "pugd from the first update"),
        ({"kind": "fixed", "settings": {"at": 1}, "step": 1, "epoch": 0.1}, "epoch 0.1, after 1 update (fixed)"),
    ],
)
def test_summary_without_a_switch(switch: dict | None, words: str) -> None:
    record = {**RECORD, "optimizer": {**RECORD["optimizer"], "switch": switch}}
    record["metrics"] = {**RECORD["metrics"], "test": None}
    text = summary(record, "runs/mine")
    assert words in text
    assert "test " not in text


def test_summary_tells_measured_beside_recorded() -> None:
    recorded = {"model": "a model", "epochs": 400, "best": 0.9419, "final": 0.93, "baseline": None}
    measured = {"accuracy": 0.95, "seeds": [1, 2, 3], "interval": 0.0125}
    recipe = {"name": "mine", "recorded": recorded, "measured": measured, "caveats": ["One."], "differs_in": ["opt"]}
    record = {**RECORD, "model": {"architecture": "resnet18_small"}, "seed": 7, "recipe": recipe}
    text = summary(record, "runs/mine")
    assert "Recipe                mine, but for opt\n" in text
    assert (
        "Recorded              0.9419 at best, 0.9300 at the end: the authors' test accuracy of a model, 400 epochs"
        in text
    )
    assert "Measured before       0.9500 ± 0.0125: test accuracy, mean of 3 seeds\n" in text
    assert "Measured here         0.9750: test accuracy of resnet18_small, 30 epochs, seed 7\n" in text
    assert "Caveats               the card" in text
    bare = {"name": "mine", "recorded": None, "measured": None, "caveats": [], "differs_in": []}
    text = summary({**record, "recipe": bare, "metrics": {**RECORD["metrics"], "test": None}}, "runs/mine")
    assert "Recipe                mine\nMeasured here         –: test accuracy" in text
    assert not any(word in text for word in ("Recorded", "before", "Caveats"))
    assert summary({**RECORD, "recipe": None}, "runs/mine") == summary(RECORD, "runs/mine")


def test_rows(capsys: pytest.CaptureFixture[str]) -> None:
    state = TrainerState(is_world_process_zero=True, max_steps=4, global_step=2, epoch=1.0)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = RTSPUGD([weight], lr=0.1, switch=FixedSwitch(0), radius="constant", radius_beta_max=0.5, total_steps=4)
    callback, arguments = ConsoleCallback(), SimpleNamespace(disable_tqdm=True)
    callback.on_train_begin(arguments, state, None)
    state.log_history = [
        {"loss": 1.0, "step": 2},
        {"train_loss": 1.5, "train_accuracy": 0.5, "eval_loss": 1.25, "eval_accuracy": 0.5, "gradient_evaluations": 3},
    ]
    callback.on_evaluate(arguments, state, None)
    state.log_history.append({"eval_loss": 123456789.0, "eval_accuracy": 0.625, "gradient_evaluations": 4.75})
    weight.grad = torch.ones(1)
    with optimizer.perturbed():
        pass
    optimizer.step()
    callback.on_evaluate(arguments, state, None, optimizer=optimizer)
    # a switch that fires with the last update changes nothing of what was done until then
    late = RTSPUGD([weight], lr=0.1, switch=FixedSwitch(1), total_steps=4)
    late.step()
    assert late.phase == "pugd"
    callback.on_evaluate(arguments, state, None, optimizer=late)
    callback.on_train_end(arguments, state, None)
    header, first, second, third = capsys.readouterr().out.splitlines()
    assert header.split() == ["epoch", "train", "loss", "acc", "valid", "loss", "acc", "phase", "α_r", "gradients"]
    assert first.split() == ["1.00", "1.5000", "0.500", "1.2500", "0.500", "3"]
    assert second.split() == ["1.00", "–", "–", "1.23e+08", "0.625", "pugd", "0.500", "5"]
    assert third.split() == ["1.00", "–", "–", "1.23e+08", "0.625", "sgd", "5"]


def test_progress_bars_come_back() -> None:
    logging.enable_progress_bar()
    with pytest.raises(KeyError), quiet_progress_bars():
        raise KeyError
    assert logging.is_progress_bar_enabled()
