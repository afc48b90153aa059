"""The switches, on sequences computed by hand."""

import json
import math
import warnings

import pytest

from rts_hf import FixedSwitch, GeneralizationGapSwitch, GradientVarianceSwitch, PhaseSwitch, StagedSwitch
from rts_hf.optim.switches import SWITCHES, create_switch


def feed(switch: PhaseSwitch, norms: list[float]) -> list[bool]:
    return [switch.observe_norm(norm) for norm in norms]


class TestGradientVariance:
    def test_fires_at_the_first_window_below_the_threshold(self) -> None:
        switch = GradientVarianceSwitch(window=2, init_steps=2, gamma=0.25)
        # windows: (1,5) var 4 = initial; (5,3) var 1, not < 1; (3,2) var 0.25 < 1
        assert feed(switch, [1.0, 5.0, 3.0, 2.0, 9.0]) == [False, False, False, True, True]
        assert switch.initial_variance == 4.0
        assert switch.variance == 0.25

    def test_initial_variance_is_the_mean_of_the_windows_inside_the_first_steps(self) -> None:
        switch = GradientVarianceSwitch(window=2, init_steps=4, gamma=0.5)
        # windows inside the first 4 steps: (0,4) 4, (4,2) 1, (2,2) 0: mean 5/3
        feed(switch, [0.0, 4.0, 2.0, 2.0])
        assert switch.initial_variance == pytest.approx(5 / 3)
        assert not switch.fired  # a window inside the first steps does not fire, even with variance 0
        assert switch.observe_norm(3.0)  # (2,3): 0.25 < 5/6

    def test_a_constant_start_never_fires(self) -> None:
        switch = GradientVarianceSwitch(window=2, init_steps=2, gamma=0.9)
        assert not any(feed(switch, [1.0] * 20))

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_leaves_out_a_bad_norm_with_a_warning(self, bad: float) -> None:
        good = GradientVarianceSwitch(window=2, init_steps=2, gamma=0.25)
        feed(good, [1.0, 5.0])
        switch = GradientVarianceSwitch(window=2, init_steps=2, gamma=0.25)
        switch.observe_norm(1.0)
        with pytest.warns(RuntimeWarning, match=str(bad)):
            assert not switch.observe_norm(bad)
        switch.observe_norm(5.0)
        assert switch.state_dict() == good.state_dict()

    def test_horizon(self) -> None:
        switch = GradientVarianceSwitch(window=10, init_steps=10)
        assert switch.cannot_fire(total_steps=21) is None
        assert "20 steps" in (switch.cannot_fire(total_steps=20) or "")
        assert switch.cannot_fire(total_steps=None) is None


class TestGeneralizationGap:
    def test_compares_at_epochs_divisible_by_every_after_the_base(self) -> None:
        switch = GeneralizationGapSwitch(base_epochs=3, every=3, mu=2.0)
        gaps = [0.1, 0.3, 0.2, 9.0, 9.0, 0.3, 9.0, 9.0, 0.5]  # base 0.2; epoch 6: 0.3 is not > 0.4; epoch 9: 0.5 is
        fired = [switch.observe_losses(train_loss=1.0, eval_loss=1.0 + gap) for gap in gaps]
        assert fired == [False] * 8 + [True]
        assert switch.base_gap == pytest.approx(0.2)

    def test_the_gap_has_no_sign(self) -> None:
        switch = GeneralizationGapSwitch(base_epochs=1, every=2, mu=1.5)
        switch.observe_losses(train_loss=2.0, eval_loss=1.0)
        assert switch.observe_losses(train_loss=3.0, eval_loss=1.0)

    @pytest.mark.parametrize(("mu", "epoch"), [(2.0, 12), (3.0, 21), (4.0, 33)])
    def test_recorded_runs_with_ten_base_epochs_switch_at_multiples_of_three(self, mu: float, epoch: int) -> None:
        # The authors' runs with base_epochs 10 and every 3 switched at epochs 11, 20 and 32, counted from 0.
        switch = GeneralizationGapSwitch(base_epochs=10, every=3, mu=mu)
        gaps = [0.1] * 10 + [0.1 * (mu + 0.01 if number >= epoch - 2 else 1.0) for number in range(11, 40)]
        fired = [switch.observe_losses(train_loss=0.0, eval_loss=gap) for gap in gaps]
        assert fired.index(True) + 1 == epoch

    def test_leaves_out_a_nan_loss_but_counts_its_epoch(self) -> None:
        switch = GeneralizationGapSwitch(base_epochs=1, every=3, mu=2.0)
        switch.observe_losses(train_loss=1.0, eval_loss=1.1)
        with pytest.warns(RuntimeWarning, match="epoch 2"):
            assert not switch.observe_losses(train_loss=math.nan, eval_loss=1.0)
        with pytest.warns(RuntimeWarning, match="epoch 3"):
            assert not switch.observe_losses(train_loss=1.0, eval_loss=math.inf)
        assert not switch.observe_losses(train_loss=1.0, eval_loss=9.0)
        assert not switch.observe_losses(train_loss=1.0, eval_loss=9.0)
        assert switch.observe_losses(train_loss=1.0, eval_loss=9.0)  # epoch 6

    def test_horizon(self) -> None:
        switch = GeneralizationGapSwitch(base_epochs=3, every=3)
        assert switch.cannot_fire(num_epochs=7) is None
        assert "6 epochs" in (switch.cannot_fire(num_epochs=6) or "")


class TestFixed:
    @pytest.mark.parametrize(
        ("at", "first"), [(0, 0), (0.0, 0), (3, 3), (0.5, 5), (0.3, 3), (0.25, 3), (1, 1), (1.0, None)]
    )
    def test_fires_at(self, at: float, first: int | None) -> None:
        switch = FixedSwitch(at)
        fired = [switch.observe_step(step, 10) for step in range(11 if first is None else 10)]
        assert (fired.index(True) if True in fired else None) == first

    def test_a_share_starts_at_its_step_whatever_floats_do(self) -> None:
        assert not FixedSwitch(0.1).observe_step(2, 30)
        assert FixedSwitch(0.1).observe_step(3, 30)  # 0.1 * 30 is 3.0000000000000004

    def test_a_share_waits_for_the_horizon(self) -> None:
        switch = FixedSwitch(0.5)
        assert not switch.observe_step(100, None)
        assert switch.observe_step(100, 150)

    def test_horizon(self) -> None:
        assert "step 10" in (FixedSwitch(10).cannot_fire(total_steps=10) or "")
        assert FixedSwitch(9).cannot_fire(total_steps=10) is None
        assert FixedSwitch(1.0).cannot_fire(total_steps=10) is None  # asked for


class TestStaged:
    @staticmethod
    def run(switch: StagedSwitch, gaps: dict[int, float], steps: int = 8) -> list[tuple[bool, bool]]:
        """After each step of a run: whether the switch has fired, and whether the coming step is to be perturbed."""
        seen, switched_at = [], -1
        for step in range(steps):
            if step in gaps:
                switch.observe_losses(train_loss=1.0, eval_loss=1.0 + gaps[step])
            if switch.observe_step(step, steps) and switched_at < 0:
                switched_at = step
            seen.append((switch.fired, switched_at >= 0 and switch.perturbs_from(switched_at) is not None))
        return seen

    def test_unit_steps_from_its_share_and_perturbed_ones_once_the_gap_grows(self) -> None:
        switch = StagedSwitch(unit_from=0.25, base_epochs=1, every=1, mu=2.0)
        seen = self.run(switch, {1: 0.1, 3: 0.2, 5: 0.21, 7: 0.0})  # 0.2 is not more than twice 0.1
        assert seen == [(False, False)] * 2 + [(True, False)] * 3 + [(True, True)] * 3
        assert switch.perturbs_from(2) == 4  # the steps done when it heard; it is told of a step after that

    def test_a_gap_that_grows_first_fires_it(self) -> None:
        switch = StagedSwitch(unit_from=0.75, base_epochs=1, every=1, mu=2.0)
        assert self.run(switch, {1: 0.1, 3: 0.3}) == [(False, False)] * 3 + [(True, True)] * 5

    def test_one_bad_epoch_is_no_growth(self) -> None:
        for gaps, grows in (
            ((1, 1, 1, 3, 9, 3), True),
            ((1, 1, 1, 3, 9, 2), False),
            ((1, 1, 1, 2, 9, 9), False),
            ((1, 1, 1, 3, 1, 3, 3, 3, 3), True),
            ((1, 1, 1, 3, 3, 1, 3, 3), False),  # compared after the sixth and the ninth
            ((0, 0, 9, 7, 7, 1, 7, 7, 7), True),
            ((math.nan, 1, 1, 1, 3, 3), False),
            ((1, 1, 1, 3, math.nan, 3, 3, 3, 3), True),
        ):
            switch = StagedSwitch(unit_from=1.0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of a loss that is no number
                heard = [switch.observe_losses(train_loss=1.0, eval_loss=1.0 + gap) for gap in gaps]
            assert heard == [False] * (len(gaps) - 1) + [grows], gaps

    def test_horizon(self) -> None:
        assert StagedSwitch(base_epochs=3, every=2).first_comparison == 6
        assert "6 epochs" in (StagedSwitch().cannot_fire(num_epochs=6) or "")
        assert StagedSwitch().cannot_fire(total_steps=1) is None
        assert not StagedSwitch(0.5).observe_step(9, None)

    def test_an_earlier_state_is_an_earlier_state(self) -> None:
        switch = StagedSwitch(unit_from=4)
        early = switch.state_dict()
        assert switch.observe_step(5, 8)
        switch.load_state_dict(early)
        assert not switch.observe_step(3, 8)

    @pytest.mark.parametrize("damage", [{"grown": True}, {"grown_after": 2}, {"fired": True, "grown_after": 2}])
    def test_a_state_that_cannot_be_is_refused(self, damage: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="the switch fires where the gap grows"):
            StagedSwitch().load_state_dict({**StagedSwitch().state_dict(), **damage})


def ready(name: str) -> PhaseSwitch:
    switch = SWITCHES[name]()
    for number in range(15):
        switch.observe_norm(10.0 / (number + 1))
        switch.observe_losses(train_loss=1.0, eval_loss=1.0 + number)
    return switch


@pytest.mark.parametrize("name", SWITCHES)
def test_state_goes_on_where_it_was(name: str) -> None:
    switch = ready(name)
    state = json.loads(json.dumps(switch.state_dict()))
    other = SWITCHES[name]()
    other.load_state_dict(state)
    assert other.state_dict() == switch.state_dict()
    assert {type(value) for value in state.values()} <= {bool, int, float, list}
    for _ in range(3):
        assert switch.observe_norm(2.0) == other.observe_norm(2.0)
        assert switch.state_dict() == other.state_dict()


@pytest.mark.parametrize("name", SWITCHES)
def test_never_goes_back(name: str) -> None:
    switch = SWITCHES[name]()
    switch._fire()
    assert all(
        (
            switch.observe_norm(1e9),
            switch.observe_losses(train_loss=0.0, eval_loss=0.0),
            switch.observe_step(0, 10),
            switch.fired,
        )
    )


def test_state_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="GeneralizationGapSwitch needs"):
        GeneralizationGapSwitch().load_state_dict(GradientVarianceSwitch().state_dict())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientVarianceSwitch(window=1), "window=1"),
        (lambda: GradientVarianceSwitch(window=2.5), "window=2.5"),
        (lambda: GradientVarianceSwitch(window=10, init_steps=5), "init_steps=5 must be at least window=10"),
        (lambda: GradientVarianceSwitch(gamma=0.0), "gamma=0.0"),
        (lambda: GradientVarianceSwitch(gamma=math.nan), "gamma=nan"),
        (lambda: GeneralizationGapSwitch(base_epochs=0), "base_epochs=0"),
        (lambda: GeneralizationGapSwitch(every=True), "every=True"),
        (lambda: GeneralizationGapSwitch(mu=-1), "mu=-1"),
        (lambda: FixedSwitch(-1), "at=-1"),
        (lambda: FixedSwitch(1.5), "at=1.5"),
        (lambda: FixedSwitch(math.nan), "at=nan"),
        (lambda: FixedSwitch("half"), "at='half'"),
        (lambda: StagedSwitch(unit_from=2.0), "unit_from=2.0"),
        (lambda: StagedSwitch(mu=0), "mu=0"),
        (lambda: create_switch("staged", {"at": 0.5}), "switch_at=0.5 is not a setting of switch='staged'"),
        (lambda: create_switch("sometimes"), "switch='sometimes' is unknown; choose one of gradient_variance"),
        (lambda: create_switch("fixed", {"gamma": 0.1}), "switch_gamma=0.1 is not a setting of switch='fixed'"),
        (lambda: create_switch(FixedSwitch(1), {"at": 2}), "cannot be applied to switch=FixedSwitch"),
    ],
)
def test_bad_settings(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
