"""The optimizers as timm knows them."""

import importlib
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
import timm
import torch
from accelerate import Accelerator
from timm.optim import Lookahead, create_optimizer, create_optimizer_v2, get_optimizer_class, get_optimizer_info
from torch import nn

import rts_hf
import rts_hf.optim.registration
from rts_hf import RTSPUGD, unwrap_optimizer
from rts_hf.optim.registration import ENTRIES, register_with_timm


@pytest.mark.parametrize("name", ENTRIES)
def test_timm_lists_and_describes_it(name: str) -> None:
    described = dict(timm.optim.list_optimizers(with_description=True))
    assert described[name]
    assert "\n" not in described[name]
    info = get_optimizer_info(name)
    assert info.name == name
    assert get_optimizer_class(name, bind_defaults=False) is RTSPUGD
    optimizer = get_optimizer_class(name)(nn.Linear(2, 2).parameters(), lr=0.1)
    assert isinstance(optimizer, RTSPUGD)


@pytest.mark.parametrize(
    ("opt", "method", "phase", "alphas"),
    [
        ("plainpugd", "pugd", "pugd", (1.0, 1.0)),
        ("sam", "sam", "pugd", (0.05, 0.0)),
        ("asam", "asam", "pugd", (0.5, 0.0)),
    ],
)
def test_baselines_have_their_own_settings(opt: str, method: str, phase: str, alphas: tuple) -> None:
    optimizer = create_optimizer_v2(nn.Linear(2, 2), opt=opt, lr=0.1)
    assert (optimizer.method, optimizer.phase) == (method, phase)
    assert (optimizer.radius_schedule(0.7), optimizer.scale_schedule(0.7)) == alphas
    assert optimizer.settings()["perturb_every"] == 1
    changed = create_optimizer_v2(nn.Linear(2, 2), opt=opt, lr=0.1, radius_beta_max=0.2)
    assert changed.radius_schedule(0) == 0.2


@pytest.mark.parametrize("opt", ["rts_pugd", "pugd", "RTS_PUGD"])
def test_rts_pugd_and_pugd_are_the_same(opt: str) -> None:
    optimizer = create_optimizer_v2(nn.Linear(2, 2), opt=opt, lr=0.1)
    plain = RTSPUGD(nn.Linear(2, 2).parameters(), lr=0.1)
    assert optimizer.defaults == plain.defaults


def test_lookahead_goes_around_it() -> None:
    optimizer = create_optimizer_v2(nn.Linear(2, 2), opt="lookahead_rts_pugd", lr=0.1)
    assert isinstance(optimizer, Lookahead)
    assert isinstance(optimizer._base_optimizer, RTSPUGD)


def test_factory_arguments_reach_the_base_optimizer() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    sgd = create_optimizer_v2(model, opt="rts_pugd", lr=0.1, weight_decay=0.3, momentum=0.7, nesterov=False)
    assert [group["weight_decay"] for group in sgd.param_groups] == [0.0, 0.3]
    assert {group["momentum"] for group in sgd.param_groups} == {0.7}
    assert {group["nesterov"] for group in sgd.param_groups} == {False}
    adamw = create_optimizer_v2(model, opt="rts_pugd", base="adamw", lr=0.1, eps=1e-3, betas=(0.8, 0.9))
    assert (adamw.param_groups[0]["eps"], adamw.param_groups[0]["betas"]) == (1e-3, (0.8, 0.9))
    grouped = create_optimizer_v2(
        model, opt="rts_pugd", lr=0.1, param_group_fn=lambda m: [{"params": list(m.parameters()), "lr": 0.7}]
    )
    assert [group["lr"] for group in grouped.param_groups] == [0.7]


def test_the_legacy_factory() -> None:
    arguments = SimpleNamespace(
        opt="rts_pugd",
        lr=0.1,
        weight_decay=0.01,
        momentum=0.8,
        opt_eps=None,
        opt_betas=None,
        opt_args={"base": "momentum"},
    )
    optimizer = create_optimizer(arguments, nn.Linear(2, 2))
    assert isinstance(optimizer, RTSPUGD)
    assert optimizer.param_groups[0]["momentum"] == 0.8
    assert not optimizer.param_groups[0]["nesterov"]


def test_registering_again_or_reloading_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    before = timm.optim.list_optimizers(with_description=True)
    with caplog.at_level(logging.INFO):
        register_with_timm()
        importlib.reload(rts_hf.optim.registration)
        importlib.reload(rts_hf)
    assert caplog.records == []
    assert timm.optim.list_optimizers(with_description=True) == before


def test_importing_is_silent_and_light_and_leaves_a_name_of_timms_own_alone() -> None:
    """In one process, which takes seconds to start: of the package, then of the metrics."""
    code = (
        "import sys, timm.optim, torch\n"
        "from timm.optim._optim_factory import OptimInfo, default_registry\n"
        "default_registry.register(OptimInfo(name='sam', opt_class=torch.optim.SGD, description='theirs'))\n"
        "import rts_hf\n"
        "heavy = {'transformers', 'accelerate', 'datasets', 'evaluate', 'matplotlib', 'sklearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert timm.optim.get_optimizer_info('sam').description == 'theirs'\n"
        "assert timm.optim.get_optimizer_info('rts_pugd').opt_class is rts_hf.RTSPUGD\n"
        "import rts_hf.training.metrics\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_it_is_found_through_accelerate_and_lookahead() -> None:
    model = nn.Linear(2, 2)
    optimizer = create_optimizer_v2(model, opt="lookahead_rts_pugd", lr=0.1)
    prepared = Accelerator(cpu=True).prepare(optimizer)
    found = unwrap_optimizer(prepared)
    assert isinstance(found, RTSPUGD)
    assert found is unwrap_optimizer(found) is unwrap_optimizer(optimizer)


def test_none_is_found_where_there_is_none() -> None:
    assert unwrap_optimizer(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)) is None
    assert unwrap_optimizer(None) is None
