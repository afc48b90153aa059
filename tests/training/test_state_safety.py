"""Nothing that is saved or seen from outside ever holds w + ε, and no file can ask for foreign code."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from training_for_tests import make_model, make_trainer
from transformers import TrainerCallback

from rts_hf import DataArguments, ModelArguments, RTSTrainer, RTSTrainingArguments
from rts_hf.runs.command_line import parse_arguments

HOOKS = sorted(name for name in vars(TrainerCallback) if name.startswith("on_") and name != "on_init_end")


class Snapshots(TrainerCallback):
    """Holds the weights that every hook sees against those that the optimizer's last step left."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}
        self.trainer: Any = None
        self.expected: list[Tensor] = []
        self.trajectory: list[list[Tensor]] = []

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.trainer.model.parameters()]

    def watch(self, trainer: RTSTrainer) -> None:
        self.trainer = trainer
        self.expected = self.weights()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._check("on_train_begin")
        self.trainer.two_pass_optimizer.register_step_post_hook(self._note_step)

    def _note_step(self, *_: Any) -> None:
        self.expected = self.weights()
        self.trajectory.append(self.expected)

    def _check(self, hook: str) -> None:
        self.seen[hook] = self.seen.get(hook, 0) + 1
        assert not self.trainer.two_pass_optimizer or not self.trainer.two_pass_optimizer._is_perturbed
        for weight, expected in zip(self.trainer.model.parameters(), self.expected, strict=True):
            assert torch.equal(weight.detach(), expected), hook


def _make_hook(name: str) -> Any:
    def hook(self: Snapshots, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._check(name)
        if name == "on_pre_optimizer_step":  # where transformers saves when a job is told to end
            self.trainer._save_checkpoint(self.trainer.model, trial=None)
        if name in ("on_save", "on_pre_optimizer_step"):
            saved = load_file(Path(args.output_dir, f"checkpoint-{state.global_step}", "model.safetensors"))
            held = {key.removeprefix("timm_model."): value for key, value in self.trainer.model.state_dict().items()}
            named = {key.removeprefix("timm_model."): value for key, value in saved.items()}
            assert named
            assert all(torch.equal(value, held[key]) for key, value in named.items())

    return hook


for _name in HOOKS:
    if _name != "on_train_begin":
        setattr(Snapshots, _name, _make_hook(_name))


def test_no_hook_and_no_checkpoint_sees_perturbed_weights(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "switch": "fixed", "switch_at": "1", "radius": "constant", "radius_beta_max": 5.0,
        "gradient_accumulation_steps": 2, "num_train_epochs": 1, "learning_rate": 0.01,
    }  # fmt: skip
    snapshots = Snapshots()
    trainer = make_trainer(
        tmp_path / "watched", make_model("resnet_micro_small"), callbacks=[snapshots], save_strategy="steps",
        save_steps=1, eval_strategy="steps", eval_steps=1, **settings,
    )  # fmt: skip
    snapshots.watch(trainer)
    trainer.train()
    updates = trainer.state.global_step
    assert updates == len(snapshots.trajectory) == 4
    assert trainer.gradient_evaluations == 1 + 2 * 3
    wanted = {"on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_log", "on_save"}
    assert {name: snapshots.seen.get(name, 0) >= 3 for name in wanted} == dict.fromkeys(wanted, True)

    # and it is the trajectory of a run that nobody watches
    plain = make_trainer(tmp_path / "plain", make_model("resnet_micro_small"), **settings)
    plain.train()
    for a, b in zip(plain.model.parameters(), snapshots.trajectory[-1], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", [ModelArguments, DataArguments, RTSTrainingArguments])
def test_no_argument_turns_foreign_code_on(kind: type) -> None:
    assert not [f.name for f in fields(kind) if "remote_code" in f.name]


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_settings_file_cannot_turn_foreign_code_on(tmp_path: Path, suffix: str) -> None:
    settings = {"dataset": "cifar10", "trust_remote_code": True}
    path = tmp_path / f"settings{suffix}"
    path.write_text(yaml.safe_dump(settings) if suffix == ".yaml" else json.dumps(settings))
    with pytest.raises(ValueError, match=r"unknown setting in .* --trust_remote_code"):
        parse_arguments([str(path)])
    with pytest.raises(ValueError, match="unknown argument --trust_remote_code"):
        parse_arguments(["--trust_remote_code", "true"])


def test_a_settings_file_cannot_hold_objects(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(f"dataset: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    with pytest.raises(ValueError, match="cannot be read"):
        parse_arguments([str(path)])
    assert not (tmp_path / "made").exists()


def test_arguments_of_the_model_cannot_turn_foreign_code_on() -> None:
    with pytest.raises(ValueError, match="trust_remote_code"):
        make_model("test_vit", trust_remote_code=True)
