"""Numbers outside their range, and arguments that would do nothing, are refused before any work."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_for_tests import make_arguments, make_model, make_trainer

from rts_hf import RTSTrainingArguments
from rts_hf.training.checks import check_backend, refusals_explained, warn_of_a_single_image


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0 must be at least 1"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0 must be at least 1"),
        ({"per_device_eval_batch_size": -2}, "per_device_eval_batch_size=-2 must be at least 1"),
        ({"num_train_epochs": 0.0}, "num_train_epochs=0.0 must be greater than 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan must be at least 0"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0 must be at least 0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 must be at least 0"),
        ({"momentum": 2.0}, "momentum=2.0 must be at least 0 and at most 1"),
        ({"label_smoothing_factor": 2.0}, "label_smoothing_factor=2.0 must be at least 0 and at most 1"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0 must be at least 0"),
        ({"early_stopping_patience": 0}, "early_stopping_patience=0 must be at least 1"),
        ({"max_skipped_updates": 0}, "max_skipped_updates=0 must be at least 1"),
        ({"save_total_limit": 0}, "save_total_limit=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        (
            {"save_strategy": "steps", "save_steps": 0, "load_best_model_at_end": False},
            "save_steps=0 must be greater than 0",
        ),
        ({"max_steps": 0}, "max_steps=0 must be at least 1, or -1"),
        ({"learning_rate": True}, "learning_rate=True must be a number"),
        ({"max_skipped_updates": 2.5}, "max_skipped_updates=2.5 must be a whole number"),
        ({"seed": 1.5}, "seed=1.5 must be a whole number"),
        (
            {"early_stopping_patience": 2, "eval_strategy": "no", "load_best_model_at_end": False},
            "early_stopping_patience=2 waits for better evaluations, but eval_strategy='no'",
        ),
        (
            {"early_stopping_patience": 2, "metric_for_best_model": None, "load_best_model_at_end": False},
            "metric_for_best_model=None; set both",
        ),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "lr_scheduler_type='warmup_stable_decay' cannot be built.*JSON"),
        *(
            (
                {"lr_scheduler_type": kind, "lr_scheduler_kwargs": kwargs, "eval_strategy": "epoch"},
                f"lr_scheduler_type='{kind}'.*{message}",
            )
            for kind, kwargs, message in [
                ("polynomial", '{"power": "x"}', "power.*: unsupported operand.*JSON"),
                ("polynomial", '{"power": -1}', "negative power"),
                ("polynomial", '{"power": NaN}', "the learning rate would become nan"),
                ("polynomial", '{"lr_end": 0.5}', "must be smaller than initial lr"),
                ("polynomial", '{"lr_end": -0.5}', "the learning rate would become -0.0"),
                ("cosine", '{"num_cycles": "x"}', "could not convert"),
                ("reduce_lr_on_plateau", '{"patience": "x"}', "not supported between"),
                ("greedy", '{"patience": "x"}', "not supported between"),
            ]
        ),
        ({"load_best_model_at_end": True}, "eval_strategy='no' leaves nothing to tell the best weights by"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "no"},
            "save_strategy='no' with eval_strategy='epoch'",
        ),
    ],
)
def test_refused(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RTSTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": '{"num_decay_steps": 3}'},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": '{"num_decay_steps": 500}'},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": '{"power": 0.5, "lr_end": 0.01}'},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"},
        {"lr_scheduler_type": "greedy", "eval_strategy": "epoch"},
        {"lr_scheduler_type": "constant"},
        {"lr_scheduler_type": "constant", "learning_rate": 0.0},
        {"momentum": 0.0, "label_smoothing_factor": 0.1},
        {"save_strategy": "best"},
        {"eval_strategy": "no"},
        {"do_train": True},
    ],
)
def test_accepted(tmp_path: Path, settings: dict) -> None:
    RTSTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)


@pytest.mark.parametrize(
    ("images", "settings", "warned"),
    [
        (129, {}, True),
        (128, {}, False),
        (130, {}, False),
        (1, {}, False),
        (129, {"dataloader_drop_last": True}, False),
        (5, {"per_device_train_batch_size": 1}, False),
        (5, {"per_device_train_batch_size": 4}, True),
    ],
)
def test_a_last_batch_of_one_image_is_warned_of(tmp_path: Path, images: int, settings: dict, warned: bool) -> None:
    args = make_arguments(tmp_path, **{"per_device_train_batch_size": 64, **settings})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warn_of_a_single_image(args, images)
    assert [f"a single one of the {images} training images" in str(each.message) for each in told] == [True] * warned


@pytest.mark.parametrize(("images", "alone"), [(129, True), (65, False)])
def test_an_image_in_a_window_with_others_takes_no_step_of_its_own(tmp_path: Path, images: int, alone: bool) -> None:
    args = make_arguments(tmp_path, per_device_train_batch_size=64, gradient_accumulation_steps=2)
    with pytest.warns(UserWarning, match="a single one of") as told:
        warn_of_a_single_image(args, images)
    assert ("a unit step" in str(told[0].message)) is alone
    assert "BatchNorm's statistics follow it" in str(told[0].message)


# ---- Backends of torch.compile ----


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
