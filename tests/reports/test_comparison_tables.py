"""Means, intervals and differences in pairs, against values worked out elsewhere."""

import csv
import io

import pytest
from comparison_for_tests import OURS, ROWS, SGD, comparison, row
from scipy import stats

from rts_hf.reports.comparison import difference, interval, notes, spread, summarise, to_csv, to_markdown


def test_the_interval_is_students() -> None:
    found = interval(SGD)
    expected = stats.ttest_1samp(SGD, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert interval([0.5]) == (0.5, None, None, None)


def test_differences_are_taken_in_pairs_of_one_seed() -> None:
    sgd, ours = summarise(ROWS, "sgd")
    assert sgd["difference"] is None
    expected = stats.ttest_rel(OURS, SGD).confidence_interval(0.95)
    assert ours["difference"][2:] == pytest.approx([expected.low, expected.high])
    assert ours["difference"][0] == pytest.approx(0.01)
    missing = [each for each in ROWS if (each["method"], each["seed"]) != ("sgd", 2)]
    assert summarise(missing, "sgd")[1]["difference"][0] == pytest.approx((0.01 + 0.02 + 0.01) / 3)


def test_the_table_shows_spread_interval_and_difference() -> None:
    table = to_markdown(comparison(ROWS))
    line = next(line for line in table.splitlines() if line.startswith("| ours"))
    assert "| 93.00 ± 2.45 |" in line
    assert "| +1.00 (-0.30 to +2.30) |" in line
    assert "| – |" in next(line for line in table.splitlines() if line.startswith("| sgd"))


def test_a_format_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="has format 2; this version reads 1"):
        to_markdown(comparison(ROWS, format=2))


def test_one_seed_shows_no_spread() -> None:
    assert spread(interval([0.5])) == "50.00"
    assert "| +1.00 |" in to_markdown(comparison([ROWS[0], ROWS[4]]))


def test_notes_tell_what_qualifies_the_figures() -> None:
    rows = [*ROWS, row("variance", 0, 0.9, gradient_evaluations=130)]
    tuning = {"trials": 9, "seeds": 2, "at_an_end": ["ours"]}
    told = "\n".join(notes(comparison(rows, tuning=tuning)))
    assert "More than 2 % off the budget, in gradient evaluations: variance (130 to 130)." in told
    apart = [row("variance", seed, 0.9, gradient_evaluations=count) for seed, count in enumerate((110, 90))]
    assert "variance (90 to 110)." in "\n".join(notes(comparison([*ROWS, *apart]))), "though their mean is the budget"
    assert "9 trials of 2 runs each" in told
    assert "an end of the grid for ours" in told
    assert "not tuned" in "\n".join(notes(comparison(ROWS)))


def test_runs_that_diverged_are_counted_and_left_out() -> None:
    broken = {"test_accuracy": None, "validation_accuracy": None, "seconds": 9000}
    rows = [*ROWS[:7], row("ours", 3, 0.0, **broken), row("wild", 0, 0.0, **broken)]
    sgd, ours, wild = summarise(rows, "sgd")
    assert (ours["seeds"], ours["diverged"], ours["seconds"], sgd["diverged"]) == (3, 1, 1, 0)
    assert ours["test_accuracy"][0] == pytest.approx(0.92)
    assert ours["difference"][0] == pytest.approx(0.01)
    assert (wild["seeds"], wild["diverged"], wild["difference"]) == (0, 1, None)
    table = to_markdown(comparison(rows))
    (line,) = (line for line in table.splitlines() if line.startswith("| wild"))
    assert line.startswith("| wild | 1 | 0 | – | – | – |")  # accuracy, interval, difference
    assert "off the budget" not in to_markdown(
        comparison([*ROWS, row("wild", 0, 0.0, gradient_evaluations=9, **broken)])
    )
    told = "Diverged, and left out of means and differences: 1 of 4 runs of ours, 1 of 1 run of wild."
    assert f"- {told}" in table.splitlines()
    assert "Diverged" not in to_markdown(comparison(ROWS))


def test_a_reference_that_diverged_leaves_no_differences() -> None:
    rows = [row("sgd", seed, 0.0, test_accuracy=None) for seed in range(4)] + ROWS[4:]
    sgd, ours = summarise(rows, "sgd")
    assert (sgd["diverged"], sgd["test_accuracy"], ours["difference"]) == (4, [None] * 4, None)
    assert "Diverged, and left out of means and differences: 4 of 4 runs of sgd." in to_markdown(comparison(rows))


def test_a_slow_run_does_not_change_the_seconds() -> None:
    rows = [row("sgd", seed, 0.9, seconds=seconds) for seed, seconds in enumerate((30, 31, 557))]
    assert summarise(rows, "sgd")[0]["seconds"] == 31


def test_headings_tell_what_was_done_to_the_data() -> None:
    fewer, noise = {"fraction": 0.1, "images": 1290, "of": 12930}, {"fraction": 0.4, "flipped": 517, "of": 1293}
    table = to_markdown(comparison(ROWS, train_fraction=fewer, label_noise=noise))
    done = "1,290 of 12,930 training images, 40 % of the training labels wrong"
    assert table.splitlines()[0] == f"# resnet18 on digits, {done}, equal gradient budgets"
    assert to_markdown(comparison(ROWS)).startswith("# resnet18 on digits, equal gradient budgets\n")


def test_unequal_numbers_of_evaluations_are_told() -> None:
    told = "\n".join(notes(comparison(ROWS, evaluations={"sgd": 30, "ours": 20})))
    assert "more updates bring more of these: sgd 30, ours 20." in told
    assert "more of these" not in "\n".join(notes(comparison(ROWS, evaluations={"sgd": 30, "ours": 30})))


def test_intervals_are_rounded_outwards() -> None:
    assert difference([0.0078, 0.01, 0.000008, 0.015591]) == "+0.78 (+0.00 to +1.56)"
    assert difference([-0.001, 0.01, -0.02, -0.00001]) == "-0.10 (-2.00 to +0.00)"


def test_names_are_no_markup() -> None:
    table = to_markdown(comparison([row("sgd", 0, 0.9), row("sam --opt_args {\"a|b\": '<b>'}", 0, 0.9)]))
    assert "<b>" not in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1


def test_the_csv_has_a_row_a_run() -> None:
    read = list(csv.DictReader(io.StringIO(to_csv(ROWS))))
    assert [float(each["test_accuracy"]) for each in read] == SGD + OURS
