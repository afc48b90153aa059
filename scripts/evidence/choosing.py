"""The rule that chooses a default from the runs of a search: pure functions of their rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

CAP = 0.5  # points that the default may lose to SGD on any benchmark


class Run(NamedTuple):
    """One run of a search: what its row says.

    Args:
        setting: Label of the setting, or ``sgd``.
        data: Name of the data set.
        passes: Budget, in passes over the training images.
        learning_rate: Peak learning rate.
        seed: Of weights and order.
        updates: Of the run.
        gradients: What they took.
        budget: What they were to take.
        accuracy: On validation, of the final weights, in [0, 1]; 0 where the run diverged.
        loss: Likewise; NaN where it diverged.
        seconds: The run took.
    """

    setting: str
    data: str
    passes: int
    learning_rate: float
    seed: int
    updates: int
    gradients: int
    budget: int
    accuracy: float
    loss: float
    seconds: float

    @property
    def benchmark(self) -> tuple[str, int]:
        """Data set and passes."""
        return self.data, self.passes

    @property
    def key(self) -> tuple[Any, ...]:
        """What there is one run of."""
        return self.setting, self.data, self.passes, self.learning_rate, self.seed


class Standing(NamedTuple):
    """How a setting does against SGD.

    Args:
        setting: Its label.
        differences: For each benchmark, points of validation accuracy over SGD at as many gradients, each at its own
            best learning rate.
    """

    setting: str
    differences: Mapping[tuple[str, int], float]

    @property
    def mean(self) -> float:
        """Mean over the benchmarks."""
        return round(fmean(self.differences.values()), 6)

    @property
    def worst(self) -> float:
        """The lowest of them."""
        return round(min(self.differences.values()), 6)

    @property
    def worst_at(self) -> tuple[str, int]:
        """Where that is."""
        return min(self.differences, key=lambda benchmark: self.differences[benchmark])


def accuracies(runs: Iterable[Run]) -> dict[str, dict[tuple[str, int], dict[float, float]]]:
    """Return mean accuracies in percent by setting, benchmark and learning rate.

    Of learning rates with fewer seeds than another one of the same setting and benchmark there are none.
    """
    found: dict[tuple[str, tuple[str, int]], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        found[run.setting, run.benchmark][run.learning_rate].append(100 * run.accuracy)
    means: dict[str, dict[tuple[str, int], dict[float, float]]] = defaultdict(dict)
    for (setting, benchmark), rates in found.items():
        most = max(map(len, rates.values()))
        means[setting][benchmark] = {rate: fmean(each) for rate, each in rates.items() if len(each) == most}
    return dict(means)


def standings(runs: Iterable[Run], settings: Collection[str], sgd: str = "sgd") -> list[Standing]:
    """Return how settings stand, on the benchmarks that all of them and SGD have runs of."""
    means = accuracies(runs)
    known = [setting for setting in settings if setting in means]
    if not known or sgd not in means:
        return []
    shared = set.intersection(*(set(means[setting]) for setting in (sgd, *known)))
    return [
        Standing(
            setting,
            {each: max(means[setting][each].values()) - max(means[sgd][each].values()) for each in sorted(shared)},
        )
        for setting in known
        if shared
    ]


def standard_error(one: Standing, other: Standing) -> float:
    """Return that of the mean over benchmarks of the difference between two settings; infinite for one benchmark."""
    differences = [one.differences[each] - other.differences[each] for each in one.differences]
    return stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf


def ranked(found: Sequence[Standing], cap: float = CAP) -> list[Standing]:
    """Return settings, best first: those that nowhere lose more than ``cap`` by their means, then by worst losses."""

    def key(each: Standing) -> tuple[bool, float]:
        is_within = each.worst >= -cap
        return not is_within, -(each.mean if is_within else each.worst)

    return sorted(found, key=key)


def choose(found: Sequence[Standing], simplicity: Mapping[str, Any], cap: float = CAP) -> Standing:
    """Return what the rule chooses.

    That is the highest mean among settings that lose at most ``cap`` points to SGD on every benchmark; if none loses so
    little, the one whose worst loss is smallest. Of those that are behind it, in that same respect, by no more than one
    standard error of the paired difference over benchmarks, the simplest.

    Args:
        found: At least one.
        simplicity: By setting, what sorts simpler ones first.
        cap: Points.
    """
    within = [each for each in found if each.worst >= -cap]

    def merit(each: Standing) -> float:
        return each.mean if within else each.worst

    pool = within or list(found)
    best = max(pool, key=merit)
    tied = [each for each in pool if each is best or merit(best) - merit(each) <= standard_error(best, each)]
    return min(tied, key=lambda each: (simplicity[each.setting], -merit(each)))


def rates_of(runs: Iterable[Run], setting: str) -> dict[float, float]:
    """Return the mean accuracy over benchmarks, in percent, at each learning rate that all of them have."""
    means = accuracies(runs).get(setting, {})
    shared = set.intersection(*(set(rates) for rates in means.values())) if means else set()
    return {rate: fmean(rates[rate] for rates in means.values()) for rate in sorted(shared)}
