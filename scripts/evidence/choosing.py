"""The rule that chooses a default from the runs of a search: pure functions of their rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import fmean, variance
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
        by_seed: For each benchmark, points of validation accuracy over SGD at as many gradients, each at its own best
            learning rate, of each seed.
    """

    setting: str
    by_seed: Mapping[tuple[str, int], Sequence[float]]

    @property
    def differences(self) -> dict[tuple[str, int], float]:
        """Their means."""
        return {benchmark: fmean(values) for benchmark, values in self.by_seed.items()}

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


def accuracies(runs: Iterable[Run]) -> dict[str, dict[tuple[str, int], dict[float, dict[int, float]]]]:
    """Return accuracies in percent by setting, benchmark, learning rate and seed.

    Of learning rates with fewer seeds than another one of the same setting and benchmark there are none.
    """
    found: dict[tuple[str, tuple[str, int]], dict[float, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        found[run.setting, run.benchmark][run.learning_rate][run.seed] = 100 * run.accuracy
    complete: dict[str, dict[tuple[str, int], dict[float, dict[int, float]]]] = defaultdict(dict)
    for (setting, benchmark), rates in found.items():
        most = max(map(len, rates.values()))
        complete[setting][benchmark] = {rate: each for rate, each in rates.items() if len(each) == most}
    return dict(complete)


def best_rate(rates: Mapping[float, Mapping[int, float]]) -> float:
    """Return the learning rate with the highest mean over seeds."""
    return max(rates, key=lambda rate: fmean(rates[rate].values()))


def standings(runs: Iterable[Run], settings: Collection[str], sgd: str = "sgd") -> list[Standing]:
    """Return how settings stand, on the benchmarks that all of them and SGD have runs of."""
    every = accuracies(runs)
    known = [setting for setting in settings if setting in every]
    if not known or sgd not in every:
        return []
    shared = sorted(set.intersection(*(set(every[setting]) for setting in (sgd, *known))))

    def differences(setting: str, benchmark: tuple[str, int]) -> list[float]:
        own, other = (rates[best_rate(rates)] for rates in (every[setting][benchmark], every[sgd][benchmark]))
        return [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())]

    return [Standing(setting, {each: differences(setting, each) for each in shared}) for setting in known if shared]


def standard_error(one: Standing, other: Standing, benchmarks: Collection[tuple[str, int]]) -> float:
    """Return that of the mean over benchmarks of the difference between two settings.

    It comes from the spread of each benchmark's seeds; without a second seed it is 0.
    """
    squares = []
    for each in benchmarks:
        pairs = [ours - theirs for ours, theirs in zip(one.by_seed[each], other.by_seed[each], strict=True)]
        squares.append(variance(pairs) / len(pairs) if len(pairs) > 1 else 0.0)
    return math.sqrt(sum(squares)) / len(squares)


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
    standard error over seeds, the simplest.

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

    def is_tied(each: Standing) -> bool:
        benchmarks = list(each.by_seed) if within else [each.worst_at]
        return merit(best) - merit(each) <= standard_error(best, each, benchmarks)

    return min(filter(is_tied, pool), key=lambda each: (simplicity[each.setting], -merit(each)))


def rates_of(runs: Iterable[Run], setting: str) -> dict[float, float]:
    """Return the mean accuracy over benchmarks, in percent, at each learning rate that all of them have."""
    every = accuracies(runs).get(setting, {})
    shared = set.intersection(*(set(rates) for rates in every.values())) if every else set()
    return {rate: fmean(fmean(rates[rate].values()) for rates in every.values()) for rate in sorted(shared)}
