"""Updates that went wrong: gradients that are not finite or zero, losses that are not finite, memory that ran out."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from types import MappingProxyType

logger = logging.getLogger(__name__)

# Kind → what people read; NaN and infinity are not finite.
KINDS: Mapping[str, str] = MappingProxyType(
    {
        "nonfinite_gradient": "Non-finite gradient",
        "nonfinite_loss": "Non-finite loss",
        "zero_gradient": "Zero gradient",
        "out_of_memory": "Out of memory",
    }
)


class TrainingFault(RuntimeError):
    """Training cannot go on: too many updates in a row had to be skipped."""


class NotANumber(ValueError):
    """A model's outputs are NaN: its training diverged, or its input was bad."""


class FaultCounter:
    """Counts what went wrong, by kind, and stops a run that skips too many updates in a row.

    >>> faults = FaultCounter(limit=2)
    >>> for update, norm in enumerate([1.0, float("nan"), 0.0]):
    ...     faults.observe_norm(norm, update=update)
    >>> faults.counts
    {'nonfinite_gradient': 1, 'nonfinite_loss': 0, 'zero_gradient': 1, 'out_of_memory': 0}

    Args:
        limit: Updates skipped in a row at which the run stops, at least 1.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_a_row = 0
        self.counts = dict.fromkeys(KINDS, 0)

    def observe_norm(self, gradient_norm: float, *, update: int) -> None:
        """Hear the norm of an update's gradient; one that is NaN or infinite means that the update is skipped.

        A zero gradient is counted but skips nothing: the base optimizer's momentum and weight decay still act.

        Raises:
            TrainingFault: If this is the ``limit``-th update in a row that is skipped.
        """
        if math.isfinite(gradient_norm):
            self.in_a_row = 0
            if gradient_norm == 0:
                self.count("zero_gradient", update)
            return
        self.in_a_row += 1
        self.count("nonfinite_gradient", update)
        if self.in_a_row >= self.limit:
            before = f" and of the {self.in_a_row - 1} before it" if self.in_a_row > 1 else ""
            raise TrainingFault(
                f"max_skipped_updates={self.limit}: the gradient of update {update}{before} is NaN or infinite, so "
                "training gets no further. Look at the learning rate, at the images of these updates and, with fp16, "
                "at bf16 or fp32 instead. The weights are those of the last good update."
            )

    def count(self, kind: str, update: int, times: int = 1) -> None:
        """Count an event; tell of the first of its kind, and then of ever fewer."""
        before = self.counts[kind]
        self.counts[kind] += times
        # 1, 2, 4, 8, ...: a run of thousands of such updates must not drown its own log
        if times and self.counts[kind].bit_length() > before.bit_length():
            outcome = {"nonfinite_gradient": ", which is skipped", "out_of_memory": ", which is tried again or ends"}
            logger.warning(
                "%s in update %d%s (%d so far)",
                KINDS[kind],
                update,
                outcome.get(kind, ""),
                self.counts[kind],
            )

    def state_dict(self) -> dict[str, int]:
        """Return the counts, and how many updates in a row were skipped last, as plain numbers."""
        return {**self.counts, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.in_a_row = int(state.get("in_a_row", 0))
        self.counts = {kind: int(state.get(kind, 0)) for kind in KINDS}
