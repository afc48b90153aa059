"""RTSPUGD follows its schedules and its switch, and says what is wrong with its settings."""

import warnings

import pytest
import torch
from optimizer_for_tests import ALWAYS, SCHEDULES, loop, loss_of, make_batches, make_net

from rts_hf import PAPER, RTSPUGD, FixedSwitch, GradientVarianceSwitch


def test_no_warning_about_a_missing_second_gradient_where_every_lr_is_zero() -> None:
    net = make_net()
    optimizer = RTSPUGD(net.parameters(), lr=0.0, **ALWAYS)
    loss_of(net, make_batches(1)[0]).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


def test_repr_is_readable() -> None:
    text = repr(RTSPUGD(make_net().parameters(), lr=0.1, **{**PAPER, **ALWAYS}))
    assert text.startswith("RTSPUGD(base=SGD, method='pugd', radius=AlphaSchedule(strategy='cosine_annealing'")
    assert "phase='pugd', step=0 of 20" in text


def test_alphas_follow_the_schedules_over_all_steps() -> None:
    net = make_net()
    optimizer = RTSPUGD(net.parameters(), lr=0.01, **SCHEDULES, **{**ALWAYS, "total_steps": 11})
    seen = []
    for batch in make_batches(13):
        loop(net, optimizer, [batch])
        seen.append((optimizer.stats()["alpha_r"], optimizer.stats()["alpha_s"]))
    radius, scale = optimizer.radius_schedule, optimizer.scale_schedule
    assert seen == [(radius(min(t / 10, 1)), scale(min(t / 10, 1))) for t in range(13)]


def test_the_variance_switch_feeds_itself_and_changes_the_phase_at_a_window() -> None:
    net = make_net()
    switch = GradientVarianceSwitch(window=3, init_steps=3, gamma=0.5)
    optimizer = RTSPUGD(net.parameters(), lr=1e-9, switch=switch, total_steps=20)
    twin = GradientVarianceSwitch(window=3, init_steps=3, gamma=0.5)
    norms = [1.0, 5.0, 3.0, 3.0, 3.1, 3.0, 9.0, 1.0, 3.0]
    phases = []
    for norm in norms:
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        net[0].weight.grad[0, 0] = norm
        phases.append(optimizer.phase)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no second pass here
            optimizer.step()
    fired = [twin.observe_norm(norm) for norm in norms]
    assert fired.index(True) == 3  # the statistic fires with the fourth norm ...
    assert phases.index("pugd") == 6  # ... and the phase follows when the window is read
    assert optimizer.switch_step == 6


def test_the_gap_switch_listens_to_losses() -> None:
    net = make_net()
    optimizer = RTSPUGD(net.parameters(), lr=0.1, switch="generalization_gap", switch_base_epochs=1, switch_every=1)
    assert not optimizer.observe_losses(1.0, 1.1)
    assert optimizer.phase == "sgd"
    assert optimizer.observe_losses(train_loss=0.5, eval_loss=1.1)
    assert optimizer.phase == "pugd"
    assert optimizer.perturbing


def test_unknown_horizon_warns_once_and_stands_at_the_start() -> None:
    net = make_net()
    optimizer = RTSPUGD(net.parameters(), lr=0.01, **SCHEDULES, switch="fixed", switch_at=0)
    with pytest.warns(UserWarning, match="total_steps is unknown") as caught:
        loop(net, optimizer, make_batches(4))
    assert len(caught) == 1
    assert optimizer.stats()["alpha_r"] == optimizer.radius_schedule(0)
    optimizer.total_steps = 8
    loop(net, optimizer, make_batches(1))
    assert optimizer.stats()["alpha_r"] == optimizer.radius_schedule(4 / 7)


def test_a_switch_that_cannot_fire_warns() -> None:
    with pytest.warns(UserWarning, match="will never perturb: FixedSwitch"):
        RTSPUGD(make_net().parameters(), lr=0.1, switch=FixedSwitch(50), total_steps=50)
    with pytest.warns(UserWarning, match="will never perturb: GradientVarianceSwitch"):
        RTSPUGD(make_net().parameters(), lr=0.1, switch="gradient_variance", total_steps=20)


def test_stats_are_plain_numbers() -> None:
    net = make_net()
    optimizer = RTSPUGD(net.parameters(), lr=0.1, **ALWAYS)
    for expected_step in range(2):
        stats = optimizer.stats()
        assert {type(value) for value in stats.values()} <= {int, float}
        assert stats["step"] == expected_step
        loop(net, optimizer, make_batches(1))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"radius": "linear"}, ValueError, "radius='linear' is unknown"),
        (
            {"radius_beta_min": 3.0, "radius_beta_max": 2.0},
            ValueError,
            "radius_beta_min=3.0 is greater than radius_beta_max=2.0",
        ),
        ({"scale": "inverse_sine_annealing"}, ValueError, "scale_beta_min=0.0 makes inverse_sine_annealing infinite"),
        ({"scale_beta_max": float("inf")}, ValueError, "scale_beta_max=inf"),
        ({"switch": "never"}, ValueError, "switch='never' is unknown"),
        ({"switch": "gradient_variance", "switch_window": 1}, ValueError, "switch_window=1"),
        ({"switch": "fixed", "switch_mu": 1.0}, ValueError, "switch_mu=1.0 is not a setting of switch='fixed'"),
        ({"perturb_every": 0}, ValueError, "perturb_every=0"),
        ({"total_steps": 0}, ValueError, "total_steps=0"),
        ({"total_steps": 1.5}, ValueError, "total_steps=1.5"),
        ({"base": "adamz"}, ValueError, "base='adamz'"),
        ({"base": "rts_pugd"}, ValueError, "itself a two-pass optimizer"),
        ({"base": "sam"}, ValueError, "itself a two-pass optimizer"),
        ({"base": "lookahead_sgd"}, ValueError, "lookahead_rts_pugd"),
        ({"base": "adahessian"}, ValueError, "differentiates the gradient"),
        ({"method": "gsam"}, ValueError, "method='gsam'"),
        ({"radios": 0.1}, TypeError, "radios"),
        ({"lr": -1.0}, ValueError, "learning rate"),
    ],
)
def test_bad_settings(settings: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RTSPUGD(make_net().parameters(), **{"lr": 0.1, **settings})


@pytest.mark.parametrize(("settings", "expected"), [({}, 2.0), ({"radius": "constant"}, 1.0)])
def test_a_constant_radius_is_plain_pugds_unless_it_is_given(settings: dict[str, str], expected: float) -> None:
    optimizer = RTSPUGD([torch.nn.Parameter(torch.ones(2))], lr=0.1, **settings)
    assert optimizer.radius_schedule.beta_max == expected
    given = RTSPUGD([torch.nn.Parameter(torch.ones(2))], lr=0.1, **settings, radius_beta_max=3.0)
    assert given.radius_schedule.beta_max == 3.0
