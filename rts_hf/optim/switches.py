"""When RTS-PUGD turns from plain descent to perturbed descent: switches that fire once and never go back."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class PhaseSwitch:
    """A condition that starts false and fires once.

    The optimizer calls the ``observe_*`` methods; each returns whether the switch has fired so far, and a switch
    ignores what it does not listen to. A subclass overrides the one it needs and calls :meth:`_fire`.

    Attributes:
        fired: Whether the switch has fired.
        window: Number of gradient norms the optimizer may gather on the device before it hands them over;
            0 if the switch does not listen to norms.
    """

    name = ""
    window = 0

    def __init__(self) -> None:
        self.fired = False

    def observe_step(self, step: int, total_steps: int | None) -> bool:
        """Hear of the position in the run: ``step`` optimizer steps done of ``total_steps`` (None: unknown)."""
        return self.fired

    def observe_norm(self, norm: float) -> bool:
        """Hear the global L2 norm of the gradient of one more step."""
        return self.fired

    def observe_losses(self, *, train_loss: float, eval_loss: float) -> bool:
        """Hear the mean training loss and the validation loss of one more epoch."""
        return self.fired

    def cannot_fire(self, *, total_steps: int | None = None, num_epochs: int | None = None) -> str | None:
        """Return why the switch can never fire within the horizon, or None if it can or the horizon is unknown.

        Args:
            total_steps: Optimizer steps of the whole run.
            num_epochs: Epochs (evaluations) of the whole run.
        """
        return None

    def perturbs_from(self, switched_at: int) -> int | None:
        """Return after how many steps perturbing began, in a run that switched after ``switched_at``; None: not yet.

        Until then steps are unit steps that leave a gradient longer than 1 as it is.
        """
        return switched_at

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain Python values."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain Python numbers and lists."""
        return {"fired": self.fired}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state that :meth:`state_dict` returned.

        Raises:
            ValueError: If an entry is missing or unknown, as in the state of another kind of switch, or is not what a
                switch of this package saves. The switch then stays as it is.
        """
        expected = self.state_dict()
        if set(state_dict) != set(expected):
            raise ValueError(
                f"state_dict has the entries {sorted(state_dict)}, but {type(self).__name__} needs {sorted(expected)}; "
                "it was saved by another kind of switch."
            )
        if self.name in SWITCHES:  # others know by themselves what they save
            for key, value in state_dict.items():
                if not _is_like(value, expected[key]):
                    raise ValueError(f"{key}={value!r} must be {_KINDS[type(expected[key])]}.")
            self._check_state(state_dict)
        for key, value in state_dict.items():
            setattr(self, key, list(value) if isinstance(expected[key], list) else type(expected[key])(value))

    def _check_state(self, state_dict: Mapping[str, Any]) -> None:
        """Raise ValueError where entries, each legal by itself, do not fit together."""

    def _fire(self) -> bool:
        self.fired = True
        return True

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.settings().items())
        return f"{type(self).__name__}({arguments})"


class GradientVarianceSwitch(PhaseSwitch):
    """Fires when the variance of the gradient norm falls below a share of its initial value.

    ``σ²`` is the variance of the last ``window`` gradient norms; ``σ²_init`` is the mean of the window variances
    that lie inside the first ``init_steps`` steps. Fires at the first later step with ``σ² < gamma·σ²_init``.

    Clipping would hide the variance: feed it the norms of unclipped gradients.

    >>> switch = GradientVarianceSwitch(window=2, init_steps=2, gamma=0.5)
    >>> [switch.observe_norm(norm) for norm in (1.0, 3.0, 1.5, 2.5)]  # variances 1, 0.5625, 0.25
    [False, False, False, True]

    Args:
        window: Steps in a window, at least 2.
        init_steps: Steps that give the initial variance, at least ``window``.
        gamma: Share of the initial variance below which the switch fires, greater than 0.

    Raises:
        ValueError: If a setting lies outside its range.

    Source: RTS-PUGD, timing by gradient variance.
    """

    name = "gradient_variance"

    def __init__(self, window: int = 10, init_steps: int = 10, gamma: float = 0.2) -> None:
        super().__init__()
        self.window = _whole("window", window, at_least=2)
        self.init_steps = _whole("init_steps", init_steps, at_least=1)
        self.gamma = _positive("gamma", gamma)
        if init_steps < window:
            raise ValueError(
                f"init_steps={init_steps!r} must be at least window={window!r}; raise it or use a smaller window."
            )
        self.norms: list[float] = []
        self.steps_seen = 0
        self.initial_sum = 0.0
        self.initial_count = 0

    @property
    def variance(self) -> float:
        """σ² of the last full window, or NaN before it."""
        if len(self.norms) < self.window:
            return math.nan
        mean = math.fsum(self.norms) / self.window
        return math.fsum((norm - mean) ** 2 for norm in self.norms) / self.window

    @property
    def initial_variance(self) -> float:
        """σ²_init, or NaN before the first full window."""
        return self.initial_sum / self.initial_count if self.initial_count else math.nan

    def observe_norm(self, norm: float) -> bool:
        """Hear one more gradient norm (≥ 0) and return whether the switch has fired.

        A norm that is NaN or infinite is left out with a warning; it neither fires the switch nor counts as a step.
        """
        if self.fired:
            return True
        if not math.isfinite(norm):
            warnings.warn(f"{type(self).__name__} left out the gradient norm {norm}.", RuntimeWarning, stacklevel=2)
            return False
        self.norms = [*self.norms, float(norm)][-self.window :]
        self.steps_seen += 1
        if len(self.norms) < self.window:
            return False
        variance = self.variance
        if self.steps_seen <= self.init_steps:
            self.initial_sum += variance
            self.initial_count += 1
            return False
        return self._fire() if variance < self.gamma * self.initial_variance else False

    def cannot_fire(self, *, total_steps: int | None = None, num_epochs: int | None = None) -> str | None:
        # The optimizer reads its norms once a window, so the phase can change at multiples of the window only.
        first = (self.init_steps // self.window + 1) * self.window
        if total_steps is not None and total_steps <= first:
            return (
                f"{self!r} first compares after step {first}, but the run has {total_steps} steps; "
                "train longer or use a smaller window and init_steps."
            )
        return None

    def settings(self) -> dict[str, Any]:
        return {"window": self.window, "init_steps": self.init_steps, "gamma": self.gamma}

    def state_dict(self) -> dict[str, Any]:
        return {
            "fired": self.fired,
            "norms": list(self.norms),
            "steps_seen": self.steps_seen,
            "initial_sum": self.initial_sum,
            "initial_count": self.initial_count,
        }

    def _check_state(self, state_dict: Mapping[str, Any]) -> None:
        seen, initial = (
            state_dict["steps_seen"],
            max(0, min(state_dict["steps_seen"], self.init_steps) - self.window + 1),
        )
        if len(state_dict["norms"]) != min(seen, self.window):
            raise ValueError(f"norms={state_dict['norms']!r} must be {min(seen, self.window)} with steps_seen={seen}.")
        if state_dict["initial_count"] != initial:
            raise ValueError(f"initial_count={state_dict['initial_count']!r} must be {initial} with steps_seen={seen}.")


class GeneralizationGapSwitch(PhaseSwitch):
    """Fires when the gap between validation and training loss outgrows its initial value.

    ``Δ = |L_val − L_train|``; ``Δ_base`` is the mean of the first ``base_epochs`` gaps. In later epochs whose number
    (counted from 1) is divisible by ``every``, fires when ``Δ > mu·Δ_base``.

    >>> switch = GeneralizationGapSwitch(base_epochs=1, every=2, mu=2.0)
    >>> [switch.observe_losses(train_loss=1.0, eval_loss=loss) for loss in (1.1, 1.2, 1.5, 1.5)]
    [False, False, False, True]

    Args:
        base_epochs: Epochs that give the base gap, at least 1.
        every: Epochs between two comparisons, at least 1.
        mu: Multiple of the base gap above which the switch fires, greater than 0.

    Raises:
        ValueError: If a setting lies outside its range.

    Source: RTS-PUGD, timing by generalization gap.
    """

    name = "generalization_gap"

    def __init__(self, base_epochs: int = 3, every: int = 3, mu: float = 2.0) -> None:
        super().__init__()
        self.base_epochs = _whole("base_epochs", base_epochs, at_least=1)
        self.every = _whole("every", every, at_least=1)
        self.mu = _positive("mu", mu)
        self.epochs_seen = 0
        self.base_sum = 0.0
        self.base_count = 0
        self.gap = 0.0

    @property
    def base_gap(self) -> float:
        """Δ_base, or NaN before the first gap."""
        return self.base_sum / self.base_count if self.base_count else math.nan

    def observe_losses(self, *, train_loss: float, eval_loss: float) -> bool:
        """Hear the losses of one more epoch and return whether the switch has fired.

        A pair with a NaN or infinite loss is left out with a warning: its epoch counts, its gap does not.
        """
        return self.fired or (self._grows(train_loss, eval_loss) and self._fire())

    def _grows(self, train_loss: float, eval_loss: float) -> bool:
        """Count one more epoch and return whether its gap has outgrown the base."""
        self.epochs_seen += 1
        gap = abs(eval_loss - train_loss)
        if not math.isfinite(gap):
            warnings.warn(
                f"{type(self).__name__} left out epoch {self.epochs_seen}: "
                f"train_loss={train_loss}, eval_loss={eval_loss}.",
                RuntimeWarning,
                stacklevel=3,
            )
            return False
        self.gap = float(gap)
        if self.base_count < self.base_epochs:
            self.base_sum += self.gap
            self.base_count += 1
            return False
        return self._stands(self.gap > self.mu * self.base_gap) and self.epochs_seen % self.every == 0

    def _stands(self, is_above: bool) -> bool:
        """Hear of every gap after the base whether it is above the threshold; return whether that would fire now."""
        return is_above

    @property
    def first_comparison(self) -> int:
        """The epoch whose gap is the first to be compared."""
        return (self.base_epochs // self.every + 1) * self.every

    def cannot_fire(self, *, total_steps: int | None = None, num_epochs: int | None = None) -> str | None:
        first = self.first_comparison
        if num_epochs is not None and num_epochs <= first:
            return (
                f"{self!r} first compares after epoch {first}, but the run has {num_epochs} epochs; "
                "train longer or lower base_epochs and every."
            )
        return None

    def settings(self) -> dict[str, Any]:
        return {"base_epochs": self.base_epochs, "every": self.every, "mu": self.mu}

    def state_dict(self) -> dict[str, Any]:
        return {
            "fired": self.fired,
            "epochs_seen": self.epochs_seen,
            "base_sum": self.base_sum,
            "base_count": self.base_count,
            "gap": self.gap,
        }

    def _check_state(self, state_dict: Mapping[str, Any]) -> None:
        most = min(self.base_epochs, state_dict["epochs_seen"])
        if state_dict["base_count"] > most:
            raise ValueError(f"base_count={state_dict['base_count']!r} must be at most {most}.")


class FixedSwitch(PhaseSwitch):
    """Fires at a step chosen beforehand.

    >>> switch = FixedSwitch(0.5)
    >>> [switch.observe_step(step, total_steps=4) for step in range(4)]
    [False, False, True, True]

    Args:
        at: A step (int ≥ 0), or a share of the run's steps (float in [0, 1]). ``0`` fires at the start, ``1.0`` never.

    Raises:
        ValueError: If ``at`` is neither.

    Source: RTS-PUGD, timing; the share of steps follows Zhou et al., ICLR 2025 (arXiv 2410.10373).
    """

    name = "fixed"

    def __init__(self, at: int | float = 0.5) -> None:
        super().__init__()
        self.at = _step_or_share("at", at)

    def observe_step(self, step: int, total_steps: int | None) -> bool:
        """Return whether ``step`` optimizer steps done reach ``at``; a share waits until ``total_steps`` is known."""
        if self.fired:
            return True
        start = self.start(total_steps)
        return self._fire() if start is not None and step >= start else False

    def cannot_fire(self, *, total_steps: int | None = None, num_epochs: int | None = None) -> str | None:
        start = self.start(total_steps)
        if total_steps is None or start is None or start < total_steps:
            return None  # a run that never switches is what 1.0 asks for
        return f"{self!r} fires at step {start}, but the run has {total_steps} steps; train longer or lower at."

    def settings(self) -> dict[str, Any]:
        return {"at": self.at}

    def start(self, total_steps: int | None) -> int | None:
        """Return the step at which it fires, or None for never and for a share of an unknown horizon.

        Args:
            total_steps: Optimizer steps of the whole run; None where unknown.
        """
        if isinstance(self.at, int) or self.at == 0.0:
            return int(self.at)
        if total_steps is None or self.at == 1.0:
            return None
        return math.ceil(round(self.at * total_steps, 9))  # rounded, or 0.1 of 30 steps would start at step 4


class StagedSwitch(GeneralizationGapSwitch):
    """Fires at a step chosen beforehand, for unit steps alone; perturbing begins once the generalization gap grows.

    A unit step lengthens a gradient to 1, and before perturbing begins it leaves a longer one as it is.

    The gap grows where :class:`GeneralizationGapSwitch` would fire and every gap since the comparison before was too
    large as well: one bad epoch is no reason to perturb. If that comes first, it fires this switch too.

    >>> switch = StagedSwitch(unit_from=0.5, base_epochs=1, every=1)
    >>> switch.observe_step(2, total_steps=4), switch.perturbs_from(2)
    (True, None)
    >>> losses = [switch.observe_losses(train_loss=1.0, eval_loss=loss) for loss in (1.1, 1.3)]
    >>> switch.perturbs_from(2)
    2

    Args:
        unit_from: A step or a share of the run, as ``at`` of :class:`FixedSwitch`.
        base_epochs, every, mu: As for :class:`GeneralizationGapSwitch`; ``every`` epochs in a row have to be above.

    Raises:
        ValueError: If a setting lies outside its range.

    Source: this project's search for a default, ``model_cards/evidence/search``.
    """

    name = "staged"

    def __init__(self, unit_from: int | float = 0.5, base_epochs: int = 3, every: int = 3, mu: float = 2.0) -> None:
        super().__init__(base_epochs, every, mu)
        self.unit_from = _step_or_share("unit_from", unit_from)
        self.step = 0  # optimizer steps done, of which the optimizer tells before it tells of losses
        self.above = 0  # epochs in a row whose gap was above mu times the base
        self.grown = False
        self.grown_after = 0  # steps

    def observe_step(self, step: int, total_steps: int | None) -> bool:
        """Return whether ``unit_from`` is reached or the gap has grown."""
        self.step = step
        start = FixedSwitch(self.unit_from).start(total_steps)
        return self.fired or (start is not None and step >= start and self._fire())

    def observe_losses(self, *, train_loss: float, eval_loss: float) -> bool:
        """Hear the losses of one more epoch and return whether the switch has fired."""
        if not self.grown and self._grows(train_loss, eval_loss):
            self.grown, self.grown_after = True, self.step
            self._fire()
        return self.fired

    def _stands(self, is_above: bool) -> bool:
        self.above = self.above + 1 if is_above else 0
        return self.above >= self.every

    @property
    def first_comparison(self) -> int:
        return (-(-self.base_epochs // self.every) + 1) * self.every

    def perturbs_from(self, switched_at: int) -> int | None:
        return max(switched_at, self.grown_after) if self.grown else None

    def settings(self) -> dict[str, Any]:
        return {"unit_from": self.unit_from} | super().settings()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"above": self.above, "grown": self.grown, "grown_after": self.grown_after}

    def _check_state(self, state_dict: Mapping[str, Any]) -> None:
        super()._check_state(state_dict)
        if state_dict["grown"] > state_dict["fired"] or (state_dict["grown_after"] and not state_dict["grown"]):
            told = ", ".join(f"{name}={state_dict[name]!r}" for name in ("fired", "grown", "grown_after"))
            raise ValueError(f"{told} cannot be: the switch fires where the gap grows, and the gap grows once.")


# Saved optimizers name an entry by its place: append, never reorder.
SWITCHES: Mapping[str, type[PhaseSwitch]] = MappingProxyType(
    {cls.name: cls for cls in (GradientVarianceSwitch, GeneralizationGapSwitch, FixedSwitch, StagedSwitch)}
)


def create_switch(switch: str | PhaseSwitch | None, settings: Mapping[str, Any] | None = None) -> PhaseSwitch:
    """Return the switch that a name and its settings describe.

    >>> create_switch("gradient_variance", {"gamma": 0.1})
    GradientVarianceSwitch(window=10, init_steps=10, gamma=0.1)

    Args:
        switch: A name in :data:`SWITCHES`; a switch, which is returned as it is; or None to fire at the start.
        settings: Arguments of that switch's constructor, by name.

    Raises:
        ValueError: For an unknown name, a setting the switch does not have, or settings beside a ready switch.
    """
    settings = dict(settings or {})
    if switch is None or isinstance(switch, PhaseSwitch):
        if settings:
            given = ", ".join(f"switch_{key}={value!r}" for key, value in settings.items())
            raise ValueError(f"{given} cannot be applied to switch={switch!r}; name a switch, or set it there.")
        return FixedSwitch(0) if switch is None else switch
    if switch not in SWITCHES:
        raise ValueError(f"switch={switch!r} is unknown; choose one of {', '.join(SWITCHES)}, or pass a PhaseSwitch.")
    known = SWITCHES[switch]().settings()
    for key in settings:
        if key not in known:
            raise ValueError(
                f"switch_{key}={settings[key]!r} is not a setting of switch={switch!r}, which has "
                f"{', '.join(f'switch_{name}' for name in known)}."
            )
    try:
        return SWITCHES[switch](**settings)
    except ValueError as error:  # which names the setting without the prefix that it was given with
        raise ValueError(f"switch_{error}" if str(error).startswith(tuple(settings)) else str(error)) from error


_KINDS = {
    bool: "True or False",
    int: "a whole number of at least 0",
    float: "a finite number of at least 0",
    list: "a list of finite numbers of at least 0",
}


def _is_like(value: Any, saved: Any) -> bool:
    """Return whether ``value`` is of the kind of ``saved``, and every number finite and at least 0."""
    if isinstance(saved, list):
        return isinstance(value, list) and all(_is_like(item, 0.0) for item in value)
    kind = int | float if isinstance(saved, float) else type(saved)
    return isinstance(value, kind) and isinstance(value, bool) == isinstance(saved, bool) and 0 <= value < math.inf


def _step_or_share(name: str, value: Any) -> int | float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not value >= 0 or (isinstance(value, float) and value > 1):
        raise ValueError(f"{name}={value!r} must be a step (int ≥ 0) or a share of the run (float in [0, 1]).")
    return int(value) if isinstance(value, int) else float(value)  # a numpy number would make checkpoints unreadable


def _whole(name: str, value: Any, *, at_least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {at_least}.")
    return value


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name}={value!r} must be a finite number greater than 0.")
    return float(value)
