"""The α strategies: golden points, end points and errors."""

import math

import pytest

from rts_hf import AlphaSchedule
from rts_hf.optim.schedules import STRATEGIES, progress_at

LOW, HIGH = 0.01, 2.0
ENDS = {
    "constant": (HIGH, HIGH),
    "cosine_annealing": (HIGH, LOW),
    "inverse_sine_annealing": (1 / LOW, 1 / HIGH),
    "sine_heating": (LOW, HIGH),
    "inverse_cosine_heating": (1 / HIGH, 1 / LOW),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_runs_from_its_start_to_its_end(strategy: str) -> None:
    alpha = AlphaSchedule(strategy, beta_min=LOW, beta_max=HIGH)
    assert (alpha(0), alpha(1)) == ENDS[strategy]
    assert type(alpha(0)) is float


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "constant"])
def test_is_monotonic(strategy: str) -> None:
    alpha = AlphaSchedule(strategy, beta_min=LOW, beta_max=HIGH)
    values = [alpha(step / 100) for step in range(101)]
    assert values == sorted(values, reverse=values[0] > values[-1])


@pytest.mark.parametrize(
    ("strategy", "sample", "value"),
    [("inverse_sine_annealing", 40, 3.105), ("inverse_cosine_heating", 360, 3.181)],
)
def test_golden_points_of_the_papers_figure(strategy: str, sample: int, value: float) -> None:
    alpha = AlphaSchedule(strategy, beta_min=0.01, beta_max=2.0)
    assert round(alpha(sample / 399), 3) == value


def test_middle_of_the_run() -> None:
    half = math.sqrt(0.5)
    assert AlphaSchedule("cosine_annealing", 1.0, 3.0)(0.5) == pytest.approx(1 + 2 * half)
    assert AlphaSchedule("sine_heating", 1.0, 3.0)(0.25) == pytest.approx(1 + 2 * math.sin(math.pi / 8))


def test_unknown_strategy_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"strategy='linear'") as error:
        AlphaSchedule("linear")
    assert all(strategy in str(error.value) for strategy in STRATEGIES)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"beta_min": 2.0, "beta_max": 1.0}, "beta_min=2.0 is greater than beta_max=1.0"),
        ({"beta_min": -0.1}, "beta_min=-0.1"),
        ({"beta_max": -1.0}, "beta_max=-1.0"),
        ({"beta_max": math.inf}, "beta_max=inf"),
        ({"beta_min": math.nan}, "beta_min=nan"),
        ({"beta_max": "2"}, "beta_max='2'"),
        ({"beta_max": True}, "beta_max=True"),
    ],
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bounds_outside_their_range(strategy: str, bounds: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlphaSchedule(strategy, **{"beta_min": 0.5, "beta_max": 1.0, **bounds})


@pytest.mark.parametrize("strategy", ["inverse_sine_annealing", "inverse_cosine_heating"])
def test_inverse_strategies_refuse_zero(strategy: str) -> None:
    with pytest.raises(ValueError, match=f"beta_min=0.0 makes {strategy} infinite"):
        AlphaSchedule(strategy, beta_min=0.0, beta_max=1.0)


@pytest.mark.parametrize(
    ("strategy", "low", "high", "message"),
    [
        *((name, 0.5, 1e30, r"beta_max=1e\+30 lets .* reach 1e\+30.*at most 1e\+06; lower beta_max")
          for name in ("constant", "cosine_annealing", "sine_heating")),
        *((name, low, 1.0, f"beta_min={low} lets {name} reach .*at most .*; raise beta_min")
          for name in ("inverse_sine_annealing", "inverse_cosine_heating") for low in (1e-7, 1e-320)),
    ],
)  # fmt: skip
def test_an_alpha_that_leaves_nothing_of_the_weights(strategy: str, low: float, high: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlphaSchedule(strategy, low, high)


def test_an_alpha_of_a_million_is_legal() -> None:
    assert AlphaSchedule("constant", beta_max=1e6)(0) == AlphaSchedule("inverse_sine_annealing", 1e-6, 1.0)(0) == 1e6


@pytest.mark.parametrize("progress", [-0.01, 1.01, math.nan, math.inf])
def test_progress_outside_the_run(progress: float) -> None:
    with pytest.raises(ValueError, match="progress="):
        AlphaSchedule("constant")(progress)


def test_progress_reaches_one_at_the_last_step_and_stays() -> None:
    assert [progress_at(step, 5) for step in range(7)] == [0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert progress_at(3, None) == progress_at(3, 1) == 0.0
