"""A resumed run is the uninterrupted one, to the last bit; one of other settings is refused."""

import copy
import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from training_for_tests import Images, StopAt, make_arguments, make_model, make_trainer, stopped, training_logs
from transformers import EarlyStoppingCallback, TrainerCallback

from rts_hf import RTSTrainer
from rts_hf.training.checkpoints import MARKER_NAME, mark_complete, own_state, read_state, what_is_missing
from rts_hf.training.resumable import SeededDraws

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
SAVING = {"save_strategy": "steps", "save_steps": 100}


class Augmented(Images):
    """Images that are never served twice alike."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = super().__getitem__(index)
        return {**image, "pixel_values": image["pixel_values"] + torch.rand(3, 1, 1)}


class SaveAt(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_save = state.global_step in (2, 5, 9, 14)
        return control


def make_augmented(folder: Path, name: str, *callbacks: TrainerCallback) -> RTSTrainer:
    # entries of the log that begin before a checkpoint and end after it
    settings = {"save_strategy": "steps", "save_steps": 100, "logging_steps": 4, "save_total_limit": None}
    model = make_model("test_vit", drop_rate=0.2)
    return make_trainer(folder, model, Augmented(), callbacks=list(callbacks), **settings, **SWITCHES[name])


Whole = tuple[RTSTrainer, Any]


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Whole]:
    """For each switch an uninterrupted run, with what it returned."""
    runs = {}
    for name in SWITCHES:
        trainer = make_augmented(tmp_path_factory.mktemp(name), name, SaveAt())
        runs[name] = trainer, trainer.train()
    return runs


@pytest.fixture(scope="module")
def perturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint of a run that perturbs from its start, and was stopped after update 4."""
    return stopped(tmp_path_factory.mktemp("perturbed"), 4, switch="fixed", switch_at="0", **SAVING)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint of a plain run that was stopped after update 4."""
    return stopped(tmp_path_factory.mktemp("plain"), 4, opt="sgd", hub_token="hf_secret", **SAVING)


# 7 updates an epoch: within the first and the second, at the end of one and of the run, before and after the switch
@pytest.mark.parametrize(
    ("name", "stop"),
    [
        ("fixed", 2), ("fixed", 9), ("fixed", 14), ("gradient_variance", 2), ("gradient_variance", 5),
        ("gradient_variance", 9), ("generalization_gap", 5), ("generalization_gap", 9), ("generalization_gap", 14),
    ],
)  # fmt: skip
def test_resumed_equals_uninterrupted_bit_for_bit(
    tmp_path: Path, whole_runs: dict[str, Whole], name: str, stop: int
) -> None:
    whole, output = whole_runs[name]
    resumed = make_augmented(tmp_path, name)
    resumed_output = resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir, f"checkpoint-{stop}")))
    assert whole.switched_at() == resumed.switched_at() is not None
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    momentum = [trainer.optimizer.optimizer.state_dict()["state"] for trainer in (whole, resumed)]
    for key, state in momentum[0].items():
        assert torch.equal(state["momentum_buffer"], momentum[1][key]["momentum_buffer"])
    assert training_logs(resumed) == training_logs(whole)
    assert resumed_output.training_loss == output.training_loss
    assert resumed.resumed_at == [stop]


def test_every_epoch_draws_anew(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, train=Augmented(1), max_steps=2, opt="sgd")  # of one image, in one order
    seen, step = [], trainer.training_step

    def watch(model: Any, inputs: Any, *args: Any) -> Any:
        seen.append(float(inputs["pixel_values"].mean()))
        return step(model, inputs, *args)

    trainer.training_step = watch  # type: ignore[method-assign]
    trainer.train()
    assert abs(seen[0] - seen[1]) > 1e-3


def test_time_and_counts_go_on(tmp_path: Path, perturbed: str) -> None:
    settings = {**SAVING, "switch": "fixed", "switch_at": "0"}
    checkpoint = shutil.copytree(perturbed, tmp_path / "checkpoint-4")
    state = checkpoint / "trainer_state.json"
    content = json.loads(state.read_text())
    attributes = content["stateful_callbacks"]["RTSTrainer"]["attributes"]
    assert 0 < attributes["seconds"] < 600
    attributes["seconds"] = 1000.0
    attributes["counters"]["faults"]["nonfinite_gradient"] = 3
    state.write_text(json.dumps(content))
    mark_complete(checkpoint)
    trainer = make_trainer(tmp_path, **settings)
    trainer.train(resume_from_checkpoint=str(checkpoint))
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


def test_resuming_with_other_settings_is_refused_unless_it_is_meant(tmp_path: Path, perturbed: str) -> None:
    changed = {**SAVING, "switch": "fixed", "switch_at": "0", "num_train_epochs": 3, "radius": "sine_heating"}
    changed["radius_beta_max"] = 0.5
    with pytest.raises(ValueError, match=r"num_train_epochs 2 → 3, radius cosine_annealing → .*override_schedule"):
        make_trainer(tmp_path, **changed).train(resume_from_checkpoint=perturbed)
    trainer = make_trainer(tmp_path, override_schedule=True, **changed)
    trainer.train(resume_from_checkpoint=perturbed)
    rts = trainer.two_pass_optimizer
    assert rts is not None
    assert rts.stats()["step"] == rts.total_steps == 21
    assert training_logs(trainer)[-1]["alpha_r"] == 0.5
    assert trainer.changes == [
        "update 4: num_train_epochs 2 → 3, radius cosine_annealing → sine_heating, radius_beta_max 2.0 → 0.5"
    ]


@pytest.mark.parametrize("opt", ["sgd", "sam", "adamw"])
def test_another_optimizer_is_refused(tmp_path: Path, perturbed: str, opt: str) -> None:
    with pytest.raises(ValueError, match=f"opt rts_pugd → {opt}.*cannot change|state of sgd, which adamw cannot use"):
        make_trainer(tmp_path, opt=opt, **SAVING).train(resume_from_checkpoint=perturbed)


def test_a_learning_rate_that_the_checkpoint_would_override_is_refused(tmp_path: Path, plain: str) -> None:
    for override in (False, True):
        trainer = make_trainer(tmp_path, learning_rate=0.5, override_schedule=override, opt="sgd", **SAVING)
        with pytest.raises(ValueError, match=r"learning_rate 0.05 → 0.5.*which cannot change within a run"):
            trainer.train(resume_from_checkpoint=plain)


def test_a_plain_sgd_checkpoint_goes_on_with_rts_pugd(tmp_path: Path, plain: str) -> None:
    momentum = torch.load(Path(plain) / "optimizer.pt", weights_only=True)["state"][0]["momentum_buffer"]
    trainer = make_trainer(tmp_path, switch="fixed", switch_at="0", **SAVING)
    found: list[Any] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            optimizer = trainer.optimizer.optimizer
            found.append(optimizer.state[optimizer.param_groups[0]["params"][0]]["momentum_buffer"].clone())

    trainer.add_callback(Watch())
    trainer.train(resume_from_checkpoint=plain)
    assert torch.equal(found[0], momentum)
    assert trainer.gradient_evaluations == 24  # of 14 updates, the last 10 perturbed


def test_the_checkpoint_tells_what_it_belongs_to(plain: str) -> None:
    kept = own_state(read_state(plain))
    assert kept["arguments"]["training"]["opt"] == "sgd"
    assert (Path(plain) / MARKER_NAME).is_file()
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


# ---- What is written opens without running code, and holds no token ----

TOKEN = "hf_thisIsASecretOfTheTests"


def test_every_file_opens_without_pickles_and_none_holds_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}OfTheEnvironment")
    trainer = make_trainer(
        tmp_path, max_steps=2, save_strategy="steps", save_steps=1, hub_token=TOKEN, switch="fixed", switch_at="0",
        report_to="tensorboard",
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= names
    for path in files:
        assert TOKEN.encode() not in path.read_bytes(), path
        if path.suffix in (".pt", ".pth", ".bin", ".pkl"):
            torch.load(path, weights_only=True)
        else:
            assert path.suffix in (".json", ".safetensors") or "tfevents" in path.name, path
    printed = capfd.readouterr()
    assert TOKEN not in printed.out + printed.err + repr(trainer.args) + str(trainer.args)
    assert trainer.args.hub_token == TOKEN  # it is still there to push with


def test_pickles_and_copies_of_the_arguments_hold_no_token(tmp_path: Path) -> None:
    arguments = make_arguments(tmp_path, hub_token=TOKEN, radius="constant")
    assert TOKEN.encode() not in pickle.dumps(arguments)
    copied = copy.deepcopy(arguments)
    assert (copied.hub_token, copied.radius, copied.given["radius"]) == (None, "constant", "constant")
    assert arguments.hub_token == TOKEN
    assert "hub_token" not in arguments.given


def test_random_states_come_back_as_they_were(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer._save_rng_state(str(tmp_path))
    expected = random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()
    trainer._load_rng_state(str(tmp_path))
    assert (random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["rng_state.pth"]


# ---- The draws of a data set hang on seed, epoch and samples, whoever fetches them ----


class Noise(Dataset[Tensor]):
    """Draws from all three generators."""

    column_names = ("noise",)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([float(torch.rand(())), np.random.rand(), random.random(), index], dtype=torch.float64)


def fetched(dataset: SeededDraws, workers: int = 0, epochs: int = 2) -> list[Tensor]:
    loader: Any = DataLoader(dataset, batch_size=4, num_workers=workers, persistent_workers=workers > 0)
    batches = []
    for epoch in range(epochs):
        dataset.begin_epoch(epoch)
        batches += list(loader)
    return batches


def test_what_was_drawn_before_and_who_fetches_make_no_difference() -> None:
    torch.manual_seed(1)
    first = torch.stack(fetched(SeededDraws(Noise(), seed=5)))
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    assert torch.equal(torch.stack(fetched(SeededDraws(Noise(), seed=5))), first)
    assert torch.equal(torch.stack(fetched(SeededDraws(Noise(), seed=5), workers=2)), first)
    assert len(first[..., :3].unique()) == first[..., :3].numel()  # no two samples or epochs draw the same
    assert not (torch.stack(fetched(SeededDraws(Noise(), seed=6)))[..., :3] == first[..., :3]).any()


def test_the_generators_are_left_as_they_were() -> None:
    noise = SeededDraws(Noise(), seed=5)

    def draws() -> list[float]:
        torch.manual_seed(3)
        np.random.seed(3)
        random.seed(3)
        noise.__getitems__([1, 2])
        with pytest.raises(TypeError):  # of the data set's own
            noise["no index"]
        noise[3]
        return [float(torch.rand(())), np.random.rand(), random.random()]

    mine = draws()
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    assert mine == [float(torch.rand(())), np.random.rand(), random.random()]


def test_a_data_set_of_batches_is_asked_for_batches() -> None:
    class Batches(Noise):
        def __getitems__(self, indices: list[int]) -> list[Tensor]:
            return [torch.rand(3) for _ in indices]

    dataset = SeededDraws(Batches(), seed=5)
    assert dataset.__getitems__([1, 2])[0].shape == (3,)
    assert dataset.column_names == ("noise",)
    assert len(dataset) == 12
    assert not hasattr(dataset, "set_epoch")
    assert len(pickle.loads(pickle.dumps(SeededDraws(Noise(), seed=5)))) == 12  # as a worker that is spawned gets it


@pytest.mark.parametrize("key", [(3, 64), "cat/7", np.int64(5)])
def test_whatever_a_sampler_yields_is_an_index(key: Any) -> None:
    class Keyed(Dataset[float]):
        def __len__(self) -> int:
            return 9

        def __getitem__(self, index: Any) -> float:
            assert index == key
            return float(torch.rand(()))

    assert SeededDraws(Keyed(), seed=5)[key] == SeededDraws(Keyed(), seed=5)[key]
    if isinstance(key, np.integer):
        assert SeededDraws(Keyed(), seed=5)[key] == SeededDraws(Keyed(), seed=5)[int(key)]
