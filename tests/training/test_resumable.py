"""A resumed run is the uninterrupted one, to the last bit; one of other settings is refused."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_for_tests import Images, make_model, make_trainer, training_logs
from transformers import EarlyStoppingCallback, TrainerCallback

from rts_hf import RTSTrainer
from rts_hf.training.checkpoints import MARKER_NAME, mark_complete, own_state, read_state, what_is_missing

SWITCHES = {
    "fixed": {"switch": "fixed", "switch_at": "7"},
    "gradient_variance": {
        "switch": "gradient_variance", "switch_window": 3, "switch_init_steps": 3, "switch_gamma": 50.0,
    },
    "generalization_gap": {
        "switch": "generalization_gap", "switch_base_epochs": 1, "switch_every": 1, "switch_mu": 1e-6,
        "eval_strategy": "epoch", "num_train_epochs": 3,
    },
}  # fmt: skip


class Augmented(Images):
    """Images that are never served twice alike."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = super().__getitem__(index)
        return {**image, "pixel_values": image["pixel_values"] + torch.rand(3, 1, 1)}


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_save = control.should_training_stop = state.global_step == self.step
        return control


def stopped(folder: Path, step: int, **settings: Any) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_trainer(folder, callbacks=[StopAt(step)], **settings).train()
    return str(folder / f"checkpoint-{step}")


@pytest.mark.parametrize("stop", [2, 5, 9, 14])  # of 7 updates an epoch
@pytest.mark.parametrize("name", SWITCHES)
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, name: str, stop: int) -> None:
    # entries of the log that begin before the stop and end after it
    settings = {"save_strategy": "steps", "save_steps": 100, "logging_steps": 4, **SWITCHES[name]}

    def make(folder: str, *callbacks: TrainerCallback) -> RTSTrainer:
        model = make_model("test_vit", drop_rate=0.2)
        return make_trainer(tmp_path / folder, model, Augmented(), callbacks=list(callbacks), **settings)

    whole = make("whole")
    output = whole.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make("parts", StopAt(stop)).train()
    resumed = make("parts")
    resumed_output = resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / f"checkpoint-{stop}"))
    assert whole.switched_at() == resumed.switched_at() is not None
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    momentum = [trainer.optimizer.optimizer.state_dict()["state"] for trainer in (whole, resumed)]
    for key, state in momentum[0].items():
        assert torch.equal(state["momentum_buffer"], momentum[1][key]["momentum_buffer"])
    assert training_logs(resumed) == training_logs(whole)
    assert resumed_output.training_loss == output.training_loss
    assert resumed.resumed_at == [stop]


def test_time_and_counts_go_on(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 100, "switch": "fixed", "switch_at": "0"}
    checkpoint = stopped(tmp_path, 4, **settings)
    state = Path(checkpoint) / "trainer_state.json"
    content = json.loads(state.read_text())
    attributes = content["stateful_callbacks"]["RTSTrainer"]["attributes"]
    assert 0 < attributes["seconds"] < 600
    attributes["seconds"] = 1000.0
    attributes["counters"]["faults"]["nonfinite_gradient"] = 3
    state.write_text(json.dumps(content))
    mark_complete(checkpoint)
    trainer = make_trainer(tmp_path, **settings)
    trainer.train(resume_from_checkpoint=checkpoint)
    assert 1000 < trainer.seconds < 1600
    assert trainer.faults.counts["nonfinite_gradient"] == 3
    trainer.train()  # a run of its own
    assert trainer.seconds < 600
    assert (trainer.faults.counts["nonfinite_gradient"], trainer.resumed_at) == (0, [])


def test_older_checkpoints_go_only_once_the_new_one_is_whole(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, "max_steps": 6}

    class DiskFull(TrainerCallback):
        """Fails in the middle of the third checkpoint."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:

                def fail(*args: Any, **kwargs: Any) -> None:
                    raise OSError(28, "No space left on device")

                trainer._save_optimizer_and_scheduler = fail

    trainer = make_trainer(tmp_path, opt="sgd", callbacks=[DiskFull()], **settings)
    with pytest.raises(OSError, match=r"checkpoint-6.*No space left on device.*earlier checkpoints are as they were"):
        trainer.train()
    assert what_is_missing(tmp_path / "checkpoint-6") is not None
    assert what_is_missing(tmp_path / "checkpoint-4") is None
    assert not (tmp_path / "checkpoint-2").exists()


def test_resuming_with_other_settings_is_refused_unless_it_is_meant(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 100, "switch": "fixed", "switch_at": "0"}
    last = stopped(tmp_path, 4, **settings)
    changed = {**settings, "num_train_epochs": 3, "radius": "sine_heating", "radius_beta_max": 0.5}
    with pytest.raises(ValueError, match=r"num_train_epochs 2 → 3, radius default → sine_heating.*override_schedule"):
        make_trainer(tmp_path, **changed).train(resume_from_checkpoint=last)
    trainer = make_trainer(tmp_path, override_schedule=True, **changed)
    trainer.train(resume_from_checkpoint=last)
    rts = trainer.two_pass_optimizer
    assert rts is not None
    assert rts.stats()["step"] == rts.total_steps == 21
    assert training_logs(trainer)[-1]["alpha_r"] == 0.5
    assert trainer.changes == [
        "update 4: num_train_epochs 2 → 3, radius default → sine_heating, radius_beta_max default → 0.5"
    ]


@pytest.mark.parametrize("opt", ["sgd", "sam", "adamw"])
def test_another_optimizer_is_refused(tmp_path: Path, opt: str) -> None:
    settings = {"save_strategy": "steps", "save_steps": 100}
    last = stopped(tmp_path, 4, switch="fixed", switch_at="0", **settings)
    with pytest.raises(ValueError, match=f"opt rts_pugd → {opt}.*cannot change|state of sgd, which adamw cannot use"):
        make_trainer(tmp_path, opt=opt, **settings).train(resume_from_checkpoint=last)


def test_a_learning_rate_that_the_checkpoint_would_override_is_refused(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 100, "opt": "sgd"}
    last = stopped(tmp_path, 4, **settings)
    for override in (False, True):
        trainer = make_trainer(tmp_path, learning_rate=0.5, override_schedule=override, **settings)
        with pytest.raises(ValueError, match=r"learning_rate 0.05 → 0.5.*which cannot change within a run"):
            trainer.train(resume_from_checkpoint=last)


def test_a_plain_sgd_checkpoint_goes_on_with_rts_pugd(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 100}
    last = stopped(tmp_path, 4, opt="sgd", **settings)
    momentum = torch.load(Path(last) / "optimizer.pt", weights_only=True)["state"][0]["momentum_buffer"]
    trainer = make_trainer(tmp_path, switch="fixed", switch_at="0", **settings)
    found: list[Any] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            optimizer = trainer.optimizer.optimizer
            found.append(optimizer.state[optimizer.param_groups[0]["params"][0]]["momentum_buffer"].clone())

    trainer.add_callback(Watch())
    trainer.train(resume_from_checkpoint=last)
    assert torch.equal(found[0], momentum)
    assert trainer.gradient_evaluations == 24  # of 14 updates, the last 10 perturbed


def test_the_checkpoint_tells_what_it_belongs_to(tmp_path: Path) -> None:
    last = stopped(tmp_path, 4, opt="sgd", save_strategy="steps", save_steps=100, hub_token="hf_secret")
    kept = own_state(read_state(last))
    assert kept["arguments"]["training"]["opt"] == "sgd"
    assert (Path(last) / MARKER_NAME).is_file()
    assert "hf_secret" not in json.dumps(kept)


@pytest.mark.filterwarnings("ignore:The switch")
def test_patience_is_not_forgotten(tmp_path: Path) -> None:
    settings = {
        "opt": "sgd", "learning_rate": 0.0, "num_train_epochs": 9, "eval_strategy": "epoch", "save_strategy": "epoch",
        "metric_for_best_model": "f1_macro", "load_best_model_at_end": True, "train": Images(8),
    }  # fmt: skip

    def make(folder: str, *callbacks: TrainerCallback) -> RTSTrainer:
        # without learning, nothing gets better; two updates an epoch
        return make_trainer(tmp_path / folder, callbacks=[EarlyStoppingCallback(4), *callbacks], **settings)

    whole = make("whole")
    whole.train()
    make("parts", StopAt(6)).train()
    resumed = make("parts")
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-6"))
    assert whole.state.global_step == resumed.state.global_step == 10


def test_a_checkpoint_that_is_written_over_is_not_whole_meanwhile(tmp_path: Path) -> None:
    settings = {"opt": "sgd", "save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    make_trainer(tmp_path, **settings).train()
    assert what_is_missing(tmp_path / "checkpoint-2") is None
    again = make_trainer(tmp_path, **settings)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    again._save_scaler = fail
    with pytest.raises(KeyboardInterrupt):
        again.train()
    assert what_is_missing(tmp_path / "checkpoint-2") is not None
