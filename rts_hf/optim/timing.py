"""An optimizer around a base optimizer whose position, phase and switch live in its parameter groups."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from rts_hf.optim.switches import SWITCHES, PhaseSwitch, StagedSwitch, create_switch


class Legal(NamedTuple):
    """What a number among the entries of a group may be."""

    low: float = 0
    high: float = math.inf
    whole: bool = True

    def check(self, key: str, value: Any) -> None:
        """Raise ValueError if ``value`` is something else.

        >>> Legal(high=2).check("rts_method", 7)
        Traceback (most recent call last):
        ValueError: rts_method=7 must be a whole number of at least 0 and at most 2.
        """
        kind = int if self.whole else int | float
        if isinstance(value, bool) or not isinstance(value, kind) or not self.low <= value <= self.high:
            limit = "" if math.isinf(self.high) else f" and at most {self.high}"
            number = "whole number" if self.whole else "number"
            raise ValueError(f"{key}={value!r} must be a {number} of at least {self.low}{limit}.")


class TimedOptimizer(Optimizer):
    """Counts its steps, changes its phase once, and keeps both through every way of saving an optimizer.

    Everything that must outlive the process is a plain number under a ``rts_`` key of every parameter group, because
    groups are what ``torch.save``, accelerate and ``torch.distributed.checkpoint`` all keep, and numbers what all of
    them keep on every rank. A name is kept as its place in its table (-1: not there), a list as numbered entries. The
    groups and the per-parameter state are the base optimizer's own objects, so nothing is held twice.

    Args:
        base_optimizer: Takes the actual steps. Its groups become this optimizer's.
        switch: Decides when the phase changes.
        total_steps: Optimizer steps of the whole run, at least 1, or None where unknown.
        settings: Further ``rts_`` entries of the groups.

    Raises:
        ValueError: If ``total_steps`` is not a whole number of at least 1.
    """

    LEGAL: ClassVar[dict[str, Legal]] = {
        "rts_total_steps": Legal(),
        "rts_step": Legal(),
        "rts_switched_at": Legal(-1),
        "rts_gradient_evaluations": Legal(),
        "rts_switch": Legal(-1, len(SWITCHES) - 1),
    }

    def __init__(
        self, base_optimizer: Optimizer, switch: PhaseSwitch, total_steps: int | None, settings: dict[str, Any]
    ) -> None:
        if total_steps is not None:
            Legal(1).check("total_steps", total_steps)
        self.base_optimizer = base_optimizer
        self.switch = switch
        entries = _numbers(
            switch.window,
            **settings,
            rts_total_steps=total_steps or 0,  # 0: unknown
            rts_step=0,
            rts_switched_at=-1,  # -1: not yet
            rts_gradient_evaluations=0,
            rts_pending_norms=[],
            **self._switch_entries(),
        )
        self._unread_norms: list[Tensor] = []
        self._warned: set[str] = set()
        super().__init__(base_optimizer.param_groups, {**base_optimizer.defaults, **entries})
        self.state.update(base_optimizer.state)  # some optimizers make theirs when they are constructed
        self._share_with_base()
        self._look_at_switch()
        self._warn_if_it_cannot_switch()

    @property
    def phase(self) -> str:
        """``"sgd"`` before the switch, ``"pugd"`` after it."""
        return "sgd" if self._lead["rts_switched_at"] < 0 else "pugd"

    @property
    def switch_step(self) -> int | None:
        """Optimizer steps done when the phase changed, or None before."""
        return None if self.phase == "sgd" else self._lead["rts_switched_at"]

    @property
    def perturbs_from(self) -> int | None:
        """Optimizer steps done when perturbing began, or None before."""
        return None if self.phase == "sgd" else self.switch.perturbs_from(self._lead["rts_switched_at"])

    @property
    def last_phase(self) -> str:
        """The phase in which the last step was taken; ``phase`` is that of the coming one."""
        self._catch_up()
        lead = self._lead
        return "pugd" if 0 <= lead["rts_switched_at"] < lead["rts_step"] else "sgd"

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the whole run, or None where unknown. Setting it moves the schedules."""
        return self._lead["rts_total_steps"] or None

    @total_steps.setter
    def total_steps(self, total_steps: int) -> None:
        Legal(1).check("total_steps", total_steps)
        self.defaults["rts_total_steps"] = total_steps
        self._set(rts_total_steps=total_steps)
        self._look_at_switch()
        self._warn_if_it_cannot_switch()

    def observe_losses(self, train_loss: float, eval_loss: float) -> bool:
        """Feed one epoch's mean training and validation loss to the switch; return whether it has fired."""
        self._catch_up()
        if isinstance(self.switch, StagedSwitch):
            self.switch.step = self._lead["rts_step"]
        self.switch.observe_losses(train_loss=float(train_loss), eval_loss=float(eval_loss))
        self._look_at_switch()
        return self.switch.fired

    def settings(self) -> dict[str, Any]:
        """Return what the run was told, without how far it has come: total steps, schedules, switch."""
        lead = self._lead
        own = {key: value for key, value in _lists(lead, "rts_").items() if not key.startswith(("state_", "switch_"))}
        progress = ("step", "switched_at", "gradient_evaluations", "pending_norms")
        told = {key: value for key, value in own.items() if key not in progress}
        return {**told, "switch": self.switch.name, **{f"switch_{k}": v for k, v in self.switch.settings().items()}}

    def apply_settings(self, settings: dict[str, Any]) -> None:
        """Take over what :meth:`settings` of another optimizer returned; position and phase stay.

        A switch of the same kind and settings keeps its state, another one starts anew.
        """
        told = {key: value for key, value in settings.items() if not key.startswith("switch")}
        self._set(**{f"rts_{key}": value for key, value in told.items()})
        given = {key.removeprefix("switch_"): value for key, value in settings.items() if key.startswith("switch_")}
        if settings["switch"] != self.switch.name or given != self.switch.settings():
            self.switch = create_switch(settings["switch"], given)
        self._look_at_switch()

    def restart(self) -> None:
        """Go back to the start of a run: no step done, not switched. The base optimizer keeps its momentum."""
        self._let_go()
        self._unread_norms = []
        first = {key: value for key, value in self.defaults.items() if key.startswith("rts_state_")}
        self.switch.load_state_dict(_lists(first, "rts_state_"))
        self._set(rts_step=0, rts_switched_at=-1, rts_gradient_evaluations=0, rts_pending_norms=[])
        self._look_at_switch()

    def join(self, steps: int) -> None:
        """Take part in a run from here on, of which the base optimizer has taken the first ``steps`` alone."""
        self._let_go()
        self._set(rts_step=steps, rts_switched_at=-1, rts_gradient_evaluations=steps)
        self._look_at_switch()

    # ---- Counting and switching ----

    def _finish_step(self, gradient_evaluations: int, norm: Tensor | None) -> None:
        """Count one step and let the switch hear of it; ``norm`` is ‖g‖ on the device, None after the switch."""
        if self.switch.window and norm is not None:
            self._unread_norms.append(norm)
            # Reading a norm waits for the device, so they are gathered and read once a window.
            if self._lead["rts_pending_norms_length"] + len(self._unread_norms) >= self.switch.window:
                self._read_norms()
                for value in _lists(self._lead, "rts_")["pending_norms"]:
                    self.switch.observe_norm(value)
                self._set(rts_pending_norms=[])
        lead = self._lead
        self._set(
            rts_step=lead["rts_step"] + 1,
            rts_gradient_evaluations=lead["rts_gradient_evaluations"] + gradient_evaluations,
        )
        self._look_at_switch()
        self._warn_if_no_losses_came()

    def _read_norms(self) -> None:
        if self._unread_norms:
            read = torch.stack(self._unread_norms).tolist()
            self._set(rts_pending_norms=[*_lists(self._lead, "rts_")["pending_norms"], *read])
            self._unread_norms = []

    def _look_at_switch(self) -> None:
        """Tell the switch the position, change the phase if it has fired, and put its state into the groups."""
        lead = self._lead
        if lead["rts_switched_at"] < 0 and self.switch.observe_step(lead["rts_step"], self.total_steps):
            self._set(rts_switched_at=lead["rts_step"])
        self._set(**self._switch_entries())

    def _switch_entries(self) -> dict[str, Any]:
        settings = {f"rts_switch_{key}": value for key, value in self.switch.settings().items()}
        state = {f"rts_state_{key}": value for key, value in self.switch.state_dict().items()}
        return {"rts_switch": place(self.switch.name, SWITCHES), **settings, **state}

    # ---- Entries of the groups ----

    @property
    def _lead(self) -> dict[str, Any]:
        """The group that is read; all hold the same entries, but a sharded load can skip a group without parameters."""
        return _leading(self.param_groups)

    def _catch_up(self) -> None:
        """Bring the groups' entries up to what a captured graph has done, where there is one; waits for the device."""

    def _let_go(self) -> None:
        """Leave a captured graph, where there is one, to itself: from here on it does not move this position."""

    def _set(self, **entries: Any) -> None:
        numbers = _numbers(self.switch.window, **entries)
        for group in self.param_groups:
            group.update(numbers)

    def _share_with_base(self) -> None:
        self.base_optimizer.param_groups = self.param_groups
        self.base_optimizer.state = self.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; it joins the others' position and phase."""
        super().add_param_group(param_group)
        if len(self.param_groups) > 1:
            self._set(**_own(self._lead))

    # ---- Saving, loading, copying ----

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state and, in the groups, the position, the phase and the switch's state."""
        self._catch_up()
        self._read_norms()
        return super().state_dict()

    def __getstate__(self) -> dict[str, Any]:
        self._catch_up()
        self._read_norms()
        return {**super().__getstate__(), "base_optimizer": self.base_optimizer, "switch": self.switch}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over groups and state from ``load_state_dict`` or a copy; a plain optimizer's start the count at 0.

        Raises:
            ValueError: If the groups hold what this optimizer does not save, or were saved with a switch of a class
                that is not this package's, and this optimizer has another. It then stays as it is.
        """
        groups = state["param_groups"]
        entries = _own(_leading(groups) if any(map(_own, groups)) else self.defaults)
        self._check_entries(entries)
        switch = _restored_switch(entries, state.get("switch") or self.switch)
        super().__setstate__(state)
        self.switch = switch
        self._unread_norms = []
        self._warned = set()
        self._set(**entries)
        self.base_optimizer.__setstate__({"state": self.state, "param_groups": self.param_groups})
        self._look_at_switch()

    def _check_entries(self, entries: dict[str, Any]) -> None:
        """Raise ValueError for entries of a group that no optimizer of this kind saves."""
        for key, legal in self.LEGAL.items():
            legal.check(key, _entry(entries, key))
        Legal(-1, entries["rts_step"]).check("rts_switched_at", entries["rts_switched_at"])
        for norm in _entry(_lists(entries, ""), "rts_pending_norms"):
            if not isinstance(norm, float) or norm < 0:  # an infinite one, or NaN, is left out when it is looked at
                raise ValueError(f"rts_pending_norms holds {norm!r}, but must hold numbers of at least 0.")

    # ---- Warnings ----

    def _warn_if_it_cannot_switch(self) -> None:
        reason = None if self.switch.fired else self.switch.cannot_fire(total_steps=self.total_steps)
        if reason is not None:
            self._warn_once(f"This run will never perturb: {reason}")

    def _warn_if_no_losses_came(self) -> None:
        """Warn in the second half of a run whose unit steps have begun, where nobody has told of a validation loss."""
        step, switched_at = self._lead["rts_step"], self._lead["rts_switched_at"]
        if not isinstance(self.switch, StagedSwitch) or self.switch.epochs_seen or switched_at < 0:
            return
        if step > max(switched_at, (self.total_steps or 0) / 2):
            self._warn_once(
                f"no validation loss has come in {step} steps, and without any no step will be perturbed: call "
                "optimizer.observe_losses(train_loss, eval_loss) after each evaluation (RTSTrainer: "
                "eval_strategy='epoch' and one eval_dataset), or choose switch='fixed'."
            )

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, UserWarning, stacklevel=3)


def place(name: str, table: Mapping[str, Any]) -> int:
    """Return the place of ``name`` in ``table``, or -1 if it is not there."""
    return list(table).index(name) if name in table else -1


def name_at(place: int, table: Mapping[str, Any]) -> str | None:
    """Return the name at ``place`` in ``table``, or None for -1."""
    return None if place < 0 else list(table)[place]


def _leading(groups: list[dict[str, Any]]) -> dict[str, Any]:
    return next((group for group in groups if group["params"]), groups[0])


def _entry(entries: Mapping[str, Any], key: str) -> Any:
    if key not in entries:
        raise ValueError(f"{key} is missing among the optimizer's entries.")
    return entries[key]


def _restored_switch(entries: dict[str, Any], switch: PhaseSwitch) -> PhaseSwitch:
    """Return the switch that entries tell of, ``switch`` itself if that is of its kind and settings."""
    name = name_at(entries["rts_switch"], SWITCHES)
    if name is None and switch.name in SWITCHES:
        raise ValueError(
            f"The state was saved with a switch of another class than {switch!r}, one that this package does not have; "
            "construct the optimizer with it."
        )
    if name is not None:
        told = switch.settings() if switch.name == name else SWITCHES[name]().settings()
        settings = {key: _entry(entries, f"rts_switch_{key}") for key in told}
        if switch.name != name or str(settings) != str(told):  # as text, where 3.0 is not 3
            try:
                switch = create_switch(name, settings)
            except ValueError as error:
                raise ValueError(f"rts_{error}") from error
    lists = _lists(entries, "")
    state = {key: _entry(lists, f"rts_state_{key}") for key in switch.state_dict()}
    try:
        switch.load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"rts_state_{error}") from error
    return switch


def _own(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key.startswith("rts_")}


def _numbers(slots: int, **entries: Any) -> dict[str, Any]:
    """Return the entries with every list spread over numbered ones, ``slots`` of them at least.

    A sharded load (torch.distributed.checkpoint) reads only the entries that the optimizer it loads into already has.

    >>> _numbers(3, rts_step=3, rts_norms=[0.5, 0.25])
    {'rts_step': 3, 'rts_norms_length': 2, 'rts_norms_0': 0.5, 'rts_norms_1': 0.25, 'rts_norms_2': 0.0}
    """
    spread: dict[str, Any] = {}
    for key, value in entries.items():
        if isinstance(value, list):
            spread[f"{key}_length"] = len(value)
            padded = [*value, *[0.0] * (slots - len(value))]
            spread.update({f"{key}_{position}": item for position, item in enumerate(padded)})
        else:
            spread[key] = value
    return spread


def _lists(group: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return a group's entries under a prefix, without it, and with numbered ones as the lists they were.

    >>> _lists({"lr": 0.1, "rts_step": 3, "rts_norms_length": 2, "rts_norms_0": 0.5, "rts_norms_1": 0.25}, "rts_")
    {'step': 3, 'norms': [0.5, 0.25]}
    """
    found = {key.removeprefix(prefix): value for key, value in group.items() if key.startswith(prefix)}
    for name in [key.removesuffix("_length") for key in found if key.endswith("_length")]:
        length = found.pop(f"{name}_length")
        Legal().check(f"{prefix}{name}_length", length)
        values = [_entry(group, f"{prefix}{name}_{position}") for position in range(length)]
        # beyond the list's length, entries are padding or what a longer list has left behind
        found = {key: value for key, value in found.items() if not re.fullmatch(rf"{name}_\d+", key)}
        found[name] = values
    return found
