"""The search for a default: what its rule chooses, that a search goes on where it ended, and its own optimizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from evidence import ablation
from evidence import search as searching
from evidence.candidates import ABLATIONS, DEFAULT, SETTINGS, SGD, Setting, VariedPUGD
from evidence.choosing import Run, Standing, accuracies, choose, rates_of, standard_error, standings
from evidence.search import Rung, Task, make_run, page, read_runs, search, survivors
from torch import nn

from rts_hf import PAPER, RTSPUGD

HARD, EASY, LONG = ("few", 6), ("noise", 6), ("noise", 30)
SIMPLE = {"plain": 0, "dial": 1, "other": 1}


def standing(setting: str, *differences: float) -> Standing:
    seeds = [(each - 1.5, each, each + 1.5) for each in differences]
    return Standing(setting, dict(zip((HARD, EASY, LONG), seeds, strict=True)))


def rows(setting: str, accuracy: dict[tuple[str, int], dict[float, list[float]]]) -> list[Run]:
    return [
        Run(setting, *benchmark, rate, seed, 10, 10, 10, each, 0.5, 1.0)
        for benchmark, rates in accuracy.items()
        for rate, values in rates.items()
        for seed, each in enumerate(values)
    ]


def test_the_rule_keeps_to_its_cap() -> None:
    gains, safe = standing("dial", 5.0, 5.0, -0.51), standing("other", 0.0, 0.1, -0.5)
    assert choose([gains, safe], SIMPLE).setting == "other"  # half a point may be lost, no more
    assert choose([gains, safe], SIMPLE, cap=0.51).setting == "dial"


def test_without_any_within_the_cap_the_smallest_loss_is_chosen() -> None:
    found = [standing("dial", 5.0, 5.0, -3.0), standing("other", -0.9, -0.8, -0.9)]
    assert choose(found, SIMPLE).setting == "other"


def test_a_simpler_setting_wins_a_tie() -> None:
    best = standing("dial", 3.0, 0.0, 0.0)  # mean 1.0
    noisy = {HARD: (0.0, 0.0, 0.0), EASY: (2.5, 1.5, 0.5), LONG: (2.2, 1.2, 0.2)}  # mean 0.9
    # paired by seed the differences' standard errors are 0.87, 1.44 and 1.44, that of their mean 0.73
    assert choose([best, Standing("plain", noisy)], SIMPLE).setting == "plain"
    assert choose([best, Standing("other", noisy)], SIMPLE).setting == "dial"  # as simple: the better one
    assert choose([best, standing("plain", 0.0, 1.5, 1.2)], SIMPLE).setting == "dial"  # by 0.1 at every seed
    level = [standing("dial", 0.0, 0.0, -0.9), Standing("plain", noisy | {LONG: (-2.0, -1.0, 0.0)})]
    assert choose(level, SIMPLE).setting == "plain"  # where worst losses decide, that one benchmark's seeds


def test_differences_are_those_at_the_best_rate_of_each() -> None:
    runs = rows("sgd", {HARD: {0.1: [0.8, 0.9], 0.4: [0.7, 0.7]}}) + rows(
        "dial", {HARD: {0.1: [0.1, 0.1], 0.4: [0.9, 0.94], 0.8: [1.0]}}
    )
    (found,) = standings(runs, ["dial"])
    assert found.differences[HARD] == pytest.approx(7.0)  # 92 to 85; the rate with one seed does not count
    assert rates_of(runs, "dial") == pytest.approx({0.1: 10, 0.4: 92})
    assert accuracies(runs)["sgd"][HARD] == {0.1: {0: 80, 1: 90}, 0.4: {0: 70, 1: 70}}
    assert standard_error(found, standings(runs, ["sgd"])[0], [HARD]) == pytest.approx(3.0)  # of 10 and 4


TINY = {"passes": (1, 2, 3)}  # two updates each
RATES = {"very short": (0.1, 0.2), "short": (0.1, 0.2)}
RUNGS = (Rung({"very short": 1}, {"very short": (0.1,)}, 1), Rung({"very short": 1, "short": 2}, RATES, 1))


def test_a_search_goes_on_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = next(each for each in searching.BENCHMARKS if each.name == "digits_few")
    settings = {each.label: each for each in (Setting(0.5), Setting(0.5, steps="mean"))}
    monkeypatch.setattr(searching, "BENCHMARKS", (few._replace(**TINY),))
    monkeypatch.setattr(searching, "CANDIDATES", settings)
    monkeypatch.setattr(searching, "ADDED", {})
    path = tmp_path / "runs.csv"
    search(path, jobs=1, rungs=RUNGS)
    runs = read_runs(path)
    assert len({run.key for run in runs}) == len(runs) == 3 + 2 + 2 * 2 * 2  # rung 1; of rung 2 what it adds
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])  # as where the machine stops in mid-write
    search(path, jobs=1, rungs=RUNGS)
    again = read_runs(path)
    assert {run[:-1] for run in again} == {run[:-1] for run in runs}  # all but the seconds
    *_, (rung, reached, missing) = survivors(again, RUNGS)
    assert (rung, len(reached), missing) == (RUNGS[1], 1, [])
    monkeypatch.setattr(searching, "RUNGS", RUNGS)
    assert f"The rule chooses **{reached[0]}**" in page(again)
    assert "2 runs missing" in page([run for run in again if run.seed == searching.FIRST_SEED or run.setting == "sgd"])


def test_the_last_rung_measures_the_best_two_rates_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    few, rates = next(each for each in searching.BENCHMARKS if each.name == "digits_few"), (0.1, 0.2, 0.4)
    before = Rung({"short": 1}, {"short": rates}, 1)
    last = Rung({"short": 2}, {"short": rates}, 1, narrows=True)
    monkeypatch.setattr(searching, "BENCHMARKS", (few,))
    monkeypatch.setattr(searching, "RUNGS", (before, last))
    found = {"sgd": (0.9, 0.8, 0.7), "plain": (0.7, 0.8, 0.9)}
    runs = [
        Run(name, few.name, few.passes[1], rate, searching.FIRST_SEED, 10, 10, 10, accuracy, 0.5, 1.0)
        for name, accuracies in found.items()
        for rate, accuracy in zip(rates, accuracies, strict=True)
    ]
    wanted = [task.key for task in searching._tasks(last, ["plain"], runs)]
    assert {(key[0], key[3]) for key in wanted} == {("sgd", 0.1), ("sgd", 0.2), ("plain", 0.2), ("plain", 0.4)}
    assert len(wanted) == 2 * 2 * 2  # with both seeds


def test_its_optimizer_is_the_package_s_where_nothing_varies(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(setting: Setting) -> Any:
        monkeypatch.setattr(searching, "SETTINGS", {setting.label: setting})
        return make_run(Task(setting.label, "digits_few", 6, 0.2, 3000))[5:10]

    one_in_two = run(Setting(0.5, 2))
    assert run(Setting(0.5, dial="never"))[:2] == (12, 12)
    monkeypatch.setattr(Setting, "is_own", property(lambda setting: False))
    assert run(Setting(0.5, 2)) == one_in_two


def test_the_chosen_setting_is_the_package_s_default() -> None:
    def weights(make: Any, **told: Any) -> list[tuple[float, ...]]:
        weight = nn.Parameter(torch.tensor([0.3, 1.5]))
        optimizer, found = make([weight], lr=0.1, total_steps=12, **told), []
        for update in range(12):
            (weight * torch.tensor([1.0, 3.0 if update == 7 else 0.2])).square().sum().backward()
            if optimizer.perturbing:
                with optimizer.perturbed():
                    weight.pow(4).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            optimizer.observe_losses(1.0, 2.5 if update >= 5 else 1.1)
            found.append((*weight.tolist(), optimizer.stats()["gradient_evaluations"]))
        return found

    setting = SETTINGS[ABLATIONS[DEFAULT]]
    own = weights(RTSPUGD)
    assert weights(VariedPUGD, setting=setting, **PAPER) == own
    assert own[-1][-1] == 12 + 3  # the gap is as large after the sixth update, and stays so until the ninth


def test_it_never_has_the_test_split() -> None:
    data = searching._data("digits_few")
    assert data.test is None
    assert replace(data).split_sizes == {"train": 128, "validation": 432}


def test_an_ablation_is_held_against_the_whole_default() -> None:
    few, whole = ablation.BENCHMARKS[1], ABLATIONS[DEFAULT]
    values = {whole: (0.8, 0.9), SGD: (0.7, 0.7), ABLATIONS["perturbation"]: (0.8, 0.86)}
    runs = [
        Run(setting, *benchmark, 0.1, seed, 10, 10, 10, each, 0.5, 1.0)
        for setting, accuracy in values.items()
        for benchmark in ablation.BENCHMARKS
        for seed, each in zip((ablation.CHOOSING, *ablation.SEEDS), (0.6, *accuracy), strict=False)
    ]
    runs += [run._replace(learning_rate=0.4, accuracy=0.5) for run in runs if run.seed == ablation.CHOOSING]
    lines = ablation.table(runs).splitlines()
    assert "| nothing | 85.00 % | 85.00 % | 85.00 % |" in lines  # without the seed that chose the rate
    assert "| plain SGD | -15.00 ± 5.00 | -15.00 ± 5.00 | -15.00 ± 5.00 |" in lines
    assert "| perturbation | -2.00 ± 2.00 | -2.00 ± 2.00 | -2.00 ± 2.00 |" in lines
    assert len(lines) == 2 + 2 + 3 + 1 + 0  # and no other variant, which has no runs
    left = ablation.tasks([])
    assert {(task.setting, task.learning_rate, task.seed) for task in left if task[1:3] == few} == {
        (setting, rate, ablation.CHOOSING) for setting in (SGD, *ABLATIONS.values()) for rate in ablation.RATES
    }
    made = [Run(*task[:5], 8, 10, 10, 1 - task.learning_rate, 0.5, 1.0) for task in left]
    assert {(*task[1:3], task[3], task[5]) for task in ablation.tasks(made)} == {
        (*benchmark, 0.1, 0.8) for benchmark in ablation.BENCHMARKS
    }
    assert len(ablation.tasks(made)) == len(left) / len(ablation.RATES) * len(ablation.SEEDS)
