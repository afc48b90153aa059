"""Names of optimizers: what they stand for, and what belongs to which."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import timm.optim

import rts_hf
from rts_hf.training.optimizers import (
    RTS_FIELDS,
    TWO_PASS_OPTIMIZERS,
    check_optimizer_name,
    is_two_pass,
    stepping_name,
    timm_name,
)


def arguments(**changes: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"opt": "rts_pugd", **dict.fromkeys(RTS_FIELDS), "perturb_fraction": 1.0, **changes})


@pytest.mark.parametrize("opt", TWO_PASS_OPTIMIZERS)
def test_two_pass_optimizers_are_known_to_timm(opt: str) -> None:
    assert is_two_pass(opt)
    assert is_two_pass(f"lookahead_{opt}")
    assert timm.optim.get_optimizer_info(timm_name(opt)).opt_class is rts_hf.RTSPUGD or opt in ("sam", "asam")
    assert stepping_name(opt, "adamw") == "adamw"
    check_optimizer_name(arguments(opt=opt, radius="constant"))


@pytest.mark.parametrize("opt", ["sgd", "adamw", "lion", "lookahead_adamw"])
def test_plain_optimizers_take_no_setting_of_two_pass_ones(opt: str) -> None:
    assert not is_two_pass(opt)
    check_optimizer_name(arguments(opt=opt))
    with pytest.raises(ValueError, match=rf"radius='constant': opt='{opt}' has no second pass"):
        check_optimizer_name(arguments(opt=opt, radius="constant"))
    with pytest.raises(ValueError, match=rf"perturb_fraction=0.5: opt='{opt}' has no second pass.*leave it out"):
        check_optimizer_name(arguments(opt=opt, perturb_fraction=0.5))


@pytest.mark.parametrize(("changes", "near"), [({"opt": "rts_pug"}, "rts_pugd"), ({"base": "adamz"}, "adam")])
def test_an_unknown_name_is_refused_with_near_ones(changes: dict[str, str], near: str) -> None:
    with pytest.raises(ValueError, match=rf"is not an optimizer timm knows. Did you mean .*{near}"):
        check_optimizer_name(arguments(**changes))
