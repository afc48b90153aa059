"""What leaves no room for a second pass is refused, however it is asked for, with the alternative named."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import ParallelismConfig
from torch import nn
from training_for_tests import Images, make_arguments, make_model

from rts_hf import RTSPUGD, RTSTrainer
from rts_hf.optim.parallelism import check_accelerator, name_blocks

DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}
FSDP1 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}
CONTEXT = {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_CP_SIZE": "2"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (DEEPSPEED, "ACCELERATE_USE_DEEPSPEED=true: .*second pass; use DistributedDataParallel or FSDP2"),
        (FSDP1, "FSDP_VERSION=1: .*use version 2"),
        (CONTEXT, "cp_size=2: .*use DistributedDataParallel or FSDP2"),
        ({**CONTEXT, "PARALLELISM_CONFIG_CP_SIZE": "1", "PARALLELISM_CONFIG_SP_SIZE": "2"}, "sp_size=2"),
    ],
)
def test_what_a_launcher_asks_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        make_arguments(tmp_path)
    with pytest.raises(ValueError, match=message):
        RTSPUGD([nn.Parameter(torch.ones(2))], lr=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "deepspeed=.*use DistributedDataParallel or FSDP2"),
        ({"deepspeed": "ds.json", "opt": "sgd"}, "deepspeed='ds.json'"),
        ({"fsdp": True, "fsdp_config": {"fsdp_version": 1}}, "fsdp_config=.*FSDP of version 1.*use version 2"),
        ({"fsdp": "full_shard", "fsdp_config": {"version": 1}}, "FSDP of version 1"),
        ({"parallelism_config": ParallelismConfig(cp_size=2)}, "cp_size=2"),
        ({"sync_first_pass": False, "ddp_static_graph": True}, "ddp_static_graph=True does not allow"),
        ({"sync_first_pass": False, "fsdp": True}, "fsdp=True does not allow"),
    ],
    ids=str,
)
def test_what_arguments_ask_for_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_arguments(tmp_path, **settings)


def test_a_file_that_asks_for_version_1_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fsdp.json").write_text(json.dumps({"fsdp_version": 1}))
    with pytest.raises(ValueError, match="FSDP of version 1"):
        make_arguments(tmp_path, fsdp=True, fsdp_config=str(tmp_path / "fsdp.json"))


def test_version_2_is_accepted_in_every_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_arguments(tmp_path, fsdp=True, fsdp_config={"fsdp_version": 2}).fsdp
    assert make_arguments(tmp_path, fsdp=True).fsdp
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert make_arguments(tmp_path).is_two_pass


def test_several_devices_in_one_process_are_refused(tmp_path: Path) -> None:
    arguments = make_arguments(tmp_path)
    arguments._n_gpu = 2
    with pytest.raises(
        ValueError, match=r"n_gpu=2: .*DataParallel.*accelerate launch --multi_gpu.*CUDA_VISIBLE_DEVICES"
    ):
        RTSTrainer(model=make_model(), args=arguments, train_dataset=Images())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"distributed_type": "DEEPSPEED"}, "distributed_type=DEEPSPEED"),
        ({"distributed_type": "MEGATRON_LM"}, "distributed_type=MEGATRON_LM"),
        ({"fsdp_plugin": SimpleNamespace(fsdp_version=1)}, "fsdp_version=1: .*use version 2"),
        ({"parallelism_config": SimpleNamespace(cp_enabled=True)}, "context and sequence parallelism"),
    ],
    ids=str,
)
def test_what_shows_in_the_accelerator_only_is_refused(state: dict[str, Any], message: str) -> None:
    kept = {"distributed_type": "MULTI_GPU", "fsdp_plugin": None, "parallelism_config": None, **state}
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=kept["fsdp_plugin"]), device="cuda", **kept)
    with pytest.raises(ValueError, match=message):
        check_accelerator(accelerator, SimpleNamespace(n_gpu=1, fsdp=None))


def test_where_accelerate_does_not_shard_a_warning_says_so() -> None:
    accelerator = SimpleNamespace(state=SimpleNamespace(), distributed_type="MULTI_CPU", device="cpu")
    with pytest.warns(UserWarning, match=r"fsdp=True, but accelerate does not shard here .*MULTI_CPU, device cpu"):
        check_accelerator(accelerator, SimpleNamespace(n_gpu=0, fsdp=True))
    accelerator.distributed_type = "FSDP"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_accelerator(accelerator, SimpleNamespace(n_gpu=0, fsdp=True))


@pytest.mark.parametrize(
    ("name", "blocks"), [("test_vit", ["Block"]), ("resnet_micro_small", ["BasicBlock"]), ("test_mambaout", None)]
)
def test_blocks_are_named_by_the_backbone(name: str, blocks: list[str] | None) -> None:
    model = make_model(name)
    assert list(model._no_split_modules) == ["TimmWrapperModel"]
    name_blocks(model)
    names = list(model._no_split_modules)
    assert names == blocks if blocks else names
    assert set(names) <= {type(module).__name__ for module in model.modules()}
    name_blocks(model)
    assert list(model._no_split_modules) == names


def test_flattened_parameters_are_refused() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight._fsdp_flattened = True
    with pytest.raises(ValueError, match="params are those of a model under FSDP of version 1"):
        RTSPUGD([weight], lr=0.1)


class Partial(torch.optim.Optimizer):
    """Gives an optimizer that it makes a share of its parameters, as ZeroRedundancyOptimizer does."""

    def __init__(self, params: list[nn.Parameter], share: list[nn.Parameter]) -> None:
        super().__init__(params, {"lr": 0.1})
        self.make(share)

    def make(self, share: list[nn.Parameter]) -> None:
        self.inner = RTSPUGD(share, lr=0.1)


def test_a_part_of_another_optimizers_parameters_is_refused() -> None:
    params = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    with pytest.raises(ValueError, match=r"Partial gives 2 of its 3 parameters.*DistributedDataParallel or FSDP2"):
        Partial(params, params[:2])
    for share in (params, [nn.Parameter(torch.ones(2))]):  # all, and other ones
        Partial(params, share)
