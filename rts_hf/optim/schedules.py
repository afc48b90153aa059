"""How the radius and the scale of RTS-PUGD run over training: α as a pure function of progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

# float32 has seven digits: an ε of a larger norm leaves next to nothing of w in w + ε.
LARGEST_ALPHA = 1e6


@dataclass(frozen=True)
class Strategy:
    """One way for α to run from the start of training to its end.

    Attributes:
        formula: The formula as text, for figures and cards.
        inverse: Whether α is a reciprocal, so that ``beta_min`` must be greater than 0.
        alpha: Maps (progress, beta_min, beta_max) to α.
    """

    formula: str
    inverse: bool
    alpha: Callable[[float, float, float], float]


def _falling(progress: float, low: float, high: float) -> float:
    # cos(πu/2), written so that it is exactly 0 at the end: a float cosine leaves 6e-17 there
    return low + (high - low) * math.sin(math.pi * (1 - progress) / 2)


def _rising(progress: float, low: float, high: float) -> float:
    return low + (high - low) * math.sin(math.pi * progress / 2)


# Saved optimizers name an entry by its place: append, never reorder.
STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {
        "constant": Strategy("β_max", False, lambda u, low, high: high),
        "cosine_annealing": Strategy("β_min + (β_max − β_min)·cos(πu/2)", False, _falling),
        "inverse_sine_annealing": Strategy(
            "1 / (β_min + (β_max − β_min)·sin(πu/2))", True, lambda u, low, high: 1 / _rising(u, low, high)
        ),
        "sine_heating": Strategy("β_min + (β_max − β_min)·sin(πu/2)", False, _rising),
        "inverse_cosine_heating": Strategy(
            "1 / (β_min + (β_max − β_min)·cos(πu/2))", True, lambda u, low, high: 1 / _falling(u, low, high)
        ),
    }
)


@dataclass(frozen=True)
class AlphaSchedule:
    """An α strategy with its bounds; called with progress, it returns α.

    With progress ``u``, ``β_min`` and ``β_max``:

    - ``constant``: ``β_max``
    - ``cosine_annealing``: ``β_min + (β_max − β_min)·cos(πu/2)``, from β_max down to β_min
    - ``inverse_sine_annealing``: ``1 / (β_min + (β_max − β_min)·sin(πu/2))``, from 1/β_min down to 1/β_max
    - ``sine_heating``: ``β_min + (β_max − β_min)·sin(πu/2)``, from β_min up to β_max
    - ``inverse_cosine_heating``: ``1 / (β_min + (β_max − β_min)·cos(πu/2))``, from 1/β_max up to 1/β_min

    >>> radius = AlphaSchedule("cosine_annealing", beta_min=0.5, beta_max=2.0)
    >>> radius(0.0)
    2.0
    >>> radius(1.0)
    0.5
    >>> AlphaSchedule("constant", beta_max=1.0)(0.3)
    1.0

    Args:
        strategy: A name in :data:`STRATEGIES`.
        beta_min: β_min, finite, in [0, beta_max]; greater than 0 for the ``inverse_*`` strategies. ``constant``
            does not use it, but the order still holds.
        beta_max: β_max, finite, at least ``beta_min``. No α may exceed :data:`LARGEST_ALPHA`.

    Raises:
        ValueError: For an unknown strategy or bounds outside their range.

    Source: RTS-PUGD, the α strategies for radius and scale (the paper's Figure 3).
    """

    strategy: str
    beta_min: float = 0.0
    beta_max: float = 1.0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy={self.strategy!r} is unknown; choose one of {', '.join(STRATEGIES)}.")
        for name, value in (("beta_min", self.beta_min), ("beta_max", self.beta_max)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name}={value!r} must be a number, not {type(value).__name__}.")
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name}={value!r} must be a finite number of at least 0.")
        if self.beta_min > self.beta_max:
            raise ValueError(
                f"beta_min={self.beta_min!r} is greater than beta_max={self.beta_max!r}; swap them, or lower beta_min."
            )
        if STRATEGIES[self.strategy].inverse and self.beta_min == 0:
            raise ValueError(
                f"beta_min={self.beta_min!r} makes {self.strategy} infinite, because it divides by beta_min; "
                "use a beta_min greater than 0, for instance 0.01."
            )
        largest = max(self(0.0), self(1.0))
        if largest > LARGEST_ALPHA:
            name, remedy = ("beta_min", "raise") if STRATEGIES[self.strategy].inverse else ("beta_max", "lower")
            raise ValueError(
                f"{name}={getattr(self, name)!r} lets {self.strategy} reach {largest:g}, but α may be at most "
                f"{LARGEST_ALPHA:g}; {remedy} {name}."
            )

    def __call__(self, progress: float) -> float:
        """Return α at ``progress``.

        Args:
            progress: Share of the run that is done, in [0, 1]: optimizer steps done ÷ (total steps − 1).

        Raises:
            ValueError: If ``progress`` lies outside [0, 1] or is not a number.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress={progress!r} must lie in [0, 1]: it is steps done ÷ (total steps − 1).")
        return float(STRATEGIES[self.strategy].alpha(progress, self.beta_min, self.beta_max))


def check_schedule(name: str, strategy: str, beta_min: float, beta_max: float) -> None:
    """Raise the ValueError of :class:`AlphaSchedule` in the words of one of two schedules' settings, ``name``'s.

    >>> check_schedule("radius", "constant", 2.0, 1.0)
    Traceback (most recent call last):
    ValueError: radius_beta_min=2.0 is greater than radius_beta_max=1.0; swap them, or lower radius_beta_min.
    """
    try:
        AlphaSchedule(strategy, beta_min, beta_max)
    except ValueError as error:
        message = str(error).replace("beta_", f"{name}_beta_").replace("strategy=", f"{name}=")
        raise ValueError(message) from error


def progress_at(step: int, total_steps: int | None) -> float:
    """Return the share of the run done after ``step`` optimizer steps: ``step / (total_steps − 1)``, at most 1.

    >>> progress_at(5, 11)
    0.5
    >>> progress_at(5, None)
    0.0

    Args:
        step: Optimizer steps done, at least 0.
        total_steps: Steps of the whole run, or None where they are unknown: progress then stays at 0.
    """
    if total_steps is None or total_steps <= 1:
        return 0.0
    return min(max(step / (total_steps - 1), 0.0), 1.0)
