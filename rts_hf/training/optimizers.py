"""The names that the training command knows optimizers by, and what belongs to which."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import timm.optim

from rts_hf.optim.switches import SWITCHES
from rts_hf.training.temperon import NAME, register_temperon

# The training command's names for optimizers whose names timm cannot look up as they are, or reads otherwise.
OPTIMIZER_NAMES = {"pugd": "plainpugd"}
TWO_PASS_OPTIMIZERS = ("rts_pugd", "pugd", "plainpugd", "sam", "asam")
RTS_FIELDS = (
    "base",
    "radius",
    "radius_beta_min",
    "radius_beta_max",
    "scale",
    "scale_beta_min",
    "scale_beta_max",
    "switch",
    "perturb_every",
    *dict.fromkeys(f"switch_{name}" for cls in SWITCHES.values() for name in cls().settings()),
)
TWO_PASS_FIELDS = (*RTS_FIELDS, "perturb_fraction")  # with what the Trainer alone knows of the second pass


def is_two_pass(opt: str) -> bool:
    """Return whether an optimizer of this name takes a second gradient."""
    return bare_name(opt) in TWO_PASS_OPTIMIZERS


def stepping_name(opt: str, base: str | None) -> str:
    """Return the name, as timm looks it up, of the optimizer that takes the actual steps.

    >>> stepping_name("rts_pugd", None), stepping_name("lookahead_sam", "adamw"), stepping_name("lion", None)
    ('sgd', 'adamw', 'lion')
    """
    return (base or "sgd" if is_two_pass(opt) else bare_name(opt)).lower().split("_")[-1]


def default_learning_rate(opt: str, base: str | None, *, is_trained: bool = False) -> float:
    """Return the peak learning rate of a run that names none; trained weights are moved a twentieth as fast.

    >>> default_learning_rate("rts_pugd", None), default_learning_rate("rts_pugd", None, is_trained=True)
    (0.2, 0.01)
    """
    fresh = 1e-3 if timm.optim.get_optimizer_info(stepping_name(opt, base)).has_betas else 0.2
    return fresh / 20 if is_trained else fresh


def timm_name(opt: str) -> str:
    """Return the name that timm's registry knows an optimizer of the training command by."""
    return OPTIMIZER_NAMES.get(opt, opt)


def bare_name(opt: str) -> str:
    """Return an optimizer's name without what wraps it.

    >>> bare_name("Lookahead_SAM")
    'sam'
    """
    return opt.lower().removeprefix("lookahead_")


def check_optimizer_name(args: Any) -> None:
    """Raise ValueError for an optimizer that timm does not know or that needs a second derivative, or settings of
    RTS-PUGD beside a plain one.

    Args:
        args: Training arguments, with ``opt``, ``base`` and all of :data:`TWO_PASS_FIELDS`.
    """
    if args.opt == NAME:
        register_temperon()
    known = timm.optim.list_optimizers()
    for argument, name in (("opt", bare_name(args.opt)), ("base", (args.base or "sgd").lower())):
        if name not in known:
            near = [str(match) for match in get_close_matches(name, known, n=3)]
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(
                f"{argument}={getattr(args, argument)!r} is not an optimizer timm knows.{hint} "
                "timm.optim.list_optimizers() lists them."
            )
        if timm.optim.get_optimizer_info(name).second_order:
            raise ValueError(
                f"{argument}={getattr(args, argument)!r} differentiates the gradient it gets, which has no graph here; "
                "choose another."
            )
    if not is_two_pass(args.opt):
        given = [f"{name}={getattr(args, name)!r}" for name in RTS_FIELDS if getattr(args, name) is not None]
        given += [f"perturb_fraction={args.perturb_fraction!r}"] if args.perturb_fraction != 1 else []
        if given:
            raise ValueError(
                f"{', '.join(given)}: opt={args.opt!r} has no second pass and no such setting; leave it out, or "
                f"use one of {', '.join(TWO_PASS_OPTIMIZERS)}."
            )
